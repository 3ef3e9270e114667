# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One merge
#
# PiToMe {cite}`tran2024pitome` merges in three steps. The **gate**: the $2k$ tokens of highest [energy](02_energy_score.ipynb) may merge,
# all others are protected. The **order**: these are dealt by turns into A and B, highest energy first. The **match**: every token of
# A joins the most similar token of B. ToMe {cite}`bolya2023tome` has neither gate nor order: it splits by place, and merges the $k$ most
# similar pairs. So PiToMe merges the same tokens wherever they stand, ToMe merges the more similar ones.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show the imports, the model and the sixteen squares", "code_prompt_hide": "Hide it", "figure": {"caption": "One merge of the sixteen squares, step by step. Go to the last step and shuffle: PiToMe merges the same groups, because its split follows the energies; ToMe merges others, because its split follows the places. *Live; press the buttons.*", "name": "fig-step-live"}, "image": {"alt": "Sixteen coloured squares before the merge and the twelve tokens after it, with buttons to go step by step, to shuffle, and to choose PiToMe or ToMe."}}
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

import pitome_core as pc
import pitome_core.experiments.baselines  # registers the controls
from pitome_core.attention import attention, size_bias
from pitome_core.experiments import plots
from pitome_core.experiments.data import photos
from pitome_core.experiments.data.pictures import preprocess, to_display
from pitome_core.experiments.models import vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.settings import profile

plots.use_style()

model = vit.vit_small(img_size=224)
device = next(model.parameters()).device
names = ["rocket", "astronaut"]
if profile() != "smoke":
    names += ["flower", "china", "coffee", "motorcycle", "chelsea"]
pixels = list(photos.photographs(names).values())
photos = preprocess(pixels).to(device)  # (B, 3, 224, 224)
shown = to_display(photos)
depth, grid = len(model.blocks), (16, 16)


def run(method, keep=0.9, **options):
    """Merge with a method: features (B, 257, 384), and what happened."""
    with pc.patched(model, method, keep, **options), pc.record(model) as trace:
        with torch.no_grad():
            features = model.forward_features(photos)
    return features.cpu(), trace.forwards[-1]


traces = {method: run(method)[1] for method in ("pitome", "tome")}

sky, sun = (0.42, 0.68, 0.95), (1.0, 0.85, 0.2)
meadow, house = (0.35, 0.72, 0.28), (0.8, 0.22, 0.2)
# Sixteen patches: seven of sky, a sun, six of meadow, a house of two.
layout = [sky, sky, sky, sun,
          sky, sky, sky, sky,
          meadow, meadow, house, meadow,
          meadow, meadow, house, meadow]
draw = torch.Generator().manual_seed(3)
wobble = 0.035 * torch.randn(16, 3, generator=draw, dtype=torch.float64)
colours = (torch.tensor(layout, dtype=torch.float64) + wobble).clamp(0, 1)  # (16, 3)
keys = colours - 0.5  # (16, 3): a colour measured from middle grey, so that the cosine compares hues
margin, k = 0.9, 4  # 4 of the 16 tokens are to go

display(plots.one_merge(colours, k, margin))

# %% [markdown]
# Press *Next* to the end. Then shuffle, and read which groups merged. Then choose ToMe, and shuffle again.
#
# ## The three steps in code
#
# The picture has seven patches of sky, a sun, six patches of meadow and a house of two. A token's key is its colour, measured from
# middle grey, so that the cosine compares hues. Four of the sixteen tokens are to go. First, the energy:

# %%
unit = keys / keys.norm(dim=-1, keepdim=True)
cos = unit @ unit.T  # (16, 16)
energy = torch.where(cos >= margin, cos, torch.exp(cos - margin) - 1).mean(dim=1)

# %% [markdown]
# Sky, the largest cluster, has the highest energies, then the meadow. But the house, a cluster of two, comes *after*
# the lone sun: its red is opposite to the blue of the sky, and opposite hues count strongly against. Energy is not the
# size of a cluster; it is size seen through all the cosines.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the sixteen tokens and their energies", "code_prompt_hide": "Hide it", "figure": {"caption": "Sixteen tokens and their energies. The seven patches of sky form the largest cluster and have the highest energies, then the meadow; sun and house come last. *Live.*", "name": "fig-step-toy"}, "image": {"classes": "picture", "alt": "Left: a four by four grid of coloured squares, blue sky with a yellow sun above, green meadow with a red house below, numbered 0 to 15. Right: bars of the energies in the same colours, highest for sky, lowest for the house."}}
def swatch(ax, x, y, colour, label, width=0.9, edge="0.3", lines=1.0):
    ax.add_patch(plt.Rectangle((x, y), width, 0.9, facecolor=np.clip(colour, 0, 1), edgecolor=edge, linewidth=lines))
    ax.text(x + width / 2, y + 0.45, label, ha="center", va="center", fontsize=8,
            color="white" if np.dot(colour, [0.2126, 0.7152, 0.0722]) < 0.3 else "black")


figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9), width_ratios=[1, 2.2])
for i in range(16):
    swatch(left, i % 4, 3 - i // 4, colours[i].numpy(), str(i))
left.set(xlim=(-0.1, 4), ylim=(-0.1, 4), aspect="equal")
left.set_axis_off()
right.bar(range(16), energy, color=colours.numpy(), edgecolor="0.3")
right.axhline(0, color="0.3", linewidth=0.8)
right.set(xticks=range(16), xlabel="token", ylabel="energy")
plt.show()

# %% [markdown]
# **Gate and order.** Where energies tie, the earlier token comes first, so that the result does not depend on a sorting routine. Even
# ranks go to A, odd ranks to B. Tokens of one cluster tend to have neighbouring ranks, so the largest cluster lands on both sides
# and its tokens find partners of their own kind; clusters of similar energy interleave, and then partners may be strangers.

# %%
order = energy.argsort(descending=True, stable=True)  # (16,)
mergeable, protected = order[: 2 * k], order[2 * k :]
A, B = mergeable[0::2], mergeable[1::2]  # k tokens each

# %% [markdown]
# **Match.** All $k$ tokens of A merge; nobody asks whether the partner is any good. Several may choose the same partner.

# %% tags=["nbval-check-output"]
partner = B[cos[A][:, B].argmax(dim=1)]  # (k,)
print("sorted by energy:", order.tolist())
print("A:", A.tolist(), " B:", B.tolist())
pairs = zip(A.tolist(), partner.tolist(), strict=True)
print("merges:", ", ".join(f"{a} into {b}" for a, b in pairs))

# %% [markdown]
# **Merge.** A token that stands for $s$ original ones counts $s$ times:
#
# $$x_b \leftarrow \frac{s_b x_b + \sum_a s_a x_a}{s_b + \sum_a s_a}, \qquad s_b \leftarrow s_b + \sum_a s_a .$$
#
# Here all sizes are 1 so far. The merged tokens stay in the order of the picture, each at the place of the token that
# received.

# %%
joined = torch.arange(16)
joined[A] = partner
kept = [i for i in range(16) if joined[i] == i]
merged = torch.stack([colours[joined == i].mean(dim=0) for i in kept])  # (12, 3)
sizes = torch.tensor([int((joined == i).sum()) for i in kept])

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show this merge as one picture", "code_prompt_hide": "Hide it", "figure": {"caption": "One merge. Above: the sixteen tokens by energy, the cut after 2k = 8, and for every token of A the token of B that it joins. Below: the twelve tokens that leave the layer, in the order of the picture, with their sizes. One patch of meadow is a candidate, because 2k is eight and there are seven of sky; nothing chooses it. *Live.*", "name": "fig-step-merge"}, "image": {"classes": "picture", "alt": "A row of sixteen coloured squares sorted by energy with letters A and B in turn above the first eight, arrows from A to B, and a dashed line after the eighth. Below, twelve squares with sizes."}}
figure, ax = plt.subplots(figsize=(9.5, 3))
place = {int(token): rank for rank, token in enumerate(order)}
for token, rank in place.items():
    swatch(ax, rank, 2, colours[token].numpy(), str(token))
    if rank < 2 * k:
        ax.text(rank + 0.45, 3.02, "AB"[rank % 2], ha="center", va="bottom", fontsize=9)
for a, b in zip(A.tolist(), partner.tolist(), strict=True):
    ax.annotate("", (place[b] + 0.45, 1.95), (place[a] + 0.45, 1.95),
                arrowprops={"arrowstyle": "->", "connectionstyle": f"arc3,rad={0.5 if place[a] < place[b] else -0.5}"})
ax.plot([2 * k - 0.05] * 2, [1.6, 3.4], "--", color="0.4")
ax.text(2 * k + 0.05, 3.1, "protected", fontsize=9)
for i, token in enumerate(kept):
    swatch(ax, i, 0, merged[i].numpy(), str(token), lines=2.2 if sizes[i] > 1 else 1)
    ax.text(i + 0.45, -0.15, f"size {int(sizes[i])}" if sizes[i] > 1 else "", ha="center", va="top", fontsize=8)
ax.set(xlim=(-0.2, 16.2), ylim=(-0.6, 3.6))
ax.set_axis_off()
plt.show()

# %% [markdown]
# That is all of the method. `pc.plan` does the same for a batch. It returns a `MergePlan`, which says for every
# token where it went; merging, un-merging and the averaging matrix follow from it.

# %%
plan = pc.plan(keys[None], remove=k, margin=margin)  # one picture
x, size = plan.merge(colours[None])  # (1, 12, 3), (1, 12)
assert torch.equal(size[0].long(), sizes) and torch.allclose(x[0], merged)
assert torch.equal(plan.anchor[0], torch.tensor(kept))
assert torch.allclose(plan.matrix()[0].double() @ colours, merged)

# %% [markdown]
# ## Attention must know
#
# After a merge one token stands for several, and softmax attention would count it once. **Proportional attention** adds
# the logarithm of the size to the score of each key, $\mathrm{softmax}(qk^\top/\sqrt{d} + \log s)\,v$. For exact copies
# this is no approximation:

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(0)
q, key, value = (
    torch.randn(1, 1, n, 8, generator=draw, dtype=torch.float64) for n in (3, 5, 5)
)
copies = torch.tensor([1, 4, 1, 2, 1])  # of each of the five tokens
all_keys = key.repeat_interleave(copies, dim=2)  # (1, 1, 9, 8)
all_values = value.repeat_interleave(copies, dim=2)
expected = attention(q, all_keys, all_values)
plain = attention(q, key, value)
counted = attention(q, key, value, size_bias(copies[None].float(), torch.float64))
print(f"sizes ignored: differs by {float((plain - expected).abs().max()):.2f}")
print(f"sizes counted: equal: {torch.allclose(counted, expected, atol=1e-6)}")

# %% [markdown]
# ## Twelve layers
#
# In a model the merge sits between attention and MLP, in every layer. One line puts it there, `pc.patched(model, "pitome", keep=0.9)`;
# another records it, `pc.record(model)`. With keep ratio $r$ each layer removes
# $k = \lfloor N - Nr \rfloor$ of its $N$ tokens, so the count falls like a staircase, and the multiply-accumulates
# (MACs) with it. `pc.flops` counts them from the shapes, the merging itself included.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: tokens entering each layer at keep ratios 0.95, 0.9 and 0.85. Right: MACs of each layer at 0.9 against the whole model. PiToMe's merging itself, mostly the matrix of cosines, is too thin to see here; its number stands below. *Live.*", "name": "fig-step-staircase"}, "image": {"alt": "Left: three descending staircases from 257 tokens. Right: stacked bars per layer for attention and MLP, shrinking from layer to layer, below a flat line for the whole model."}}
with pc.patched(model, "pitome", keep=0.9):
    counts = pc.flops(model, input_size=(3, 224, 224))
whole = pc.flops(model, input_size=(3, 224, 224))
assert counts.tokens == pc.schedule(model, keep=0.9).tokens
for trace in traces.values():  # + 1: the class token
    left = [layer.plan.num_tokens + 1 for layer in trace.layers]
    assert left == list(counts.tokens[1:])

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
for keep, style in [(0.95, ":"), (0.9, "-"), (0.85, "--")]:
    steps = pc.schedule(model, keep=keep).tokens
    left.step(range(depth + 1), steps, style, where="post", color=plots.COLOURS["pitome"], label=f"keep {keep}")
left.set(xlabel="layer", ylabel="tokens", ylim=(0, 270), xticks=range(0, depth + 1, 2))
left.legend()
bottom = np.zeros(depth)
parts = [("attention", "0.5", ""), ("mlp", "0.8", "//"), ("merge", plots.COLOURS["pitome"], "")]
for part, colour, hatch in parts:
    height = np.array([getattr(layer, part) for layer in counts.layers]) / 1e6
    right.bar(range(depth), height, bottom=bottom, color=colour, hatch=hatch, label=part if part != "mlp" else "MLP")
    bottom += height
right.step(np.arange(depth + 1) - 0.5, [layer.total / 1e6 for layer in whole.layers] + [whole.layers[-1].total / 1e6],
           where="post", color="black", label="whole model")
right.set(xlabel="layer", ylabel="million MACs", ylim=(0, 760), xticks=range(0, depth, 2))
right.legend(ncols=2, fontsize=9, loc="upper center")
plt.show()

# %% tags=["nbval-check-output", "hide-input"]
merging = sum(layer.merge for layer in counts.layers)
print("tokens:", *counts.tokens)
print(f"whole model: {whole.total / 1e9:.3f} GMACs")
print(f"keep 0.9:    {counts.total / 1e9:.3f} GMACs, of which merging {merging / 1e9:.3f}")

# %% tags=["nbval-check-output", "hide-cell"] mystnb={"code_prompt_show": "Show that keep=1 changes nothing", "code_prompt_hide": "Hide it"}
with torch.no_grad():
    before = model.forward_features(photos)
    with pc.patched(model, "pitome", keep=1.0):
        unchanged = model.forward_features(photos)
    after = model.forward_features(photos)
print("keep=1 equals the whole model:", bool((unchanged - before).abs().max() < 1e-6))
print("taken out again, bit for bit:", torch.equal(after, before))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What is left of two photographs after seven layers, 125 tokens each. Each patch has the mean colour of its token. On the rocket both spare the object, ToMe with neater regions. On the busier photograph PiToMe keeps many small tokens on the dark helmet and merges scattered patches, of the face too, into one token. *Live.*", "name": "fig-step-first"}, "image": {"alt": "Two rows of three panels: a rocket and an astronaut, each with the token maps of PiToMe and ToMe. On the rocket the sky fuses in both. On the astronaut ToMe's tokens follow face, suit and background; PiToMe's larger tokens are scattered."}}
figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.9))
for item, row in enumerate(axes):
    plots.picture(row[0], shown[item], names[item])
    for ax, (method, label) in zip(row[1:], {"pitome": "PiToMe", "tome": "ToMe"}.items(), strict=True):
        plan_after = traces[method].plan(7)
        assert plan_after.num_tokens == 125
        plots.token_map(ax, shown[item], plan_after.assignment[item].view(grid).cpu().numpy(), label)
