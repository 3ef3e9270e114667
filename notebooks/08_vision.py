# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Vision, off the shelf
#
# What is left of a pretrained Vision Transformer when its tokens are merged and nothing is trained again? The paper's answer
# is a table of ImageNet accuracies (Table 5). Those models and data cannot be had here, so this chapter asks what can be
# asked with a real model and real pictures: does a saliency model still find the object, do its features stay where they
# were, and does a linear head on them still classify?
#
# PiToMe has to stand beside its rivals at equal numbers of tokens, and beside controls that are not clever at all: random
# merging, a coarser grid, a smaller picture. What was to be run, and which difference counts, was written down before
# ([protocol](../book/protocol.md)).
#
# *Reading time: 25 minutes. Figures marked* recorded *come from `make results`; cells marked* live *compute on a CPU and
# check the record.*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import spearmanr

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.data import scenes
from pitome_core.experiments.data.pictures import to_display
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell, seeds_of
from pitome_core.experiments.records.published import TABLE_5
from pitome_core.experiments.records.statistics import mean_interval, paired_difference
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.runs import grid
from pitome_core.experiments.settings import profile
from pitome_core.experiments.vision import tasks

plots.use_style()
quick = profile() == "smoke"
native = results.load("vision-scenes")
wide = results.load("vision-scenes-wide")
stamps = results.load("vision-stamps")
features = results.load("vision-collection")
digits, emoji = results.load("vision-digits"), results.load("vision-emoji")

# %% [markdown]
# ## The native task
#
# The ViT-S/14 at hand was shipped with a head that draws a saliency map from its patch tokens. That is a task of its own,
# with no label of ours and nothing fitted: merge in all twelve blocks, give every patch its token back, let the head draw.
# On scenes with a pasted object the truth is known exactly, so *accuracy* can be measured: does the map rank the object's
# pixels above the background (AUC)?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy of the saliency map against cost: AUC minus the whole model's, paired by scene, on 240 test scenes. Left: merging, pruning, and a transform; right, enlarged: PiToMe's variants and the controls. Bands for PiToMe and ToMe: 95 % bootstrap intervals, objects and photographs resampled; cut off on the right, as are the random controls. *Recorded.*", "name": "fig-vision-cost"}, "image": {"alt": "Two panels of curves against the share of multiply-accumulates. Most merging methods stay at the whole model's level; pruning by attention, DiffRate and the random controls fall far below. Lower resolution and pooling stay at its level too."}}
RIVALS = ["pitome", "tome", "tofu", "crossget", "mctf", "atc", "diffrate", "dct", "evit", "topk-attention"]
OWN = ["pitome", "tome", "pitome-released-deit", "pitome-released-mae", "energy-sorted", "pitome-hidden",
       "lower-resolution", "grid-pool", "random-merge", "random-prune"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6))
for ax, arms in zip(axes, (RIVALS, OWN), strict=True):
    plots.against_cost(ax, native, "auc", arms)
    ax.legend(fontsize=7, loc="lower right")
axes[0].set_ylabel("AUC minus the whole model's")
axes[1].set_ylim(-0.13, 0.09)
plt.show()

# %% [markdown]
# The protocol names two differences as primary, both paired by scene: PiToMe minus ToMe, and PiToMe minus the whole model,
# at keep 0.9.

# %%
ours, rival = "pitome@0.9", "tome@0.9"
to_tome = native.difference(ours, rival, "auc")
to_whole = native.difference(ours, "whole", "auc")

# %% tags=["hide-input"]
share = native.cells[ours]["share"]
header = [f"keep 0.9, {share:.0%} of the multiply-accumulates", "AUC", "could have been detected", "NSS"]
rows = [[f"PiToMe minus {label}", found, f"{found.detectable:.3f}", native.difference(ours, other, "nss").format(2)]
        for label, other, found in (("ToMe", rival, to_tome), ("the whole model", "whole", to_whole))]
gap = native.mean_over_seeds(ours, "auc") - native.mean_over_seeds(rival, "auc")
by = [mean_interval(gap, native.items[column])[1:] for column in ("object", "photograph")]
display(Markdown(
    markdown(header, rows) + f"\n\nNo difference was found; one as large as in the third column would have been found in four cases "
    f"of five. The scenes stand on six photographs only, and that is where the uncertainty comes from: resampling objects "
    f"alone, the interval to ToMe would be [{by[0][0]:+.3f}, {by[0][1]:+.3f}], photographs alone "
    f"[{by[1][0]:+.3f}, {by[1][1]:+.3f}]."
))
assert to_tome.side == to_whole.side == 0

