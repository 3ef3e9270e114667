# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Retrieval, off the shelf and retrained
#
# **What this chapter found.** Of all tasks of this book retrieval shows most clearly what PiToMe costs: as the paper writes
# it, it is below ToMe at equal tokens, on a white ground and with fewer tokens by more than a correction for the number of comparisons
# takes away ([the ledger](../book/claims.md)). The order by energy is not to blame, as matching in that order
# without protection cannot be told from ToMe. Nor can the released presets, beside ToMe with the same attention, or PiToMe
# on hidden states, beside ToMe on hidden states. No difference between PiToMe and random pruning was found on any set, and a
# smaller picture of the same cost does as well as merging.
#
# A picture looks for its text, a text for its picture, and whoever stands first in the list is found. There is no margin of a
# class to hide behind: a rank moves as soon as any rival comes closer. It is also where the abstract is boldest. CLIP, retrained
# with merging, is said to lose 0.3 on Flickr30k, and 4.5 with ToMe (Table 2; points of the sum of three text recalls, of 300).
# Neither CLIP nor Flickr30k can be had here. What can: a dual encoder that open_clip builds, loads and runs like any other, from
# real towers (the ViT-S/14 of the last chapters, all-MiniLM-L6-v2), with an MLP on each side that was trained here with CLIP's
# loss on 985 OpenMoji drawings with their names and keywords. Recall is far from CLIP's. The question is what merging does to it.
#
# *Reading time: 20 minutes. Figures marked* recorded *come from `make results`; cells marked* live *compute on a CPU. What was
# to be run was written down before ([protocol](../book/protocol.md)).*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments,open-clip,transformers] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import json
from collections import Counter
from functools import partial

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
from pitome_core.experiments.records.cells import Cell, seeds_of
from pitome_core.experiments.records.published import TABLE_2
from pitome_core.experiments.records.statistics import Difference, paired_difference, trainings_difference
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.retrieval import recall, training
from pitome_core.experiments.retrieval.grid import RETRAINED, TEXT_ARMS, applied
from pitome_core.experiments.runs import summary
from pitome_core.experiments.runs.grid import ARMS, LABELS
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"
TITLES = {
    "collection": "drawings on 20 photographs", "white": "drawings on white",
    "photographs": "drawings on 2 photographs", "noto": "Noto Emoji on white",
    "stamps": "cut-out photographs on white",
}
records = {name: results.load(f"retrieval-{name}") for name in TITLES}
# The same sets scored by a later version of the protocol, where they are on record: the latest is compared.
again = {name: f"retrieval-2-{name}" for name in TITLES}
newest = {name: results.load(again[name]) if (results.folder() / "embedded" / f"{again[name]}.json").exists() else record
          for name, record in records.items()}
main, white, primary = records["collection"], records["white"], newest["collection"]
ours, rival = "pitome@0.9", "tome@0.9"
in_words = partial(Difference.in_words, digits=1)
SHORT = {"whole": "whole model", ours: "PiToMe", rival: "ToMe"}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus that of ToMe with the same attention and metric, at keep 0.9 in all layers of the image tower, off the shelf, paired by query, with 95 % intervals. Blue lies above zero, vermilion below, grey contains it; the small ticks beside a grey interval are the sizes that would have been detected in four cases of five. *Not run*: ToMe has no such cell there. Scales differ. *Recorded.*", "name": "fig-retrieval-forest"}, "image": {"alt": "Two forest plots side by side, one row per method. PiToMe as the paper writes it lies below zero in both; its released forms, PiToMe on hidden states and energy-sorted matching lie around zero; DiffRate, DCT, EViT, top-k attention and random merging lie far below."}}
beside = {}
keys = list(dict.fromkeys(key for name in ("collection", "white") for key in summary.compared(newest[name], 0.9)))
figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.27 * len(keys) + 0.9), sharey=True)
for ax, name in zip(axes, ("collection", "white"), strict=True):
    beside[name] = plots.beside(ax, newest[name], keys, partial(recall.difference, newest[name]))
    ax.set(title=TITLES[name], xlabel="rsum minus ToMe's")
plt.show()

# %%
to_tome = recall.difference(primary, ours, rival)
to_whole = recall.difference(primary, ours, "whole")
on_white = recall.difference(newest["white"], ours, rival)

# %% tags=["hide-input"]
share = primary.about(ours)["share"]
display(Markdown(
    f"Two differences were named as primary, on the drawings on twenty photographs at keep 0.9 ({share:.0%} of the multiply-accumulates). "
    f"PiToMe against ToMe: {in_words(to_tome)}; against the whole model: {in_words(to_whole)}. On white, PiToMe against ToMe: {in_words(on_white)}. "
    f"*rsum* is a sum of six recalls, at most 600; the whole model has {recall.rsum(primary, 'whole')[0]:.0f} and "
    f"{recall.rsum(newest['white'], 'whole')[0]:.0f}."
))
assert to_tome.side < 1 and to_whole.side == on_white.side == -1

# %% [markdown]
# ## What looks for what
#
# Every drawing has two or three texts: a name, Unicode's name where that says something else, and its keywords in a row. A text
# that several drawings share is right for each of them. The drawings of the test split, and the photographs behind them, were
# never seen when the *heads* were trained; what the towers have seen is not known. The pictures come in several sets: the same drawings on white, on twenty photographs (*primary*) and
# on two; the same emoji by other artists (Noto Emoji); and cut-out photographs with captions, of a kind that the heads
# have seen nothing of.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Three drawings of the test split on white and on photographs, with their texts. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs: Stefan van der Walt (CC0), SpaceX (public domain); drawings resized and pasted on photographs; this figure is CC BY-SA 4.0. *Live.*", "name": "fig-retrieval-pairs"}, "image": {"alt": "Three emoji drawings, each once on a white ground and once on a photograph, with two or three texts above each pair."}}
test = pairs.pairs("test")
some = test.things[:3]
figure, axes = plt.subplots(2, 3, figsize=(8.5, 5.4))
for row, background in zip(axes, ("white", "photographs"), strict=True):
    for ax, image in zip(row, pairs.views(some, background, "test"), strict=True):
        plots.picture(ax, image)
