"""When energy helps: PiToMe, its parts and its controls beside ToMe, on dev first and then once on test.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  scenes    drawings on 103 photographs, half of them dev's and half test's; what the whole model knows beforehand
  digits    MNIST-5k with a linear head: which part of PiToMe does what
  emoji     groups of emoji with a linear head: the same

examples:
  python -m pitome_core.experiments law --tasks scenes --output results/embedded
  python -m pitome_core.experiments law --split test
"""

from __future__ import annotations

import argparse
from functools import partial

from pitome_core.experiments.law import grid, tasks
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.runs.command_line import Command
from pitome_core.experiments.vision import command as vision

PROTOCOL = "law-1"


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's cells of a task, or those of these methods and keep ratios among them."""
    return grid.cells(tasks.CELLS[name](), args.methods, args.keep)


COMMAND = Command(
    experiment="law", protocol=PROTOCOL, cells=cells, summary=vision.table, paper=None, arms=grid.ALL,
    tasks=tasks.TASKS, available=partial(sweep.available, tasks=tasks.TASKS, optional=tasks.OPTIONAL),
    counted="items",
)
configure, main = COMMAND.configure, COMMAND.main
