"""The three environment variables that every notebook and command obeys, and what runs on the chosen device."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path

import torch

PROFILES = ("smoke", "embedded", "paper")


def profile() -> str:
    """The tier that runs: ``smoke``, ``embedded`` (default) or ``paper``, from ``PITOME_PROFILE``.

    Raises ``ValueError`` for any other value.
    """
    value = os.environ.get("PITOME_PROFILE") or "embedded"
    if value not in PROFILES:
        raise ValueError(f"PITOME_PROFILE is {value!r}; choose one of {', '.join(PROFILES)}")
    return value


def device() -> torch.device:
    """The device that models run on, from ``PITOME_DEVICE`` (``cpu``, ``cuda``, ``cuda:1``, ...).

    Unset means CUDA where there is one, else the CPU.
    Raises ``ValueError`` for a name torch does not know, ``RuntimeError`` for CUDA that is not there.
    """
    value = os.environ.get("PITOME_DEVICE")
    if not value:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(value)
    except RuntimeError:
        raise ValueError(f"PITOME_DEVICE is {value!r}; choose cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(
            f"PITOME_DEVICE asks for {value!r}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here; unset it or set it to cpu"
        )
    return chosen


def device_name(device: torch.device) -> str:
    """The name of the graphics card, or that of the processor, as it calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def exact_float32() -> None:
    """Switch TF32 off. Convolutions would use it by default, and merge plans depend on small differences."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def cache_dir() -> Path:
    """The folder that fetched assets live in; it may not exist yet.

    ``PITOME_CACHE`` names it outright. Otherwise it is ``pitome`` inside the user's cache folder:
    ``XDG_CACHE_HOME`` if set, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows,
    ``~/.cache`` elsewhere.
    """
    if moved := os.environ.get("PITOME_CACHE"):
        return Path(moved).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "pitome"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pitome"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "pitome"
    return Path.home() / ".cache" / "pitome"
