"""What a run says about itself: code, commit, command, versions and device; and the logs that it writes to.

Take it with `of_run` when a computation starts, not when it ends: files may change in between.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pitome_core.experiments import settings
from pitome_core.experiments.records import files, locking, results
from pitome_core.experiments.records.results import Record, RecordError

PACKAGES = ("pitome-core", "torch", "torchvision", "timm", "transformers", "open_clip_torch", "numpy", "scikit-learn")


def of_run(code: str, seed: int | None = 0, *, test: bool = False, allow_modified: bool = False) -> dict[str, Any]:
    """Commit, code, command, versions, device, threads, seed and date, as of now.

    Args:
        code: the hash of what the run computes with, `fingerprint.code_of`.
        seed: of the run; None: nothing is drawn at random.
        test: whether a test set is about to be scored.
        allow_modified: score it although the package differs from the commit. The run then says ``allow_modified``.

    ``modified`` says whether the package differs from the commit. It is None, unknown, without git and where
    ``PITOME_COMMIT`` gives the commit.

    Raises:
        RecordError: a test set is to be scored, the package is modified, and that is not allowed.
    """
    root = results.clone()
    given_commit = os.environ.get("PITOME_COMMIT")  # a copy of the tree may have no history, or an older one
    commit = _git(root, "rev-parse", "HEAD") if root and not given_commit else None
    changes = _git(root, "status", "--porcelain", "--", "pitome_core") if root and commit else None
    modified = None if changes is None else bool(changes)
    if test and modified and not allow_modified:
        raise RecordError(
            f"pitome_core differs from commit {commit[:7]}, and a test set is scored by code that a commit has: commit "
            f"first, or pass --allow-modified. What differs: {'; '.join(changes.splitlines())}"
        )
    return {
        "date": locking.now(),
        "command": locking.command(),
        "commit": given_commit or commit,
        "modified": modified,
        **({"allow_modified": True} if test and modified else {}),
        "code": code,
        "device": settings.device_name(settings.device()),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "packages": versions(),
        "seed": seed,
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    return {name: version for name in packages if (version := _version(name))}


def log_test(record: Record, cells: Sequence[str], run: Mapping[str, Any], log: Path | None = None) -> None:
    """Note in ``results/test_log.json`` that cells of a test set are about to be scored. Call it before, not after.

    `run` is what `of_run` returned, with ``test=True``. A run that is killed and started again makes two entries. In
    each, ``new`` counts the cells that the record lacked, and ``again`` those that it had.
    """
    log = log or results.writable(committed=True) / "test_log.json"
    about = {name: record.header.get(name) for name in ("experiment", "task", "tier", "protocol", "model")}
    recorded = [key for key in cells if key in record]
    names = ("code", "commit", "modified", "allow_modified", "device", "command")
    entry = {
        "date": run["date"], **about, "items": len(record), "new": len(cells) - len(recorded), "again": len(recorded),
        **{name: run[name] for name in names if name in run},
    }
    with locking.alone(log, wait=60):  # tasks may run side by side
        entries = files.read_json(log) if log.exists() else []
        if not isinstance(entries, list):
            raise RecordError(f"{log} is no list of scored test sets: {files.REMEDY}")
        lines = ",\n".join(f" {files.one_line(line)}" for line in [*entries, files.plain(entry)])
        files.write_atomically(log, f"[\n{lines}\n]\n")


def note(name: str, entry: Mapping[str, Any], code: str, log: Path | None = None) -> None:
    """Add a line to ``name.jsonl`` beside the records that are not committed: one short write, which processes share.

    The line is `entry` with date, code, device and command. `log` is another file to write to.
    """
    log = log or results.writable(committed=False) / f"{name}.jsonl"
    run = of_run(code, None)
    line = files.plain({**entry, **{name: run[name] for name in ("date", "code", "device", "command")}})
    with files.writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
