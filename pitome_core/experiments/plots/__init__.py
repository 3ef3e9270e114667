"""Figures that several notebooks share: photographs with heat maps, token maps, and a slider that works in a page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.statistics import paired_difference

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by order of lightness.
COLOURS = {"pitome": "#0072B2", "tome": "#D55E00", "whole": "#000000", "random": "#999999", "accent": "#009E73"}
HEAT = "cividis"  # even in lightness, readable in grey


def use_style() -> None:
    """Set matplotlib up for the book: sharp images, quiet axes, white ground (dark mode shows it on a panel)."""
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    except ImportError:
        pass
    sns.set_theme(style="ticks", palette="colorblind")
    plt.rcParams.update({
        "figure.dpi": 90, "figure.facecolor": "white", "savefig.facecolor": "white", "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left",
        "axes.grid": False, "legend.frameon": False, "figure.constrained_layout.use": True,
    })


def picture(ax: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a `(H, W, 3)` uint8 image without axes."""
    ax.imshow(image)
    ax.set_title(title)
    ax.set_axis_off()


def _cells(mark: np.ndarray, height: int, width: int) -> list[list[tuple[float, float]]]:
    """Line segments between neighbouring patches whose marks differ; `mark (rows, columns)`."""
    rows, columns = mark.shape
    dy, dx = height / rows, width / columns
    segments = []
    for r, c in zip(*np.nonzero(mark[:, 1:] != mark[:, :-1]), strict=True):
        x = (c + 1) * dx - 0.5
        segments.append([(x, r * dy - 0.5), (x, (r + 1) * dy - 0.5)])
    for r, c in zip(*np.nonzero(mark[1:] != mark[:-1]), strict=True):
        y = (r + 1) * dy - 0.5
        segments.append([(c * dx - 0.5, y), ((c + 1) * dx - 0.5, y)])
    return segments


