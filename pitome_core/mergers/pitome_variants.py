"""PiToMe with its switches: which part of the method does what, and what the released code does in its place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..energy import KERNELS, pair_cosines
from ..merge_plan import MergePlan
from .hashing import hash_tokens, random_order
from .registry import active_pairs

CHOICES = {
    "kernel": KERNELS,
    "score": ("energy", "attention", "shuffled"),
    "split": ("alternate", "high_low", "position", "random"),
    "edges": ("all", "best"),
}


def plan_variant(
    energy: Tensor,
    unit: Tensor,
    cos: Tensor | None,
    remove: int | Tensor,
    mask: Tensor | None,
    layer: int,
    class_attention: Tensor | None,
    score: str,
    protection: bool,
    split: str,
    edges: str,
    seed: int,
) -> MergePlan:
    """A variant of `plan_pitome`, from its energies `(B, N)`, unit tokens `(B, N, C)` and cosines `(B, N, N)` or None.

    - `score`, what ranks tokens: `energy`; `attention` (least class attention first); `shuffled` (the energies dealt
      to other tokens, a control).
    - `protection`: off = all tokens may merge.
    - `split`: `alternate` ranks; `high_low` (A = the higher half, the released text code); `position` (alternate
      places, as ToMe); `random`.
    - `edges`: `all` = the k tokens of A with the highest score merge, which is all of A where 2k may merge; `best` =
      the k of A with the most similar partners, out of the 4k highest (out of all tokens without protection).

    Energy-sorted matching is `protection=False, edges="best"`; with `split="position"` as well it is ToMe.
    """
    ranked_by = energy
    if score == "attention":
        if class_attention is None:
            raise ValueError("score='attention' ranks tokens by class_attention: use it in a patched model")
        ranked_by = (-class_attention).masked_fill(energy == -math.inf, -math.inf)
    elif score == "shuffled":
        ranked_by = energy.gather(1, random_order(energy, mask, seed, layer))

    # The tokens that may merge, in the order in which they are dealt out to A and B.
    k, active = active_pairs(remove)
    batch, width = energy.shape
    lengths = torch.full((batch, 1), width, device=energy.device) if mask is None else mask.sum(dim=1, keepdim=True)
    share = width if not protection else 2 if edges == "all" else 4
    most = min(share * k, width)
    count = lengths.clamp_max(share * (k if active is None else remove[:, None]))  # (B, 1)
    may = torch.arange(most, device=energy.device) < count
    dealt = ranked_by.argsort(dim=-1, descending=True, stable=True)[:, :most]
    if split == "high_low":
        slot = torch.arange(most, device=energy.device)
        dealt = dealt.gather(1, (slot // 2 + slot % 2 * ((count + 1) // 2)).clamp_max(max(most - 1, 0)))
    elif split != "alternate":
        place = dealt if split == "position" else hash_tokens(width, seed, layer, energy.device)[dealt]
        dealt = dealt.gather(1, place.masked_fill(~may, 2**40).argsort(dim=-1, stable=True))
    a, b = dealt[:, 0::2], dealt[:, 1::2]
    if k == 0:
        return MergePlan.from_merges(a, a, width, active=active, mask=mask, energy=energy)

    similarity = pair_cosines(unit, cos, a, b).masked_fill(~may[:, None, 1::2], -math.inf)
    best, partner = similarity.max(dim=-1)  # the first of equals
    value = (best if edges == "best" else ranked_by.gather(1, a)).masked_fill(~may[:, 0::2], -math.inf)
    chosen = value.argsort(dim=-1, descending=True, stable=True)[:, :k]
    source, target = a.gather(1, chosen), b.gather(1, partner).gather(1, chosen)
    return MergePlan.from_merges(source, target, width, active=active, mask=mask, energy=energy)
