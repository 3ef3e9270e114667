"""What the families of Hugging Face's transformers share: attention, and the options of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import capture_outputs

from ..attention import attention, attention_map
from ..merge_plan import LinearPlan, MergePlan
from ..patch import ForwardState
from .common import AttentionCall, run_blocks

_IMPLEMENTATIONS = ("sdpa", "eager")

# Tokens `(B, T', C)` behind a layer, and the plan composed up to it.
Taken = tuple[Tensor, MergePlan | LinearPlan | None]


class _NoOutputs:
    """Stands in for a model of which transformers records no outputs."""

    config = None


@capture_outputs
def _unrecorded(model: _NoOutputs, run: Callable[[], Any]) -> Any:
    """Run `run` while transformers records nothing; its hooks on layers would hand merged tokens to the caller."""
    return run()


def implementation_refusal(attn: nn.Module) -> str | None:
    """Why the attention implementation of a module does not work with merging; None if it does."""
    chosen = attn.config._attn_implementation
    if chosen in _IMPLEMENTATIONS:
        return None
    return (
        f"attention implementation {chosen!r} takes no additive bias of token sizes: "
        f"model.set_attn_implementation({_IMPLEMENTATIONS[0]!r}) first"
    )


def unlisted(model: nn.Module) -> str:
    """Why a model of another type than those listed cannot be patched."""
    return f"{type(model).__qualname__} is not listed and may run its layers in another way"


def bound(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `forward` by name; `names` are those of `args`. TypeError for too many, or one given twice."""
    by_place = dict(zip(names, args, strict=False))
    if len(args) > len(names) or by_place.keys() & kwargs:
        raise TypeError(f"forward takes {', '.join(names)} by place, each once")
    return by_place | kwargs


def attend(
    attn: nn.Module,
    call: AttentionCall,
    projections: tuple[nn.Module, ...],
    x: Tensor,
    *,
    head_dim: int,
    scale: float,
    dropout: float,
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Self-attention up to its output projection: `x (B, T, C)` -> `(B, T, H D)`.

    The projections are three maps, or one map to queries, keys and values side by side. `rotate` turns queries and keys
    by the angles of the call.
    """
    maps = [linear(x) for linear in projections]
    maps = maps if len(maps) == 3 else maps[0].chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in maps)
    call.keys = k
    if rotate is not None:
        q, k = rotate(q, k, *call.rope)
    call.map = attention_map(q, k, call.bias, scale=scale) if call.wants_map else None
    fused = attn.config._attn_implementation != "eager"
    y = attention(q, k, v, call.bias, scale=scale, dropout=dropout if attn.training else 0.0, fused=fused)
    return y.transpose(1, 2).flatten(2)


def real_tokens(attention_mask: Tensor | None, x: Tensor) -> Tensor:
    """`(B, T)` bool: True for tokens, False for padding. ValueError for a mask of another shape or an empty item."""
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


class CallOptions:
    """What a caller asks of one forward call. The config gives the values of options that the caller leaves out.

    Attributes:
        count: how many hidden states there are.
        wanted: indices of the hidden states asked for, from 0 (embeddings) to L; None if none are asked for.
        as_object: whether the output is an object; else a tuple.
    """

    def __init__(self, model: nn.Module, num_layers: int, arguments: dict[str, Any]):
        def value(name: str) -> Any:
            return arguments[name] if name in arguments else getattr(model.config, name, None)

        if value("output_attentions"):
            raise ValueError(
                "output_attentions=True: attention maps of a merged model have no rows and columns for all tokens; "
                "pc.remove(model) first"
            )
        if value("is_causal"):
            raise ValueError("is_causal=True: a merged token would carry later tokens into earlier ones")
        states, self.count = value("output_hidden_states"), num_layers + 1
        count = self.count
        indices = range(count) if isinstance(states, bool) else [states] if isinstance(states, int) else states
        self.wanted = {i % count for i in indices if -count <= i < count} if states else None
        as_object = arguments.get("return_dict")
        self.as_object = model.config.return_dict if as_object is None else as_object
        self.ties_last = getattr(model.config, "tie_last_hidden_states", None)

    def run(
        self, layers: nn.ModuleList, x: Tensor, state: ForwardState, tables: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[int, Taken]]:
        """Run all layers: tokens `(B, T', C)`, and what the hidden states that were asked for are read from."""
        wanted = self.wanted or set()
        take = tuple(i - 1 for i in sorted(wanted) if i > 0)
        y, taken = _unrecorded(_NoOutputs(), partial(run_blocks, layers, x, state, take=take, tables=tables))
        start: dict[int, Taken] = {0: (x, None)} if 0 in wanted else {}
        return y, start | {layer + 1: entry for layer, entry in zip(take, taken, strict=True)}

    def states(self, taken: dict[int, Taken], state: ForwardState) -> tuple[Tensor | None, ...] | None:
        """The hidden states that were asked for, as a caller reads them; None in the place of others."""
        if self.wanted is None:
            return None
        return tuple(state.as_read(*taken[i]) if i in taken else None for i in range(self.count))

    def give(self, output: Any) -> Any:
        """The output as an object or a tuple. With some configs the last hidden state is the normed last state."""
        states = output.hidden_states
        if self.ties_last and states and states[-1] is not None:
            output.hidden_states = (*states[:-1], output.last_hidden_state)
        return output if self.as_object else output.to_tuple()
