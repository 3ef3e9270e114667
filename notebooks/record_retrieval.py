# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The record: retrieval
#
# The whole model has 129 of 600 points of *rsum*. ToMe {cite}`bolya2023tome` loses 7 of them and PiToMe, as the paper {cite}`tran2024pitome` writes
# it, 20; no difference between the two was found, -12, but only one of 20 would have been. For the presets, PiToMe on hidden states and the
# order by energy none was found either (5 to 20 would have been). With shuffled energies PiToMe on hidden states loses 26 more. On a white ground, and with fewer tokens, PiToMe
# as the paper writes it is below ToMe by more than the correction of [the ledger](../book/claims.md) takes away.
#
# *This page has all numbers of one task of [Quality](08_quality.ipynb): match pictures and texts. Model: a dual encoder of
# open_clip {cite}`ilharco2021openclip`, in the manner of CLIP {cite}`radford2021clip`: the ViT-S/14 of [the record of vision](record_vision.ipynb),
# all-MiniLM-L6-v2 {cite}`wang2020minilm,reimers2019sbert`, and an MLP on each side, trained here on 985 OpenMoji drawings with their texts. Items: 342
# other drawings on twenty photographs, and 784 texts: 1,126 queries. Record: `retrieval-2` of the [protocol](../book/protocol.md); where
# it is `retrieval-1`, that is said. Words: [glossary](../book/glossary.md).*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments,open-clip,transformers] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports and the records"}
import json
from functools import cache, partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.data import pairs
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import dual_encoder
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import LABELS, Cell
from pitome_core.experiments.records.formats import percent, signed_percent
from pitome_core.experiments.records.statistics import paired_difference, trainings_difference
from pitome_core.experiments.records.tables import markdown, unbroken
from pitome_core.experiments.retrieval import recall, training
from pitome_core.experiments.retrieval.grid import RETRAINED, applied
from pitome_core.experiments.runs import summary
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"
record, two_photos = (results.load(f"retrieval-2-{name}") for name in ("collection", "photographs"))  # the second version
first_version = {name: results.load(f"retrieval-{name}") for name in ("collection", "white", "photographs", "noto", "stamps")}
TITLES = {"collection": "drawings on 20 photographs", "white": "drawings on white", "photographs": "drawings on 2 photographs",
          "noto": "Noto Emoji on white", "stamps": "cut-out photographs on white"}
ours, rival, order = "pitome@0.9", "tome@0.9", "energy-sorted@0.9"
hidden, clip = "pitome-hidden@0.9", "pitome-released-clip@0.9"
difference = cache(partial(recall.difference, record))


def label(key):
    """What a cell is called in figures and sentences."""
    about = record.about(key)
    return about["label"] + (f", {about['pixels']} px" if "pixels" in about else ", attention off" * (about.get("proportional") is False))


def told(one, digits=1):
    """A difference and the size that would have been found, as cells of a table."""
    return ["", ""] if one is None else [unbroken(one.format(digits)), f"{one.detectable:.{digits}f}"]


def numbers(rows, first="rsum"):
    """A table of differences: label -> difference."""
    display(Markdown(markdown([first, "difference", "would have been found"], [[name, *told(one)] for name, one in rows.items()])))


test = pairs.pairs("test")
log = (results.folder() / "embedded" / "retrieval-training.jsonl").read_text(encoding="utf-8").splitlines()
log = [json.loads(line) for line in log]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Every arm with energy at keep 0.9 in all layers of the image tower, off the shelf, on twenty photographs: rsum minus that of ToMe with the same attention, metric and place (left), and minus that of itself with the energies dealt to other tokens (right). 95 % intervals over identities, photographs and draws. Blue lies above zero, vermilion below, grey contains it; the small ticks beside a grey interval are the sizes that would have been detected in four cases of five. Hollow: the published comparison for CLIP, which differs in more than the method. *Recorded.*", "name": "fig-retrieval-forest"}, "image": {"alt": "Two forest plots. Left: all intervals contain zero; PiToMe as the paper writes it lies mostly left of it, energy-sorted matching close around it. Right: that of PiToMe on hidden states lies above zero, those of PiToMe as the paper writes it and as released for CLIP mostly right of it, those of energy-sorted matching and of the preset for DeiT around it."}}
with_energy = [key for key in record.groups() if Cell.of(record.about(key)).shuffled]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.34 * len(with_energy) + 1.3), sharey=True)
beside = plots.beside(axes[0], record, with_energy, difference)
dealt = plots.beside(axes[1], record, with_energy, difference, "shuffled")
published = difference(clip, "tome-released-clip@0.9")
axes[0].plot([published.low, published.high], [len(with_energy)] * 2, color="0.45", linewidth=1)
axes[0].plot(published.mean, len(with_energy), "o", color="0.45", markerfacecolor="white", markersize=5)
axes[0].set_yticks(range(len(with_energy) + 1))
axes[0].set_yticklabels([*map(label, with_energy), "PiToMe (released, CLIP), as published"])
axes[0].set(title="minus ToMe's", xlabel="rsum", ylim=(len(with_energy) + 0.5, -0.5))
axes[1].set(title="minus its own with shuffled energies", xlabel="rsum")
plt.show()
to_tome, to_whole = beside[ours], difference(ours, "whole")
share = record.about(ours)["share"]
lost = recall.per_query(record, ours, "rank") - recall.per_query(record, rival, "rank")
places = np.array(record.items["photograph"])
worse = sum(lost[places == place].mean() < 0 for place in set(places))
by_head = [np.subtract(*(recall.contributions(record.outcome(key, "rank")[:, head], record.items["query"]).mean() for key in (ours, rival)))
           for head in range(3)]
