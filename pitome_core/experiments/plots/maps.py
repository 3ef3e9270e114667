"""Photographs, values per patch and tokens, drawn over one another."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pitome_core.drawing import token_colours

from .style import HEAT


def picture(ax: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a `(H, W, 3)` uint8 image without axes."""
    ax.imshow(image)
    ax.set_title(title)
    ax.set_axis_off()


def heat_map(
    ax: Axes,
    image: np.ndarray,
    values: np.ndarray,
    title: str = "",
    outline: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    opacity: float = 0.72,
):
    """Draw one value per patch over a photograph in grey, and return the coloured image (for a colour bar).

    `image (H, W, 3)` uint8, `values (rows, columns)`. `outline (rows, columns)` bool draws a border round the patches
    that are True. `limits` are the values at the two ends of the colour scale, by default the smallest and the largest
    value.
    """
    height, width = image.shape[:2]
    ax.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    low, high = (values.min(), values.max()) if limits is None else limits
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    drawn = ax.imshow(values, cmap=HEAT, vmin=low, vmax=high, alpha=opacity, extent=extent, interpolation="nearest")
    if outline is not None:
        ax.add_collection(LineCollection(_borders(outline, height, width), colors="white", linewidths=1.4))
    ax.set_title(title)
    ax.set_axis_off()
    return drawn


def token_map(ax: Axes, image: np.ndarray, assignment: np.ndarray, title: str = "") -> None:
    """Colour every patch with the mean colour of the token that it merged into.

    `image (H, W, 3)` uint8. `assignment (rows, columns)` holds the token of each patch, or -1 for a dropped patch,
    which is grey with a cross. White lines separate neighbouring patches of different tokens.
    """
    height, width = image.shape[:2]
    rows, columns = assignment.shape
    patches = image[: height // rows * rows, : width // columns * columns].astype(float)
    patches = patches.reshape(rows, height // rows, columns, width // columns, 3).mean((1, 3))  # (rows, columns, 3)
    colours = token_colours(patches, assignment).astype(np.uint8)
    ax.imshow(colours, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
    ax.add_collection(LineCollection(_borders(assignment, height, width), colors="white", linewidths=0.7))
    for r, c in zip(*np.nonzero(assignment < 0), strict=True):
        y, x = (r + 0.5) * height / rows - 0.5, (c + 0.5) * width / columns - 0.5
        ax.plot(x, y, marker="x", color="white", markersize=3, markeredgewidth=0.8)
    ax.set_title(title)
    ax.set_axis_off()


def _borders(marks: np.ndarray, height: int, width: int) -> list[list[tuple[float, float]]]:
    """Line segments, in pixels, between neighbouring patches with different `marks (rows, columns)`."""
    rows, columns = marks.shape
    dy, dx = height / rows, width / columns
    segments = []
    for r, c in zip(*np.nonzero(marks[:, 1:] != marks[:, :-1]), strict=True):
        x = (c + 1) * dx - 0.5
        segments.append([(x, r * dy - 0.5), (x, (r + 1) * dy - 0.5)])
    for r, c in zip(*np.nonzero(marks[1:] != marks[:-1]), strict=True):
        y = (r + 1) * dy - 0.5
        segments.append([(c * dx - 0.5, y), ((c + 1) * dx - 0.5, y)])
    return segments