# %% [markdown]
# Differences come with their 95 % intervals. NSS, the mean of the standardised map inside the object, is the second measure
# of accuracy.
#
# ### Does the record hold?
#
# The record was made on another machine. Three of its cells are computed again here on the first scenes; their AUC has to
# agree within 0.005.

# %%
live = tasks.Scenes("test", count=4 if quick else 24)
live.prepare()
checked = [Cell("whole"), Cell("pitome", 0.9), Cell("tome", 0.9)]
for cell in checked:
    with live.applied(cell) as model:
        scored = live.score(model, cell)
    recorded = native.outcome(cell.key, "auc")[: len(live.images)]
    off, allowed = results.disagreement(recorded, scored["auc"], tolerance=0.005)
    assert off <= allowed, f"{cell.key}: {off} of {len(recorded)} scenes are off"

# %% tags=["nbval-check-output"]
print("agree with the record:", ", ".join(cell.key for cell in checked))

# %% [markdown]
# ### Every arm against ToMe
#
# One set of scenes on six photographs is not much. The same grid ran on 103 other photographs, and the same arms, at keep
# 0.9, on scenes whose objects are cut-out photographs instead of drawings.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "AUC minus ToMe's at keep 0.9, paired by scene, with 95 % bootstrap intervals over objects and photographs, crossed. Three sets of scenes. The whole model and the controls are among the rows. *Recorded.*", "name": "fig-vision-forest"}, "image": {"alt": "Three forest plots side by side, one row per method, with intervals around the difference to ToMe."}}
AT = 0.9
LABELS = grid.LABELS | {"lower-resolution": "lower resolution (168 px)"}
rows = ["whole", *[f"{arm}@{AT:g}" for arm in grid.ARMS if arm != "tome"], "grid-pool", "lower-resolution@168px"]
sets = {"scenes (6 photographs)": native, "scenes-wide (103 photographs)": wide, "stamps (cut-out photographs)": stamps}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 5.2), sharey=True)
for ax, (title, record) in zip(axes, sets.items(), strict=True):
    found = []
    for key in rows:
        label = LABELS[record.about(key)["arm"]]
        found.append((label, record.difference(key, f"tome@{AT:g}", "auc")))
    marks = [plots.COLOURS["tome"] if row.side < 0 else plots.COLOURS["pitome"] for _, row in found]
    marks = ["0.45" if row.side == 0 else mark for mark, (_, row) in zip(marks, found, strict=True)]
    plots.forest(ax, found, marks)
    ax.set(title=title, xlabel="AUC minus ToMe's")
plt.show()

# %% [markdown]
# Blue intervals lie above zero, orange ones below, grey ones contain it; with this many rows, one that just
# excludes zero is no finding. *Lower resolution* (168 px) and *2 x 2 pooling* are not at equal tokens.

# %% tags=["hide-input"]
def found(record, first, outcome="auc", digits=3):
    """The difference to ToMe, and what could have been detected where none was."""
    difference = record.difference(first, rival, outcome)
    could = f", detectable {difference.detectable:.{digits}f}" if difference.side == 0 else ""
    return f"{difference.format(digits)}{could}"


smaller, pooled = "lower-resolution@168px", "grid-pool"
display(Markdown(
    f"What can be read from it, at keep 0.9. For **PiToMe as the paper writes it** no difference to ToMe was found on drawn "
    f"objects ({found(native, ours)}; {found(wide, ours)}); on cut-out photographs it is below ToMe ({found(stamps, ours)}). "
    f"For **energy-sorted matching** none was found in any set ({found(native, 'energy-sorted@0.9')}; "
    f"{found(wide, 'energy-sorted@0.9')}; {found(stamps, 'energy-sorted@0.9')}). And the **controls**: a picture of 168 "
    f"instead of 224 pixels, at {wide.cells[smaller]['share']:.0%} of the cost ({found(native, smaller)}; "
    f"{found(wide, smaller)}; {found(stamps, smaller)}), and pooling of 2 x 2 patches before the first block, at "
    f"{wide.cells[pooled]['share']:.0%} ({found(native, pooled)}; {found(wide, pooled)}; {found(stamps, pooled)}). Finding "
    f"a drawn object needs no fine grid, so these scenes separate methods poorly.\n\n"
    f"PiToMe does fall below ToMe on the six photographs with fewer tokens, at keep 0.8 "
    f"({native.difference('pitome@0.8', 'tome@0.8', 'auc')}), and without proportional attention "
    f"({native.difference('pitome@0.9/off', 'tome@0.9/off', 'auc')})."
))
assert stamps.difference(ours, rival, "auc").side == -1

