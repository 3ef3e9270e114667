# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two charges against bipartite soft matching
#
# **Found.** The first charge holds: a permutation of the tokens leaves less than half of ToMe's pairs together, and nearly all of
# PiToMe's. But under noise on the keys PiToMe's pairs change sooner than ToMe's. The second charge does not hold against ToMe here:
# PiToMe puts more of an object into tokens with background than ToMe does.
#
# The paper {cite}`tran2024pitome` motivates PiToMe by two weaknesses of bipartite soft matching (BSM, the merge step of
# ToMe {cite}`bolya2023tome`). *It depends on how
# tokens are split*: which pairs can merge is decided by odd and even positions, not by content. And *it damages informative
# tokens in later layers*: when few look-alikes are left, it merges what should have been kept apart.
#
# Both can be put to the test. We permute tokens and see what changes; we paste objects with known masks on photographs
# and see whose tokens end up with whom; and a saliency model that was never told about merging is the judge. Then we take
# PiToMe apart into its three decisions and ask what each of them does.
#
# *Reading time: 20 minutes. Everything here is computed live with a real pretrained model; a CPU is enough. Scenes come
# from the dev split: this chapter explores, it does not score ([protocol](../book/protocol.md)).*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from sklearn.metrics import roc_auc_score

import pitome_core as pc
import pitome_core.experiments.baselines  # registers rivals and controls
from pitome_core.experiments import assets, plots
from pitome_core.experiments.data import scenes
from pitome_core.experiments.data.pictures import to_display
from pitome_core.experiments.models import vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.formats import interval, percent, signed, signed_percent
from pitome_core.experiments.records.statistics import mean_interval
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"

# %% [markdown]
# ## Six methods on one photograph
#
# All keep 90 % of the tokens per layer. *Energy-sorted* is PiToMe's order without its protection: all tokens are dealt out
# by energy and the best $k$ edges merge. *ATC* {cite}`haurum2024atc` clusters all tokens agglomeratively, slow but near the best that
# merging can do. *CrossGET* {cite}`shi2024crossget`, its part for pictures, lets each token look for a partner among all tokens that rank
# after it. *Random* merges random tokens into random others.

# %%
judge = vit.saliency_model(img_size=224)
model = judge.backbone
device = next(model.parameters()).device
kinds = ["Animals & Nature", "Food & Drink", "Objects", "Activities"]
scene = scenes.scenes(3 if quick else 18, split="dev", groups=kinds)
images = scene.images.to(device)  # (B, 3, 224, 224)
depth, grid = len(model.blocks), (16, 16)

SORTED = {"protection": False, "edges": "best"}
METHODS = {
    "PiToMe": ("pitome", {}),
    "ToMe": ("tome", {}),
    "energy-sorted": ("pitome", SORTED),
    "CrossGET": ("crossget", {}),
    "ATC": ("atc", {"linkage": "average"}),
    "random": ("random_merge", {}),
}


def run(method, options, keep=0.9, count=None):
    """The judge's maps (B, 1, 224, 224) of the merged model, and what merged."""
    with pc.patched(model, method, keep, **options), pc.record(model) as trace:
        with torch.no_grad():
            maps = judge(images[:count]).cpu()
    return maps, trace.forwards[-1]


results = {name: run(*method) for name, method in METHODS.items()}
whole = run("pitome", {}, keep=1.0)[0]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A scene and what six methods leave of its 256 tokens after twelve layers. Patches have the mean colour of their token; lines separate different tokens. Emoji: OpenMoji, CC BY-SA 4.0, as this figure ([credits](../book/credits.md)). *Live.*", "name": "fig-bsm-six"}, "image": {"alt": "Seven panels: a drawn object pasted on a photograph, and the token maps of PiToMe, ToMe, energy-sorted matching, CrossGET, ATC and random merging. ATC and ToMe follow regions; random merging scatters everywhere."}}
item = 2
pixels = to_display(scene.images)
figure, axes = plt.subplots(1, 7, figsize=(13, 2.3))
plots.picture(axes[0], pixels[item], f"{scene.objects[item].name}"[:22])
for ax, name in zip(axes[1:], METHODS, strict=True):
    plan = results[name][1].plan()
    plots.token_map(ax, pixels[item], plan.assignment[item].view(grid).cpu().numpy(), name)
