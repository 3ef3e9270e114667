"""Retrieval: a merged open_clip dual encoder finds the texts of pictures and the pictures of texts.

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
from functools import partial

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.retrieval import grid, hub, summary, tasks, training
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.runs.command_line import Command, add_training, train

EXPERIMENT = "retrieval"


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's grid for a task, or other keep ratios, the same for every tower that it lists.

    Raises:
        RecordError: a test set is to be scored, and heads that its cells need are not trained.
    """
    listed = tasks.GRIDS[name]
    if args.keep:
        listed = listed | {tower: args.keep for tower in ("keeps", "text", "both") if tower in listed}
    chosen = grid.cells(args.methods, **listed)
    missing = _without_heads(args, name, chosen)
    if missing and args.split == "test":
        raise results.RecordError(f"no heads trained with {', '.join(missing)}: run `make retrieval-weights` first")
    if missing:
        print(f"without a column for heads that are not trained yet: {', '.join(missing)}")
    return chosen


def _without_heads(args: argparse.Namespace, name: str, chosen: list[Cell]) -> list[str]:
    """Cells whose own heads are not trained, unless their outcome with these heads is recorded already."""
    missing = [cell.key for cell in chosen if grid.has_own_heads(cell) and not tasks.retrained_heads_exist(cell)]
    path = sweep.record_path(args, EXPERIMENT, name)
    if missing and path.is_file() and not args.again:
        record = results.Record.load(path)
        missing = [key for key in missing if key not in record or not record.has(key, "rank_retrained")]
    return missing


COMMAND = Command(
    experiment=EXPERIMENT, protocol="retrieval-1", tasks=tasks.TASKS, cells=cells, summary=summary.table, paper=hub,
    available=tasks.available, counted="pictures with their texts",
    configure_actions=partial(add_training, training=training, what="heads", score="rsum"),
    act=partial(train, training=training),
)
configure, main = COMMAND.configure, COMMAND.main
