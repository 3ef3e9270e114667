"""Visual question answering with a merged LLaVA: what its language model can still tell about a picture.

embedded and smoke tier (a small LLaVA of pinned parts, generated questions; a CPU is enough):
  headline      5,000 questions, the primary cells
  grid          the first 1,000 of them, all cells of the protocol
  replication   2,000 later questions: what the grid found on hidden states, asked once more
  strengths     the first 1,000 of these, at other keep ratios

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
from collections.abc import Sequence
from dataclasses import replace

from pitome_core.experiments.data import questions
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import LOWER, Cell
from pitome_core.experiments.runs import summary
from pitome_core.experiments.runs.command_line import Command, Options
from pitome_core.experiments.vqa import grid, hub, tasks, training


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's grid for a task, or other arms and ratios."""
    chosen = ({"arms": args.methods} if args.methods else {}) | ({"keeps": args.keep} if args.keep else {})
    return grid.cells(**(tasks.GRIDS[name] | chosen))


def table(record: results.Record, chosen: Sequence[Cell]) -> str:
    """Tokens, cost, three accuracies and differences in the first of them; then the accuracy by type of question."""
    def accuracy(form: str) -> summary.Column:
        return lambda key: f"{tasks.accuracy(record, key)[form]:.3f}"

    headline = record.header["headline"]
    columns = {"tokens": lambda key: record.about(key)["image_tokens"]} | summary.share(record)
    columns |= {form: accuracy(form) for form in ("micro", "macro", "all")}

    def difference(first: str, second: str) -> object:
        return tasks.difference(record, first, second)

    types = [kind for kind in questions.TYPES if kind in record.header["prior"]]
    by_type = {kind: lambda key, kind=kind: f"{tasks.by_type(record, key)[kind]:.3f}" for kind in types}
    prior = ", ".join(f"{kind} {record.header['prior'][kind]:.3f}" for kind in types)
    return "\n\n".join([
        f"headline: {', '.join(headline) or 'no type beats its prior'}",
        summary.table(record, chosen, columns, difference if headline else None, "micro"),
        f"blind prior by type: {prior}",
        summary.table(record, chosen, by_type),
    ])


def configure_actions(options: Options) -> None:
    """Add the options of training."""
    options.add_argument("--train", action="store_true",
                         help="train the weights if they are missing (with --again: from nothing), and stop")
    options.add_argument("--minutes", type=float, default=math.inf, needs="--train",
                         help="with --train: stop after that time; the same command goes on from there. A validation "
                         "follows the last step and takes ten minutes on a CPU")
    options.add_argument("--steps", type=int, metavar="N", needs="--train",
                         help="with --train: another recipe, with N steps of tuning "
                         f"(default: {training.LlavaRecipe.steps})")
    options.add_argument("--early", action="store_true", needs="--train",
                         help="with --train and --minutes: store the weights of the last checkpoint when time is over")


def act(args: argparse.Namespace) -> bool:
    """Train, if that was asked for."""
    if args.train:
        recipe = training.LlavaRecipe() if args.steps is None else replace(training.LlavaRecipe(), steps=args.steps)
        training.run(recipe, minutes=args.minutes, again=args.again, early=args.early, estimate_only=args.estimate)
    return args.train


COMMAND = Command(
    experiment="vqa", protocol=tasks.PROTOCOLS, tasks=tasks.TASKS, cells=cells, summary=table, paper=hub,
    arms=(*grid.ARMS, LOWER), keep="share of the patch tokens that every layer keeps (default: the protocol's)",
    counted="questions, the first of the task,", configure_actions=configure_actions, act=act,
)
configure, main = COMMAND.configure, COMMAND.main
