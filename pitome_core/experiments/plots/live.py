"""Interactive figures of the book: their data and their still pictures. What draws them is book/_static/live/.

A figure is a box of HTML with a still picture and its data as JSON. In the book a script draws the figure into the box
and takes the picture away; where that script is not loaded (Colab, Jupyter) the picture stays. Page and tests have the
same data: the scripts compute with them what `pitome_core` computes, and the tests compare.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.energy import cosine_graph
from pitome_core.experiments.data.pictures import preprocess, to_display

from .maps import heat_map
from .style import COLOURS, HEAT, SIDES, png_text

# Arms of the token map: name, colour in live.css, method and options of `pc.apply`.
ARMS = (
    ("PiToMe", "pitome", "pitome", {}),
    ("ToMe", "tome", "tome", {}),
    ("energy-sorted", "accent", "pitome", {"protection": False, "edges": "best"}),
)
KEEP = (0.95, 0.9, 0.85, 0.8)
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


def token_maps(model: nn.Module, photographs: Mapping[str, np.ndarray], start: Mapping[str, int]) -> dict[str, Any]:
    """Data of the token map: what merges in every layer, by photograph, method and keep ratio, and what it costs.

    The plans are computed in float64, because in float32 two nearly equal cosines can change places on another
    processor. `model` is a ViT of timm for 224 pixels; the call changes its weights to float64. `photographs` are
    `(H, W, 3)` uint8 by name. `start` says where the sliders `keep` and `layer` begin.
    """
    model = model.double()
    images = preprocess(list(photographs.values())).double().to(next(model.parameters()).device)
    sharp = to_display(preprocess(list(photographs.values()), SHARP))
    whole = pc.flops(model)
    side = int((whole.tokens[0] - model.num_prefix_tokens) ** 0.5)
    plans: list[list[list[str]]] = [[] for _ in photographs]  # photograph, method, keep
    macs, tokens = [], []
    for _, _, method, options in ARMS:
        of_method, counts = [[] for _ in photographs], []
        for keep in KEEP:
            with pc.patched(model, method, keep, **options), pc.record(model) as trace, torch.no_grad():
                model.forward_features(images)
                counts.append(pc.flops(model))
            for of_photo, item in zip(of_method, range(len(photographs)), strict=True):
                layers = [layer.plan.assignment[item].cpu().numpy() for layer in trace.layers]
                of_photo.append(packed(np.concatenate(layers)))
        for of_photo, found in zip(plans, of_method, strict=True):
            of_photo.append(found)
        macs.append([_spent(of) for of in counts])
        tokens = [[n - model.num_prefix_tokens for n in of.tokens] for of in counts]
    return {
        "grid": [side, side], "keep": list(KEEP), "start": dict(start), "tokens": tokens, "macs": macs,
        "whole": _spent(whole), "methods": [{"label": label, "colour": colour} for label, colour, _, _ in ARMS],
        "pictures": [
            {"name": name, "photo": jpeg(large), "means": packed(patch_means(image, (side, side)).reshape(-1)),
             "plans": of_photo}
            for name, large, image, of_photo in zip(photographs, sharp, to_display(images), plans, strict=True)
        ],
    }  # fmt: skip


def _spent(counts: pc.Counts) -> list[int]:
    """Multiply-accumulates before the first block and after each; the last entry holds the head too."""
    spent = [counts.embed]
    for layer in counts.layers:
        spent.append(spent[-1] + layer.total)
    return [*spent[:-1], counts.total]


def energy_figure(
    image: np.ndarray, keys: Mapping[int, Tensor], depth: int, mergeable: int, start: tuple[int, int]
) -> LiveFigure:
    """Energies under a margin that moves, and the cosines of a patch that the reader chooses.

    Args:
        image: `(H, W, 3)` uint8, H and W multiples of the number of rows and columns of patches.
        keys: `(N, C)` by layer, N a square number; a page holds six layers of 256 patches and 64 channels well.
        depth: layers of the model, for the margins of the schedule.
        mergeable: how many patches of highest energy are outlined.
        start: the layer and the patch that are shown first.

    Keys are stored as directions of whole numbers from -127 to 127 (`directions`), so cosines differ from those of the
    keys by a few thousandths. The script computes everything from these.
    """
    side = int(len(next(iter(keys.values()))) ** 0.5)
    margins, stored = pc.margin_schedule(depth), {layer: directions(k) for layer, k in keys.items()}
    lowest = min(float(cosine_graph(torch.from_numpy(k)[None].double()).min()) for k in stored.values())
    first, patch = start
    data = {
        "grid": [side, side], "photo": jpeg(image), "depth": depth, "mergeable": mergeable,
        "lowest": float(np.floor(lowest * 20) / 20), "start": {"layer": list(keys).index(first), "patch": patch},
        "palette": ["#" + "".join(f"{int(255 * v):02x}" for v in colormaps[HEAT](i / 63)[:3]) for i in range(64)],
        "layers": [{"layer": n, "margin": round(margins[n], 6), "keys": packed(k)} for n, k in stored.items()],
    }  # fmt: skip

    def still() -> Figure:
        energy = pc.energy_score(keys[first][None], margins[first])[0].cpu()
        top = torch.zeros(side**2, dtype=torch.bool)
        top[energy.argsort(descending=True, stable=True)[:mergeable]] = True
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
        title = f"energy in layer {first}, margin {margins[first]:g}"
        heat_map(left, image, energy.view(side, side).numpy(), title, outline=top.view(side, side).numpy())
        cosines = cosine_graph(keys[first][None])[0, patch].cpu().numpy()
        right.hist(cosines, bins=40, color=COLOURS["pitome"])
        right.axvline(margins[first], color=COLOURS["tome"])
        right.set(xlabel="cosine of one patch to the others", ylabel="patches")
        return figure

    label = "Energy of the patches of a photograph under a margin that moves, and the cosines of one patch"
    return LiveFigure("energy", data, label, still)


def directions(keys: Tensor) -> np.ndarray:
    """Every key scaled to whole numbers from -127 to 127, `(N, C)` -> int8: the scale of a key is in no cosine."""
    keys = keys.double().cpu()
    return (127 * keys / keys.abs().amax(dim=1, keepdim=True)).round().numpy().astype(np.int8)


def one_merge(colours: Tensor, remove: int, margin: float) -> LiveFigure:
    """One merge of sixteen squares, stepped by the reader: their colours `(16, 3)` from 0 to 1, compared by hue.

    A key is a colour measured from middle grey. `remove` tokens go; PiToMe has the given margin.
    """
    keys = colours.double() - 0.5
    data = {"colours": colours.tolist(), "keys": keys.tolist(), "remove": remove, "margin": margin}

    def still() -> Figure:
        plan = pc.plan(keys[None], remove, margin=margin)
        figure, axes = plt.subplots(1, 2, figsize=(6.2, 3))
        merged = plan.unmerge(plan.merge(colours[None])[0])[0]
        titles = ("sixteen tokens", f"{plan.num_tokens} tokens left, in their colours")
        for ax, shown, title in zip(axes, (colours, merged), titles, strict=True):
            ax.imshow(shown.view(4, 4, 3).clamp(0, 1).numpy())
            ax.set_title(title)
            ax.set_axis_off()
        return figure

    label = "One merge of sixteen coloured squares, step by step, by PiToMe or ToMe"
    return LiveFigure("one-merge", data, label, still)


def six_tokens(tokens: Tensor, margin: float) -> LiveFigure:
    """Six tokens in the plane `(6, 2)` to drag, merged into three groups, and the spectral distance."""
    data = {"tokens": tokens.tolist(), "margin": margin}

    def still() -> Figure:
        plan = pc.plan(tokens[None], len(tokens) - 3, margin=margin)
        figure, ax = plt.subplots(figsize=(3.4, 3.4))
        for (x, y), slot in zip(tokens.tolist(), plan.assignment[0].tolist(), strict=True):
            ax.plot([0, x], [0, y], "o-", color=[COLOURS[name] for name in ("pitome", "tome", "accent")][slot])
        ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
        ax.set_title(f"spectral distance {pc.spectral_distance(tokens[None], plan).item():.3f}")
        ax.set_axis_off()
        return figure

    label = "Six tokens in the plane to drag, their weights, their groups, and the spectral distance"
    return LiveFigure("six-tokens", data, label, still)



def forest_figure(data: Mapping[str, Any], group: str, rival: str) -> LiveFigure:
    """Differences with their intervals, filtered by task, methods and rival; a row that is chosen is said in words.

    `data` is what `runs.quality.figure_data` gives. Bars are in percent of the whole model's result of their task. The
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