plt.show()

# %% [markdown]
# ## The first charge: it depends on how tokens are split
#
# Take the keys of a layer, permute the tokens, make a plan, and undo the permutation. If the split by position matters,
# other tokens merge. We compare *who is together with whom*: of all pairs of patches that share a token before or after
# permuting, the share that do so both times (Jaccard index).


# %%
def together(plan):
    """(B, N, N): which tokens share a slot with which others."""
    a = plan.assignment
    same = a[:, :, None] == a[:, None, :]
    return same & ~torch.eye(a.shape[1], dtype=torch.bool, device=a.device)


def agreement(first, second):
    """Jaccard index of the pairs that are together, (B,)."""
    both, either = (first & second).sum((1, 2)), (first | second).sum((1, 2))
    return (both / either).cpu().numpy()


def under_permutation(metric, k, method, options, seed):
    """Agreement of the plan for permuted tokens with that for tokens as they are."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(metric.shape[1], generator=draw).to(metric.device)
    plain = together(pc.plan(metric, k, method, **options))
    shuffled = together(pc.plan(metric[:, order], k, method, **options))
    back = order.argsort()
    return agreement(plain, shuffled[:, back][:, :, back])


# %% [markdown]
# On sixteen tokens in four clusters of four, with ToMe's choice of partners limited by the split:

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(1)
centres = torch.eye(8)[:4].repeat_interleave(4, dim=0)  # four clusters of four
toy = (centres + 0.1 * torch.randn(16, 8, generator=draw))[None].double()
for method in ("pitome", "tome"):
    values = [under_permutation(toy, 5, method, {}, seed)[0] for seed in range(20)]
    print(f"{method:6s} agreement over 20 permutations: mean {np.mean(values):.2f}")

# %%
metrics = [keys[:12] for keys in layer_keys(model, images).keys]  # of the whole model, per layer (12, 256, 64)
margins = pc.margin_schedule(depth)
seeds = range(1 if quick else 3)
splits = {name: METHODS[name] for name in ("PiToMe", "energy-sorted", "ToMe")}
stable = {name: np.zeros((depth, len(seeds), len(metrics[0]))) for name in splits}
for layer, metric in enumerate(metrics):
    for name, (method, options) in splits.items():
        options = options | ({"margin": margins[layer]} if method == "pitome" else {})
        for seed in seeds:
            agreed = under_permutation(metric, 25, method, options, seed)
            stable[name][layer, seed] = agreed

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Agreement of the merged groups before and after a random permutation of the tokens, by layer, 25 of 256 tokens merging. Lines: mean over scenes and permutations; bands: the middle 90 %. *Live.*", "name": "fig-bsm-permutation"}, "image": {"alt": "Three lines against the layer. PiToMe and energy-sorted matching lie at 1 in all layers; ToMe lies far below."}}
LOOKS = {"PiToMe": ("#0072B2", "-"), "energy-sorted": ("#009E73", "-."), "ToMe": ("#D55E00", "--")}
figure, ax = plt.subplots(figsize=(6.2, 2.9))
for name, values in stable.items():
    flat = values.reshape(depth, -1)
    colour, style = LOOKS[name]
    ax.plot(flat.mean(axis=1), style, color=colour, label=name, linewidth=2 if name != "energy-sorted" else 3.5)
    ax.fill_between(range(depth), *np.quantile(flat, [0.05, 0.95], axis=1), color=colour, alpha=0.2)
ax.set(xlabel="layer", ylabel="agreement", ylim=(0, 1.04))
ax.legend(loc="center right")
plt.show()

# %% tags=["hide-input"]
assert stable["PiToMe"].mean() > 0.98 and stable["ToMe"].mean() < 0.5
display(Markdown(
    f"The charge holds: permuting the tokens leaves {percent(stable['ToMe'].mean())} of ToMe's "
    f"pairs together on average, and {percent(stable['PiToMe'].mean(), 1)} of PiToMe's."
))

# %% [markdown]
# Does the model notice? A Vision Transformer without merging does not care in which order its tokens come, once their
# positions are embedded. So we permute the embedded tokens and watch the class token of the merged model: how far do
# its versions spread, compared with how far merging has moved it from the whole model's in the first place? In double
# precision: in single precision rounding alone exchanges tokens of nearly equal energy, on some machines.


# %%
exact_model = copy.deepcopy(model).double()
some = images[:6].double()


def class_tokens(method, options, keep, seed):
    """Class tokens (B, 384) of the model with its embedded patch tokens permuted."""
    order = 1 + torch.randperm(256, generator=torch.Generator().manual_seed(seed))
    order = torch.cat([torch.zeros(1, dtype=torch.long), order]).to(device)
    hook = exact_model.norm_pre.register_forward_hook(lambda m, args, out: out[:, order])
    with pc.patched(exact_model, method, keep, **options), torch.no_grad():
        features = exact_model.forward_features(some)
    hook.remove()
    return features[:, 0]


def distance(a, b):
    return (1 - torch.cosine_similarity(a, b, dim=-1)).cpu().numpy()


with torch.no_grad():
    original = exact_model.forward_features(some)[:, 0]
spread, moved = {}, {}
for name, (method, options) in splits.items():
    seeds = range(2 if quick else 3)
    versions = [class_tokens(method, options, 0.9, seed) for seed in seeds]
    moved[name] = np.mean([distance(v, original) for v in versions], axis=0)
    spread[name] = np.mean([distance(v, versions[0]) for v in versions[1:]], axis=0)

# %% tags=["hide-input"]
rows = []
for name in splits:
    merged, permuted = moved[name].mean(), spread[name].mean()
    rows.append([name, f"{merged:.4f}", f"{permuted:.4f}", percent(permuted / merged)])
assert spread["PiToMe"].mean() < 0.1 * spread["ToMe"].mean()
assert moved["PiToMe"].mean() > moved["ToMe"].mean()
header = ["method", "moved by merging", "spread over permutations", "ratio"]
display(Markdown(markdown(header, rows)))

# %% [markdown]
# The entries are cosine distances of class tokens, averaged over six scenes. ToMe's answer depends on the order of the
# tokens; PiToMe's does not, and it lies farther from the whole model's. Being independent of the order and
# being close are two different virtues.
#
# ### What PiToMe depends on instead
#
# PiToMe deals its tokens out by *rank*: even ranks to A, odd ranks to B. Neighbours in rank have nearly equal energies, so
# a small change of the keys exchanges ranks, and with them sides. We add noise to the keys, relative to their size, and
# compare the groups as before.

# %%
noises = [0.0, 0.001, 0.003, 0.01, 0.03, 0.1]
layer, steady = 7, {name: [] for name in splits}
scale = metrics[layer].norm(dim=-1, keepdim=True) / 8  # root mean square of a key
draw = torch.Generator().manual_seed(0)
noise = torch.randn(metrics[layer].shape, generator=draw).to(device) * scale
for name, (method, options) in splits.items():
    options = options | ({"margin": margins[layer]} if method == "pitome" else {})
    exact = together(pc.plan(metrics[layer], 25, method, **options))
    for level in noises:
        near = pc.plan(metrics[layer] + level * noise, 25, method, **options)
        steady[name].append(agreement(exact, together(near)))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Agreement of the merged groups with and without noise on the keys of layer 7, as a share of the size of a key. Lines: mean over scenes; bands: the middle 90 %. *Live.*", "name": "fig-bsm-noise"}, "image": {"alt": "Three falling lines against the noise level. ToMe's groups are the most stable, then energy-sorted matching; PiToMe's groups change first."}}
figure, ax = plt.subplots(figsize=(6.2, 2.9))
for name, values in steady.items():
    colour, style = LOOKS[name]
    values = np.array(values)
    ax.plot(range(len(noises)), values.mean(axis=1), style, color=colour, label=name)
    ax.fill_between(range(len(noises)), *np.quantile(values, [0.05, 0.95], axis=1), color=colour, alpha=0.15)
ax.set(xlabel="noise on the keys", ylabel="agreement", ylim=(0, 1.04), xticks=range(len(noises)))
ax.set_xticklabels([f"{level:g}" for level in noises])
ax.legend(loc="lower left")
plt.show()

# %% tags=["hide-input"]
one_percent = {name: np.mean(values[noises.index(0.01)]) for name, values in steady.items()}
assert one_percent["PiToMe"] < one_percent["ToMe"]
display(Markdown(
    f"With 1 % of noise, {percent(one_percent['PiToMe'])} of PiToMe's pairs survive, against "
    f"{percent(one_percent['ToMe'])} of ToMe's: PiToMe has traded the position of a token for "
    f"the parity of its rank. Neither is content."
))

# %% [markdown]
# ## The second charge: it damages informative tokens in later layers
#
# Each scene has one object whose mask we know. A token is *mixed* if it holds a patch that is mostly object (over half
# covered) and one that is background (under 5 %). What share of the object's patches are in mixed tokens, layer by layer?

# %%
flat = scene.mask.flatten(1)  # (B, 256)
is_object, is_background = flat > 0.5, flat < 0.05


def mixed(plan):
    """Share of each scene's object patches whose token holds background too, (B,)."""
    a = plan.assignment.cpu()
    inside, outside = is_object[: len(a)], is_background[: len(a)].float()
    holds = torch.zeros(len(a), plan.num_tokens).scatter_reduce(1, a, outside, "amax")
    return ((holds.gather(1, a) > 0) & inside).sum(1) / inside.sum(1)