for ax, captions in zip(axes[0], test.captions, strict=False):
    said = [test.texts[i] for i in captions]
    ax.set_title("\n".join(text if len(text) < 38 else text[:36] + " ..." for text in said), fontsize=8.5)
plt.show()

# %% [markdown]
# A query's outcome is the *rank* of its best right answer, and a tie counts against it. R@1, R@5 and R@10 say how many queries
# in a hundred have their answer among the first one, five or ten; *rsum* adds the three of both directions (at most 600). There
# are three pairs of heads, trained from three seeds, and rsum is their mean. Intervals resample *identities* (a drawing with its
# variants), with all queries of theirs; gallery and heads are taken as they are, and in the first version of the protocol
# photographs too. Where heads were trained with merging on, the interval is one of t over the three trainings.
#
# Is there anything to lose? The whole model against chance, and against a reference without any contrastive training: kernel
# ridge regression from image features to the sentence encoder's space.

# %% tags=["hide-input"]
def chance(record):
    """rsum of a random order: a query with m right answers of n finds one among the first k by luck."""
    sizes = {kind: record.items["query"].count(kind) for kind in (recall.IMAGE, recall.TEXT)}
    rights = {recall.IMAGE: [len(row) for row in test.captions], recall.TEXT: [len(row) for row in test.answers]}
    if sizes[recall.IMAGE] != len(test):  # stamps: a caption each
        rights = {kind: [1] for kind in rights}
    others = {recall.IMAGE: sizes[recall.TEXT], recall.TEXT: sizes[recall.IMAGE]}
    found = 0.0
    for kind, counts in rights.items():
        for k in recall.AT:
            missed = [np.prod([(others[kind] - m - i) / (others[kind] - i) for i in range(k)]) for m in counts]
            found += 100 * (1 - np.mean(missed))
    return found

# %% tags=["hide-input"]
log = (results.folder() / "embedded" / "retrieval-training.jsonl").read_text(encoding="utf-8").splitlines()
log = [json.loads(line) for line in log]
beaten, rows = {}, []
for name, record in records.items():
    found = recall.table(record, "whole")
    way = [" / ".join(f"{found[f'{kind}_r{k}']:.0f}" for k in recall.AT) for kind in (recall.IMAGE, recall.TEXT)]
    ridge = "not run"
    if "rank_ridge" in record.about("whole")["outcomes"]:
        beaten[name] = recall.difference(record, "whole", "whole", "rank", "rank_ridge")
        ridge = f"{recall.rsum(record, 'whole', 'rank_ridge')[0]:.0f}"
    rows.append([TITLES[name], len(record), *way, f"{recall.rsum(record, 'whole')[0]:.0f}", ridge, f"{chance(record):.0f}"])
header = ["test set, whole model", "queries", "text R@1 / 5 / 10", "image R@1 / 5 / 10", "rsum", "kernel ridge", "chance"]
dev = {kind: [max(line["dev"]) if isinstance(line["dev"], list) else line["dev"] for line in log if line["heads"].startswith(kind)]
       for kind in ("head", "ridge")}
assert all(found.side == 0 for found in beaten.values())
display(Markdown(
    markdown(header, rows) + f"\n\n(*Text R@k*: a picture looks for its text. *Image R@k*: a text looks for its picture.) This is a weak "
    f"encoder beside CLIP, and one with room to fall. The heads were meant to beat the ridge. On dev, where the recipe and the epoch of each "
    f"were chosen, they have {min(dev['head']):.0f} to {max(dev['head']):.0f} against {dev['ridge'][0]:.0f}; on test no difference was found "
    f"on any set, and one of {min(d.detectable for d in beaten.values()):.0f} to {max(d.detectable for d in beaten.values()):.0f} would have "
    f"been. Some of the lead on dev was selection."
))

# %% [markdown]
# ## The comparison
#
# Tokens merge in all twelve layers of the image tower, and nothing is trained again: heads that were trained without merging, *off
# the shelf* from here on. Random arms are means of five seeds. A method is compared with ToMe where everything else is equal:
# attention, what is compared (keys or hidden states), the place in the layer, the tokens, the training.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus the whole model's against the cost of one image and one text, off the shelf, merging in the image tower. Left: drawings on twenty photographs; right: on white, at keep 0.9 and 0.8 only. Bands for PiToMe and ToMe: 95 % intervals of the paired difference. *Recorded.*", "name": "fig-retrieval-cost"}, "image": {"alt": "Two panels of falling curves against the share of multiply-accumulates, one line per method. PiToMe lies below ToMe but at the mildest ratio. Lower resolution, left only, is level with the best merging methods at mild strength and above them below half of the cost."}}
shown = ["pitome", "pitome-released-mae", "energy-sorted", "tome", "crossget", "atc", "diffrate", "dct", "random-merge", "random-prune",
         "lower-resolution"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True)
for ax, record in zip(axes, (main, white), strict=True):
    plots.against_cost(ax, record, partial(recall.per_query, record, column="rank"), shown)
    ax.set(title=f"{TITLES[record.header['task']]} (whole model: {recall.rsum(record, 'whole')[0]:.0f})", xlim=(0.3, 1.03))
axes[0].set_ylabel("rsum minus the whole model's")
axes[0].legend(fontsize=7.5, loc="lower right")
plt.show()