plt.show()

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the busier photograph after 3, 6, 9 and 12 layers", "code_prompt_hide": "Hide it", "figure": {"caption": "The busier photograph after 3, 6, 9 and 12 layers. *Live.*", "name": "fig-step-astronaut"}, "image": {"alt": "Token maps of an astronaut's portrait after 3, 6, 9 and 12 layers. With PiToMe a reddish average colour appears in scattered places; with ToMe face, suit and background become separate regions."}}
def token_maps(item, methods=("pitome", "tome"), after=(3, 6, 9, 12)):
    figure, axes = plt.subplots(len(methods), 1 + len(after), figsize=(7.2, 1.55 * len(methods)))
    for row, method in zip(axes, methods, strict=True):
        plots.picture(row[0], shown[item], {"pitome": "PiToMe", "tome": "ToMe"}.get(method, method))
        for ax, layers in zip(row[1:], after, strict=True):
            plan = traces[method].plan(layers)
            plots.token_map(ax, shown[item], plan.assignment[item].view(grid).cpu().numpy(),
                            f"after {layers}")
    plt.show()


token_maps(1)

# %% [markdown]
# ## How alike are the tokens that merge?
#
# In ToMe every token of A names its best partner, and the $k$ most similar of these pairs merge. PiToMe first decides
# *who* may merge and then takes all $k$ pairs. So it should merge less similar pairs, in exchange for sparing the isolated tokens.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Mean cosine between the two tokens of a merging pair, by layer, each method on its own tokens, keep 0.9. Lines: mean over photographs; bands: smallest to largest. *Live.*", "name": "fig-step-pairs"}, "image": {"alt": "Three lines against the layer. ToMe is highest in every layer, PiToMe second, random merging lowest; the distance is largest in the middle layers."}}
def pair_cosines(method):
    """Mean cosine of a merging token to the one it joins: (layers, photographs)."""
    rows = []
    with pc.patched(model, method, 0.9), pc.record(model) as trace:
        metrics = layer_keys(model, photos).keys  # (B, N, 64) as each layer of the merging model sees them
    for metric, layer in zip(metrics, trace.last.layers, strict=True):
        joins = layer.plan.anchor.gather(1, layer.plan.assignment)  # (B, N)
        moves = joins != torch.arange(joins.shape[1], device=joins.device)
        partner = metric.gather(1, joins[..., None].expand_as(metric))
        cosine = torch.cosine_similarity(metric, partner, dim=-1)
        rows.append((cosine * moves).sum(dim=1) / moves.sum(dim=1))
    return torch.stack(rows).cpu().numpy()


