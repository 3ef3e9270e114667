"""Three switches between PiToMe and ToMe, and the map that each setting leaves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.data.pictures import to_display
from pitome_core.experiments.plots.maps import token_map

from .figure import LiveFigure
from .token_map import composed, picture, stored

# What sets PiToMe apart from ToMe: what a switch is called, its two positions in words, and as options of `pc.plan`.
SWITCHES = (
    ("order", ("by energy", "by position"), ({"split": "alternate"}, {"split": "position"})),
    ("protection", ("on", "off"), ({"protection": True}, {"protection": False})),
    ("edges", ("all", "the best"), ({"edges": "all"}, {"edges": "best"})),
)
CORNERS = {(0, 0, 0): "PiToMe", (0, 1, 1): "energy-sorted BSM", (1, 1, 1): "ToMe"}  # by the position of each switch


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
        for of_scene, plans in zip(arms, stored(trace, len(images)), strict=True):
            of_scene.append(plans)
    tokens = [n - model.num_prefix_tokens for n in pc.schedule(model, keep=keep).tokens]
    side = int(tokens[0] ** 0.5)
    shown = to_display(batch.cpu())
    scenes = [
        picture(name, image, image, side)
        | {"inside": torch.nonzero(masks[name].flatten() > 0.5).flatten().tolist(),
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
        for ax, corner in zip(axes, ("PiToMe", "energy-sorted BSM", "ToMe"), strict=True):
            at = composed(scenes[0]["plans"][data["corners"].index(corner)], tokens, len(tokens) - 1)
            token_map(ax, shown[0], at.reshape(side, side), corner)
        return figure

    label = "What merges in a scene under three switches: order, protection, edges"
    return LiveFigure("switches", data, label, still)
