"""Control: average pooling of 2 x 2 patches. It tells what a method gains over a plain coarser grid."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, places, required


def plan_grid_pool(
    metric: Tensor, remove: int | Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Merge the tokens of each 2 x 2 window of the patch grid; at odd edges windows are smaller.

    Meant once, before block 0, while every patch is in its place. `metric (B, N, C)`, of which only the shape counts;
    `positions (B, N, 2)` long, row and column; `remove` must be what the windows give, an int or `(B,)` with `mask`;
    real tokens come first.

    Raises:
        ValueError: `remove` is not N minus the number of windows.
    """
    window = required(positions, "positions", "pools windows of the patch grid") // 2  # (B, N, 2)
    place = places(metric)
    real = torch.ones_like(place, dtype=torch.bool) if mask is None else mask
    window = window.masked_fill(~real[..., None], 0)
    key = window[..., 0] * (int(window[..., 1].max()) + 1) + window[..., 1]
    first = place.new_full((len(key), int(key.max()) + 1), metric.shape[1])
    first = first.scatter_reduce(1, key, place, "amin")  # padding comes last: it is first in no window of real tokens
    root = torch.where(real, first.gather(1, key), -1)
    given = (real & (root != place)).sum(dim=-1)
    wanted = torch.as_tensor(remove, device=metric.device).expand(given.shape)
    if bool((given != wanted).any()):
        item = int((given != wanted).nonzero()[0])
        n, takes = int(real[item].sum()), int(given[item])
        raise ValueError(
            f"cannot remove {int(wanted[item])} of {n} tokens: their 2 x 2 windows leave {n - takes}; "
            f"remove {takes}, once"
        )
    return from_roots(root, remove, mask)


register_method(
    "grid_pool",
    plan_grid_pool,
    paper="control",
    summary="average pooling of 2 x 2 windows of the patch grid, once",
    limit="all",
)