alike = {method: pair_cosines(method) for method in ("pitome", "tome", "random_merge")}

figure, ax = plt.subplots(figsize=(6.2, 2.7))
looks = {"pitome": ("PiToMe", "pitome", "-"), "tome": ("ToMe", "tome", "--"), "random_merge": ("random", "random", ":")}
for method, (label, colour, style) in looks.items():
    values = alike[method]
    ax.plot(values.mean(axis=1), style, color=plots.COLOURS[colour], label=label)
    ax.fill_between(range(depth), values.min(axis=1), values.max(axis=1), color=plots.COLOURS[colour], alpha=0.2)
ax.set(xlabel="layer", ylabel="cosine of a pair", ylim=(0, 1.02))
ax.legend(loc="lower right")
plt.show()

# %% tags=["hide-input"]
ours, tome, chance = (alike[name] for name in ("pitome", "tome", "random_merge"))
display(Markdown(
    f"ToMe's pairs are the more similar ones in {(tome > ours).sum()} of {ours.size} "
    f"combinations of layer and photograph; averaged over all, {tome.mean():.2f} against "
    f"{ours.mean():.2f} (random partners: {chance.mean():.2f})."
))

# %% [markdown]
# Whether that is a good exchange is a question about answers, not about cosines: [Gate or edges](04_gate_or_edges.ipynb) asks it of
# objects with known masks, [Quality](08_quality.ipynb) of tasks. All else is shared with ToMe, and at equal token counts the two cost
# the same, up to the matrix of cosines.
#
# | | |
# |---|---|
# | The paper claims | Merging only among high-energy tokens, in energy order, protects informative tokens. |
# | We saw | Isolated objects on even ground are mostly spared. The price: less similar pairs merge than with ToMe, and on a busy photograph distant patches end up in one token. |
# | What could overturn this | These are pictures of what merges, from one backbone; quality on a task is another matter. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} Half of the work
# :label: ex-half-the-work
# At which keep ratio do half of the multiply-accumulates go? Ask for a schedule with that budget.
# ```
#
# ```{solution-start} ex-half-the-work
# :class: dropdown
# ```

