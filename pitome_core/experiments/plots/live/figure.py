"""What interactive figures are made of: the box with its data, and how numbers and pictures are packed."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pitome_core.experiments.plots.style import png_text

SHARP = 336  # side in pixels of a photograph in a page; a model reads 224


@dataclass(frozen=True)
class LiveFigure:
    """One interactive figure: HTML where HTML runs, a PNG and a line of text elsewhere.

    Attributes:
        kind: which script of book/_static/live/ draws it.
        data: what the script gets, as plain data for JSON.
        label: one sentence that says what the figure shows; the alt text of the still picture too.
        still: makes the still picture.
    """

    kind: str
    data: dict[str, Any]
    label: str
    still: Callable[[], Figure]

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        png = png_text(self.still())
        still = f'<img alt="{html.escape(self.label)}" src="data:image/png;base64,{png}">'
        return {
            "text/html": box(self.kind, self.data, self.label, still),
            "image/png": png,
            "text/plain": f"LiveFigure({self.kind}: {self.label})",
        }


def box(kind: str, data: Mapping[str, Any], label: str, still: str) -> str:
    """The HTML of a figure: `still` is HTML too, shown until a script has drawn the figure."""
    packed = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<div class="live" data-live="{kind}" role="group" aria-label="{html.escape(label)}">\n{still}\n'
        f'<script type="application/json">{packed}</script>\n</div>\n'
    )


def packed(values: np.ndarray) -> str:
    """Integers of one byte as base64. ValueError for a number that a byte does not hold."""
    values = np.asarray(values)
    kind = np.int8 if values.size and values.min() < 0 else np.uint8
    if not np.array_equal(values.astype(kind), values):
        raise ValueError(f"the numbers {values.min()} to {values.max()} do not fit into one byte: scale them first")
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def jpeg(image: np.ndarray) -> str:
    """A `(H, W, 3)` uint8 image as a data address of some 15 kB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=78, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def patch_means(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean colour of every patch: `(H, W, 3)` uint8 -> `(rows * columns, 3)` uint8."""
    (height, width), (rows, columns) = image.shape[:2], grid
    blocks = image.reshape(rows, height // rows, columns, width // columns, 3).astype(float)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8).reshape(-1, 3)
