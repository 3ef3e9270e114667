"""Shards of a large data set: what a unit of work is, and the files of finished units (parts), which outlive a process.

A unit is a piece of work, usually a cell of the grid, on a shard of consecutive items. Its part is a file in
``<record>.parts/<digest>``, where the digest stands for everything that can change an outcome. So parts of different
runs never mix. `sharded` runs the units.

Parts are removed by a rename, all of a piece or all there are. So a process that is killed while it removes them leaves
none that could be taken for new ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from pitome_core.experiments import settings
from pitome_core.experiments.assets import AssetError
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import Cell

# How a paper tier scores, for the help of its options.
SCORED_WHOLE = (
    "scored whole; with --split test the scoring is logged and the record lies in results/paper, without it is a "
    "trial. A run that was stopped goes on where it was"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Refused(ValueError):
    """What was asked for cannot be run; the message says what to do."""


REFUSALS = (Refused, results.RecordError, AssetError)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn a ``ValueError``, such as that of a grid for a keep ratio of 1.5, into `Refused`."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


def add_arguments(
    group: Any, items: str, *, batch_size: int = 128, default: str = "float32", pictures: bool = True,
    dtype: str = "bfloat16 runs under autocast; plans are float32 either way",
) -> None:
    """Add the options that every experiment in shards has.

    Args:
        group: an argparse group, or `command_line.Options`.
        items: what is scored, such as ``images``, for the help.
        batch_size: of a run that names none.
        default: the dtype of a run that names none.
        pictures: whether items are decoded in processes of their own, ``--workers`` many.
        dtype: what the dtype applies to, for the help.
    """
    group.add_argument("--dtype", choices=list(DTYPES), default=default, help=f"{dtype} (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="N",
                       help=f"{items} at a time (default: %(default)s)")
    group.add_argument("--shard", type=int, default=1000, metavar="N",
                       help=f"{items} in a unit of work: what a killed process loses at most (default: %(default)s)")
    if pictures:
        group.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N",
                           help="processes that decode images, for each process that scores (default: %(default)s)")


def check_numbers(args: argparse.Namespace, *more: str) -> None:
    """Raise `Refused` for a number that is too small: one of `add_arguments`, or one of ``more``, which start at 1."""
    least = {"batch_size": 1, "shard": 1, "workers": 0} | dict.fromkeys(more, 1)
    for name, smallest in least.items():
        if (value := getattr(args, name, None)) is not None and value < smallest:
            raise Refused(f"--{name.replace('_', '-')} {value} is below {smallest}")


@dataclass(frozen=True)
class Unit:
    """The smallest unit of work: a piece on the items ``start .. stop - 1``, which are its shard number ``shard``."""

    piece: Cell
    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, size: int) -> list[range]:
        """Numbers of the items, ``size`` at a time."""
        return [range(start, min(start + size, self.stop)) for start in range(self.start, self.stop, size)]


def split(piece: Cell, count: int, size: int) -> list[Unit]:
    """The units of a piece on ``count`` items, ``size`` in a shard."""
    return [Unit(piece, number, start, min(start + size, count)) for number, start in enumerate(range(0, count, size))]


def processes() -> tuple[Any, torch.device]:
    """What accelerate says of all processes that were launched together, and the device of this one."""
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


@contextlib.contextmanager
def together(state: Any) -> Iterator[None]:
    """What one process refuses inside the block, all of them refuse at its end. They wait for each other there.

    The first process that has a reason raises `Refused` with it; the others raise one without a text.
    """
    from accelerate.utils import gather_object

    reason = ""
    try:
        yield
    except REFUSALS as error:
        reason = str(error)
    reasons = gather_object([reason])
    if any(reasons):
        speaks = state.process_index == [bool(one) for one in reasons].index(True)
        raise Refused(reason if speaks else "")


def weights_digest(model: nn.Module) -> str:
    """12 hexadecimal digits of a SHA-256 over parameters and buffers of a model on the CPU, names and shapes too."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


