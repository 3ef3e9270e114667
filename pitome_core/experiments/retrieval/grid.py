"""What is compared in retrieval: the arms of `grid` in the image tower, some of them in the text tower or in both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

import pitome_core as pc
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.runs import grid
from pitome_core.families.common import linear

TOWERS = ("vision", "text", "both")
# In a text every item has its own length: no transform, nothing that reads a map of attention.
TEXT_ARMS = ("pitome", "energy-sorted", "tome", "tofu", "diffrate", "random-merge", "random-prune")
TEXT_SEEDS = 2
# Cells whose heads are trained with merging on as well, by what merges.
RETRAINED = {
    "vision": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome", "random-prune")},
    "both": {arm: (0.9, 0.8) for arm in ("pitome", "energy-sorted", "tome")},
}


@dataclass(frozen=True)
class RetrievalCell(grid.Cell):
    """An arm at one strength, in the image tower (``vision``), the text tower (``text``) or both, in all layers."""

    towers: str = "vision"

    @property
    def key(self) -> str:
        """As in `grid.Cell` for the image tower; else ``tome@0.8/text``, ``random-prune@0.8/both/seed1``."""
        if self.towers == "vision":
            return super().key
        if self.arm == grid.WHOLE:
            return f"{self.arm}/{self.towers}"
        return f"{self.arm}@{self.keep:g}/{self.towers}" + ("" if self.seed is None else f"/seed{self.seed}")

    def describe(self) -> dict[str, Any]:
        """What a record says about it."""
        return super().describe() | ({} if self.arm == grid.WHOLE else {"towers": self.towers})

    @property
    def retrained(self) -> bool:
        """Whether heads are trained with this merging on: of arms with seeds, with the first."""
        ratios = RETRAINED.get(self.towers, {}).get(self.arm, ())
        return self.keep in ratios and self.seed in (None, 0) and self.proportional is None

    def of(self, tower: str) -> RetrievalCell:
        """What this cell does to one tower, ``vision`` or ``text``: a cell of that tower, of the whole one if nothing.
        """
        if self.arm == grid.WHOLE or self.towers not in (tower, "both"):
            return RetrievalCell(grid.WHOLE, towers=tower)
        return RetrievalCell(self.arm, self.keep, self.proportional, self.seed, self.pixels, tower)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The dual encoder as this cell runs it; patched inside the block only. A lower resolution gives a copy."""
        if self.arm == grid.LOWER:
            small = copy.deepcopy(model)
            small.visual.trunk = lower_resolution(model.visual.trunk, self.pixels)
            yield small
        elif self.towers == "vision" or self.arm == grid.WHOLE:
            with super().applied(model) as running:
                yield running
        else:
            arm = grid.ARMS[self.arm]
            options = dict(arm.options) | ({} if self.seed is None else {"seed": self.seed})
            with pc.patched(model, arm.method, self.keep, towers=self.towers, **options):
                yield model


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = grid.KEEPS,
    *,
    text: Sequence[float] = (),
    both: Sequence[float] = (),
    img_size: int | None = None,
) -> list[RetrievalCell]:
    """The whole model; the arms in the image tower as `grid.cells` lists them; those of `TEXT_ARMS` in the text tower
    at the ratios ``text``, and in both towers at the ratios ``both``.

    `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    found = [RetrievalCell(c.arm, c.keep, c.proportional, c.seed, c.pixels)
             for c in grid.cells(arms, keeps, img_size=img_size)]
    for towers, ratios in (("text", text), ("both", both)):
        for name in TEXT_ARMS if arms is None else [name for name in arms if name in TEXT_ARMS]:
            seeds = range(TEXT_SEEDS) if grid.ARMS[name].seeds > 1 else (None,)
            found += [RetrievalCell(name, keep, seed=seed, towers=towers) for keep in ratios for seed in seeds]
    if wrong := [keep for keep in (*text, *both) if not 0 < keep < 1]:
        raise ValueError(f"keep {wrong[0]} must lie between 0 and 1; the whole model (keep 1) is always run")
    return list(dict.fromkeys(found))


def cost(cell: RetrievalCell, model: nn.Module, lengths: Mapping[int, int]) -> dict[str, Any]:
    """10^9 multiply-accumulates of one image and one text, heads and merging included, and what enters each layer.

    ``lengths`` says how many texts have each number of tokens ([CLS] and [SEP] included); a text's cost is the mean
    over them. ``gmacs`` is the sum of both, ``share`` its share of the whole model's; ``gmacs_image`` and
    ``gmacs_text`` are the parts, ``tokens`` the patch tokens entering each layer of the image tower and leaving it.
    ``model`` is the bare model of open_clip.
    """
    def both(running: nn.Module) -> tuple[Any, float]:
        texts = sum(count * text_macs(running, length) for length, count in lengths.items())
        return pc.flops(running.visual), texts / sum(lengths.values())

    image, text = both(model)
    whole = image.total + text
    prefix = pc.schedule(model, keep=1.0).prefix
    with cell.applied(model) as running:
        image, text = both(running)
    return {
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
