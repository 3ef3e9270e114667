"""Random tokens in known clusters, for the chapters on the spectral theory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import pitome_core as pc

ORDERS = ("block", "shuffled", "adversarial")


def clusters(
    sizes: Sequence[int],
    noise: float,
    trials: int = 1,
    *,
    order: str = "block",
    width: int = 64,
    centres: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw clustered tokens ``(trials, N, width)`` float64, and the cluster of each token ``(trials, N)`` long.

    Cluster c has ``sizes[c]`` tokens, so that N is the sum of ``sizes``. Every token is the centre of its cluster plus
    Gaussian noise whose length is about ``noise``. The centres are orthonormal, or the rows of ``centres``.

    ``order`` places the tokens:

    - ``block``: one cluster after the other;
    - ``shuffled``: at random, anew in each trial;
    - ``adversarial``: the first cluster on the first even positions, the other clusters in blocks on the rest.

    The noise does not depend on ``order``. Raises ``ValueError`` for an unknown order, and if the first cluster does
    not fit on the even positions.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
    n = len(label)
    centres = torch.eye(width, dtype=torch.float64)[: len(sizes)] if centres is None else centres.double()
    unit_noise = torch.randn(trials, n, centres.shape[1], generator=generator, dtype=torch.float64)
    unit_noise = unit_noise / centres.shape[1] ** 0.5  # of length about 1
    tokens = centres[label] + noise * unit_noise  # (trials, N, width)
    labels = label.expand(trials, n)  # (trials, N)
    if order == "block":
        return tokens, labels
    if order == "adversarial":
        if 2 * sizes[0] > n + 1:
            raise ValueError(f"{sizes[0]} of {n} tokens do not fit on even places: the first cluster must be smaller")
        even = list(range(0, 2 * sizes[0], 2))
        other_places = [place for place in range(n) if place not in even]
        places = torch.tensor(even + other_places).argsort().expand(trials, n)
    else:
        places = torch.rand(trials, n, generator=generator).argsort(dim=-1)
    return tokens.gather(1, places[..., None].expand_as(tokens)), labels.gather(1, places)


def wrong_merges(plan: pc.MergePlan, labels: Tensor) -> Tensor:
    """How many tokens merge into an anchor of another cluster, ``(B,)``; ``labels (B, N)`` are the clusters."""
    root = plan.anchor.gather(1, plan.assignment)
    return (labels.gather(1, root) != labels).sum(dim=1)
