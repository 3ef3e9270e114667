"""Differences with their intervals, to filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pitome_core.experiments.plots.style import SIDES

from .figure import LiveFigure


def forest_figure(data: Mapping[str, Any], group: str, rival: str) -> LiveFigure:
    """Differences with their intervals, filtered by task, methods and rival; a row that is chosen is said in words.

    `data` is what `quality.figure_data` gives. Bars are in percent of the whole model's result of their task. The
    figure, and its still picture, start with all tasks and the given group and rival.
    """
    data = {**data, "start": {"group": data["groups"].index(group), "rival": list(data["rivals"]).index(rival)}}
    tasks = {task["name"]: task for task in data["tasks"]}

    def still() -> Figure:
        rows = [row for row in data["rows"] if (row["group"], row["rival"]) == (group, rival)]
        figure, ax = plt.subplots(figsize=(7, 0.3 * len(rows) + 0.7))
        for y, row in enumerate(rows):
            low, mean, high = (100 * row[name] / tasks[row["task"]]["whole"] for name in ("low", "mean", "high"))
            colour = SIDES[int(low > 0) - int(high < 0)]
            ax.plot([low, high], [y, y], color=colour, linewidth=2)
            ax.plot(mean, y, "o", color=colour, markersize=4.5)
        ax.axvline(0, color="0.6", linewidth=1, zorder=0)
        ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticklabels([f"{row['task']}: {row['label']}" for row in rows])
        ax.set_xlabel(f"minus {data['rivals'][rival]}, % of the whole model's result")
        return figure

    label = f"Differences between methods and {data['rivals'][rival]} on {len(tasks)} tasks, with 95 % intervals"
    return LiveFigure("forest", data, label, still)
