"""Figures that several notebooks share: photographs with heat maps, token maps, and a slider that works in a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

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


class MarginSlider:
    """Energies over a photograph with a slider for the margin; plain JavaScript, no network, a still image elsewhere.

    `energies (steps, rows, columns)`, one map per margin in `margins`; the `mergeable` patches of highest energy are
    outlined in each. Displays as HTML where HTML runs, as a PNG where it does not, and as a line of text elsewhere.
    """

    def __init__(
        self, image: np.ndarray, energies: np.ndarray, margins: Sequence[float], mergeable: int, start: int, name: str
    ):
        self.image, self.energies, self.margins = image, np.asarray(energies, dtype=float), list(margins)
        self.mergeable, self.start, self.name = mergeable, start, name

    def _mergeable(self, step: int) -> np.ndarray:
        flat = self.energies[step].reshape(-1)
        chosen = np.zeros(flat.size, dtype=bool)
        chosen[np.argsort(-flat, kind="stable")[: self.mergeable]] = True
        return chosen.reshape(self.energies.shape[1:])

    def _png(self) -> str:
        figure, ax = plt.subplots(figsize=(4, 4.2))
        heat_map(ax, self.image, self.energies[self.start], f"margin {self.margins[self.start]:.2f}",
                 outline=self._mergeable(self.start))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return base64.b64encode(buffer.getvalue()).decode()

    def _html(self) -> str:
        height, width = self.image.shape[:2]
        steps, rows, columns = self.energies.shape
        dy, dx = height / rows, width / columns
        low = self.energies.min(axis=(1, 2), keepdims=True)
        span = np.maximum(np.ptp(self.energies, axis=(1, 2), keepdims=True), 1e-12)
        level = np.rint((self.energies - low) / span * 63).astype(int).reshape(steps, -1)
        palette = ["#" + "".join(f"{int(255 * v):02x}" for v in colormaps[HEAT](i / 63)[:3]) for i in range(64)]
        data = {
            "margin": [f"{m:.2f}" for m in self.margins],
            "level": level.tolist(),
            "on": [np.flatnonzero(self._mergeable(s)).tolist() for s in range(steps)],
            "range": [f"{e.min():.2f} to {e.max():.2f}" for e in self.energies],
        }
        grey = np.repeat(self.image.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
        photo = io.BytesIO()
        plt.imsave(photo, grey, format="png")
        photo = base64.b64encode(photo.getvalue()).decode()
        cells = "".join(
            f'<rect x="{c * dx:g}" y="{r * dy:g}" width="{dx:g}" height="{dy:g}"/>'
            for r in range(rows)
            for c in range(columns)
        )
        box = self.name
        return f"""<div id="{box}" class="margin-slider" style="max-width:26rem">
<label for="{box}-input">margin <i>m</i> = <output>{self.margins[self.start]:.2f}</output>,
energies <span></span> (dark to bright)</label>
<input id="{box}-input" type="range" min="0" max="{steps - 1}" value="{self.start}" style="width:100%">
<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="Energy of each patch over the photograph; \
the outlined patches may merge"><image href="data:image/png;base64,{photo}" width="{width}" height="{height}"/>
<g fill-opacity="0.72">{cells}</g></svg></div>
<script>(function () {{
  const box = document.getElementById("{box}"), data = {json.dumps(data, separators=(",", ":"))};
  const palette = {json.dumps(palette)}, rects = box.querySelectorAll("rect"), input = box.querySelector("input");
  function draw() {{
    const step = +input.value, on = new Set(data.on[step]);
    rects.forEach(function (rect, i) {{
      rect.setAttribute("fill", palette[data.level[step][i]]);
      rect.setAttribute("stroke", on.has(i) ? "#ffffff" : "none");
      rect.setAttribute("stroke-width", on.has(i) ? "1.2" : "0");
    }});
    box.querySelector("output").textContent = data.margin[step];
    input.setAttribute("aria-valuetext", data.margin[step]);
    box.querySelector("span").textContent = data.range[step];
  }}
  input.addEventListener("input", draw); draw();
}})();</script>"""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {
            "text/html": self._html(),
            "image/png": self._png(),
            "text/plain": f"MarginSlider({len(self.margins)} margins, {self.mergeable} mergeable patches)",
        }


# How an arm of the grid looks, everywhere: colour, line, marker. PiToMe blue, ToMe vermilion, the rest quieter.
ARMS = {
    "pitome": ("#0072B2", "-", "o"),
    "pitome-released-deit": ("#0072B2", ":", "v"),
    "pitome-released-mae": ("#0072B2", "--", "^"),
    "pitome-released-bert": ("#0072B2", "--", "v"),
    "pitome-hidden": ("#56B4E9", "-", "o"),
    "energy-sorted": ("#009E73", "-", "s"),
    "energy-sorted-hidden": ("#009E73", ":", "s"),
    "tome": ("#D55E00", "-", "D"),
    "tome-hidden": ("#D55E00", ":", "D"),
    "tofu": ("#CC79A7", "-", "P"),
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
    outcome: str,
    arms: Sequence[str],
    bands: Sequence[str] = ("pitome", "tome"),
    reference: str = "whole",
) -> None:
    """Outcome of a `results.Record` minus that of the `reference` cell, against the share of its multiply-accumulates.

    One line per arm, over its keep ratios (or resolutions); a band for the arms in `bands`: the 95 % interval of the
    difference, paired by item. Cells with proportional attention switched off are left out.
    """
    for arm in arms:
        rows = []
        for key in dict.fromkeys(key.split("/seed")[0] for key, cell in record.cells.items() if cell["arm"] == arm):
            cell = record.cells.get(key) or record.cells[f"{key}/seed0"]
            if "/off" not in key:
                values = record.mean_over_seeds(key, outcome) - record.outcome(reference, outcome)
                rows.append((cell["share"], values.mean(), key))
        if not rows:
            continue
        x, mean, keys = zip(*sorted(rows), strict=True)
        colour, line, marker = ARMS[arm]
        look = {"linestyle": line, "marker": marker, "color": colour, "markersize": 4.5, "linewidth": 1.4}
        ax.plot(x, mean, label=cell["label"], **look)
        if arm in bands:
            found = [record.difference(key, reference, outcome) for key in keys]
            low, high = [d.low for d in found], [d.high for d in found]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.8, zorder=0)
    ax.plot([1], [0], "o", color="black", markersize=5, label=record.cells[reference]["label"])
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
