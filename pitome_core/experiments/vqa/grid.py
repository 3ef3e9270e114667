"""What is compared in visual question answering: arms in the vision tower, and the order in which tokens are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

import pitome_core as pc
from pitome_core.experiments.models.llava_answers import ORDERS
from pitome_core.experiments.records import cells as records_cells
from pitome_core.experiments.records.cells import LOWER, RANDOM, WHOLE, Arm, Cell, checked, seeds_of, with_counterparts
from pitome_core.experiments.runs import grid
from pitome_core.families.common import linear
from pitome_core.families.hf_llava import image_token_count

KEEPS = (0.95, 0.9, 0.85)  # share of the patch tokens that every layer keeps
PRIMARY = 0.9
SEEDS = 2  # of arms that draw at random
RELEASED = "pitome-released-llava"  # in the twelve layers of our tower it is ToMe on hidden states, behind each layer
PITOME = ("pitome", "energy-sorted", "pitome-hidden", "pitome-released-clip")
TOME = ("tome", "tome-hidden", "tome-released-clip", RELEASED)
# In the embedded tier. Shuffled energies are the control for energy beside every arm that has it.
LISTED = (*PITOME, *TOME, *(f"{name}-shuffled" for name in PITOME), *RANDOM)
ARMS: dict[str, Arm] = {name: records_cells.ARMS[name] for name in (*LISTED, "tofu", "dct", "diffrate")}
ORDERED = ("pitome", "tome")  # arms that `vqa-1` read in every order at the primary ratio
SIDES = (112, 98)  # pixels of smaller pictures: 64 and 49 tokens of 144, about the cost of keep .9, which leaves 45
LABELS = {name: records_cells.LABELS[name] for name in (WHOLE, LOWER, *ARMS)}


@contextmanager
def applied(cell: Cell, model: nn.Module) -> Iterator[nn.Module]:
    """The LLaVA as this cell runs it; it is patched inside the block only.

    At a lower resolution it is the model itself: whoever asks it has to make the pictures ``cell.pixels`` to a side.
    """
    if cell.arm in (WHOLE, LOWER):
        yield model
        return
    with grid.applied(cell, model, restore=False):
        yield model


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = KEEPS,
    *,
    ordered: Sequence[str] = (),
    sides: Sequence[int] = (),
    seeds: int | Mapping[str, int] = SEEDS,
) -> list[Cell]:
    """The whole model, and the arms (None: `LISTED` and the lower resolution) at the keep ratios.

    Every cell has its counterpart beside it (`Cell.beside`) if that is of one of the arms. Arms in ``ordered`` are read
    in all of `ORDERS` at keep .9, if that is among the ratios. ``sides`` are the pixels of the control at lower
    resolution. ``seeds`` are those of every arm that draws at random, or of single ones (the others: `SEEDS`).

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is not between 0 and 1.
    """
    chosen = [Cell(WHOLE)]
    names = checked(list([*LISTED, LOWER] if arms is None else arms), keeps, (*ARMS, LOWER))
    for name in names:
        if name == LOWER:
            chosen += [Cell(name, pixels=side) for side in sides]
            continue
        most = seeds if isinstance(seeds, int) else seeds.get(name, SEEDS)
        chosen += [Cell(name, keep, seed=seed) for keep in keeps for seed in seeds_of(name, most)]
    chosen = with_counterparts(chosen, names)
    if PRIMARY in keeps:
        chosen += [Cell(name, PRIMARY, order=order) for name in names if name in ordered for order in ORDERS[1:]]
    return chosen


def order_of(cell: Cell) -> str:
    """The order in which the language model reads the image tokens."""
    return cell.order or ORDERS[0]


def cost(cell: Cell, model: nn.Module, lengths: Mapping[int, int]) -> dict[str, Any]:
    """Tokens and 10^9 multiply-accumulates of one picture and one question, up to the first token of the answer.

    ``lengths`` says how many prompts have each number of tokens without the picture's. A cost is the mean over them.
    ``gmacs_tower`` is the vision tower with merging and projector, ``gmacs_prefill`` the language model on the prompt,
    ``gmacs`` their sum and ``share`` its share of the whole model's. ``image_tokens`` go into the language model, with
    ``prompt_tokens`` of text. ``tokens`` are the patch tokens that enter each layer of the tower and leave it.
    """
    def both(running: nn.Module, size: tuple[int, int, int] | None) -> tuple[Any, int, float]:
        image = image_token_count(running, size)
        total = sum(count * prefill_macs(model, image + text) for text, count in lengths.items())
        return pc.flops(running, size), image, total / sum(lengths.values())

    tower, _, prefill = both(model, None)
    whole, prefix = tower.total + prefill, pc.schedule(model, keep=1.0).prefix
    with applied(cell, model) as running:
        tower, image, prefill = both(running, None if cell.pixels is None else (3, cell.pixels, cell.pixels))
    return ({} if cell.keep is None else {"order": order_of(cell)}) | {
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