class Parts:
    """The finished units of one run, one file each: ``<record>.parts/<digest of the run>/<piece>/shard-00012.json``.

    ``identity`` is everything that can change what a part holds. ``again.json`` lists the cells that are to be scored
    again, from the moment when ``--again`` began until the last of them is recorded, whatever is killed in between.
    """

    def __init__(self, record: Path, identity: Mapping[str, Any]):
        self.root = record.with_suffix(".parts")
        self.identity = files.plain(dict(identity))
        self.digest = _digest(self.identity)
        self.folder = self.root / self.digest
        self.note = self.root / "again.json"
        self._flag = self.folder / "stopped"

    def path(self, unit: Unit) -> Path:
        return self._folder_of(unit.piece) / f"shard-{unit.shard:05d}.json"

    def _folder_of(self, piece: Cell) -> Path:
        return self.folder / piece.key.replace("/", "+")

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that have no part yet."""
        return [unit for unit in units if not self.path(unit).is_file()]

    def write(self, unit: Unit, content: Mapping[str, Any]) -> None:
        """Write one part, whole or not at all."""
        part = self._about(unit) | {"content": files.plain(dict(content))}
        text = json.dumps(part | {"digest": _digest(part)}, ensure_ascii=False, indent=1, allow_nan=False)
        files.write_atomically(self.path(unit), text + "\n")

    def read(self, unit: Unit) -> dict[str, Any]:
        """The content of one part.

        Raises:
            RecordError: the file is not what was written, or it is of another run or unit.
        """
        path = self.path(unit)
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
            if part.pop("digest") == _digest(part) and part | self._about(unit) == part:
                return part["content"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise results.RecordError(f"{path} is damaged or of another run: delete it and start again")

    def _about(self, unit: Unit) -> dict[str, Any]:
        return {"run": self.digest, "piece": unit.piece.key, "start": unit.start, "stop": unit.stop}

    def remove(self, piece: Cell) -> None:
        """Remove the parts of a piece, all at once."""
        self._remove(self._folder_of(piece))

    def _remove(self, folder: Path) -> None:
        """Give a folder another name, in one step, and delete it; `begin` deletes what is left after a kill."""
        gone = self.root / f".removed-{uuid4().hex}"
        with files.writing(folder), contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    @property
    def again(self) -> list[str]:
        """The cells that a run with ``--again`` has still to score, by their keys."""
        return self._noted()["cells"]

    def _noted(self) -> dict[str, Any]:
        try:
            noted = files.read_json(self.note)
        except results.RecordError:
            if self.note.exists():
                raise
            noted = {"cells": [], "cleared": True}
        if not isinstance(noted, dict) or not {"cells", "cleared"} <= set(noted):
            raise results.RecordError(f"{self.note} is damaged: delete it and pass --again")
        return noted

    def _write_note(self, cells: Sequence[str], cleared: bool) -> None:
        files.write_atomically(self.note, files.one_line({"cells": list(cells), "cleared": cleared}) + "\n")

    def recorded(self, cell: str) -> None:
        """Note that a cell has been scored again."""
        if cell in (left := self.again):
            left.remove(cell)
            if left:
                self._write_note(left, cleared=True)
            else:
                self.note.unlink()

    def stop(self) -> None:
        """Tell the other processes to stop."""
        files.write_atomically(self._flag, "")

    @property
    def stopped(self) -> bool:
        """Whether one of the processes has said `stop` since `begin`."""
        return self._flag.exists()

    def begin(self, again: Sequence[str] = ()) -> None:
        """Write down what this folder is of, and name on stderr the parts of other runs of the record.

        ``again`` are cells to be scored again: no part that is there now will be used, by this run or a later one. Call
        it with the lock of the record: what killed processes have left is deleted.
        """
        with files.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for one in list(self.root.rglob(".*")):  # parts that were removed, and files that were not yet written
                shutil.rmtree(one, ignore_errors=True)
                if one.is_file():
                    one.unlink()
        if again:
            self._write_note(dict.fromkeys([*self.again, *again]), cleared=False)
        if not (noted := self._noted())["cleared"]:
            for folder in [one for one in self.root.iterdir() if one.is_dir()]:
                self._remove(folder)
            self._write_note(noted["cells"], cleared=True)
        self._flag.unlink(missing_ok=True)
        files.write_atomically(self.folder / "run.json", json.dumps(self.identity, indent=1, allow_nan=False) + "\n")
        for other in sorted(path for path in self.root.iterdir() if path.is_dir() and path != self.folder):
            try:
                theirs = json.loads((other / "run.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                theirs = {}
            differs = [name for name, value in self.identity.items() if theirs.get(name) != value]
            shards = f"{len(list(other.glob('*/shard-*.json')))} finished shards of another run"
            print(f"{shards} (different {', '.join(differs)}) are kept in {other} and not used", file=sys.stderr)

    def end(self) -> None:
        """Remove the folder once nothing unfinished lies in it."""
        if not self.root.exists():  # nothing was to be done
            return
        if not list(self.folder.glob("*/shard-*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        if not any(path.is_dir() or path == self.note for path in self.root.iterdir()):
            shutil.rmtree(self.root, ignore_errors=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