# %% [markdown]
# The second measure, NSS, sees more on the 103 photographs:

# %% tags=["hide-input"]
rows = []
for key in ("whole", ours, "pitome-released-deit@0.9", "pitome-released-mae@0.9", "pitome-hidden@0.9", "energy-sorted@0.9",
            "dct@0.9", smaller, pooled):
    cells = [record.difference(key, rival, "nss").format(2) for record in sets.values()]
    rows.append([LABELS[native.about(key)["arm"]], *cells])
display(Markdown(markdown(["NSS minus ToMe's, keep 0.9", "6 photographs", "103 photographs", "cut-outs"], rows)))

# %% [markdown]
# There the presets of the released code and PiToMe on hidden states lie above ToMe; for the paper's row no difference was
# found. On cut-outs none of this is seen, and pooling falls behind.
#
# The same on 103 photographs, over all strengths:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "As the first figure of this chapter, on the scenes with 103 photographs. *Recorded.*", "name": "fig-vision-cost-wide"}, "image": {"alt": "Two panels of curves against the share of multiply-accumulates on 103 photographs; the picture is that of six photographs, with narrower bands."}}
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4))
for ax, arms in zip(axes, (RIVALS, OWN), strict=True):
    plots.against_cost(ax, wide, "auc", arms)
axes[0].set_ylabel("AUC minus the whole model's")
axes[1].set_ylim(-0.08, 0.05)
plt.show()

# %% [markdown]
# ### What becomes of the object
#
# [Two charges](03_against_bsm.ipynb) counted, on 18 scenes, how many of the object's patches end in a token together with
# background. Here it is counted on the scenes with 103 photographs.

# %% tags=["hide-input"]
rows = []
for arm in ("pitome", "pitome-released-deit", "pitome-released-mae", "pitome-hidden", "energy-sorted", "tome", "atc", "random-merge"):
    cells = [wide.estimate(f"{arm}@{keep:g}", "mixed") for keep in grid.KEEPS]
    rows.append([grid.LABELS[arm], *(f"{m:.0%} [{low:.0%}, {high:.0%}]" for m, low, high in cells)])
display(Markdown(markdown(["object patches in mixed tokens, 103 photographs", "keep 0.95", "0.9", "0.85", "0.8"], rows)))
assert all(wide.difference(f"pitome@{keep:g}", f"tome@{keep:g}", "mixed").side == 1 for keep in grid.KEEPS)

# %% [markdown]
# PiToMe mixes more than ToMe at every strength. On these scenes no difference in AUC goes with it; on cut-outs, where it mixes
# more as well, AUC is lower.
#
# ## Likeness is not accuracy
#
# One could also ask how much the *map* changes. The two questions need not have one answer, and the paper's is the first.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy (AUC against the mask) and likeness (correlation with the whole model's map) of every arm at keep 0.9, of pooling and of pictures of 168 px, means over the scenes on 103 photographs. Hollow: hidden states are compared. *Recorded.*", "name": "fig-vision-likeness"}, "image": {"alt": "A scatter plot of methods: likeness on the horizontal, AUC on the vertical axis, with the whole model at likeness 1."}}
figure, ax = plt.subplots(figsize=(7.4, 4.4))
for key in ["whole", *[f"{arm}@{AT:g}" for arm in grid.ARMS], "grid-pool", "lower-resolution@168px"]:
    arm = wide.about(key)["arm"]
    colour, _, marker = plots.ARMS.get(arm, ("#000000", "-", "o"))
    x, y = (wide.mean_over_seeds(key, outcome).mean() for outcome in ("likeness", "auc"))
    hollow = {"markerfacecolor": "none"} if arm.endswith("-hidden") else {}
    ax.plot(x, y, marker, color=colour, markersize=7, label=LABELS[arm], linestyle="none", **hollow)
ax.set(xlabel="correlation with the whole model's map", ylabel="AUC against the mask")
ax.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %% [markdown]
# Photographs as they are, without a pasted object, have no mask, but they have the whole model's map:

# %% tags=["hide-input"]
seven = results.load("vision-photographs")
header = ["likeness of the map, keep 0.9", "7 photographs", "minus ToMe's", "103 photographs", "minus ToMe's"]
rows = []
for arm in ("tome", "pitome", "pitome-released-deit", "pitome-hidden", "energy-sorted", "atc", "dct", "random-merge"):
    row = [grid.LABELS[arm]]
    for record in (seven, features):
        row.append(f"{record.mean_over_seeds(f'{arm}@0.9', 'likeness').mean():.3f}")
        row.append("" if arm == "tome" else record.difference(f"{arm}@0.9", rival, "likeness"))
    rows.append(row)
