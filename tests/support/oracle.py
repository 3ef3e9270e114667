"""A slow, obvious reference for `pitome_core`, written from the formulas alone.

Python loops, dense matrices, float64, one item at a time: nothing here is shared with the package, so that an
agreement means something. A partition is written as *roots*: `roots[i]` is the token that token `i` joins
(`roots[i] == i` for a token that stays, -1 for one that is dropped or padding).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch


def as_array(values) -> np.ndarray:
    """Any tensor or nested list as a float64 array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def gaussian_tokens(batch, n, c, seed, dtype=torch.float64) -> torch.Tensor:
    """(B, N, C) random tokens from a generator of their own: no two scores are tied."""
    return torch.randn(batch, n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---------------------------------------------------------------------------------------------- graph and energy
def cosine(metric) -> np.ndarray:
    """(N, C) -> (N, N) cosines; a zero or non-finite vector has cosine 0 to everything, itself included (eq. 3)."""
    rows = as_array(metric)
    n = len(rows)
    result = np.zeros((n, n))
    norms = [math.sqrt(sum(float(v) ** 2 for v in row)) if np.isfinite(row).all() else 0.0 for row in rows]
    for i in range(n):
        for j in range(n):
            if i == j and norms[i] > 0:
                result[i, j] = 1.0
            elif norms[i] > 0 and norms[j] > 0:
                result[i, j] = float(np.dot(rows[i], rows[j])) / (norms[i] * norms[j])
    return result


def kernel_value(x: float, margin: float, alpha: float = 1.0, kernel: str = "paper") -> float:
    """f_m(x): eq. 4 (`paper`), its continuous variant (`elu`), or the Gaussian of the text variant."""
    if kernel == "paper":
        return x if x >= margin else alpha * (math.exp(x - margin) - 1)
    if kernel == "elu":
        return x - margin if x > margin else alpha * (math.exp(x - margin) - 1)
    if kernel == "gaussian":
        sigma = 1 - margin
        return math.exp(-(((1 - x) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    raise ValueError(kernel)


def energies(metric, margin: float, alpha: float = 1.0, kernel: str = "paper", mask=None) -> np.ndarray:
    """E_i = (1/N) sum_j f_m(cos_ij) over the real tokens, i included; -inf for padding and non-finite tokens."""
    rows = as_array(metric)
    real = [True] * len(rows) if mask is None else [bool(m) for m in mask]
    cos = cosine(np.where(np.array(real)[:, None], rows, 0.0))
    result = np.full(len(rows), -np.inf)
    for i in range(len(rows)):
        if real[i] and np.isfinite(rows[i]).all():
            terms = [kernel_value(cos[i, j], margin, alpha, kernel) for j in range(len(rows)) if real[j]]
            result[i] = math.fsum(terms) / len(terms)
    return result


def margins(num_layers: int, base: float = 0.9) -> list[float]:
    """m_l = base - base l / L."""
    return [base - base * layer / num_layers for layer in range(num_layers)]


# -------------------------------------------------------------------------------------------------------- matching
def first_best(scores) -> int:
    """The position of the first maximum."""
    best = 0
    for position, score in enumerate(scores):
        if score > scores[best]:
            best = position
    return best


def pitome_roots(metric, k: int, margin: float, alpha: float = 1.0, kernel: str = "paper") -> list[int]:
    """Steps 5-7: sort by energy, protect all but the first 2k, even ranks A, odd ranks B, a -> argmax_b cos."""
    cos, energy = cosine(metric), energies(metric, margin, alpha, kernel)
    ranked = sorted(range(len(cos)), key=lambda i: -energy[i])  # python's sort is stable
    a_side, b_side = ranked[: 2 * k : 2], ranked[1 : 2 * k : 2]
    roots = list(range(len(cos)))
    for a in a_side:
        roots[a] = b_side[first_best([cos[a, b] for b in b_side])]
    return roots


def tome_roots(metric, k: int, parity: str = "patches") -> list[int]:
    """Bipartite soft matching: even positions A, odd positions B; the k most similar edges merge.

    `parity="all"`: a class token has position 0, the first patch position 1.
    """
    cos, front = cosine(metric), int(parity == "all")
    a_side, b_side = ([i for i in range(len(cos)) if (i + front) % 2 == side] for side in (0, 1))
    roots = list(range(len(cos)))
    if not b_side:
        return roots
    partner = {a: b_side[first_best([cos[a, b] for b in b_side])] for a in a_side}
    for a in sorted(a_side, key=lambda a: -cos[a, partner[a]])[:k]:
        roots[a] = partner[a]
    return roots


def roots_of(method: str, metric, k: int, margin: float = 0.9, **options) -> list[int]:
    """The reference partition of a core method."""
    if method == "pitome":
        return pitome_roots(metric, k, margin, **options)
    return tome_roots(metric, k, **options)


def groups(roots) -> list[list[int]]:
    """Members of every output token, in raster order of the anchors."""
    return [[i for i, root in enumerate(roots) if root == anchor] for anchor in anchors(roots)]


def anchors(roots) -> list[int]:
    """The tokens that stay, in raster order."""
    return [i for i, root in enumerate(roots) if root == i]


def assignment(roots) -> list[int]:
    """Output slot of every token; -1 = dropped or padding."""
    slots = anchors(roots)
    return [slots.index(root) if root >= 0 else -1 for root in roots]


# ----------------------------------------------------------------------------------- merge, unmerge, composition
def merge(x, roots, size=None) -> tuple[np.ndarray, np.ndarray]:
    """x_b <- (sum s_i x_i) / (sum s_i) over every group; sizes add up (step 8)."""
    x = as_array(x)
    size = np.ones(len(x)) if size is None else as_array(size)
    merged, sizes = [], []
    for members in groups(roots):
        total = sum(size[i] for i in members)
        merged.append(sum(size[i] * x[i] for i in members) / total if len(members) > 1 else x[members[0]])
        sizes.append(total)
    return np.array(merged).reshape(len(sizes), x.shape[1]), np.array(sizes)


def unmerge(y, roots) -> np.ndarray:
    """Every token gets the value of its group; dropped tokens get zeros."""
    y = as_array(y)
    return np.array([y[slot] if slot >= 0 else np.zeros(y.shape[1]) for slot in assignment(roots)])


def averaging_matrix(roots) -> np.ndarray:
    """(M, N) matrix of the merge at unit sizes: 1 / n_g for the members of group g."""
    members = groups(roots)
    matrix = np.zeros((len(members), len(roots)))
    for slot, group in enumerate(members):
        for i in group:
            matrix[slot, i] = 1 / len(group)
    return matrix


def compose(first, second) -> list[int]:
    """Roots over the original tokens of `first` followed by `second` (whose tokens are the outputs of `first`)."""
    kept = anchors(first)
    result = []
    for slot in assignment(first):
        root = second[slot] if slot >= 0 else -1
        result.append(kept[root] if root >= 0 else -1)
    return result


def mlerp(x, roots) -> np.ndarray:
    """Direction of the mean, norm = the largest norm in the group."""
    x = as_array(x)
    result = []
    for members in groups(roots):
        mean = sum(x[i] for i in members) / len(members)
        largest = max(np.linalg.norm(x[i]) for i in members)
        result.append(mean / np.linalg.norm(mean) * largest if len(members) > 1 else x[members[0]])
    return np.array(result)


# ------------------------------------------------------------------------------------------------------- attention
def attention(q, k, v, size=None, scale=None) -> np.ndarray:
    """One head, (T, D) each: softmax(q k^T scale + log s) v, row by row (step 9)."""
    q, k, v = as_array(q), as_array(k), as_array(v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    size = np.ones(len(k)) if size is None else as_array(size)
    rows = []
    for query in q:
        weights = [size[j] * math.exp(float(query @ k[j]) * scale) for j in range(len(k))]
        rows.append(sum(w * v[j] for j, w in enumerate(weights)) / sum(weights))
    return np.array(rows)


# ------------------------------------------------------------------------------------------- schedules and counts
def tokens_removed(num_tokens: int, keep: float) -> int:
    """k = floor(N - N r), with r read as the decimal that was written (0.9 is nine tenths)."""
    return math.floor(num_tokens * (1 - Fraction(str(keep))))


def keep_removals(num_tokens: int, keep: float, num_layers: int) -> list[int]:
    """Tokens to remove in every layer at one keep ratio."""
    removals = []
    for _ in range(num_layers):
        k = tokens_removed(num_tokens, keep)
        removals.append(k)
        num_tokens -= k
    return removals


def block_macs(tokens_in: int, tokens_out: int, width: int, hidden: int | None = None) -> tuple[int, int]:
    """(attention, mlp) multiply-accumulates of one block: 4 N C^2 + 2 N^2 C, then 2 M C hidden."""
    hidden = 4 * width if hidden is None else hidden
    return 4 * tokens_in * width**2 + 2 * tokens_in**2 * width, 2 * tokens_out * width * hidden


def released_macs(block_inputs, width: int) -> int:
    """The released counter's convention: the MLP is charged with the tokens before the merge."""
    return sum(sum(block_macs(n, n, width)) for n in block_inputs)


# -------------------------------------------------------------------------------------------------------- spectral
def token_graph(metric) -> np.ndarray:
    """W_ij = 1 - cos_ij (eq. 3)."""
    return 1 - cosine(metric)


def laplacian(weights, kind: str = "normalized") -> np.ndarray:
    """D - W, or I - D^-1/2 W D^-1/2."""
    weights = as_array(weights)
    degree = [sum(row) for row in weights]
    result = np.zeros_like(weights)
    for i in range(len(weights)):
        for j in range(len(weights)):
            if kind == "combinatorial":
                result[i, j] = (degree[i] if i == j else 0.0) - weights[i, j]
            else:
                result[i, j] = (1.0 if i == j else 0.0) - weights[i, j] / math.sqrt(degree[i] * degree[j])
    return result


def coarsen(weights, roots, reduce: str = "mean") -> np.ndarray:
    """Average (the paper's definition) or sum of the weights between two groups."""
    weights, members = as_array(weights), groups(roots)
    result = np.zeros((len(members), len(members)))
    for i, left in enumerate(members):
        for j, right in enumerate(members):
            total = sum(weights[u, v] for u in left for v in right)
            result[i, j] = total / (len(left) * len(right)) if reduce == "mean" else total
    return result


def lift(weights, roots) -> np.ndarray:
    """The N x N graph whose weights are the coarse averages between the groups of its ends, self-loops kept."""
    coarse, slots = coarsen(weights, roots), assignment(roots)
    return np.array([[coarse[i, j] for j in slots] for i in slots])


def spectral_distance(weights, roots, kind: str = "normalized") -> float:
    """SD = sum_i |lambda_i - lambda_l,i| between sorted spectra (eq. 5)."""
    before = np.linalg.eigvalsh(laplacian(weights, kind))
    after = np.linalg.eigvalsh(laplacian(lift(weights, roots), kind))
    return float(np.abs(np.sort(before) - np.sort(after)).sum())


def inside_shares(weights, roots) -> list[float]:
    """W(V, V) / vol(V) of every group V; 0 / 0 is 0."""
    weights, shares = as_array(weights), []
    for members in groups(roots):
        inside = sum(weights[u, v] for u in members for v in members)
        volume = sum(weights[u, v] for u in members for v in range(len(weights)))
        shares.append(inside / volume if volume > 0 else 0.0)
    return shares


# ------------------------------------------------------------------------------------- a merged ViT, block by block
@torch.no_grad()
def merged_vit(model, images, *, remove, method="pitome", margins=None, proportional=True, metric="keys", **options):
    """A merged timm ViT in eval mode, written out by hand, one image at a time (use a float64 model).

    `remove` and `margins` hold one number per layer. Returns `(logits, features, states, roots)`: the outputs, the
    normed tokens that leave the model, one unmerged hidden state per block and the composed roots per block.
    """
    prefix = model.num_prefix_tokens
    all_features, all_states, all_roots = [], [], []
    for image in images:
        x = model.patch_embed(image[None])
        x = model.norm_pre(model._pos_embed(x))[0]
        size = torch.ones(len(x), dtype=x.dtype)
        total = list(range(len(x) - prefix))
        states, history = [], []
        for layer, block in enumerate(model.blocks):
            post = type(block).__name__ == "ResPostBlock"
            attn, heads = block.attn, block.attn.num_heads
            inner = x if post else block.norm1(x)
            qkv = attn.qkv(inner).reshape(len(x), 3, heads, attn.head_dim)
            q, k, v = attn.q_norm(qkv[:, 0]), attn.k_norm(qkv[:, 1]), qkv[:, 2]
            scores = torch.einsum("ihd,jhd->hij", q, k) * attn.scale
            if proportional:
                scores = scores + size.log()
            out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(x), -1)
            out = attn.norm(out)
            if attn.gate is not None:
                out = out * attn.gate(inner).sigmoid()
            out = attn.proj(out)
            x = x + (block.norm1(out) if post else block.ls1(out))

            scored = {"keys": k.mean(1), "hidden": x, "concat": k.reshape(len(x), -1)}[metric][prefix:]
            margin = 0.9 if margins is None else margins[layer]
            roots = roots_of(method, scored, int(remove[layer]), margin, **options)
            merged, merged_size = merge(x[prefix:], roots, size[prefix:])
            x = torch.cat([x[:prefix], torch.from_numpy(merged)])
            size = torch.cat([size[:prefix], torch.from_numpy(merged_size)])
            total = compose(total, roots)

            x = x + (block.norm2(block.mlp(x)) if post else block.ls2(block.mlp(block.norm2(x))))
            states.append(torch.cat([x[:prefix], torch.from_numpy(unmerge(x[prefix:], total))]))
            history.append(total)
        all_features.append(model.norm(states[-1]))
        all_states.append(states)
        all_roots.append(history)
    features = torch.stack(all_features)
    states = [torch.stack([item[layer] for item in all_states]) for layer in range(len(model.blocks))]
    return model.forward_head(features), features, states, all_roots


# -------------------------------------------------------------------------------------------------------- checkers
def check_partition(plan, num_tokens: int, kept: int | None = None) -> None:
    """Raise AssertionError unless `plan` is a full partition of `num_tokens` tokens: shapes, slots, anchors, order."""
    assigned, anchor = plan.assignment, plan.anchor
    assert assigned.dtype == torch.long and anchor.dtype == torch.long, "assignment and anchor must be long"
    assert assigned.shape[1] == num_tokens, f"{assigned.shape[1]} tokens assigned, {num_tokens} expected"
    assert anchor.shape == (assigned.shape[0], plan.num_tokens), "one anchor per slot"
    assert kept is None or plan.num_tokens == kept, f"{plan.num_tokens} slots, {kept} expected"
    for slots, kept_tokens in zip(assigned.tolist(), anchor.tolist(), strict=True):
        assert set(slots) == set(range(plan.num_tokens)), "every slot has a member, every token a slot"
        assert kept_tokens == sorted(set(kept_tokens)), "anchors stand in raster order, without repetition"
        assert [slots[token] for token in kept_tokens] == list(range(plan.num_tokens)), "an anchor is in its own slot"


def plan_roots(plan) -> list[list[int]]:
    """The roots of every item, read back from `plan.assignment` and `plan.anchor`."""
    return [
        [kept[slot] if slot >= 0 else -1 for slot in slots]
        for slots, kept in zip(plan.assignment.tolist(), plan.anchor.tolist(), strict=True)
    ]


# --------------------------------------------------------------------------------------------- rivals and controls
def rivals_roots(method: str, metric, k: int, *, attention=None, class_attention=None, size=None, positions=None,
                 layer: int = 0, num_layers: int = 1, **options) -> list[int]:
    """The reference assignment of one item under a method of `pitome_core.experiments.baselines`."""
    if method == "tofu":
        return tofu_roots(metric, k, layer, num_layers)
    if method == "crossget":
        return crossget_roots(metric, k)
    if method == "mctf":
        return mctf_roots(metric, k, attention, size, **options)
    if method == "diffrate":
        return diffrate_roots(metric, k, class_attention)
    if method == "atc":
        return atc_roots(metric, k, **options)
    if method == "topk_attention":
        return topk_roots(k, class_attention)
    if method == "evit":
        return evit_roots(k, class_attention)
    if method == "grid_pool":
        return grid_pool_roots(positions)
    raise ValueError(method)


def least_first(weights) -> list[int]:
    """Token indices from the least to the greatest weight; of equals the first in raster order."""
    weights = as_array(weights)
    return sorted(range(len(weights)), key=lambda i: weights[i])


def tofu_roots(metric, k: int, layer: int, num_layers: int) -> list[int]:
    """ToMe's pairs; the sources are dropped in the first half of the layers."""
    roots = tome_roots(metric, k)
    return [-1 if layer < num_layers // 2 and root != i else root for i, root in enumerate(roots)]


def sized_mlerp(x, roots, size) -> np.ndarray:
    """The size-weighted mean of every group, brought to the largest norm in the group."""
    x, (means, _) = as_array(x), merge(x, roots, size)
    result = []
    for mean, members in zip(means, groups(roots), strict=True):
        largest = max(np.linalg.norm(x[i]) for i in members)
        result.append(mean / np.linalg.norm(mean) * largest if len(members) > 1 else mean)
    return np.array(result)


def crossget_roots(metric, k: int) -> list[int]:
    """Rank by the best off-diagonal cosine; edges go down the ranking; the k best edges name the sources."""
    cos, n = cosine(metric), len(as_array(metric))
    best = [max([cos[i, j] for j in range(n) if j != i], default=0.0) for i in range(n)]
    ranked = sorted(range(n), key=lambda i: -best[i])
    edge = {token: max(cos[token, later] for later in ranked[rank + 1 :]) for rank, token in enumerate(ranked[:-1])}
    sources = sorted(sorted(edge), key=lambda i: -edge[i])[:k]
    others = [i for i in range(n) if i not in sources]
    roots = list(range(n))
    for source in sources:
        roots[source] = others[first_best([cos[source, other] for other in others])]
    return roots


def mctf_weight(metric, attention, size=None, t_sim=1.0, t_info=20.0, t_size=40.0) -> np.ndarray:
    """W = ((S + 1) / 2)^(1/t_sim) (u_i u_j)^(1/t_info) (v_i v_j)^(1/t_size), u and v over their maxima."""
    cos, attention = cosine(metric), as_array(attention)
    n = len(cos)
    size = [1.0] * n if size is None else as_array(size)
    u = [1 / (sum(row[i] for row in attention) / len(attention)) for i in range(n)]
    v = [1 / size[i] for i in range(n)]
    u, v = [value / max(u) for value in u], [value / max(v) for value in v]
    weight = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            similar = max((cos[i, j] + 1) / 2, 0.0)
            weight[i, j] = similar ** (1 / t_sim) * (u[i] * u[j]) ** (1 / t_info) * (v[i] * v[j]) ** (1 / t_size)
    return weight


def mctf_roots(metric, k: int, attention, size=None, first: str = "ceil", **exponents) -> list[int]:
    """ceil(k / 2) even tokens join their best odd one, then the rest of k odd ones their best even one that is left.

    `first="floor"`: floor(k / 2) of them go first.
    """
    weight = mctf_weight(metric, attention, size, **exponents)
    n = len(weight)
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    joins = {}
    there = math.ceil(k / 2) if first == "ceil" else math.floor(k / 2)
    for sources, targets, count in ((even, odd, there), (odd, even, k - there)):
        targets = [t for t in targets if t not in joins]
        if not targets or not count:
            continue
        partner = {s: targets[first_best([weight[s, t] for t in targets])] for s in sources}
        for s in sorted(sources, key=lambda s: -weight[s, partner[s]])[:count]:
            joins[s] = partner[s]
    roots = []
    for i in range(n):
        while i in joins:
            i = joins[i]
        roots.append(i)
    return roots


def diffrate_roots(metric, k: int, class_attention) -> list[int]:
    """floor(k / 2) of the least attended tokens go, the next join their most similar one of those that stay."""
    cos, order = cosine(metric), least_first(class_attention)
    stay = sorted(order[k:])
    roots = list(range(len(order)))
    for i in order[: k // 2]:
        roots[i] = -1
    for i in order[k // 2 : k]:
        roots[i] = stay[first_best([cos[i, j] for j in stay])]
    return roots


def topk_roots(k: int, class_attention) -> list[int]:
    """The k least attended tokens go."""
    dropped = least_first(class_attention)[:k]
    return [-1 if i in dropped else i for i in range(len(as_array(class_attention)))]


def evit_roots(k: int, class_attention) -> list[int]:
    """The k + 1 least attended tokens become one, in the place of the last of them."""
    fused = least_first(class_attention)[: k + 1]
    return [fused[-1] if i in fused else i for i in range(len(as_array(class_attention)))]


def evit_merge(x, k: int, class_attention) -> np.ndarray:
    """Tokens after EViT: the others as they are, and sum a_i x_i / sum a_i of the fused ones."""
    x, a = as_array(x), as_array(class_attention)
    result = []
    for members in groups(evit_roots(k, a)):
        result.append(sum(a[i] * x[i] for i in members) / sum(a[i] for i in members) if len(members) > 1 else
                      x[members[0]])
    return np.array(result)


def atc_roots(metric, k: int, linkage: str = "average") -> list[int]:
    """Join the two nearest clusters k times; the root is the medoid."""
    distance = 1 - cosine(metric)
    clusters = [[i] for i in range(len(distance))]
    between = {"single": min, "complete": max, "average": lambda values: sum(values) / len(values)}[linkage]
    for _ in range(k):
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i + 1, len(clusters))]
        i, j = min(pairs, key=lambda p: between([distance[a, b] for a in clusters[p[0]] for b in clusters[p[1]]]))
        clusters[i] = sorted(clusters[i] + clusters.pop(j))
    roots = [0] * len(distance)
    for members in clusters:
        spread = [sum(distance[i, j] for j in members if j != i) for i in members]
        for i in members:
            roots[i] = members[first_best([-value for value in spread])]
    return roots


def grid_pool_roots(positions) -> list[int]:
    """Every token joins the first one of its 2 x 2 window."""
    windows = [(int(row) // 2, int(column) // 2) for row, column in as_array(positions)]
    return [windows.index(window) for window in windows]


def cosine_transform(values) -> np.ndarray:
    """Orthonormal DCT-II of a list of numbers."""
    n = len(values)
    return np.array([
        math.sqrt((1 if f == 0 else 2) / n) * sum(values[t] * math.cos(math.pi * f * (2 * t + 1) / (2 * n))
                                                  for t in range(n))
        for f in range(n)
    ])


def inverse_cosine_transform(values) -> np.ndarray:
    """Orthonormal DCT-III, the inverse of the above."""
    n = len(values)
    return np.array([
        sum(math.sqrt((1 if f == 0 else 2) / n) * values[f] * math.cos(math.pi * f * (2 * t + 1) / (2 * n))
            for f in range(n))
        for t in range(n)
    ])


def pooled(x, roots, weight) -> np.ndarray:
    """sum w_i x_i / sum w_i over every group."""
    x, weight = as_array(x), as_array(weight)
    return np.array([sum(weight[i] * x[i] for i in g) / sum(weight[i] for i in g) for g in groups(roots)])


def dct_merge(x, kept: int, factor: float | None = None) -> np.ndarray:
    """X' = factor IDCT_M(DCT_N(X)[:M]), column by column; the factor is sqrt(M / N) unless another one is given."""
    x = as_array(x)
    columns = [inverse_cosine_transform(cosine_transform(column)[:kept]) for column in x.T]
    return (math.sqrt(kept / len(x)) if factor is None else factor) * np.stack(columns, axis=1)


def dct_unmerge(y, width: int, factor: float | None = None) -> np.ndarray:
    """1 / factor times IDCT_N of DCT_M(Y), continued by zeros."""
    y = as_array(y)
    columns = [inverse_cosine_transform([*cosine_transform(column), *[0.0] * (width - len(y))]) for column in y.T]
    return (math.sqrt(width / len(y)) if factor is None else 1 / factor) * np.stack(columns, axis=1)
