# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The record: vision
#
# With nine tokens in ten kept in each layer, no difference between PiToMe, as the paper {cite}`tran2024pitome` writes it, and
# ToMe {cite}`bolya2023tome` was found in finding drawn objects: AUC +0.002, where 0.023 would have been found. On digits PiToMe has eleven in a
# hundred fewer right. On hidden states without counted sizes, and in the preset for CLIP, it is three above its counterpart, and five below ToMe
# that counts sizes. With shuffled energies PiToMe as the paper writes it loses 0.035 of AUC, and 35 digits in a hundred.
#
# *This page has all numbers of two tasks of [Quality](08_quality.ipynb): find a drawn object, and read a label through a linear head. Model: a
# ViT-S/14 {cite}`dosovitskiy2021vit` in the style of DINOv2 {cite}`oquab2024dinov2`. Items: 378 scenes on 42 photographs, 981 digits {cite}`lecun1998mnist`, 336 large
# emoji. Record: `vision-2` of the [protocol](../book/protocol.md), where no other stands. Words: [glossary](../book/glossary.md).*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports and the records"}
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import spearmanr

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import ARMS, LABELS, Cell
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.published import TABLE_5
from pitome_core.experiments.records.statistics import mean_interval
from pitome_core.experiments.records.strata import by_cluster, by_third
from pitome_core.experiments.records.tables import markdown, unbroken
from pitome_core.experiments.settings import profile
from pitome_core.experiments.vision import grid, tasks

plots.use_style()
quick = profile() == "smoke"
scenes = results.joined(results.load("law-scenes"), results.load("vision-2-scenes"))
digits, emoji, collection = (results.load(f"vision-2-{name}") for name in ("digits", "emoji", "collection"))
first_version = {name: results.load(f"vision-{name}") for name in ("scenes", "scenes-wide", "digits", "emoji")}
ours, rival, order = "pitome@0.9", "tome@0.9", "energy-sorted@0.9"
hidden, deit, mae, clip = "pitome-hidden@0.9", *(f"pitome-released-{name}@0.9" for name in ("deit", "mae", "clip"))
BLUE = plots.COLOURS["pitome"]
places = np.array(scenes.items["photograph"])
photographs = sorted(set(places))


def label(key, record=scenes):
    """What a cell is called in figures and tables."""
    cell = Cell.of(record.about(key))
    return LABELS[cell.arm] + (", attention off" if cell.proportional is False else "")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Every form with energy, keep 0.9: AUC on drawn objects and accuracy on digits (off the shelf), minus ToMe with the same attention and metric, and minus itself with shuffled energies. 95 % intervals over objects and photographs, and over digits. Blue lies above zero, vermilion below, grey contains it; the ticks beside a grey interval are the sizes that would have been found in four cases of five. *Attention off*: sizes are not counted. *Recorded.*", "name": "fig-vision-forest"}, "image": {"alt": "Four forest plots, one row per form. Minus ToMe, AUC: PiToMe on keys without counted sizes ends just below zero, all other intervals contain it. Minus ToMe, digits: PiToMe on keys far below zero, the preset for MAE below, the preset for CLIP and PiToMe on hidden states without counted sizes above. Minus shuffled energies: forms with the gate are above zero, but for the preset for MAE in AUC; energy-sorted matching is near zero."}}
def is_shown(key):
    cell = Cell.of(scenes.about(key))
    return cell.keep == 0.9 and cell.shuffled is not None and "centred" not in cell.arm


def two_questions(panels):
    """Draw all arms minus ToMe and minus themselves with shuffled energies; panels: title -> (record, outcome)."""
    figure, axes = plt.subplots(1, 2 * len(panels), figsize=(11, 0.32 * len(with_energy) + 1.1), sharey=True)
    found = {}
    for ax, (against, title) in zip(axes, [(a, t) for a in ("tome", "shuffled") for t in panels], strict=True):
        record, outcome = panels[title]
        found[against, title] = plots.beside(ax, record, with_energy, lambda *pair, r=record, o=outcome: r.difference(*pair, o), against)
        ax.set(title=f"{title}\nminus {'ToMe' if against == 'tome' else 'shuffled energies'}")
    axes[0].set_yticklabels(map(label, with_energy))
    plt.show()
    return found


