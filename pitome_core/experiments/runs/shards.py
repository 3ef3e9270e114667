"""Large sets of images in the paper tier: shards that processes share, and that a killed run does not lose.

A unit of work is a cell of the grid on a shard of consecutive items. A finished shard is a file in ``<record>.parts``,
named after all that can change an outcome, so that parts of different runs never mix. Processes share the shards; they
need a common file system and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from pitome_core.experiments import settings
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import Cell

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Refused(ValueError):
    """What was asked for cannot be run; the message says what to do."""


def add_arguments(
    group: argparse._ArgumentGroup, items: str, *, batch_size: int = 128, default: str = "float32",
    dtype: str = "bfloat16 runs under autocast; plans are float32 either way",
) -> None:
    """The arguments that every experiment in shards has; ``items`` is what it scores, such as ``images``.

    ``default`` is the dtype of a run that names none, ``dtype`` says what it is of.
    """
    group.add_argument("--dtype", choices=list(DTYPES), default=default, help=f"{dtype} (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="N",
                       help=f"{items} at a time (default: %(default)s)")
    group.add_argument("--shard", type=int, default=1000, metavar="N",
                       help=f"{items} in a unit of work: what a killed process loses at most (default: %(default)s)")
    group.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N",
                       help="processes that decode images, per process that scores (default: %(default)s)")


def check_numbers(args: argparse.Namespace) -> None:
    """Raise `Refused` for a number of `add_arguments` that is too small."""
    for name, least in (("batch_size", 1), ("shard", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise Refused(f"--{name.replace('_', '-')} {getattr(args, name)} is below {least}")


@dataclass(frozen=True)
class Unit:
    """The smallest piece of work: a cell on the items ``start .. stop - 1``, shard number ``shard``."""

    cell: Cell
    shard: int
    start: int
    stop: int


def split(cell: Cell, count: int, size: int) -> list[Unit]:
    """The units of a cell on ``count`` items, ``size`` in a shard."""
    return [Unit(cell, number, start, min(start + size, count)) for number, start in enumerate(range(0, count, size))]


def processes() -> tuple[Any, torch.device]:
    """Accelerate's account of the processes beside this one, and the device of this one."""
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError:
        raise Refused("the paper tier needs accelerate: pip install 'pitome-core[experiments]'") from None
    asked = settings.device()
    cpu = asked.type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    # Processes wait for each other at the end only, the first for as long as the slowest shard takes.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    device = asked if state.num_processes == 1 and not cpu else state.device
    if device.type != asked.type:
        os.environ["PITOME_DEVICE"] = device.type  # what provenance reports
    return state, device


def weights_digest(model: nn.Module) -> str:
    """12 hexadecimal digits of a SHA-256 over parameters and buffers of a model on the CPU, names and shapes too."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


class Parts:
    """The finished shards of one run, one file each: ``<record>.parts/<digest of the run>/<cell>/shard-00012.json``."""

    def __init__(self, record: Path, identity: Mapping[str, Any]):
        self.root = record.with_suffix(".parts")
        self.identity = json.loads(json.dumps(dict(identity)))
        self.digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = self.root / self.digest

    def path(self, unit: Unit) -> Path:
        return self.cell_folder(unit.cell) / f"shard-{unit.shard:05d}.json"

    def cell_folder(self, cell: Cell) -> Path:
        return self.folder / cell.key.replace("/", "+")

    def write(self, unit: Unit, part: Mapping[str, Any]) -> None:
        """Write one, all or nothing."""
        about = {"run": self.digest, "cell": unit.cell.key, "start": unit.start, "stop": unit.stop}
        files.write_atomically(self.path(unit), json.dumps(about | dict(part), ensure_ascii=False, indent=1) + "\n")

    def read(self, unit: Unit, *columns: str) -> dict[str, Any]:
        """Read one, and check that it is what its name says, with an entry per item in `columns`. `RecordError` if not.
        """
        path = self.path(unit)
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
            expected = [self.digest, unit.cell.key, unit.start, unit.stop] + [unit.stop - unit.start] * len(columns)
            found = [part[name] for name in ("run", "cell", "start", "stop")]
            if found + [len(part[name]) for name in columns] == expected:
                return part
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise results.RecordError(f"{path} is damaged or of another run: delete it and start again")

    def begin(self) -> None:
        """Say what this folder is of, and name the parts of other runs that lie beside it."""
        files.write_atomically(self.folder / "run.json", json.dumps(self.identity, indent=1) + "\n")
        for other in sorted(path for path in self.root.iterdir() if path.is_dir() and path != self.folder):
            try:
                theirs = json.loads((other / "run.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                theirs = {}
            differs = [name for name, value in self.identity.items() if theirs.get(name) != value]
            what = f"{len(list(other.glob('*/shard-*.json')))} finished shards of another run"
            print(f"{what} (different {', '.join(differs)}) are kept in {other} and not used", file=sys.stderr)

    def end(self) -> None:
        """Remove the folder once nothing unfinished lies in it."""
        if not list(self.folder.glob("*/shard-*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        if not any(path.is_dir() for path in self.root.iterdir()):
            shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """One run at a time works on a record. The lock is the operating system's: it ends with the process, however."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise results.RecordError(f"another run is working in {root}: wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


class Decoded(Dataset):
    """``[(index, pixels)]`` -> (index, ``(3, H, W)`` or None, why not). `pixels`: None, or a smaller side.

    `reader[index][0]` is what PIL opens. timm's own data set would put the next image in the place of one that cannot
    be read.
    """

    def __init__(self, reader: Any, transforms: Mapping[int | None, Any]):
        self.reader, self.transforms = reader, transforms

    def __getitem__(self, where: tuple[int, int | None]) -> tuple[int, Tensor | None, str]:
        index, pixels = where
        try:
            stream = self.reader[index][0]
            with stream, Image.open(stream) as picture:
                picture = picture.convert("RGB")  # decodes; grey, CMYK and palettes become RGB
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            return index, None, f"{type(error).__name__}: {error}"
        return index, self.transforms[pixels](picture), ""


def collate(rows: list[tuple[int, Tensor | None, str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """(indices that were read, ``(B, 3, H, W)`` or None, indices that were not and why)."""
    images = [image for _, image, _ in rows if image is not None]
    return (
        [index for index, image, _ in rows if image is not None],
        torch.stack(images) if images else None,
        [(index, why) for index, image, why in rows if image is None],
    )