at_most = {key: f"{one.detectable:.0f}" for key, one in beside.items() if one}
assert to_tome.side == 0 and to_tome.mean < 0 and to_whole.side == -1 and worse > len(set(places)) / 2
assert (to_tome.format(0), at_most[ours], f"{recall.rsum(record, 'whole')[0]:.0f}") == ("-12 [-27, +2]", "20", "129")
assert (f"{to_whole.mean:.0f}", f"{difference(rival, 'whole').mean:.0f}", f"{dealt[hidden].mean:.0f}") == ("-20", "-7", "26")
assert (worse, len(set(places)), percent(share)) == (14, 20, "57 %") and max(by_head) < 0
assert all(one is None or one.side == 0 for one in (*beside.values(), published))
assert {key for key, found in dealt.items() if found and found.side} == {hidden} and dealt[hidden].side == 1
assert dealt[ours].mean > 0 and dealt[ours].detectable > to_tome.detectable
assert [f"{dealt[key].detectable:.0f}" for key in (ours, clip, order)] == ["29", "25", "6"] and at_most[order] == "5"
assert {at_most[key] for key in (order, hidden, clip)} == {"5", "15", "20"} and len(pairs.pairs("train")) == 985
assert (at_most[clip], f"{published.detectable:.0f}") == ("20", "19") and (len(test), len(test.texts), len(record)) == (342, 784, 1126)

# %% [markdown]
# The two **primary** differences are minus ToMe's and minus the whole model's, at 57 % of the work. PiToMe is below ToMe on 14 of 20
# photographs and with each of three pairs of heads. **Energy**: on keys no difference to shuffled energies was found, nor in the preset for CLIP; only large
# ones could have been (29 and 25). **Order alone**: no difference to ToMe or to a shuffled order was found (5 and 6 would have been). **Preset for
# CLIP**: none was found beside the counterpart (20 would have been), nor, hollow, beside the ToMe that the paper's repository runs there
# (19): on hidden states too, but behind the MLP, with the class token counted in the split. No claim rests on the latter.
#
# ## How is it measured?
#
# Tokens merge in all twelve layers of the image tower, and heads are those trained without merging. A query's outcome is the rank of its best right
# answer, and a tie counts against it. *rsum* is a mean over three pairs of heads, trained from three seeds. A merge hangs on the last digit here, so each
# picture is scored five times, four of them with a noise of a two-thousandth of a grey level; arms that draw at random have five seeds instead. That
# scatter is part of the interval. Heads never saw these drawings and photographs; what the towers have seen is not known.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show three drawings with their texts", "figure": {"caption": "Three drawings of the test split on white and on photographs, with their texts. Emoji: OpenMoji, CC BY-SA 4.0, as this figure ([credits](../book/credits.md)). *Live.*", "name": "fig-retrieval-pairs"}, "image": {"alt": "Three emoji drawings, each once on a white ground and once on a photograph, with two or three texts above each pair."}}
some = test.things[:3]
figure, axes = plt.subplots(2, 3, figsize=(8.5, 5.4))
for row, background in zip(axes, ("white", "photographs"), strict=True):
    for ax, image in zip(row, pairs.views(some, background, "test"), strict=True):
        plots.picture(ax, image)
for ax, captions in zip(axes[0], test.captions, strict=False):
    said = [test.texts[i] for i in captions]
    ax.set_title("\n".join(text if len(text) < 38 else text[:36] + " ..." for text in said), fontsize=8.5)
with plots.photographs():
    plt.show()