with_energy = [key for key in scenes.groups() if is_shown(key)]
asked = two_questions({"AUC": (scenes, "auc"), "digits": (digits, "correct")})
to_tome, dealt = asked["tome", "AUC"], asked["shuffled", "AUC"]
on_digits, digits_dealt = asked["tome", "digits"], asked["shuffled", "digits"]
assert (str(to_tome[ours]), f"{to_tome[ours].detectable:.3f}") == ("+0.002 [-0.014, +0.019]", "0.023")
assert all(one is None or one.side < 1 for one in to_tome.values()) and {key for key, one in to_tome.items() if one and one.side} == {ours + "/off"}
assert [round(100 * on_digits[key].mean) for key in (ours, hidden + "/off", clip)] == [-11, 3, 3]
assert {key for key, one in on_digits.items() if one and one.side > 0} == {hidden + "/off", clip}
assert on_digits[mae].side == on_digits[order].side == -1 and on_digits[deit].side == on_digits[hidden].side == 0
below_sized = [digits.difference(key, rival, "correct") for key in (hidden + "/off", clip)]
assert all(one.side == -1 and round(100 * one.mean) == -5 for one in below_sized)
assert f"{dealt[ours].mean:.3f}" == "0.035" and round(100 * digits_dealt[ours].mean) == 35
assert all(dealt[key].side == digits_dealt[key].side == 1 for key in (ours, hidden, deit, clip)) and dealt[mae].side == 0
assert (dealt[order].side, digits_dealt[order].side, digits_dealt[mae].side, f"{dealt[order].detectable:.3f}") == (0, -1, 1, "0.005")
assert scenes.difference(ours, "whole", "auc").side == 0 and f"{scenes.difference(ours, 'whole', 'auc').detectable:.3f}" == "0.022"
assert (len(scenes), len(photographs), len(digits), len(emoji)) == (378, 42, 981, 336)

# %% [markdown]
# **Better than ToMe?** In AUC no form is. **Does its energy do anything?** Behind the gate, yes, in every form but the preset for MAE in AUC. As an
# order without the gate no difference in AUC was found (0.005 would have been), and on digits it is below itself with shuffled energies by a single
# interval. So in AUC energy makes good about what the gate would cost. The two
# primary differences are AUC minus ToMe's and minus the whole model's; none was found in the second either (0.022 would have been).
#
# ## Why is there no difference in AUC?
#
# Two opposite parts cancel. Where the whole model does badly PiToMe is above ToMe; where it does well PiToMe is below.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A tie that is a cancellation, at keep 0.9. Left and middle: PiToMe minus ToMe on each of 42 photographs (mean of nine scenes), against the whole model's AUC there. Likeness is below zero on all. AUC is above zero where the whole model does badly, and a little below elsewhere. Right: AUC minus the whole model's, in thirds of the scenes by the whole model's AUC, with 95 % intervals over objects and photographs. Where the whole model does badly, blurring (pooling, DCT) gains. *Recorded.*", "name": "fig-vision-cancellation"}, "image": {"alt": "Three panels. Left: dots of likeness differences, all below zero. Middle: dots of AUC differences, falling from above zero at low AUC of the whole model to slightly below zero at high. Right: five lines over thirds; PiToMe, pooling and DCT are above zero in the lowest third and below it in the others, ToMe stays near zero, random merging is far below."}}
SHOWN = [ours, rival, "grid-pool", "dct@0.9", "random-merge@0.9"]
whole_auc = {name: scenes.outcome("whole", "auc")[places == name].mean() for name in photographs}
parts = {off: by_cluster(scenes, ours + off, rival + off, "auc") for off in ("", "/off")}
likeness = by_cluster(scenes, ours, rival, "likeness")
thirds = {key: by_third(scenes, key, "whole", "auc") for key in SHOWN}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5))
for ax, (found, title) in zip(axes, ((likeness, "likeness"), (parts[""], "AUC")), strict=False):
    x, y = np.array([[whole_auc[name], part.mean] for name, part in found.items()]).T
    ax.plot(x, y, "o", color=BLUE, markersize=5, alpha=0.8)
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(title=f"PiToMe minus ToMe: {title}", xlabel="AUC of the whole model")
for shift, (key, three) in zip(np.linspace(-0.16, 0.16, len(SHOWN)), thirds.items(), strict=True):
    colour, line, marker = plots.ARMS[Cell.of(scenes.about(key)).arm]
    x = np.arange(3) + shift
    axes[2].plot(x, [part.mean for part in three], linestyle=line, marker=marker, color=colour, label=label(key))
    axes[2].vlines(x, [part.low for part in three], [part.high for part in three], color=colour, linewidth=1, alpha=0.6)
axes[2].axhline(0, color="black", linewidth=0.8, zorder=0)
axes[2].set(title="minus the whole model: AUC", xlabel="thirds by the whole model's AUC", xticks=range(3))
axes[2].set_xticklabels(["lowest", "middle", "highest"])
axes[2].legend(fontsize=7.5)
plt.show()
above = {off: sum(part.mean > 0 for part in found.values()) for off, found in parts.items()}
low, middle, high = by_third(scenes, ours, rival, "auc")
tilt = spearmanr([whole_auc[name] for name in parts[""]], [part.mean for part in parts[""].values()]).statistic
pooled, at_random = thirds["grid-pool"][0], thirds["random-merge@0.9"][0]
assert low.side == 1 and middle.side == high.side == -1 and tilt < -0.3
assert (above, f"{tilt:.2f}") == ({"": 18, "/off": 12}, "-0.46") and all(part.mean < 0 for part in likeness.values())
assert pooled.side == 1 and pooled.mean > thirds[ours][0].mean and (f"{pooled.mean:.2f}", f"{at_random.mean:.2f}") == ("0.07", "-0.06")

