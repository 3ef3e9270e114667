# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Energy
#
# Which tokens can be spared? PiToMe {cite}`tran2024pitome` gives every token a number, its **energy**: a soft count of its
# look-alikes. Tokens of high energy are redundant and may merge; tokens of low energy stand alone and are protected. On a photograph
# with one object before an even ground the energy finds the object. Where all keys are nearly parallel, as in several layers
# of this model, everything is a look-alike of everything, and the energy says little.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show the imports, the model and its keys", "code_prompt_hide": "Hide it", "figure": {"caption": "Energy of the rocket's tokens and the cosines that it is made of; the fifty tokens that may merge are outlined. Raise the margin in layer 7: the rocket stays dark, and the mergeable patches move from the sky beside it to the sky above. In layer 9 nearly all pairs lie above the margin of the schedule. *Live; move the sliders, choose a patch.*", "name": "fig-energy-slider"}, "image": {"alt": "Energy map of the rocket with the mergeable patches outlined, and a histogram of the cosines of one patch with a line at the margin; sliders for layer and margin."}}
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from sklearn.metrics import roc_auc_score

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.data import photos
from pitome_core.experiments.data.pictures import preprocess, to_display
from pitome_core.experiments.models import vit
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.settings import profile

plots.use_style()

model = vit.vit_small(img_size=224)
names = ["rocket", "astronaut"]
if profile() != "smoke":
    names += ["flower", "china", "coffee", "motorcycle", "chelsea"]
pixels = photos.photographs(names)  # {name: (height, width, 3) uint8}
photos = preprocess(list(pixels.values()))  # (B, 3, 224, 224)
shown = to_display(photos)  # (B, 224, 224, 3), for plots
depth, grid = len(model.blocks), (16, 16)


