"""What one adds for another large data set: a task, whose shards `sharded.run` scores.

A data set with its model and its metric is a class. Here a model says whether numbers are even:

    class Parity(ShardedTask):
        experiment, protocol, split = "parity", "parity-1", "test"

        def __init__(self, args, device, numbers, model):
            super().__init__(args, device)
            self.name, self.numbers, self.model = "numbers-tiny", numbers, model
            self.items = {"id": range(len(numbers))}
            self.about = {"model": "tiny", "weights": shards.weights_digest(model)}
            self.what, self.cells = f"{len(numbers)} numbers", grid.cells(args.methods, args.keep or grid.KEEPS)

        def applied(self, piece):  # the model as a piece runs it
            return grid.applied(piece, self.model)

        def cost(self, cell):  # what records say of the cell's cost
            return grid.cost(cell, self.model)

        def score(self, running, unit, batches):  # the part of one shard, as JSON
            return {"even": [running(self.numbers[i]) > 0 for i in range(unit.start, unit.stop)]}

        def assemble(self, cell, parts):  # what the record says of the cell, and its outcomes
            even = joined(parts[0], "even")
            return {}, {"correct": [a == (b % 2 == 0) for a, b in zip(even, self.numbers, strict=True)]}

        def table(self, record):  # what is printed at the end
            return summary.table(record, self.cells, summary.share(record))

Its module also loads data and model, and is the paper tier of a command (`command_line.Command`):

    def configure(options):
        group = options.add_argument_group("paper tier", "Numbers, scored whole.")
        group.add_argument("--model", nargs="+", default=["tiny"], help="...")
        shards.add_arguments(group, "numbers")

    def run(args):
        def load_task(args, device, numbers, name):
            return Parity(args, device, numbers, load_model(name).to(device))

        return sharded.run(args, load_numbers, load_task)

The runner does the rest. ``tests/support/toy_sharded.py`` is a whole data set in a hundred lines.
"""

from __future__ import annotations

import abc
import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.runs.shards import DTYPES, Unit

UNREADABLE = "unreadable"  # in a part: {what the record calls an item that could not be read: the line for stderr}


class ShardedTask(abc.ABC):
    """One data set, one model and one metric. Building it loads nothing: it is given both.

    Attributes:
        experiment, name: the record is ``<experiment>-<name>.json``; the dtype is added where it is not float32.
        protocol: the version of the grid in book/protocol.md.
        split: the split of the data set that is scored, for the header.
        clusters: the columns that intervals are over; none: every item by itself.
        items: columns of the record, ``id`` among them.
        about: further entries of the header, ``model`` and ``weights`` among them.
        identity: what can change an outcome and stands neither in the header nor among the versions of packages.
        cells: what is scored, in the order of the record.
        what: number and name of the items, such as ``24 images``.
        left_out: records of the data set that cannot be used, a line each; with any, the exit status is 1.
    """

    experiment: str
    name: str
    protocol: str
    split: str = "test"
    clusters: Sequence[str] = ()
    items: Mapping[str, Sequence]
    about: Mapping[str, Any]
    identity: Mapping[str, Any] = {}
    cells: Sequence[Cell]
    what: str
    left_out: Sequence[str] = ()

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device = args, device

    @property
    def path(self) -> Path:
        """The file of the record."""
        suffix = "" if self.args.dtype == "float32" else f"-{self.args.dtype}"
        return sweep.output_folder(self.args) / f"{self.experiment}-{self.name}{suffix}.json"

    @abc.abstractmethod
    def applied(self, piece: Cell) -> AbstractContextManager[Any]:
        """What `score` is given for a piece, such as the patched model. It is patched inside the `with` block only."""

    @abc.abstractmethod
    def cost(self, cell: Cell) -> Mapping[str, Any]:
        """What one item costs, and what else the record says of the cell; ``share`` of the whole model's work in it."""

    @abc.abstractmethod
    def score(self, running: Any, unit: Unit, batches: Iterator) -> Mapping[str, Any]:
        """The part of one unit: what `assemble` needs of its items, as JSON can hold it.

        `running` is what `applied` gave. `batches` goes on with the next unit, so exactly those of this unit are taken.
        Items that cannot be read are listed under `UNREADABLE`. `Refused` stops the run; finished parts are kept.
        """

    @abc.abstractmethod
    def assemble(self, cell: Cell, parts: Sequence[Sequence[Mapping]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What the record says of the cell in addition to its cost, and its outcomes, as `Record.add` takes them.

        ``parts[i]`` are the parts of piece ``i``, shard by shard, with ``seconds``, ``device`` and ``batch``.
        """

    @abc.abstractmethod
    def table(self, record: results.Record) -> str:
        """The table that is printed at the end."""

    def pieces(self, cell: Cell) -> Sequence[Cell]:
        """What has to be run for a cell: itself. A piece that several cells need is run once."""
        return [cell]

    def size(self, piece: Cell) -> int:
        """How many items the piece runs on: all."""
        return len(self.items["id"])

    def work(self, piece: Cell, cost: Mapping[str, Any]) -> float:
        """Work per item of the piece, in any unit, for the estimate. `cost` is that of a cell that needs the piece."""
        return cost["share"]

    def batches(self, units: Sequence[Unit]) -> Iterator:
        """The batches of all of these units, in order, where they are decoded ahead; see `decoding.batches`."""
        return iter(())

    def autocast(self) -> torch.autocast:
        """The context in which a model computes in ``--dtype``."""
        dtype = DTYPES[self.args.dtype]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def joined(parts: Sequence[Mapping[str, Any]], column: str) -> list:
    """A column of the parts of one piece, end to end."""
    return [value for part in parts for value in part[column]]