# %% [markdown]
# On 18 of 42 photographs AUC is above ToMe's; the better the whole model does on one, the lower the difference (rank correlation -0.46). Part of the
# gain may be blur, or regression to the mean: pooling looks at no token and gains more in the lowest third (0.07), while random merging loses
# 0.06. Likeness is below ToMe's on every photograph. With sizes not counted, on either side, AUC is above ToMe's on 12 photographs; the mean is
# below by a single interval, which does not survive the correction of [the ledger](../book/claims.md).

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the primary differences, and the thirds, as numbers"}
named = {"likeness": "likeness", "AUC": "auc", "NSS": "nss"}
rows = [[name, *(unbroken(scenes.difference(ours, other, outcome)) for other in (rival, "pitome-shuffled@0.9", "whole"))]
        for name, outcome in named.items()]
rows += [[f"AUC, {third} third", unbroken(one), "", unbroken(lost)]
         for third, one, lost in zip(("lowest", "middle", "highest"), (low, middle, high), thirds[ours], strict=True)]
rows.append(["AUC, attention off", unbroken(to_tome[ours + "/off"].format(4)), unbroken(dealt[ours + "/off"].format(4)), ""])
display(Markdown(markdown(
    [f"PiToMe (paper), keep 0.9, {percent(scenes.about(ours)['share'])} of the work", "minus ToMe", "minus shuffled energies", "minus the whole model"],
    rows)))
assert scenes.difference(ours, rival, "nss").side == 1

# %% [markdown]
# ## Do maps stay like the whole model's, and what of other labels?
#
# In likeness, the correlation with the whole model's map, every form with the gate is below ToMe. Emoji groups tell little.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same forms: likeness to the whole model's map, and accuracy on eight groups of emoji that are pasted large on a photograph. 95 % intervals over objects and photographs. Marks as in the first figure. *Recorded.*", "name": "fig-vision-heads"}, "image": {"alt": "Four forest plots, one row per form. Minus ToMe, likeness: all forms with the gate are below zero, energy-sorted matching is at zero. Minus ToMe, emoji groups: all intervals contain zero. Minus shuffled energies, likeness: forms with the gate are above zero; emoji groups: all around it."}}
headed = two_questions({"likeness": (scenes, "likeness"), "emoji groups": (emoji, "correct")})
gated = [key for key in with_energy if not key.startswith("energy-sorted")]
assert all(headed["tome", "likeness"][key].side == -1 for key in gated)
assert all(headed["shuffled", "likeness"][key].side == 1 for key in gated if headed["shuffled", "likeness"][key])
assert headed["tome", "likeness"][order].side == 0 and f"{headed['tome', 'likeness'][order].detectable:.3f}" == "0.005"
assert all(one is None or one.side == 0 for against in ("tome", "shuffled") for one in headed[against, "emoji groups"].values())
assert f"{headed['tome', 'emoji groups'][ours].detectable:.2f}" == "0.11"
assert first_version["emoji"].difference(ours, rival, "correct").side == -1
assert [percent(record.outcome("whole", "correct").mean()) for record in (digits, emoji)] == ["96 %", "44 %"]

# %% [markdown]
# With shuffled energies the maps are even less like it, at keep 0.9 in every form with the gate that was run. Energy-sorted matching cannot be told from ToMe in
# likeness (0.005 would have been found). In emoji groups no interval excludes zero on photographs that the head has not seen; for PiToMe as
# the paper writes it 0.11 would have been found. In `vision-1`, where the photographs were the same for fitting and scoring, it was below ToMe.
# The whole model has 96 % of the digits and 44 % of the groups right.
#
# ## What do refitting, fewer tokens and attention change on digits?
#
# With heads *refitted* with merging on, PiToMe as the paper writes it is five in a hundred below ToMe, in place of eleven. At keep 0.8, PiToMe on
# hidden states is ten below ToMe there where sizes count, and five above where they do not. To count sizes is worth four to eight points
# whatever the method; in AUC it moves no method by 0.02. A preset that is compared across this line is credited or charged with it.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show refitted heads and keep 0.8 as numbers"}
refit = {key: digits.difference(key, rival, "correct_refit") for key in (ours, order)}
at_08 = {off: digits.difference(f"pitome-hidden@0.8{off}", f"tome-hidden@0.8{off}", "correct") for off in ("", "/off")}
shown = {"PiToMe (paper), refitted": refit[ours], "energy-sorted, refitted": refit[order],
         "PiToMe on hidden states, keep 0.8": at_08[""], "PiToMe on hidden states, keep 0.8, attention off": at_08["/off"],
         "PiToMe (released, CLIP), minus ToMe with sizes": below_sized[1]}