display(Markdown(markdown(header, rows)))
assert all(record.difference(ours, rival, "likeness").side == -1 for record in (seven, features))

# %% [markdown]
# Intervals resample photographs. PiToMe on averaged keys moves the map more than ToMe does; without a mask, likeness is all
# that can be measured.

# %% tags=["hide-input"]
keys = [key for key, cell in wide.cells.items() if cell["arm"] != "whole"]
pairs = np.array([[wide.outcome(key, name).mean() for name in ("likeness", "auc")] for key in keys])
near = pairs[pairs[:, 0] > 0.8]
ranks = [spearmanr(*table.T).statistic for table in (pairs, near)]
display(Markdown(
    f"Is likeness a substitute for accuracy? Over all {len(keys)} cells it ranks them much as accuracy does (Spearman's "
    f"correlation {ranks[0]:.2f}). Among the {len(near)} with a likeness above 0.8, those that one would choose among, it "
    f"does so poorly ({ranks[1]:.2f})."
))
assert all(record.difference(ours, rival, "likeness").side == -1 for record in (native, wide, stamps))

# %% [markdown]
# ## Features, layer by layer
#
# Without any label: how far do class token and patches move from the whole model's? On 103 photographs, un-merged where
# patches are compared.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosine of features of the merged model (keep 0.9) to the whole model's, by layer, on 103 photographs. Left: class token; right: patch tokens, mean over patches. Bands: mean plus and minus 1.96 standard errors over photographs. *Recorded.*", "name": "fig-vision-features"}, "image": {"alt": "Two panels of falling curves by layer, one per method."}}
SHOWN = ["pitome", "pitome-hidden", "energy-sorted", "tome", "atc", "dct", "random-merge", "random-prune"]
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for ax, outcome in zip(axes, ("class_cosine", "patch_cosine"), strict=True):
    for arm in SHOWN:
        values = features.mean_over_seeds(f"{arm}@0.9", outcome)  # (photographs, layers)
        colour, line, _ = plots.ARMS[arm]
        layers = np.arange(1, values.shape[1] + 1)
        ax.plot(layers, values.mean(axis=0), linestyle=line, color=colour, label=grid.LABELS[arm])
        error = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        ax.fill_between(layers, values.mean(axis=0) - error, values.mean(axis=0) + error, color=colour, alpha=0.15)
    ax.set(xlabel="after layer", ylabel=f"cosine, {outcome.split('_')[0]} token{'' if 'class' in outcome else 's'}")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ### What the metric can tell apart
#
# PiToMe's energy is built on cosines of keys, averaged over heads, with a margin that falls from 0.9 at the first layer to
# 0.075 at the last. So what do these cosines look like in the whole model?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What merging reads in the whole model, by layer, on 103 photographs (lines: mean; bands: the middle 90 % of photographs). Left: mean cosine between different tokens, of averaged keys and of hidden states, and the paper's margin. Right: spread of the energies over the tokens of a photograph. *Recorded.*", "name": "fig-vision-cosines"}, "image": {"alt": "Left: the mean cosine of averaged keys starts near 0.9 and falls with depth; that of hidden states is lower; the margin falls in a straight line. Right: the spread of energies by layer."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.3))
layers = np.arange(12)
for outcome, label, colour in (
    ("key_cosine", "averaged keys", "#0072B2"), ("hidden_cosine", "hidden states", "#009E73")
):
    values = features.outcome("whole", outcome)
    axes[0].plot(layers, values.mean(axis=0), color=colour, label=label, linestyle="-" if "key" in outcome else "--")
    axes[0].fill_between(layers, *np.quantile(values, [0.05, 0.95], axis=0), color=colour, alpha=0.15)
axes[0].plot(layers, pc.margin_schedule(12), ":", color="black", label="margin (paper)")
axes[0].set(xlabel="layer", ylabel="cosine", ylim=(0, 1))
axes[0].legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
spread = features.outcome("whole", "energy_spread")
axes[1].plot(layers, spread.mean(axis=0), color="#0072B2")
axes[1].fill_between(layers, *np.quantile(spread, [0.05, 0.95], axis=0), color="#0072B2", alpha=0.15)
axes[1].set(xlabel="layer", ylabel="standard deviation of energies", ylim=(0, None))
plt.show()