# %% tags=["hide-input"]
def without(record, first, second, identity):
    """The difference without the queries of one identity."""
    here = np.array(record.items["identity"]) != identity
    kinds = np.array(record.items["query"])[here]
    parts = [recall.contributions(record.outcome(key, "rank")[here], kinds) for key in (first, second)]
    return paired_difference(*parts, np.array(record.items["identity"])[here])


(largest, often), *_ = Counter(main.items["identity"]).most_common()
by_head = [recall.contributions(main.outcome(ours, "rank")[:, h], main.items["query"]).mean()
           - recall.contributions(main.outcome(rival, "rank")[:, h], main.items["query"]).mean() for h in range(3)]
display(Markdown(
    f"How firm is the difference on twenty photographs? The interval resamples {len(set(main.items['identity']))} identities. One of them, "
    f"*{largest}*, has {often} of the {len(main)} queries; without it the difference is {without(main, ours, rival, largest).format(1)}. By pair "
    f"of heads it is {', '.join(f'{v:+.1f}' for v in by_head)}. All differences but the two named beforehand, well over a hundred, are secondary: "
    f"some would exclude zero by chance, and the ledger corrects them for their number."
))

# %% [markdown]
# ### Does the record hold?
#
# The record was made on a GPU. Three cells are computed again on this machine, for the first pictures of the test split, which
# look for their texts among all 784. The protocol allows one item in a hundred to differ. The whole model keeps to that; PiToMe
# does not, for the reason in the next section, and one picture in four may differ with merged tokens.

# %%
two_photos, many = records["photographs"], 10 if quick else 48
heads = training.trained_heads()
model, _, tokenizer = dual_encoder.dual_encoder(heads[0])
views = list(pairs.views(test.things[:many], "photographs", "test"))
images = preprocess(views).to(next(model.parameters()).device)
with torch.no_grad():
    texts = torch.cat([dual_encoder.text_features(model.text, ids.to(images.device)).cpu()
                       for ids in tokenizer(list(test.texts)).split(64)])

# %% tags=["hide-input"]
@torch.no_grad()
def encoded(cell, pictures):
    """Features of pictures, and the token of every patch (None: nothing merged)."""
    parts, tokens = [], []
    with applied(cell, model) as running:
        for batch in pictures.split(16):
            if cell.arm == "whole":
                parts.append(dual_encoder.image_features(running.visual.trunk, batch).cpu())
                continue
            with pc.record(running) as trace:
                parts.append(dual_encoder.image_features(running.visual.trunk, batch).cpu())
            tokens.append(trace.assignment.cpu().numpy())
    return torch.cat(parts), np.concatenate(tokens) if tokens else None

# %% tags=["hide-input"]
right = torch.zeros(many, len(test.texts), dtype=torch.bool)
for picture, captions in enumerate(test.captions[:many]):
    right[picture, list(captions)] = True


def compared(features):
    """Similarities to all texts, and ranks `(pictures, heads)`."""
    found = [head.images(features) @ head.texts(texts).T for head in heads]
    return found, np.stack([recall.ranks(one, right).numpy() for one in found], axis=1)

# %%
cells = {"whole": Cell("whole")}
cells |= {key: Cell.of(main.about(key)) for key in (ours, rival)}
live = {key: encoded(cell, images) for key, cell in cells.items()}
similarity, ranks = {}, {}
for key, (features, _) in live.items():
    similarity[key], ranks[key] = compared(features)
    moved = (two_photos.outcome(key, "rank")[:many] != ranks[key]).any(axis=1)
    print(f"{key}: {moved.sum()} of {many} pictures have another rank than in the record")
    assert moved.mean() <= (0.01 if key == "whole" else 0.25)

# %% tags=["nbval-check-output"]
print("agree with the record:", ", ".join(similarity))

# %% [markdown]
# ### How firm is a plan?
#
# A merge is a decision, and a decision between near-equals hangs on the last digit. Another processor rounds differently. To see
# what that does, add to the pictures a noise of a two-thousandth of a grey level, far below what a picture of 8 bits can hold, and
# count the pictures whose rank changes.

# %%
touched = {key: [] for key in cells}
recalls = {key: [] for key in cells}  # R@1 + R@5 + R@10 of the pictures
for seed in range(1 if quick else 3):
    generator = torch.Generator().manual_seed(seed)
    noise = 1e-5 * torch.randn(images.shape, generator=generator)  # a grey level is 0.018 here
    for key, cell in cells.items() if not seed else list(cells.items())[1:2]:
        shaken = compared(encoded(cell, images + noise.to(images.device))[0])[1]
        touched[key].append(int((shaken != ranks[key]).any(axis=1).sum()))
        recalls[key].append(sum(100 * (shaken <= k).mean() for k in recall.AT))

# %% tags=["hide-input"]
calm = {key: sum(100 * (found <= k).mean() for k in recall.AT) for key, found in ranks.items()}
display(Markdown(
    f"Pictures with another rank, of {many}: whole model {touched['whole'][0]}, ToMe {touched[rival][0]}, PiToMe "
    f"{', '.join(map(str, touched[ours]))} ({'one draw' if quick else 'three draws'} of noise). The sum of these pictures' three recalls is "
    f"{calm[ours]:.1f} with PiToMe undisturbed, {', '.join(f'{v:.1f}' for v in recalls[ours])} with noise ({calm[rival]:.1f} with ToMe): "
    f"a scatter that {'no interval on this page contains' if primary is main else 'the intervals of arms scored with noise contain'}. Keys of this tower are nearly parallel in the first layers "
    f"(chapter *Vision, off the shelf*); then all tokens have almost the same energy, and which of them are protected hangs on little. That "
    f"is a guess at the cause; the count is not. Two runs of one picture on two machines need not agree."
))
assert quick or touched[ours][0] > touched[rival][0]

