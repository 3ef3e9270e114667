"""Which patches have merged after each layer, by method and keep ratio."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import pitome_core as pc
from pitome_core.experiments.data.pictures import preprocess, to_display
from pitome_core.experiments.plots.maps import token_map

from .figure import SHARP, LiveFigure, jpeg, packed, patch_means

# Arms of the token map: name, colour in live.css, method and options of `pc.apply`.
ARMS = (
    ("PiToMe", "pitome", "pitome", {}),
    ("ToMe", "tome", "tome", {}),
    ("energy-sorted BSM", "accent", "pitome", {"protection": False, "edges": "best"}),
)
KEEP = (0.95, 0.9, 0.85, 0.8)


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
            for of_photo, plans_of_photo in zip(of_method, stored(trace, len(photographs)), strict=True):
                of_photo.append(plans_of_photo)
        for of_photo, found in zip(plans, of_method, strict=True):
            of_photo.append(found)
        macs.append([spent(of) for of in counts])
        tokens = [[n - model.num_prefix_tokens for n in of.tokens] for of in counts]
    return {
        "grid": [side, side], "keep": list(KEEP), "start": dict(start), "tokens": tokens, "macs": macs,
        "whole": spent(whole), "methods": [{"label": label, "colour": colour} for label, colour, _, _ in arms],
        "pictures": [
            picture(name, large, image, side) | {"plans": of_photo}
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
            at = composed(plans[start["keep"]], tokens, start["layer"])
            token_map(ax, sharp, at.reshape(side, side), f"{label}: {tokens[start['layer']]} tokens")
        return figure

    label = f"Which of {data['tokens'][0][0]} patches have merged, layer by layer: {', '.join(arm[0] for arm in arms)}"
    return LiveFigure("token-map", data, label, still)


def picture(name: str, photo: np.ndarray, image: np.ndarray, side: int) -> dict[str, str]:
    """What a map has of an image `(H, W, 3)` uint8: the photograph to show, mean colours of `side` x `side` patches."""
    return {"name": name, "photo": jpeg(photo), "means": packed(patch_means(image, (side, side)).reshape(-1))}


def stored(trace: pc.Trace, images: int) -> list[str]:
    """The plans of all layers, one behind the other as bytes, of every image."""
    return [packed(np.concatenate([layer.plan.assignment[item].cpu().numpy() for layer in trace.layers]))
            for item in range(images)]


def composed(plans: str, tokens: Sequence[int], layers: int) -> np.ndarray:
    """The token of every patch after the first layers, from the plans as `stored` packs them."""
    every = np.frombuffer(base64.b64decode(plans), np.uint8)
    at = np.arange(tokens[0])
    for plan in np.split(every, np.cumsum(tokens[:-1])[:-1])[:layers]:
        at = plan[at]
    return at


def spent(counts: pc.Counts) -> list[int]:
    """Multiply-accumulates before the first block and after each; the last entry holds the head too."""
    spent = [counts.embed]
    for layer in counts.layers:
        spent.append(spent[-1] + layer.total)
    return [*spent[:-1], counts.total]
