# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When energy helps
#
# **The law.** The better low energy singles out a drawn object, the more PiToMe {cite}`tran2024pitome` gains on ToMe {cite}`bolya2023tome` in finding it: a line
# fitted on 61 photographs rises again on 42 others. It passes near zero, so on average nothing is gained. The reason is that the layers measured
# here hold *tight* clusters of tokens: the most similar pair is nearly always a right one there, and a gate can only take choices
# away. Energy knows more than a single cosine where clusters are loose. (On hidden states there are gains on
# average: on digits, below, and on questions, in [Quality](08_quality.ipynb).)

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.colors import TwoSlopeNorm
from scipy.stats import spearmanr

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.law import grid, line, phase, settings_compared, synthetic
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import LABELS, Cell
from pitome_core.experiments.records.formats import interval, percent
from pitome_core.experiments.records.statistics import mean_interval
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"
recorded = phase.load()
layers = recorded["layers"]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "PiToMe minus ToMe in AUC of the saliency map, keep 0.9, keys, attention on, by how well low energy singles out the object on the whole model: means of quarters of the scenes with 95 % intervals over photographs, and the fitted line, its slope with a 95 % interval. Dashed: the threshold, fixed on dev. *Recorded.*", "name": "fig-law-line"}, "image": {"alt": "Two panels, dev and test. Four points with intervals each, and a straight line through them; a dashed vertical line marks the threshold."}}
OURS, RIVAL = "pitome@0.9", "tome@0.9"
dev, test = results.load("law-scenes-dev"), results.load("law-scenes")
scenes = {"dev, 61 photographs": line.known(dev, OURS, RIVAL), "test, 42 others": line.known(test, OURS, RIVAL)}
threshold = scenes["dev, 61 photographs"].threshold

figure, axes = plt.subplots(1, 2, figsize=(6.4, 3), sharey=True, sharex=True)
for ax, (title, known) in zip(axes, scenes.items(), strict=True):
    quarter = np.searchsorted(np.quantile(known.predictor, [0.25, 0.5, 0.75]), known.predictor)
    for part in range(4):
        here = quarter == part
        mean, low, high = mean_interval(known.gap[here], known.photograph[here])
        ax.plot([known.predictor[here].mean()] * 2, [low, high], color=plots.COLOURS["pitome"], linewidth=2)
        ax.plot(known.predictor[here].mean(), mean, "o", color=plots.COLOURS["pitome"])
    ends = np.array([known.predictor.min(), known.predictor.max()])
    ax.plot(ends, known.line.at(ends, known.covariate.mean()), color="0.4", linewidth=1)
    ax.axvline(threshold, linestyle="--", color=plots.COLOURS["accent"], linewidth=1)
    ax.axhline(0, color="0.7", linewidth=1)
    ax.set(title=f"{title}:\nslope {known.line}", xlabel="low energy singles out\nthe object (AUC)")
axes[0].set_ylabel("AUC, PiToMe minus ToMe")
plt.show()

# %% [markdown]
# PiToMe lets the $2k$ tokens of highest energy merge (its *gate*) and protects the rest; ToMe lets all tokens stand and takes the $k$ most
# similar pairs. [Quality](08_quality.ipynb) found PiToMe on keys level with ToMe or below. *Why*, and is there a model for which it would be
# otherwise?
#
# ## The law: does low energy know the object?
#
# Protection can help a task only if the protected tokens are the task's. On a scene with a mask that is a number, known before anything
# merges: the area under the ROC curve of $-E$ for the object's patches, mean over layers. The line, with the whole model's AUC beside it, and a
# threshold were fixed on dev; test was scored afterwards.

# %% tags=["hide-input"]
known = scenes["test, 42 others"]
above = known.predictor >= threshold
parts = {name: mean_interval(known.gap[here], known.photograph[here]) for name, here in (("above", above), ("below", ~above))}
energy = test.difference(OURS, f"{OURS.split('@')[0]}-shuffled@0.9", "auc")
to_tome = test.difference(OURS, RIVAL, "auc")