# %% [markdown]
# ### Attention, energy, and controls
#
# The released presets switch proportional attention off. What does that change for everybody?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus that of ToMe, both without proportional attention, keep 0.9, with 95 % intervals: the arms that count sizes with the switch off, and the released presets, which have it off. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-off"}, "image": {"alt": "Two forest plots. On twenty photographs PiToMe, its presets and energy-sorted matching contain zero; on white PiToMe lies below zero and the presets contain it."}}
bare = {}
presets = [key for key in summary.compared(main, 0.9) if ARMS[main.about(key)["arm"]].settings["proportional"] == {False}]
keys = [*summary.compared(main, 0.9, proportional=False), *presets]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.27 * len(keys) + 0.9), sharey=True)
for ax, name in zip(axes, ("collection", "white"), strict=True):
    bare[name] = plots.beside(ax, records[name], keys, partial(recall.difference, records[name]))
    ax.set(title=TITLES[name], xlabel="rsum minus ToMe's")
plt.show()

# %% tags=["hide-input"]
small = max((c for c in main.cells.values() if c["arm"] == "lower-resolution" and c["share"] <= main.about(rival)["share"]),
            key=lambda c: c["share"])  # the largest that costs no more than ToMe
smaller = f"lower-resolution@{small['pixels']}px"
deeper = recall.difference(main, smaller, rival)
pruned = {n: recall.difference(r, ours, "random-prune@0.9") for n, r in newest.items()}
unweighted = {name: found[f"{ours}/off"] for name, found in bare.items()}
energy = {name: found["energy-sorted@0.9"] for name, found in beside.items()}
hidden = {name: found["pitome-hidden@0.9"] for name, found in beside.items()}
off_means = ", ".join(f"{SHORT[key]} {recall.difference(main, f'{key}/off', key).mean:+.1f}" for key in (ours, rival))
assert all(found.side == 0 for found in pruned.values())
display(Markdown(
    f"**Attention.** Without proportional attention PiToMe against ToMe is, on twenty photographs: {in_words(unweighted['collection'])}; on "
    f"white: {in_words(unweighted['white'])}. The switch by itself adds, on the photographs, {off_means}. So a preset that has it off "
    f"says something about its method only beside ToMe without it: there no difference was found, on either set (first figure).\n\n"
    f"**Energy as an order does no harm that was found, and no good.** Energy-sorted matching has the same energy, without protection and "
    f"with the best edges only. Against ToMe: {in_words(energy['collection'])} on the photographs; {in_words(energy['white'])} on white. It "
    f"differs from PiToMe in two switches, protection and edges; which of them matters was not run here.\n\n"
    f"**Hidden states in place of keys**, for both. PiToMe against ToMe: {in_words(hidden['collection'])} on the photographs; "
    f"{in_words(hidden['white'])} on white.\n\n"
    f"**No difference to random pruning was found**, which drops tokens without looking, on any of the five sets: PiToMe minus random pruning "
    f"is {min(d.mean for d in pruned.values()):+.1f} to {max(d.mean for d in pruned.values()):+.1f}, and {min(d.detectable for d in pruned.values()):.0f} to "
    f"{max(d.detectable for d in pruned.values()):.0f} would have been detected.\n\n"
    f"**A smaller picture does as well.** The same tower at {small['pixels']} pixels does {small['share']:.0%} of the work, ToMe at keep 0.9 "
    f"{main.about(rival)['share']:.0%}. Against ToMe: {in_words(deeper)}. The objects here are large; how small ones fare was not tested."
))

# %% tags=["hide-input"]
with_energy = [key for key in summary.compared(primary, 0.9) if Cell.of(primary.about(key)).shuffled]
dealt = {key: recall.difference(primary, key, primary.rival_of(key, "shuffled")) for key in with_energy
         if primary.rival_of(key, "shuffled")}
missing = ", ".join(primary.about(key)["label"] for key in with_energy if key not in dealt)
said = [f"{primary.about(key)['label']}: {in_words(found)}" for key, found in dealt.items()]
said += [f"**not run**: {missing}"] if missing else []
pair = ("pitome-released-clip@0.9", "tome-released-clip@0.9")
published = (in_words(recall.difference(primary, *pair)) if all(key in primary for key in pair) else "**not run**")
display(Markdown(
    f"Does it matter whose energy it is? An arm against itself with the energies dealt to other tokens: {'; '.join(said)}.\n\nThe published "
    f"comparison for CLIP is one of the repository's own two forms, of PiToMe and of ToMe (hidden states, behind the MLP, no proportional "
    f"attention, the class token counted in the split): {published}."
))

# %% [markdown]
# ### Every ratio

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus that of ToMe with the same attention and metric over keep ratios, drawings on twenty photographs, off the shelf, with 95 % intervals. Filled: the interval excludes zero. *Recorded.*", "name": "fig-retrieval-ratios"}, "image": {"alt": "Points with intervals against the keep ratio. PiToMe falls away from ToMe as fewer tokens are kept; PiToMe on hidden states and energy-sorted matching stay around zero."}}
keeps = sorted({cell["keep"] for cell in main.cells.values() if cell.get("keep") and cell.get("towers") == "vision"}, reverse=True)
figure, ax = plt.subplots(figsize=(7.5, 3.2))
ladder = {}
for shift, arm in zip((-0.18, 0, 0.18), ("pitome", "energy-sorted", "pitome-hidden"), strict=True):
    colour, _, marker = plots.ARMS[arm]
    for x, keep in enumerate(keeps):
        key = f"{arm}@{keep:g}"
        ladder[arm, keep] = found = recall.difference(main, key, main.rival_of(key))
        ax.errorbar(x + shift, found.mean, [[found.mean - found.low], [found.high - found.mean]], fmt=marker, color=colour,
                    markerfacecolor=colour if found.side else "white", capsize=2, label=None if x else LABELS[arm])