display(Markdown(markdown(["digits", "minus ToMe", "would have been found"],
                          [[name, unbroken(one), f"{one.detectable:.3f}"] for name, one in shown.items()])))
assert refit[ours].side == at_08[""].side == -1 and at_08["/off"].side == 1 and refit[order].side == 0
assert [round(100 * one.mean) for one in (refit[ours], at_08[""], at_08["/off"])] == [-5, -10, 5]

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show what counting sizes changes, arm by arm", "figure": {"caption": "What counting sizes in attention does: each arm with it minus the same arm without it, keep 0.9, with 95 % intervals. A preset that is compared with ToMe across this line is credited or charged with it. *Recorded.*", "name": "fig-vision-attention"}, "image": {"alt": "Three forest plots, one row per arm. AUC: intervals near zero. Digits: all on the right of zero, by four to eight points. Emoji groups: near zero."}}
both = [arm for arm in (*grid.COMPARED, *grid.HIDDEN) if f"{arm}@0.9/off" in scenes.groups()]
figure, axes = plt.subplots(1, 3, figsize=(10.5, 2.6), sharey=True)
switched = {}
for ax, (title, record, outcome) in zip(axes, (("scenes, AUC", scenes, "auc"), ("digits, accuracy", digits, "correct"),
                                               ("emoji groups, accuracy", emoji, "correct")), strict=True):
    switched[title] = [record.difference(f"{arm}@0.9", f"{arm}@0.9/off", outcome) for arm in both]
    plots.forest(ax, list(zip((LABELS[arm] for arm in both), switched[title], strict=True)),
                 [plots.SIDES[one.side] for one in switched[title]])
    ax.set(title=title, xlabel="with minus without")
plt.show()
gains = {title: [one.mean for one in found] for title, found in switched.items()}
assert all(one.side == 1 for one in switched["digits, accuracy"]) and max(map(abs, gains["scenes, AUC"])) < 0.02
assert 0.04 <= min(gains["digits, accuracy"]) and max(gains["digits, accuracy"]) < 0.085

# %% [markdown]
# ## What do fewer, larger steps cost?
#
# `every=2` and `every=3` let one layer remove what two or three would. At keep 0.9 ToMe then reads one and two digits in a hundred fewer, its maps are a
# little less like the whole model's, and more of an object shares tokens with background. At *equal work* no loss on digits was found with
# `every=3` (0.017 would have been). PiToMe as the paper writes it *gains* three digits in a hundred and likeness with every second layer. With every third no
# difference was found on digits (0.034 would have been); at equal work it gains likeness. Its gate is wider there: more tokens may merge where more have to. It stays
# eleven digits below ToMe with `every=3`. So `every` is for one image or a small model, at keep 0.9 or more.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Steps in every second and third layer (`every`), minus a step in every layer, keep 0.9, and `every=3` minus every layer at keep 0.88, which costs as much. 95 % intervals over digits, and over objects and photographs. *Recorded* (`steps-1`).", "name": "fig-vision-steps"}, "image": {"alt": "Three panels with an interval for each of three methods in each of three comparisons. Digits: ToMe a little below zero, PiToMe above zero with every second layer. AUC: all intervals contain zero. Likeness: ToMe and energy-sorted matching a little below zero; PiToMe above zero with every second layer, and at equal work."}}
steps = {name: results.load(f"steps-{name}") for name in ("digits", "scenes", "emoji")}
QUESTIONS = {"every 2": ("0.9/every2", "0.9"), "every 3": ("0.9/every3", "0.9"), "every 3,\nequal work": ("0.9/every3", "0.88")}
MEASURES = {"digits, accuracy": ("digits", "correct"), "scenes, AUC": ("scenes", "auc"), "scenes, likeness": ("scenes", "likeness"),
            "emoji groups": ("emoji", "correct")}
changed = {(title, arm): [steps[name].difference(f"{arm}@{one}", f"{arm}@{other}", outcome)
                          for one, other in (*QUESTIONS.values(), ("0.8/every3", "0.8"))]  # the last one in the fold alone
           for title, (name, outcome) in MEASURES.items() for arm in grid.COMPARED}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5))
for ax, title in zip(axes, MEASURES, strict=False):
    for shift, arm in zip((-0.2, 0, 0.2), grid.COMPARED, strict=True):
        found = changed[title, arm][:-1]
        colour, _, marker = plots.ARMS[arm]
        x = np.arange(len(found)) + shift
        ax.vlines(x, [one.low for one in found], [one.high for one in found], color=colour, linewidth=1.5)
        ax.plot(x, [one.mean for one in found], linestyle="", marker=marker, color=colour, label=LABELS[arm])
    ax.axhline(0, color="black", linewidth=0.8, zorder=0)
    ax.set(title=title, xticks=range(len(QUESTIONS)), xticklabels=QUESTIONS)