flat = {name: line.known(test, f"pitome-{arm}@0.9", f"tome-{arm}@0.9", name).line
        for name, arm in (("keys-centred", "centred"), ("hidden", "hidden"))}
worth = line.known(test, OURS, "pitome-shuffled@0.9")
primary = mean_interval(worth.gap[above], worth.photograph[above])
display(Markdown(
    f"The slope does not say that PiToMe *helps* above the threshold of {threshold:.2f}: there the difference to ToMe is {interval(parts['above'])}, below it "
    f"{interval(parts['below'])}; it lies at the ends. Over all scenes: {to_tome.in_words()}. Above the threshold PiToMe is above "
    f"itself with shuffled energies, {interval(primary)}, the primary quantity here."
))
assert known.line.low > 0 and energy.side == 1 and to_tome.side == 0 and primary[1] > 0
assert interval(parts['above']) and parts['above'][1] < 0 < parts['above'][2] and parts['below'][1] < 0 < parts['below'][2]
assert all(one.low < 0 < one.high for one in (*flat.values(), worth.line))

# %% [markdown]
# So there are two effects. Given that only $2k$ tokens may merge, energy chooses them well, on any scene (minus shuffled energies the line
# is flat). What the gate costs or gains against ToMe changes with how much of the object energy protects. On centred keys and on hidden
# states no slope was found, with intervals that do not exclude one.
#
# ## Why: loose and tight clusters
#
# Synthetic tokens with known clusters: six of unequal sizes, a fifth of the tokens isolated, one merge of a tenth. *Noise* makes clusters loose. A
# *direction common to all tokens* makes them parallel, as the averaged keys of real layers are.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "PiToMe minus ToMe on synthetic tokens, in points, by mean cosine and noise; margin 0.45, 196 tokens. Top: isolated tokens that stay alone. Bottom: merges inside a cluster. Violet: better with PiToMe, orange: worse. Left on keys, right on keys less their mean. Markers: layers of real models, by their mean cosine and by the noise at which synthetic tokens are as tight; their own margins and numbers of tokens differ, so the orange band stands elsewhere for each. *Recorded; point at a layer, or choose one with the arrow keys.*", "name": "fig-law-phase"}, "image": {"alt": "Four heat maps over mean cosine and noise. Left: violet in the corner of little cosine and much noise, orange where the mean cosine is near the margin, and in the lower map orange in nearly all of the loose part. Right: violet along the whole upper part in both maps, a little orange below it in the lower one. The layers of the ViT, of the LLaVA tower and of MiniLM lie in the lower part, which has no colour."}}
MODELS = {"ViT-S/14, 224 px": "o", "LLaVA tower, 168 px": "^", "MiniLM": "s"}
WIDTHS = {"MiniLM": 32}  # channels of a head; 64 in the ViT


def diagram(name, margin=0.45, isolated=0.2):
    rows = [row for row in recorded["diagram"] if (row["margin"], row["isolated"]) == (margin, isolated)]
    values = [row[name][0] if isinstance(row[name], list) else row[name] for row in rows]
    return np.reshape(values, (len(phase.COMMON), len(phase.SPREAD)))


