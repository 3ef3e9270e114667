"""PiToMe: energy first, then an ordered split, then matching."""

from __future__ import annotations

import math

from torch import Tensor

from ..energy import energy_and_cosine, pair_cosines
from ..merge_plan import MergePlan
from ..portable import stable_order
from .pitome_variants import CHOICES, Variant, plan_variant
from .registry import active_pairs, register_method


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
    gate: float = 1.0,
) -> MergePlan:
    """Merge k pairs among the 2k tokens of highest energy; protect all others.

    Tokens are sorted by energy, highest first (stable). Of the first 2k, even ranks form A and odd ranks B. Every token
    of A joins the token of B of highest cosine (of equal ones the first in rank order), so exactly k tokens are
    removed.

    `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first. Source: eq. 4. The options `score`,
    `protection`, `split`, `edges`, `seed` and `gate` turn the method into another one, see `Variant`.
    """
    if not gate >= 1:
        raise ValueError(f"gate is {gate}: it counts the tokens that may merge in units of 2k, so it is 1 or more")
    energy, unit, cos = energy_and_cosine(metric, margin, alpha, kernel, mask)
    variant = Variant(score, protection, split, edges, seed, gate)
    if not variant.is_the_paper:
        return plan_variant(energy, unit, cos, remove, mask, layer, class_attention, variant)
    k, active = active_pairs(remove)
    rank = stable_order(energy, descending=True)
    a, b = rank[:, 0 : 2 * k : 2], rank[:, 1 : 2 * k : 2]  # (B, k) each
    target = b
    if k > 0:
        similarity = pair_cosines(unit, cos, a, b)  # (B, k, k)
        if active is not None:
            similarity = similarity.masked_fill(~active[:, None, :], -math.inf)
        target = b.gather(1, similarity.max(dim=-1).indices)  # max over a dimension takes the first of equals
    return MergePlan.from_merges(
        a, target, metric.shape[1], active=active, mask=mask, energy=energy, checked=False
    )


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Multiply-accumulates of all cosines; other operations: an exponential for each, the sort, and k^2 comparisons.

    If cosines are computed in blocks, those between A and B are computed again. This is not counted, because it is
    k^2 C, a hundredth of the rest at keep 0.9.
    """
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
    choices=CHOICES,
    scaling="time N^2 C; memory N^2 up to 2^19 cosines on a CPU (2^22 elsewhere), in blocks of as many beyond, and k^2",
)