def survival(plan):
    """Tokens that are left of the object, as a share of its patches, (B,)."""
    a = plan.assignment.cpu()
    share = torch.zeros(len(a), plan.num_tokens)
    share = share.scatter_reduce(1, a, flat[: len(a)], "mean", include_self=False)
    return (share > 0.5).sum(1) / is_object.sum(1)


def purity(plan):
    """How much of its token's cover each patch shares, averaged over patches, (B,)."""
    a = plan.assignment.cpu()
    share = torch.zeros(len(a), plan.num_tokens)
    share = share.scatter_reduce(1, a, flat[: len(a)], "mean", include_self=False)
    return torch.maximum(share, 1 - share).gather(1, a).mean(1)


traces = {name: trace for name, (_, trace) in results.items()}
layers = range(1, depth + 1)
mixing, alive, pure = {}, {}, {}
for name, trace in traces.items():
    plans = [trace.plan(i) for i in layers]
    mixing[name] = torch.stack([mixed(plan) for plan in plans]).numpy()
    alive[name] = torch.stack([survival(plan) for plan in plans]).numpy()
    pure[name] = torch.stack([purity(plan) for plan in plans]).numpy()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: share of object patches that share a token with background, by layer. Middle: tokens left of the object, as a share of its patches; the grey line is the share of all tokens that is left. Right: purity of tokens (1: all object or all background) against the tokens left. Lines: mean over scenes; bands: 95 % bootstrap interval of the mean, resampling photographs. *Live, dev scenes.*", "name": "fig-bsm-mixing"}, "image": {"alt": "Left: mixing grows with depth, random fastest, then PiToMe; ToMe, energy-sorted, CrossGET and ATC stay near zero. Middle: survival of the object by method. Right: purity falls fastest for random merging, then PiToMe."}}