measured = []  # layers of real models and the noise of synthetic tokens as tight
figure, axes = plt.subplots(2, 2, figsize=(7.4, 5.9), sharey=True, sharex=True)
noise = np.broadcast_to(phase.SPREAD, diagram("cosine").shape)
for row, (outcome, sign, most) in zip(axes, (("alone", 1, 8), ("wrong", -1, 16)), strict=True):
    for ax, (arm, title) in zip(row, (("pitome", "on keys"), ("pitome-centred", "on centred keys")), strict=True):
        gain = 100 * sign * (diagram(f"{outcome}/{arm}") - diagram(f"{outcome}/tome"))
        place = diagram("cosine"), noise, gain
        shown = ax.pcolormesh(*place, shading="gouraud", cmap="PuOr", norm=TwoSlopeNorm(0, -most, most), rasterized=True)
        levels = ax.contour(*place, levels=[-3, -1, 1, 3], colors="black", linewidths=0.8)
        ax.clabel(levels, fmt="%+g", fontsize=9)
        ax.set(title=title, xlim=(0, 1), ylim=(0.15, 4), yscale="log")
        ax.set_yticks([0.2, 0.5, 1, 2, 4], ["0.2\ntight", "0.5", "1", "2", "4\nloose"])
        ax.minorticks_off()
    row[0].set_ylabel("noise around the centres")
    what = "isolated tokens that stay alone" if outcome == "alone" else "merges inside a cluster"
    figure.colorbar(shown, ax=row, label=f"{what},\npoints more than with ToMe")
    for name, marker in MODELS.items():
        of_model = [row for row in layers if row["model"] == name]
        height = phase.noise_of([r["tightness"] for r in of_model], of_model[0]["tokens"], WIDTHS.get(name, 64))
        measured += zip(of_model, map(float, height), strict=True) if outcome == "alone" else []
        row[0].plot([r["cosine"] for r in of_model], height, marker, color="black", markerfacecolor="white", markersize=5,
                    linestyle="none", label=name)
for ax in axes[1]:
    ax.set_xlabel("mean cosine of the tokens")
axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="lower right")


def said(row, noise):
    """Name of a layer, and what was measured there."""
    times = np.mean(row["loss"]["pitome"]) / np.mean(row["loss"]["tome"])
    return (f"{row['model']}, layer {row['layer']}:", f" mean cosine {row['cosine']:.2f}, margin {row['margin']:.2f}; as tight as synthetic tokens of noise "
            f"{noise:.1f}. Where this layer alone merges, PiToMe loses {times:.1f} times as much as ToMe.")


display(plots.points_figure(figure, [([(ax[0], row["cosine"], noise) for ax in axes], *said(row, noise)) for row, noise in measured],
                            "PiToMe minus ToMe on synthetic tokens by mean cosine and noise, with the layers of three models"))
tight = [row["wrong/tome"][0] for row in recorded["diagram"] if row["spread"] <= 1.5]
assert max(tight) < 0.02  # of ToMe's merges are wrong, up to noise 1.5
assert all(row["loss/pitome"][0] >= row["loss/tome"][0] for row in recorded["diagram"])

# %% [markdown]
# - **Energy can help in loose clusters** (top left, violet): there the most similar pair is often similar by chance, the mean over a cluster
#   is not.
# - **A common direction takes that away.** In most of the loose part PiToMe on keys makes *more* wrong merges than ToMe (bottom left). On
#   keys less their mean it makes fewer from noise 2 on (right).
# - **The jump of equation 4 hurts** where the mean cosine lies near the margin (the orange band).
# - **In tight clusters there is nothing to gain.** Up to noise 1.5 fewer than two of a hundred of ToMe's merges are wrong. The layers of the
#   real models lie there.
#
# :::{dropdown} A third outcome, and why a common direction hurts
# The *loss* (1 - cosine of un-merged tokens to what they were) is larger with PiToMe in every setting: it rewards the nearest
# pair, and ToMe takes that by construction.
#
# Energy follows the cosine to the mean token closely in every setting, because $f$ is linear above the margin and nearly so below it.
# What changes is what that cosine says of the cluster. The next two cells watch it.
# :::

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the code that watches it"}
def told(common, margin=0.45, trials=8 if quick else 40):
    """Rank correlations: of energy with the cosine to the mean token, and of that cosine with the cluster's size."""
    tokens, label = synthetic.draw(synthetic.Setting(common, 1.5, margin=margin), trials)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    energy = pc.energy_score(tokens, margin)
    to_mean = torch.nn.functional.cosine_similarity(unit, unit.mean(dim=1, keepdim=True), dim=-1)
    size = torch.stack([row.bincount()[row] for row in label])
    pairs = [(spearmanr(e, m)[0], spearmanr(m, s)[0]) for e, s, m in zip(energy, size, to_mean, strict=True)]
    return np.mean(pairs, axis=0)