# %% [markdown]
# ## Is there anything to lose?
#
# Yes, though the encoder is weak beside CLIP: chance has 9 points where the whole model has 129 (`retrieval-1`). The heads were meant to beat kernel ridge
# regression, which has no contrastive training. On test no difference between them was found on any set (21 to 23 would have been). On dev, where recipe and epoch
# were chosen, heads have 164 to 173 and the ridge 150: some of that lead was selection.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the whole model, kernel ridge and chance on five sets"}
def chance(scored):
    """rsum of a random order: a query with m right answers of n finds one among the first k by luck."""
    sizes = {kind: scored.items["query"].count(kind) for kind in (recall.IMAGE, recall.TEXT)}
    rights = {recall.IMAGE: [len(row) for row in test.captions], recall.TEXT: [len(row) for row in test.answers]}
    if sizes[recall.IMAGE] != len(test):  # stamps: a caption each
        rights = {kind: [1] for kind in rights}
    others = {recall.IMAGE: sizes[recall.TEXT], recall.TEXT: sizes[recall.IMAGE]}
    luck = [1 - np.mean([np.prod([(others[kind] - m - i) / (others[kind] - i) for i in range(k)]) for m in counts])
            for kind, counts in rights.items() for k in recall.AT]
    return 100 * sum(luck)


beaten, rows = {}, []
for name, scored in first_version.items():
    ridge = "not run"
    if "rank_ridge" in scored.about("whole")["outcomes"]:
        beaten[name] = recall.difference(scored, "whole", "whole", "rank", "rank_ridge")
        ridge = f"{recall.rsum(scored, 'whole', 'rank_ridge')[0]:.0f}"
    rows.append([TITLES[name], len(scored), f"{recall.rsum(scored, 'whole')[0]:.0f}", ridge, f"{chance(scored):.0f}"])
dev = {kind: [max(line["dev"]) if isinstance(line["dev"], list) else line["dev"] for line in log if line["heads"].startswith(kind)]
       for kind in ("head", "ridge")}
assert all(found.side == 0 for found in beaten.values())
luck = chance(first_version["collection"])
assert all(found.side == 0 for found in beaten.values()) and f"{luck:.0f}" == "9"
assert (f"{min(d.detectable for d in beaten.values()):.0f}", f"{max(d.detectable for d in beaten.values()):.0f}") == ("21", "23")
assert [f"{value:.0f}" for value in (min(dev["head"]), max(dev["head"]), dev["ridge"][0])] == ["164", "173", "150"]
display(Markdown(markdown(["rsum (`retrieval-1`)", "queries", "trained heads", "kernel ridge", "chance"], rows)))

# %% [markdown]
# ## What does every method lose?
#
# ToMe, the order by energy and a smaller picture lie nearest to the whole model.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus the whole model's, at keep 0.9 (lower resolution: a picture of 168 pixels), off the shelf, on twenty photographs, with 95 % intervals. Small marks: the five draws or seeds of a cell. PiToMe blue, order by energy green, ToMe vermilion, controls grey. *Recorded.*", "name": "fig-retrieval-cells"}, "image": {"alt": "A forest plot of differences to the whole model, all on the left of zero. ToMe, energy-sorted matching and the smaller picture lie nearest to it, PiToMe as the paper writes it further left, random merging far to the left."}}
small = next(key for key in record.groups() if key.startswith("lower-resolution"))
merged = [key for key in record.groups() if key not in ("whole", "random-merge@0.9/off") and "shuffled" not in key]
looks = {"energy": plots.COLOURS["accent"], "pitome": plots.COLOURS["pitome"], "tome": plots.COLOURS["tome"]}
colours = [looks.get(key.partition("-")[0].partition("@")[0], "0.45") for key in merged]
losses = {key: difference(key, "whole") for key in merged}
figure, ax = plt.subplots(figsize=(7.5, 0.3 * len(merged) + 0.9))
plots.forest(ax, [(label(key), loss) for key, loss in losses.items()], colours)
for y, key in enumerate(merged):
    one_by_one = recall.repeats(record, key) - recall.rsum(record, "whole")[0]
    ax.plot(one_by_one, np.full(len(one_by_one), y + 0.28), "|", color=colours[y], markersize=5)
ax.set(xlabel="rsum minus the whole model's")
plt.show()
pruned, deeper = difference(ours, "random-prune@0.9"), difference(small, rival)
switch = {key: difference(f"{key}/off", key) for key in (ours, rival)}
two_tomes = difference("tome-released-clip@0.9", "tome-hidden@0.9/off")
assert all(found.side == 0 for found in (pruned, deeper, two_tomes, *switch.values()))
assert [f"{one.detectable:.0f}" for one in (pruned, deeper, beside[f"{ours}/off"], *switch.values())] == ["21", "13", "22", "14", "19"]
assert (record.about(small)["pixels"], percent(record.about(small)["share"]), percent(record.about(rival)["share"])) == (168, "55 %", "57 %")

