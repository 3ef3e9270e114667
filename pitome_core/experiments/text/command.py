"""Text: a merged BERT on the sentiment of sentences and documents.

embedded and smoke tier (real weights and data from packages; a CPU is enough):
  movies                          sentences from film reviews, the source that the classifiers were trained on
  documents-256                   several of them with one label, one after the other, up to 256 tokens
  amazon, tweets, news            sentences of other sources

paper tier: BERT or DistilBERT on SST-2, IMDb or Rotten Tomatoes, from disk or hub.

examples:
  python -m pitome_core.experiments text --train                  what `make text-weights` runs
  python -m pitome_core.experiments text --tasks movies --methods pitome tome --keep 0.8
  python -m pitome_core.experiments text --split test             what `make results` runs
  python -m pitome_core.experiments text --profile paper --model textattack/bert-base-uncased-SST-2 --data SST-2/dev.tsv
"""

from __future__ import annotations

import argparse
import math

from pitome_core.experiments import settings
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid
from pitome_core.experiments.text import hub as text_hub
from pitome_core.experiments.text import tasks as text_tasks

PROTOCOL = "text-1"  # the grid in book/protocol.md


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    sweep.add_grid_arguments(parser, text_grid.ARMS, "share of the tokens that each of the first three layers keeps "
                             "(default: the protocol's)")
    group = parser.add_argument_group("embedded tier")
    group.add_argument("--tasks", nargs="+", choices=list(text_tasks.TASKS), metavar="TASK",
                       help=f"default: all; of {', '.join(text_tasks.TASKS)}")
    group.add_argument("--count", type=int, metavar="N", help="N items only, evenly spread (dev)")
    group.add_argument("--train", action="store_true", help="fine-tune the classifiers that are missing, and stop")
    group.add_argument("--minutes", type=float, default=math.inf, help="with --train: begin no stage after that time")
    group.add_argument("--recipe", metavar="RECIPE", help="with --train: of those that --explore knows")
    group.add_argument("--explore", nargs="*", metavar="RECIPE",
                       help="dev accuracy of recipes for fine-tuning (none named: all); keeps no weights")
    group.add_argument("--time", action="store_true", help="measure time by length instead, and stop")
    text_hub.configure(parser)


def main(args: argparse.Namespace) -> int:
    """Run what was asked for, print a table per task, return the exit status."""
    results.exact_float32()
    if settings.profile() == "paper":
        return text_hub.run(args)
    if args.train or args.explore is not None:
        from pitome_core.experiments.text import training as text_training

        if args.train:
            recipe = text_training.CANDIDATES[args.recipe or text_training.CHOSEN]
            text_training.run(args.methods, args.keep, recipe=recipe, minutes=args.minutes, again=args.again,
                              estimate_only=args.estimate)
        else:
            text_training.explore(args.explore or [*text_training.CANDIDATES])
        return 0
    if args.time:
        from pitome_core.experiments.text import timing as text_timing

        return text_timing.run(args.output)
    if args.count and args.split == "test":
        raise SystemExit("--count is for dev: the test set is scored as a whole")
    for name in args.tasks or text_tasks.TASKS:
        task = text_tasks.TASKS[name](args.split, args.count)
        listed = text_tasks.GRIDS[name] | ({"keeps": args.keep} if args.keep else {})
        cells = trained(text_grid.cells(args.methods, **listed))
        path = sweep.output_folder(args) / f"text-{name}{'' if args.split == 'test' else '-dev'}.json"
        record = sweep.run("text", task, cells, path, split=args.split, protocol=PROTOCOL, again=args.again,
                           estimate_only=args.estimate)
        if not args.estimate:
            print(summary(record, cells))
    return 0


def trained(cells: list[Cell]) -> list[Cell]:
    """The cells whose classifiers exist; says which do not."""
    missing = [
        cell.key for cell in cells
        if cell.retrained and not all(classifiers.weights_path(s, cell).is_file() for s in classifiers.SEEDS)
    ]
    if missing:
        print(f"left out, not trained yet (`make text-weights`): {', '.join(missing)}")
    return [cell for cell in cells if cell.key not in missing]


def summary(record: results.Record, cells: list[Cell]) -> str:
    """A plain table of the cells that were asked for: cost, accuracy of each column, difference to ToMe."""
    lines = [f"{'cell':36s} {'share':>6s} {'correct':>8s} {'frozen':>8s}   correct minus ToMe's; minus the whole's"]
    for key in record.groups(cells):
        about = record.about(key)
        names = [name if name in about["outcomes"] else None for name in ("correct", "frozen")]
        have = [math.nan if name is None else record.mean_over_seeds(key, name).mean() for name in names]
        line = f"{key:36s} {about['share']:6.3f} " + " ".join(f"{value:8.4f}" for value in have)
        rival = record.rival_of(key)
        if rival is not None:
            line += f"   {record.difference(key, rival, 'correct')}"
        if about["arm"] != grid.WHOLE:
            line += f"; {record.difference(key, grid.WHOLE, 'correct')}"
        lines.append(line)
    return "\n".join(lines)
