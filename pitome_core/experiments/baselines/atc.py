"""ATC, agglomerative token clustering: an upper bound on the quality of merging, without regard to its cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import dot_products, unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.portable import refuse_exporting

from .common import from_roots

LINKAGES = ("single", "complete", "average")
_FAR = 3.0  # larger than any cosine distance, so that non-finite tokens join last


def plan_atc(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, linkage: str = "average"
) -> MergePlan:
    """Cluster the tokens bottom-up by the distance `1 - cos` until N - k clusters are left.

    In each step the two nearest clusters become one. The distance of two clusters is that of their nearest tokens
    (`linkage="single"`), of their furthest tokens (`"complete"`), or the mean over all pairs (`"average"`). The anchor
    of a cluster is its medoid: the member whose distances to the other members have the least sum, and the first of
    equal ones.

    The items are clustered one after the other on the CPU, in float64. The method shows how much a better matching
    could gain; its time says nothing about the speed of ATC.

    Source: Haurum et al., "Agglomerative Token Clustering", ECCV 2024.

    `remove` = k, the number of tokens that merge into others. Raises ``ImportError`` without scikit-learn.
    """
    refuse_exporting("scikit-learn forms the clusters of every image")
    unit, usable = unit_tokens(metric.cpu().double())
    cos = dot_products(unit, unit)
    distance = (1 - (cos + cos.transpose(-1, -2)) / 2).clamp_min(0)
    distance = distance.masked_fill(~(usable[:, :, None] & usable[:, None, :]), _FAR)
    batch, width = metric.shape[:2]
    lengths = [width] * batch if mask is None else mask.sum(dim=-1).tolist()
    counts = [remove] * batch if isinstance(remove, int) else remove.tolist()
    root = torch.full((batch, width), -1)
    for item, (length, k) in enumerate(zip(lengths, counts, strict=True)):
        root[item, :length] = _medoids(distance[item, :length, :length].fill_diagonal_(0), length - k, linkage)
    return from_roots(root.to(metric.device), remove, mask)


def _medoids(distance: Tensor, clusters: int, linkage: str) -> Tensor:
    """The medoid of every token's cluster: `distance (N, N) -> (N,)`."""
    if clusters == len(distance):
        return torch.arange(clusters)
    try:
        from sklearn.cluster import AgglomerativeClustering
    except ImportError as error:
        raise ImportError("atc needs scikit-learn: pip install 'pitome-core[experiments]'") from error
    model = AgglomerativeClustering(clusters, metric="precomputed", linkage=linkage)
    label = torch.from_numpy(model.fit(distance.numpy()).labels_)
    same = label[:, None] == label
    spread = distance.masked_fill(~same, 0).sum(dim=-1)
    return spread.expand(same.shape).masked_fill(~same, math.inf).min(dim=-1).indices


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs: all cosines. Other operations: two for each pair of tokens to cluster, and two for the medoids."""
    return num_tokens**2 * channels, 4 * num_tokens**2


register_method(
    "atc",
    plan_atc,
    paper="Haurum et al., ECCV 2024",
    summary="agglomerative clustering: an upper bound on merge quality, not on speed",
    limit="all",
    cost=cost,
    choices={"linkage": LINKAGES},
    scaling="time N^2 C and clustering in N^2 log N, one image after the other; memory N^2 in float64",
)
