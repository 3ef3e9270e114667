"""Control: the whole model on smaller images, at equal cost. No merging at all."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

import pitome_core as pc
from pitome_core.experiments.models.vit import resize_position_embedding
from pitome_core.patching import find_patch

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def lower_resolution(model: VisionTransformer, img_size: int) -> VisionTransformer:
    """A copy of a timm `VisionTransformer` for square images of `img_size` pixels.

    Its position embedding is interpolated as in `towers.resize_position_embedding` (plain bicubic); everything else
    is the original's, which stays as it is.

    Raises:
        ValueError: a size that is no multiple of the patch, a model that merges, or one without a square grid of
            learned positions.
    """
    patch, side = _square(model)
    if img_size < patch or img_size % patch:
        near = max(img_size // patch, 1) * patch
        raise ValueError(f"img_size {img_size} is no multiple of the patch size {patch}: use {near} or {near + patch}")
    grid = img_size // patch
    small = copy.deepcopy(model)
    prefix = model.pos_embed.shape[1] - side**2  # 0 where prefix tokens have no position
    table = resize_position_embedding(model.pos_embed.detach(), (grid, grid), prefix)
    small.pos_embed = nn.Parameter(table.contiguous(), requires_grad=model.pos_embed.requires_grad)
    small.patch_embed.set_input_size(img_size=(img_size, img_size))
    return small


def resolution_for(model: VisionTransformer, flops: float) -> tuple[int, int]:
    """The image sizes, multiples of the patch, whose `pc.flops` bracket a budget: (not above, not below) it.

    `flops`: a share of the model's own multiply-accumulates (up to 1) or their number (above 1). Both sizes are the
    same where one meets the budget exactly.

    Raises:
        ValueError: a budget below that of one patch or above the model's own, or a model as in `lower_resolution`.
    """
    patch, side = _square(model)
    probe = copy.copy(model)
    probe.dynamic_img_size = True  # the shallow copy is only counted
    costs = [pc.flops(probe, (3, patch * n, patch * n)).total for n in range(1, side + 1)]
    budget = flops * costs[-1] if flops <= 1 else flops
    if not costs[0] <= budget <= costs[-1]:
        raise ValueError(
            f"a budget of {budget:.4g} multiply-accumulates cannot be met: this model takes {costs[-1]:.4g} at "
            f"{patch * side} pixels and {costs[0]:.4g} with one patch"
        )
    below = max(n for n, cost in enumerate(costs, 1) if cost <= budget)
    above = min(n for n, cost in enumerate(costs, 1) if cost >= budget)
    return patch * below, patch * above


def _square(model: VisionTransformer) -> tuple[int, int]:
    """Patch size in pixels and patches per side."""
    if find_patch(model) is not None:
        raise ValueError("lower resolution is the control without merging: call pc.remove(model) first")
    rows, columns = model.patch_embed.grid_size
    height, width = model.patch_embed.patch_size
    if model.pos_embed is None or rows != columns or height != width:
        raise ValueError(f"no square grid of learned positions: {rows} x {columns} patches of {height} x {width}")
    return height, rows