STYLE = {
    "PiToMe": ("#0072B2", "-"), "ToMe": ("#D55E00", "--"), "energy-sorted": ("#009E73", "-."),
    "CrossGET": ("#CC79A7", (0, (5, 1))), "ATC": ("#000000", ":"), "random": ("#999999", "-"),
}
figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.3))
tokens = [n - 1 for n in pc.schedule(model, keep=0.9).tokens[1:]]
for ax, table, x in zip(axes, (mixing, alive, pure), (layers, layers, tokens), strict=True):
    for name, values in table.items():
        colour, style = STYLE[name]
        bands = np.array([mean_interval(row, scene.photographs, resamples=1000) for row in values])
        ax.plot(x, bands[:, 0], linestyle=style, color=colour, label=name)
        ax.fill_between(x, bands[:, 1], bands[:, 2], color=colour, alpha=0.12)
axes[1].plot(layers, [n / 256 for n in tokens], color="0.8", linewidth=4, zorder=0)
axes[0].set(xlabel="after layer", ylabel="object patches in mixed tokens", ylim=(0, 1))
axes[1].set(xlabel="after layer", ylabel="tokens left of the object", ylim=(0, 1))
axes[2].set(xlabel="tokens left", ylabel="purity of tokens", xlim=(max(tokens), min(tokens)))
axes[0].legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
last = {name: mean_interval(values[-1], scene.photographs) for name, values in mixing.items()}
assert last["PiToMe"][0] > last["ToMe"][0]
display(Markdown("After the last layer, object patches in mixed tokens: " + "; ".join(
    f"{name} {interval(estimate, percent)}" for name, estimate in last.items()
) + "."))

