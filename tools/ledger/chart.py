"""The primary differences between PiToMe and ToMe as a small chart in HTML, for the front page."""

from __future__ import annotations

import html
import math
from pathlib import Path

from ledger.evidence import RSUM, ZERO, Comparison, difference, files_of, record_of
from pitome_core.experiments.retrieval import recall

HALF = 100  # half the width of a row's drawing, in its own units
STEP = 5  # percent of the whole model's result: the edge of the drawings is a multiple of it


def primary_chart(primaries: list[Comparison], root: Path) -> str:
    """One row for each task whose primary difference to ToMe is on record: what is asked, the interval, in words.

    Tasks have units of their own. So each difference is drawn in percent of the whole model's result.
    """
    shown = {one: _in_percent(one, root) for one in primaries if one.found and "title" in one.about.get("primary", {})
             and one.second.partition("@")[0] == "tome"}
    edge = STEP * math.ceil(max((abs(value) for values in shown.values() for value in values), default=STEP) / STEP)
    rows = [_row(one, values, edge) for one, values in shown.items()]
    return "\n".join([
        '<table class="primary-chart">',
        "<caption>PiToMe, as the paper writes it, minus ToMe, with attention, metric, place and tokens equal: percent "
        f"of the whole model's result, 95 % interval. The middle line is zero, the edges are {edge} %. Ticks: sizes "
        "that would have been found in four cases of five. Chance is not zero in all tasks: compare no rows.</caption>",
        '<thead><tr><th scope="col">asked</th><th scope="col">worse than ToMe | better</th>'
        '<th scope="col">found</th></tr></thead>',
        "<tbody>", *rows, "</tbody>", "</table>", "",
    ])


def _in_percent(one: Comparison, root: Path) -> tuple[float, float, float, float]:
    """Mean, low, high and detectable size of a difference, in percent of the whole model's result."""
    record = record_of(one.about, root)
    if one.outcome in RSUM:
        whole = recall.rsum(record, "whole", RSUM[one.outcome])[0]
    else:
        whole = difference(files_of(one.about, root), one.outcome, "whole", ZERO, one.about["over"])[0].mean
    mean, low, high, size = (100 * value / whole for value in
                             (one.found.mean, one.found.low, one.found.high, one.found.detectable))
    return mean, low, high, size


def _row(one: Comparison, values: tuple[float, float, float, float], edge: float) -> str:
    mean, low, high, size = values
    at = {name: f"{HALF * value / edge:.1f}" for name, value in (("mean", mean), ("low", low), ("high", high))}
    found = f"{mean:+z.1f} % [{low:+z.1f}, {high:+z.1f}]"
    words = ("no difference found", "better", "worse")[one.found.side]
    ticks = [f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="14"/>'
             for x in (-HALF * size / edge, HALF * size / edge) if one.found.side == 0]
    drawing = (
        f'<svg viewBox="-{HALF} 0 {2 * HALF} 20" role="img" aria-label="{found}">'
        f'<line class="zero" x1="0" x2="0" y1="0" y2="20"/>{"".join(ticks)}'
        f'<line class="interval" x1="{at["low"]}" x2="{at["high"]}" y1="10" y2="10"/>'
        f'<circle cx="{at["mean"]}" cy="10" r="3.5"/></svg>'
    )
    side = ("same", "better", "worse")[one.found.side]
    title = html.escape(one.about["primary"]["title"])
    return f'<tr class="{side}"><th scope="row">{title}</th><td>{drawing}</td><td>{words}<br>{found}</td></tr>'
