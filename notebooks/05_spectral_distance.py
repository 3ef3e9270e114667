# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Spectral distance
#
# PiToMe {cite}`tran2024pitome` is called *spectrum-preserving*: merging should change the eigenvalues of the graph of tokens little. The
# paper measures the change by the spectral distance. On its graph, whose weights are distances $1 - \cos$, **this number
# needs no eigenvalue**: it is a sum over the merged groups,
#
# $$SD(\mathcal G, \mathcal G_c) = \sum_i \frac{W(V_i, V_i)}{\mathrm{vol}(V_i)},$$
#
# where $W(V, V)$ sums all weights between tokens of $V$ and $\mathrm{vol}(V)$ the degrees of its tokens. Each term is the *in-group share*: how much of the distances of a group's tokens lies inside the group. In the figure: a frame's squares, against
# the whole rows; the stronger a square, the larger the weight. Drag token 3 away from its group: the squares in its frame get stronger.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports"}
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.data import photos
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.formats import percent
from pitome_core.spectral import (
    coarsen,
    inside_shares,
    laplacian,
    lift,
    spectrum,
    token_graph,
)

plots.use_style()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Six tokens, three groups, and the spectral distance. Pull token 3 to tokens 4 and 5, then on to token 6: PiToMe's groups follow. Group by hand and split a cluster: its strong squares enter the frames, and the distance rises by their share. *Live; drag the tokens, or turn them by the arrow keys.*", "name": "fig-coarse-live"}, "image": {"alt": "Six tokens as arrows in a circle, coloured by group; the matrix of their weights with the groups framed; the eigenvalues before and after lifting."}}
angles = [0, 12, 30, 115, 135, 230]  # degrees
radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
tokens = torch.stack([radians.cos(), radians.sin()], dim=1)[None]  # (1, 6, 2)
plan = pc.plan(tokens, 3, "pitome", margin=0.5)
groups = [
    torch.nonzero(plan.assignment[0] == slot)[:, 0].tolist() for slot in range(3)
]
weights = token_graph(tokens)  # (1, 6, 6)
coarse = coarsen(weights, plan)  # (1, 3, 3)
lifted = lift(coarse, plan)  # (1, 6, 6)
display(plots.six_tokens(tokens[0], margin=0.5))

# %% [markdown]
# **Asked.** A graph of 6 tokens has six eigenvalues, one of 3 groups has three. How are they compared, what does the
# comparison measure, and what do PiToMe and ToMe {cite}`bolya2023tome` make of it?
#
# ## The graph of tokens
#
# The weight of two tokens is their distance, $W_{ij} = 1 - \cos(k_i, k_j)$ (eq. 3). In most graphs a large weight means *near*; here it means
# *far*. The degree $d_i = \sum_j W_{ij}$ is large for an isolated token. The spectrum is that of the normalized Laplacian,
#
# $$\mathcal L = I - D^{-1/2} W D^{-1/2}, \qquad D = \mathrm{diag}(d).$$

# %% tags=["nbval-check-output"]
unit = tokens[0] / tokens[0].norm(dim=-1, keepdim=True)
W = 1 - unit @ unit.T  # (6, 6)
d = W.sum(dim=1)
normalized = torch.eye(6) - W / (d[:, None] * d[None, :]).sqrt()
before = torch.linalg.eigvalsh(normalized).clamp_min(0)
print("degrees     ", " ".join(f"{v:6.3f}" for v in d.tolist()))
print("eigenvalues ", " ".join(f"{v:6.3f}" for v in before.tolist()))

# %% [markdown]
# One eigenvalue is 0, all others are 1 or larger. This holds on every such graph: $W$ is a constant minus a matrix of inner products, and
# has a single positive eigenvalue. Tokens with $C$ channels, none of them zero, leave at most $C$ eigenvalues above 1.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the checks: the package computes the same; 200 random graphs"}
assert torch.allclose(W, weights[0], atol=1e-12)
assert torch.allclose(torch.diag(d) - W, laplacian(weights, "combinatorial")[0], atol=1e-12)
assert torch.allclose(normalized, laplacian(weights)[0], atol=1e-7)
draws = torch.Generator().manual_seed(0)
clouds = torch.randn(200, 20, 8, generator=draws, dtype=torch.float64)  # 200 graphs
values = spectrum(token_graph(clouds))
assert values[:, 0].abs().max() < 1e-9  # one eigenvalue 0
assert values[:, 1:].min() > 1 - 1e-9  # all others at least 1
assert ((values > 1 + 1e-9).sum(dim=1) == 8).all()  # above 1: as many as channels

