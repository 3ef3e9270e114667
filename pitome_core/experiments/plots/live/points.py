"""A figure whose points say what they are."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figure import LiveFigure


def points_figure(
    figure: Figure, points: Sequence[tuple[Sequence[tuple[Axes, float, float]], str, str]], what: str, start: int = 0
) -> LiveFigure:
    """A figure as a picture whose points say in words what they are; ValueError where there are none.

    A point is its places (an axes and the values on its two axes, for every panel that it stands in), its name and the
    rest of the sentence. The picture has to show the points itself: the page adds a ring round the one that is chosen.
    `figure` is closed. `what` says what the figure shows, and is the alt text.
    """
    if not 0 <= start < len(points):
        raise ValueError(f"no point {start} among {len(points)}: pass at least one point, and start at one of them")
    figure.canvas.draw()  # places are known when the layout is
    width, height = figure.get_size_inches() * figure.dpi

    def place(ax: Axes, x: float, y: float) -> list[float]:
        left, bottom = ax.transData.transform((x, y))
        return [round(100 * left / width, 2), round(100 - 100 * bottom / height, 2)]

    data = {"what": what, "start": start, "points": [
        {"places": [place(*one) for one in places], "says": [name, words]} for places, name, words in points
    ]}  # fmt: skip
    plt.close(figure)
    return LiveFigure("points", data, what, lambda: figure)