axes[0].set_ylabel("minus a step in every layer")
figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
plt.show()
of = {arm: [round(100 * one.mean) for one in changed["digits, accuracy", arm]] for arm in grid.COMPARED}
assert of["tome"][:2] == [-1, -2] and [one.side for one in changed["digits, accuracy", "tome"]] == [-1, -1, 0, -1]
assert steps["scenes"].difference("tome@0.9/every3", "tome@0.9", "mixed").side == 1
assert f"{changed['digits, accuracy', 'tome'][2].detectable:.3f} {changed['digits, accuracy', 'pitome'][1].detectable:.3f}" == "0.017 0.034"
assert of["pitome"][0] == 3 and [one.side for one in changed["digits, accuracy", "pitome"]] == [1, 0, 0, -1]
assert [one.side for one in changed["scenes, likeness", "pitome"]] == [1, 0, 1, 1]
assert all(one.side == -1 for arm in ("tome", "energy-sorted") for one in changed["scenes, likeness", arm])
assert all(one.side == 0 for arm in grid.COMPARED for one in changed["scenes, AUC", arm])
assert round(100 * steps["digits"].difference("pitome@0.9/every3", "tome@0.9/every3", "correct").mean) == -11

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the numbers, emoji groups and keep 0.8 with them"}
rows = [[f"{title}, {LABELS[arm]}", *map(unbroken, found)] for (title, arm), found in changed.items()]
display(Markdown(markdown(["", "every 2", "every 3", "every 3, equal work", "keep 0.8, every 3"], rows)
                 + "\n\nMinus a step in every layer. At keep 0.8 one step in three layers has to remove nearly half of the tokens. On digits every method "
                 "falls then, ToMe by 41 in a hundred and PiToMe by 18; in AUC nothing was found, and PiToMe, which is far below before, gains likeness."))
late = {arm: changed["digits, accuracy", arm][-1] for arm in grid.COMPARED}
assert all(one.side == -1 for one in late.values())
assert [round(-100 * late[arm].mean) for arm in ("tome", "pitome")] == [41, 18]
assert all(changed["scenes, AUC", arm][-1].side == 0 for arm in grid.COMPARED)
assert changed["scenes, likeness", "pitome"][-1].side == 1

# %% [markdown]
# ## Beside which ToMe do the presets stand?
#
# The repository of the paper runs a ToMe of its own beside its PiToMe: without proportional attention, and in CLIP on hidden states behind the MLP
# (*as published*). *Equal* is the counterpart, *with sizes* ToMe as its authors write it. On digits the choice decides the sign.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The released presets minus three ToMes, keep 0.9, with 95 % intervals. No claim of this book rests on *as published* and *with sizes*, which differ in more than the method. *Recorded.*", "name": "fig-vision-published"}, "image": {"alt": "Two forest plots of nine rows. AUC: all intervals contain zero. Digits: for DeiT and CLIP above zero as published, for CLIP above and for MAE below when equal, all three below when ToMe counts sizes."}}
def compared(key, own):
    """Three ways of comparing a preset: as published, with its counterpart, with ToMe that counts sizes."""
    yield "as published", own
    yield "equal", scenes.rival_of(key)
    yield "with sizes", rival


published = {(key, way): [record.difference(key, other, outcome) for record, outcome in ((scenes, "auc"), (digits, "correct"))]
             for key, own in ((deit, "tome-released-deit@0.9"), (mae, "tome-released-deit@0.9"), (clip, "tome-released-clip@0.9"))
             for way, other in compared(key, own)}
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.1), sharey=True)
for column, (ax, title) in enumerate(zip(axes, ("AUC, scenes", "accuracy, digits"), strict=True)):
    found = [(f"{label(key)}, {way}", both[column]) for (key, way), both in published.items()]
    plots.forest(ax, found, [plots.SIDES[one.side] for _, one in found])
    ax.set(title=title, xlabel="minus ToMe")
plt.show()
sides = {way: [published[key, way][1].side for key in (deit, mae, clip)] for way in ("as published", "equal", "with sizes")}
assert sides == {"as published": [1, 0, 1], "equal": [0, -1, 1], "with sizes": [-1, -1, -1]}
assert all(in_auc.side == 0 for in_auc, _ in published.values()) and max(one.detectable for one, _ in published.values()) < 0.022
assert f"{published[deit, 'equal'][1].detectable:.2f}" == "0.02"

# %% [markdown]
# In AUC none of the nine differences was found (0.022 would have been, in each). As the counterpart has it, the preset for CLIP is above ToMe, that for
# MAE below, and for DeiT no difference was found (0.02 would have been).

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the nine comparisons as numbers"}
display(Markdown(markdown(["preset, keep 0.9", "minus ToMe", "AUC, scenes", "accuracy, digits"],
                          [[label(key), way, *map(unbroken, found)] for (key, way), found in published.items()])))