# %% [markdown]
# ## Fewer vertices, and as many as before
#
# A merge puts every token into a group. **Coarsening** makes a graph with one vertex per group; its weights are averages over all
# pairs between two groups, or inside one: $W_c[i, j]$ is the mean of $W_{uv}$ over $u \in V_i$, $v \in V_j$.
#
# Three eigenvalues cannot be compared with six. **Lifting** copies the coarse weights back, $W_l[u, v] = W_c[i(u), i(v)]$: every
# token takes the average view of its group. Now there are six on both sides, and the **spectral distance** (eq. 5) adds up their
# differences, rank by rank:
#
# $$SD(\mathcal G, \mathcal G_c) = \sum_{i=1}^{N} \bigl|\lambda_i - \lambda_{l,i}\bigr|.$$
#
# The exact statements, and what they assume of zero vectors, stand in the [appendix](../book/coarsening.md): {prf:ref}`def-graph`,
# {prf:ref}`def-coarse`, {prf:ref}`def-lift`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Top: the graph of six tokens, the coarse graph of three groups, and the lifted graph, which is the coarse one on six vertices again. Stronger edges weigh more; rings are self-loops, drawn stronger than they weigh. Bottom: eigenvalues of their normalized Laplacians; lines join the ranks that the spectral distance compares. *Live.*", "name": "fig-coarse-six"}, "image": {"alt": "Three small graphs with six, three and six vertices on a circle; below, rows of ticks between 0 and 2. The coarse graph's eigenvalues appear among the lifted one's, together with three ticks at 1."}}
GROUP = ["#0072B2", "#D55E00", "#009E73"]
figure = plt.figure(figsize=(7.6, 3.7))
rows = figure.add_gridspec(2, 3, height_ratios=[3, 1.5])


def draw(ax, places, weight, colours, sizes, title):
    top = weight.max()
    for i in range(len(places)):
        if weight[i, i] > 1e-12:
            ax.add_patch(
                plt.Circle(
                    1.22 * places[i],
                    0.17,
                    fill=False,
                    color="0.25",
                    alpha=max(0.3, weight[i, i] / top),
                    linewidth=1.8,
                )
            )
        for j in range(i):
            ax.plot(
                *places[[i, j]].T,
                color="0.25",
                linewidth=1.8,
                alpha=float(weight[i, j] / top),
                zorder=0,
            )
    ax.scatter(*places.T, s=sizes, color=colours, zorder=3, edgecolor="white")
    ax.set(xlim=(-1.1, 1.55), ylim=(-1, 1.45), aspect="equal", title=title)
    ax.set_axis_off()


of = plan.assignment[0].tolist()
middle = torch.nn.functional.normalize(plan.merge(tokens)[0][0], dim=-1).numpy()
member = [GROUP[i] for i in of]
draw(
    figure.add_subplot(rows[0, 0]),
    tokens[0].numpy(),
    weights[0].numpy(),
    member,
    130,
    "tokens",
)
draw(
    figure.add_subplot(rows[0, 1]),
    middle,
    coarse[0].numpy(),
    GROUP,
    [130 * len(g) for g in groups],
    "coarse",
)
draw(
    figure.add_subplot(rows[0, 2]),
    tokens[0].numpy(),
    lifted[0].numpy(),
    member,
    130,
    "lifted",
)
ax = figure.add_subplot(rows[1, :])
before, after = spectrum(weights)[0].numpy(), spectrum(lifted)[0].numpy()
summed = spectrum(coarsen(weights, plan, "sum"))[0].numpy()
for y, (values, colour) in enumerate(
    [(summed, "#D55E00"), (after, "#0072B2"), (before, "black")]
):
    ax.plot(
        values,
        [y] * len(values),
        "|",
        markersize=15,
        markeredgewidth=2,
        color=colour,
    )
for y in (1, 2):
    ax.text(1.012, y + 0.12, "x 3", fontsize=9)
for a, b in zip(before, after, strict=True):
    ax.plot([a, b], [1.85, 1.15], color="0.6", linewidth=1, zorder=0)
ax.set(
    yticks=[0, 1, 2],
    ylim=(-0.5, 2.5),
    xlabel="eigenvalue of the normalized Laplacian",
)
ax.set_yticklabels(["coarse (sums)", "lifted", "tokens"])
plt.show()