# %% tags=["hide-input"]
cosines = features.outcome("whole", "key_cosine").mean(axis=0)
spread = features.outcome("whole", "energy_spread").mean(axis=0)
margins = np.array(pc.margin_schedule(12))
far = [layer for layer in range(12) if cosines[layer] > margins[layer] + 0.1]
flat = int(spread.argmin())
assert flat in far and len(far) >= 4
display(Markdown(
    f"In layers {', '.join(map(str, far))} the *average* pair of tokens is more similar than the margin by 0.1 or more: most "
    f"tokens count as look-alikes of most others there. In layer {flat} the mean cosine is {cosines[flat]:.2f} and energies "
    f"hardly differ (standard deviation {spread[flat]:.3f}), so their order is one of small differences. Hidden states are "
    f"further apart almost everywhere. This may be why PiToMe on keys loses; another margin, or centred keys, would test it."
))

# %% [markdown]
# ### What does the energy protect?
#
# Before PiToMe merges $k$ tokens, it sets aside all but the $2k$ of highest energy. If energy found the redundant
# background, the object would be over-represented among the protected. Live, on a few scenes: the share of the object's
# tokens among the protected, divided by its share among all.

# %%
subject = live.cover > 0.5  # (B, 256): patches that are mostly object


def protection(options, layers=(0, 3, 6, 9)):
    """Object patches among the protected, relative to all; per scene and layer."""
    model = live.model
    with pc.patched(model, "pitome", 0.9, **options), pc.record(model) as trace:
        with torch.no_grad():
            model.forward_features(live.images.to(live.device))
    found = []
    for layer in layers:
        step, before = trace.layers[layer], trace.last.plan(layer)
        share = torch.zeros(len(subject), before.num_tokens)
        share = share.scatter_reduce(
            1, before.assignment.cpu(), subject.float(), "mean", include_self=False
        )
        k = before.num_tokens - step.plan.num_tokens
        order = step.energy.cpu().argsort(dim=1, descending=True, stable=True)
        guarded = share.gather(1, order[:, 2 * k :])
        found.append((guarded.mean(1) / share.mean(1)).numpy())
    return np.array(found).T  # (scenes, layers)


guarded = {"keys": protection({}), "hidden": protection({"metric": "hidden"})}

# %% tags=["hide-input"]
rows = []
for name, values in guarded.items():
    cells = [mean_interval(column) for column in values.T]
    rows.append([name, *(f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in cells)])
display(Markdown(markdown(["metric", "layer 0", "layer 3", "layer 6", "layer 9"], rows)))

# %% [markdown]
# 1 means: the protected tokens are a random sample. Above 1, the object is protected more than the rest. Intervals resample
# the few scenes that are computed here, which is why they are wide.
#
# ## With a classifier on top
#
# Now as the paper has it: a label per image. A linear head reads class tokens and patches, on digits (MNIST-5k at 112 px) and
# on the group an emoji belongs to, pasted large on six
# photographs; the objects of the test set are none of those that the head was fitted on. Two columns: the head fitted on the
# whole model (*off the shelf*), and fitted again on the merged one (*retrained*).

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy of linear heads, minus the whole model's, against cost. Lines: head fitted on the whole model, test items; bands for PiToMe and ToMe: 95 % bootstrap intervals of the paired difference. Large hollow markers, and crosses off the lines: head fitted again with merging on. *Recorded.*", "name": "fig-vision-heads"}, "image": {"alt": "Two panels, digits and emoji groups: ToMe, ATC and energy-sorted matching stay near the whole model down to about half the cost, PiToMe falls earlier, random merging and DCT collapse; refitted heads lie higher."}}
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2))
HEADS = ["pitome", "pitome-released-deit", "energy-sorted", "pitome-hidden", "tome", "atc", "dct", "random-merge",
         "random-prune", "lower-resolution"]
for ax, record, title in zip(axes, (digits, emoji), ("digits", "emoji groups"), strict=True):
    plots.against_cost(ax, record, "correct", HEADS)
    whole = record.outcome("whole", "correct").mean()
    for arm in HEADS[:-1]:
        for keep in tasks.REFIT_AT:
            key = Cell(arm, keep, seed=seeds_of(arm)[0]).key
            colour, _, marker = plots.ARMS[arm]
            refit = record.outcome(key, "correct_refit").mean() - whole
            ax.plot(record.cells[key]["share"], refit, marker, color=colour, markerfacecolor="none", markersize=7)
    ax.set(title=f"{title} (whole model: {whole:.1%})", ylabel="accuracy minus the whole model's")