# %%
half = pc.schedule(model, flops=0.5)
with pc.patched(model, "pitome", keep=half):
    print(f"share of MACs: {pc.flops(model).total / whole.total:.3f}, tokens: {half.tokens}")
print(f"about keep = {((half.tokens[-1] - 1) / 256) ** (1 / depth):.3f} in every layer")

# %% [markdown]
# A schedule takes whole tokens out, so that the share is near one half and hardly ever equal to it.
#
# ```{solution-end}
# ```
#
# ```{exercise} Shuffled tokens
# :label: ex-shuffle
# Shuffle the sixteen coloured tokens and merge again, with PiToMe and with ToMe. Who merges the same pairs?
# ```
#
# ```{solution-start} ex-shuffle
# :class: dropdown
# ```

# %%
shuffle = torch.randperm(16, generator=torch.Generator().manual_seed(1))


def groups(method, keys, names):
    """The merged groups as a set of sets of token names."""
    assignment = pc.plan(keys[None], k, method).assignment[0]
    return {frozenset(names[assignment == slot].tolist()) for slot in assignment.unique()}


for method in ("pitome", "tome"):
    whole_set = groups(method, keys, torch.arange(16))
    shuffled = groups(method, keys[shuffle], shuffle)
    print(f"{method}: same groups after shuffling: {whole_set == shuffled}")

# %% [markdown]
# PiToMe does: it orders tokens by their energy, wherever they stand. ToMe's two sets are odd and even positions.
#
# ```{solution-end}
# ```
#
# ```{exercise} Without proportional attention
# :label: ex-proportional
# Switch proportional attention off. How far do the class tokens move from the whole model's, with and without?
# ```
#
# ```{solution-start} ex-proportional
# :class: dropdown
# ```

# %%
reference = before[:, 0].cpu()
for proportional in (True, False):
    cls = run("pitome", proportional=proportional)[0][:, 0]
    cosine = torch.cosine_similarity(cls, reference, dim=-1)
    print(f"proportional={proportional}: mean cosine {cosine.mean():.3f}")

# %% [markdown]
# The larger cosine is the nearer one.
#
# ```{solution-end}
# ```