# %% tags=["nbval-check-output", "hide-input"] mystnb={"code_prompt_show": "Show the same by hand, in loops"}
by_hand = torch.tensor(
    [
        [np.mean([W[u, v] for u in left for v in right]) for right in groups]
        for left in groups
    ]
)  # coarse
assert torch.allclose(by_hand, coarse[0])
back = torch.tensor([[by_hand[of[u], of[v]] for v in range(6)] for u in range(6)])  # lifted
degree = back.sum(dim=1)
lifted_by_hand = torch.eye(6) - back / (degree[:, None] * degree[None, :]).sqrt()
after = torch.linalg.eigvalsh(lifted_by_hand).clamp_min(0)
before = torch.linalg.eigvalsh(normalized).clamp_min(0)
distance = (before - after).abs().sum()
assert abs(distance - pc.spectral_distance(tokens, plan)) < 1e-6
print("tokens", " ".join(f"{v:.4f}" for v in before.tolist()))
print("lifted", " ".join(f"{v:.4f}" for v in after.tolist()))
print(f"SD {distance:.4f}")

# %% [markdown]
# ## Only downwards
#
# Compare the two rows of the last output, rank by rank. No eigenvalue has grown. On graphs of $1 - \cos$ that holds for every way to merge:
# averaging can only pull eigenvalues down, towards 1. If all differences have one sign, the sum of their absolute values is the
# difference of two sums, and a sum of eigenvalues is a *trace*, which needs no eigenvalues. What is left is the formula at the top, with
#
# $$W(V, V) = \sum_{u, v \in V} W_{uv}, \qquad \mathrm{vol}(V) = \sum_{u \in V} d_u.$$
#
# The proof, in ten lines, is {prf:ref}`thm-identity` of the [appendix](../book/theorem.md). In code:

# %% tags=["nbval-check-output"]
shares = [W[g][:, g].sum() / d[g].sum() for g in groups]
for group, share in zip(groups, shares, strict=True):
    print(f"{group!s:10s} {share:.4f}")
print(f"sum        {sum(shares):.4f}")
assert abs(sum(shares) - distance) < 1e-6

# %% [markdown]
# It can be read as a walk. A walker hops from token to token, to distant ones more often, in proportion to $W$. The share is the
# chance that one hop from a group stays inside it. (It is also $n$ minus the *normalized cut* of the groups {cite}`shi2000cuts`.)
# So the distance prefers close pairs, and has no preference for large clusters. On 200 random graphs and merges the formula holds to
# rounding:

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the check on 200 random graphs and merges"}
worst = 0.0
for seed in range(20):
    draws = torch.Generator().manual_seed(seed)
    cloud = torch.randn(10, 24, 6, generator=draws, dtype=torch.float64)
    common = torch.randn(10, 1, 6, generator=draws, dtype=torch.float64)
    cloud = cloud + seed / 5 * common  # from centred to nearly parallel
    root = torch.randint(8, (10, 24), generator=draws)
    root[:, :8] = torch.arange(8)  # eight anchors; the others join any of them
    merge, graph = pc.MergePlan.from_roots(root, 8), token_graph(cloud)
    change = spectrum(graph) - spectrum(lift(coarsen(graph, merge), merge))
    assert change.min() > -1e-9  # no eigenvalue grows
    worst = max(
        worst,
        (change.sum(1) - inside_shares(graph, merge).sum(1)).abs().max().item(),
    )
assert worst < 1e-9
print(f"200 graphs: no eigenvalue grew; largest error of the formula {worst:.0e}")

# %% [markdown]
# :::{dropdown} Where the lifted eigenvalues come from: sums, not averages
# A lemma that the paper builds on {cite}`loukas2019reduction,jin2020coarsening` says that they are those of the coarse graph, and 1 another $N - n$
# times. With coarse weights that are *sums* it holds to rounding ({prf:ref}`lem-lift`). With the averages of the definition it does not, because groups
# of three tokens count as much as groups of one; only when all groups have one size do the two agree. The distance is
# untouched by this: it uses the lifted graph, never the coarse spectrum. The largest mismatch on the six tokens is computed below;
# [The theorem](06_theorem.ipynb) has it for many partitions.
# :::

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the mismatch with averages and with sums"}
def mismatch(weights, plan, reduce):
    """Largest difference of the lifted spectrum and the coarse one with ones."""
    small = spectrum(coarsen(weights, plan, reduce))
    ones = torch.ones(
        len(small), weights.shape[-1] - plan.num_tokens, dtype=torch.float64
    )
    together = torch.cat([small, ones], dim=1).sort(dim=1).values
    return (
        (spectrum(lift(coarsen(weights, plan), plan)) - together).abs().max().item()
    )