follows, tells = zip(*(told(common) for common in (0.0, 0.3)), strict=True)
assert min(follows) > 0.85 and tells[0] > tells[1] + 0.15

# %% tags=["hide-cell", "nbval-check-output"] mystnb={"code_prompt_show": "Show what it says"}
print("energy follows the cosine to the mean token:", "in both settings" if min(follows) > 0.85 else "not always")
print("a common direction makes that cosine tell of clusters", "less" if tells[0] > tells[1] + 0.15 else "as much")

# %% [markdown]
# **Does the diagram predict?** It gives a reason, and no forecast: the order of the layers by PiToMe's advantage is not what it says.

# %% tags=["hide-cell", "hide-input"] mystnb={"code_prompt_show": "Show the figure: predicted and measured, layer by layer", "figure": {"caption": "Advantage of PiToMe over ToMe (difference of the losses over their mean; below zero PiToMe loses more), layer by layer. Left: predicted from synthetic tokens; right: against tightness, the median of the largest centred cosine to another token. *Recorded.*", "name": "fig-law-layers"}, "image": {"alt": "Two scatter plots of thirty layers. The measured advantage is between -1.9 and -1.2 in the two towers and between -0.3 and 0 in MiniLM. Predictions lie between -0.5 and -0.1 and order neither; tightness separates MiniLM from the towers."}}
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), sharey=True)
for name, marker in MODELS.items():
    rows = [row for row in layers if row["model"] == name]
    for ax, of in zip(axes, ("predicted", "tightness"), strict=True):
        ax.plot([row[of] for row in rows], [row["advantage"] for row in rows], marker, markersize=6, label=name,
                color=plots.COLOURS["pitome"] if name != "MiniLM" else plots.COLOURS["accent"], markerfacecolor="none")
axes[0].axline((-0.4, -0.4), slope=1, color="0.7", linewidth=1)
axes[0].set(xlabel="predicted advantage", ylabel="measured advantage", ylim=(-2, 0.1))
axes[1].set(xlabel="tightness")
axes[1].legend(fontsize=9)
plt.show()

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show how far it misses"}
of_model = {name: [row for row in layers if row["model"] == name] for name in MODELS}
rank = spearmanr([row["predicted"] for row in layers], [row["advantage"] for row in layers])
inside = [phase.agreement(rows) for rows in of_model.values()]
by_tightness = spearmanr([row["tightness"] for row in layers], [row["advantage"] for row in layers]).statistic
ratio = np.mean([np.mean(row["loss"]["pitome"]) / np.mean(row["loss"]["tome"]) for row in layers if row["model"] != "MiniLM"])
display(Markdown(
    f"What is predicted is the advantage of PiToMe, the difference of the losses over their mean; what is measured is that of the real model's "
    f"last tokens when this layer alone merges. The order of the layers is not predicted: rank correlation {rank.statistic:+.2f} (the primary quantity of the protocol; p = "
    f"{rank.pvalue:.2f} even if the {len(layers)} layers were independent, and the towers share their weights), {inside[0]:+.2f} and {inside[1]:+.2f} within the "
    f"towers. Nor is the size: in the towers PiToMe loses {ratio:.0f} times as much as ToMe, mean over layers. The diagram's clusters are all "
    f"equally tight; real tokens also hold pairs that are all but equal, which ToMe finds first. That PiToMe loses more in every layer tests nothing, "
    f"because the synthetic tokens say so in every setting. Tightness ({by_tightness:+.2f}, looked at afterwards) separates the towers from MiniLM and orders "
    f"hardly within them. What the diagram gives is a reason, and no forecast."
))
assert all(row["advantage"] < 0 for row in layers)