axes[0].legend(fontsize=7.5, loc="lower right")
plt.show()

# %% tags=["hide-input"]
categories = results.load("vision-stamp-groups")
SHORT = ["pitome", "pitome-released-deit", "pitome-released-mae", "energy-sorted", "pitome-hidden", "atc", "dct",
         "random-merge", "random-prune"]


def against(record, key, other):
    """The paired difference with McNemar's p, where both are one run and not five."""
    if key not in record:
        return str(record.difference(key, other, "correct"))
    p = record.mcnemar(key, other, "correct")[2]
    return f"{record.difference(key, other, 'correct')}, p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}"


def heads_table(record, title, arms):
    tome = [f"{record.outcome('tome@0.9', name).mean():.1%}" for name in ("correct", "correct_refit")]
    lines = [f"| {title}, keep 0.9 | accuracy | minus ToMe's | minus the whole model's | retrained | minus ToMe's |",
             "|---|---|---|---|---|---|",
             f"| ToMe | {tome[0]} | | {against(record, 'tome@0.9', 'whole')} | {tome[1]} | |"]
    for arm in arms:
        key = f"{arm}@0.9"
        row = [grid.LABELS[arm], f"{record.mean_over_seeds(key, 'correct').mean():.1%}", against(record, key, "tome@0.9"),
               against(record, key, "whole"), f"{record.mean_over_seeds(key, 'correct_refit').mean():.1%}",
               str(record.difference(key, "tome@0.9", "correct_refit"))]
        lines.append("| " + " | ".join(row) + " |")
    gap = record.difference("pitome@0.9", "tome@0.9", "correct").detectable
    return "\n".join(lines) + (
        f"\n\n{len(record)} items, whole model {record.outcome('whole', 'correct').mean():.1%}. A difference of "
        f"{gap:.3f} between PiToMe and ToMe could have been detected."
    )


tables = {"digits": digits, "emoji groups": emoji, "categories of cut-out photographs": categories}
display(Markdown("\n\n".join(heads_table(record, title, SHORT) for title, record in tables.items())))

# %% [markdown]
# The other arms:

# %% tags=["hide-input", "hide-output"]
others = [arm for arm in grid.ARMS if arm not in [*SHORT, "tome"]]
display(Markdown("\n\n".join(heads_table(record, title, others) for title, record in tables.items())))

# %% [markdown]
# Differences with 95 % bootstrap intervals that resample digits or objects; p is McNemar's exact test, as if items were
# independent; random arms are means of five seeds, refitted with one.

# %% tags=["hide-input"]
def crossed(record):
    """PiToMe minus ToMe with photographs resampled as well."""
    columns = [record.items[name] for name in ("object", "photograph")]
    return paired_difference(record.outcome(ours, "correct"), record.outcome(rival, "correct"), columns)


plain = "random-prune@0.9"
display(Markdown(
    f"On **digits** the paper's method is below ToMe, off the shelf ({digits.difference(ours, rival, 'correct')}) and "
    f"retrained ({digits.difference(ours, rival, 'correct_refit')}). On **emoji groups** and **categories** it is below as "
    f"well, as long as the six photographs are taken as they are; with photographs resampled too, the intervals contain zero "
    f"({crossed(emoji)} and {crossed(categories)}). On emoji groups PiToMe could not be told from random pruning "
    f"({emoji.difference(ours, plain, 'correct')}).\n\n"
    f"On digits at keep 0.9 the DeiT preset loses less than the paper's row, at 0.8 it does not "
    f"({digits.difference('pitome-released-deit@0.9', ours, 'correct')} and "
    f"{digits.difference('pitome-released-deit@0.8', 'pitome@0.8', 'correct')} to it). On hidden states no difference to ToMe "
    f"is found on digits at 0.9 ({found(digits, 'pitome-hidden@0.9', 'correct')}); at 0.85 there is one "
    f"({digits.difference('pitome-hidden@0.85', 'tome@0.85', 'correct')}), and on categories "
    f"({found(categories, 'pitome-hidden@0.9', 'correct')}). A smaller picture at about the same cost is far behind on digits "
    f"({digits.difference('lower-resolution@84px', rival, 'correct')}), where small strokes matter, and not on emoji groups "
    f"({found(emoji, smaller, 'correct')}). Refitting the head repairs much: DCT comes within "
    f"{-100 * digits.difference('dct@0.9', rival, 'correct_refit').mean:.0f} points of ToMe on digits."
))
assert digits.difference(ours, rival, "correct").side == digits.difference(ours, rival, "correct_refit").side == -1

