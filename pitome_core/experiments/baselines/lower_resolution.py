"""Control: the whole model, without merging, on smaller images."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from pitome_core.experiments.models.vit import resize_position_embedding
from pitome_core.patching import find_patch

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def lower_resolution(model: VisionTransformer, img_size: int) -> VisionTransformer:
    """A copy of a timm `VisionTransformer` for square images with a side of `img_size` pixels.

    The position embedding of the copy is interpolated bicubically (`vit.resize_position_embedding`). All other weights
    are those of the original, which stays as it is.

    Raises:
        ValueError: a size that is no multiple of the patch size, a model that merges, or a model without a square grid
            of learned positions.
    """
    patch, side = _square(model)
    if img_size < patch or img_size % patch:
        near = max(img_size // patch, 1) * patch
        raise ValueError(f"img_size {img_size} is no multiple of the patch size {patch}: use {near} or {near + patch}")
    grid = img_size // patch
    small = copy.deepcopy(model)
    prefix = model.pos_embed.shape[1] - side**2  # 0 if prefix tokens have no position
    table = resize_position_embedding(model.pos_embed.detach(), (grid, grid), prefix)
    small.pos_embed = nn.Parameter(table.contiguous(), requires_grad=model.pos_embed.requires_grad)
    small.patch_embed.set_input_size(img_size=(img_size, img_size))
    return small


def _square(model: VisionTransformer) -> tuple[int, int]:
    """Patch size in pixels, and number of patches per side. Raises ``ValueError`` as `lower_resolution` does."""
    if find_patch(model) is not None:
        raise ValueError("lower resolution is the control without merging: call pc.remove(model) first")
    rows, columns = model.patch_embed.grid_size
    height, width = model.patch_embed.patch_size
    if model.pos_embed is None or rows != columns or height != width:
        raise ValueError(f"no square grid of learned positions: {rows} x {columns} patches of {height} x {width}")
    return height, rows