# %% [markdown]
# ## The gate as a dial
#
# Two things distinguish PiToMe from energy-sorted matching: how many tokens may merge, and whether the best edges are chosen among them.
# `gate=` leads from one to the other: at 1 the $2k$ tokens of highest energy merge, as in the paper; further on more may, and of
# their edges the $k$ best do; in the end all may. One task is digits; the other, *emoji groups*, asks
# to which of eight of Unicode's groups, such as animals or food, a pasted emoji belongs.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy minus ToMe's against the number of tokens that may merge, at keep 0.9, on dev: blue on keys, light blue on hidden states; grey: the same with shuffled energies, mean of three seeds. Bands: 95 % intervals for keys. The left end is PiToMe, the right end energy-sorted matching. *Recorded.*", "name": "fig-law-dial"}, "image": {"alt": "Two panels, digits and emoji groups. On keys the curves rise from left to right and reach ToMe's level when most tokens may merge; on hidden states they begin nearer to it. With shuffled energies the left end lies far below, and from twice the gate on no longer."}}
digits, emoji = results.load("law-digits-dev"), results.load("law-emoji-dev")
MAY = {"pitome": 2, "gate-1.25": 2.5, "gate-1.5": 3, "gate-2": 4, "gate-3": 6, "gate-4": 8, "energy-sorted": 10}


def against_tome(record, arm, metric="", suffix="", off=False):
    cell = Cell(f"{arm}{metric}{suffix}", grid.PARTS_AT, False if off else None)
    return record.difference(cell.key, cell.beside("tome").key, "correct")


figure, axes = plt.subplots(1, 2, figsize=(6.4, 3))
for ax, (record, title) in zip(axes, ((digits, "digits"), (emoji, "emoji groups")), strict=True):
    for metric, arm in (("", "pitome"), ("-hidden", "pitome-hidden")):
        points = [against_tome(record, name, metric) for name in MAY]
        colour, dash, marker = plots.ARMS[arm]
        ax.plot(list(MAY.values()), [p.mean for p in points], dash, marker=marker, color=colour, markersize=5,
                label="hidden states" if metric else "keys")
        if not metric:
            ax.fill_between(list(MAY.values()), [p.low for p in points], [p.high for p in points], color=colour, alpha=0.15)
    shuffled = {MAY[name]: against_tome(record, name, suffix="-shuffled").mean for name in grid.CONTROLLED}
    ax.plot(*zip(*shuffled.items(), strict=True), ":", marker="x", color="0.5", label="keys, energies shuffled")
    ax.axhline(0, color=plots.COLOURS["tome"], linewidth=1)
    ax.set(title=title, xlabel="tokens that may merge,\nin units of k")
axes[0].set_ylabel("accuracy minus ToMe's")
axes[0].legend(fontsize=9, loc="lower right")
plt.show()

# %% tags=["hide-input"]
tests = {"digits": results.load("law-digits"), "emoji groups": results.load("law-emoji")}
rows = []
for title, record in tests.items():
    gate = record.difference("pitome@0.9", "energy-sorted@0.9", "correct")
    energy = record.difference("pitome@0.9", "pitome-shuffled@0.9", "correct")
    rows.append([title, str(gate), str(energy), str(against_tome(record, "energy-sorted"))])
    assert gate.side <= 0 and energy.side == 1
    assert title != "digits" or round(-100 * gate.mean) == 10  # the table at the end has this number
header = ["test, keep 0.9, keys", "the gate: 2k, not all", "energy behind the gate: real, not shuffled", "no gate: energy-sorted minus ToMe"]
display(Markdown(markdown(header, rows)))

# %% [markdown]
# Both contrasts were named after dev and scored on test once. *Behind the paper's gate energy matters*: with shuffled energies far more is
# lost. *The gate costs*: on digits PiToMe is below the same matching without it; on emoji groups the interval ends at zero. *Without a gate*
# energy-sorted matching stands a little below ToMe on test digits; on dev it stood a little above.
#
# ## Is there a best setting?
#
# The protocol's rule: a setting with energy in it that beats, on dev and with intervals, both ToMe in the same setting and itself with
# shuffled energies becomes a preset.

