"""BERT, RoBERTa and DistilBERT of Hugging Face's transformers, as encoders.

A text differs from an image in three ways.

- Items have lengths of their own. Each loses its share of its own tokens, so that the other items of the batch and the
  place of the padding do not change its result.
- Padding takes no part: it does not merge, it is no key in attention, and energies do not count it.
- Some tokens in the middle never merge: the first real token ([CLS]), the last one, and the last of every segment that
  `token_type_ids` tells apart (their [SEP]). If `model.config.sep_token_id` (of RoBERTa: `eos_token_id`) is set and the
  model gets `input_ids`, the tokens with that id do not merge either. With `protect="cls"` the first real token alone
  never merges, as in the authors' released code (which lets padding merge, too: here it does not).

With `restore`, outputs have all T places again. The unpatched model leaves arbitrary values in padded places; here they
are zero once tokens have merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPoolingAndCrossAttentions, ModelOutput
from transformers.models.bert import modeling_bert as bert
from transformers.models.distilbert import modeling_distilbert as distilbert
from transformers.models.roberta import modeling_roberta as roberta

from ..family import PROTECTS, EntryPoint, Family, LayerShape, ModelShape
from ..instances import own_class
from ..patch import LayerStep, Merged, Patch, active_patch
from ..portable import refuse_exporting
from .common import AttentionCall, attention_point, check_step, linear
from .hf_common import CallOptions, attend, bound, implementation_refusal, real_tokens, unlisted


@dataclass(frozen=True)
class TextLayout:
    """How an encoder is laid out.

    Attributes:
        inside: the name of the encoder in models around it.
        layers: path of the list of layers.
        parts: the exact types of a layer and of its parts, by their paths in it.
        attention, mlp: paths of the module with the projections, and of the modules of the MLP.
        projections: names of the maps to queries, keys and values.
        halves: a layer's attention half `(layer, x, call)` and its MLP half `(layer, x)`, residuals and norms included.
        points: `layer` -> its attention modules, each with the function that takes the place of its forward.
        around: the models around the encoder: names of their heads, and whether these read every token.
        arguments: positional arguments of the encoder's `forward`.
        embedded: those that the embeddings take.
        separator: the entry of the config with the id of tokens that never merge.
        behind_padding: whether positions are counted from the padding's id + 1 on, in place of 0.
        output: the class of the output.
    """

    inside: str
    layers: str
    parts: dict[str, type]
    attention: str
    mlp: tuple[str, ...]
    projections: tuple[str, str, str]
    halves: tuple[Callable[[nn.Module, Tensor, AttentionCall], Tensor], Callable[[nn.Module, Tensor], Tensor]]
    points: Callable[[nn.Module], list[EntryPoint]]
    around: dict[type, tuple[tuple[str, ...], bool]]
    arguments: tuple[str, ...]
    embedded: tuple[str, ...]
    separator: str = "sep_token_id"
    behind_padding: bool = False
    output: type[ModelOutput] = BaseModelOutputWithPoolingAndCrossAttentions


def _before_output(
    names: tuple[str, str, str], attn: nn.Module, call: AttentionCall, x: Tensor
) -> tuple[Tensor, None]:
    """Self-attention with a bias, before its output projection."""
    maps = tuple(getattr(attn, name) for name in names)
    y = attend(attn, call, maps, x, head_dim=attn.attention_head_size, scale=attn.scaling, dropout=attn.dropout.p)
    return y, None


def _with_output(attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """BERT's self-attention with its output projection, residual and norm."""
    y, _ = attn.self(x, call=call)
    return attn.output(y, x), None


def _attention_half(layer: nn.Module, x: Tensor, call: AttentionCall) -> Tensor:
    return layer.attention(x, call=call)[0]


