"""The runner for large data sets: one record, made in shards that processes share and that outlive a killed process.

`sharded_task` shows what a data set adds. The runner opens the record, finds what is missing, shares it among the
processes, logs the scoring of a test set, prints an estimate after the first shard, writes a part for each shard, and
moves a cell into the record as soon as all of its parts are there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from pitome_core.experiments import settings
from pitome_core.experiments.records import locking, provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.runs import shards
from pitome_core.experiments.runs.sharded_task import UNREADABLE, ShardedTask
from pitome_core.experiments.runs.shards import Refused, Unit

Data = TypeVar("Data")
SHOWN = 5  # items left out that are named on the screen; the record has all


def run(
    args: argparse.Namespace, load_data: Callable[[argparse.Namespace], Data],
    load_task: Callable[[argparse.Namespace, torch.device, Data, str], ShardedTask],
) -> int:
    """Score what was asked for, in this process and in the others that were launched with it.

    Args:
        args: what the command line gave; ``args.model`` lists the models.
        load_data: ``(args)`` -> the data set, once for all models. It checks the other arguments as well.
        load_task: ``(args, device, data, model)`` -> the task of one of ``args.model``.

    Returns:
        The exit status. 0: every item of every cell has an outcome. 1: something was left out, and stderr says what.
        2: it cannot be run, for the reason on stderr.
    """
    state, status = None, 0
    try:
        state, device = shards.processes()
        with shards.together(state):
            shards.check_numbers(args)
            data = load_data(args)
        for model in args.model:
            for first in (True, False):  # one process downloads, the others find the files in the cache
                with shards.together(state):
                    if state.is_main_process == first:
                        task = load_task(args, device, data, model)
            with shards.together(state):
                work = _Run(task, state)
            status = max(status, work.score())
    except Refused as error:
        if str(error):  # all processes end, and one of them says why
            print(f"error: {error}", file=sys.stderr)
        status = 2
    if state is not None and state.num_processes > 1:
        state.destroy_process_group()
    return status


class _Run:
    """The work on one record in one process.

    ``waiting`` are the cells that the record lacks or that are to be scored again, ``costs`` what they cost; ``units``
    are the units of all pieces by the key of the piece.
    """

    def __init__(self, task: ShardedTask, state: Any):
        self.task, self.state, self.args = task, state, task.args
        settings.exact_float32()  # under autocast too: plans are float32 there
        self.header = header = {
            "experiment": task.experiment, "task": task.name, "tier": settings.profile(), "split": task.split,
            "protocol": task.protocol, "clusters": list(task.clusters), "dtype": self.args.dtype, **task.about,
        }
        code = code_of(type(task))
        self.parts = shards.Parts(task.path, {
            "code": code, **header, **task.identity, "packages": provenance.versions(), "device": task.device.type,
            "shard": self.args.shard,
        })
        self._look()
        self.scores_test = self.args.split == "test" and not self.args.estimate and bool(self.waiting)
        self.origin = provenance.of_run(code, test=self.scores_test, allow_modified=self.args.allow_modified)
        pieces = {piece.key: piece for cell in task.cells for piece in task.pieces(cell)}
        self.units = {key: shards.split(piece, task.size(piece), self.args.shard) for key, piece in pieces.items()}

    def _look(self) -> None:
        """Read the record, and find what is waiting."""
        self.record = results.Record.open(self.task.path, self.header, self.task.items)
        again = self.parts.again
        self.waiting = [
            cell for cell in self.task.cells if self.args.again or cell.key in again or cell.key not in self.record
        ]

    def score(self) -> int:
        """Score all that is missing; the exit status (on all but the main process: 0)."""
        from accelerate.utils import broadcast_object_list

        main, together = self.state.is_main_process, partial(shards.together, self.state)
        with contextlib.ExitStack() as stack:
            plan: list[Any] = [[]]
            with together():
                if main and (self.waiting or self.parts.root.exists()):
                    stack.enter_context(locking.alone(self.task.path))
                    plan = [[(unit.piece.key, unit.shard) for unit in self._begin()]]
                elif main:
                    self._announce([])
            # One process looks and tells the others: if each of them looked, they might find another state each.
            todo = [self.units[key][number] for key, number in broadcast_object_list(plan)[0]]
            mine = todo[self.state.process_index :: self.state.num_processes]
            with together():
                self._score_units(mine[:1] if self.args.estimate else mine, todo)
            if self.args.estimate:
                return 0
            with together():
                if main:
                    self._collect(final=True)
                    self.parts.end()
        if not main:
            return 0
        print(self.task.table(self.record))
        return self._report()

    def _begin(self) -> list[Unit]:
        """What has to be scored, cell by cell, now that no other run can change it; it is announced."""
        self._look()
        with shards.refusing():  # what was asked for cannot be merged
            self.costs = {cell.key: self.task.cost(cell) for cell in self.waiting}
        again = self.args.again and not self.args.estimate
        self.parts.begin([cell.key for cell in self.waiting] if again else ())
        # A run that died while it recorded a cell has left its parts.
        self._remove([cell for cell in self.task.cells if cell not in self.waiting], self.waiting)
        units = list(dict.fromkeys(unit for cell in self.waiting for unit in self._units_of(cell)))
        todo = units if self.args.again else self.parts.missing(units)
        self._announce(todo)
        return todo

    def _report(self) -> int:
        """Say on stderr what was left out; 1 if anything was, else 0."""
        cells, left_out = self.record.cells, self.task.left_out
        keys = [cell.key for cell in self.task.cells]
        unreadable = list(dict.fromkeys(name for key in keys for name in cells[key].get(UNREADABLE, ())))
        if unreadable:
            print(f"{len(unreadable)} of {self.task.what} could not be read and are left out: "
                  f"{_shortened(unreadable)}. Mend them and pass --again", file=sys.stderr)
        if left_out:
            print(f"{len(left_out)} records of the data set were left out", file=sys.stderr)
        return 1 if unreadable or left_out else 0

    def _units_of(self, cell: Cell) -> list[Unit]:
        return [unit for piece in self.task.pieces(cell) for unit in self.units[piece.key]]

    def _remove(self, cells: Sequence[Cell], others: Sequence[Cell]) -> None:
        """Remove the parts of cells that the record has, but for pieces that other cells still need."""
        needed = {piece.key for cell in others for piece in self.task.pieces(cell)}
        for piece in (piece for cell in cells for piece in self.task.pieces(cell) if piece.key not in needed):
            self.parts.remove(piece)

    def _announce(self, todo: Sequence[Unit]) -> None:
        """Say what will be done, on the screen and, for a test set, in the log."""
        task, count, processes = self.task, len(self.task.cells), self.state.num_processes
        units = {unit for cell in self.waiting for unit in self._units_of(cell)}
        print(f"{task.experiment}-{task.name}, {self.args.dtype}: {task.what}, {count} cells, "
              f"{count - len(self.waiting)} recorded already; {len(todo)} of {len(units)} shards to score in "
              f"{processes} process{'es' if processes > 1 else ''}", flush=True)
        if task.left_out:
            print(f"{len(task.left_out)} records left out: {_shortened(task.left_out)}", file=sys.stderr)
        if self.scores_test and todo:
            provenance.log_test(self.record, [cell.key for cell in self.waiting], self.origin)

    def _score_units(self, mine: Sequence[Unit], todo: Sequence[Unit]) -> None:
        """As `_score_all`; whatever is refused in the middle stops the other processes at their next shard."""
        try:
            self._score_all(mine, todo)
        except shards.REFUSALS:
            if self.state.num_processes > 1:
                self.parts.stop()
            raise

    def _score_all(self, mine: Sequence[Unit], todo: Sequence[Unit]) -> None:
        """Score this process's units, a part each; the main process shows progress and records complete cells."""
        if not mine:
            return
        task, main = self.task, self.state.is_main_process
        batches, named = task.batches(mine), set()
        with tqdm(mine, unit="shard", file=sys.stdout, disable=None if main else True, mininterval=1) as bar:
            for piece, units in itertools.groupby(mine, key=lambda unit: unit.piece):
                bar.set_description(piece.key)
                with task.applied(piece) as running:
                    for unit in units:
                        if self.parts.stopped:
                            return
                        seconds, unreadable = self._score_unit(running, unit, batches)
                        for line in (line for name, line in unreadable.items() if name not in named):
                            bar.write(line, file=sys.stderr)
                        named |= unreadable.keys()
                        if main and unit is mine[0]:
                            bar.write(f"  estimate: {self._minutes(unit, seconds, todo):.1f} min; the first of "
                                      f"{len(todo)} shards took {seconds:.1f} s, with start")
                        bar.update()
                if main and not self.args.estimate:
                    self._collect()

    def _score_unit(self, running: Any, unit: Unit, batches: Iterator) -> tuple[float, dict[str, str]]:
        """Write the part of one unit; the seconds that it took, and what could not be read."""
        start = time.perf_counter()
        with torch.inference_mode():
            part = dict(self.task.score(running, unit, batches))
        seconds = time.perf_counter() - start
        device = settings.device_name(self.task.device)
        self.parts.write(unit, part | {"seconds": round(seconds, 3), "device": device, "batch": self.args.batch_size})
        return seconds, part.get(UNREADABLE, {})

    def _minutes(self, first: Unit, seconds: float, todo: Sequence[Unit]) -> float:
        """Minutes for the units ``todo`` in all processes, if time goes with work as it did in the first unit."""
        cost_of = {piece.key: self.costs[cell.key] for cell in self.waiting for piece in self.task.pieces(cell)}

        def work(unit: Unit) -> float:
            return len(unit) * self.task.work(unit.piece, cost_of[unit.piece.key])

        return seconds / work(first) * sum(map(work, todo)) / self.state.num_processes / 60

    def _collect(self, final: bool = False) -> None:
        """Record the cells whose parts are all there, in the order of the grid.

        Raises:
            RecordError: it is the end (``final``), and parts are missing; or a part is damaged.
        """
        while self.waiting:
            units = self._units_of(self.waiting[0])
            missing = self.parts.missing(units)
            if missing and final:
                raise results.RecordError(f"{len(missing)} of {len(units)} shards of {self.waiting[0].key} are not in "
                                          f"{self.parts.folder}: do all machines see this folder? Start again")
            if missing:
                return
            cell = self.waiting.pop(0)
            self._take(cell)
            self.parts.recorded(cell.key)
            self._remove([cell], self.waiting)

    def _take(self, cell: Cell) -> None:
        """Put the parts of a cell together and add the cell to the record."""
        parts = [[self.parts.read(unit) for unit in self.units[piece.key]] for piece in self.task.pieces(cell)]
        every = [part for piece in parts for part in piece]
        about, outcomes = self.task.assemble(cell, parts)
        self.record.add(cell.key, {
            **cell.describe(), **self.costs[cell.key],
            "seconds": round(sum(part["seconds"] for part in every), 2),
            "devices": sorted({part["device"] for part in every}),
            UNREADABLE: [name for part in every for name in part.get(UNREADABLE, ())],
            **about,
        }, outcomes, self.origin)


def _shortened(names: Sequence[str]) -> str:
    """The first `SHOWN` names, and how many more there are."""
    more = len(names) - SHOWN
    return "; ".join(names[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
