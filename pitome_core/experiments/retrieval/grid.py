"""What is compared in retrieval: the arms of `runs.grid` in the image tower, some of them in the text tower or both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

import pitome_core as pc
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.records.cells import LOWER, WHOLE, Cell, checked, seeds_of
from pitome_core.experiments.runs import grid
from pitome_core.families.common import linear

# In a text every item has its own length: no transform fits, and nothing reads a map of attention.
TEXT_ARMS = ("pitome", "energy-sorted", "tome", "tofu", "diffrate", "random-merge", "random-prune")
TEXT_SEEDS = 2
# Cells whose heads are trained with merging on as well, by the towers that merge.
RETRAINED = {
    "vision": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome", "random-prune")},
    "both": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome")},
}


def has_own_heads(cell: Cell) -> bool:
    """Whether heads are trained with this merging on: of an arm with seeds, with its first seed."""
    ratios = RETRAINED.get(cell.towers, {}).get(cell.arm, ())
    return cell.keep in ratios and cell.seed in (None, 0) and cell.proportional is None


def side(cell: Cell, tower: str) -> Cell:
    """What a cell does to one tower, ``vision`` or ``text``: a cell of that tower, the whole model's if nothing merges.
    """
    if cell.arm == WHOLE or cell.towers not in (tower, "both"):
        return Cell(WHOLE, towers=tower)
    return replace(cell, towers=tower)


@contextmanager
def applied(cell: Cell, model: nn.Module) -> Iterator[nn.Module]:
    """The dual encoder as this cell runs it; it is patched inside the block only. A lower resolution gives a copy."""
    if cell.arm == LOWER:
        small = copy.deepcopy(model)
        small.visual.trunk = lower_resolution(model.visual.trunk, cell.pixels)
        yield small
    else:
        towers = {} if cell.towers == "vision" or cell.arm == WHOLE else {"towers": cell.towers}
        with grid.applied(cell, model, **towers) as running:
            yield running


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = grid.KEEPS,
    *,
    text: Sequence[float] = (),
    both: Sequence[float] = (),
    img_size: int | None = None,
) -> list[Cell]:
    """The whole model, the arms in the image tower as `grid.cells` lists them, and those of `TEXT_ARMS` elsewhere.

    ``text`` are the keep ratios at which the text tower merges alone, ``both`` those at which both towers merge.

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is not between 0 and 1.
    """
    chosen = grid.cells(arms, keeps, img_size=img_size)
    text_arms = TEXT_ARMS if arms is None else [name for name in arms if name in TEXT_ARMS]
    for towers, ratios in (("text", text), ("both", both)):
        for name in checked(text_arms, ratios, TEXT_ARMS):
            seeds = seeds_of(name, TEXT_SEEDS)
            chosen += [Cell(name, keep, seed=seed, towers=towers) for keep in ratios for seed in seeds]
    return list(dict.fromkeys(chosen))


def cost(cell: Cell, model: nn.Module, lengths: Mapping[int, int]) -> dict[str, Any]:
    """10^9 multiply-accumulates of one image and one text, heads and merging included, and what enters each layer.

    ``lengths`` says how many texts have each number of tokens ([CLS] and [SEP] included). A text's cost is the mean
    over them. ``gmacs`` is the sum of both, ``share`` its share of the whole model's. ``gmacs_image`` and
    ``gmacs_text`` are the parts. ``tokens`` are the patch tokens that enter each layer of the image tower and leave it.
    ``model`` is the bare model of open_clip.
    """
    def both(running: nn.Module) -> tuple[Any, float]:
        texts = sum(count * text_macs(running, length) for length, count in lengths.items())
        return pc.flops(running.visual), texts / sum(lengths.values())

    image, text = both(model)
    whole = image.total + text
    prefix = pc.schedule(model, keep=1.0).prefix
    with applied(cell, model) as running:
        image, text = both(running)
    return ({} if cell.arm == WHOLE else {"towers": cell.towers}) | {
        "gmacs": round((image.total + text) / 1e9, 6),
        "share": round((image.total + text) / whole, 6),
        "gmacs_image": round(image.total / 1e9, 6),
        "gmacs_text": round(text / 1e9, 6),
        "tokens": [n - prefix for n in image.tokens],
    }


def text_macs(model: nn.Module, length: int) -> int:
    """Multiply-accumulates of the text tower of an open_clip model, as it runs now, for one text of so many tokens.

    A causal tower of open_clip pads every text to its context; it never merges. Embeddings are looked up: no products.
    """
    tower = getattr(model, "text", model)  # `CLIP` has the parts of its text tower for its own
    encoder = tower.transformer
    if not hasattr(encoder, "resblocks"):
        return pc.flops(encoder, (length,)).total + linear(tower.proj)
    tokens, width = getattr(tower, "num_pos", tower.context_length), encoder.width
    maps = sum(
        block.attn.in_proj_weight.numel() + block.attn.out_proj.weight.numel() + linear(block.mlp)
        for block in encoder.resblocks
    )
    projection = tower.text_projection
    head = linear(projection) if isinstance(projection, nn.Module) else 0 if projection is None else projection.numel()
    return tokens * maps + len(encoder.resblocks) * 2 * tokens**2 * width + head