ax.axhline(0, color="0.6", linewidth=1, zorder=0)
ax.set(xlabel="keep", ylabel="rsum minus ToMe's", xticks=range(len(keeps)), xticklabels=[f"{keep:g}" for keep in keeps])
ax.legend(fontsize=8, loc="lower left")
plt.show()
assert all(found.side < 1 for (arm, _), found in ladder.items() if arm == "pitome")

# %% tags=["hide-cell"]
lines = ["| rsum at keep | " + " | ".join(f"{keep:g}" for keep in keeps) + " | 0.9, proportional attention off |",
         "|---" * (len(keeps) + 2) + "|"]
for arm in ARMS:
    cells_ = [f"{arm}@{keep:g}" for keep in keeps]
    off = f"{arm}@0.9/off"
    last = f"{recall.rsum(main, off)[0]:.0f}" if off in main.groups() else ""
    values = [f"{recall.rsum(main, key)[0]:.0f}" if key in main.groups() else "" for key in cells_]
    lines.append(f"| {LABELS[arm]} | {' | '.join(values)} | {last} |")
lines.append("| *cost (ToMe)* | " + " | ".join(f"{main.about(f'tome@{keep:g}')['share']:.0%}" for keep in keeps) + " | |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Where ranks go
#
# Recall counts who is near the top. A rank says more. Each text query has one on the whole model, and one when tokens have
# merged: if merging did nothing, all would lie on the diagonal.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Rank of a text query's picture when merged, against its rank on the whole model (both logarithmic, binned by the latter); line: median, bands: middle half and middle four fifths of queries, three heads each. Drawings on twenty photographs. Grey: no change. *Recorded.*", "name": "fig-retrieval-ribbons"}, "image": {"alt": "Four panels of ribbons around the diagonal, for PiToMe and ToMe at keep 0.9 and 0.8. PiToMe's ribbons lie higher and are wider, above all for queries that had a good rank."}}
is_text = np.array(main.items["query"]) == recall.TEXT
edges = np.array([1, 2, 4, 8, 16, 32, 64, 128, 343])
before = main.outcome("whole", "rank")[is_text].flatten()
place = np.digitize(before, edges) - 1
middle = [np.exp(np.log(before[place == b]).mean()) for b in range(len(edges) - 1)]
figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharey=True, sharex=True)
for ax, (arm, keep) in zip(axes, [(a, k) for k in (0.9, 0.8) for a in ("pitome", "tome")], strict=True):
    after = main.outcome(f"{arm}@{keep:g}", "rank")[is_text].flatten()
    levels = np.array([np.quantile(after[place == b], [0.1, 0.25, 0.5, 0.75, 0.9]) for b in range(len(edges) - 1)]).T
    colour = plots.ARMS[arm][0]
    for low, high, opacity in ((0, 4, 0.15), (1, 3, 0.3)):
        ax.fill_between(middle, levels[low], levels[high], color=colour, alpha=opacity, linewidth=0)
    ax.plot(middle, levels[2], color=colour)
    ax.plot([1, 342], [1, 342], color="0.5", linewidth=0.8)
    ax.set(xscale="log", yscale="log", title=f"{'PiToMe' if arm == 'pitome' else 'ToMe'}, keep {keep:g}", xlabel="rank, whole model")
axes[0].set_ylabel("rank, merged")
plt.show()

# %% [markdown]
# Ranks scatter both ways, and regress: who stood first can only stay or fall, who stood last can only stay or rise. So look at
# the good ranks, which a user sees.

# %% tags=["hide-input"]
def first_page(key, outcome="rank"):
    """Shares of text queries whose picture leaves the first five, and enters them, mean over the heads (and seeds)."""
    keys = main.seeds_of(key)
    was = main.outcome("whole", "rank")[is_text] <= 5
    gone = [(was & (main.outcome(k, outcome)[is_text] > 5)).mean() for k in keys]
    come = [(~was & (main.outcome(k, outcome)[is_text] <= 5)).mean() for k in keys]
    return np.mean(gone), np.mean(come), was.mean()


lost = {arm: first_page(f"{arm}@0.9") for arm in ("pitome", "energy-sorted", "tome", "random-prune", "random-merge")}
had = lost["pitome"][2]
display(Markdown(
    f"On the whole model {had:.1%} of text queries have their picture in the first five. At keep 0.9 these lose it: "
    + "; ".join(f"{LABELS[arm]} {gone / had:.0%}" for arm, (gone, _, _) in lost.items()) + ". Some of the others gain one."
))

# %% [markdown]
# ## What a search user would notice
#
# Recall only watches the right answer. A user sees all five results, right or wrong. How many of them stay?

# %%
def top(key, head=0, k=5):
    """The first k texts of every live picture, `(pictures, k)`."""
    return np.argsort(-similarity[key][head].numpy(), axis=1, kind="stable")[:, :k]

# %% tags=["hide-input"]
same = {}
for key in (ours, rival):
    shared, first = [], []
    for head in range(3):
        pair_ = list(zip(top("whole", head), top(key, head), strict=True))
        shared += [len(set(a) & set(b)) for a, b in pair_]
        first += [a[0] == b[0] for a, b in pair_]
    same[key] = np.mean(shared), np.mean(first)
display(Markdown(
    f"Of the five texts shown to each of {many} pictures, the same as with the whole model are {same[ours][0]:.1f} with PiToMe and "
    f"{same[rival][0]:.1f} with ToMe; the first text is the same for {same[ours][1]:.0%} and {same[rival][1]:.0%}. *Live*, drawings on two "
    "photographs, three heads. The index of texts is the same, as only pictures merge. Whether pictures encoded with and without merging can "
    "stand in one index was not tested."
))

