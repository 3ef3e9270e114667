"""Tokens in clusters that the reader bends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pitome_core as pc
from pitome_core.experiments.data.clusters import ORDERS, clusters, wrong_merges
from pitome_core.experiments.plots.style import COLOURS

from .figure import LiveFigure


def cluster_figure(
    sizes: Sequence[Sequence[int]],
    cosines: Sequence[float],
    noises: Sequence[float],
    *,
    remove: int,
    margin: float,
    draws: int = 20,
    width: int = 16,
    start: Mapping[str, int] | None = None,
) -> LiveFigure:
    """Tokens in four clusters whose sizes, closeness, noise and order the reader sets: which merges join two clusters.

    Args:
        sizes: values of the slider of cluster sizes; four numbers each, with one sum N for all.
        cosines: values of the slider of the cosine that any two centres have.
        noises: values of the slider of the noise, the length of a token's deviation from its centre.
        remove: how many tokens go.
        margin: PiToMe's margin.
        draws: how many draws of the noise the page has.
        width: channels of a token.
        start: where `order`, `sizes`, `cosine`, `noise` and `draw` begin, as indices; without it shuffled order, the
            middle of the sliders, the first draw.

    The noise is that of `clusters` with seed 0, rounded to two decimals. The script computes everything from it.
    """
    count = sum(sizes[0])
    nowhere = torch.zeros(1, width, dtype=torch.float64)  # one cluster round 0: its tokens are the noise alone
    unit = clusters((count,), 1.0, draws, centres=nowhere)[0].mul(100).round() / 100
    places = torch.rand(draws, count, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    middle = {"order": 1, "sizes": len(sizes) // 2, "cosine": len(cosines) // 2, "noise": len(noises) // 2, "draw": 0}
    data = {
        "sizes": [list(s) for s in sizes], "cosines": list(cosines), "noises": list(noises), "remove": remove,
        "margin": margin, "start": middle | dict(start or {}),
        "draws": [{"unit": u.tolist(), "places": p.tolist()} for u, p in zip(unit, places, strict=True)],
    }  # fmt: skip

    def still() -> Figure:
        at = data["start"]
        tokens, labels = clustered(
            data["draws"], sizes[at["sizes"]], cosines[at["cosine"]], noises[at["noise"]], ORDERS[at["order"]]
        )
        figure, ax = plt.subplots(figsize=(5.6, 1.9))
        for y, (name, options) in enumerate((("tome", {}), ("pitome", {"margin": margin}))):
            plan = pc.plan(tokens, remove, name, **options)
            wrong, distance = wrong_merges(plan, labels) > 0, pc.spectral_distance(tokens, plan)
            for of, filled in ((~wrong, COLOURS[name]), (wrong, "none")):
                ax.plot(distance[of], [y] * int(of.sum()), "o", color=COLOURS[name], markerfacecolor=filled)
        ax.set(xscale="log", ylim=(-0.6, 1.6), yticks=[0, 1], xlabel="spectral distance; hollow: a merge was wrong")
        ax.set_yticklabels(["ToMe", "PiToMe"])
        return figure

    label = "Tokens in four clusters: which merges of PiToMe and of ToMe join two clusters, and the spectral distances"
    return LiveFigure("clusters", data, label, still)


def clustered(
    draws: Sequence[Mapping[str, Any]], sizes: Sequence[int], cosine: float, noise: float, order: str
) -> tuple[Tensor, Tensor]:
    """Tokens `(draws, N, C)` and their clusters `(draws, N)` as the script of `cluster_figure` makes them."""
    unit = torch.tensor([of["unit"] for of in draws], dtype=torch.float64)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
    axes = torch.eye(unit.shape[2], dtype=torch.float64)
    centres = cosine**0.5 * axes[len(sizes)] + (1 - cosine) ** 0.5 * axes[: len(sizes)]
    tokens, places = centres[label] + noise * unit, torch.arange(len(label)).expand(unit.shape[:2])
    if order == "shuffled":
        places = torch.tensor([of["places"] for of in draws])
    if order == "adversarial":
        even = torch.arange(0, 2 * sizes[0], 2)
        others = torch.tensor([p for p in range(len(label)) if p not in even])
        places = torch.cat([even, others]).argsort().expand_as(places)
    return tokens.gather(1, places[..., None].expand_as(tokens)), label.expand_as(places).gather(1, places)
