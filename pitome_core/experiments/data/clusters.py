"""Tokens in clusters whose truth is known: what the chapters on the spectral theory experiment with."""

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
    """``trials`` draws of clustered tokens: ``(trials, N, width)`` float64, and the cluster of each, ``(trials, N)``.

    Tokens are their cluster's centre plus Gaussian noise of length about ``noise``. Centres are orthonormal, or the
    rows of ``centres``. ``order``: ``block`` (cluster after cluster), ``shuffled`` (anew in each trial),
    ``adversarial`` (the first cluster on even places only, the others on what is left, in blocks). Noise does not
    depend on ``order``. Raises ``ValueError`` for an unknown order, or if the first cluster has no room on even places.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    draw = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
    n = len(label)
    centres = torch.eye(width, dtype=torch.float64)[: len(sizes)] if centres is None else centres.double()
    noises = torch.randn(trials, n, centres.shape[1], generator=draw, dtype=torch.float64) / centres.shape[1] ** 0.5
    tokens, labels = centres[label] + noise * noises, label.expand(trials, n)
    if order == "block":
        return tokens, labels
    if order == "adversarial":
        if 2 * sizes[0] > n + 1:
            raise ValueError(f"{sizes[0]} of {n} tokens do not fit on even places: the first cluster must be smaller")
        even = list(range(0, 2 * sizes[0], 2))
        rest = [place for place in range(n) if place not in even]
        places = torch.tensor(even + rest).argsort().expand(trials, n)
    else:
        places = torch.rand(trials, n, generator=draw).argsort(dim=-1)
    return tokens.gather(1, places[..., None].expand_as(tokens)), labels.gather(1, places)


def wrong_merges(plan: pc.MergePlan, labels: Tensor) -> Tensor:
    """How many tokens joined an anchor of another cluster: plan for ``(B, N)``, labels ``(B, N)`` -> ``(B,)``."""
    root = plan.anchor.gather(1, plan.assignment)
    return (labels.gather(1, root) != labels).sum(dim=1)
