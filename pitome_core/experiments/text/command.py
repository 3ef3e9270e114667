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

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs.command_line import Command, Options, add_training, train
from pitome_core.experiments.text import classifiers, grid, hub, summary, tasks, timing, training


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's grid for a task, or the part of it that was asked for, without cells that are not trained yet."""
    asked = {"arms": args.methods, "keeps": args.keep}
    chosen = {field: values for field, values in asked.items() if values}
    return trained(grid.cells(**(tasks.GRIDS[name] | chosen | ({"sparse": None} if chosen else {}))))


def trained(listed: list[Cell]) -> list[Cell]:
    """The cells whose classifiers exist; the names of the others are printed."""
    missing = [
        cell.key for cell in listed
        if cell.retrained and not all(classifiers.weights_path(s, cell).is_file() for s in classifiers.SEEDS)
    ]
    if missing:
        print(f"left out, not trained yet (`make text-weights`): {', '.join(missing)}")
    return [cell for cell in listed if cell.key not in missing]


def configure_actions(options: Options) -> None:
    """Add the options of training, exploring and timing."""
    add_training(options, training, "classifiers", "accuracy")
    options.add_argument("--time", action="store_true", help="measure time by length instead, and stop")


def act(args: argparse.Namespace) -> bool:
    """Train, explore or measure time, if that was asked for."""
    if args.time:
        timing.run(args.output)
    return args.time or train(args, training)


COMMAND = Command(
    experiment="text", protocol=grid.PROTOCOL, tasks=tasks.TASKS, cells=cells, summary=summary.table, paper=hub,
    arms=grid.KNOWN, keep="share of the tokens that each of the first three layers keeps (default: the protocol's)",
    counted="items, evenly spread,", configure_actions=configure_actions, act=act,
)
configure, main = COMMAND.configure, COMMAND.main