# %% [markdown]
# **A smaller picture** of 168 pixels does 55 % of the work, ToMe 57 %; no difference was found (13 would have been). The objects here are large; small ones
# were not tested. **Attention**: with sizes not counted no change was found in PiToMe or ToMe (14 and 19 would have been), nor between the
# two (22). **Random pruning**: no difference to PiToMe was found (21 would have been). No time was measured.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show these differences as numbers"}
numbers({f"{label(key)}, minus ToMe": one for key, one in beside.items()} | {"PiToMe (released, CLIP), as published": published})
numbers({f"{label(key)}, minus shuffled energies": one for key, one in dealt.items() if one})
numbers({f"{label(key)}, minus the whole model": one for key, one in losses.items()})
numbers({"PiToMe (paper), minus random pruning": pruned, "lower resolution, minus ToMe": deeper, "the published ToMe for CLIP, minus the equal one": two_tomes}
        | {f"{label(key)}, attention off minus on": one for key, one in switch.items()})
display(Markdown(f"PiToMe minus ToMe by pair of heads: {', '.join(f'{value:+.1f}' for value in by_head)}."))

# %% [markdown]
# ## How firm is a plan?
#
# That noise, far below what a picture of 8 bits can hold, changes the rank of 33 % of the pictures under energy-sorted matching, of 13 % under PiToMe, of 1 %
# under ToMe, and of none in the whole model. rsum moves by a standard deviation of 1.6, 1.0, 0.1 and 0.0. Plans that rest on energy are the unsteady ones.
# Keys of this tower are nearly parallel in many layers ({ref}`What the metric can tell apart <fig-vision-features>`), so all tokens have almost the
# same energy. That is a guess at the cause; the counts are not.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show how this is counted"}
def unsteady(key):
    """Share of pictures whose rank a draw of noise changes, and the standard deviation of rsum between draws."""
    drawn = record.outcome(key, "rank")[np.array(record.items["query"]) == recall.IMAGE]  # (pictures, heads, draws)
    return (drawn[..., 1:] != drawn[..., :1]).any(axis=1).mean(), recall.repeats(record, key).std(ddof=1)


shaken = {key: unsteady(key) for key in ("whole", rival, order, ours)}
assert max(shaken[rival]) < min(max(shaken[order]), max(shaken[ours])) and shaken[rival][1] < min(shaken[order][1], shaken[ours][1])
assert [percent(moved) for moved, _ in shaken.values()] == ["0 %", "1 %", "33 %", "13 %"]
assert [f"{spread:.1f}" for _, spread in shaken.values()] == ["0.0", "0.1", "1.6", "1.0"]

# %% [markdown]
# ## Does it hold with fewer tokens, and on other sets?
#
# PiToMe falls further behind with fewer tokens. This section and the next rest on `retrieval-1`: a picture was scored once there, and intervals are over
# identities alone, or over trainings, so that they are too narrow on photographs. No cell of it is compared with one of `retrieval-2`.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Drawings on twenty photographs, off the shelf, first version. Left: rsum minus the whole model's against the cost of one image and one text; bands for PiToMe and ToMe: 95 % intervals. Right: rsum minus that of ToMe with the same attention and metric over keep ratios, with 95 % intervals over identities; filled: the interval excludes zero. *Recorded.*", "name": "fig-retrieval-cost"}, "image": {"alt": "Left: falling curves against the share of multiply-accumulates; PiToMe lies below ToMe but at the mildest ratio, and lower resolution is level with the best merging methods. Right: PiToMe falls away from ToMe as fewer tokens are kept; PiToMe on hidden states and energy-sorted matching stay around zero."}}
wide, white = first_version["collection"], first_version["white"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2))
shown = ["pitome", "energy-sorted", "tome", "diffrate", "random-prune", "lower-resolution"]
plots.against_cost(axes[0], wide, partial(recall.per_query, wide, column="rank"), shown)
axes[0].set(xlim=(0.3, 1.03), ylabel="rsum minus the whole model's")
axes[0].legend(fontsize=7.5, loc="lower right")
keeps = sorted({cell["keep"] for cell in wide.cells.values() if cell.get("keep") and cell.get("towers") == "vision"}, reverse=True)
ladder = {}
for shift, arm in zip((-0.18, 0, 0.18), ("pitome", "energy-sorted", "pitome-hidden"), strict=True):
    colour, _, marker = plots.ARMS[arm]
    for x, keep in enumerate(keeps):
        key = f"{arm}@{keep:g}"
        ladder[arm, keep] = found = recall.difference(wide, key, wide.rival_of(key))
        axes[1].errorbar(x + shift, found.mean, [[found.mean - found.low], [found.high - found.mean]], fmt=marker, color=colour,
                         markerfacecolor=colour if found.side else "white", capsize=2, label=None if x else LABELS[arm])
