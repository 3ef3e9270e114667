"""A picture as a language model reads it, token by token: in which order, at which positions, what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pitome_core.experiments.plots.maps import token_map

from .figure import LiveFigure, jpeg, packed, patch_means


def reading(
    image: np.ndarray, question: tuple[str, str], orders: Sequence[str], methods: Sequence[Mapping[str, Any]]
) -> LiveFigure:
    """One picture as a language model reads it.

    Args:
        image: `(H, W, 3)` uint8.
        question: a question about it, and the right answer.
        orders: names of the orders in which tokens are read.
        methods: of each a ``label``, the ``assignment`` `(rows, columns)` of patches to tokens, and for each order a
            mapping: ``slots`` and ``positions`` of the tokens as they are read, ``length`` (where the question
            begins), ``said`` (the answer that came), and ``accuracy`` over all questions, as a text.
    """
    grid = list(np.shape(methods[0]["assignment"]))
    data = {
        "grid": grid, "photo": jpeg(image), "means": packed(patch_means(image, tuple(grid)).reshape(-1)),
        "question": question[0], "answer": question[1], "orders": list(orders), "start": 14, "words": 16,
        "methods": [{"label": one["label"], "assignment": packed(np.ravel(one["assignment"])),
                     "orders": [dict(way) for way in one["orders"]]} for one in methods],
    }  # fmt: skip

    def still() -> Figure:
        columns = grid[1]
        figure, axes = plt.subplots(1, len(orders), figsize=(7, 2.7))
        side = image.shape[1] / columns
        assignment = np.asarray(methods[0]["assignment"])
        for ax, name, way in zip(axes, orders, methods[0]["orders"], strict=True):
            token_map(ax, image, assignment)
            middles = [np.argwhere(assignment == slot).mean(0)[::-1] + 0.5 for slot in way["slots"]]
            ax.plot(*(side * np.array(middles)).T, color="white", linewidth=1)
            ax.set_title(f"{name}: {way['accuracy']}", fontsize=10)
        return figure

    label = "The tokens that a merge leaves of a picture, read one by one in three orders, and their positions"
    return LiveFigure("reading", data, label, still)
