"""LLaVA of Hugging Face's transformers: its vision tower merges, its language model reads fewer image tokens.

A prompt holds one placeholder for each image token, so it needs as many as the tower leaves at `vision_feature_layer`.
The keep ratios fix that number: `image_token_count` returns it, and `expand_placeholders` writes the placeholders. They
stand in raster order, and each stands for a group of patches. The trace tells which patches these are
(`trace.last.plan(layers)`).
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava import modeling_llava as llava
from transformers.models.llava_next import modeling_llava_next as llava_next
from transformers.models.llava_onevision import modeling_llava_onevision as onevision

from ..family import EntryPoint, Family, ModelShape
from ..instances import original, own_class
from ..patch import Patch, active_patch
from .common import linear
from .hf_layouts import TOWERS
from .hf_vision import tower_entry_points, tower_refusal, tower_shape

_MODELS = (llava.LlavaForConditionalGeneration, llava.LlavaModel)
# They lay tiles of an image out as one grid, cut its borders off and end its rows. Merged tokens stand in no rows.
_TILED = (llava_next.LlavaNextForConditionalGeneration, llava_next.LlavaNextModel,
          onevision.LlavaOnevisionForConditionalGeneration, onevision.LlavaOnevisionModel)


def _inner(model: nn.Module) -> nn.Module:
    """The `LlavaModel` inside a model for generation, or the model itself."""
    return model.model if own_class(model) is llava.LlavaForConditionalGeneration else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*_MODELS, *_TILED))


def _towers(model: nn.Module) -> dict[str, str | None]:
    reason = "its language model is causal: a merged token would carry later words into earlier ones"
    return {"vision": None, "text": reason, "both": reason}


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    if isinstance(model, _TILED):
        tower = "model.model.vision_tower" if hasattr(model, "lm_head") else "model.vision_tower"
        return (
            f"{type(model).__qualname__} lays the tokens of tiles out as one grid and ends its rows, and merged tokens "
            "form no grid: what is missing is a packing without rows. The tower alone can merge, by "
            f"pc.apply({tower}), and the language model then reads all tokens; a language model that reads fewer is "
            "that of a LlavaForConditionalGeneration"
        )
    if own_class(model) not in _MODELS or own_class(_inner(model)) is not llava.LlavaModel:
        return f"{type(model).__qualname__} derives from LLaVA and may use its vision tower in another way"
    if patch is not None and patch.restore:
        return (
            "restore=True would hand all image tokens to the language model, merged ones many times over, and save "
            "nothing: give restore=False"
        )
    inner = _inner(model)
    reason = tower_refusal(inner.vision_tower)
    if reason is not None:
        return f"vision tower: {reason}"
    config = inner.config
    return _feature_refusal(inner, config.vision_feature_layer, config.vision_feature_select_strategy)


def _feature_refusal(inner: nn.Module, layer: int | list[int], strategy: str) -> str | None:
    if not isinstance(layer, int):
        return f"vision_feature_layer={layer}: features of several layers have different tokens after a merge"
    if strategy == "default" and TOWERS[own_class(inner.vision_tower)].prefix == 0:
        return "vision_feature_select_strategy='default' drops the first token, which is a patch in this tower"
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    inner = _inner(model)
    points = [(inner, "get_image_features", _image_features), (inner, "get_placeholder_mask", _placeholder_mask)]
    return points + tower_entry_points(inner.vision_tower)


def _image_features(
    inner: nn.Module,
    patch: Patch,
    pixel_values: Tensor,
    vision_feature_layer: int | list[int] | None = None,
    vision_feature_select_strategy: str | None = None,
    image_sizes: Tensor | None = None,
    **kwargs: Any,
):
    """`LlavaModel.get_image_features`; ValueError where the features of the images would not have equal lengths."""
    config = inner.config
    layer = config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
    strategy = vision_feature_select_strategy or config.vision_feature_select_strategy
    reason = _feature_refusal(inner, layer, strategy)
    if reason is not None:
        raise ValueError(reason)
    if image_sizes is not None:
        raise ValueError("image_sizes: a merged tower leaves as many tokens for every image, whatever its size")
    return original(inner).get_image_features(
        inner, pixel_values, vision_feature_layer=layer, vision_feature_select_strategy=strategy, **kwargs
    )


def _placeholder_mask(
    inner: nn.Module, patch: Patch, input_ids: Tensor | None, inputs_embeds: Tensor, image_features: Tensor
):
    """`LlavaModel.get_placeholder_mask`, whose error names a remedy; `image_features (tokens of all images, C)`."""
    if input_ids is not None:
        written, needed = int((input_ids == inner.config.image_token_id).sum()), image_features.shape[0]
        if written != needed:
            raise ValueError(
                f"the prompt holds {written} image placeholders, the merged vision tower leaves {needed} image tokens: "
                "write them with expand_placeholders(input_ids, image_token_id, image_token_count(model))"
            )
    return original(inner).get_placeholder_mask(inner, input_ids, inputs_embeds, image_features)


def image_token_count(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> int:
    """How many tokens one image has in the prompt of a LLaVA, patched or not.

    Args:
        model: a `LlavaForConditionalGeneration` or `LlavaModel`.
        input_size: (channels, height, width) of an image; None = the tower's own.
    """
    inner = _inner(model)
    patch = active_patch(inner.vision_tower)
    shape = tower_shape(inner.vision_tower, input_size)
    removed = () if patch is None else patch.removals(shape.num_patches)
    kept = shape.num_patches - sum(removed[: _feature_layers(inner)])
    return kept + shape.prefix - _dropped(inner)


def _feature_layers(inner: nn.Module) -> int:
    """How many layers of the tower come before the features. Hidden state i is the output of layer i, from 1."""
    depth = len(inner.vision_tower.get_submodule(TOWERS[own_class(inner.vision_tower)].layers))
    layer = inner.config.vision_feature_layer
    return layer if layer >= 0 else depth + 1 + layer


def _dropped(inner: nn.Module) -> int:
    """How many tokens the selection strategy removes: the class token, with `default`."""
    return int(inner.config.vision_feature_select_strategy == "default")


def expand_placeholders(
    input_ids: Tensor, image_token_id: int, count: int, *along: Tensor, per_image: int = 1
) -> Tensor | tuple[Tensor, ...]:
    """Write `count` placeholders for every image of a prompt.

    Args:
        input_ids: `(B, T)` long.
        image_token_id: the placeholder's id (`model.config.image_token_id`).
        count: placeholders per image in the result (`image_token_count(model)`).
        along: tensors `(B, T)` with a value for each token (attention mask, labels); they are expanded, too.
        per_image: placeholders per image in `input_ids`: 1, or what a processor wrote for the whole grid.

    Returns:
        `(B, T')` ids; with `along`, a tuple of the ids and of these tensors.

    Raises:
        ValueError: a run of placeholders that is no whole number of images, or rows of unequal length in the result.

    Example:
        >>> import torch
        >>> from pitome_core.families.hf_llava import expand_placeholders
        >>> expand_placeholders(torch.tensor([[1, 32, 5]]), 32, 3)
        tensor([[ 1, 32, 32, 32,  5]])
    """
    if count < 1 or per_image < 1:
        raise ValueError(f"an image has 1 placeholder or more, got count={count}, per_image={per_image}")
    for other in along:
        if other.shape != input_ids.shape:
            raise ValueError(f"input_ids have shape {tuple(input_ids.shape)}, what comes along {tuple(other.shape)}")
    rows = []  # per item, the token that each new token is a copy of
    for ids in input_ids.tolist():
        sources = []
        for is_image, run in groupby(range(len(ids)), key=lambda place: ids[place] == image_token_id):
            run = list(run)
            if is_image and len(run) % per_image:
                raise ValueError(f"{len(run)} placeholders in a row are no whole number of images of {per_image}")
            sources += run[:1] * (len(run) // per_image * count) if is_image else run
        rows.append(sources)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"rows come out {lengths} tokens long: expand prompts with different numbers of images apart")
    index = torch.tensor(rows, device=input_ids.device).view(len(rows), -1)
    expanded = tuple(tensor.gather(1, index) for tensor in (input_ids, *along))
    return expanded if along else expanded[0]


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes of the vision tower and the projector. The language model is not counted, as it depends on the prompt."""
    inner = _inner(model)
    shape = tower_shape(inner.vision_tower, input_size)
    projector, extra = linear(inner.multi_modal_projector), shape.prefix - _dropped(inner)
    return ModelShape(
        shape.num_patches, shape.prefix, shape.layers, shape.embed, lambda n: (n + extra) * projector,
        reads=_feature_layers(inner),
    )


FAMILY = Family(
    name="transformers LLaVA",
    supports="transformers LLaVA with a CLIP, SigLIP, ViT or DINOv2 vision tower (restore=False)",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
)