def keys_of(model, images):
    """Keys of each layer as they enter the attention score: (B, heads, tokens, 64)."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output)

    hooks = [b.attn.k_norm.register_forward_hook(keep) for b in model.blocks]
    with torch.no_grad():
        model.forward_features(images.to(next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return kept


keys = keys_of(model, photos)
metrics = [k[:, :, 1:].mean(dim=1).cpu() for k in keys]  # per layer (B, 256, 64): no class token, mean over heads
margins = pc.margin_schedule(depth)
energies = [pc.energy_score(k, m) for k, m in zip(metrics, margins, strict=True)]  # per layer (B, 256)
picked = [0, 2, 4, 7, 9, 11]
k = math.floor(256 - 256 * 0.9 + 1e-9)  # removed by keep 0.9: 25, so 2k = 50 may merge

sharp = to_display(preprocess(pixels["rocket"], plots.SHARP))[0]
some_layers = {layer: metrics[layer][0] for layer in picked}
display(plots.energy_figure(sharp, some_layers, depth, mergeable=2 * k, start=(7, 6 * 16 + 5)))

# %% [markdown]
# Three things to try. *Choose a patch* of the sky, then one of the rocket, by a click or the arrow keys: blue cosines add to its
# energy, grey ones subtract. *Move the margin*: the rocket stays dark, but other patches of sky may merge. *Choose layer 9*: nearly
# everything is blue. (Keys are rounded in this figure, so its cosines are off by a few thousandths.)
#
# The model is a DINOv2-style ViT-S/14 {cite}`oquab2024dinov2` with its own weights, unchanged: 12 layers, 384 channels, 6 heads, and
# 16 x 16 patches of a picture of 224 pixels.
#
# ## From a photograph to a graph
#
# What should "look alike" mean? PiToMe compares tokens by their **keys** in the current layer, the vectors by which
# other tokens find them, averaged over the heads. The tokens become the vertices of a complete graph; the weight
# between two of them is the distance
#
# $$W_{ij} = 1 - \cos(k_i, k_j) \qquad \text{(eq. 3)}.$$
#
# Class and register tokens take no part: they never merge.

# %%
def cosine_matrix(k):
    """(N, C) keys -> (N, N) cosines."""
    unit = k / k.norm(dim=-1, keepdim=True)
    return unit @ unit.T


# %% [markdown]
# ## From a graph to one number per token
#
# A token deep inside a cluster has many neighbours at a cosine near 1. The energy adds them up, but not naively. Only
# neighbours at or above a **margin** $m$ count with their full cosine. Those below it count negatively, the more the
# farther they are, down to almost $-\alpha$. So a crowd of half-similar tokens does not look like a cluster:
#
# $$E_i = \frac{1}{N}\sum_{j} f_m(\cos_{ij}), \qquad
# f_m(x) = \begin{cases} x & x \ge m \\ \alpha\,(e^{x-m} - 1) & x < m \end{cases} \qquad \text{(eq. 4)}$$
#
# with $\alpha = 1$. [Notation](../book/notation.md) has each equation beside the function of the package that
# computes it. Ten tokens in the plane, at these angles, are enough to follow every step:

# %%
angles = [0, 4, 9, 15, 90, 97, 180, 230, 300, 41]  # degrees
radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
tokens = torch.stack([radians.cos(), radians.sin()], dim=1)  # (10, 2)


def energy_by_hand(tokens, margin, alpha=1.0):
    energies = []
    for ki in tokens:
        total = 0.0
        for kj in tokens:  # j runs over all tokens, i itself included
            c = float(ki @ kj / (ki.norm() * kj.norm()))
            total += c if c >= margin else alpha * (math.exp(c - margin) - 1)
        energies.append(total / len(tokens))
    return torch.tensor(energies, dtype=torch.float64)


by_hand = energy_by_hand(tokens, margin=0.5)
fast = pc.energy_score(tokens[None], margin=0.5)[0]
assert torch.allclose(by_hand, fast, atol=1e-12)

# %% tags=["nbval-check-output", "hide-input"]
for i in by_hand.argsort(descending=True).tolist():
    bar = "#" * round(40 * max(float(by_hand[i]), 0))
    print(f"{angles[i]:4d} degrees  energy {by_hand[i]:+.6f}  {bar}".rstrip())

# %% [markdown]
# The token at 41 degrees comes first. It is nobody's near neighbour, but at a margin of 0.5 (60 degrees) it reaches the
# four tokens around 9 degrees *and* the two around 93. Energy counts how many lie within reach; it does not ask whether
# they form one cluster. At a margin of 0.9 (26 degrees) the four look-alikes lead. The margin is not a detail.

# %% tags=["nbval-check-output", "hide-cell"] mystnb={"code_prompt_show": "Show the order under other margins, and under the ELU of the released code", "code_prompt_hide": "Hide it"}
for kernel, margin in [("paper", 0.5), ("elu", 0.5), ("paper", 0.9), ("elu", 0.9)]:
    e = pc.energy_score(tokens[None], margin, kernel=kernel)[0]
    order = e.argsort(descending=True, stable=True)
    print(f"{kernel:5s} m={margin}:", " ".join(f"{angles[i]:3d}" for i in order))

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show equation 4 and the ELU of the released vision code", "code_prompt_hide": "Hide it", "figure": {"caption": "The function inside the energy at margin 0.5. Equation 4 jumps by m at the margin; the ELU of the released vision code is continuous, and so ranks tokens differently. *Live.*", "name": "fig-energy-kernels"}, "image": {"alt": "Two curves of f against the cosine. The paper's jumps from 0 to 0.5 at the margin and then rises to 1; the ELU passes through 0 at the margin and rises to 0.5."}}
x = np.linspace(-1, 1, 801)
figure, ax = plt.subplots(figsize=(5.6, 3))
for name, style, colour in [("paper", "-", plots.COLOURS["pitome"]), ("elu", "--", "0.3")]:
    y = np.where(x >= 0.5, x if name == "paper" else x - 0.5, np.exp(x - 0.5) - 1)
    y[np.abs(x - 0.5) < 1e-9] = np.nan if name == "paper" else 0.0
    ax.plot(x, y, style, color=colour, label={"paper": "equation 4", "elu": "ELU(cos - m)"}[name])
ax.axvline(0.5, color="0.7", linewidth=1, zorder=0)
ax.set(xlabel="cosine to a neighbour", ylabel="what it adds")
ax.legend()
plt.show()

# %% [markdown]
# `pc.energy_score` is the same computation for a batch, in one matrix product. PiToMe merges
# in every layer, with a margin that moves with depth, $m_l = 0.9 - 0.9\, l / L$. (The paper calls this an increasing
# margin; its formula decreases. We follow the formula.)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the check against the loops, and the energy in six layers", "code_prompt_hide": "Hide it", "figure": {"caption": "Energy by layer, each map on its own scale (dark: isolated, bright: redundant). On the rocket the maps tell object from sky in nearly every layer; on the astronaut they follow the face only near the end. *Live.*", "name": "fig-energy-layers"}, "image": {"alt": "Two rows of six energy maps for layers 0, 2, 4, 7, 9 and 11, the rocket above and the astronaut below."}}
few = metrics[7][:1, :40]  # 40 tokens are enough
slow, fast = energy_by_hand(few[0].double(), margins[7]), pc.energy_score(few, margins[7])
assert torch.allclose(slow.float(), fast[0], atol=1e-5)
figure, axes = plt.subplots(2, len(picked), figsize=(7.2, 2.7))
for row in range(2):
    for ax, chosen in zip(axes[row], picked, strict=True):
        title = f"layer {chosen}" if row == 0 else ""
        plots.heat_map(ax, shown[row], energies[chosen][row].view(grid).numpy(), title)
plt.show()

# %% [markdown]
# ## The cut is a quota
#
# To remove $k$ tokens PiToMe sorts the energies and takes the $2k$ highest: one half will be merged into the other.
# Everything below the cut is protected, whatever its neighbours look like. At a keep ratio of 0.9, $k = 25$ of 256 tokens go, so 50
# may merge and 206 are protected.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Energies of the rocket's 256 tokens in layer 7 and the cut at the 50th highest. The cut falls inside the crowd of sky: the protected tokens next to it are as redundant as those that merge. Protection is a quota, not a threshold. *Live.*", "name": "fig-energy-cut"}, "image": {"alt": "A histogram of energies with a vertical line; the 50 tokens to its right are marked mergeable, the 206 to its left protected."}}
ordered = energies[7][0].sort(descending=True).values
cut = float(ordered[2 * k - 1])
figure, ax = plt.subplots(figsize=(6, 2.8))
bins = np.linspace(float(ordered[-1]), float(ordered[0]), 40)
ax.hist(ordered[2 * k:].numpy(), bins=bins, color="0.65", label=f"protected ({256 - 2 * k})")
ax.hist(ordered[:2 * k].numpy(), bins=bins, color=plots.COLOURS["pitome"], hatch="//", label=f"mergeable ({2 * k})")
ax.axvline(cut, color="black", linewidth=1)
ax.set(xlabel="energy", ylabel="tokens")
ax.legend(loc="upper center")
plt.show()

# %% tags=["hide-input"]
steps = [round(0.05 * i, 2) for i in range(20)]
sweep = torch.stack([pc.energy_score(metrics[7][:1], m)[0].cpu() for m in steps])  # (20, 256)
ranks = sweep.argsort(dim=1, descending=True, stable=True)
top = [set(row[: 2 * k].tolist()) for row in ranks]
overlap = [len(top[steps.index(0.4)] & other) / (2 * k) for other in top]
at_0, at_9 = overlap[steps.index(0.0)], overlap[steps.index(0.9)]
display(Markdown(
    f"Of the 50 tokens that may merge at *m* = 0.4, {percent(at_0)} still may at *m* = 0 "
    f"and {percent(at_9)} at *m* = 0.9. By chance it would be {percent(2 * k / 256)}."
))

# %% [markdown]
# ## When all keys are parallel
#
# A margin separates clusters only where cosines lie on both sides of it. Do they?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: mean cosine of two tokens' averaged keys by layer, and the margin of the schedule. Right: share of all pairs at or above the margin. Where that share is near 1 the margin sees a single cluster, and energy is no more than the mean cosine. Lines: mean over photographs; bands: smallest to largest. *Live.*", "name": "fig-energy-margin"}, "image": {"alt": "Two line plots against the layer. Mean cosines are 0.8 to 0.97 in layers 0 to 3, drop to about 0.35 in layer 4, and rise to 0.85 in layer 11. The share of pairs above the margin is near 1 in layers 3, 9 and 11 and lowest in layer 4."}}
def mean_off_diagonal(k):
    c = cosine_matrix(k)
    return float((c.sum() - len(c)) / (len(c) * (len(c) - 1)))


def share_within(k, m):
    return float((cosine_matrix(k) >= m).float().mean())


mean_cos = np.array([[mean_off_diagonal(item) for item in k] for k in metrics])
within = np.array([  # both (layers, photographs)
    [share_within(item, m) for item in k] for k, m in zip(metrics, margins, strict=True)
])

figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6))
for ax, values, label in [(axes[0], mean_cos, "mean cosine"), (axes[1], within, "pairs above the margin")]:
    ax.plot(values.mean(axis=1), color=plots.COLOURS["pitome"], label=label)
    ax.fill_between(range(depth), values.min(axis=1), values.max(axis=1), color=plots.COLOURS["pitome"], alpha=0.25)
    ax.set(xlabel="layer", ylim=(0, 1.02), ylabel=label, xticks=range(0, depth, 2))
axes[0].plot(margins, "--", color=plots.COLOURS["tome"], label="margin $m_l$")
axes[0].legend(loc="lower left")
plt.show()

# %% [markdown]
# In several layers of this model nearly every pair of tokens lies above the margin. There the energy does not tell clusters apart:
# $f_m(x) = x$ for all pairs, and $E_i$ is the mean cosine of token $i$. It ranks tokens by how near they are to the mean
# key. The margin schedule was chosen for other models, and nothing in the method adapts it. `pc.diagnose` says of your own model, layer by
# layer, whether this is so.
#
# ## Are the protected tokens the informative ones?
#
# The package that the weights come from has a saliency head, so we can ask the model itself which patches it finds
# salient (probability above one half). If low energy marks informative tokens, sorting by low energy should find them. The area under
# the ROC curve (AUC) is 1 if it always does and 0.5 if it is no better than chance.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How well low energy finds the patches that the model finds salient, one line per photograph, by layer. Photographs that are salient nearly everywhere are left out. *Live; at most six photographs, so a picture of the spread and no more.*", "name": "fig-energy-auc"}, "image": {"alt": "Lines of AUC against layer, one per photograph. They scatter between 0.2 and 1, cross 0.5 often in the middle layers and are mostly above 0.8 in layers 10 and 11."}}
saliency = vit.saliency_model(img_size=224)
with torch.no_grad():
    maps = saliency(photos.to(next(saliency.parameters()).device)).cpu()
patch_means = torch.nn.functional.avg_pool2d(maps, 14).flatten(1)  # (B, 256)
salient = patch_means > 0.5
usable = [i for i, s in enumerate(salient) if 0.02 < s.float().mean() < 0.9]
auc = np.array([  # (layers, photographs)
    [roc_auc_score(salient[i], -energies[layer][i]) for i in usable]
    for layer in range(depth)
])

figure, ax = plt.subplots(figsize=(6.4, 3))
for i, (values, marker) in enumerate(zip(auc.T, "os^vDP"[: auc.shape[1]], strict=True)):
    ax.plot(values, marker=marker, linewidth=1.4, markersize=5, markerfacecolor="white", label=names[usable[i]])
ax.axhline(0.5, color="0.6", linewidth=1)
ax.text(11.1, 0.5, "chance", va="center", fontsize=9)
ax.set(xlabel="layer", ylabel="AUC", ylim=(0, 1.02), xlim=(0, 11))
ax.legend(fontsize=9, ncols=3, loc="lower right")
plt.show()

# %% tags=["hide-input"]
early, last = auc[:10], auc[10:]
assert np.median(last) > 0.8
display(Markdown(
    f"In the last two layers low energy finds the salient patches, with exceptions "
    f"(median AUC {np.median(last):.2f}, lowest {last.min():.2f}). Before that it depends "
    f"on the photograph: of the {early.size} pairs of layer and photograph, "
    f"{(early < 0.5).sum()} lie below chance."
))

# %% [markdown]
# Energy says *redundant*, which is not the same as *unimportant*: a large textured object is redundant too.
#
# | | |
# |---|---|
# | The paper claims | High-energy tokens are redundant, low-energy tokens are informative and should be protected. |
# | We saw | Clear object-against-background maps in some layers and photographs, reversed ones in others; in several layers every pair lies above the margin. |
# | What could overturn this | One backbone, a handful of photographs, saliency as a stand-in for "informative". Energies are those of the whole model; in a merging one, layer 7 has about half of the tokens left. Other models have other keys. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} Scale and offset
# :label: ex-energy-scale
# Multiply every key by 3. What happens to the energies? Then add the same constant vector to every key.
# ```
#
# ```{solution-start} ex-energy-scale
# :class: dropdown
# ```

# %%
k0 = metrics[7][:1].cpu()
before = pc.energy_score(k0, 0.4)
scaled = pc.energy_score(3 * k0, 0.4)
assert torch.allclose(scaled, before, atol=1e-5)  # a cosine has no scale
# A common offset makes all tokens alike: cosines are not centred.
moved = pc.energy_score(k0 + 3 * k0.std() * torch.ones(64), 0.4)
print(f"mean energy: {before.mean():.2f}, with a common offset: {moved.mean():.2f}")

# %% [markdown]
# The factor changes nothing: a cosine has no scale. The offset makes every token alike, because cosines are not centred, and
# all energies rise.
#
# ```{solution-end}
# ```
#
# ```{exercise} The depth of the penalty
# :label: ex-energy-alpha
# Table 8 of the paper varies $\alpha$, the depth of the penalty, and finds little difference. How many of the 50 mergeable
# tokens change between $\alpha = 1$ and $\alpha = 0$ in each layer?
# ```
#
# ```{solution-start} ex-energy-alpha
# :class: dropdown
# ```

# %%
def fifty(layer, alpha):
    e = pc.energy_score(metrics[layer][:1], margins[layer], alpha=alpha)[0]
    return set(e.argsort(descending=True, stable=True)[:50].tolist())


for layer in (0, 4, 7, 11):
    changed = 50 - len(fifty(layer, 1.0) & fifty(layer, 0.0))
    print(f"layer {layer:2d}: {changed} of 50 change")

# %% [markdown]
# The cell counts them, for four layers.
#
# ```{solution-end}
# ```
#
# ```{exercise} Twins
# :label: ex-energy-twins
# Two tokens are exact copies of each other. What are their energies, and which of the two comes first?
# ```
#
# ```{solution-start} ex-energy-twins
# :class: dropdown
# ```

# %%
twins = torch.cat([tokens, tokens[2:3]])  # token 10 is a copy of token 2
twin_energy = pc.energy_score(twins[None], 0.9)[0]
order = twin_energy.argsort(descending=True, stable=True).tolist()
assert twin_energy[2] == twin_energy[10]
assert order.index(2) < order.index(10)  # the earlier one, because the sort is stable
print("energies of the twins:", twin_energy[[2, 10]].tolist())

# %% [markdown]
# Their energies are equal, and the earlier one comes first, because the sort is stable.
#
# ```{solution-end}
# ```
