"""Recorded outcomes as figures: curves over the cost, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from pitome_core.experiments.records.cells import LABELS, Cell
from pitome_core.experiments.records.statistics import Difference, paired_difference

from .style import ARMS, COLOURS, SIDES


def against_cost(
    ax: Axes,
    record,
    outcome: str | Callable[[str], np.ndarray],
    arms: Sequence[str],
    bands: Sequence[str] = ("pitome", "tome"),
    reference: str = "whole",
    cost: str = "share",
) -> None:
    """Draw the difference of an outcome to the `reference` cell over the multiply-accumulates, one line per arm.

    Each point of a line is one keep ratio (or resolution) of the arm in `record`, a `results.Record`. The arms in
    `bands` also get a band: the 95 % interval of the difference, paired by item. Cells with a switch, of other
    layers or retrained are left out (`Cell.is_plain`).

    ``outcome`` is the name of an outcome, or a function from a cell's key to one number per item. ``cost`` is the field
    of a cell that holds its cost. The label and the limits of the horizontal axis are those of the default, the share
    of the whole model's multiply-accumulates; set them anew for another cost.
    """
    values = outcome if callable(outcome) else partial(record.per_item, name=outcome)
    base = values(reference)
    for arm in arms:
        rows = []
        cells = [cell for cell in map(Cell.of, record.cells.values()) if cell.arm == arm and cell.is_plain]
        for key in record.groups(cells):
            cell = record.about(key)
            rows.append((cell[cost], (values(key) - base).mean(), key))
        if not rows:
            continue
        x, mean, keys = zip(*sorted(rows), strict=True)
        colour, line, marker = ARMS[arm]
        look = {"linestyle": line, "marker": marker, "color": colour, "markersize": 4.5, "linewidth": 1.4}
        ax.plot(x, mean, label=cell["label"], **look)
        if arm in bands:
            differences = [paired_difference(values(key), base, record.clusters) for key in keys]
            low, high = [d.low for d in differences], [d.high for d in differences]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.8, zorder=0)
    whole = record.cells[reference]
    ax.plot([1 if cost == "share" else whole[cost]], [0], "o", color="black", markersize=5, label=whole["label"])
    ax.set_xlabel("multiply-accumulates, share of the whole model's")
    ax.set_xlim(0.2, 1.05)


def forest(ax: Axes, rows: Sequence[tuple[str, object]], colours: Sequence[str] | None = None) -> None:
    """Draw differences with their intervals, one per line.

    `rows` are pairs of a label and a `statistics.Difference`; the first is at the top. `colours` has one colour per
    row.
    """
    for y, (_, difference) in enumerate(rows):
        colour = COLOURS["pitome"] if colours is None else colours[y]
        ax.plot([difference.low, difference.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(difference.mean, y, "o", color=colour, markersize=4.5)
    ax.axvline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels([label for label, _ in rows])


def names_above(ax: Axes, names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Write the names of the rows of a `forest` above their lines, not beside them: such a figure fits on a phone.

    Names may reach into the panel to the right, if its rows are the same and have names or notes too. `notes` stand
    above the lines at the right end of `ax`. Every second row is grey, so that a name is seen to belong to its line.
    """
    count = max(len(names), len(notes))
    ax.set_zorder(2 if len(names) else 1)
    ax.patch.set_visible(False)
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.spines["left"].set_visible(False)
    for y in range(0, count, 2):
        ax.axhspan(y - 0.72, y + 0.28, color="0.94", linewidth=0, zorder=-1)
    for words, place, side in ((names, 0.01, "left"), (notes, 1, "right")):
        for y, said in enumerate(words):
            ax.text(place, y - 0.43, said, transform=ax.get_yaxis_transform(), ha=side, va="center", fontsize=9,
                    in_layout=False)
    ax.set_ylim(count - 0.65, -0.8)


def beside(
    ax: Axes, record, keys: Sequence[str], difference: Callable[[str, str], Difference | None], rival: str = "tome"
) -> dict[str, Difference | None]:
    """Draw cells minus their counterparts (`Record.rival_of`) with intervals, one per line; return what was drawn.

    A line is named after the arm, and after the strength too if there are several. A counterpart has the same
    attention, metric, place and tokens. Where the record lacks it, or the cell itself, the line says "not run", or "no
    counterpart" where no arm is one, and the value is None. Blue lies above zero, vermilion below, grey contains it;
    small ticks beside a grey interval are the sizes that would have been detected. ``difference`` takes the two keys,
    and returns None where a cell lacks the outcome.
    """
    there = record.groups()
    others = {key: record.rival_of(key, rival) if key in there else None for key in keys}
    lone = [key for key in keys if key in there and not record.has_rival(key, rival)]
    said = {key: "no counterpart" if key in lone else "not run" for key in keys}
    found = {key: None if other is None else difference(key, other) for key, other in others.items()}
    for y, (key, one) in enumerate(found.items()):
        if one is None:
            ax.text(0, y, said[key], fontsize=8, color="0.45", ha="center", va="center", backgroundcolor="white")
            continue
        ax.plot([one.low, one.high], [y, y], color=SIDES[one.side], linewidth=2, solid_capstyle="butt")
        ax.plot(one.mean, y, "o", color=SIDES[one.side], markersize=4.5)
        if one.side == 0:
            ax.plot([-one.detectable, one.detectable], [y, y], "|", color="0.6", markersize=5)
    ax.axvline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5))
    named = {key: key.partition("@")[::2] for key in found}  # arm and strength
    several = len({strength for _, strength in named.values()}) > 1
    ax.set_yticklabels([LABELS[arm] + several * f", {strength}" for arm, strength in named.values()])
    return found