# %% [markdown]
# Three pictures that look for their texts: of the live ones the two whose right text falls furthest with PiToMe (by the ratio of
# ranks, first head), and the one whose text rises most. These are extremes, chosen by their outcome: they show what can happen,
# not what is usual.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Pictures, the tokens that PiToMe and ToMe leave of them at keep 0.9, and the first five texts with the first pair of heads: right ones bold with a tick. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs: Stefan van der Walt (CC0), SpaceX (public domain); drawings resized and pasted on photographs; this figure is CC BY-SA 4.0. *Live.*", "name": "fig-retrieval-gallery"}, "image": {"alt": "Three rows: a picture of an emoji on a photograph, token maps of PiToMe and ToMe, and three lists of five texts, for the whole model, PiToMe and ToMe."}}
rank = {key: found[:, 0] for key, found in ranks.items()}
change = np.log(rank[ours] / rank["whole"])
order = np.argsort(-change, kind="stable")
chosen = [*order[:2], order[-1]]
figure = plt.figure(figsize=(9.5, 6.2))
spec = figure.add_gridspec(3, 6, width_ratios=[1, 1, 1, 1.2, 1.2, 1.2])
for y, item in enumerate(chosen):
    axes = [figure.add_subplot(spec[y, x]) for x in range(6)]
    plots.picture(axes[0], views[item])
    axes[0].set_title(test.things[item].name[:24], fontsize=9)
    for ax, key in zip(axes[1:3], (ours, rival), strict=True):
        plots.token_map(ax, views[item], live[key][1][item].reshape(16, 16))
        ax.set_title(f"{SHORT[key]}, {len(np.unique(live[key][1][item]))} tokens", fontsize=9)
    for ax, key in zip(axes[3:], similarity, strict=True):
        ax.set_axis_off()
        ax.set_title(f"{SHORT[key]}: rank {rank[key][item]}", fontsize=9)
        for line, text in enumerate(top(key)[item]):
            good, said = bool(right[item, text]), test.texts[text]
            said = said if len(said) < 21 else said[:19] + " ..."
            ax.text(0, 0.9 - 0.19 * line, f"{'✓' if good else ' '} {said}", fontsize=8, weight="bold" if good else "normal",
                    transform=ax.transAxes, clip_on=False)
plt.show()

# %% [markdown]
# And the other way round: two texts that look for a picture, among the live pictures only (so ranks are better than in the
# record).

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Two text queries and their first five pictures, for the whole model and for PiToMe at keep 0.9, first pair of heads; the right picture is framed; ranks are those among the live pictures. The queries are the names of the two pictures that fall furthest. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs: Stefan van der Walt (CC0), SpaceX (public domain); drawings resized and pasted on photographs; this figure is CC BY-SA 4.0. *Live.*", "name": "fig-retrieval-search"}, "image": {"alt": "Four rows of five pictures: the results of two text queries with the whole model and with PiToMe. The right picture is framed where it is among the five."}}
names = [test.texts.index(thing.name) for thing in test.things[:many]]
ranks_of = {key: recall.ranks(found[0].T[names], right.T[names]).numpy() for key, found in similarity.items()}
fall = np.argsort(-np.log(ranks_of[ours] / ranks_of["whole"]), kind="stable")[:2]
figure, axes = plt.subplots(4, 5, figsize=(8, 7))
for row, (item, key) in zip(axes, [(item, key) for item in fall for key in ("whole", ours)], strict=True):
    found = similarity[key][0][:, names[item]].argsort(descending=True, stable=True)[:5].tolist()
    for ax, picture in zip(row, found, strict=True):
        plots.picture(ax, views[picture])
        if names[item] in test.captions[picture]:
            ax.set_axis_on()
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(visible=True, color=plots.COLOURS["accent"], linewidth=4)
    row[0].set_title(f"\"{test.texts[names[item]]}\", {SHORT[key]}: rank {ranks_of[key][item]}", fontsize=9, loc="left")
plt.show()

# %% [markdown]
# ## Retrained
#
# The abstract's 0.3 against 4.5 is of models trained *with* merging. Here only the heads can be: trained in the same way, on
# features of the merged tower, and scored with the same merging. The towers stay as they are, so this is less than the paper's
# retraining. There are three trainings of each, and the interval is one over trainings: few, and therefore wide.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus ToMe's, heads of both trained with merging on: 95 % t intervals over three trainings, on five test sets. Image tower; at the bottom both towers. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-retrained"}, "image": {"alt": "Five forest plots with wide intervals. PiToMe lies left of zero on all sets; its interval excludes zero on two photographs, and on white; energy-sorted matching scatters around zero."}}
def over_trainings(record):
    """Differences of rsum with heads trained with merging on, over the seeds of the trainings."""
    def of_heads(key):
        ranks_ = record.outcome(record.having(key, "rank_retrained")[0], "rank_retrained")  # (queries, trainings)
        return [recall.contributions(column, record.items["query"]) for column in ranks_.T]
    return lambda first, second: trainings_difference(of_heads(first), of_heads(second))


tuned = {name: [key for towers_ in RETRAINED for keep in (0.9, 0.8) for key in summary.compared(record, keep, towers=towers_)
                if record.has(key, "rank_retrained")] for name, record in records.items()}
keys = list(dict.fromkeys(key for found in tuned.values() for key in found))
figure, axes = plt.subplots(1, len(records), figsize=(12, 0.3 * len(keys) + 0.9), sharey=True)
trained = {}
for ax, (name, record) in zip(axes, records.items(), strict=True):
    trained[name] = plots.beside(ax, record, keys, over_trainings(record))
    ax.set_title(TITLES[name].replace("photographs on white", "photographs"), fontsize=8)
    ax.set(xlabel="minus ToMe's")
    ax.locator_params(axis="x", nbins=4)
plt.show()

# %% tags=["hide-input"]
def gained(record, arm, keep):
    """What retrained heads add to every query's part of rsum, `(trainings, queries)`."""
    parts = [record.outcome(f"{arm}@{keep:g}", name).T for name in ("rank_retrained", "rank")]
    return np.subtract(*[[recall.contributions(column, record.items["query"]) for column in part] for part in parts])


