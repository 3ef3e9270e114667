"""When energy helps: PiToMe, its parts and its controls beside ToMe, on dev first and then once on test.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  scenes    drawings on 103 photographs, half of them dev's and half test's; what the whole model knows beforehand
  digits    MNIST-5k with a linear head: which part of PiToMe does what
  emoji     groups of emoji with a linear head: the same

examples:
  python -m pitome_core.experiments law --tasks scenes --output results/embedded
  python -m pitome_core.experiments law --split test
  python -m pitome_core.experiments law --phase       synthetic tokens, and the layers of real models among them
"""

from __future__ import annotations

import argparse
from functools import partial

from pitome_core.experiments import settings
from pitome_core.experiments.law import grid, phase, tasks
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.runs.command_line import Command, Options
from pitome_core.experiments.vision import command as vision

PROTOCOL = "law-1"


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's cells of a task, or those of these methods and keep ratios among them."""
    return grid.cells(tasks.CELLS[name](), args.methods, args.keep)


def configure_phase(options: Options) -> None:
    """Add the option of the phase diagram."""
    options.add_argument("--phase", action="store_true", help="compute the phase diagram and its layers, and stop")


def run_phase(args: argparse.Namespace) -> bool:
    """Compute the phase diagram, if it was asked for."""
    if args.phase:
        print(f"law-phase: about {phase.minutes():.0f} min on one core")
    if args.phase and not args.estimate:
        folder = args.output or results.writable(committed=True) / settings.profile()
        print(phase.run(folder, committed=args.output is None, allow_modified=args.allow_modified))
    return args.phase


COMMAND = Command(
    experiment="law", protocol=PROTOCOL, cells=cells, summary=vision.table, paper=None, arms=grid.ALL,
    tasks=tasks.TASKS, available=partial(sweep.available, tasks=tasks.TASKS, optional=tasks.OPTIONAL),
    counted="items", configure_actions=configure_phase, act=run_phase,
)
configure, main = COMMAND.configure, COMMAND.main