# %% [markdown]
# ### Five flips
#
# Means hide what happens to one picture. The rule: the first five test items, in the order of the record, that the whole
# model gets right and PiToMe at keep 0.9 gets wrong.

# %%
right = emoji.outcome("whole", "correct") == 1
flips = np.flatnonzero(right & (emoji.outcome("pitome@0.9", "correct") == 0))[:5]
made = scenes.scenes(int(flips.max()) + 1, split="test", scale=tasks.Groups.scale)
names = sorted({thing.group for thing in scenes.objects()})
chosen = made.images[flips]
plans = {}
for method in ("pitome", "tome"):
    with pc.patched(live.model, method, 0.9), pc.record(live.model) as trace, torch.no_grad():
        live.model.forward_features(chosen.to(live.device))
    plans[method] = trace.assignment.cpu().view(-1, 16, 16).numpy()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Five flips: emoji scenes that the whole model classifies rightly and PiToMe at keep 0.9 does not. Top: the scene and its group; middle and bottom: the 75 tokens that PiToMe and ToMe leave, with the answers. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs: danielbuechele (CC BY 2.0), NASA (public domain), Stefan van der Walt (CC0); this figure is CC BY-SA 4.0. *Items by the record, token maps live.*", "name": "fig-vision-flips"}, "image": {"alt": "Five columns of three pictures: a scene with a large emoji, and the token maps of PiToMe and ToMe below it, each with the predicted group."}}
pixels = to_display(chosen)
said = {m: emoji.outcome(f"{m}@0.9", "predicted").astype(int)[flips] for m in ("pitome", "tome")}
figure, axes = plt.subplots(3, len(flips), figsize=(10.5, 7.6), squeeze=False)
for i, item in enumerate(flips):
    plots.picture(axes[0, i], pixels[i], f"{made.objects[item].group}")
    for row, (method, label) in enumerate((("pitome", "PiToMe"), ("tome", "ToMe")), start=1):
        plots.token_map(axes[row, i], pixels[i], plans[method][i], f"{label}: {names[said[method][i]]}")
plt.show()

# %% [markdown]
# In several of these pictures, which were chosen because PiToMe fails on them, flat regions stay in single patches under
# PiToMe and are merged under ToMe, although a flat region should be a large cluster of high energy. That is an observation
# on five pictures, not a measurement.
#
# ## Proportional attention
#
# A merged token stands for several patches; proportional attention counts it so. What is it worth?

# %% tags=["hide-input"]
rows = []
for arm in [name for name, arm in grid.ARMS.items() if arm.also_off]:
    cells = [Cell(arm, 0.9, proportional, seeds_of(arm)[0]).key for proportional in (None, False)]
    row = [r.difference(*cells, o) for r, o in ((native, "auc"), (wide, "auc"), (digits, "correct"), (emoji, "correct"))]
    rows.append([grid.LABELS[arm], *row])
display(Markdown(markdown(["at keep 0.9, on minus off", "AUC, scenes", "AUC, 103 photographs", "digits", "emoji groups"], rows)))

# %% [markdown]
# On digits it helps most arms by several points, and hurts MCTF, EViT and random merging. On emoji groups no difference was
# found. For the map it is worth little: AUC falls with EViT, a bit with ToMe, ATC, CrossGET and ToFu, and rises with
# DiffRate.
#
# ## Beside the paper's own numbers
#
# For orientation only: other models, other data, figures quoted from Table 5 and not measured here. They neither support nor
# contradict what is above.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Quoted from Table 5 of the paper, off the shelf: drop in ImageNet top-1 (points) against the share of the whole model's GFLOPs. Hollow: not measured here. *Quoted.*", "name": "fig-vision-quoted"}, "image": {"alt": "Hollow markers for ToMe, ToFu, DCT, DiffRate and PiToMe on DeiT-T, DeiT-S, MAE-L and MAE-H; PiToMe's drop is the smallest in each column."}}
figure, ax = plt.subplots(figsize=(7, 3.6))
looks = {"PiToMe": "pitome", "ToMe": "tome", "ToFu": "tofu", "DCT": "dct", "DiffRate": "diffrate"}
for model_name, column in TABLE_5.items():
    accuracy, gflops = column["whole"]
    for method, arm in looks.items():
        colour, _, marker = plots.ARMS[arm]
        ax.plot(column["gflops"] / gflops, column[method][0] - accuracy, marker, color=colour, markerfacecolor="none",
                markersize=7, label=method if model_name == "DeiT-T" else None)
    ax.annotate(model_name, (column["gflops"] / gflops, 0.35), ha="center", fontsize=8)
