"""What the layers of a model offer to merging: averaged keys, hidden states, and the last tokens.

Works for a ViT of timm and for a bare BERT of transformers, merged or not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LayerKeys(NamedTuple):
    """What `layer_keys` reads, for L layers.

    Attributes:
        keys: L tensors ``(B, N, C / H)``: keys as they enter the attention score, mean over the H heads. N are the
            tokens that may merge: no class token, no [CLS] and [SEP].
        hidden: L tensors ``(B, N, C)``: the same tokens between attention and MLP, where merging takes place.
        last: ``(B, T, C)``: all tokens that leave the model, behind its last norm.
    """

    keys: list[Tensor]
    hidden: list[Tensor]
    last: Tensor


@torch.no_grad()
def layer_keys(model: nn.Module, inputs: Tensor) -> LayerKeys:
    """Run a model once and read what its layers offer to merging.

    Args:
        model: a timm ``VisionTransformer`` or a transformers ``BertModel``.
        inputs: images ``(B, 3, H, W)`` for a ViT, token ids ``(B, T)`` without padding for a BERT.

    Raises ``TypeError`` for another model.
    """
    if hasattr(model, "blocks"):
        parts = [(block.attn.k_norm, block.norm2) for block in model.blocks]
        mergeable, heads_at = slice(model.num_prefix_tokens, None), 1
    elif hasattr(model, "encoder"):
        parts = [(layer.attention.self.key, layer.intermediate) for layer in model.encoder.layer]
        mergeable, heads_at = slice(1, -1), 2
    else:
        raise TypeError(f"layer_keys reads ViTs of timm and bare BERTs, this is a {type(model).__name__}")
    keys: list[Tensor] = []
    hidden: list[Tensor] = []

    def keep_keys(module: nn.Module, args: tuple, key: Tensor) -> None:
        if heads_at == 2:
            key = key.unflatten(2, (model.config.num_attention_heads, -1))  # (B, T, C) -> (B, T, H, C / H)
        keys.append(key.mean(dim=heads_at)[:, mergeable])  # (B, N, C / H)

    def keep_tokens(module: nn.Module, args: tuple) -> None:
        hidden.append(args[0][:, mergeable])  # (B, N, C)

    hooks = [key.register_forward_hook(keep_keys) for key, _ in parts]
    hooks += [behind.register_forward_pre_hook(keep_tokens) for _, behind in parts]
    try:
        if heads_at == 1:
            last = model.forward_features(inputs)
        else:
            last = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return LayerKeys(keys, hidden, last)
