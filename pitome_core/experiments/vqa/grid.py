"""What is compared in visual question answering: arms in the vision tower, and the order in which tokens are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

import pitome_core as pc
from pitome_core.experiments.models.llava_answers import ORDERS
from pitome_core.experiments.runs import grid
from pitome_core.families.common import linear
from pitome_core.families.hf_llava import image_token_count

KEEPS = (0.95, 0.9, 0.85)  # share of the patch tokens that every layer keeps
PRIMARY = 0.9
SEEDS = 2  # of the random controls
RELEASED = grid.Arm(
    "pitome-released-llava", "PiToMe (released, LLaVA)", "pitome", "pitome", {"preset": "released-llava"},
    also_off=False,
)
LISTED = ("pitome", RELEASED.name, "energy-sorted", "tome", "tofu", "random-merge", "random-prune")  # in this tier
ARMS: dict[str, grid.Arm] = {
    name: RELEASED if name == RELEASED.name else grid.ARMS[name] for name in (*LISTED, "dct", "diffrate")
}
ORDERED = ("pitome", RELEASED.name, "tome")  # arms that are read in every order at the primary ratio
# Pixels to a side of the smaller pictures: 81, 49 and 25 tokens, next to the 83, 45 and 23 that the keep ratios leave
# of 144; and 100 and 64 between them.
SIDES = (140, 126, 112, 98, 70)
LABELS = {name: grid.LABELS[name] for name in (grid.WHOLE, grid.LOWER)} | {n: arm.label for n, arm in ARMS.items()}


@dataclass(frozen=True)
class VqaCell(grid.Cell):
    """An arm at one strength in the vision tower of a LLaVA, whose language model reads the merged tokens in an order.
    """

    order: str = ORDERS[0]

    @property
    def key(self) -> str:
        """As in `grid.Cell`; another order than the default is added: ``tome@0.9/released``."""
        return super().key + ("" if self.arm == grid.WHOLE or self.order == ORDERS[0] else f"/{self.order}")

    def describe(self) -> dict[str, Any]:
        """What a record says about it."""
        known: dict[str, Any] = {"arm": self.arm, "label": LABELS[self.arm], "keep": self.keep, "seed": self.seed,
                                 "pixels": self.pixels}
        if arm := ARMS.get(self.arm):
            known |= {"method": arm.method, "options": dict(arm.options), "order": self.order}
        return {name: value for name, value in known.items() if value is not None}

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as this cell runs it; patched inside the block only. At a lower resolution it is the model itself:
        pictures have to be ``pixels`` to a side."""
        if self.arm in (grid.WHOLE, grid.LOWER):
            yield model
            return
        arm = ARMS[self.arm]
        options = dict(arm.options) | ({} if self.seed is None else {"seed": self.seed})
        with pc.patched(model, arm.method, self.keep, restore=False, **options):
            yield model


def checked(arms: Iterable[str], keeps: Sequence[float], known: Sequence[str]) -> list[str]:
    """The arms but the whole model, which is always run. `ValueError` for one that is not ``known``, or a keep ratio
    that is none."""
    chosen = [name for name in arms if name != grid.WHOLE]
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"no method {unknown[0]!r} in visual question answering; there are {', '.join(known)}")
    if wrong := [keep for keep in keeps if not 0 < keep < 1]:
        raise ValueError(f"keep {wrong[0]} must lie between 0 and 1; the whole model (keep 1) is always run")
    return chosen


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = KEEPS,
    *,
    ordered: Sequence[str] = (),
    sides: Sequence[int] = (),
    seeds: int = SEEDS,
) -> list[VqaCell]:
    """The whole model; the arms (None: `LISTED`, and the lower resolution) at the keep ratios.

    Arms in ``ordered`` are read in all of `ORDERS` at keep .9, if that is among the ratios; ``sides`` are the pixels of
    the control at lower resolution. `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    chosen = checked([*LISTED, grid.LOWER] if arms is None else arms, keeps, (*ARMS, grid.LOWER))
    found = [VqaCell(grid.WHOLE)]
    for name in chosen:
        if name == grid.LOWER:
            found += [VqaCell(name, pixels=side) for side in sides]
            continue
        numbers = range(seeds) if ARMS[name].seeds > 1 else (None,)
        found += [VqaCell(name, keep, seed=seed) for keep in keeps for seed in numbers]
        if name in ordered and PRIMARY in keeps:
            found += [VqaCell(name, PRIMARY, order=order) for order in ORDERS[1:]]
    return list(dict.fromkeys(found))


def cost(cell: VqaCell, model: nn.Module, lengths: Mapping[int, int]) -> dict[str, Any]:
    """Tokens and 10^9 multiply-accumulates of one picture and one question, up to the first token of the answer.

    ``lengths`` says how many prompts have each number of tokens without the picture's; a cost is the mean over them.
    ``gmacs_tower`` is the vision tower with merging and projector, ``gmacs_prefill`` the language model on the prompt,
    ``gmacs`` their sum and ``share`` its share of the whole model's; ``image_tokens`` go into the language model, with
    ``prompt_tokens`` of text; ``tokens`` are the patch tokens that enter each layer of the tower and leave it.
    """
    def both(running: nn.Module, size: tuple[int, int, int] | None) -> tuple[Any, int, float]:
        image = image_token_count(running, size)
        total = sum(count * prefill_macs(model, image + text) for text, count in lengths.items())
        return pc.flops(running, size), image, total / sum(lengths.values())

    tower, _, prefill = both(model, None)
    whole, prefix = tower.total + prefill, pc.schedule(model, keep=1.0).prefix
    with cell.applied(model) as running:
        tower, image, prefill = both(running, None if cell.pixels is None else (3, cell.pixels, cell.pixels))
    return {
        "gmacs": round((tower.total + prefill) / 1e9, 6),
        "share": round((tower.total + prefill) / whole, 6),
        "gmacs_tower": round(tower.total / 1e9, 6),
        "gmacs_prefill": round(prefill / 1e9, 6),
        "image_tokens": image,
        "prompt_tokens": round(sum(text * count for text, count in lengths.items()) / sum(lengths.values()), 2),
        "tokens": [n - prefix for n in tower.tokens],
    }


def prefill_macs(model: nn.Module, tokens: int) -> int:
    """Multiply-accumulates of a LLaVA's language model on a prompt of so many tokens: all linear maps, causal attention
    (each token with those up to itself), the vocabulary for the last token."""
    language = model.model.language_model
    config = language.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    maps = linear(language.layers)
    return tokens * maps + len(language.layers) * tokens * (tokens + 1) * width + linear(model.lm_head)
