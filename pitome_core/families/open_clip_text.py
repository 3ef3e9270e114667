"""The text tower of open_clip's `CustomTextCLIP` if it is an `HFTextEncoder` around a BERT of transformers.

The family of BERT runs it, and the pooler gets every token in its place again. open_clip's own text towers are causal
and do not merge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from torch import Tensor, nn

from ..family import PROTECTS, EntryPoint, Family, ModelShape, UnsupportedModelError
from ..instances import original, own_class
from ..patch import Patch
from .common import linear
from .registry import find_family

CAUSAL = (
    "open_clip's own text towers are not merged: an output of a causal tower may depend on earlier tokens only, while "
    "a plan is made from all tokens at once, so that later words and padding would change it"
)
_POOLERS = (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)


def text_reason(model: nn.Module) -> str | None:
    """Why the text tower of a composite cannot merge; None where it can."""
    encoder = getattr(model, "text", None)
    if own_class(encoder) is not HFTextEncoder:
        return CAUSAL
    try:
        family = find_family(encoder.transformer)
    except UnsupportedModelError as error:
        return f"text.transformer: {error}"
    if not family.ragged:
        return f"text.transformer is a {type(encoder.transformer).__qualname__}, which does not read texts"
    if own_class(encoder.pooler) not in _POOLERS:
        return f"text.pooler is a {type(encoder.pooler).__qualname__}: how it weighs tokens is not known"
    return None


def _matches(model: nn.Module) -> bool:
    return False  # `open_clip.FAMILY` matches the whole model, and has this family as its text tower


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    reason = text_reason(model)
    if reason is None and patch is not None and not patch.restore:
        reason = "the text tower pools every token in its place, which restore=False does not give it"
    return reason or find_family(model.text.transformer).refusal(model.text.transformer, patch)


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    encoder = model.text
    points = find_family(encoder.transformer).entry_points(encoder.transformer)
    return [*points, (encoder.pooler, "forward", _mean)] if own_class(encoder.pooler) is MeanPooler else points


def _mean(pooler: MeanPooler, patch: Patch, x: Any, attention_mask: Tensor) -> Tensor:
    """`MeanPooler.forward` over the tokens that were not dropped. Dropped tokens come back as zeros."""
    present = (x.last_hidden_state != 0).any(dim=2)  # (B, T)
    attention_mask = attention_mask[:, : present.shape[1]]  # tokens that were cut off without a plan do not come back
    return original(pooler).forward(pooler, x, attention_mask * present)


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes for one text of `input_size = (tokens,)`, projection included; None = the longest it takes."""
    inner = find_family(model.text.transformer).shape(model.text.transformer, input_size)
    projection = linear(model.text.proj)
    return replace(inner, head=lambda patches: inner.head(patches) + projection)


TEXT = Family(
    name="open_clip text tower",
    supports="open_clip CustomTextCLIP with a transformers BertModel or RobertaModel as text tower",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    ragged=True,
    protects=PROTECTS,
)
