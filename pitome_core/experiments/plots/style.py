"""The look of all figures: colours, fonts, and how each arm of the grid is drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

# The palette of Okabe and Ito. Colour-blind readers can tell its colours apart, and in grey they differ in lightness.
COLOURS = {"pitome": "#0072B2", "tome": "#D55E00", "whole": "#000000", "random": "#999999", "accent": "#009E73"}
SIDES = {1: COLOURS["pitome"], -1: COLOURS["tome"], 0: "0.45"}  # of a difference, by `Difference.side`
HEAT = "cividis"  # its lightness grows evenly, so that it can be read in grey

# Colour, line style and marker of every arm of the grid. PiToMe is blue, ToMe is vermilion.
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


def use_style() -> None:
    """Set up matplotlib for the book: sharp images, few lines around the axes, a white ground.

    The ground stays white in dark mode too, because the page shows figures on a light panel there.
    """
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


@contextmanager
def photographs() -> Iterator[None]:
    """Figures that are shown inside are JPEG: as PNG a figure full of photographs weighs three times as much."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("jpeg", dpi=150, pil_kwargs={"quality": 82})
    try:
        yield
    finally:
        set_matplotlib_formats("retina")


def png_text(figure: Figure) -> str:
    """A figure as PNG in base64, for a page or a notebook. It is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
