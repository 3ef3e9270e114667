"""Vision: a merged Vision Transformer on saliency, features and classification.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  digits                 MNIST-5k with a linear head
  scenes                 saliency of objects pasted on photographs, against their exact masks
  collection             photographs: likeness of map and features to the whole model's, layer by layer
  emoji                  groups of emoji on photographs with a linear head
  stamps, stamp-groups   as scenes and emoji, with cut-out photographs as objects
All but digits need optional assets, and run where these are in the cache. On scenes the record of `law` has the cells
of PiToMe, energy-sorted matching and ToMe: by default they are not scored again.

paper tier: ImageNet-1k with timm models.

examples:
  python -m pitome_core.experiments vision --tasks scenes --methods pitome tome --keep 0.9
  python -m pitome_core.experiments vision --split test          what `make results` runs
  python -m pitome_core.experiments vision --profile paper --model deit-s --data /data/imagenet/val
  accelerate launch -m pitome_core.experiments vision --profile paper --model augreg-l --data /data/imagenet/val
  python -m pitome_core.experiments vision --profile paper --model mae-h --checkpoint mae_huge.pth --data val
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.runs import grid as paper_grid
from pitome_core.experiments.runs import summary
from pitome_core.experiments.runs.command_line import Command
from pitome_core.experiments.vision import grid, imagenet, tasks

PROTOCOL = "vision-2"  # of the embedded tier; the grid in book/protocol.md


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's grid for a task, or the part of it that was asked for."""
    return grid.cells(name, args.methods, args.keep)


def table(record: Record, chosen: Sequence[Cell]) -> str:
    """Cost, mean of every outcome that has one value per item, and differences in the first of them."""
    first = chosen[0].key
    names = [name for name in record.cells[first]["outcomes"] if record.outcome(first, name).ndim == 1]
    columns = summary.share(record) | summary.means(record, names)
    return summary.table(record, chosen, columns, summary.per_item(record, names[0]), names[0])


COMMAND = Command(
    experiment="vision", protocol=PROTOCOL, cells=cells, summary=table, paper=imagenet,
    tasks=tasks.TASKS, available=tasks.available,
    keep="share of the patch tokens that every layer keeps (default: the protocol's)",
    arms=tuple(dict.fromkeys((*grid.NAMES, *paper_grid.LABELS))),
)
configure, main = COMMAND.configure, COMMAND.main