def heat_map(
    ax: Axes,
    image: np.ndarray,
    values: np.ndarray,
    title: str = "",
    outline: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    opacity: float = 0.72,
):
    """Values per patch `(rows, columns)` over a greyed photograph; `outline` (bool) draws a border round patches."""
    height, width = image.shape[:2]
    ax.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    low, high = (values.min(), values.max()) if limits is None else limits
    box = (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = ax.imshow(values, cmap=HEAT, vmin=low, vmax=high, alpha=opacity, extent=box, interpolation="nearest")
    if outline is not None:
        ax.add_collection(LineCollection(_cells(outline, height, width), colors="white", linewidths=1.4))
    ax.set_title(title)
    ax.set_axis_off()
    return shown


def token_map(ax: Axes, image: np.ndarray, assignment: np.ndarray, title: str = "") -> None:
    """Colour every patch with the mean colour of the token it ended in; lines where neighbours ended in others.

    `assignment (rows, columns)` holds the token of each patch, -1 = dropped (drawn hatched grey).
    """
    height, width = image.shape[:2]
    rows, columns = assignment.shape
    patches = image[: height // rows * rows, : width // columns * columns].astype(float)
    patches = patches.reshape(rows, height // rows, columns, width // columns, 3).mean(axis=(1, 3))
    flat, colour = assignment.reshape(-1), patches.reshape(-1, 3)
    shown = np.full_like(colour, 128.0)
    for token in np.unique(flat[flat >= 0]):
        shown[flat == token] = colour[flat == token].mean(axis=0)
    ax.imshow(shown.reshape(rows, columns, 3).astype(np.uint8), extent=(-0.5, width - 0.5, height - 0.5, -0.5),
              interpolation="nearest")
    ax.add_collection(LineCollection(_cells(assignment, height, width), colors="white", linewidths=0.7))
    for r, c in zip(*np.nonzero(assignment < 0), strict=True):
        y, x = (r + 0.5) * height / rows - 0.5, (c + 0.5) * width / columns - 0.5
        ax.plot(x, y, marker="x", color="white", markersize=3, markeredgewidth=0.8)
    ax.set_title(title)
    ax.set_axis_off()


class SliderFigure:
    """A figure with sliders over states that were computed beforehand; plain JavaScript, no network.

    Displays as HTML where HTML runs, as a PNG where it does not, and as a line of text elsewhere. Sliders are the
    browser's own, so arrow keys move them and their values are announced. A subclass gives the drawing (`_drawing`),
    the data and the script that brings it up to date (`_script`; it sees `box`, `data` and `at`, the places of the
    sliders) and the still (`_still`, for the places where the sliders start).

    `sliders`: for each the label (HTML), the values as they are shown, and where it starts.
    """

    width = "26rem"

    def __init__(self, name: str, sliders: Sequence[tuple[str, Sequence[str], int]]):
        self.name, self.sliders = name, [(label, list(values), start) for label, values, start in sliders]

    def _drawing(self) -> str:
        raise NotImplementedError

    def _script(self) -> tuple[dict, str]:
        raise NotImplementedError

    def _still(self):
        raise NotImplementedError

    def _text(self) -> str:
        return f"{type(self).__name__}({' x '.join(str(len(values)) for _, values, _ in self.sliders)} states)"

    def _png(self) -> str:
        figure, buffer = self._still(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return base64.b64encode(buffer.getvalue()).decode()

    def _html(self) -> str:
        box, (data, script) = self.name, self._script()
        controls = "".join(
            f"""<label for="{box}-input{i}">{label} = <output>{values[start]}</output></label>
<input id="{box}-input{i}" type="range" min="0" max="{len(values) - 1}" value="{start}" style="width:100%">"""
            for i, (label, values, start) in enumerate(self.sliders)
        )
        values = json.dumps([values for _, values, _ in self.sliders])
        return f"""<div id="{box}" class="slider-figure" style="max-width:{self.width};margin:0 auto">
{controls}
{self._drawing()}</div>
<script>(function () {{
  const box = document.getElementById("{box}"), data = {json.dumps(data, separators=(",", ":"))};
  const values = {values}, inputs = [...box.querySelectorAll("input")], outputs = box.querySelectorAll("label output");
  function draw() {{
    const at = inputs.map(function (input) {{ return +input.value; }});
    at.forEach(function (step, i) {{
      outputs[i].textContent = values[i][step];
      inputs[i].setAttribute("aria-valuetext", values[i][step]);
    }});
    {script}
  }}
  inputs.forEach(function (input) {{ input.addEventListener("input", draw); }});
  draw();
}})();</script>"""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "image/png": self._png(), "text/plain": self._text()}


class MarginSlider(SliderFigure):
    """Energies over a photograph with a slider for the margin.

    `energies (steps, rows, columns)`, one map per margin in `margins`; the `mergeable` patches of highest energy are
    outlined in each.
    """

    def __init__(
        self, image: np.ndarray, energies: np.ndarray, margins: Sequence[float], mergeable: int, start: int, name: str
    ):
        super().__init__(name, [("margin <i>m</i>", [f"{m:.2f}" for m in margins], start)])
        self.image, self.energies = image, np.asarray(energies, dtype=float)
        self.mergeable, self.start = mergeable, start

    def _mergeable(self, step: int) -> np.ndarray:
        flat = self.energies[step].reshape(-1)
        chosen = np.zeros(flat.size, dtype=bool)
        chosen[np.argsort(-flat, kind="stable")[: self.mergeable]] = True
        return chosen.reshape(self.energies.shape[1:])

    def _text(self) -> str:
        return f"MarginSlider({len(self.energies)} margins, {self.mergeable} mergeable patches)"

    def _still(self):
        figure, ax = plt.subplots(figsize=(4, 4.2))
        heat_map(ax, self.image, self.energies[self.start], f"margin {self.sliders[0][1][self.start]}",
                 outline=self._mergeable(self.start))
        return figure

    def _drawing(self) -> str:
        height, width = self.image.shape[:2]
        rows, columns = self.energies.shape[1:]
        dy, dx = height / rows, width / columns
        grey = np.repeat(self.image.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
        photo = io.BytesIO()
        plt.imsave(photo, grey, format="png")
        photo = base64.b64encode(photo.getvalue()).decode()
        cells = "".join(
            f'<rect x="{c * dx:g}" y="{r * dy:g}" width="{dx:g}" height="{dy:g}"/>'
            for r in range(rows)
            for c in range(columns)
        )
        return f"""<div>energies <span></span> (dark to bright)</div>
<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="Energy of each patch over the photograph; \
the outlined patches may merge"><image href="data:image/png;base64,{photo}" width="{width}" height="{height}"/>
<g fill-opacity="0.72">{cells}</g></svg>"""

    def _script(self) -> tuple[dict, str]:
        steps = len(self.energies)
        low = self.energies.min(axis=(1, 2), keepdims=True)
        span = np.maximum(np.ptp(self.energies, axis=(1, 2), keepdims=True), 1e-12)
        level = np.rint((self.energies - low) / span * 63).astype(int).reshape(steps, -1)
        data = {
            "palette": ["#" + "".join(f"{int(255 * v):02x}" for v in colormaps[HEAT](i / 63)[:3]) for i in range(64)],
            "level": level.tolist(),
            "on": [np.flatnonzero(self._mergeable(s)).tolist() for s in range(steps)],
            "range": [f"{e.min():.2f} to {e.max():.2f}" for e in self.energies],
        }
        return data, """const step = at[0], on = new Set(data.on[step]);
    box.querySelectorAll("rect").forEach(function (rect, i) {
      rect.setAttribute("fill", data.palette[data.level[step][i]]);
      rect.setAttribute("stroke", on.has(i) ? "#ffffff" : "none");
      rect.setAttribute("stroke-width", on.has(i) ? "1.2" : "0");
    });
    box.querySelector("span").textContent = data.range[step];"""


class SpectrumSliders(SliderFigure):
    """Spectra before and after two merges, and who may merge, with two sliders.

    `states[i][j]` belongs to value i of the first and j of the second slider: a dict with `whole`, `pitome` and `tome`
    (eigenvalues, ascending, without the first), `distance` (of PiToMe and ToMe), `wrong` (their merges across clusters)
    and `ranks` (cluster of each of the 2k tokens of highest energy, in order).
    """

    width = "34rem"
    CLUSTERS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7")
    WIDE, HIGH, LEFT, TOP, BOTTOM = 520, 330, 44, 12, 250  # of the drawing; the lower edge of the plot

    def __init__(self, states: Sequence[Sequence[dict]], sliders: Sequence, name: str):
        super().__init__(name, sliders)
        self.states = states
        self.top = max(max(state["whole"]) for row in states for state in row)

    def _y(self, value: float) -> float:
        return self.BOTTOM - (value - 1) / (self.top - 1) * (self.BOTTOM - self.TOP - 8)

    def _x(self, rank: int, of: int) -> float:
        return self.LEFT + 12 + rank * (self.WIDE - self.LEFT - 24) / max(of - 1, 1)

    def _drawing(self) -> str:
        first = self.states[0][0]
        n, ranks = len(first["whole"]), len(first["ranks"])
        axis = f'x1="{self.LEFT}" y1="{self.BOTTOM}" x2="{self.WIDE}" y2="{self.BOTTOM}"'
        parts = [f'<line {axis} stroke="currentColor"/>']
        for value in np.arange(1, self.top + 1e-9, 0.1):
            parts.append(f'<text x="{self.LEFT - 6}" y="{self._y(value) + 4:.0f}" text-anchor="end">{value:.1f}</text>')
        for i in range(n):
            x = self._x(i, n)
            parts += [
                f'<line class="whole" x1="{x - 7:.1f}" x2="{x + 7:.1f}" stroke="currentColor" stroke-width="2"/>',
                f'<circle class="pitome" cx="{x - 3:.1f}" r="3.6" fill="{COLOURS["pitome"]}"/>',
                f'<path class="tome" fill="{COLOURS["tome"]}" d="M0 -4.5L4.5 0L0 4.5L-4.5 0Z" data-x="{x + 3:.1f}"/>',
            ]
        side = (self.WIDE - self.LEFT) / ranks
        for i in range(ranks):
            x = self.LEFT + i * side
            parts.append(f'<rect x="{x + 1:.1f}" y="{self.HIGH - 44}" width="{side - 2:.1f}" height="22"/>')
            parts.append(f'<text x="{x + side / 2:.1f}" y="{self.HIGH - 8}" text-anchor="middle">{"AB"[i % 2]}</text>')
        words = f"the {ranks} tokens of highest energy; colours: clusters"
        parts.append(f'<text x="{self.LEFT}" y="{self.HIGH - 52}">{words}</text>')
        label = "Eigenvalues before merging and after it with PiToMe and ToMe; below, clusters of the mergeable tokens"
        return f"""<div>PiToMe (dots): SD <span></span>. ToMe (diamonds): SD <span></span>. Bars: before merging.</div>
<svg viewBox="0 0 {self.WIDE} {self.HIGH}" width="100%" role="img" aria-label="{label}" font-size="13" \
fill="currentColor">{"".join(parts)}</svg>"""

    def _script(self) -> tuple[dict, str]:
        def place(values):
            return [round(self._y(v), 1) for v in values]

        def said(state, i):
            return f"{state['distance'][i]:.3f}, {state['wrong'][i]} wrong merge{'' if state['wrong'][i] == 1 else 's'}"

        data = {
            "y": [[[place(s[name]) for name in ("whole", "pitome", "tome")] for s in row] for row in self.states],
            "ranks": [[list(map(int, s["ranks"])) for s in row] for row in self.states],
            "said": [[[said(s, 0), said(s, 1)] for s in row] for row in self.states],
            "colours": self.CLUSTERS,
        }
        return data, """const [y, ranks, said] = [data.y, data.ranks, data.said].map(function (all) {
      return all[at[0]][at[1]];
    });
    box.querySelectorAll(".whole").forEach(function (line, i) {
      line.setAttribute("y1", y[0][i]); line.setAttribute("y2", y[0][i]);
    });
    box.querySelectorAll(".pitome").forEach(function (dot, i) { dot.setAttribute("cy", y[1][i]); });
    box.querySelectorAll(".tome").forEach(function (dot, i) {
      dot.setAttribute("transform", "translate(" + dot.dataset.x + " " + y[2][i] + ")");
    });
    box.querySelectorAll("rect").forEach(function (rect, i) { rect.setAttribute("fill", data.colours[ranks[i]]); });
    box.querySelectorAll("span").forEach(function (span, i) { span.textContent = said[i]; });"""

    def _still(self):
        at = [start for _, _, start in self.sliders]
        state = self.states[at[0]][at[1]]
        figure, (ax, strip) = plt.subplots(2, 1, figsize=(6, 3.9), height_ratios=[6, 1])
        ranks = np.arange(2, len(state["whole"]) + 2)
        ax.plot(ranks, state["whole"], "_", color="black", markersize=12, label="before")
        for shift, name, marker, label in ((-0.15, "pitome", "o", "PiToMe"), (0.15, "tome", "D", "ToMe")):
            found = f"{label}, SD {state['distance'][name == 'tome']:.3f}"
            ax.plot(ranks + shift, state[name], marker, color=COLOURS[name], markersize=4.5, label=found)
        words = [f"{re.sub('<[^>]+>', '', label)} {values[start]}" for label, values, start in self.sliders]
        ax.set(ylabel="eigenvalue", xlabel="rank", title=", ".join(words))
        ax.legend(fontsize=8)
        for i, cluster in enumerate(state["ranks"]):
            strip.add_patch(plt.Rectangle((i, 0), 0.92, 1, color=self.CLUSTERS[int(cluster)]))
            strip.text(i + 0.46, 0.5, "AB"[i % 2], ha="center", va="center", fontsize=8)
        strip.set(xlim=(0, len(state["ranks"])), ylim=(0, 1), title="the tokens of highest energy, by cluster")
        strip.set_axis_off()
        return figure


# How an arm of the grid looks, everywhere: colour, line, marker. PiToMe blue, ToMe vermilion, the rest quieter.
ARMS = {
    "pitome": ("#0072B2", "-", "o"),
    "pitome-released-deit": ("#0072B2", ":", "v"),
    "pitome-released-mae": ("#0072B2", "--", "^"),
    "pitome-released-bert": ("#0072B2", "--", "v"),
    "pitome-released-llava": ("#0072B2", ":", "^"),
    "pitome-hidden": ("#56B4E9", "-", "o"),
    "energy-sorted": ("#009E73", "-", "s"),
    "energy-sorted-hidden": ("#009E73", ":", "s"),
    "tome": ("#D55E00", "-", "D"),
    "tome-hidden": ("#D55E00", ":", "D"),
    "tofu": ("#CC79A7", "-", "P"),
    "tofu-merge": ("#CC79A7", ":", "X"),
    "crossget": ("#CC79A7", "--", "X"),
    "mctf": ("#CC79A7", ":", "p"),
    "atc": ("#000000", ":", "d"),
    "diffrate": ("#E69F00", "-", "h"),
    "dct": ("#E69F00", "--", "*"),
    "evit": ("#8C6D31", "-", "<"),
    "topk-attention": ("#8C6D31", ":", ">"),
    "random-merge": ("#999999", "-", "x"),
    "random-prune": ("#999999", ":", "+"),
    "lower-resolution": ("#444444", (0, (5, 1)), "8"),
    "grid-pool": ("#444444", "-", "s"),
}


def against_cost(
    ax: Axes,
    record,
    outcome: str | Callable[[str], np.ndarray],
    arms: Sequence[str],
    bands: Sequence[str] = ("pitome", "tome"),
    reference: str = "whole",
    cost: str = "share",
) -> None:
    """Outcome of a `results.Record` minus that of the `reference` cell, against the share of its multiply-accumulates.

    One line per arm, over its keep ratios (or resolutions); a band for the arms in `bands`: the 95 % interval of the
    difference, paired by item. Cells with a switch, of other layers or retrained are left out (`Cell.is_plain`).
    ``outcome`` is a name, or a function that gives one number per item of a cell, by its key. ``cost`` is what cells
    call the budget; axes' label and limits fit the share alone.
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
            found = [paired_difference(values(key), base, record.clusters) for key in keys]
            low, high = [d.low for d in found], [d.high for d in found]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.8, zorder=0)
    whole = record.cells[reference]
    ax.plot([1 if cost == "share" else whole[cost]], [0], "o", color="black", markersize=5, label=whole["label"])
    ax.set_xlabel("multiply-accumulates, share of the whole model's")
    ax.set_xlim(0.2, 1.05)


def forest(ax: Axes, rows: Sequence[tuple[str, object]], colours: Sequence[str] | None = None) -> None:
    """Differences with their intervals, one per line: `rows` of (label, `statistics.Difference`), the first on top."""
    for y, (_, found) in enumerate(rows):
        colour = COLOURS["pitome"] if colours is None else colours[y]
        ax.plot([found.low, found.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(found.mean, y, "o", color=colour, markersize=4.5)
    ax.axvline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels([label for label, _ in rows])