# %% tags=["hide-cell", "hide-input"] mystnb={"code_prompt_show": "Show the figure: every setting scored at keep 0.9", "figure": {"caption": "AUC of the saliency map on test at keep 0.9, PiToMe and energy-sorted matching by metric, with proportional attention on and off: minus ToMe in the same setting (left) and, for PiToMe, minus itself with shuffled energies (right). 95 % intervals over objects and photographs. *Recorded.*", "name": "fig-law-settings"}, "image": {"alt": "Two forest plots. Left: all intervals contain zero but that of PiToMe on keys with attention off, which ends just below. Right: all of PiToMe's intervals lie above zero."}}
rows = [row for row in settings_compared.compared(test, "auc") if "shuffled" not in row.key and "@0.9" in row.key]
figure, axes = plt.subplots(1, 2, figsize=(6.4, 0.3 * len(rows) + 0.8))
labels = {row.key: LABELS[Cell.of(test.about(row.key)).arm] + (", attention off" if row.key.endswith("/off") else "") for row in rows}
for ax, name in zip(axes, ("to_tome", "to_shuffled"), strict=True):
    there = [(labels[row.key], getattr(row, name)) for row in rows if getattr(row, name) is not None]
    plots.forest(ax, there)
    plots.names_above(ax, [label for label, _ in there])
axes[0].set(title="minus ToMe, same setting", xlabel="AUC")
axes[1].set(title="minus itself, energies shuffled", xlabel="AUC")
plt.show()
assert all(row.to_tome.side <= 0 for row in rows) and all(row.to_shuffled.side == 1 for row in rows if row.to_shuffled)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show what was tried on dev"}
tried = {"scenes": settings_compared.compared(dev, "auc"), "digits": settings_compared.compared(digits, "correct"),
         "emoji": settings_compared.compared(emoji, "correct")}
tried = {name: [row for row in rows if "shuffled" not in row.key] for name, rows in tried.items()}
winners = {name: [row.key for row in rows if row.beats_both] for name, rows in tried.items()}
chosen_on_dev = settings_compared.best(tried["digits"]).key
left = {name: settings_compared.largest_gain_left(rows) for name, rows in tried.items()}
display(Markdown(
    f"Of {sum(map(len, tried.values()))} settings on dev ({', '.join(f'{name} {len(rows)}' for name, rows in tried.items())}) these "
    f"fulfil it: {', '.join(f'`{key}` on {name}' for name, keys in winners.items() for key in keys) or 'none'}. The largest gain has `{chosen_on_dev}`, "
    f"which was scored on test. (With attention off on hidden states nearly every gate gains on dev digits, and so does matching without a gate.) Gains over ToMe of more than {left['scenes']:.3f} in AUC, {left['digits']:.3f} on digits and {left['emoji']:.3f} on emoji groups are excluded for all of them, "
    f"each setting by its own interval. Settings without a shuffled control could not be picked. Keep 0.95, most of keep 0.8, and emoji with attention "
    f"off were not run."
))

