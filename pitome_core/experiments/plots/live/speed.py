"""The live estimate of the chapter on speed: which of the recorded cells a reader's own case is, and what it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pitome_core.experiments.plots.style import COLOURS

from .figure import LiveFigure

MODELS = {
    "vit_small_patch16_224": "ViT-S", "vit_base_patch16_224": "ViT-B", "vit_tiny_patch16_224": "ViT-Ti",
    "vit_base_patch16_clip_224": "CLIP-B/16", "vit_small_without_class": "ViT-S, no class token",
    "vit_small_patch14_dinov2": "DINOv2-S/14", "deit_s": "DeiT-S", "vit_h_mae": "ViT-H (MAE)",
}  # fmt: skip
TYPES = {"float32": "fp32", "bfloat16": "bf16", "bfloat16-autocast": "bf16 autocast", "float16": "fp16"}
METHODS = (("PiToMe", "pitome"), ("ToMe", "tome"))


def speed(cells: Mapping[str, Iterable[Mapping[str, Any]]], keep: float, start: tuple[str, str, int]) -> LiveFigure:
    """Whole and merged model by the clock, for a device, a model and a batch that the reader chooses.

    Args:
        cells: recorded cells of the experiment on cost, by the name of the device they were measured on. Cells without
            both methods, at another ratio or with an option that is not the usual one are left out.
        keep: the ratio.
        start: device, model and batch that are shown first.

    Nothing is interpolated: a combination that was not recorded is shown as not measured.
    """
    shown = [_entry(device, cell) for device, some in cells.items() for cell in some if _is_usual(cell, keep)]
    data = {"keep": keep, "methods": [{"label": label, "colour": name} for label, name in METHODS],
            "cells": shown, "start": list(start)}  # fmt: skip
    (first,) = [cell for cell in shown if (cell["device"], cell["model"], cell["batch"]) == start]

    def still() -> Figure:
        figure, ax = plt.subplots(figsize=(6.2, 1.9))
        names = ["whole model", *(label for label, _ in METHODS)]
        values = [first["whole"], *first["times"]]
        ax.barh(names, values, color=["0.6", *(COLOURS[name] for _, name in METHODS)])
        for y, value in enumerate(values):
            ax.text(value, y, f" {value:g} ms", va="center")
        ax.set(xlim=(0, 1.25 * max(values)), xlabel="milliseconds per call",
               title=f"{first['device']}; {first['model']}; batch {first['batch']}")
        ax.invert_yaxis()
        return figure

    label = "Time of the whole and of the merged model for a device, a model and a batch to choose, as recorded"
    return LiveFigure("speed", data, label, still)


def _is_usual(cell: Mapping[str, Any], keep: float) -> bool:
    variants = cell.get("variants") or {}
    usual = {"keep": keep, "proportional": "preset"}
    return (all("speedup" in variants.get(name, {}) for _, name in METHODS) and cell["mode"] in ("eager", "graph")
            and cell.get("every", 1) == cell.get("multiple", 1) == 1 and cell["dtype"] in ("float32", "bfloat16")
            and all(cell[name] == value for name, value in usual.items()))  # fmt: skip


def _entry(device: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the page gets of a cell: medians in milliseconds per call, speed-ups with quartiles, shares of the work."""
    variants = [cell["variants"][name] for _, name in METHODS]
    graph = ", captured graph" if cell["mode"] == "graph" else ""
    model = f"{MODELS.get(cell['model'], cell['model'])}, {cell['size']} px, {TYPES[cell['dtype']]}{graph}"
    whole = cell["variants"]["whole"]
    return {
        "device": device, "model": model, "batch": cell["batch"], "tokens": [cell["tokens"][0], cell["tokens"][-1]],
        "whole": _digits(1e3 * whole["seconds"][1]), "times": [_digits(1e3 * one["seconds"][1]) for one in variants],
        "faster": [list(one["speedup"]) for one in variants],
        "flops": [_digits(one["macs"] / whole["macs"]) for one in variants],
    }  # fmt: skip


def _digits(value: float) -> float:
    """Four significant digits, which is more than a clock holds."""
    return float(f"{value:.4g}")