more = {keep: trainings_difference(gained(main, "pitome", keep), gained(main, "tome", keep)) for keep in (0.9, 0.8)}
below = [f"{TITLES[name]} at {key.partition('@')[2].replace('/', ', ')}" for name, found in trained.items() for key, one in found.items()
         if key.startswith("pitome@") and one and one.side == -1]
seeds = [recall.rsum(main, f"random-prune@0.8/seed{seed}")[0] for seed in range(5)]
display(Markdown(
    f"Retrained, PiToMe against ToMe is, on the twenty photographs: {in_words(trained['collection'][ours])} at keep 0.9; "
    f"{in_words(trained['collection']['pitome@0.8'])} at 0.8. By single intervals it is below ToMe on {'; '.join(below) or 'no set'}, and above it "
    f"nowhere. Does training close the gap? What it adds to PiToMe minus what it adds to ToMe, on the twenty photographs at keep 0.9: "
    f"{more[0.9].format(1)} (detectable {more[0.9].detectable:.0f}), at 0.8: {more[0.8].format(1)} (detectable {more[0.8].detectable:.0f}).\n\nOne seed of random pruning, the only one with heads of its "
    f"own, is not like another: the five have an rsum of {', '.join(f'{v:.0f}' for v in seeds)} at 0.8, off the shelf."
))
assert all(one is None or one.side < 1 for found in trained.values() for key, one in found.items() if key.startswith("pitome@"))

# %% tags=["hide-cell"]
rows = []
for towers_, of_towers in RETRAINED.items():
    for arm, ratios in of_towers.items():
        for keep in ratios:
            key = Cell(arm, keep, seed=seeds_of(arm)[0], towers=towers_).key  # of an arm with seeds, heads were trained with one
            values = [recall.rsum(record, key, name)[0] for record in (main, white) for name in ("rank", "rank_retrained")]
            rows.append([LABELS[arm] + (" (one seed)" if ARMS[arm].seeds > 1 else ""), towers_, f"{keep:g}", *(f"{v:.0f}" for v in values)])
display(Markdown(markdown(["rsum", "towers", "keep", "photographs, off the shelf", "retrained", "white, off the shelf", "retrained"], rows)))

# %% [markdown]
# ## The text tower, and both
#
# Half of the texts have seven tokens or fewer, two of which never merge, so there is little to save: a text costs a fiftieth of
# an image. Merging its tokens is still a test of what merging does to meaning.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus ToMe's on twenty photographs, off the shelf, merging in the text tower alone (left) and in both towers (right), with 95 % intervals. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-towers"}, "image": {"alt": "Two forest plots. In the text tower PiToMe and energy-sorted matching contain zero, and ToFu and the random controls lie below at keep 0.6; in both towers PiToMe lies below zero."}}
figure, axes = plt.subplots(1, 2, figsize=(11.5, 0.27 * 2 * len(TEXT_ARMS) + 0.6))
elsewhere = {}
for ax, (towers_, title, ratios) in zip(axes, (("text", "text tower", (0.8, 0.6)), ("both", "both towers", (0.9, 0.8))), strict=True):
    keys = [key for keep in ratios for key in summary.compared(main, keep, towers=towers_)]
    elsewhere |= plots.beside(ax, main, keys, partial(recall.difference, main))
    ax.set(title=title, xlabel="rsum minus ToMe's")
plt.show()

# %% tags=["hide-input"]
in_text = [elsewhere[f"pitome@{keep}/text"] for keep in ("0.8", "0.6")]
in_both = [elsewhere[f"pitome@{keep}/both"] for keep in ("0.9", "0.8")]
shares = {tail: main.about(f"tome@{tail}")["share"] for tail in ("0.8/text", "0.9/both")}
display(Markdown(
    f"In the text tower alone ({shares['0.8/text']:.1%} of the cost at keep 0.8), PiToMe against ToMe: {in_words(in_text[0])} at 0.8, "
    f"{in_words(in_text[1])} at 0.6. In both towers the difference to ToMe is close to that of the image tower ({in_both[0].mean:+.1f} at 0.9, "
    f"{in_both[1].mean:+.1f} at 0.8)."
))
assert all(found.side < 1 for found in (*in_text, *in_both))

# %% [markdown]
# ## Other pictures
#
# Does the order of the methods hold where the heads have seen nothing alike?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "rsum minus that of ToMe with the same attention and metric, keep 0.9, off the shelf, on three more sets, with 95 % intervals. Marks as in the first figure. *Recorded.*", "name": "fig-retrieval-others"}, "image": {"alt": "Three forest plots. PiToMe lies left of zero in all three with intervals that contain it; MCTF, DCT and random merging lie below on some."}}
more_sets = [name for name in TITLES if name not in ("collection", "white")]
keys = list(dict.fromkeys(key for name in more_sets for key in summary.compared(newest[name], 0.9)))
figure, axes = plt.subplots(1, 3, figsize=(10.5, 0.27 * len(keys) + 0.9), sharey=True)
for ax, name in zip(axes, more_sets, strict=True):
    beside[name] = plots.beside(ax, newest[name], keys, partial(recall.difference, newest[name]))
    ax.set(title=TITLES[name], xlabel="rsum minus ToMe's")
plt.show()

# %% tags=["hide-input"]
of_ours = {name: found[ours] for name, found in beside.items()}
open_ = [found.detectable for found in of_ours.values() if found.side == 0]
display(Markdown(
    f"PiToMe minus ToMe is {', '.join(f'{found.mean:+.1f}' for found in of_ours.values())} on the five sets; where no difference was found, "
    f"one of {min(open_, default=0):.0f} to {max(open_, default=0):.0f} would have been. Other methods change places: MCTF is level with ToMe on "
    "photographs and below it on white grounds."
))
assert all(found.side < 1 for found in of_ours.values())

