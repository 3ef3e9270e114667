"""Whole forwards of the paper's row and of the released variants, written out from their description (float64 models).

One image or text at a time, one layer at a time, loops and dense matrices. What a variant does in a layer stands in
`rule`; nothing is read from the package's table of presets. `changes` put another value into every rule, to show that
a wrong variant would be noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import oracle
import torch
from torch import Tensor

VARIANTS = ("paper", "released-deit", "released-mae", "released-clip", "released-llava", "released-bert")


def rule(variant: str, layer: int, depth: int) -> dict[str, Any]:
    """What a variant does in a layer: matching, energy, margin, what tokens are compared by, place, means, attention.

    `matching` is `pitome`, `sorted` (energy-sorted, nothing protected), `tome`, `high_low` or None (nothing merges). In
    `tome, class token in front`, places count from the class token, as in the original.
    `weighted`: means count tokens by size. `proportional`: attention counts keys by size.
    """
    part = layer / depth
    if variant == "paper":
        return {"matching": "pitome", "kernel": "paper", "margin": 0.9 - 0.9 * part, "metric": "keys",
                "place": "between", "weighted": True, "proportional": True}
    if variant in ("released-deit", "released-mae"):
        in_first_half = layer < math.ceil(depth / 2)
        sorted_first = variant == "released-deit"
        return {"matching": "sorted" if in_first_half == sorted_first else "pitome", "kernel": "elu",
                "margin": 0.75 * (1 - part), "metric": "keys", "place": "between", "weighted": True,
                "proportional": False}
    if variant == "released-clip":
        return {"matching": "pitome", "kernel": "elu", "margin": 0.95 * (1 - part), "metric": "hidden",
                "place": "between", "weighted": True, "proportional": False}
    if variant == "released-llava":
        return {"matching": "tome" if layer <= 12 else "pitome", "kernel": "elu", "margin": 0.9 * (1 - part),
                "metric": "hidden", "place": "after", "weighted": False, "proportional": False}
    if variant == "released-bert":
        return {"matching": "high_low" if layer < 3 else None, "kernel": "gaussian", "margin": 0.9 - 0.25 * part,
                "metric": "keys", "place": "between", "weighted": False, "proportional": False}
    raise ValueError(variant)


def joins(row: dict[str, Any], scored: Tensor, k: int) -> dict[int, int]:
    """Which token joins which, among the tokens that may merge: `scored (N, C)`."""
    cos, energy = oracle.cosine(scored), oracle.energies(scored, row["margin"], kernel=row["kernel"])
    ranked = sorted(range(len(cos)), key=lambda i: -energy[i])
    a_side, b_side = {
        "pitome": (ranked[: 2 * k : 2], ranked[1 : 2 * k : 2]),
        "high_low": (ranked[:k], ranked[k : 2 * k]),
        "sorted": (ranked[0::2], ranked[1::2]),
        "tome": (list(range(0, len(cos), 2)), list(range(1, len(cos), 2))),
        "tome, class token in front": (list(range(1, len(cos), 2)), list(range(0, len(cos), 2))),
    }[row["matching"]]
    partner = {a: b_side[oracle.first_best([cos[a, b] for b in b_side])] for a in a_side if b_side}
    return {a: partner[a] for a in sorted(partner, key=lambda a: -cos[a, partner[a]])[:k]}


def joins_in_released_order(row: dict[str, Any], scored: Tensor, keep: float) -> tuple[dict[int, int], list[int]]:
    """The ToMe layers of the released code, `scored (T, C)` with the class token at place 0: joins, and the new order.

    The class token counts in the number of tokens and in the parity, and is never a source. Tokens of A that stay come
    first, then those of B. Our preset has neither on purpose; this is here to measure what that changes.
    """
    cos, k = oracle.cosine(scored), oracle.tokens_removed(len(scored), keep)
    a_side, b_side = list(range(0, len(cos), 2)), list(range(1, len(cos), 2))
    partner = {a: b_side[oracle.first_best([cos[a, b] for b in b_side])] for a in a_side}
    sources = sorted(a_side[1:], key=lambda a: -cos[a, partner[a]])[:k]
    return {a: partner[a] for a in sources}, [a for a in a_side if a not in sources] + b_side


@torch.no_grad()
def tower(
    x: Tensor, blocks: Any, attend: Callable, feed: Callable, variant: str, keep: list[float], *,
    protected: tuple[int, ...] = (0,), released_order: bool = False, **changes: Any,
) -> tuple[Tensor, list[list[list[int]]]]:
    """Tokens `(T, C)` that leave the last block, merged ones in all their places; and after each block the groups.

    `attend(block, x, size) -> (x, keys (T, H, D))` and `feed(block, x) -> x` are the halves of a block, residual
    included; `size (T,)` is what attention counts keys by. `protected` are the places of tokens that never merge.
    """
    members = [[i] for i in range(len(x))]  # of each token, the places in the input that it stands for
    size = torch.ones(len(x), dtype=x.dtype)
    history = []
    for layer, block in enumerate(blocks):
        row = rule(variant, layer, len(blocks)) | changes
        x, keys = attend(block, x, size if row["proportional"] else torch.ones_like(size))
        if row["place"] == "after":
            x = feed(block, x)
        free = [i for i, group in enumerate(members) if not set(group) & set(protected)]
        metric = keys.sum(1) if row["metric"] == "keys" else x  # of the heads' sum and mean the cosines are the same
        if row["matching"] is None:
            into, order = {}, list(range(len(x)))
        elif row["matching"] == "tome" and released_order:
            into, order = joins_in_released_order(row, metric, keep[layer])
        else:
            k = oracle.tokens_removed(len(free), keep[layer])
            into = {free[a]: free[b] for a, b in joins(row, metric[free], k).items()} if k else {}
            order = [i for i in range(len(x)) if i not in into]
        merged = [[i, *(a for a in into if into[a] == i)] for i in order]
        weight = size if row["weighted"] else torch.ones_like(size)
        x = torch.stack([sum(weight[i] * x[i] for i in group) / sum(weight[i] for i in group) if len(group) > 1
                         else x[group[0]] for group in merged])
        size = torch.stack([sum(size[i] for i in group) for group in merged])
        members = [[place for i in group for place in members[i]] for group in merged]
        history.append([sorted(group) for group in members])
        if row["place"] == "between":
            x = feed(block, x)
    out = torch.empty(sum(len(group) for group in members), x.shape[1], dtype=x.dtype)
    for token, group in zip(x, members, strict=True):
        out[group] = token
    return out, history


def heads(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
    """Attention of every head, `(T, H, D)` each: a key of size s counts s times. `(T, H * D)`."""
    weights = torch.einsum("ihd,jhd->hij", q, k).mul(q.shape[-1] ** -0.5).exp() * size
    return torch.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdim=True), v).reshape(len(q), -1)


def timm_vit(model: Any, image: Tensor, variant: str, keep: list[float], **options: Any):
    """Normed tokens `(T, C)` of a plain timm ViT, and the groups."""

    def attend(block, x, size):
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).reshape(len(x), 3, attn.num_heads, -1).unbind(1)
        return x + block.ls1(attn.proj(heads(q, k, v, size))), k

    def feed(block, x):
        return x + block.ls2(block.mlp(block.norm2(x)))

    x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    out, history = tower(x, model.blocks, attend, feed, variant, keep, **options)
    return model.norm(out), history


def hf_clip(model: Any, image: Tensor, variant: str, keep: list[float], **options: Any):
    """Tokens `(T, C)` that leave the blocks of a CLIPVisionModel of transformers, and the groups."""

    def attend(layer, x, size):
        attn, inner = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (part(inner).reshape(len(x), attn.num_heads, -1) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        return x + attn.out_proj(heads(q, k, v, size)), k

    def feed(layer, x):
        return x + layer.mlp(layer.layer_norm2(x))

    x = model.pre_layrnorm(model.embeddings(image[None]))[0]
    return tower(x, model.encoder.layers, attend, feed, variant, keep, **options)


def hf_bert(model: Any, ids: Tensor, variant: str, keep: list[float], **options: Any):
    """Tokens `(T, C)` that leave the layers of a BertModel, for one text without padding, and the groups."""

    def attend(layer, x, size):
        attn, out = layer.attention.self, layer.attention.output
        q, k, v = (part(x).reshape(len(x), attn.num_attention_heads, -1) for part in (attn.query, attn.key, attn.value))
        return out.LayerNorm(out.dense(heads(q, k, v, size)) + x), k

    def feed(layer, x):
        return layer.output.LayerNorm(layer.output.dense(layer.intermediate(x)) + x)

    x = model.embeddings(input_ids=ids[None])[0]
    return tower(x, model.encoder.layer, attend, feed, variant, keep, **options)
