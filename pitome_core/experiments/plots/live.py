"""Interactive figures of the book: their data and their still pictures. What draws them is book/_static/live/.

A figure is a box of HTML with a still picture and its data as JSON. In the book a script draws the figure into the box
and takes the picture away; where that script is not loaded (Colab, Jupyter) the picture stays. Page and tests have the
same data: the scripts compute with them what `pitome_core` computes, and the tests compare.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
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
from pitome_core.experiments.data.clusters import ORDERS, clusters, wrong_merges
from pitome_core.experiments.data.pictures import preprocess, to_display

from .maps import heat_map, token_map
from .style import COLOURS, HEAT, SIDES, png_text

# Arms of the token map: name, colour in live.css, method and options of `pc.apply`.
ARMS = (
    ("PiToMe", "pitome", "pitome", {}),
    ("ToMe", "tome", "tome", {}),
    ("energy-sorted", "accent", "pitome", {"protection": False, "edges": "best"}),
)
# What sets PiToMe apart from ToMe: what a switch is called, its two positions in words, and as options of `pc.plan`.
SWITCHES = (
    ("order", ("by energy", "by position"), ({"split": "alternate"}, {"split": "position"})),
    ("protection", ("on", "off"), ({"protection": True}, {"protection": False})),
    ("edges", ("all", "the best"), ({"edges": "all"}, {"edges": "best"})),
)
CORNERS = {(0, 0, 0): "PiToMe", (0, 1, 1): "energy-sorted", (1, 1, 1): "ToMe"}  # by the position of each switch
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


def token_maps(
    model: nn.Module, photographs: Mapping[str, np.ndarray], start: Mapping[str, int], arms: Sequence[tuple] = ARMS
) -> dict[str, Any]:
    """Data of the token map: what merges in every layer, by photograph, method and keep ratio, and what it costs.

    The plans are computed in float64, because in float32 two nearly equal cosines can change places on another
    processor. `model` is a ViT of timm for 224 pixels; the call changes its weights to float64. `photographs` are
    `(H, W, 3)` uint8 by name. `start` says where the sliders `keep` and `layer` begin. `arms` are the maps side by
    side, at most three, each as in `ARMS`.
    """
    model = model.double()
    images = preprocess(list(photographs.values())).double().to(next(model.parameters()).device)
    sharp = to_display(preprocess(list(photographs.values()), SHARP))
    whole = pc.flops(model)
    side = int((whole.tokens[0] - model.num_prefix_tokens) ** 0.5)
    plans: list[list[list[str]]] = [[] for _ in photographs]  # photograph, method, keep
    macs, tokens = [], []
    for _, _, method, options in arms:
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
        "whole": _spent(whole), "methods": [{"label": label, "colour": colour} for label, colour, _, _ in arms],
        "pictures": [
            {"name": name, "photo": jpeg(large), "means": packed(patch_means(image, (side, side)).reshape(-1)),
             "plans": of_photo}
            for name, large, image, of_photo in zip(photographs, sharp, to_display(images), plans, strict=True)
        ],
    }  # fmt: skip


def token_map_figure(
    model: nn.Module, photographs: Mapping[str, np.ndarray], start: Mapping[str, int], arms: Sequence[tuple] = ARMS
) -> LiveFigure:
    """The token map of a chapter; the arguments are those of `token_maps`."""
    data = token_maps(model, photographs, start, arms)

    def still() -> Figure:
        tokens, side = data["tokens"][start["keep"]], data["grid"][0]
        sharp = to_display(preprocess(next(iter(photographs.values())), SHARP))[0]
        figure, axes = plt.subplots(1, len(arms), figsize=(2.5 * len(arms), 2.8), squeeze=False)
        for ax, (label, *_), plans in zip(axes[0], arms, data["pictures"][0]["plans"], strict=True):
            at = _composed(plans[start["keep"]], tokens, start["layer"])
            token_map(ax, sharp, at.reshape(side, side), f"{label}: {tokens[start['layer']]} tokens")
        return figure

    label = f"Which of {data['tokens'][0][0]} patches have merged, layer by layer: {', '.join(arm[0] for arm in arms)}"
    return LiveFigure("token-map", data, label, still)


def _composed(plans: str, tokens: Sequence[int], layers: int) -> np.ndarray:
    """The token of every patch after the first layers, from the plans as they are stored."""
    every = np.frombuffer(base64.b64decode(plans), np.uint8)
    at = np.arange(tokens[0])
    for plan in np.split(every, np.cumsum(tokens[:-1])[:-1])[:layers]:
        at = plan[at]
    return at


def switches_figure(
    model: nn.Module, images: Mapping[str, Tensor], masks: Mapping[str, Tensor], keep: float
) -> LiveFigure:
    """Three switches that redraw what merges in a scene, and which patches of its object merge with background.

    `images` are `(3, 224, 224)` as a model reads them, by name; `masks (rows, columns)` hold the share of each patch
    that the object covers. A patch is of the object where that is over half, and background where it is under 5 %. The
    plans are computed in float64, as those of `token_maps`; the call changes the weights of `model` to float64.
    """
    model = model.double()
    batch = torch.stack(list(images.values())).double().to(next(model.parameters()).device)
    names = list(itertools.product(range(2), repeat=len(SWITCHES)))
    arms: list[list[str]] = [[] for _ in images]
    for at in names:
        options = {k: v for (*_, choices), i in zip(SWITCHES, at, strict=True) for k, v in choices[i].items()}
        with pc.patched(model, "pitome", keep, **options), pc.record(model) as trace, torch.no_grad():
            model.forward_features(batch)
        for item, of_scene in enumerate(arms):
            of_scene.append(packed(np.concatenate([of.plan.assignment[item].cpu().numpy() for of in trace.layers])))
    tokens = [n - model.num_prefix_tokens for n in pc.schedule(model, keep=keep).tokens]
    side = int(tokens[0] ** 0.5)
    shown = to_display(batch.cpu())
    scenes = [
        {"name": name, "photo": jpeg(image), "means": packed(patch_means(image, (side, side)).reshape(-1)),
         "inside": torch.nonzero(masks[name].flatten() > 0.5).flatten().tolist(),
         "outside": torch.nonzero(masks[name].flatten() < 0.05).flatten().tolist(), "plans": plans}
        for name, image, plans in zip(images, shown, arms, strict=True)
    ]  # fmt: skip
    data = {
        "grid": [side, side], "tokens": tokens, "keep": keep, "pictures": scenes,
        "switches": [{"label": label, "words": list(words)} for label, words, _ in SWITCHES],
        "corners": [CORNERS.get(at, "") for at in names],
    }  # fmt: skip

    def still() -> Figure:
        figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8))
        for ax, corner in zip(axes, ("PiToMe", "energy-sorted", "ToMe"), strict=True):
            at = _composed(scenes[0]["plans"][data["corners"].index(corner)], tokens, len(tokens) - 1)
            token_map(ax, shown[0], at.reshape(side, side), corner)
        return figure

    label = "What merges in a scene under three switches: order, protection, edges"
    return LiveFigure("switches", data, label, still)


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



def cluster_figure(
    sizes: Sequence[Sequence[int]],
    cosines: Sequence[float],
    noises: Sequence[float],
    *,
    remove: int,
    margin: float,
    draws: int = 20,
    width: int = 16,
    start: Mapping[str, int] | None = None,
) -> LiveFigure:
    """Tokens in four clusters whose sizes, closeness, noise and order the reader sets: which merges join two clusters.

    Args:
        sizes: values of the slider of cluster sizes; four numbers each, with one sum N for all.
        cosines: values of the slider of the cosine that any two centres have.
        noises: values of the slider of the noise, the length of a token's deviation from its centre.
        remove: how many tokens go.
        margin: PiToMe's margin.
        draws: how many draws of the noise the page has.
        width: channels of a token.
        start: where `order`, `sizes`, `cosine`, `noise` and `draw` begin, as indices; without it shuffled order, the
            middle of the sliders, the first draw.

    The noise is that of `clusters` with seed 0, rounded to two decimals. The script computes everything from it.
    """
    count = sum(sizes[0])
    nowhere = torch.zeros(1, width, dtype=torch.float64)  # one cluster round 0: its tokens are the noise alone
    unit = clusters((count,), 1.0, draws, centres=nowhere)[0].mul(100).round() / 100
    places = torch.rand(draws, count, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    middle = {"order": 1, "sizes": len(sizes) // 2, "cosine": len(cosines) // 2, "noise": len(noises) // 2, "draw": 0}
    data = {
        "sizes": [list(s) for s in sizes], "cosines": list(cosines), "noises": list(noises), "remove": remove,
        "margin": margin, "start": middle | dict(start or {}),
        "draws": [{"unit": u.tolist(), "places": p.tolist()} for u, p in zip(unit, places, strict=True)],
    }  # fmt: skip

    def still() -> Figure:
        at = data["start"]
        tokens, labels = clustered(
            data["draws"], sizes[at["sizes"]], cosines[at["cosine"]], noises[at["noise"]], ORDERS[at["order"]]
        )
        figure, ax = plt.subplots(figsize=(5.6, 1.9))
        for y, (name, options) in enumerate((("tome", {}), ("pitome", {"margin": margin}))):
            plan = pc.plan(tokens, remove, name, **options)
            wrong, distance = wrong_merges(plan, labels) > 0, pc.spectral_distance(tokens, plan)
            for of, filled in ((~wrong, COLOURS[name]), (wrong, "none")):
                ax.plot(distance[of], [y] * int(of.sum()), "o", color=COLOURS[name], markerfacecolor=filled)
        ax.set(xscale="log", ylim=(-0.6, 1.6), yticks=[0, 1], xlabel="spectral distance; hollow: a merge was wrong")
        ax.set_yticklabels(["ToMe", "PiToMe"])
        return figure

    label = "Tokens in four clusters: which merges of PiToMe and of ToMe join two clusters, and the spectral distances"
    return LiveFigure("clusters", data, label, still)


def clustered(
    draws: Sequence[Mapping[str, Any]], sizes: Sequence[int], cosine: float, noise: float, order: str
) -> tuple[Tensor, Tensor]:
    """Tokens `(draws, N, C)` and their clusters `(draws, N)` as the script of `cluster_figure` makes them."""
    unit = torch.tensor([of["unit"] for of in draws], dtype=torch.float64)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(list(sizes)))
    axes = torch.eye(unit.shape[2], dtype=torch.float64)
    centres = cosine**0.5 * axes[len(sizes)] + (1 - cosine) ** 0.5 * axes[: len(sizes)]
    tokens, places = centres[label] + noise * unit, torch.arange(len(label)).expand(unit.shape[:2])
    if order == "shuffled":
        places = torch.tensor([of["places"] for of in draws])
    if order == "adversarial":
        even = torch.arange(0, 2 * sizes[0], 2)
        others = torch.tensor([p for p in range(len(label)) if p not in even])
        places = torch.cat([even, others]).argsort().expand_as(places)
    return tokens.gather(1, places[..., None].expand_as(tokens)), label.expand_as(places).gather(1, places)


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
