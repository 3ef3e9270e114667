"""Variants of PiToMe: each part of the method has a switch, which replaces it by what other code does there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..energy import KERNELS, pair_cosines
from ..merge_plan import MergePlan
from ..portable import stable_order
from .hashing import hash_tokens, random_order
from .registry import active_pairs

CHOICES = {
    "kernel": KERNELS,
    "score": ("energy", "attention", "shuffled"),
    "split": ("alternate", "high_low", "position", "random"),
    "edges": ("all", "best"),
}


@dataclass(frozen=True)
class Variant:
    """The switches of PiToMe. The defaults are the paper's method.

    Energy-sorted matching is `protection=False, edges="best"`; with `split="position"` as well it is ToMe.

    Attributes:
        score: what ranks tokens: `energy`; `attention` (least class attention first); `shuffled` (the energies dealt to
            other tokens, a control).
        protection: whether the tokens of low energy are kept out of merging. Without it all tokens may merge.
        split: how the tokens that may merge are divided into A and B: `alternate` ranks; `high_low` (A is the half of
            higher score, as in the released text code); `position` (alternate places, as in ToMe); `random`.
        edges: which tokens of A merge. `all`: the k of highest score, which are all of A if 2k tokens may merge.
            `best`: the k with the most similar partners; 4k tokens may merge then (all tokens without protection).
        gate: how many tokens may merge, in units of 2k. 1 is the paper's 2k. A larger gate lets more tokens in, and of
            their edges the k best merge; from N / 2k on all tokens may merge, which is energy-sorted matching.
        seed: number that `shuffled` and `random` depend on.
    """

    score: str = "energy"
    protection: bool = True
    split: str = "alternate"
    edges: str = "all"
    seed: int = 0
    gate: float = 1.0

    @property
    def is_the_paper(self) -> bool:
        """Whether all switches are as in the paper."""
        return self == Variant(seed=self.seed)

    def mergeable(self, k: int | Tensor, width: int) -> int | Tensor:
        """How many of `width` tokens may merge where k of them go, before it is known how many there are."""
        share = width if not self.protection else 2 * self.gate if self.gate > 1 else 4 if self.edges == "best" else 2
        count = share * (k if isinstance(k, int) or self.gate == 1 else k.double())  # exact, as Python's numbers are
        return round(count) if isinstance(k, int) else count.round().long()


def plan_variant(
    energy: Tensor,
    unit: Tensor,
    cos: Tensor | None,
    remove: int | Tensor,
    mask: Tensor | None,
    layer: int,
    class_attention: Tensor | None,
    variant: Variant,
) -> MergePlan:
    """A variant of `plan_pitome`, from energies `(B, N)`, unit tokens `(B, N, C)` and cosines `(B, N, N)` or None."""
    ranked_by = energy
    if variant.score == "attention":
        if class_attention is None:
            raise ValueError("score='attention' ranks tokens by class_attention: use it in a patched model")
        ranked_by = (-class_attention).masked_fill(energy == -math.inf, -math.inf)
    elif variant.score == "shuffled":
        ranked_by = energy.gather(1, random_order(energy, mask, variant.seed, layer))

    # The tokens that may merge, in the order in which they are dealt out to A and B in turns.
    k, active = active_pairs(remove)
    batch, width = energy.shape
    lengths = torch.full((batch, 1), width, device=energy.device) if mask is None else mask.sum(dim=1, keepdim=True)
    most = min(variant.mergeable(k, width), width)
    count = lengths.clamp_max(variant.mergeable(k if active is None else remove[:, None], width))  # (B, 1)
    may = torch.arange(most, device=energy.device) < count  # (B, most)
    dealt = stable_order(ranked_by, descending=True)[:, :most]  # (B, most)
    if variant.split == "high_low":
        slot = torch.arange(most, device=energy.device)
        dealt = dealt.gather(1, (slot // 2 + slot % 2 * ((count + 1) // 2)).clamp_max(max(most - 1, 0)))
    elif variant.split != "alternate":
        place = dealt if variant.split == "position" else hash_tokens(width, variant.seed, layer, energy.device)[dealt]
        dealt = dealt.gather(1, stable_order(place.masked_fill(~may, 2**40)))
    a, b = dealt[:, 0::2], dealt[:, 1::2]  # (B, most / 2) each
    if k == 0:
        return MergePlan.from_merges(a, a, width, active=active, mask=mask, energy=energy, checked=False)

    similarity = pair_cosines(unit, cos, a, b).masked_fill(~may[:, None, 1::2], -math.inf)
    best, partner = similarity.max(dim=-1)  # the first of equals
    by_edge = variant.edges == "best" or variant.gate > 1
    value = (best if by_edge else ranked_by.gather(1, a)).masked_fill(~may[:, 0::2], -math.inf)
    chosen = stable_order(value, descending=True)[:, :k]  # (B, k)
    source, target = a.gather(1, chosen), b.gather(1, partner).gather(1, chosen)
    return MergePlan.from_merges(source, target, width, active=active, mask=mask, energy=energy, checked=False)
