"""One merge of sixteen squares, step by step."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

import pitome_core as pc

from .figure import LiveFigure


def one_merge(colours: Tensor, remove: int, margin: float) -> LiveFigure:
    """One merge of sixteen squares, stepped by the reader: their colours `(16, 3)` from 0 to 1, compared by hue.

    A key is a colour measured from middle grey. `remove` tokens go; PiToMe has the given margin.
    """
    keys = colours.double() - 0.5
    data = {"colours": colours.tolist(), "keys": keys.tolist(), "remove": remove, "margin": margin}

    def still() -> Figure:
        plan = pc.plan(keys[None], remove, margin=margin)
        figure, axes = plt.subplots(1, 2, figsize=(6.2, 3))
        merged = plan.unmerge(plan.merge(colours[None])[0])[0]
        titles = ("sixteen tokens", f"{plan.num_tokens} tokens left, in their colours")
        for ax, shown, title in zip(axes, (colours, merged), titles, strict=True):
            ax.imshow(shown.view(4, 4, 3).clamp(0, 1).numpy())
            ax.set_title(title)
            ax.set_axis_off()
        return figure

    label = "One merge of sixteen coloured squares, step by step, by PiToMe or ToMe"
    return LiveFigure("one-merge", data, label, still)