# %% [markdown]
# ## Other strengths, and a smaller picture
#
# At every strength PiToMe as the paper writes it is less like the whole model than ToMe, mixes more of the object with background, and reads fewer
# digits. A picture of 168 in place of 224 pixels costs 54 % of the work, and in AUC no difference to the whole model was found (0.013 would have
# been). Finding a drawn object needs no fine grid; digits need one. (`vision-1`, of which no cell is compared with one of `vision-2`.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Minus the whole model, over the cost, keep 0.95 to 0.8: likeness, AUC and the share of object patches that end in a token with background, on 309 scenes with 103 photographs, and accuracy on digits. Bands for PiToMe and ToMe: 95 % intervals. *Recorded* (`vision-1`).", "name": "fig-vision-cost"}, "image": {"alt": "Four panels of curves against the share of multiply-accumulates. Likeness falls fastest with PiToMe, slowest with ToMe, energy-sorted matching and a smaller picture. AUC curves stay near zero and overlap. Mixing is highest with PiToMe at every strength. On digits PiToMe falls first, together with the smaller picture."}}
ALONG = ["pitome", "tome", "energy-sorted", "pitome-hidden", "lower-resolution"]
wide, old_digits = first_version["scenes-wide"], first_version["digits"]
figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), sharex=True)
for ax, (record, outcome) in zip(axes, ((wide, "likeness"), (wide, "auc"), (wide, "mixed"), (old_digits, "correct")), strict=True):
    drawn = [arm for arm in ALONG if outcome != "mixed" or arm in ARMS]  # a smaller picture merges nothing
    plots.against_cost(ax, record, lambda key, r=record, o=outcome: np.nan_to_num(r.per_item(key, o)), drawn)
    ax.set(title={"auc": "AUC", "mixed": "mixed object patches", "correct": "digits, accuracy"}.get(outcome, outcome), xlabel="share of the work")
axes[1].legend(fontsize=7, loc="lower right")
plt.show()
keeps = sorted({cell["keep"] for cell in wide.cells.values() if cell.get("keep")}, reverse=True)
smaller = "lower-resolution@168px"
at_168 = wide.difference(smaller, "whole", "auc")
assert all(wide.difference(f"pitome@{keep:g}", f"tome@{keep:g}", name).side == side
           for keep in keeps for name, side in (("likeness", -1), ("mixed", 1)))
assert all(old_digits.difference(f"pitome@{keep:g}", f"tome@{keep:g}", "correct").side == -1 for keep in keeps)
assert (percent(wide.cells[smaller]["share"]), at_168.side, f"{at_168.detectable:.3f}") == ("54 %", 0, "0.013")

# %% [markdown]
# ## What the metric can tell apart
#
# In five layers the *average* pair of keys is more similar than the paper's margin by 0.1 or more, so many pairs count as look-alikes. In layer 3
# (counted from 0) the mean cosine is 0.97 and energies hardly differ. Hidden states are further apart almost everywhere. This may be why PiToMe on
# keys loses.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left and middle: cosine of the merged model's features to the whole model's by layer, keep 0.9, class token and patches (un-merged). Right: what merging reads in the whole model: mean cosine between different tokens, of averaged keys and of hidden states, and the paper's margin. Lines: means over 42 photographs; bands: 1.96 standard errors, on the right the middle 90 % of photographs. *Recorded.*", "name": "fig-vision-features"}, "image": {"alt": "Left and middle: falling curves by layer; PiToMe on keys falls fastest, ToMe and energy-sorted matching least, hidden states between. Right: the mean cosine of averaged keys is near 0.9 in the first layers, falls to a third in the middle and rises again at the end, that of hidden states is lower nearly everywhere; the margin falls in a straight line."}}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6))
for ax, outcome in zip(axes, ("class_cosine", "patch_cosine"), strict=False):
    for arm in ("pitome", "tome", "energy-sorted", "pitome-hidden", "tome-hidden"):
        values = collection.mean_over_seeds(f"{arm}@0.9", outcome)  # (photographs, layers)
        colour, line, _ = plots.ARMS[arm]
        layers, centre = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
        error = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        ax.plot(layers, centre, linestyle=line, color=colour, label=LABELS[arm])
        ax.fill_between(layers, centre - error, centre + error, color=colour, alpha=0.15)
    ax.set(xlabel="after layer", xticks=range(2, 13, 2), ylabel=f"cosine, {outcome.split('_')[0]} token{'' if 'class' in outcome else 's'}")
