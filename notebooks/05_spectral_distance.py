# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a merge does to a graph
#
# PiToMe {cite}`tran2024pitome` is called *spectrum-preserving*. The spectrum meant is that of a graph: tokens are its vertices, distances
# between them its weights, and merging tokens makes the graph smaller. How can a graph of 6 vertices and one of 3 be
# compared at all, when one has six eigenvalues and the other has three?
#
# This chapter computes every quantity in that comparison by hand, on six tokens that fit into one figure. At the end the
# distance turns out to have a short formula without any eigenvalue in it. The definitions stand together on the page
# [Coarsening](../book/coarsening.md); the theorem that uses them has [its own](../book/theorem.md).
#
# *Reading time: 15 minutes. Everything here is computed live; the real model appears once, and a CPU is enough.*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
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

# %% [markdown]
# ## First, what we are after
#
# Six tokens in the plane: a cluster of three, a cluster of two, and one by itself. PiToMe is asked to remove three.

# %%
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
print("groups:", groups)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Top: the graph of six tokens, the coarse graph of three groups, and the lifted graph, which is the coarse one on six vertices again. Darker edges weigh more; rings are self-loops, drawn darker than they weigh. Bottom: eigenvalues of their normalized Laplacians; lines join the ranks that the spectral distance compares. *Live.*", "name": "fig-coarse-six"}, "image": {"alt": "Three small graphs with six, three and six vertices on a circle; below, rows of ticks between 0 and 2. The coarse graph's eigenvalues appear among the lifted one's, together with three ticks at 1."}}
GROUP = ["#0072B2", "#D55E00", "#009E73"]
figure = plt.figure(figsize=(9, 4.8))
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

# %% [markdown]
# ## The graph of tokens
#
# The weight of two tokens is their distance, $W_{ij} = 1 - \cos(k_i, k_j)$ (eq. 3). This is unusual: in most graphs a
# large weight means *near*, here it means *far*. The degree $d_i = \sum_j W_{ij}$ is large for an isolated token. From
# weights and degrees come two Laplacians,
#
# $$L = D - W \quad\text{(combinatorial)}, \qquad \mathcal L = I - D^{-1/2} W D^{-1/2} \quad\text{(normalized)}.$$

# %%
unit = tokens[0] / tokens[0].norm(dim=-1, keepdim=True)
W = 1 - unit @ unit.T  # (6, 6)
d = W.sum(dim=1)
combinatorial = torch.diag(d) - W
normalized = torch.eye(6) - W / (d[:, None] * d[None, :]).sqrt()
assert torch.allclose(W, weights[0], atol=1e-12)
assert torch.allclose(
    combinatorial, laplacian(weights, "combinatorial")[0], atol=1e-12
)
assert torch.allclose(normalized, laplacian(weights)[0], atol=1e-7)

# %% tags=["nbval-check-output"]
print("degrees     ", " ".join(f"{v:6.3f}" for v in d.tolist()))
for name, matrix in (("combinatorial", combinatorial), ("normalized", normalized)):
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    print(f"{name:13s}", " ".join(f"{v:6.3f}" for v in values.tolist()))

# %% [markdown]
# The normalized spectrum has a peculiar look: one zero, and everything else at 1 or above. That is no accident: $W$ is a
# constant minus a matrix of inner products, and such a matrix has a single positive eigenvalue. Tokens with $C$ channels,
# none of them zero, leave at most $C$ eigenvalues above 1; here $C = 2$, and three of the six sit at 1. In a graph of similarities it
# would be otherwise.

# %%
draws = torch.Generator().manual_seed(0)
clouds = torch.randn(200, 20, 8, generator=draws, dtype=torch.float64)  # 200 graphs
values = spectrum(token_graph(clouds))
assert values[:, 0].abs().max() < 1e-9  # one eigenvalue 0
assert values[:, 1:].min() > 1 - 1e-9  # all others at least 1
assert ((values > 1 + 1e-9).sum(dim=1) == 8).all()  # above 1: as many as channels

# %% [markdown]
# ## Coarsening: fewer vertices
#
# A merge puts every token into a group. The **coarse graph** has one vertex per group; its weights are averages over all
# pairs between two groups, or inside one:
#
# $$W_c[i, j] = \frac{1}{|V_i||V_j|}\sum_{u \in V_i}\sum_{v \in V_j} W_{uv}.$$
#
# Groups with more than one token get a weight to themselves, a self-loop.

# %% tags=["nbval-check-output"]
by_hand = torch.tensor(
    [
        [np.mean([W[u, v] for u in left for v in right]) for right in groups]
        for left in groups
    ]
)
assert torch.allclose(by_hand, coarse[0])
for group, row in zip(groups, by_hand.tolist(), strict=True):
    print(f"{group!s:10s}", " ".join(f"{value:6.3f}" for value in row))

# %% [markdown]
# ## Lifting: as many as before
#
# Three eigenvalues cannot be compared with six. The **lifted graph** copies the coarse weights back to all vertices,
# $W_l[u, v] = W_c[i(u), i(v)]$: every token takes the average view of its group. Now there are six eigenvalues on both
# sides. The **spectral distance** (eq. 5) sorts both and adds up the differences, rank by rank:
#
# $$SD(\mathcal G, \mathcal G_c) = \sum_{i=1}^{N} \bigl|\lambda_i - \lambda_{l,i}\bigr|.$$

