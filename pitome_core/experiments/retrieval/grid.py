"""What is compared in retrieval: PiToMe in its forms, their counterparts and controls, in the image tower or in both.

A counterpart differs from its arm in the method alone (`Cell.beside`). The control for energy is the same arm with the
energies of an image dealt to other tokens of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

import pitome_core as pc
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.records import cells as records_cells
from pitome_core.experiments.records.cells import (
    GRID_POOL,
    LOWER,
    SEEDS,
    WHOLE,
    Cell,
    checked,
    seeds_of,
    with_counterparts,
)
from pitome_core.experiments.runs import grid
from pitome_core.families.common import linear

WITH_ENERGY = ("pitome", "pitome-released-clip", "pitome-released-deit", "pitome-hidden", "energy-sorted")
RIVALS = ("tome", "tome-hidden", "tome-released-clip")
# What the protocol lists for the image tower, and what the paper tier runs there.
SHUFFLED = tuple(f"{name}-shuffled" for name in WITH_ENERGY)
ARMS = (*WITH_ENERGY, *RIVALS, *SHUFFLED, "random-prune", "random-merge", LOWER)
PAPER_ARMS = (*grid.ARMS, GRID_POOL, LOWER, "pitome-released-clip", "tome-released-clip")
EVERY = tuple(dict.fromkeys((*ARMS, *PAPER_ARMS)))  # what a command may name
# In a text every item has its own length: no transform fits, and nothing reads a map of attention.
TEXT_ARMS = ("pitome", "energy-sorted", "tome", "tofu", "diffrate", "random-merge", "random-prune")
FEWER_SEEDS = 2  # of arms with seeds, where the protocol has not all of them
DRAWS, DRAWN_AT = 5, 0.9  # draws of noise, and the keep ratio at which pictures are scored with it
# Cells whose heads are trained with merging on as well, by the towers that merge.
RETRAINED = {
    "vision": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome", "random-prune")},
    "both": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome")},
}


def has_own_heads(cell: Cell) -> bool:
    """Whether heads are trained with this merging on: of an arm with seeds, with its first seed."""
    ratios = RETRAINED.get(cell.towers, {}).get(cell.arm, ())
    return cell.keep in ratios and cell.seed in (None, 0) and cell.proportional is None


def is_drawn(cell: Cell) -> bool:
    """Whether pictures are scored with `DRAWS` draws of noise: with an arm that is compared, in the image tower alone.

    Arms with seeds are not among them: their seeds draw already, and change plans by far more.
    """
    merges = cell.towers == "vision" and cell.keep == DRAWN_AT and cell.arm in (*WITH_ENERGY, *RIVALS)
    return merges or cell.arm == WHOLE


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
    keeps: Sequence[float] = (DRAWN_AT,),
    *,
    listed: Sequence[str] = ARMS,
    pixels: Sequence[int] = (),
    all_seeds_at: Sequence[float] | None = None,
    off: Sequence[float] = (grid.OFF_AT,),
    text: Sequence[float] = (),
    both: Sequence[float] = (),
    elsewhere: Sequence[str] = TEXT_ARMS,
) -> list[Cell]:
    """The whole model, arms in the image tower with their counterparts, and arms in the text tower or in both.

    Args:
        arms: which of them (None: those ``listed``). A counterpart is added where its arm is among them.
        keeps: keep ratios of the image tower.
        listed: the arms of the image tower.
        pixels: the sides of the control at lower resolution.
        all_seeds_at: the keep ratios at which arms with seeds have all of these, and not `FEWER_SEEDS` (None: all).
        off: the keep ratios at which proportional attention is switched off as well, for arms that count sizes.
        text, both: the keep ratios at which the text tower merges alone, and at which both towers merge.
        elsewhere: the arms of these.

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is not between 0 and 1.
    """
    chosen = checked(list(listed if arms is None else arms), tuple(keeps), EVERY)
    found = [Cell(WHOLE)]
    for name in chosen:
        if name == GRID_POOL:
            found.append(Cell(GRID_POOL))
        elif name == LOWER:
            found += [Cell(LOWER, pixels=side) for side in pixels]
        else:
            for keep in keeps:
                most = SEEDS if all_seeds_at is None or keep in all_seeds_at else FEWER_SEEDS
                found += [Cell(name, keep, seed=seed) for seed in seeds_of(name, most)]
            if records_cells.ARMS[name].also_off:
                found += [Cell(name, keep, False, seed=seeds_of(name)[0]) for keep in keeps if keep in off]
    with_energy = [cell for cell in found if cell.keep is not None and records_cells.ARMS[cell.arm].kind == "pitome"]
    found += with_counterparts(with_energy, chosen)
    arms_elsewhere = [name for name in elsewhere if arms is None or name in arms]
    for towers, ratios in (("text", text), ("both", both)):
        for name in checked(arms_elsewhere, tuple(ratios), TEXT_ARMS):
            seeds = seeds_of(name, FEWER_SEEDS)
            found += [Cell(name, keep, seed=seed, towers=towers) for keep in ratios for seed in seeds]
    return list(dict.fromkeys(found))


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