# %% [markdown]
# Drawings are not photographs. Where the optional Tux Paint stamps are in the cache, most of them cut-out photographs, the
# same question can be put to them (`python -m pitome_core.experiments.assets fetch tuxpaint-stamps`).

# %%
if assets.state(scenes.STAMPS) == "ready":
    stamped = scenes.scenes(2 if quick else 4, split="dev", source="stamps")
    for name in ("PiToMe", "ToMe"):
        method, options = METHODS[name]
        with pc.patched(model, method, 0.9, **options), pc.record(model) as trace:
            with torch.no_grad():
                model.forward_features(stamped.images.to(device))
        a, cover = trace.assignment.cpu(), stamped.mask.flatten(1)
        holds = torch.zeros(len(a), a.max() + 1)
        holds = holds.scatter_reduce(1, a, (cover < 0.05).float(), "amax")
        share = ((holds.gather(1, a) > 0) & (cover > 0.5)).sum() / (cover > 0.5).sum()
        print(f"stamps: {name:6s} {percent(share)} of object patches in mixed tokens")
else:
    print("stamps: not in the cache, not run")

# %% [markdown]
# ## The judge
#
# Does the mixing matter? The saliency head reads all patches, un-merged. We compare its map with the mask: the area under
# the ROC curve says how well it ranks object pixels above background. And because ToMe is what PiToMe wants to improve
# on, we look at differences to ToMe, scene by scene.

# %%
small = torch.nn.functional.avg_pool2d(scene.pixels[:, None], 4).flatten(1).numpy() > 0.5


def auc(maps):
    """How well maps (B, 1, 224, 224) rank object above background, (B,)."""
    scores = torch.nn.functional.avg_pool2d(maps, 4).flatten(1).numpy()
    return np.array([roc_auc_score(*pair) for pair in zip(small, scores, strict=False)])


