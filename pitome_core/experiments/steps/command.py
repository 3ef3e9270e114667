"""Fewer, larger merge steps: what `every=` does to quality, beside what it saves.

A step costs time whatever it removes, so that a small model gains from fewer of them (the chapter on speed). With
`every=3` the first of three layers removes what all three would: as many tokens are left at the end, and they leave
earlier. The tasks are those of `vision`. No head is fitted with merging on.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  digits   MNIST-5k with a linear head
  scenes   saliency of drawings on 42 photographs, against their exact masks
  emoji    groups of emoji on these photographs with a linear head
scenes and emoji need an optional asset, and run where it is in the cache.

examples:
  python -m pitome_core.experiments steps --tasks digits --methods pitome tome --keep 0.9
  python -m pitome_core.experiments steps --split test
"""

from __future__ import annotations

import argparse

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs.command_line import Command
from pitome_core.experiments.steps import grid
from pitome_core.experiments.vision import command as vision
from pitome_core.experiments.vision import tasks

PROTOCOL = "steps-1"
TASKS = {
    "digits": lambda split, count=None: tasks.Digits(split, count, refit=False),
    "scenes": tasks.ScenesApart,
    "emoji": lambda split, count=None: tasks.Groups(split, count or 336, apart=True, refit=False),
}


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's cells, or those of these methods and keep ratios among them; every task has the same."""
    return grid.cells(args.methods, args.keep)


COMMAND = Command(
    experiment="steps", protocol=PROTOCOL, cells=cells, summary=vision.table, paper=None, arms=grid.NAMES, tasks=TASKS,
    available=tasks.available, counted="items",
)
configure, main = COMMAND.configure, COMMAND.main