for reduce in ("mean", "sum"):
    print(f"{reduce:4s} {mismatch(weights, plan, reduce):.4f}")
assert mismatch(weights, plan, "sum") < 1e-10

# %% [markdown]
# ## All ways to merge six tokens into three
#
# There are 90 partitions of six tokens into three groups. We try them all. ToMe's choice depends on the order of the tokens, so ToMe and PiToMe (as the paper
# writes it, margin 0.5) get all 720 orders.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show the distances of all partitions and all orders"}
def partitions(n, count):
    """All ways to put n tokens into that many groups, as lists of roots."""

    def grow(roots, anchors):
        i = len(roots)
        if i == n:
            if len(anchors) == count:
                yield roots
            return
        for anchor in anchors:
            yield from grow([*roots, anchor], anchors)
        yield from grow([*roots, i], [*anchors, i])

    return list(grow([], []))


every = partitions(6, 3)
everything = pc.MergePlan.from_roots(torch.tensor(every), 3)
all_distances = inside_shares(weights.expand(len(every), 6, 6), everything).sum(1)
orders = torch.tensor(list(permutations(range(6))))  # (720, 6)
by_order = {
    name: pc.spectral_distance(
        tokens[0][orders], pc.plan(tokens[0][orders], 3, name, **options)
    )
    for name, options in {"pitome": {"margin": 0.5}, "tome": {}}.items()
}
assert len(every) == 90 and torch.allclose(
    by_order["pitome"], all_distances.min(), atol=1e-6
)
best = (by_order["tome"] < all_distances.min() + 1e-6).double().mean()
display(
    Markdown(f"PiToMe finds the best partition in every order, ToMe in {percent(best)}.")
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Spectral distance of all 90 ways to merge six tokens into three, sorted. PiToMe finds the best one in every order of the tokens. ToMe, bound to its split into odd and even places, arrives at one of several; areas show in how many orders. *Live.*", "name": "fig-coarse-all"}, "image": {"alt": "Ninety dots rising from about 0.04 to 0.9. A blue circle for PiToMe lies on the first dot; orange diamonds of different sizes for ToMe lie on several dots in the lower half."}}
figure, ax = plt.subplots(figsize=(6.4, 3))
ordered = all_distances.sort().values.numpy()
ax.plot(range(len(ordered)), ordered, ".", color="0.6", markersize=5)
found, counts = np.unique(by_order["tome"].numpy().round(6), return_counts=True)
place = np.searchsorted(ordered, found - 1e-5)
ax.scatter(
    place,
    found,
    s=counts * 1.2,
    marker="D",
    color=plots.COLOURS["tome"],
    label="ToMe, 720 orders",
    alpha=0.85,
)
ax.scatter(
    [0],
    ordered[:1],
    s=45,
    color=plots.COLOURS["pitome"],
    label="PiToMe, any order",
    zorder=3,
)
ax.set(xlabel="partition, by distance", ylabel="spectral distance", ylim=(0, None))
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## The same on a photograph
#
# 256 tokens of a photograph, keys of layer 7 of the ViT-S/14 {cite}`oquab2024dinov2`; 25 of them go.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show how the keys merge"}
model = vit.vit_small(img_size=224)
photo = preprocess(list(photos.photographs(["rocket"]).values()))
metrics = layer_keys(model, photo.to(next(model.parameters()).device)).keys
keys, margin = metrics[7].cpu(), pc.margin_schedule(len(model.blocks))[7]
plans = {
    "pitome": pc.plan(keys, 25, "pitome", margin=margin),
    "tome": pc.plan(keys, 25, "tome"),
}
graph = token_graph(keys)
fine = spectrum(graph)[0].numpy()
falls = {
    name: fine - spectrum(lift(coarsen(graph, merge), merge))[0].numpy()
    for name, merge in plans.items()
}
for name, merge in plans.items():
    assert abs(falls[name].sum() - inside_shares(graph, merge).sum().item()) < 1e-8
ratio = falls["pitome"].sum() / falls["tome"].sum()
display(
    Markdown(
        f"On this layer of this photograph PiToMe's distance is {ratio:.1f} times ToMe's."
    )
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: the 64 largest eigenvalues of the normalized Laplacian of 256 tokens (layer 7, rocket photograph); all others are 1, except the first, which is 0. Right: how far each of the 64 falls when 25 tokens merge. A curve's sum is the spectral distance. *Live.*", "name": "fig-coarse-photo"}, "image": {"alt": "Left: eigenvalues minus 1 on a logarithmic scale rise from 0.0001 to about 0.5. Right: falls by rank for PiToMe and ToMe, near zero for most ranks and largest at the last; PiToMe's are larger."}}
assert np.allclose(fine[1:192], 1) and abs(fine[0]) < 1e-9  # keys have 64 channels
figure, axes = plt.subplots(1, 2, figsize=(7.6, 2.7))
ranks = range(192, 256)
axes[0].plot(ranks, fine[192:] - 1, ".", color="black")
axes[0].set(xlabel="rank", ylabel="eigenvalue minus 1", yscale="log")
for (name, fall), marker, label in zip(
    falls.items(), ("o", "D"), ("PiToMe", "ToMe"), strict=True
):
    axes[1].plot(
        ranks,
        fall[192:],
        marker,
        color=plots.COLOURS[name],
        markersize=3.5,
        label=f"{label}, SD = {fall.sum():.4f}",
    )
axes[1].set(xlabel="rank", ylabel="fall of the eigenvalue", ylim=(0, None))
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# One layer of one photograph is an illustration. Six tokens speak for PiToMe, this photograph for ToMe; [Real tokens](07_real_tokens.ipynb) measures
# four data sets.
#
# | | |
# |---|---|
# | The paper claims | Lifting keeps the coarse eigenvalues and adds ones; the spectral distance measures how far merging changes the spectrum. |
# | We saw | The first holds with summed weights, not with the averages of the definition unless all groups have one size. The second needs no spectrum: the distance equals the sum of the in-group shares. |
# | What could overturn this | Both statements are proved and were checked on random graphs. They are for weights $1 - \cos$ with positive degrees and the normalized Laplacian; for similarities, or for the combinatorial Laplacian, the formula does not hold. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} Sums and averages
# :label: ex-sums-averages
# When do sums and averages give the same coarse spectrum? Merge the six tokens into three pairs.
# ```
#
# ```{solution-start} ex-sums-averages
# :class: dropdown
# ```

# %%
pairs = pc.MergePlan.from_roots(torch.tensor([[0, 0, 2, 2, 4, 4]]))
for reduce in ("mean", "sum"):
    print(f"pairs, {reduce}: {mismatch(weights, pairs, reduce):.0e}")
assert mismatch(weights, pairs, "mean") < 1e-9

# %% [markdown]
# When all groups have one size. Then the two coarse graphs differ by a factor, and the normalized Laplacian does not see
# factors.
#
# ```{solution-end}
# ```
#
# ```{exercise} Merging goes on
# :label: ex-monotone
# Merging goes on through the layers. Show that merging more tokens never makes the distance smaller: compare a plan with the
# same plan followed by another.
# ```
#
# ```{solution-start} ex-monotone
# :class: dropdown
# ```

# %%
draws = torch.Generator().manual_seed(3)
cloud = torch.randn(50, 24, 6, generator=draws, dtype=torch.float64)
first = pc.plan(cloud, 6, "tome")
second = first.then(pc.plan(first.merge(cloud)[0], 6, "tome"))
more = pc.spectral_distance(cloud, second) - pc.spectral_distance(cloud, first)
assert more.min() > 0  # a coarsening of a coarsening: eigenvalues fall again
print(f"smallest increase over 50 graphs: {more.min():.4f}")

# %% [markdown]
# A coarsening of a coarsening is a coarsening: eigenvalues fall again, so that no term of the distance gets smaller.
#
# ```{solution-end}
# ```
#
# ```{exercise} Similarity as a weight
# :label: ex-similarity-weights
# Use the similarity $e^{\cos}$ as a weight in place of $1 - \cos$. Do all eigenvalues still fall, and does the formula still
# give the distance?
# ```
#
# ```{solution-start} ex-similarity-weights
# :class: dropdown
# ```

# %%
similar = (1 - token_graph(cloud)).exp()
similar = similar - torch.diag_embed(similar.diagonal(dim1=1, dim2=2))
change = spectrum(similar) - spectrum(lift(coarsen(similar, first), first))
error = (change.abs().sum(1) - inside_shares(similar, first).sum(1)).abs()
print(f"largest growth {-change.min():.3f}, largest error {error.max():.2f}")
assert change.min() < -1e-3 and error.max() > 0.1

# %% [markdown]
# Neither. Some eigenvalues grow, and the sum of the shares is not the distance any more.
#
# ```{solution-end}
# ```