axes[0].legend(fontsize=7.5)
for outcome, name, colour, line in (
    ("key_cosine", "averaged keys", BLUE, "-"), ("hidden_cosine", "hidden states", "#56B4E9", "--")
):
    values = collection.outcome("whole", outcome)
    axes[2].plot(range(12), values.mean(axis=0), color=colour, label=name, linestyle=line)
    axes[2].fill_between(range(12), *np.quantile(values, [0.05, 0.95], axis=0), color=colour, alpha=0.15)
axes[2].plot(range(12), pc.margin_schedule(12), ":", color="black", label="margin (paper)")
axes[2].set(xlabel="layer", xticks=range(0, 12, 2), ylabel="mean cosine between tokens", ylim=(0, 1))
axes[2].legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()
cosines, spread = (collection.outcome("whole", name).mean(axis=0) for name in ("key_cosine", "energy_spread"))
far = [layer for layer in range(12) if cosines[layer] > pc.margin_schedule(12)[layer] + 0.1]
flat = int(spread.argmin())
assert flat in far and far == [3, 8, 9, 10, 11] and flat == 3
assert (f"{cosines[flat]:.2f}", f"{spread[flat]:.3f}") == ("0.97", "0.003")
assert all(collection.difference(ours, rival, name).side == -1 for name in ("class_cosine", "patch_cosine"))

# %% [markdown]
# These are layers 3 and 8 to 11; in layer 3 energies have a standard deviation of 0.003. Features of PiToMe on keys move further from the whole
# model's than those of ToMe, class token and patches alike.
#
# ## All numbers, and the paper's own
#
# The paper's figures are of other models and data: they neither support nor contradict what is above.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show all cells: likeness, AUC, NSS, digits, emoji groups, features"}
def row(record, key, outcome, digits=3):
    """A cell beside the whole model, its counterpart and itself with shuffled energies; empty where there is none."""
    found = [unbroken(record.difference(key, other, outcome).format(digits)) if other else ""
             for other in ("whole", record.rival_of(key), record.rival_of(key, "shuffled"))]
    keep = Cell.of(record.about(key)).keep
    return [label(key, record) + (f", keep {keep:g}" if keep else ""), f"{record.per_item(key, outcome).mean():.3f}", *found]


tabled = []
for title, record, outcome in (("scenes, likeness", scenes, "likeness"), ("scenes, AUC", scenes, "auc"), ("scenes, NSS", scenes, "nss"),
                               ("digits, accuracy", digits, "correct"), ("emoji groups, accuracy", emoji, "correct")):
    keys = [key for key in record.groups() if key != "whole" and "shuffled" not in key and "centred" not in key]
    tabled.append(markdown([title, "mean", "minus the whole model", "minus ToMe", "minus shuffled energies"],
                           [row(record, key, outcome) for key in keys]))
keys = [key for key in collection.groups() if key != "whole" and collection.rival_of(key)]
tabled.append(markdown([f"{len(collection)} photographs without objects, minus ToMe", "likeness", "class token", "patches"],
                       [[label(key), *(unbroken(collection.difference(key, collection.rival_of(key), name).format(4))
                                       for name in ("likeness", "class_cosine", "patch_cosine"))] for key in keys]))
display(Markdown("\n\n".join(tabled)))

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show figures quoted from Table 5 of the paper", "figure": {"caption": "Quoted from Table 5 of the paper, off the shelf: drop in ImageNet top-1 (points) against the share of the whole model's GFLOPs. Hollow: not measured here. *Quoted.*", "name": "fig-vision-quoted"}, "image": {"alt": "Hollow markers for ToMe, ToFu, DCT, DiffRate and PiToMe on DeiT-T, DeiT-S, MAE-L and MAE-H; PiToMe's drop is the smallest in each column."}}
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
# Before `vision-1`, every arm of its grid had been looked at on dev scenes and some on dev digits, six of them variants of PiToMe; the arms on
# hidden states come from feasibility runs, in which eight variants had been looked at. The first run of the scenes of `vision-2` was stopped before
# a cell was complete, and begun again. What else was known when the list was written is in the [protocol](../book/protocol.md). With this many
# rows, an interval that just excludes zero is no finding; [the ledger](../book/claims.md) corrects for their number.
#
# ## Does the record hold?
#
# Three cells are computed again where this page is built; their AUC has to agree within 0.005.

# %% tags=["hide-input", "nbval-check-output"]
count = 4 if quick else 24
apart = tasks.available("scenes")  # else, without the optional photographs, the scenes of the first version
live = tasks.ScenesApart("test", count) if apart else tasks.Scenes("test", count)
recorded = scenes if apart else first_version["scenes"]
assert all(live.items[name] == recorded.items[name][:count] for name in ("object", "photograph"))
live.prepare()
checked = [Cell("whole"), Cell("pitome", 0.9), Cell("tome", 0.9)]
for cell in checked:
    with live.applied(cell) as model:
        scored = live.score(model, cell)
    wrong, allowed = results.disagreement(recorded.outcome(cell.key, "auc")[:count], scored["auc"], tolerance=0.005)
    assert wrong <= allowed, f"{cell.key}: {wrong} of {count} scenes are off"
