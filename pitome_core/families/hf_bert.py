"""BERT of Hugging Face's transformers, as an encoder.

A text differs from an image in three ways.

- Items have lengths of their own. Each loses its share of its own tokens, so that the other items of the batch and the
  place of the padding do not change its result.
- Padding takes no part: it does not merge, it is no key in attention, and energies do not count it.
- Some tokens in the middle never merge: the first real token ([CLS]), the last one, and the last of every segment that
  `token_type_ids` tells apart (their [SEP]). If `model.config.sep_token_id` is set and the model gets `input_ids`, the
  tokens with that id do not merge either. With `protect="cls"` the first real token alone never merges, as in the
  authors' released code (which lets padding merge, too: here it does not).

With `restore`, outputs have all T places again. The unpatched model leaves arbitrary values in padded places; here they
are zero once tokens have merged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as bert

from ..family import PROTECTS, EntryPoint, Family, LayerShape, ModelShape
from ..instances import own_class
from ..patch import LayerStep, Merged, Patch, active_patch
from ..portable import refuse_exporting
from .common import AttentionCall, attention_point, check_step, linear
from .hf_common import CallOptions, attend, implementation_refusal

# Models around a `BertModel`: the name of their head, and whether the head reads every token.
_AROUND = {
    bert.BertForPreTraining: ("cls", True),
    bert.BertForMaskedLM: ("cls", True),
    bert.BertForTokenClassification: ("classifier", True),
    bert.BertForQuestionAnswering: ("qa_outputs", True),
    bert.BertForNextSentencePrediction: ("cls", False),
    bert.BertForSequenceClassification: ("classifier", False),
    bert.BertForMultipleChoice: ("classifier", False),
}
_ARGUMENTS = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "encoder_hidden_states",
    "encoder_attention_mask", "past_key_values", "use_cache",
)


def _towers(model: nn.Module) -> dict[str, str | None]:
    return {"text": None, "vision": None}  # there is one tower, and "vision" is the default of `apply`


def _encoder(model: nn.Module) -> nn.Module:
    return model.bert if own_class(model) in _AROUND else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (bert.BertModel, *_AROUND, bert.BertLMHeadModel))


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    """Why a model cannot be patched; None if it can.

    Only exact types are accepted, because a subclass may override the loop that is replaced here.
    """
    kind = own_class(model)
    if kind not in (bert.BertModel, *_AROUND) or own_class(_encoder(model)) is not bert.BertModel:
        return f"{type(model).__qualname__} is not listed and may run its layers in another way"
    config = _encoder(model).config
    if config.is_decoder or config.add_cross_attention or getattr(config, "is_causal", False):
        return "as a decoder BERT is causal: a merged token would carry later words into earlier ones"
    if patch is not None and not patch.restore and kind in _AROUND and _AROUND[kind][1]:
        return f"{type(model).__qualname__} reads every token in its place, which restore=False does not give it"
    for i, layer in enumerate(_encoder(model).encoder.layer):
        attention = getattr(layer, "attention", None)
        expected = {
            bert.BertLayer: layer, bert.BertAttention: attention,
            bert.BertSelfAttention: getattr(attention, "self", None),
            bert.BertSelfOutput: getattr(attention, "output", None),
            bert.BertIntermediate: getattr(layer, "intermediate", None),
            bert.BertOutput: getattr(layer, "output", None),
        }
        for kind, part in expected.items():
            if own_class(part) is not kind:
                return f"encoder.layer.{i} has a {type(part).__qualname__} where a {kind.__qualname__} is known"
        if implementation_refusal(attention.self) is not None:
            return implementation_refusal(attention.self)
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    encoder = _encoder(model)
    points: list[EntryPoint] = [(encoder, "forward", _forward), (encoder.encoder, "forward", None)]
    for layer in encoder.encoder.layer:
        points += [
            (layer, "forward", _layer_forward),
            attention_point(layer.attention, _attend),
            attention_point(layer.attention.self, _attend_before_output),
        ]
    return points


def _attend_before_output(attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """Self-attention with a bias, before its output projection."""
    maps = (attn.query, attn.key, attn.value)
    y = attend(attn, call, maps, x, head_dim=attn.attention_head_size, scale=attn.scaling, dropout=attn.dropout.p)
    return y, None


def _attend(attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """Self-attention with its output projection, residual and norm."""
    y, _ = attn.self(x, call=call)
    return attn.output(y, x), None


def _layer_forward(
    layer: nn.Module, patch: Patch, *args: Any, size: Tensor | None = None, step: LayerStep | None = None, **_: Any
) -> Merged:
    """A layer with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan. Norms stand behind the residuals."""
    check_step(step, layer)
    x, plan = args[0], None
    step, size = step.on(x.device), size.to(x.device)
    if step.insertion == "before":
        x, size, plan = step.merge(x, None, size)
    call = AttentionCall(step.bias(size, x.dtype), step.reads_attention)
    y, _ = layer.attention(x, call=call)
    x, keys, attn_map = call.with_output(y)
    if step.insertion == "between":
        x, size, plan = step.merge(x, keys, size, attn_map)
    x = layer.feed_forward_chunk(x)
    if step.insertion == "after":
        x, size, plan = step.merge(x, keys, size, attn_map)
    return x, size, plan


def _real(attention_mask: Tensor | None, x: Tensor) -> Tensor:
    """`(B, T)` bool: True for tokens, False for padding. ValueError for a mask of another shape or an empty text."""
    if attention_mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if attention_mask.shape != x.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens {tuple(x.shape[:2])}: a merged model "
            "takes one entry per token (1 = real), no mask of pairs"
        )
    real = attention_mask.to(x.device, torch.bool)
    empty = (~real.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"items {empty} have no real token: leave them out of the batch")
    return real


def protected_tokens(
    real: Tensor, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None,
    sep_token_id: int | None = None, protect: str = "ends",
) -> Tensor:
    """`(B, T)` bool: tokens that never merge, of `real (B, T)`: first, last, last of each segment, every [SEP].

    With `protect="cls"` it is the first alone.
    """
    place = torch.arange(real.shape[1], device=real.device)
    protected = place == real.to(torch.int8).argmax(dim=1, keepdim=True)
    if protect == "cls":
        return protected
    segments = [real]
    if token_type_ids is not None:
        segments += [real & (token_type_ids == kind) for kind in token_type_ids.unique()]
    for segment in segments:
        last = torch.where(segment, place, -1).amax(dim=1, keepdim=True)
        protected = protected | (place == last)
    if input_ids is not None and sep_token_id is not None:
        protected = protected | (input_ids == sep_token_id)
    return protected & real


def _forward(model: nn.Module, patch: Patch, *args: Any, **kwargs: Any):
    """`BertModel.forward` with merges. Every token output has all its places again, unless `restore=False`."""
    arguments = dict(zip(_ARGUMENTS, args, strict=False))
    if len(args) > len(_ARGUMENTS) or arguments.keys() & kwargs:
        raise TypeError(f"forward takes {', '.join(_ARGUMENTS)} by place, each once")
    arguments |= kwargs
    refused = [name for name in _ARGUMENTS[5:8] if arguments.get(name) is not None]
    if refused:
        raise ValueError(f"{refused[0]}: a merged BERT is an encoder, without cross-attention or a cache")
    options = CallOptions(model, len(model.encoder.layer), arguments)
    ids, kinds = arguments.get("input_ids"), arguments.get("token_type_ids")
    if (ids is None) == (arguments.get("inputs_embeds") is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")

    x = model.embeddings(
        input_ids=ids, token_type_ids=kinds, position_ids=arguments.get("position_ids"),
        inputs_embeds=arguments.get("inputs_embeds"),
    )
    refuse_exporting("how many tokens merge depends on the length of every text")
    real = _real(arguments.get("attention_mask"), x)
    protected = protected_tokens(real, ids, kinds, getattr(model.config, "sep_token_id", None), patch.protect)
    state = patch.start(x, 0, True, None, size=real.to(torch.float32), protected=protected)
    x, states = options.run(model.encoder.layer, x, state)
    read = state.as_read(x, state.plan)
    pooled = None if model.pooler is None else model.pooler(read)
    output = BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=read, pooler_output=pooled, hidden_states=states
    )
    return options.give(output)


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes for one text of `input_size = (tokens,)`, [CLS] and [SEP] included; None = the longest it takes.

    Cosines are counted among the tokens that may merge, as for images, although the code computes them for all places.
    """
    encoder = _encoder(model)
    if input_size is not None and len(input_size) != 1:
        raise ValueError(f"the input of a BERT has a size of (tokens,), got {tuple(input_size)}")
    tokens = encoder.config.max_position_embeddings if input_size is None else input_size[0]
    if tokens < 2:
        raise ValueError(f"a text has [CLS] and [SEP], so 2 tokens at least; got {tokens}")
    layers = tuple(
        LayerShape(
            encoder.config.hidden_size, layer.attention.self.num_attention_heads, layer.attention.self.all_head_size,
            linear(layer.attention), linear(layer.intermediate, layer.output),
        )
        for layer in encoder.encoder.layer
    )
    patch = active_patch(encoder)
    prefix = 1 if patch is not None and patch.protect == "cls" else 2  # [CLS], and [SEP] where it never merges
    name, reads_all = _AROUND.get(own_class(model), (None, False))
    behind = 0 if name is None else linear(getattr(model, name))
    pooler = linear(encoder.pooler)
    return ModelShape(tokens - prefix, prefix, layers, 0, lambda n: pooler + behind * (n + prefix if reads_all else 1))


FAMILY = Family(
    name="transformers BERT",
    supports="transformers BertModel and its heads, as encoders",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
    ragged=True,
    protects=PROTECTS,
)
