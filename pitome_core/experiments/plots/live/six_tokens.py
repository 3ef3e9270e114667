"""Six tokens in the plane to drag, and their spectral distance."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

import pitome_core as pc
from pitome_core.experiments.plots.style import COLOURS

from .figure import LiveFigure


def six_tokens(tokens: Tensor, margin: float) -> LiveFigure:
    """Six tokens in the plane `(6, 2)` to drag, merged into three groups, and the spectral distance."""
    data = {"tokens": tokens.tolist(), "margin": margin}

    def still() -> Figure:
        plan = pc.plan(tokens[None], len(tokens) - 3, margin=margin)
        figure, ax = plt.subplots(figsize=(3.4, 3.4))
        for (x, y), slot in zip(tokens.tolist(), plan.assignment[0].tolist(), strict=True):
            ax.plot([0, x], [0, y], "o-", color=[COLOURS[name] for name in ("pitome", "tome", "accent")][slot])
        ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        ax.set_title(f"spectral distance {pc.spectral_distance(tokens[None], plan).item():.3f}")
        ax.set_axis_off()
        return figure

    label = "Six tokens in the plane to drag, their weights, their groups, and the spectral distance"
    return LiveFigure("six-tokens", data, label, still)
