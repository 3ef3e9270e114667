"""Run a grid over a task and record it: what all experiments share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from tqdm.auto import tqdm

from pitome_core.experiments import assets, settings
from pitome_core.experiments.records import locking, provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of


class Task(Protocol):
    """Something to be measured. Building one loads its items and its model.

    Attributes:
        name: of the task, e.g. ``scenes``; the record is ``<experiment>-<name>``.
        model: the module that is patched.
        items: columns of the record, ``id`` among them.
        clusters: the columns that intervals are over.
        about: further entries of the record's header.
    """

    name: str
    model: nn.Module
    items: Mapping[str, Sequence]
    clusters: tuple[str, ...]
    about: Mapping[str, Any]

    def seconds_per_item(self) -> float:
        """Measured seconds of the whole model per item, for the estimate."""
        ...

    def applied(self, cell: Cell) -> AbstractContextManager[nn.Module]:
        """The model as the cell runs it; it is patched inside the `with` block only."""
        ...

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        """What one item costs, and what else records say of the cell: ``share`` of the whole model's work, tokens."""
        ...

    def work(self, cell: Cell) -> int:
        """How many items the cell sends through its model, for the estimate."""
        ...

    def prepare(self) -> None:
        """Whatever scoring needs of the whole model; called once, while nothing is patched."""
        ...

    def score(self, running: nn.Module, cell: Cell) -> Mapping[str, Any]:
        """Outcomes of every item under `running`, the model as the cell runs it."""
        ...


def run(
    experiment: str,
    task: Task,
    cells: Sequence[Cell],
    path: Path,
    *,
    split: str,
    protocol: str,
    again: bool = False,
    estimate_only: bool = False,
    allow_modified: bool = False,
) -> results.Record:
    """Score the cells that the record at `path` lacks or that are outdated (``again``: all), writing it after each one.

    The estimate is printed first, from the time of the whole model on a few images. A test set's scoring is logged
    before it starts. Raises `results.RecordError` if the file is of another run, while another run scores for it, where
    it cannot be written, and for a test set if the package differs from the commit, unless ``allow_modified``.
    """
    code = code_of(type(task))  # once: what this process runs does not change when a file is edited meanwhile

    def origin() -> dict[str, Any]:
        return provenance.of_run(code, test=split == "test", allow_modified=allow_modified)

    header = {
        "experiment": experiment, "task": task.name, "tier": settings.profile(), "split": split, "protocol": protocol,
        "clusters": list(task.clusters), **task.about,
    }
    record = results.Record.open(path, header, task.items)
    todo = _missing(record, cells, again)
    done = len(cells) - len(todo)
    print(f"{experiment}-{task.name}, {split}: {len(record)} items, {len(cells)} cells, {done} recorded already")
    if todo:
        try:
            costs = {cell.key: task.cost(cell) for cell in todo}
        except ValueError as error:  # what was asked for cannot be merged, such as a keep ratio that is too low
            raise results.RecordError(str(error)) from error
        seconds = task.seconds_per_item() * sum(costs[cell.key]["share"] * task.work(cell) for cell in todo)
        print(f"  estimate: {seconds / 60:.1f} min on this machine for {len(todo)} cells")
    if estimate_only or not todo:
        return record
    with locking.alone(path):
        record = results.Record.open(path, header, task.items)  # another run may have ended since
        todo = _missing(record, todo, again)
        if split == "test" and todo:
            provenance.log_test(record, [cell.key for cell in todo], origin())
        task.prepare()
        bar = tqdm(todo, unit="cell", file=sys.stdout, disable=None, mininterval=1)
        for cell in bar:
            bar.set_description(cell.key)
            now, start = origin(), time.perf_counter()
            about = cell.describe() | costs[cell.key]
            with task.applied(cell) as running:
                outcomes = task.score(running, cell)
            about["seconds"] = round(time.perf_counter() - start, 2)
            record.add(cell.key, about, outcomes, now)
    return record


def _missing(record: results.Record, cells: Sequence[Cell], again: bool) -> list[Cell]:
    """The cells that the record lacks or holds in an earlier form of their arm; all of them to score them ``again``."""
    return [cell for cell in cells if again or cell.key not in record or record.is_outdated(cell.key)]


def available(name: str, tasks: Mapping[str, Any], optional: Mapping[str, str | tuple[str, ...]]) -> bool:
    """Whether the optional assets that a task needs, if any, are in the cache. Nothing is fetched.

    ``optional`` says which asset or assets a task needs. Raises ``KeyError`` for a task that is not in ``tasks``.
    """
    if name not in tasks:
        raise KeyError(f"no task {name!r}; there are {', '.join(tasks)}")
    needed = optional.get(name, ())
    return all(assets.state(asset) == "ready" for asset in ([needed] if isinstance(needed, str) else needed))


def output_folder(args: argparse.Namespace) -> Path:
    """Where the records of this call go."""
    if args.output:
        return args.output
    return results.writable(committed=args.split == "test") / settings.profile()


def record_path(args: argparse.Namespace, protocol: str, task: str) -> Path:
    """The file of a task's record: `record_name`, with ``-dev`` behind it where it explores."""
    return output_folder(args) / f"{record_name(protocol, task)}{'' if args.split == 'test' else '-dev'}.json"


def record_name(protocol: str, task: str) -> str:
    """What the record of a task is called: ``vision-scenes`` by ``vision-1``, ``vision-2-scenes`` by ``vision-2``.

    So the record of an earlier version stays readable beside that of a later one.
    """
    return f"{protocol.removesuffix('-1')}-{task}"