ax.axhline(0, color="0.6", linewidth=1)
ax.set(xlabel="GFLOPs, share of the whole model's", ylabel="top-1 minus the whole model's", ylim=(-5.4, 0.9))
ax.legend(loc="lower center", fontsize=8)
plt.show()

# %% [markdown]
# ## What was tried, and what counts
#
# The test sets were scored once, for the grid in the [protocol](../book/protocol.md); `results/test_log.json` has the lines.

# %% tags=["hide-input"]
tried = results.load("vision-scenes-dev")
arms = sorted({cell["arm"] for cell in tried.cells.values()} - {"whole"})
variants = [arm for arm in arms if arm.startswith(("pitome", "energy-sorted"))]
display(Markdown(
    f"Before that, {len(arms)} arms in {len(tried.cells)} cells were looked at on dev scenes, {len(variants)} of the arms "
    f"variants of PiToMe ({', '.join(variants)}), and {len(results.load('vision-digits-dev').cells)} cells on dev digits. None "
    f"was added or dropped afterwards. The three arms on hidden states come from feasibility runs before this project, in "
    f"which eight variants had been looked at."
))

# %% tags=["hide-input"]
hidden = digits.difference("pitome-hidden@0.9", rival, "correct")
display(Markdown(
    f"> **Takeaway.** On its native task no difference between PiToMe and ToMe was found on two sets of drawn objects at keep "
    f"0.9; on cut-out photographs PiToMe is below ToMe, and a smaller picture or a coarser grid does about as well as any "
    f"merging on the drawings. Where a linear head reads the features, PiToMe as the paper writes it loses to ToMe on digits "
    f"({digits.difference(ours, rival, 'correct')}). There, what the cosine is taken of weighs as much as the method: with "
    f"hidden states in place of averaged keys it is {hidden}."
))

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | Off the shelf, PiToMe keeps more of a Vision Transformer's accuracy than ToMe and others at equal FLOPs (Table 5). |
# | We saw | On another model and other tasks, at keep 0.9: no difference found in the saliency map's AUC on two of three sets, a loss on the third, a loss with a linear head on digits. The likeness of the map to the whole model's is lower with PiToMe on all five sets. |
# | What could overturn this | The paper's models on ImageNet: **not run**. A backbone whose averaged keys are not nearly parallel; heads that were trained end to end; other margins. |
#
# ## Exercises
#
# **1.** Did the variant of PiToMe that was best on dev stay the best on test, and did its lead shrink?

# %% tags=["hide-cell"]
for name, record in (("dev", tried), ("test", native)):
    order = sorted(variants, key=lambda arm: -record.outcome(f"{arm}@0.9", "auc").mean())
    lead = record.difference(f"{order[0]}@0.9", rival, "auc")
    print(f"{name}: best {order[0]}, {lead} to ToMe; then {', '.join(order[1:])}")

# %% [markdown]
# **2.** Lower resolution and keep ratios have different costs. Interpolate the control to the cost of ToMe at each keep ratio
# and compare on the 103 photographs.

# %% tags=["hide-cell"]
sizes = sorted((c["share"], wide.outcome(k, "auc").mean()) for k, c in wide.cells.items() if c["arm"] == "lower-resolution")
shares, quality = np.array(sizes).T
for keep in grid.KEEPS:
    cell = wide.cells[f"tome@{keep:g}"]
    if cell["share"] < shares.min():
        print(f"keep {keep}: cheaper than the smallest picture of the grid")
        continue
    control = np.interp(cell["share"], shares, quality)
    tome = wide.outcome(f"tome@{keep:g}", "auc").mean()
    print(f"keep {keep}: cost {cell['share']:.2f}, ToMe {tome:.3f}, smaller picture {control:.3f}")

# %% [markdown]
# **3.** How much would the head's accuracy on digits vary if other digits had been drawn? Compare the interval of one method's
# accuracy with that of a paired difference.

# %% tags=["hide-cell"]
mean, low, high = digits.estimate(ours, "correct")
print(f"PiToMe alone: {mean:.3f} [{low:.3f}, {high:.3f}]")
print(f"minus energy-sorted, paired: {digits.difference(ours, 'energy-sorted@0.9', 'correct')}")
print(f"ToMe minus energy-sorted, paired: {digits.difference(rival, 'energy-sorted@0.9', 'correct')}")
