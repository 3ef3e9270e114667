"""A small data set for the laws of the runner in shards: numbers, one per line of a file, and a formula as model.

Every cell has two pieces: its own, and a shared one, which all cells need. A line that is no number cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import WHOLE, Cell
from pitome_core.experiments.runs import grid, sharded, shards, summary
from pitome_core.experiments.runs.command_line import Command
from pitome_core.experiments.runs.sharded_task import UNREADABLE, ShardedTask, joined
from pitome_core.experiments.runs.shards import Refused, Unit

SHARED = Cell(WHOLE, towers="text")


class Numbers(ShardedTask):
    """The value of a formula at every number; the keep ratio of a cell is a factor in it."""

    experiment, protocol = "toy", "toy-1"

    def __init__(self, args: argparse.Namespace, device: torch.device, lines: Sequence[str], model: str):
        super().__init__(args, device)
        self.lines, self.name, self.what = lines, f"numbers-{model}", f"{len(lines)} numbers"
        self.items = {"id": range(len(lines))}
        names = hashlib.sha256(str(len(lines)).encode()).hexdigest()
        self.about = {"model": model, "weights": "none", "data": {"list": names}}
        self.cells = grid.cells(args.methods or ["tome"], args.keep or [0.9, 0.8])
        self.left_out = [f"line {number}: comment" for number in range(args.comments)]

    @contextlib.contextmanager
    def applied(self, piece: Cell) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        factor = 0.5 if piece == SHARED else piece.keep or 1.0
        yield lambda x: (factor * x).sin() + factor

    def cost(self, cell: Cell) -> dict[str, Any]:
        return {"share": cell.keep or 1.0}

    def pieces(self, cell: Cell) -> list[Cell]:
        return [cell, SHARED]

    def batches(self, units: Sequence[Unit]) -> Iterator[list[tuple[int, float | None]]]:
        for batch in (batch for unit in units for batch in unit.batches(self.args.batch_size)):
            yield [(i, float(self.lines[i]) if self.lines[i].isdigit() else None) for i in batch]

    def score(self, running: Callable, unit: Unit, batches: Iterator) -> dict[str, Any]:
        time.sleep(self.args.pause)
        values, unreadable = [], {}
        for batch in unit.batches(self.args.batch_size):
            numbers = next(batches)
            assert [i for i, _ in numbers] == list(batch), "batches of another unit"
            for i, number in numbers:
                if self.lines[i] == "stop":
                    raise Refused(f"line {i} says stop: mend it")
                if number is None:
                    unreadable[f"line {i}"] = f"cannot read line {i} ({self.lines[i]!r})"
                values.append(None if number is None else float(running(torch.tensor(number))))
        return {"value": values, UNREADABLE: unreadable}

    def assemble(self, cell: Cell, parts: Sequence[Sequence[dict]]) -> tuple[dict[str, Any], dict[str, Any]]:
        own, shared = (joined(piece, "value") for piece in parts)
        values = [float("nan") if a is None else a + b for a, b in zip(own, shared, strict=True)]
        return {"scored": sum(value == value for value in values)}, {"value": values}

    def table(self, record: results.Record) -> str:
        return summary.table(record, self.cells, summary.share(record))


def configure(options: Any) -> None:
    """Add the options of the data set."""
    group = options.add_argument_group()
    group.add_argument("--model", nargs="+", default=["sine"])
    group.add_argument("--data", type=Path)
    group.add_argument("--pause", type=float, default=0.0)
    group.add_argument("--comments", type=int, default=0)
    shards.add_arguments(group, "numbers", batch_size=3)


def load_lines(args: argparse.Namespace) -> list[str]:
    """The data set."""
    if args.data is None or not args.data.is_file():
        raise Refused(f"no file {args.data}: pass --data FILE")
    return args.data.read_text().splitlines()


COMMAND = Command(
    experiment="toy", protocol="toy-1", tasks={}, cells=lambda args, name: [], summary=lambda record, cells: "",
    paper=SimpleNamespace(configure=configure, run=lambda args: sharded.run(args, load_lines, Numbers)),
)


def main(words: Sequence[str]) -> int:
    """The command line of the toy; ``PITOME_PROFILE`` has to be ``paper``."""
    parser = argparse.ArgumentParser()
    COMMAND.configure(parser)
    return COMMAND.main(parser.parse_args(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