def _mlp_half(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.feed_forward_chunk(x)


def _points(layer: nn.Module) -> list[EntryPoint]:
    attn = layer.attention
    return [attention_point(attn, _with_output), attention_point(attn.self, partial(_before_output, _PLAIN))]


def _distilled_attention(attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """DistilBERT's self-attention with its output projection."""
    return attn.out_lin(_before_output(_DISTILLED, attn, call, x)[0]), None


def _distilled_half(layer: nn.Module, x: Tensor, call: AttentionCall) -> Tensor:
    return layer.sa_layer_norm(layer.attention(x, call=call)[0] + x)


def _distilled_mlp(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.output_layer_norm(layer.ffn(x) + x)


def _distilled_points(layer: nn.Module) -> list[EntryPoint]:
    return [attention_point(layer.attention, _distilled_attention)]


_PLAIN, _DISTILLED = ("query", "key", "value"), ("q_lin", "k_lin", "v_lin")
_EMBEDDED = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")
_DECODER = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")


def _bert(module: Any, name: str, inside: str, around: dict[type, tuple[str, bool]], **other: Any) -> TextLayout:
    """The layout of BERT, which RoBERTa shares."""
    names = {"": "Layer", "attention": "Attention", "attention.self": "SelfAttention",
             "attention.output": "SelfOutput", "intermediate": "Intermediate", "output": "Output"}
    return TextLayout(
        inside, "encoder.layer", {path: getattr(module, f"{name}{part}") for path, part in names.items()},
        "attention.self", ("intermediate", "output"), _PLAIN,
        (_attention_half, _mlp_half), _points,
        {kind: ((head,), every) for kind, (head, every) in around.items()},
        ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", *_DECODER, "use_cache"),
        _EMBEDDED, **other,
    )


_LAYOUTS = {
    bert.BertModel: _bert(bert, "Bert", "bert", {
        bert.BertForPreTraining: ("cls", True),
        bert.BertForMaskedLM: ("cls", True),
        bert.BertForTokenClassification: ("classifier", True),
        bert.BertForQuestionAnswering: ("qa_outputs", True),
        bert.BertForNextSentencePrediction: ("cls", False),
        bert.BertForSequenceClassification: ("classifier", False),
        bert.BertForMultipleChoice: ("classifier", False),
    }),
    roberta.RobertaModel: _bert(roberta, "Roberta", "roberta", {
        roberta.RobertaForMaskedLM: ("lm_head", True),
        roberta.RobertaForTokenClassification: ("classifier", True),
        roberta.RobertaForQuestionAnswering: ("qa_outputs", True),
        roberta.RobertaForSequenceClassification: ("classifier", False),
        roberta.RobertaForMultipleChoice: ("classifier", False),
    }, separator="eos_token_id", behind_padding=True),
    distilbert.DistilBertModel: TextLayout(
        "distilbert", "transformer.layer",
        {"": distilbert.TransformerBlock, "attention": distilbert.DistilBertSelfAttention, "ffn": distilbert.FFN},
        "attention", ("ffn",), _DISTILLED,
        (_distilled_half, _distilled_mlp), _distilled_points,
        {
            distilbert.DistilBertForMaskedLM: (("vocab_transform", "vocab_projector"), True),
            distilbert.DistilBertForTokenClassification: (("classifier",), True),
            distilbert.DistilBertForQuestionAnswering: (("qa_outputs",), True),
            distilbert.DistilBertForSequenceClassification: (("pre_classifier", "classifier"), False),
            distilbert.DistilBertForMultipleChoice: (("pre_classifier", "classifier"), False),
        },
        ("input_ids", "attention_mask", "inputs_embeds", "position_ids"),
        ("input_ids", "inputs_embeds", "position_ids"), output=BaseModelOutput,
    ),
}
# Models around an encoder -> the name of the encoder in them, their heads, whether these read every token.
_AROUND = {kind: (layout.inside, *heads) for layout in _LAYOUTS.values() for kind, heads in layout.around.items()}


def _towers(model: nn.Module) -> dict[str, str | None]:
    return {"text": None, "vision": None}  # there is one tower, and "vision" is the default of `apply`


def _encoder(model: nn.Module) -> nn.Module:
    kind = own_class(model)
    return getattr(model, _AROUND[kind][0]) if kind in _AROUND else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*_LAYOUTS, *_AROUND, bert.BertLMHeadModel, roberta.RobertaForCausalLM))


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    """Why a model cannot be patched; None if it can.

    Only exact types are accepted, because a subclass may override the loop that is replaced here.
    """
    kind, encoder = own_class(model), _encoder(model)
    layout = _LAYOUTS.get(own_class(encoder))
    if layout is None:
        return unlisted(model)
    if any(getattr(encoder.config, name, False) for name in ("is_decoder", "add_cross_attention", "is_causal")):
        return "as a decoder it is causal: a merged token would carry later words into earlier ones"
    if patch is not None and not patch.restore and kind in _AROUND and _AROUND[kind][2]:
        return f"{type(model).__qualname__} reads every token in its place, which restore=False does not give it"
    for i, layer in enumerate(encoder.get_submodule(layout.layers)):
        held = dict(layer.named_modules())
        for path, expected in layout.parts.items():
            part = held.get(path)
            if own_class(part) is not expected:
                return f"{layout.layers}.{i} has a {type(part).__qualname__} where a {expected.__qualname__} is known"
        if implementation_refusal(held[layout.attention]) is not None:
            return implementation_refusal(held[layout.attention])
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    encoder = _encoder(model)
    layout = _LAYOUTS[own_class(encoder)]
    stack, _, _ = layout.layers.rpartition(".")
    points: list[EntryPoint] = [(encoder, "forward", partial(_forward, layout)),
                                (encoder.get_submodule(stack), "forward", None)]
    for layer in encoder.get_submodule(layout.layers):
        points += [(layer, "forward", partial(_layer_forward, layout.halves)), *layout.points(layer)]
    return points


def _layer_forward(
    halves: tuple[Callable, Callable],
    layer: nn.Module,
    patch: Patch,
    *args: Any,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **_: Any,
) -> Merged:
    """A layer with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan. Norms stand behind the residuals."""
    check_step(step, layer)
    x, plan = args[0], None
    step, size = step.on(x.device), size.to(x.device)
    if step.insertion == "before":
        x, size, plan = step.merge(x, None, size)
    call = AttentionCall(step.bias(size, x.dtype), step.reads_attention)
    x, keys, attn_map = call.with_output(halves[0](layer, x, call))
    if step.insertion == "between":
        x, size, plan = step.merge(x, keys, size, attn_map)
    x = halves[1](layer, x)
    if step.insertion == "after":
        x, size, plan = step.merge(x, keys, size, attn_map)
    return x, size, plan


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


def _forward(layout: TextLayout, model: nn.Module, patch: Patch, *args: Any, **kwargs: Any):
    """An encoder's forward with merges. Every token output has all its places again, unless `restore=False`."""
    arguments = bound(layout.arguments, args, kwargs)
    refused = [name for name in _DECODER if arguments.get(name) is not None]
    if refused:
        raise ValueError(f"{refused[0]}: a merged text model is an encoder, without cross-attention or a cache")
    layers = model.get_submodule(layout.layers)
    options = CallOptions(model, len(layers), arguments)
    ids, kinds = arguments.get("input_ids"), arguments.get("token_type_ids")
    if (ids is None) == (arguments.get("inputs_embeds") is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")

    x = model.embeddings(**{name: arguments.get(name) for name in layout.embedded})
    refuse_exporting("how many tokens merge depends on the length of every text")
    real = real_tokens(arguments.get("attention_mask"), x)
    protected = protected_tokens(real, ids, kinds, getattr(model.config, layout.separator, None), patch.protect)
    state = patch.start(x, 0, True, None, size=real.to(torch.float32), protected=protected)
    x, taken = options.run(layers, x, state)
    read = state.as_read(x, state.plan)
    pooler = getattr(model, "pooler", None)
    pooled = {} if pooler is None else {"pooler_output": pooler(read)}
    return options.give(layout.output(last_hidden_state=read, hidden_states=options.states(taken, state), **pooled))


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes for one text of `input_size = (tokens,)`, [CLS] and [SEP] included; None = the longest it takes.

    Cosines are counted among the tokens that may merge, as for images, although the code computes them for all places.
    """
    encoder = _encoder(model)
    layout, config = _LAYOUTS[own_class(encoder)], encoder.config
    if input_size is not None and len(input_size) != 1:
        raise ValueError(f"the input of a text model has a size of (tokens,), got {tuple(input_size)}")
    longest = config.max_position_embeddings - (config.pad_token_id + 1 if layout.behind_padding else 0)
    tokens = longest if input_size is None else input_size[0]
    if tokens < 2:
        raise ValueError(f"a text has [CLS] and [SEP], so 2 tokens at least; got {tokens}")
    layers = []
    for layer in encoder.get_submodule(layout.layers):
        attn, mlp = layer.get_submodule(layout.attention), (layer.get_submodule(name) for name in layout.mlp)
        width = getattr(attn, layout.projections[1]).out_features
        heads = width // attn.attention_head_size
        layers.append(LayerShape(config.hidden_size, heads, width, linear(layer.attention), linear(*mlp)))
    patch = active_patch(encoder)
    prefix = 1 if patch is not None and patch.protect == "cls" else 2  # [CLS], and [SEP] where it never merges
    _, names, reads_all = _AROUND.get(own_class(model), (None, (), False))
    behind, pooler = linear(*(getattr(model, name) for name in names)), linear(getattr(encoder, "pooler", None))
    return ModelShape(
        tokens - prefix, prefix, tuple(layers), 0,
        lambda n: pooler + behind * (n + prefix if reads_all else 1),
    )


FAMILY = Family(
    name="transformers BERT",
    supports="transformers BertModel, RobertaModel, DistilBertModel and their heads, as encoders",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
    ragged=True,
    protects=PROTECTS,
)
