"""Run a grid over a task and record it: what all experiments share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from tqdm.auto import tqdm

from pitome_core.experiments import settings
from pitome_core.experiments.records import results
from pitome_core.experiments.runs import grid


class Task(Protocol):
    """Something to be measured. Building one loads its items and its model.

    Attributes:
        name: of the task, e.g. ``scenes``; the record is ``<experiment>-<name>``.
        model: the module that is patched.
        items: columns of the record, ``id`` among them.
        clusters: the columns that intervals resample.
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

    def work(self, cell: grid.Cell) -> int:
        """How many items the cell sends through its model, for the estimate."""
        ...

    def prepare(self) -> None:
        """Whatever scoring needs of the whole model; called once, while nothing is patched."""
        ...

    def score(self, running: nn.Module, cell: grid.Cell) -> Mapping[str, Any]:
        """Outcomes of every item under `running`, the model as the cell runs it."""
        ...


def run(
    experiment: str,
    task: Task,
    cells: Sequence[grid.Cell],
    path: Path,
    *,
    split: str,
    protocol: str,
    again: bool = False,
    estimate_only: bool = False,
) -> results.Record:
    """Score the cells that the record at `path` lacks (``again``: all), writing it after each one.

    The estimate is printed first, from the time of the whole model on a few images. A test set's scoring is logged
    before it starts. Raises `results.RecordError` if the file is of another run.
    """
    header = {
        "experiment": experiment, "task": task.name, "tier": settings.profile(), "split": split, "protocol": protocol,
        "clusters": list(task.clusters), **task.about,
    }
    record = results.Record.open(path, header, task.items)
    # Texts have lengths of their own, so a task of texts counts over its items.
    cost = getattr(task, "cost", None) or (lambda cell: grid.cost(cell, task.model))
    todo = [cell for cell in cells if again or cell.key not in record]
    done = len(cells) - len(todo)
    print(f"{experiment}-{task.name}, {split}: {len(record)} items, {len(cells)} cells, {done} recorded already")
    if todo:
        costs = {cell.key: cost(cell) for cell in todo}
        seconds = task.seconds_per_item() * sum(costs[cell.key]["share"] * task.work(cell) for cell in todo)
        print(f"  estimate: {seconds / 60:.1f} min on this machine for {len(todo)} cells")
    if estimate_only or not todo:
        return record
    if split == "test":
        results.log_test(record, [cell.key for cell in todo])
    task.prepare()
    bar = tqdm(todo, unit="cell", file=sys.stdout, disable=None, mininterval=1)
    for cell in bar:
        bar.set_description(cell.key)
        start = time.perf_counter()
        about = cell.describe() | costs[cell.key]
        with cell.applied(task.model) as running:
            outcomes = task.score(running, cell)
        about["seconds"] = round(time.perf_counter() - start, 2)
        record.add(cell.key, about, outcomes, seed=0)
    return record


def add_grid_arguments(
    parser: argparse.ArgumentParser, arms: Iterable[str] = (*grid.ARMS, grid.GRID_POOL, grid.LOWER),
    keep: str = f"share of tokens that every layer keeps (default: the protocol's, {list(grid.KEEPS)})",
) -> None:
    """The arguments that every experiment with a grid has: of these ``arms`` and the whole model; ``keep`` says what a
    keep ratio is."""
    known = [grid.WHOLE, *arms]
    parser.add_argument("--profile", choices=settings.PROFILES, help="tier; default: PITOME_PROFILE, else embedded")
    parser.add_argument("--methods", nargs="+", choices=known, metavar="METHOD",
                        help=f"default: the protocol's grid; of {', '.join(known)}")
    parser.add_argument("--keep", nargs="+", type=float, metavar="R", help=keep)
    parser.add_argument("--split", choices=("dev", "test"), default="dev",
                        help="dev explores; test is scored by the protocol and logged (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where records go; default: results/<tier> for "
                        "test, _build/results/<tier> for dev")
    parser.add_argument("--again", action="store_true", help="score cells that are recorded already once more")
    parser.add_argument("--estimate", action="store_true", help="print how long it would take, and stop")


def output_folder(args: argparse.Namespace) -> Path:
    """Where the records of this call go."""
    if args.output:
        return args.output
    return results.writable(committed=args.split == "test") / settings.profile()
