"""PiToMe: energy first, then an ordered split, then matching (the paper's section 3.2), with its switches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..energy import energy_and_cosine
from ..merge_plan import MergePlan
from .hashing import hash_tokens, random_order
from .registry import active_pairs, register_method

SWITCHES = {
    "score": ("energy", "attention", "shuffled"),
    "split": ("alternate", "high_low", "position", "random"),
    "edges": ("all", "best"),
}


def plan_pitome(
    metric: Tensor,
    remove: int | Tensor,
    *,
    margin: float = 0.9,
    mask: Tensor | None = None,
    layer: int = 0,
    class_attention: Tensor | None = None,
    kernel: str = "paper",
    alpha: float = 1.0,
    score: str = "energy",
    protection: bool = True,
    split: str = "alternate",
    edges: str = "all",
    seed: int = 0,
) -> MergePlan:
    """Merge k pairs among the 2k tokens of highest energy; protect all others. That is the paper (eq. 4, Algorithm 1).

    Tokens are sorted by energy, highest first (stable). Of the first 2k, even ranks form A and odd ranks B. Every a
    joins the b of highest cosine (the first one in rank order where several tie), so exactly k tokens go.

    `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first. The switches:

    - `score`: what ranks tokens. `energy`; `attention` (least class attention first); `shuffled` (the energies dealt
      to other tokens, a control).
    - `protection`: off = all tokens may merge.
    - `split`: `alternate` ranks; `high_low` (A = the higher half, the released text code); `position` (alternate
      places, as ToMe); `random` (`seed`).
    - `edges`: `all` = the k tokens of A with the highest score merge, which is all of A where 2k may merge; `best` =
      the k of A with the most similar partners, out of the 4k highest (out of all tokens without protection).
    """
    for name, value in (("score", score), ("split", split), ("edges", edges)):
        if value not in SWITCHES[name]:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(SWITCHES[name])}")
    energy, unit, cos = energy_and_cosine(metric, margin, alpha, kernel, mask)
    rank_by = energy
    if score == "attention":
        if class_attention is None:
            raise ValueError("score='attention' ranks tokens by class_attention: use it in a patched model")
        rank_by = (-class_attention).masked_fill(energy == -math.inf, -math.inf)
    elif score == "shuffled":
        rank_by = energy.gather(1, random_order(metric, mask, seed, layer))

    k, active = active_pairs(remove)
    batch, width = metric.shape[:2]
    lengths = torch.full((batch, 1), width, device=metric.device) if mask is None else mask.sum(dim=1, keepdim=True)
    share = {True: 2 if edges == "all" else 4, False: width}[protection]
    most = min(share * k, width)
    count = lengths.clamp_max(share * (k if active is None else remove[:, None]))  # (B, 1): tokens that may merge
    may = torch.arange(most, device=metric.device) < count
    rank = rank_by.argsort(dim=-1, descending=True, stable=True)[:, :most]
    if split == "high_low":
        slot = torch.arange(most, device=metric.device)
        rank = rank.gather(1, (slot // 2 + slot % 2 * ((count + 1) // 2)).clamp_max(most - 1))
    elif split != "alternate":
        place = rank if split == "position" else hash_tokens(width, seed, layer, metric.device)[rank]
        rank = rank.gather(1, place.masked_fill(~may, 2**40).argsort(dim=-1, stable=True))

    a, b = rank[:, 0::2], rank[:, 1::2]
    item = torch.arange(batch, device=metric.device)[:, None]
    if cos is None:  # too many tokens for the full matrix: only the corner that is needed
        pair = unit[item, a] @ unit[item, b].transpose(-1, -2)
    else:
        pair = cos[item[..., None], a[:, :, None], b[:, None, :]]
    if k == 0:
        return MergePlan.from_merges(a[:, :0], b[:, :0], width, active=active, mask=mask, energy=energy)
    best, partner = pair.masked_fill(~may[:, None, 1::2], -math.inf).max(dim=-1)  # the first of equals
    target = b.gather(1, partner)
    if a.shape[1] > k:
        value = (best if edges == "best" else rank_by.gather(1, a)).masked_fill(~may[:, 0::2], -math.inf)
        chosen = value.argsort(dim=-1, descending=True, stable=True)[:, :k]
        a, target = a.gather(1, chosen), target.gather(1, chosen)
    return MergePlan.from_merges(a, target, width, active=active, mask=mask, energy=energy)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """All cosines; then an exponential for each, a sort, and the maxima of the k x k corner."""
    sort = int(num_tokens * math.log2(max(num_tokens, 2)))
    return num_tokens**2 * channels, num_tokens**2 + sort + removed**2


def _reads_attention(options: dict) -> bool:
    return options["score"] == "attention"


register_method(
    "pitome",
    plan_pitome,
    paper="Tran et al., NeurIPS 2024",
    summary="merge among the tokens of highest energy, protect the isolated ones",
    cost=cost,
    attention_when=_reads_attention,
)