# %% tags=["hide-input"]
chosen = tests["digits"]
off = against_tome(chosen, "gate-2-hidden", off=True)
on = against_tome(chosen, "gate-2-hidden")
control = chosen.difference("gate-2-hidden@0.9/off", "gate-2-hidden-shuffled@0.9/off", "correct")
price = chosen.difference("gate-2-hidden@0.9/off", "tome-hidden@0.9", "correct")
display(Markdown(
    f"One setting was chosen on dev: twice the gate, on hidden states, with attention that does not count sizes. On test it holds, on digits: {off} to ToMe "
    f"in the same setting, {control} to itself with shuffled energies. It is a gain for energy, and no preset: with attention that counts sizes no difference to ToMe "
    f"is left ({on.in_words()}), and the setting lies {-100 * price.mean:.0f} points below that ToMe. On the scenes hidden states gain nothing with "
    f"attention off ({test.difference('pitome-hidden@0.9/off', 'tome-hidden@0.9/off', 'auc').in_words()}). So: where attention cannot count sizes, `gate=2, metric=\"hidden\"` is worth "
    f"trying; there is no preset `best`."
))
assert off.side == 1 and control.side == 1 and price.side == -1
assert chosen_on_dev == "gate-2-hidden@0.9/off"

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | Energy marks what can be merged and protects what is informative, so PiToMe keeps more than ToMe. |
# | We saw | Behind the gate energy chooses far better than chance. The gate costs ten points on digits. The difference to ToMe rises with how well low energy singles out the object; on average none was found. |
# | What could overturn this | A backbone with loose clusters. Tasks other than objects, digits and emoji groups; merging that is trained. |
#
# **What it does not say.** One ViT and one small BERT stand in the diagram. The law is about drawn objects, and its predictor needs the mask: it
# explains, and a user cannot compute it. What a user can compute, mean cosine and tightness, orders layers within a model
# hardly.

# %% [markdown]
# ## Exercises
#
# ```{exercise} The kernel without a jump
# :label: ex-elu-band
# The jump of equation 4 is in the orange band. Does the continuous kernel of the released vision code, `kernel="elu"`, take the
# band away?
# ```
#
# ```{solution-start} ex-elu-band
# :class: dropdown
# ```

# %%
setting = synthetic.Setting(0.45, 1.0)
tokens, label = synthetic.draw(setting, 60)
for kernel in ("paper", "elu"):
    plan = pc.plan(tokens, setting.removed, margin=setting.margin, kernel=kernel)
    print(f"{kernel}: {percent(synthetic.outcomes(plan, tokens, label)['wrong'].mean(), 1)} of merges are wrong")
plan = pc.plan(tokens, setting.removed, "tome")
print(f"ToMe: {percent(synthetic.outcomes(plan, tokens, label)['wrong'].mean(), 1)}")

# %% [markdown]
# Most of the band goes: without the jump far fewer merges are wrong. ToMe, which looks at pairs, stays below both.
#
# ```{solution-end}
# ```
#
# ```{exercise} Isolated tokens
# :label: ex-isolated
# When must an isolated token merge, whatever the method? With a share $s$ of isolated tokens and $k$ merges among $N$, count how
# many tokens are left that have a partner, for PiToMe and for ToMe.
# ```
#
# ```{solution} ex-isolated
# :class: dropdown
# PiToMe merges among $2k$ tokens, of which $(1 - s) N$ are not isolated: it need not touch an isolated one as long as
# $2k \le (1 - s) N$. In ToMe the sources are half of the tokens, $(1 - s) N / 2$ of them not isolated: $k \le (1 - s) N / 2$. It is
# the same bound, $k \le (1 - s) N / 2$. Below it ToMe chooses among all those sources and PiToMe among exactly $k$: that choice is
# what the gate gives away.
# ```
#
# ```{exercise} A model of your own
# :label: ex-own-layers
# Where would a model of your own stand? Measure mean cosine and tightness of its layers.
# ```
#
# ```{solution-start} ex-own-layers
# :class: dropdown
# ```

# %%
keys = torch.randn(2, 196, 64) + 3 * torch.randn(2, 1, 64)  # put the averaged keys of a layer here: (images, tokens, channels)
offered = synthetic.offered(keys)
at = phase.noise_of(offered["tightness"].numpy(), 196, 64)
print(f"mean cosine {offered['cosine'].mean():.2f}, noise {at.mean():.1f}: random directions are as loose as can be")

# %% [markdown]
# Put the averaged keys of a layer in the first line. Random directions, as here, are as loose as can be.
#
# ```{solution-end}
# ```