axes[1].axhline(0, color="0.6", linewidth=1, zorder=0)
axes[1].set(xlabel="keep", ylabel="rsum minus ToMe's", xticks=range(len(keeps)), xticklabels=[f"{keep:g}" for keep in keeps])
axes[1].legend(fontsize=8, loc="lower left")
plt.show()
assert all(found.side < 1 for (arm, _), found in ladder.items() if arm == "pitome")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus that of ToMe with the same attention and metric, keep 0.9, off the shelf, on three more sets, first version, with 95 % intervals over identities. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-others"}, "image": {"alt": "Three forest plots. PiToMe lies left of zero in all three; its interval excludes zero on drawings on white. Its released forms, PiToMe on hidden states and energy-sorted matching lie around zero; DCT, DiffRate, EViT and random merging lie below on some."}}
more_sets = ("white", "noto", "stamps")
keys = list(dict.fromkeys(key for name in more_sets for key in summary.compared(first_version[name], 0.9)))
figure, axes = plt.subplots(1, 3, figsize=(10.5, 0.27 * len(keys) + 0.9), sharey=True)
others = {}
for ax, name in zip(axes, more_sets, strict=True):
    others[name] = plots.beside(ax, first_version[name], keys, partial(recall.difference, first_version[name]))
    ax.set(title=TITLES[name], xlabel="rsum minus ToMe's")
plt.show()
of_ours = {name: found[ours] for name, found in others.items()}
of_order = {name: found[order] for name, found in others.items()}
at_random = {name: recall.difference(first_version[name], ours, "random-prune@0.9") for name in more_sets}
on_white = of_ours["white"]
at_8 = [recall.per_query(wide, f"{arm}@0.8", "rank") for arm in ("pitome", "tome")]
deep = {"photographs": paired_difference(*at_8, record.clusters), "white": recall.difference(white, "pitome@0.8", "tome@0.8")}
assert on_white.side == deep["white"].side == deep["photographs"].side == -1
assert of_ours["noto"].side == of_ours["stamps"].side == 0
assert all(found.side == 0 for found in (*of_order.values(), *at_random.values()))
assert all(found[key].side == 0 for found in others.values() for key in ("pitome-released-deit@0.9", "pitome-released-mae@0.9"))
assert [f"{one.mean:.0f}" for one in (on_white, deep["white"], deep["photographs"])] == ["-20", "-52", "-36"]
assert [f"{of_ours[name].detectable:.0f}" for name in ("noto", "stamps")] == ["13", "23"]
bounds = [f"{end(one.detectable for one in found.values()):.0f}" for found in (of_order, at_random) for end in (min, max)]
assert bounds == ["3", "4", "12", "29"]

# %% [markdown]
# On white PiToMe is 20 points below ToMe, and 52 at keep 0.8; on the twenty photographs at keep 0.8 it is 36 below (photographs taken into account). On Noto Emoji and
# cut-out photographs no difference was found (13 and 23 would have been). **Order by energy**: none on any of the three sets (3 to 4 would have
# been). **Random pruning**: none to PiToMe (12 to 29).

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show these differences as numbers"}
numbers({f"PiToMe (paper) minus ToMe, {TITLES[name]}": one for name, one in of_ours.items()}
        | {f"the same, keep 0.8, {TITLES[name]}": one for name, one in (("white", deep["white"]), ("collection", deep["photographs"]))}
        | {f"energy-sorted BSM minus ToMe, {TITLES[name]}": one for name, one in of_order.items()}
        | {f"PiToMe (paper) minus random pruning, {TITLES[name]}": one for name, one in at_random.items()}, "rsum (`retrieval-1`)")

# %% [markdown]
# ## Do heads trained with merging close the gap?
#
# The abstract's figures are of models trained *with* merging. Here only the heads can be; the towers stay as they are. There are three trainings of each, and
# intervals over three are wide.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus ToMe's, heads of both trained with merging on, first version: 95 % t intervals over three trainings, on five test sets. Image tower; at the bottom both towers. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-retrained"}, "image": {"alt": "Five forest plots with wide intervals. PiToMe lies left of zero on all sets; its interval excludes zero on two photographs, and on white; energy-sorted matching scatters around zero."}}
def over_trainings(scored):
    """Differences of rsum with heads trained with merging on, over the seeds of the trainings."""
    def of_heads(key):
        ranks_ = scored.outcome(scored.having(key, "rank_retrained")[0], "rank_retrained")  # (queries, trainings)
        return [recall.contributions(column, scored.items["query"]) for column in ranks_.T]
    return lambda first, second: trainings_difference(of_heads(first), of_heads(second))


tuned = {name: [key for towers in RETRAINED for keep in (0.9, 0.8) for key in summary.compared(scored, keep, towers=towers)
                if scored.has(key, "rank_retrained")] for name, scored in first_version.items()}
keys = list(dict.fromkeys(key for found in tuned.values() for key in found))
figure, axes = plt.subplots(1, len(tuned), figsize=(12, 0.3 * len(keys) + 0.9), sharey=True)
trained = {}
for ax, (name, scored) in zip(axes, first_version.items(), strict=True):
    trained[name] = plots.beside(ax, scored, keys, over_trainings(scored))
    ax.set_title(TITLES[name].replace("photographs on white", "photographs"), fontsize=8)
    ax.set(xlabel="minus ToMe's")
    ax.locator_params(axis="x", nbins=4)
plt.show()