# %% tags=["nbval-check-output"]
back = torch.tensor([[by_hand[of[u], of[v]] for v in range(6)] for u in range(6)])
degree = back.sum(dim=1)
lifted_by_hand = torch.eye(6) - back / (degree[:, None] * degree[None, :]).sqrt()
before = torch.linalg.eigvalsh(normalized).clamp_min(0)
after = torch.linalg.eigvalsh(lifted_by_hand).clamp_min(0)
distance = (before - after).abs().sum()
assert abs(distance - pc.spectral_distance(tokens, plan)) < 1e-6
print("tokens", " ".join(f"{v:.4f}" for v in before.tolist()))
print("lifted", " ".join(f"{v:.4f}" for v in after.tolist()))
print(f"SD {distance:.4f}")

# %% [markdown]
# ## What lifting adds: sums, not averages
#
# Where do the lifted eigenvalues come from? A lemma that the paper builds on (from the literature on graph coarsening)
# says: they are those of the coarse graph, and 1 another $N - n$ times. Try it with the averages defined above, and with
# plain sums:


# %% tags=["nbval-check-output"]
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
# With sums the lemma holds to rounding. With averages it does not, because groups of three tokens count as much as groups
# of one; only when all groups have one size do the two agree. The spectral distance itself is untouched by this: it uses
# the lifted graph, never the coarse spectrum. [The spectral distance theorem, measured](06_theorem.ipynb)
# measures the mismatch over many partitions.
#
# ## Only downwards
#
# Look at the two spectra again, rank by rank. No eigenvalue has grown. That holds for every graph of distances
# $1 - \cos$ and every way to merge: averaging can only pull eigenvalues down, towards 1. But if all differences have one sign,
# the sum of their absolute values is the difference of two sums, and a sum of eigenvalues is a *trace*, which needs no
# eigenvalues. What is left is
#
# $$SD(\mathcal G, \mathcal G_c) = \sum_i \frac{W(V_i, V_i)}{\mathrm{vol}(V_i)}, \qquad
# W(V, V) = \sum_{u, v \in V} W_{uv}, \quad \mathrm{vol}(V) = \sum_{u \in V} d_u.$$
#
# For each group: the share of its degrees that goes to edges inside it. [The page on the theorem](../book/theorem.md)
# has the proof, in ten lines.

# %% tags=["nbval-check-output"]
shares = [W[g][:, g].sum() / d[g].sum() for g in groups]
for group, share in zip(groups, shares, strict=True):
    print(f"{group!s:10s} {share:.4f}")
print(f"sum        {sum(shares):.4f}")
assert abs(sum(shares) - distance) < 1e-6

# %% [markdown]
# One can read it as a walk. Somebody hops from token to token, to distant ones more often, in proportion to $W$. The share is the
# chance that one hop from a group stays inside that group. A good merge groups tokens between which the walker hardly ever
# hops. (It is also $n$ minus the *normalized cut* of the groups, a well-known quantity in clustering {cite}`shi2000cuts`.)
#
# Drag the tokens, or turn them by the arrow keys, and watch the shares:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Six tokens, three groups, and the spectral distance. Pull token 3 to tokens 4 and 5, then on to token 6: PiToMe's groups follow. Group by hand and split a cluster: its dark squares enter the frames, and the distance rises by their share. *Live; drag the tokens.*", "name": "fig-coarse-live"}, "image": {"alt": "Six tokens as arrows in a circle, coloured by group; the matrix of their weights with the groups framed; the eigenvalues before and after lifting."}}
display(plots.six_tokens(tokens[0], margin=0.5))

# %% [markdown]
# Is it only these six tokens? Random tokens, random merges:

# %%
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
# ## All ways to merge six tokens into three
#
# There are 90 partitions of six tokens into three groups. With a formula that takes no time we can try them all, and see
# where PiToMe's and ToMe's choices stand. ToMe's depend on the order of the tokens, so we give it all 720.


# %%
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


# %%
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
# 256 tokens of a photograph, keys of layer 7 of the ViT-S/14; 25 of them go. The spectrum before, and how far each
# eigenvalue falls:

# %%
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
print({name: round(fall.sum(), 4) for name, fall in falls.items()})

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: the 64 largest eigenvalues of the normalized Laplacian of 256 tokens (layer 7, rocket photograph); all others are 1, except the first, which is 0. Right: how far each of the 64 falls when 25 tokens merge. A curve's sum is the spectral distance. *Live.*", "name": "fig-coarse-photo"}, "image": {"alt": "Left: eigenvalues minus 1 on a logarithmic scale rise from 0.0001 to about 0.5. Right: falls by rank for PiToMe and ToMe, near zero for most ranks and largest at the last; PiToMe's are larger."}}
assert np.allclose(fine[1:192], 1) and abs(fine[0]) < 1e-9  # keys have 64 channels
figure, axes = plt.subplots(1, 2, figsize=(9, 2.9))
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

# %% tags=["hide-input"]
ratio = falls["pitome"].sum() / falls["tome"].sum()
display(
    Markdown(
        f"On this layer of this photograph PiToMe's distance is {ratio:.1f} times ToMe's."
    )
)

# %% [markdown]
# One layer of one photograph is an illustration;
# [Bending the assumptions](07_real_tokens.ipynb) has more of both.
#
# > **Takeaway.** Coarsening averages, lifting copies back, and the spectral distance of equation 5 is, on graphs of
# > $1 - \cos$, a count of one thing: how much of the tokens' distances lies *inside* the merged groups.
#
# | | |
# |---|---|
# | The paper claims | Lifting keeps the coarse eigenvalues and adds ones; the spectral distance measures how far merging changes the spectrum. |
# | We saw | The first holds with summed weights, not with the averages of the definition unless all groups have one size. The second needs no spectrum: the distance equals the share of degrees inside the groups. |
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
