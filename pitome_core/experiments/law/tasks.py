"""The tasks of `law-1`: scenes on photographs that dev and test do not share, and two classification tasks.

`LawScenes` also records, of the whole model, how well low energy singles out the object in every layer. That is the
predictor of the law: it is known before anything merges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import pitome_core as pc
from pitome_core.experiments.data import photos
from pitome_core.experiments.law import grid
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.cells import WHOLE, Cell
from pitome_core.experiments.vision import tasks as vision
from pitome_core.layer_measures import mean_cosine

METRICS = ("keys", "keys-centred", "hidden")


def low_energy_auc(metric: Tensor, margin: float, cover: Tensor) -> np.ndarray:
    """How well low energy singles out the object: the area under the ROC curve of -E, ``(B,)``.

    ``metric (B, N, C)``; ``cover (B, N)`` the share of a patch that the object covers. Patches over half covered are
    object, those under 5 % background, and the others are left out. NaN where one of the two kinds is missing. 0.5 is
    chance; above it the object has lower energies than the background, and energy protects it.
    """
    energy = pc.energy_score(metric, margin)
    values = []
    for scores, share in zip(-energy, cover, strict=True):
        clear = (share > 0.5) | (share < 0.05)
        is_object = (share[clear] > 0.5).numpy()
        both = 0 < is_object.sum() < len(is_object)
        values.append(roc_auc_score(is_object, scores[clear].numpy()) if both else np.nan)
    return np.array(values)


class LawScenes(vision.ScenesApart):
    """The scenes of `vision.tasks.ScenesApart`, with what the whole model knows beforehand.

    Outcomes as there. The whole model has more of them, ``(n, L)``: ``low_energy_keys``,
    ``low_energy_keys-centred`` and ``low_energy_hidden`` (`low_energy_auc` of every layer), and ``cosine_keys``,
    ``cosine_keys-centred`` and ``cosine_hidden``, the mean cosine of pairs of tokens.
    """

    def score(self, running: torch.nn.Module, cell: Cell) -> dict[str, Any]:
        """As the class says, under `running`."""
        outcomes = super().score(running, cell)
        return outcomes | (self._offered() if cell.arm == WHOLE else {})

    def _offered(self) -> dict[str, Any]:
        margins = pc.margin_schedule(len(self.model.blocks))
        columns: dict[str, list] = {f"{what}_{name}": [] for what in ("low_energy", "cosine") for name in METRICS}
        for images, cover in zip(self.images.split(16), self.cover.split(16), strict=True):
            read = layer_keys(self.model, images.to(self.device))
            of_layers = {
                "keys": read.keys, "hidden": read.hidden,
                "keys-centred": [key - key.mean(dim=1, keepdim=True) for key in read.keys],
            }
            for name in METRICS:
                layers = [metric.cpu() for metric in of_layers[name]]
                found = [low_energy_auc(metric, m, cover) for metric, m in zip(layers, margins, strict=True)]
                columns[f"low_energy_{name}"].append(np.stack(found, axis=1))
                columns[f"cosine_{name}"].append(torch.stack([mean_cosine(m) for m in layers], dim=1).numpy())
        return {name: np.concatenate(parts) for name, parts in columns.items()}


TASKS: dict[str, Callable[..., Any]] = {
    "scenes": LawScenes,
    "digits": lambda split, count=None: vision.Digits(split, count, refit=False),
    "emoji": lambda split, count=None: vision.Groups(split, count or 320, refit=False),
}
OPTIONAL = {"scenes": photos.GCOMPRIS}
CELLS = {"scenes": grid.when, "digits": grid.parts, "emoji": partial(grid.parts, attention=(None,))}