def gained(arm, keep):
    """What retrained heads add to every query's part of rsum, `(trainings, queries)`, on the twenty photographs."""
    parts = [wide.outcome(f"{arm}@{keep:g}", name).T for name in ("rank_retrained", "rank")]
    return np.subtract(*[[recall.contributions(column, wide.items["query"]) for column in part] for part in parts])


more = trainings_difference(gained("pitome", 0.8), gained("tome", 0.8))
below = [f"{TITLES[name]} at {key.partition('@')[2].replace('/', ', ')}" for name, found in trained.items() for key, one in found.items()
         if key.startswith("pitome@") and one and one.side == -1]
in_text, in_both = (recall.difference(wide, f"pitome@{tail}", f"tome@{tail}") for tail in ("0.8/text", "0.9/both"))
assert below and all(one is None or one.side < 1 for found in trained.values() for key, one in found.items() if key.startswith("pitome@"))
assert in_text.side < 1 and in_both.side < 1
assert below == ["drawings on white at 0.9", "drawings on white at 0.8", "drawings on white at 0.8, both", "drawings on 2 photographs at 0.9"]
assert (trained["collection"][ours].side, f"{trained['collection'][ours].detectable:.0f}") == (0, "19")
assert (more.side, f"{more.mean:.0f}", f"{more.detectable:.0f}") == (0, "19", "31")
assert (in_text.side, f"{in_text.detectable:.0f}", in_both.side, f"{in_both.mean:.0f}") == (0, "8", -1, "-14")

# %% [markdown]
# By single intervals PiToMe is below ToMe on white (keep 0.9 and 0.8; 0.8 in both towers) and on two photographs (0.9), and above it nowhere. On the twenty
# photographs at keep 0.9 no difference was found (19 would have been). At keep 0.8 training adds 19 points more to PiToMe than to ToMe there; that is no
# finding either (31 would have been). **Text tower**, off the shelf: a text costs a fiftieth of an image, and half of the texts have seven tokens or fewer,
# two of which never merge. At keep 0.8 no difference was found (8 would have been); in both towers at 0.9 PiToMe is 14 below by a single interval.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show these differences as numbers"}
numbers({f"retrained, PiToMe minus ToMe, {TITLES[name]}, {key.partition('@')[2].replace('/', ', ')}": one
         for name, found in trained.items() for key, one in found.items() if key.startswith("pitome@") and one}
        | {"what training adds, PiToMe minus ToMe, keep 0.8": more, "text tower, keep 0.8": in_text, "both towers, keep 0.9": in_both}, "rsum (`retrieval-1`)")

# %% [markdown]
# ## Does the record hold?
#
# Four cells are computed again where this page is built, for pictures on two photographs; their recalls have to lie in the 99 % range of one more
# draw of noise ([protocol](../book/protocol.md)).

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show how pictures and texts are encoded"}
many = 10 if quick else 48
heads = training.trained_heads()
model, _, tokenizer = dual_encoder.dual_encoder(heads[0])
views = list(pairs.views(test.things[:many], "photographs", "test"))
images = preprocess(views).to(next(model.parameters()).device)
right = torch.zeros(many, len(test.texts), dtype=torch.bool)
for picture, captions in enumerate(test.captions[:many]):
    right[picture, list(captions)] = True
with torch.no_grad():
    texts = torch.cat([dual_encoder.text_features(model.text, ids.to(images.device)).cpu()
                       for ids in tokenizer(list(test.texts)).split(64)])


@torch.no_grad()
def encoded(cell):
    """Features of the pictures, and the token of every patch (None: nothing merged)."""
    parts, tokens = [], []
    with applied(cell, model) as running:
        for batch in images.split(16):
            if cell.arm == "whole":
                parts.append(dual_encoder.image_features(running.visual.trunk, batch).cpu())
                continue
            with pc.record(running) as trace:
                parts.append(dual_encoder.image_features(running.visual.trunk, batch).cpu())
            tokens.append(trace.assignment.cpu().numpy())
    return torch.cat(parts), np.concatenate(tokens) if tokens else None

# %% tags=["hide-input", "nbval-check-output"]
similarity, ranks, tokens = {}, {}, {}
for key in ("whole", ours, order, rival):
    features, tokens[key] = encoded(Cell.of(two_photos.about(key)))
    similarity[key] = [head.images(features) @ head.texts(texts).T for head in heads]
    ranks[key] = np.stack([recall.ranks(one, right).numpy() for one in similarity[key]], axis=1)  # (pictures, heads)
    low, high = recall.live_range(two_photos, key, range(many))
    assert low <= recall.recalls(ranks[key]) <= high, f"{key}: {recall.recalls(ranks[key]):.1f} is not in {low:.1f} to {high:.1f}"