scores = {name: auc(maps) for name, (maps, _) in results.items()}
unmerged = auc(whole)
gains = {
    name: mean_interval(values - scores["ToMe"], scene.photographs)
    for name, values in {"no merging": unmerged, **scores}.items()
    if name != "ToMe"
}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Difference in AUC to ToMe, paired by scene, keep 0.9, with 95 % bootstrap intervals over photographs. Six photographs are few: intervals that exclude zero by little should not be trusted. *Live, dev scenes.*", "name": "fig-bsm-judge"}, "image": {"alt": "A forest plot of differences to ToMe. Random merging lies far below zero; the intervals of the other methods and of no merging contain zero or come close to it."}}
figure, ax = plt.subplots(figsize=(6.4, 2.6))
for y, (mean, low, high) in enumerate(gains.values()):
    ax.plot([low, high], [y, y], color="#0072B2", linewidth=2)
    ax.plot(mean, y, "o", color="#0072B2")
ax.axvline(0, color="0.6", linewidth=1)
ax.set(yticks=range(len(gains)), xlabel="AUC minus ToMe's")
ax.set_yticklabels(gains)
ax.invert_yaxis()
plt.show()

# %% [markdown]
# ## Three switches
#
# PiToMe differs from ToMe in three decisions. *Order*: tokens are dealt out by energy, or by position. *Protection*: only
# the tokens of highest energy may merge, or all. *Edges*: the $k$ highest tokens of A merge whatever their partners are
# like, or the $k$ with the best partners (out of twice as many, where protection is on). Eight combinations; ToMe is one
# corner, PiToMe another, energy-sorted matching a third.

# %%
CORNERS = {
    ("energy", True, "all"): "PiToMe",
    ("energy", False, "best"): "energy-sorted",
    ("position", False, "best"): "ToMe",
}
corners = {}
for order in ("energy", "position"):
    for protection in (True, False):
        for edges in ("all", "best"):
            options = {"split": "alternate" if order == "energy" else "position"}
            options |= {"protection": protection, "edges": edges}
            name = CORNERS.get((order, protection, edges))
            maps, trace = results[name] if name else run("pitome", options)
            corners[order, protection, edges] = auc(maps), mixed(trace.plan()).numpy()

# That the corners are those methods is no figure of speech:
tokens = metrics[layer]
no_energy = {"protection": False, "split": "position", "edges": "best"}
first, second = pc.plan(tokens, 25, **no_energy), pc.plan(tokens, 25, "tome")
assert torch.equal(first.assignment, second.assignment)

# %% tags=["hide-input"]
rows = []
for key, (quality, mix) in corners.items():
    order, protection, edges = key
    better = mean_interval(quality - scores["ToMe"], scene.photographs)
    mix = mean_interval(mix, scene.photographs)
    rows.append([order, "on" if protection else "off", edges, CORNERS.get(key, ""),
                 interval(mix, percent), interval(better)])
header = ["order", "protection", "edges", "", "mixed object patches", "AUC minus ToMe's"]
display(Markdown(markdown(header, rows)))

# %% [markdown]
# What does one switch change, averaged over the four settings of the other two?


# %%
def effect(position, first, second, outcome):
    """Mean change of an outcome (0 AUC, 1 mixing) from `second` to `first`."""
    changes = []
    for key in corners:
        if key[position] == first:
            other = (*key[:position], second, *key[position + 1 :])
            changes.append(corners[key][outcome] - corners[other][outcome])
    return mean_interval(np.mean(changes, axis=0), scene.photographs)


switches = {
    "order: by energy, not by position": (0, "energy", "position"),
    "protection: on, not off": (1, True, False),
    "edges: the best, not all": (2, "best", "all"),
}
rows = []
for words, levels in switches.items():
    rows.append([words, interval(effect(*levels, outcome=1), signed_percent), interval(effect(*levels, outcome=0))])
display(Markdown(markdown(["switch", "mixed object patches", "AUC"], rows)))
assert effect(2, "best", "all", outcome=1)[0] < 0

