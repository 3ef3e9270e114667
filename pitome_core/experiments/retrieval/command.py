"""Retrieval: pictures look for texts and texts for pictures with a merged open_clip dual encoder.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  white         drawings with names and keywords, on white
  photographs   the same drawings on photographs that training has not seen
  collection    the same on twenty other photographs, where that optional asset is in the cache
  noto          the same emoji, drawn by artists whom training has not seen, where that optional asset is
  stamps        cut-out photographs with captions, of which training has seen none, where that optional asset is

paper tier: Flickr30k and MS-COCO with open_clip models.

examples:
  python -m pitome_core.experiments retrieval --train                    what `make retrieval-weights` runs
  python -m pitome_core.experiments retrieval --tasks white --methods pitome tome --keep 0.9
  python -m pitome_core.experiments retrieval --split test               what `make results` runs
  python -m pitome_core.experiments retrieval --profile paper --model ViT-L-14-336 --data flickr30k \\
      --annotations dataset_flickr30k.json --images flickr30k-images --keep 0.925
  accelerate launch -m pitome_core.experiments retrieval --profile paper --model ViT-B-32 --data coco \\
      --annotations dataset_coco.json --images coco
"""

from __future__ import annotations

import argparse
import math
import sys

from pitome_core.experiments import assets, settings
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import hub as retrieval_hub
from pitome_core.experiments.retrieval import recall
from pitome_core.experiments.retrieval import tasks as retrieval_tasks
from pitome_core.experiments.retrieval import training as retrieval_training
from pitome_core.experiments.runs import grid, sweep

PROTOCOL = "retrieval-1"  # the grid in book/protocol.md


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    sweep.add_grid_arguments(parser)
    group = parser.add_argument_group("embedded tier")
    group.add_argument("--tasks", nargs="+", choices=list(retrieval_tasks.TASKS), metavar="TASK",
                       help=f"default: all that can run here; of {', '.join(retrieval_tasks.TASKS)}")
    group.add_argument("--count", type=int, metavar="N", help="N pictures with their texts only (dev)")
    group.add_argument("--train", action="store_true", help="train the heads that are missing, and stop")
    group.add_argument("--minutes", type=float, default=math.inf, help="with --train: begin no stage after that time")
    group.add_argument("--recipe", choices=list(retrieval_training.CANDIDATES), default=retrieval_training.CHOSEN,
                       metavar="RECIPE", help="with --train: of those that --explore knows (default: %(default)s)")
    group.add_argument("--explore", nargs="*", choices=list(retrieval_training.CANDIDATES), metavar="RECIPE",
                       help="rsum on dev of recipes for the heads (none named: all); keeps none")
    retrieval_hub.configure(parser)


def main(args: argparse.Namespace) -> int:
    """Run what was asked for, print a table per task, return the exit status: 2 where it cannot be run."""
    if settings.profile() == "paper":
        return retrieval_hub.run(args)
    results.exact_float32()
    if args.count and args.split == "test":
        raise SystemExit("--count is for dev: the test set is scored as a whole")
    try:
        if args.train:
            recipe = retrieval_training.CANDIDATES[args.recipe]
            retrieval_training.run(args.methods, args.keep, recipe=recipe, minutes=args.minutes, again=args.again,
                                   estimate_only=args.estimate)
        elif args.explore is not None:
            retrieval_training.explore(args.explore or [*retrieval_training.CANDIDATES])
        else:
            _score(args)
    except (assets.AssetError, results.RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _score(args: argparse.Namespace) -> None:
    names = args.tasks or [name for name in retrieval_tasks.TASKS if retrieval_tasks.available(name)]
    for name in names:
        cells = retrieval_grid.cells(args.methods, **_grid(name, args.keep))
        path = sweep.output_folder(args) / f"retrieval-{name}{'' if args.split == 'test' else '-dev'}.json"
        with_own_heads = [cell for cell in cells if retrieval_grid.has_own_heads(cell)]
        missing = [cell.key for cell in with_own_heads if not retrieval_tasks.retrained_heads_exist(cell)]
        if missing and path.is_file() and not args.again:  # what is recorded with them needs them no more
            known = results.Record.load(path).cells
            missing = [key for key in missing if "rank_retrained" not in known.get(key, {}).get("outcomes", ())]
        if missing and args.split == "test":
            raise results.RecordError(f"no heads trained with {', '.join(missing)}: run `make retrieval-weights` first")
        if missing:
            print(f"without a column for heads that are not trained yet: {', '.join(missing)}")
        task = retrieval_tasks.TASKS[name](args.split, args.count)
        record = sweep.run("retrieval", task, cells, path, split=args.split, protocol=PROTOCOL, again=args.again,
                           estimate_only=args.estimate)
        if not args.estimate:
            print(summary(record, cells))


def _grid(name: str, keeps: list[float] | None) -> dict:
    """The protocol's grid of a task; of other keep ratios, the same for every tower that it lists."""
    listed = retrieval_tasks.GRIDS[name]
    return listed if not keeps else listed | {tower: keeps for tower in ("keeps", "text", "both") if tower in listed}


def summary(record: results.Record, cells: list[Cell]) -> str:
    """A plain table of the cells that were asked for: cost, R@1 both ways, rsum of each column, and differences."""
    lines = [f"{'cell':32s} {'share':>6s} {'image R@1':>9s} {'text R@1':>9s} {'rsum':>7s} {'retrained':>9s}   "
             "rsum minus ToMe's; minus the whole's"]
    for key in record.groups(cells):
        about = record.about(key)
        found = recall.table(record, key)
        retrained = "rank_retrained" in about["outcomes"]
        again = f"{recall.table(record, key, 'rank_retrained')['rsum']:9.1f}" if retrained else f"{'':9s}"
        line = (f"{key:32s} {about['share']:6.3f} {found['image_r1']:9.1f} {found['text_r1']:9.1f} "
                f"{found['rsum']:7.1f} {again}")
        rival = record.rival_of(key)
        if rival is not None:
            line += f"   {recall.difference(record, key, rival).format(1)}"
        if about["arm"] != grid.WHOLE:
            line += f"; {recall.difference(record, key, grid.WHOLE).format(1)}"
        lines.append(line)
    return "\n".join(lines)
