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
      --annotations dataset_flickr30k.json --images flickr30k-images --keep 0.925 \\
      --methods pitome tome pitome-released-clip tome-hidden tome-released-clip
  accelerate launch -m pitome_core.experiments retrieval --profile paper --model ViT-B-32 --data coco \\
      --annotations dataset_coco.json --images coco
"""

from __future__ import annotations

import argparse
from functools import partial

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.retrieval import grid, hub, summary, tasks, training
from pitome_core.experiments.runs.command_line import Command, add_training, train

PROTOCOL = "retrieval-2"


def cells(args: argparse.Namespace, name: str) -> list[Cell]:
    """The protocol's grid for a task, or other keep ratios, the same for every tower that it lists."""
    listed = tasks.GRIDS[name]
    if args.keep:
        listed = listed | {tower: args.keep for tower in ("keeps", "both") if tower in listed}
    chosen = grid.cells(args.methods, **listed)
    if missing := [cell.key for cell in chosen if grid.has_own_heads(cell) and not tasks.retrained_heads_exist(cell)]:
        print(f"without a column for heads that are not trained here: {', '.join(missing)}")
    return chosen


COMMAND = Command(
    experiment="retrieval", protocol=PROTOCOL, tasks=tasks.TASKS, cells=cells, summary=summary.table, paper=hub,
    arms=grid.EVERY, available=tasks.available, counted="pictures with their texts",
    configure_actions=partial(add_training, training=training, what="heads", score="rsum"),
    act=partial(train, training=training),
)
configure, main = COMMAND.configure, COMMAND.main
