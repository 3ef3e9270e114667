"""Merged transformers of other families, written out by hand, one image and one token at a time (float64 models).

Every token remembers `place`, the patch it inherits its position from: the anchor's, as plans say.
"""

from __future__ import annotations

import oracle
import torch


@torch.no_grad()
def merged_tower(x, blocks, attend, feed, *, prefix, remove, margins, method="pitome", proportional=True,
                 metric="keys", insertion="between", moves=True, **options):
    """Run `x (T, C)` through blocks with merges. `attend(block, x, size, place) -> (update (T, C), keys (T, H, D))`.

    `options` are those of the method, as `oracle.roots_of` takes them. Returns unmerged states, one per block, and the
    composed roots per block. `moves=False` leaves the positions behind: what a wrong implementation does.
    """

    def kept(place, roots):
        return [place[i] for i in oracle.anchors(roots)] if moves else place[: len(oracle.anchors(roots))]

    size = torch.ones(len(x), dtype=x.dtype)
    place = list(range(len(x) - prefix))
    total, states, history = list(range(len(x) - prefix)), [], []
    for layer, block in enumerate(blocks):

        def merge(x, size, keys, layer=layer):
            scored = x if metric == "hidden" else keys.mean(1) if metric == "keys" else keys.reshape(len(x), -1)
            roots = oracle.roots_of(method, scored[prefix:], int(remove[layer]), margins[layer], **options)
            merged, sizes = oracle.merge(x[prefix:], roots, size[prefix:])
            x = torch.cat([x[:prefix], torch.from_numpy(merged)])
            return x, torch.cat([size[:prefix], torch.from_numpy(sizes)]), roots

        roots = None
        if insertion == "before":
            x, size, roots = merge(x, size, None)
            place = kept(place, roots)
        update, keys = attend(block, x, size if proportional else torch.ones_like(size), place)
        x = x + update
        if insertion == "between":
            x, size, roots = merge(x, size, keys)
        x = x + feed(block, x)
        if insertion == "after":
            x, size, roots = merge(x, size, keys)
        if insertion != "before":
            place = kept(place, roots)
        total = oracle.compose(total, roots)
        states.append(torch.cat([x[:prefix], torch.from_numpy(oracle.unmerge(x[prefix:], total))]))
        history.append(total)
    return states, history


def softmax_heads(q, k, v, bias):
    """Attention per head, `(T, H, D)` each and a bias `(H, T, T)` or broadcasting: `(T, H * D)`."""
    scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(q), -1)


