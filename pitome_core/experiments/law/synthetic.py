"""Synthetic tokens whose clusters are known, and what one merge does to them.

A token is `sqrt(c) u + sqrt(1 - c) z`. The direction u is common to all tokens of an image. z is a unit vector: the
centre of the token's cluster plus noise of length `spread`. Isolated tokens have a centre of their own. The common part
changes the cosines of all pairs alike, up to the small products of u and z. These products do not cancel in the mean
over all tokens that an energy is: with a large c the energy of a token tells how far it points along u.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import pitome_core as pc
from pitome_core.experiments.records.cells import ARMS
from pitome_core.layer_measures import mean_cosine, tightness

SHARES = (0.40, 0.25, 0.15, 0.10, 0.06, 0.04)  # of the tokens that are not isolated, in six clusters


@dataclass(frozen=True)
class Setting:
    """What synthetic tokens are like, and how they merge.

    Attributes:
        common: the paper's case is 0; towards 1 all tokens are parallel.
        spread: length of the noise on a centre of length 1. The cosine inside a cluster is about 1 / (1 + spread^2).
        isolated: share of tokens that are alone in their cluster.
        margin: of the energy.
        tokens, width: how many tokens, and of how many channels.
        keep: share of the tokens that is left.
    """

    common: float
    spread: float
    isolated: float = 0.2
    margin: float = 0.45
    tokens: int = 196
    width: int = 64
    keep: float = 0.9

    @property
    def removed(self) -> int:
        """How many tokens go."""
        return pc.schedules.tokens_removed(self.tokens, self.keep)


def draw(setting: Setting, trials: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens ``(trials, N, C)`` float32 in random order, and the cluster of each ``(trials, N)`` long.

    Clusters 0 to 5 are the six of `SHARES`; an isolated token has a number from 6 on.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    n, width = setting.tokens, setting.width
    alone = round(n * setting.isolated)
    counts = torch.tensor([int(share * (n - alone)) for share in SHARES])
    counts[0] += n - alone - counts.sum()
    clusters = len(SHARES) + alone
    in_clusters = torch.arange(len(SHARES)).repeat_interleave(counts)
    label = torch.cat([in_clusters, torch.arange(len(SHARES), clusters)])  # (N,)
    centres = normalize(gaussian(trials, clusters, width), dim=-1)
    z = normalize(centres[:, label] + setting.spread * gaussian(trials, n, width) / width**0.5, dim=-1)
    common = normalize(gaussian(trials, 1, width), dim=-1)
    x = setting.common**0.5 * common + (1 - setting.common) ** 0.5 * z
    order = torch.rand(trials, n, generator=generator).argsort(dim=-1)
    return x.gather(1, order[..., None].expand_as(x)), label.expand(trials, n).gather(1, order)


def offered(metric: Tensor) -> dict[str, Tensor]:
    """What can be measured on tokens ``(B, N, C)`` whose clusters nobody knows, ``(B,)`` each.

    ``cosine`` is the mean cosine of pairs. ``tightness`` is what is left of clusters when the direction that all tokens
    share is taken away, see `layer_measures.tightness`.
    """
    metric = metric.double()
    return {"cosine": mean_cosine(metric), "tightness": tightness(metric)}


def outcomes(plan: pc.MergePlan, metric: Tensor, label: Tensor) -> dict[str, Tensor]:
    """What a plan did to tokens ``(B, N, C)`` of clusters ``(B, N)``: three outcomes ``(B,)``.

    ``alone``: the share of isolated tokens that no other joined. ``wrong``: the share of removed tokens that joined a
    token of another cluster. ``loss``: 1 - cosine of un-merged tokens to what they were, mean over tokens.
    """
    size = plan.sizes.gather(1, plan.assignment)
    isolated = label >= len(SHARES)
    root = plan.anchor.gather(1, plan.assignment)
    removed = label.shape[1] - plan.num_tokens
    return {
        "alone": ((size == 1) & isolated).sum(dim=1) / isolated.sum(dim=1).clamp_min(1),
        "wrong": (label.gather(1, root) != label).sum(dim=1) / max(removed, 1),
        "loss": 1 - cosine_similarity(plan.unmerge(plan.merge(metric)[0]), metric, dim=-1).mean(dim=1),
    }


def plan_of(arm: str, metric: Tensor, setting: Setting, seed: int = 0) -> pc.MergePlan:
    """The plan of an arm of `records.cells.ARMS` on tokens ``(B, N, C)``; its metric may be ``keys-centred``."""
    about = ARMS[arm]
    options = dict(about.options)
    if options.pop("metric", "keys") == "keys-centred":
        metric = metric - metric.mean(dim=1, keepdim=True)
    seeded = {"seed": seed} if about.seeds > 1 else {}
    return pc.plan(metric, setting.removed, about.method, margin=setting.margin, **options, **seeded)


def measure(setting: Setting, arms: Sequence[str], trials: int, seed: int = 0) -> dict[str, Tensor]:
    """What the tokens offer, and the outcomes of every arm as ``<outcome>/<arm>``, ``(trials,)`` each."""
    metric, label = draw(setting, trials, seed)
    values = offered(metric)
    for arm in arms:
        for name, value in outcomes(plan_of(arm, metric, setting), metric, label).items():
            values[f"{name}/{arm}"] = value
    return values
