"""Control: average pooling of 2 x 2 patches. It shows how much a method gains over a coarser grid."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, places, required


def plan_grid_pool(
    metric: Tensor, remove: int | Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Merge the tokens of each 2 x 2 window of the patch grid. On grids of odd size the last windows are smaller.

    It is meant to run once, before the first block, while every patch is at its place.

    `remove` must be N minus the number of windows, because the windows leave no choice; another number raises
    ``ValueError``. `positions (B, N, 2)` long are row and column of each token on the grid. Of `metric` only the shape
    counts.
    """
    window = required(positions, "positions", "pools windows of the patch grid") // 2  # (B, N, 2)
    place = places(metric)
    real = torch.ones_like(place, dtype=torch.bool) if mask is None else mask
    window = window.masked_fill(~real[..., None], 0)
    key = window[..., 0] * (int(window[..., 1].max()) + 1) + window[..., 1]
    first = place.new_full((key.shape[0], int(key.max()) + 1), metric.shape[1])
    first = first.scatter_reduce(1, key, place, "amin")  # padding comes last, so it is never the first of a window
    root = torch.where(real, first.gather(1, key), -1)
    possible = (real & (root != place)).sum(dim=-1)  # (B,)
    wanted = torch.as_tensor(remove, device=metric.device).expand(possible.shape)
    if bool((possible != wanted).any()):
        item = int((possible != wanted).nonzero()[0])
        n, k = int(real[item].sum()), int(possible[item])
        raise ValueError(
            f"cannot remove {int(wanted[item])} of {n} tokens: their 2 x 2 windows leave {n - k}; remove {k}, once"
        )
    return from_roots(root, remove, mask)


register_method(
    "grid_pool",
    plan_grid_pool,
    paper="control",
    summary="average pooling of 2 x 2 windows of the patch grid, once",
    limit="all",
    scaling="time N; memory N",
)