print("agree with the record:", ", ".join(cell.key for cell in checked))

# %% [markdown]
# | The paper claims | We saw | What could overturn this |
# |---|---|---|
# | Off the shelf, PiToMe keeps more accuracy than ToMe at equal FLOPs (Table 5). | As the paper writes it: below ToMe on digits, also refitted; no difference found in AUC; above in NSS by a single interval that does not survive. | The paper's models on ImageNet: **not run**. A backbone whose averaged keys differ more. |
# | So do the presets of the released code. | Beside the counterpart: for CLIP above on digits, for MAE below, for DeiT no difference found. | Strengths other than 0.9, whose counterpart is not run. |
# | Maps and features stay nearer to the whole model's. | Further away in every form with the gate. | Other measures of likeness; likeness is not accuracy. |
# | Energy protects what is informative. | Against shuffled energies: yes, behind the gate. Against ToMe: on digits, on hidden states without counted sizes. | Energies that tell tokens apart better. |
#
# Why, and for which pictures: [When energy helps](09_when_energy_helps.ipynb).
#
# ## Exercises
#
# ```{exercise} From dev to test
# :label: ex-vision-dev
# Which form of PiToMe led its counterpart by most in AUC on dev, and where did it stand on test?
# ```
#
# ```{solution-start} ex-vision-dev
# :class: dropdown
# ```

# %%
tried = results.load("law-scenes-dev")
for name, record in (("dev", tried), ("test", scenes)):
    forms = [key for key in tried.groups() if Cell.of(tried.about(key)).keep == 0.9 and Cell.of(tried.about(key)).shuffled and tried.rival_of(key)]
    leads = {key: record.difference(key, record.rival_of(key), "auc") for key in forms}
    ranked = sorted(leads, key=lambda key: -leads[key].mean)
    print(f"{name}: first {ranked[0]}, {leads[ranked[0]].in_words()}; then {', '.join(ranked[1:4])}")

# %% [markdown]
# No difference was found for the first of either list: an order of such means is mostly an order of noise.
#
# ```{solution-end}
# ```
#
# ```{exercise} A smaller picture of equal cost
# :label: ex-vision-smaller
# Lower resolution and keep ratios have different costs. Interpolate the control of the first version to the cost of ToMe at each keep
# ratio and compare on many photographs.
# ```
#
# ```{solution-start} ex-vision-smaller
# :class: dropdown
# ```

# %%
sizes = sorted((cell["share"], wide.outcome(key, "auc").mean()) for key, cell in wide.cells.items()
               if cell["arm"] == "lower-resolution")
shares, quality = np.array(sizes).T
for keep in keeps:
    cell = wide.cells[f"tome@{keep:g}"]
    if cell["share"] < shares.min():
        print(f"keep {keep}: cheaper than the smallest picture of the grid")
        continue
    control = np.interp(cell["share"], shares, quality)
    tome = wide.outcome(f"tome@{keep:g}", "auc").mean()
    print(f"keep {keep}: cost {cell['share']:.2f}, ToMe {tome:.3f}, smaller picture {control:.3f}")

# %% [markdown]
# They lie close together: finding a drawn object does not need a fine grid.
#
# ```{solution-end}
# ```
#
# ```{exercise} What the energy protects
# :label: ex-vision-protects
# Before PiToMe merges $k$ tokens, it sets aside all but the $2k$ of highest energy. Measure, live, the share of the object's tokens
# among the protected, divided by its share among all: 1 means a random sample, more that the object is protected.
# ```
#
# ```{solution-start} ex-vision-protects
# :class: dropdown
# ```

# %%
subject = live.cover > 0.5  # (B, 256): patches that are mostly object
for metric in ("keys", "hidden"):
    with pc.patched(live.model, "pitome", 0.9, metric=metric), pc.record(live.model) as trace, torch.no_grad():
        live.model.forward_features(live.images.to(live.device))
    for layer in (0, 3, 6, 9):
        step, before = trace.layers[layer], trace.last.plan(layer)
        share = torch.zeros(len(subject), before.num_tokens)
        share = share.scatter_reduce(1, before.assignment.cpu(), subject.float(), "mean", include_self=False)
        k = before.num_tokens - step.plan.num_tokens
        ranks = step.energy.cpu().argsort(dim=1, descending=True, stable=True)
        mean, low_, high_ = mean_interval((share.gather(1, ranks[:, 2 * k :]).mean(1) / share.mean(1)).numpy())
        print(f"{metric:6s} layer {layer}: {mean:.2f} [{low_:.2f}, {high_:.2f}]")

# %% [markdown]
# On the scenes of the test set a little more of the object is protected than a random choice would; with few scenes the two metrics cannot be
# told apart in most layers.
#
# ```{solution-end}
# ```