on_record = two_photos.outcome("whole", "rank")[:many, :, 0]
crossed = np.any([(ranks["whole"] <= k) != (on_record <= k) for k in recall.AT], axis=(0, 2))
assert crossed.sum() <= max(1, many // 100)
print("in the range of one more draw:", ", ".join(ranks))

# %% [markdown]
# ## What would a search user notice?
#
# A user sees all results on a screen. On the whole model 25 % of text queries have their picture in the first five. At keep 0.9 these lose it: 38 % with
# PiToMe, 13 % with energy-sorted matching, 16 % with ToMe, 33 % with random pruning, 75 % with random merging. Some of the others gain one. Whether pictures
# encoded with and without merging can stand in one index was not tested.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Pictures, the tokens that PiToMe and ToMe leave of them at keep 0.9, and the first five texts with the first pair of heads: right ones bold with a tick. The two live pictures whose right text falls furthest with PiToMe (by the ratio of ranks, first head), and the one whose text rises most: extremes, chosen by their outcome. Emoji: OpenMoji, CC BY-SA 4.0, as this figure ([credits](../book/credits.md)). *Live.*", "name": "fig-retrieval-gallery"}, "image": {"alt": "Three rows: a picture of an emoji on a photograph, token maps of PiToMe and ToMe, and three lists of five texts, for the whole model, PiToMe and ToMe."}}
def top(key, head=0, k=5):
    """The first k texts of every live picture, `(pictures, k)`."""
    return np.argsort(-similarity[key][head].numpy(), axis=1, kind="stable")[:, :k]


SHORT = {"whole": "whole model", ours: "PiToMe", rival: "ToMe"}
rank = {key: ranks[key][:, 0] for key in SHORT}
change = np.argsort(-np.log(rank[ours] / rank["whole"]), kind="stable")
figure = plt.figure(figsize=(9.5, 6.2))
spec = figure.add_gridspec(3, 6, width_ratios=[1, 1, 1, 1.2, 1.2, 1.2])
for y, item in enumerate([*change[:2], change[-1]]):
    axes = [figure.add_subplot(spec[y, x]) for x in range(6)]
    plots.picture(axes[0], views[item])
    axes[0].set_title(test.things[item].name[:18], fontsize=9)
    for ax, key in zip(axes[1:3], (ours, rival), strict=True):
        plots.token_map(ax, views[item], tokens[key][item].reshape(16, 16))
        ax.set_title(f"{SHORT[key]}, {len(np.unique(tokens[key][item]))} tokens", fontsize=9)
    for ax, key in zip(axes[3:], SHORT, strict=True):
        ax.set_axis_off()
        ax.set_title(f"{SHORT[key]}: rank {rank[key][item]}", fontsize=9)
        for line, text in enumerate(top(key)[item]):
            good, said = bool(right[item, text]), test.texts[text]
            said = said if len(said) < 21 else said[:19] + " ..."
            ax.text(0, 0.9 - 0.19 * line, f"{'✓' if good else ' '} {said}", fontsize=8, weight="bold" if good else "normal",
                    transform=ax.transAxes, clip_on=False)
with plots.photographs():
    plt.show()

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show these shares, and how many of five shown texts stay"}
is_text = np.array(record.items["query"]) == recall.TEXT
had = record.outcome("whole", "rank")[is_text][..., :1] <= 5  # (queries, heads, 1)
gone = {key: np.mean([(had & (record.outcome(one, "rank")[is_text] > 5)).mean() for one in record.seeds_of(key)]) / had.mean()
        for key in (ours, order, rival, "random-prune@0.9", "random-merge@0.9")}
same = {key: np.mean([len(set(a) & set(b)) for head in range(3) for a, b in zip(top("whole", head), top(key, head), strict=True)])
        for key in (ours, rival)}
assert [percent(had.mean()), *map(percent, gone.values())] == ["25 %", "38 %", "13 %", "16 %", "33 %", "75 %"]
display(Markdown(
    f"Text queries that lose their picture from the first five: {'; '.join(f'{label(key)} {percent(lost)}' for key, lost in gone.items())}. *Live*, on two "
    f"photographs: of the five texts shown to each of {many} pictures {same[ours]:.1f} are those of the whole model with PiToMe, and "
    f"{same[rival]:.1f} with ToMe."
))

# %% [markdown]
# ## What was tried, and what counts
#
# The recipe for the heads was chosen on dev, with one seed and without merging; every merging setting takes it over. All differences but the two primary ones are
# secondary, and [the ledger](../book/claims.md) corrects them for their number.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the recipes, and what was looked at before"}
header = ["recipe", "reads", "rate, text rate", "decay", "dropped", "epochs", "batch", "rsum on dev, best", "at the end"]
rows = []
late = next(line for line in log if line["heads"] == "explore-decay-2-installed")
tried = [line for line in log if line["heads"].startswith("explore-") and line is not late]
for line in sorted(tried, key=lambda one: -max(one["dev"])):
    r = line["recipe"]
    reads = "class token" if r["pool"] == "token" else "mean patch"
    rows.append([line["heads"].removeprefix("explore-"), reads, f"{r['rate']:g}, {r['text_rate']:g}", f"{r['decay']:g}", f"{r['drop']:g}",
                 r["epochs"], r["batch"], f"{max(line['dev']):.1f}", f"{line['dev'][-1]:.1f}"])
ridge = next(line["dev"] for line in log if line["heads"] == "ridge")
stored = ", ".join(f"{line['stored']:.0f}" for line in log if line["heads"] in ("head0.safetensors", "head1.safetensors", "head2.safetensors"))
display(Markdown(markdown(header, rows) + f"\n\nMean rsum over white, photographs and collection, of every fifth epoch. Kernel ridge: {ridge:.1f} "
                 f"on the same. Taken: *decay-2*; *decay-1* is level with it at its best epoch and lower at the end. Its three seeds have "
                 f"{stored}, so that the seed it was chosen with is the best of them. One more recipe was run after test had been scored, to see "
                 f"what the collection's photographs are worth in training: *decay-2* on installed photographs alone has "
                 f"{max(late['dev']):.1f}. Before test was scored, eight cells were looked at on dev (not recorded), to see that the code does what "
                 "it should; PiToMe was far below ToMe there too. No arm was added or dropped after that. The primary task was changed before, "
                 "from white to the twenty photographs, because a white ground is the easy case for any merging. The second version was written "
                 "after the first had been scored, and its primary quantities are a second look at the same pictures."))

# %% [markdown]
# | The paper claims | We saw | What could overturn this |
# |---|---|---|
# | CLIP on Flickr30k {cite}`young2014flickr30k`, retrained with merging at r = 0.925: the sum of text recalls (of 300) falls by 0.3 with PiToMe and by 4.5 with ToMe, that of image recalls by 4.6 and 5.0 (Table 2). BLIP {cite}`li2022blip` off the shelf falls by 3 at r = 0.95 (Table 1). | Off the shelf: no difference between PiToMe and ToMe found on twenty photographs at keep 0.9; PiToMe below ToMe on white, and on the photographs at 0.8. None found between presets and ToMe with the same attention. With retrained heads PiToMe is below ToMe on two photographs and on white, and above it nowhere. | CLIP on Flickr30k: **not run** ([the command](../book/how_to_run.md)). BLIP and ALBEF {cite}`li2021albef` stay outside: a cross-encoder reranks their results. An image tower whose keys are less parallel. Towers retrained with merging; more than three trainings. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} The six parts of rsum
# :label: ex-six-recalls
# rsum has six parts. In which of them does PiToMe at keep 0.9 lose most, relative to what the whole model has?
# ```
#
# ```{solution-start} ex-six-recalls
# :class: dropdown
# ```

# %%
whole_, merged_ = (recall.table(record, key) for key in ("whole", ours))
for kind in (recall.IMAGE, recall.TEXT):
    parts = [(k, whole_[f"{kind}_r{k}"], merged_[f"{kind}_r{k}"]) for k in recall.AT]
    print(f"{kind} queries:", ", ".join(f"R@{k} {a:.1f} to {b:.1f} ({signed_percent(b / a - 1)})" for k, a, b in parts))

# %% [markdown]
# In recall at 1 of image queries. Few queries have their answer first, so that this part is also the least certain.
#
# ```{solution-end}
# ```
#
# ```{exercise} Names and keywords
# :label: ex-names-keywords
# Are names easier to find than keywords? Compare text queries with and without a comma, on the whole model and with PiToMe (a
# stand-in: a row of one keyword has no comma, and four names have one).
# ```
#
# ```{solution-start} ex-names-keywords
# :class: dropdown
# ```

# %%
in_a_row = np.array(["," in text for text in record.items["says"]])[is_text]
for key in ("whole", ours):
    found = record.outcome(key, "rank")[is_text]
    print(f"{key}: median rank of keywords {np.median(found[in_a_row]):.0f}, of names {np.median(found[~in_a_row]):.0f}")

# %% [markdown]
# Hardly: the two medians are near one another, on the whole model and with PiToMe, where both are larger.
#
# ```{solution-end}
# ```
#
# ```{exercise} Search merged, rerank whole
# :label: ex-rerank
# A system could search with the merged model and rerank the first fifty with the whole one. How many of the whole model's text
# queries with a picture in the first ten would still have it in the fifty, with PiToMe and with ToMe?
# ```
#
# ```{solution-start} ex-rerank
# :class: dropdown
# ```

# %%
good = record.outcome("whole", "rank")[is_text] <= 10
for key in (ours, rival):
    print(f"{key}: {percent((record.outcome(key, 'rank')[is_text] <= 50)[good].mean())}")

# %% [markdown]
# With ToMe next to all. With PiToMe some are lost for good, because the second model sees the fifty alone.
#
# ```{solution-end}
# ```
