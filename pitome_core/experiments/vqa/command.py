"""Visual question answering with a merged LLaVA: what its language model can still tell about a picture.

embedded and smoke tier (a small LLaVA of pinned parts, generated questions; a CPU is enough):
  headline   10,000 questions, the primary cells
  grid       the first 2,000 of them, all cells of the protocol

paper tier: llava-1.5-7b on VQAv2, GQA or TextVQA, from their official files.

examples:
  python -m pitome_core.experiments vqa --train --minutes 70           what `make vqa-weights` runs
  python -m pitome_core.experiments vqa --tasks grid --count 300 --methods pitome tome --keep 0.9
  python -m pitome_core.experiments vqa --split test                   what `make results` runs
  python -m pitome_core.experiments vqa --profile paper --data gqa --questions testdev_balanced_questions.json \\
      --images images --keep 0.9
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import questions
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import hub as vqa_hub
from pitome_core.experiments.vqa import tasks as vqa_tasks
from pitome_core.experiments.vqa import training as vqa_training

PROTOCOL = "vqa-1"  # the grid in book/protocol.md


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    sweep.add_grid_arguments(parser, (*vqa_grid.ARMS, grid.LOWER),
                             "share of the patch tokens that every layer keeps (default: the protocol's)")
    group = parser.add_argument_group("embedded tier")
    group.add_argument("--tasks", nargs="+", choices=list(vqa_tasks.TASKS), metavar="TASK",
                       help=f"default: all; of {', '.join(vqa_tasks.TASKS)}")
    group.add_argument("--count", type=int, metavar="N",
                       help="the first N questions only (dev: of the stream validation)")
    group.add_argument("--train", action="store_true",
                       help="train the weights if they are missing (with --again: from nothing), and stop")
    group.add_argument("--minutes", type=float, default=math.inf,
                       help="with --train: stop after that time, and the same command goes on from there; a validation "
                       "follows the last step, ten minutes on a CPU")
    group.add_argument("--steps", type=int, metavar="N", help="with --train: another recipe, with N steps of tuning "
                       f"(default: {vqa_training.Recipe.steps})")
    group.add_argument("--early", action="store_true",
                       help="with --train and --minutes: make weights of what is there when time is over")
    vqa_hub.configure(parser)


def main(args: argparse.Namespace) -> int:
    """Run what was asked for, print a table per task, return the exit status: 2 where it cannot be run."""
    results.exact_float32()
    if settings.profile() == "paper":
        return vqa_hub.run(args)
    if args.count is not None and args.split == "test":
        raise SystemExit("--count is for dev: the test set is scored as a whole")
    try:
        if args.train:
            recipe = vqa_training.Recipe()
            if args.steps is not None:
                recipe = replace(recipe, steps=args.steps)
            vqa_training.run(recipe, minutes=args.minutes, again=args.again, early=args.early,
                             estimate_only=args.estimate)
        else:
            _score(args)
    except (assets.AssetError, results.RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _score(args: argparse.Namespace) -> None:
    for name in args.tasks or vqa_tasks.TASKS:
        cells = vqa_grid.cells(**_listed(name, args.methods, args.keep))
        task = vqa_tasks.TASKS[name](args.split, args.count)
        path = sweep.output_folder(args) / f"vqa-{name}{'' if args.split == 'test' else '-dev'}.json"
        record = sweep.run("vqa", task, cells, path, split=args.split, protocol=PROTOCOL, again=args.again,
                           estimate_only=args.estimate)
        if not args.estimate:
            print(summary(record, cells))


def _listed(name: str, methods: list[str] | None, keeps: list[float] | None) -> dict:
    """The protocol's grid of a task, or other arms and ratios."""
    listed = dict(vqa_tasks.GRIDS[name])
    return listed | ({"arms": methods} if methods else {}) | ({"keeps": keeps} if keeps else {})


def summary(record: results.Record, cells: list[Cell]) -> str:
    """A plain table of the cells that were asked for: tokens, cost, accuracies, and differences; then each type."""
    kinds = record.header["headline"]
    lines = [f"headline: {', '.join(kinds) or 'no type beats its prior'}",
             f"{'cell':36s} {'tokens':>6s} {'share':>6s} {'micro':>6s} {'macro':>6s} {'all':>6s}   "
             "micro minus ToMe's; minus the whole's"]
    for key in record.groups(cells):
        about, found = record.about(key), vqa_tasks.accuracy(record, key)
        line = f"{key:36s} {about['image_tokens']:6d} {about['share']:6.3f} " + " ".join(
            f"{found[form]:6.3f}" for form in ("micro", "macro", "all"))
        rival = record.rival_of(key)
        if kinds and rival is not None:
            line += f"   {vqa_tasks.difference(record, key, rival)}"
        if kinds and about["arm"] != grid.WHOLE:
            line += f"; {vqa_tasks.difference(record, key, grid.WHOLE)}"
        lines.append(line)
    types = [kind for kind in questions.TYPES if kind in record.header["prior"]]
    lines.append(f"{'by type':36s} " + " ".join(f"{kind:>9s}" for kind in types))
    lines.append(f"{'blind prior':36s} " + " ".join(f"{record.header['prior'][kind]:9.3f}" for kind in types))
    for key in record.groups(cells):
        found = vqa_tasks.by_type(record, key)
        lines.append(f"{key:36s} " + " ".join(f"{found[kind]:9.3f}" for kind in types))
    return "\n".join(lines)
