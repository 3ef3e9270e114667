"""SigLIP 2 with pictures of any shape (NaFlex) of Hugging Face's transformers.

A batch holds patches of pictures of unequal sizes, padded to one length. Each picture loses its share of its own
patches; padding does not merge, is no key in attention, and is not counted by energies. So the family takes keep
ratios only, and methods that take a mask. With `restore`, outputs have all places again, with zeros in padded ones
once patches have merged. SigLIP 2 at one size has the classes of SigLIP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip2 import modeling_siglip2 as siglip2

from ..family import EntryPoint, Family, ModelShape
from ..instances import own_class
from ..patch import Patch
from .common import linear
from .hf_common import CallOptions, bound, real_tokens, unlisted
from .hf_layouts import clip_layer, pool_siglip
from .hf_vision import layer_points, layer_shapes, layers_refusal, mean_refusal, pooling_cost

_LAYER = clip_layer(siglip2, "Siglip2")
_AROUND = (siglip2.Siglip2Model, siglip2.Siglip2ForImageClassification)
_ARGUMENTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
_TEXT = "the text tower of SigLIP 2 reads the last position, which may be padding, and attends to padding"


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (siglip2.Siglip2VisionModel, siglip2.Siglip2TextModel, *_AROUND))


def _tower(model: nn.Module) -> nn.Module:
    return model.vision_model if own_class(model) in _AROUND else model


def _towers(model: nn.Module) -> dict[str, str | None]:
    return {"vision": None, **(dict.fromkeys(("text", "both"), _TEXT) if hasattr(model, "text_model") else {})}


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    kind, tower = own_class(model), _tower(model)
    if kind is siglip2.Siglip2TextModel:
        return _TEXT
    if own_class(tower) is not siglip2.Siglip2VisionModel:
        return unlisted(model)
    reason = mean_refusal(model, patch) if kind is siglip2.Siglip2ForImageClassification else None
    return reason or layers_refusal(tower.encoder.layers, _LAYER)


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    tower = _tower(model)
    points: list[EntryPoint] = [(tower, "forward", _forward), (tower.encoder, "forward", None)]
    return points + layer_points(tower.encoder.layers, _LAYER)


def _forward(model: nn.Module, patch: Patch, *args: Any, **kwargs: Any):
    """`Siglip2VisionModel.forward` with merges."""
    arguments = bound(_ARGUMENTS, args, kwargs)
    options = CallOptions(model, len(model.encoder.layers), arguments)
    x = model.embeddings(arguments["pixel_values"], arguments["spatial_shapes"])
    mask = arguments["pixel_attention_mask"]
    real = real_tokens(mask, x)
    state = patch.start(x, 0, False, None, size=real.to(torch.float32), protected=torch.zeros_like(real))
    x, taken = options.run(model.encoder.layers, x, state)
    x = model.post_layernorm(x)
    read = state.as_read(x, state.plan)
    whole = state.plan is None or (patch.restore and not state.plan.drops)
    if not (whole and read.shape[1] == real.shape[1]):
        pooled = pool_siglip(model, x, state.size)
    else:
        pooled = model.head(read, mask) if model.use_head else None
    return options.give(BaseModelOutputWithPooling(
        last_hidden_state=read, pooler_output=pooled, hidden_states=options.states(taken, state)
    ))


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes for one picture of `input_size = (patches,)`; None = as many as the model was made for."""
    tower = _tower(model)
    if input_size is not None and len(input_size) != 1:
        raise ValueError(f"the input of a SigLIP 2 of any shape has a size of (patches,), got {tuple(input_size)}")
    patches = tower.config.num_patches if input_size is None else input_size[0]
    behind = linear(model.classifier) if own_class(model) is siglip2.Siglip2ForImageClassification else 0
    embed = patches * linear(tower.embeddings.patch_embedding)
    return ModelShape(patches, 0, layer_shapes(tower.encoder.layers, _LAYER), embed,
                      lambda n: pooling_cost(tower, n) + behind)


FAMILY = Family(
    name="transformers SigLIP 2 of any shape",
    supports="transformers Siglip2VisionModel (NaFlex), and the models around it",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
    ragged=True,
)
