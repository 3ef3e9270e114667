"""Recorded timings as the notebooks on speed read and draw them: which cells, their names, and bars of their times.

A cell is one setup of the experiment on cost (`cost.setups.Setup`) with what was measured of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pitome_core.experiments.records import results
from pitome_core.experiments.runs import timings

from .live.speed import MODELS, TYPES
from .style import COLOURS

Cell = Mapping[str, Any]

USUAL = {"mode": "eager", "proportional": "preset", "multiple": 1, "every": 1}  # the fields of a cell without options
PARTS = ("counts imply", "free merge, beyond the counts", "merge steps", "the rest (mask of sizes, caches)")


def load(file: str) -> list[dict[str, Any]]:
    """The cells of `results/<file>` that have numbers, each with its run; none where nothing was run."""
    cells = timings.load(results.folder() / file, "cost")
    return [cell for cell in cells.values() if cell.get("variants")]


def pick(cells: Iterable[Cell], **wanted: Any) -> list[Cell]:
    """The cells whose fields have these values."""
    return [cell for cell in cells if all(cell.get(name) == value for name, value in wanted.items())]


def whole_models(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that have a whole model beside the merged ones: all but those of a step alone."""
    return [cell for cell in cells if "whole" in cell["variants"]]


def as_usual(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of models as timm builds them, in eager mode and without options: every layer merges."""
    return [cell for cell in pick(whole_models(cells), **USUAL) if cell["model"] == cell["timm"]]


def name(cell: Cell) -> str:
    """A cell in a few words."""
    model, dtype = MODELS.get(cell["model"], cell["model"]), TYPES[cell["dtype"]]
    return f"{model}, {cell.get('size', '')} px, batch {cell['batch']}, {dtype}"


def brief(cell: Cell) -> str:
    """A cell in one short word that does not wrap, for tables."""
    model = MODELS.get(cell["model"], cell["model"]).removeprefix("ViT-").partition("/")[0]
    return f"{model}/{cell.get('size', '')}, b{cell['batch']}, {TYPES[cell['dtype']]}".replace(" ", "\u00a0")


def parts(cell: Cell, method: str = "pitome") -> np.ndarray:
    """Shares of the whole model's time, in the order of `PARTS`; they add up to the method's time."""
    told, free = cell["variants"][method], cell["variants"]["free"]
    taken, ideal, ceiling = 1 / told["speedup"][1], 1 / told["implied"], 1 / free["speedup"][1]
    inside = told.get("step_share", 0.0) * taken
    return np.array([ideal, ceiling - ideal, inside, taken - ceiling - inside])


def stack(ax: Axes, y: float, values: Iterable[float], tints: Iterable[str], names: Iterable[str]) -> None:
    """A bar of parts, one after the other; what noise makes negative is drawn as none. The first bar names them."""
    left = 0.0
    for value, tint, label in zip(values, tints, names, strict=True):
        ax.barh(y, max(value, 0), left=left, color=tint, label=None if y else label)
        left += max(value, 0)


def finish(figure: Figure, ax: Axes, names: Sequence[str], xlabel: str, ncols: int = 4) -> None:
    """The rows' names, first one on top, and a legend below; nothing to explain where there are no rows."""
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    ax.invert_yaxis()
    if names:
        figure.legend(fontsize=9, loc="outside lower center", ncols=ncols)


def waterfall(cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Where the time of a merged model goes: one bar of `parts` a cell, and a line where the whole model ends."""
    figure, ax = plt.subplots(figsize=(7, 1.4 + 0.32 * len(cells)))
    tints = ("#999999", "#CCBB44", COLOURS["pitome"], COLOURS["accent"])
    for y, cell in enumerate(cells):
        stack(ax, y, parts(cell), tints, PARTS)
    ax.axvline(1, color="black", linewidth=0.8)
    finish(figure, ax, names, "share of the whole model's time", ncols=2)


def three_numbers(cells: Sequence[Cell], names: Sequence[str], *, quartiles: bool) -> None:
    """What the counts imply, what the free merge reaches and what ToMe and PiToMe do, as speed-ups, a row a cell.

    Where there are no cells, the title says how to measure some.
    """
    figure, ax = plt.subplots(figsize=(7, 1.4 + 0.33 * max(len(cells), 1)))
    for y, cell in enumerate(cells):
        variants = cell["variants"]
        ax.barh(y, variants["free"]["speedup"][1], color="0.85", label=None if y else "free merge")
        ax.plot(variants["pitome"]["implied"], y, "o", color="0.3", markerfacecolor="none",
                label=None if y else "counts imply (PiToMe)")  # fmt: skip
        for method, marker, label, shift in (("tome", "s", "ToMe", 0.18), ("pitome", "o", "PiToMe", -0.18)):
            low, middle, high = variants[method]["speedup"]
            label = None if y else label
            if quartiles:
                ax.errorbar(middle, y + shift, xerr=[[middle - low], [high - middle]], fmt=marker, markersize=5,
                            color=COLOURS[method], label=label)  # fmt: skip
            else:
                ax.plot(middle, y, marker, color=COLOURS[method], label=label)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("" if cells else "not run: `make bench` on a CPU, `make gpu` on a machine with CUDA")
    finish(figure, ax, names, "speed-up over the whole model")
