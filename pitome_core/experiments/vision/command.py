"""Vision: a merged Vision Transformer on saliency, features and classification.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  scenes        saliency of objects pasted on photographs, against their exact masks
  photographs   likeness of map and features to the whole model's, layer by layer
  digits        MNIST-5k with a linear head
  emoji         groups of emoji on photographs with a linear head
  stamps, stamp-groups       the same with cut-out photographs, where that optional asset is in the cache
  scenes-wide, collection    scenes and photographs on a hundred more pictures, where that optional asset is

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

from pitome_core.experiments import settings
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.vision import imagenet
from pitome_core.experiments.vision import tasks as vision_tasks

PROTOCOL = "vision-1"  # the grid in book/protocol.md


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    sweep.add_grid_arguments(parser)
    group = parser.add_argument_group("embedded tier")
    group.add_argument("--tasks", nargs="+", choices=list(vision_tasks.TASKS), metavar="TASK",
                       help=f"default: all that can run here; of {', '.join(vision_tasks.TASKS)}")
    imagenet.configure(parser)


def main(args: argparse.Namespace) -> int:
    """Run what was asked for, print a table per task, return the exit status."""
    if settings.profile() == "paper":
        return imagenet.run(args, PROTOCOL)
    results.exact_float32()
    names = args.tasks or [name for name in vision_tasks.TASKS if vision_tasks.available(name)]
    for name in names:
        task = vision_tasks.TASKS[name](args.split)
        cells = grid.cells(args.methods, args.keep or vision_tasks.keeps(name), img_size=task.images.shape[-1])
        path = sweep.output_folder(args) / f"vision-{name}{'' if args.split == 'test' else '-dev'}.json"
        record = sweep.run(
            "vision", task, cells, path, split=args.split, protocol=PROTOCOL, again=args.again,
            estimate_only=args.estimate,
        )
        if not args.estimate:
            print(summary(record, cells))
    return 0


def summary(record: results.Record, cells: list[Cell]) -> str:
    """A plain table of the cells that were asked for: cost, mean of every outcome, difference to ToMe in the first."""
    keys = record.groups(cells)
    first = cells[0].key
    names = [name for name in record.cells[first]["outcomes"] if record.outcome(first, name).ndim == 1]
    lines = [f"{'cell':32s} {'share':>6s} " + " ".join(f"{n[:13]:>13s}" for n in names) + f"   {names[0]} minus ToMe's"]
    for key in keys:
        about = record.about(key)
        have = [record.mean_over_seeds(key, n).mean() if n in about["outcomes"] else float("nan") for n in names]
        line = f"{key:32s} {about['share']:6.3f} " + " ".join(f"{value:13.4f}" for value in have)
        rival = record.rival_of(key)
        if rival is not None:
            line += f"   {record.difference(key, rival, names[0])}"
        lines.append(line)
    return "\n".join(lines)