# %% [markdown]
# ## Beside the paper's own numbers
#
# For orientation only, quoted from Table 2 and not measured here: CLIP and BLIP, *retrained* with merging at r = 0.925. The
# abstract's 0.3 and 4.5 are the text recalls of CLIP on Flickr30k; the image recalls of the same row fall by 4.6 and 5.0. Merging
# saves a factor of 2.10 of the FLOPs of CLIP there; keep 0.9 here saves 1.76. Off the shelf the paper has BLIP (Table 1: rsum 580.76 whole,
# 577.81 with PiToMe at r = 0.95). BLIP and ALBEF stay outside this suite: their scores come from a cross-encoder that reranks,
# in code bases that no package here carries.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Quoted from Table 2 of the paper: R@1 + R@5 + R@10 minus the whole model's, retrained, r = 0.925; left for text retrieval, right for image retrieval. Hollow: not measured here. *Quoted.*", "name": "fig-retrieval-quoted"}, "image": {"alt": "Two panels of hollow markers for PiToMe, ToMe, ToFu, DCT and DiffRate with CLIP and BLIP on Flickr30k and COCO."}}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.8), sharey=True)
looks = {"PiToMe": "pitome", "ToMe": "tome", "ToFu": "tofu", "DCT": "dct", "DiffRate": "diffrate"}
for way, (ax, title) in enumerate(zip(axes, ("text retrieval", "image retrieval"), strict=True)):
    for y, scores in enumerate(TABLE_2.values()):
        for shift, (method, arm) in zip(np.linspace(-0.25, 0.25, len(looks)), looks.items(), strict=True):
            colour, _, marker = plots.ARMS[arm]
            ax.plot(scores[method][way] - scores["whole"][way], y + shift, marker, color=colour, markerfacecolor="none",
                    markersize=6, label=None if y else method)
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set(title=title, yticks=range(len(TABLE_2)), yticklabels=list(TABLE_2), ylim=(3.6, -0.6), xlabel="minus the whole model's")
axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %% [markdown]
# ## What was tried, and what counts
#
# The recipe for the heads was chosen on dev, with one seed and without merging; every merging setting takes it over.

# %% tags=["hide-cell"]
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
                 "from white to the twenty photographs, because a white ground is the easy case for any merging."))

# %% tags=["hide-input"]
saved = f"{1 - share:.0%}"
display(Markdown(
    f"> **Takeaway.** With {saved} of the multiply-accumulates gone, this dual encoder loses "
    f"{-recall.difference(primary, rival, 'whole').mean:.0f} of {recall.rsum(primary, 'whole')[0]:.0f} points of rsum with ToMe and "
    f"{-to_whole.mean:.0f} with PiToMe off the shelf, on drawings on photographs. PiToMe against ToMe: {in_words(to_tome)}; on white: "
    f"{in_words(on_white)}. Matching in the order of the energy, without protection, costs nothing that was found "
    f"({in_words(energy['collection'])}), the released presets cannot be told from ToMe with the same attention, and PiToMe not from random "
    f"pruning. A picture of {small['pixels']} pixels costs about as much as merging and does as well. No time was measured."
))
assert all(beside[name][key].side == 0 for name in beside for key in presets if beside[name].get(key)) and deeper.side >= 0

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | CLIP on Flickr30k, retrained with merging at r = 0.925: the sum of text recalls falls by 0.3 with PiToMe and by 4.5 with ToMe, that of image recalls by 4.6 and 5.0 (Table 2); BLIP off the shelf falls by 3 at r = 0.95 (Table 1). |
# | We saw | On a dual encoder with a DINOv2-style image tower: PiToMe below ToMe off the shelf, beyond a correction for the number of comparisons on white at keep 0.9 and on both at 0.8; with retrained heads below it on two photographs, and above it nowhere. |
# | What could overturn this | CLIP on Flickr30k: **not run**; the command is in [How to run it](../book/how_to_run.md). An image tower whose keys are not as parallel as this one's ([Vision](08_vision.ipynb)). Towers retrained with merging; more than three trainings. |
#
# ## Exercises
#
# **1.** rsum has six parts. In which of them does PiToMe at keep 0.9 lose most, relative to what the whole model has?

# %% tags=["hide-cell"]
whole_, merged = (recall.table(main, key) for key in ("whole", ours))
for kind in (recall.IMAGE, recall.TEXT):
    pairs_ = [(k, whole_[f"{kind}_r{k}"], merged[f"{kind}_r{k}"]) for k in recall.AT]
    print(f"{kind} queries:", ", ".join(f"R@{k} {a:.1f} to {b:.1f} ({b / a - 1:+.0%})" for k, a, b in pairs_))

# %% [markdown]
# **2.** Are names easier to find than keywords? Compare text queries with and without a comma, on the whole model and with PiToMe
# (a stand-in: a row of one keyword has no comma, and four names have one).

# %% tags=["hide-cell"]
rows_ = np.array(["," in text for text in main.items["says"]])[is_text]
for key in ("whole", ours):
    found = main.outcome(key, "rank")[is_text]
    print(key, f"median rank of keywords {np.median(found[rows_]):.0f}, of names {np.median(found[~rows_]):.0f}")

# %% [markdown]
# **3.** A system could search with the merged model and rerank the first fifty with the whole one. How many of the whole model's
# text queries with a picture in the first ten would still have it in the fifty, with PiToMe and with ToMe at keep 0.8?

# %% tags=["hide-cell"]
good = main.outcome("whole", "rank")[is_text] <= 10
for key in ("pitome@0.8", "tome@0.8"):
    print(key, f"{(main.outcome(key, 'rank')[is_text] <= 50)[good].mean():.0%}")