# %% [markdown]
# It is the *edges* that keep objects and background apart. Matching in ToMe has a veto, the $k$ best edges out of many.
# PiToMe as the paper defines it has none: its $2k$ tokens are chosen one by one, before any pair is looked at, and then
# all of A merges. With the veto and without the gate (`protection=False, edges="best"`, energy-sorted matching) the energy
# order keeps what it is good for, independence of where tokens stand, and mixes about as little as ToMe. The judge's AUC, on
# so few photographs, tells hardly any of the eight from another: look at the intervals before at the means.
#
# ## Which charges hold, and when
#
# *It depends on how tokens are split* holds, for plans and for the features that come out. Energy order removes the
# dependence on position; it leaves one on the parity of ranks, which small noise reveals.
#
# *It damages informative tokens in later layers* does not hold here in the sense tested: with this backbone ToMe hardly
# ever mixes object and background, and PiToMe does so more often. Hundreds of test scenes on other photographs say the same;
# whether mixing costs anything on a task is asked there too ([Vision, off the shelf](record_vision.ipynb)).

# %% tags=["hide-input"]
gap = mean_interval(mixing["PiToMe"][-1] - mixing["ToMe"][-1], scene.photographs)
assert gap[0] > 0
display(Markdown(
    f"> **Takeaway.** Energy is a good order and a risky gate. As an *order* it makes "
    f"matching independent of where tokens stand. As a *gate*, without a look at the pair, "
    f"it merges strangers: the share of object patches that end up with background is "
    f"{interval([100 * end for end in gap], lambda points: signed(points, 0))} points to ToMe's."
))

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | BSM depends on the split, and damages informative tokens in later layers; PiToMe does neither. |
# | We saw | The first holds for BSM; PiToMe exchanges position for rank parity. The second was the other way round: choosing the best edges keeps objects apart, and PiToMe does not choose edges. No difference in the judge's AUC between PiToMe and ToMe could be shown. |
# | What could overturn this | One backbone, whose averaged keys are nearly parallel in early layers; drawn objects with sharp outlines on six photographs; few scenes, all of the dev split. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} Centred keys
# :label: ex-centred
# Centre the keys (subtract the mean key) before the cosine. Does PiToMe still mix object and background?
# ```
#
# ```{solution-start} ex-centred
# :class: dropdown
# ```

# %%
for metric in ("keys", "keys-centred", "hidden"):
    _, trace = run("pitome", {"metric": metric}, count=6)
    print(f"{metric:13s} mixed {percent(mixed(trace.plan()).mean())}")

# %% [markdown]
# Yes, but less than with keys as they are, and more than with hidden states.
#
# ```{solution-end}
# ```
#
# ```{exercise} Whom protection protects
# :label: ex-protected
# Compare the share of object patches among the protected tokens of layer 7 of the whole model with their share among all
# tokens.
# ```
#
# ```{solution-start} ex-protected
# :class: dropdown
# ```

# %%
energies = pc.energy_score(metrics[7], margins[7]).cpu()
lowest = energies.argsort(dim=1, descending=True, stable=True)[:, 50:]  # protected
objects = is_object[: len(energies)]
among_protected = objects.gather(1, lowest).float().mean()
print(f"object patches: {percent(objects.float().mean(), 1)} of all tokens, "
      f"{percent(among_protected, 1)} of the protected")

# %% [markdown]
# Protection keeps tokens of low energy, and that they are the object's is a hope. Compare the two shares: protection is for
# objects as far as the second is above the first.
#
# ```{solution-end}
# ```
#
# ```{exercise} Fewer tokens
# :label: ex-order-at-08
# Keep 80 % per layer instead of 90 %. Does the order of the methods change?
# ```
#
# ```{solution-start} ex-order-at-08
# :class: dropdown
# ```

# %%
for name in ("PiToMe", "ToMe", "energy-sorted"):
    _, trace = run(*METHODS[name], keep=0.8, count=6)
    print(f"{name:13s} mixed {percent(mixed(trace.plan()).mean())}")

# %% [markdown]
# PiToMe still mixes most. With so many tokens gone the two others mix as well.
#
# ```{solution-end}
# ```