def rotated(x, sin, cos, half):
    """One vector `(H, D)` turned by its angles, pair by pair."""
    out, depth = torch.empty_like(x), x.shape[-1]
    for j in range(depth // 2):
        a, b = (j, j + depth // 2) if half else (2 * j, 2 * j + 1)
        out[:, a] = x[:, a] * cos[a] - x[:, b] * sin[a]
        out[:, b] = x[:, b] * cos[b] + x[:, a] * sin[b]
    return out


def projections(attn, x):
    """q, k, v `(T, H, D)` of timm's EVA and BEiT attention, fused or not."""
    heads = attn.num_heads
    if attn.qkv is None:
        q, k, v = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        groups = heads // (k.shape[-1] // (q.shape[-1] // heads))
        k, v = (torch.stack([part.reshape(len(x), heads // groups, -1)[:, h // groups] for h in range(heads)], 1)
                for part in (k, v))
    else:
        q, k, v = (x @ attn.qkv.weight.t()).chunk(3, dim=-1)
        if getattr(attn, "q_bias", None) is not None:
            q, v = q + attn.q_bias, v + attn.v_bias
        elif attn.qkv.bias is not None:
            q, k, v = (p + b for p, b in zip((q, k, v), attn.qkv.bias.chunk(3), strict=True))
    return [part.reshape(len(x), heads, -1) for part in (q, k, v)]


def eva(model, images, **options):
    """(logits, features, states, roots) of a merged timm `Eva`."""
    prefix, table = model.num_prefix_tokens, None if model.rope is None else model.rope.get_embed(
        model.patch_embed.grid_size if model.dynamic_img_size else None)

    def attend(block, x, size, place):
        post = type(block).__name__ == "EvaBlockPostNorm"
        inner = x if post else block.norm1(x)
        attn = block.attn
        q, k, v = projections(attn, inner)
        q, k = attn.q_norm(q), attn.k_norm(k)
        keys = k
        if table is not None:
            depth = q.shape[-1]
            q, k = q.clone(), k.clone()
            for token, patch in enumerate(place):
                sin, cos = table[patch, :depth], table[patch, depth:]
                for part in (q, k):
                    part[prefix + token] = rotated(part[prefix + token].clone(), sin, cos, attn.rotate_half)
        y = attn.norm(softmax_heads(q, k, v, size.log()))
        if attn.gate is not None:
            y = y * attn.gate(inner).sigmoid()
        y = attn.proj(y)
        if post:
            return block.norm1(y), keys
        return (y if block.gamma_1 is None else block.gamma_1 * y), keys

    def feed(block, x):
        if type(block).__name__ == "EvaBlockPostNorm":
            return block.norm2(block.mlp(x))
        y = block.mlp(block.norm2(x))
        return y if block.gamma_2 is None else block.gamma_2 * y

    def embed(image):
        return model.norm_pre(model._pos_embed(model.patch_embed(image))[0])

    return finished(model, images, embed, model.blocks, attend, feed, prefix, **options)


def beit(model, images, **options):
    """(logits, features, states, roots) of a merged timm `Beit`."""
    rows, columns = model.patch_embed.grid_size
    last = (2 * rows - 1) * (2 * columns - 1)

    def index(query, key):  # -1 is the class token
        if query < 0 or key < 0:
            return last + (2 if query < 0 and key < 0 else 0 if query < 0 else 1)
        down, right = query // columns - key // columns, query % columns - key % columns
        return (down + rows - 1) * (2 * columns - 1) + right + columns - 1

    def attend(block, x, size, place):
        attn, tokens = block.attn, [-1, *place]
        q, k, v = projections(attn, block.norm1(x))
        bias = size.log().expand(attn.num_heads, len(x), len(x)).clone()
        tables = [attn.relative_position_bias_table]
        tables += [] if model.rel_pos_bias is None else [model.rel_pos_bias.relative_position_bias_table]
        for table in tables:
            if table is not None:
                for i, query in enumerate(tokens):
                    for j, key in enumerate(tokens):
                        bias[:, i, j] += table[index(query, key)]
        y = attn.proj(softmax_heads(q, k, v, bias))
        return (y if block.gamma_1 is None else block.gamma_1 * y), k

    def feed(block, x):
        y = block.mlp(block.norm2(x))
        return y if block.gamma_2 is None else block.gamma_2 * y

    def embed(image):
        x = torch.cat([model.cls_token, model.patch_embed(image)], dim=1)
        return x if model.pos_embed is None else x + model.pos_embed

    return finished(model, images, embed, model.blocks, attend, feed, 1, **options)


@torch.no_grad()
def finished(model, images, embed, blocks, attend, feed, prefix, **options):
    """Run every image and put the results together; the head is timm's own, on all patches."""
    runs = [merged_tower(embed(image[None])[0], blocks, attend, feed, prefix=prefix, **options) for image in images]
    states = [torch.stack([run[0][layer] for run in runs]) for layer in range(len(blocks))]
    features = model.norm(states[-1])
    return model.forward_head(features), features, states, [run[1] for run in runs]


@torch.no_grad()
def open_clip(tower, images, **options):
    """(output, states, roots) of a merged image tower of open_clip's own."""

    def attend(block, x, size, place):
        attn = block.attn
        inner = block.ln_1(x)
        q, k, v = (
            (inner @ weight.t() + bias).reshape(len(x), attn.num_heads, -1)
            for weight, bias in zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        )
        y = softmax_heads(q, k, v, size.log()) @ attn.out_proj.weight.t() + attn.out_proj.bias
        return block.ls_1(y), k

    def feed(block, x):
        return block.ls_2(block.mlp(block.ln_2(x)))

    blocks = tower.transformer.resblocks
    runs = [
        merged_tower(tower._embeds(image[None])[0], blocks, attend, feed, prefix=1, **options) for image in images
    ]
    states = [torch.stack([run[0][layer] for run in runs]) for layer in range(len(blocks))]
    pooled, tokens = tower._pool(states[-1])
    pooled = pooled @ tower.proj
    return ((pooled, tokens) if tower.output_tokens else pooled), states, [run[1] for run in runs]
