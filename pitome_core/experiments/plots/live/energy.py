"""Energies under a margin that moves, and the cosines of one patch."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

import pitome_core as pc
from pitome_core.energy import cosine_graph
from pitome_core.experiments.plots.maps import heat_map
from pitome_core.experiments.plots.style import COLOURS, HEAT

from .figure import LiveFigure, jpeg, packed


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
