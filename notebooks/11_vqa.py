# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Questions about pictures
#
# A language model that sees is a reader of tokens: a vision tower turns the picture into a few hundred of them, and the language
# model, which is by far the larger part, reads them before the question. Merge tokens in the tower, and the language model has less
# to read. The paper does so with LLaVA-1.5 of 7 and 13 billion parameters on six benchmarks, off the shelf (Tables 3 and 4).
#
# Neither fits here. What fits is a real LLaVA, small enough to run anywhere: transformers' own class, the ViT-S/14 of the last
# chapters as its tower, SmolLM2 with 135 million parameters as its language model. The projector between them and low-rank updates
# of the language model were trained here, on generated questions about pictures whose every detail is known. The tower takes 15 %
# of the work, reading the picture nearly all the rest.
#
# Two questions: what can the language model still tell when the tower has merged, and does it matter *in which order and at which
# position* it reads what is left?
#
# *Reading time: 25 minutes. Figures marked* recorded *come from `make results`; cells marked* live *compute on a CPU. What was
# to be run was written down before ([protocol](../book/protocol.md)).*

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments,transformers] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import time
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

import pitome_core as pc
from pitome_core.experiments import llava, plots, questions, results
from pitome_core.experiments import vqa_answers as answering
from pitome_core.experiments import vqa_grid as grid
from pitome_core.experiments import vqa_tasks as tasks
from pitome_core.experiments import vqa_training as training
from pitome_core.experiments.published import TABLE_3
from pitome_core.experiments.settings import profile
from pitome_core.experiments.statistics import bootstrap_mean
from pitome_core.experiments.vqa_grid import LABELS, VqaCell

plots.use_style()
quick = profile() == "smoke"
main, full = results.load("vqa-headline"), results.load("vqa-grid")
ours, rival = "pitome@0.9", "tome@0.9"
random_merge = "random-merge@0.9/seed0"

# %% [markdown]
# ## What is asked
#
# A scene has one to four OpenMoji drawings of 64 classes, on a plain colour, a texture or a photograph, and three questions. Nine
# types of question come equally often. The answer must be right to the letter. What can be guessed is stated beside every figure:
# the *blind prior* is the accuracy of whoever gives the most frequent answer to the same words without looking. Photographs and
# layouts of the test stream are not those of training, and a tenth of the pairs of classes never came together there.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The first three scenes of the test stream with four drawings, with their questions and answers. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs, where there are any: Stefan van der Walt (CC0), SpaceX (public domain); this figure is CC BY-SA 4.0. *Live.*", "name": "fig-vqa-scenes"}, "image": {"alt": "Three pictures with four emoji each on different backgrounds; below each, three questions with their answers."}}
some = [scene for number in range(40) if len((scene := questions.scene("test", number)).placed) == 4][:3]
figure, axes = plt.subplots(1, 3, figsize=(10, 4.3))
for ax, scene in zip(axes, some, strict=True):
    plots.picture(ax, questions.picture(scene))
    said = "\n".join(f"{q.text} {q.answer}" for q in scene.questions)
    ax.text(0.5, -0.04, said, transform=ax.transAxes, ha="center", va="top", fontsize=8.5)
plt.show()

# %% tags=["hide-input"]
sheet = training.sheet()
whole_types, prior = tasks.by_type(main, "whole"), main.header["prior"]
types = np.array(main.items["type"])
lines = ["| type | questions | whole model | blind prior | on validation |", "|---" * 5 + "|"]
for kind in questions.TYPES:
    here, on_dev = types == kind, sheet["validation"][kind]
    mean, low, high = bootstrap_mean(main.outcome("whole", "correct")[here], np.array(main.items["scene"])[here])
    lines.append(f"| {kind} | {here.sum()} | {mean:.3f} [{low:.3f}, {high:.3f}] | {prior[kind]:.3f} | "
                 f"{on_dev['accuracy']:.3f} [{on_dev['low']:.3f}, {on_dev['high']:.3f}] |")
overall = tasks.accuracy(main, "whole")
place = np.array(main.items["scene"])
layouts = [questions.scene("test", number) for number in range(max(place) + 1)]
apart = np.array([layout.held_out for layout in layouts])[place]
four = np.array([len(layout.placed) == 4 for layout in layouts])[place]
unseen, seen = (main.outcome("whole", "correct")[mask & four].mean() for mask in (apart, ~apart))
display(Markdown(
    "\n".join(lines) + f"\n\nAll nine types beat their prior on validation, where that was decided, so all are in the headline: "
    f"*micro* {overall['micro']:.3f}, *macro* {overall['macro']:.3f}. The hope was 0.85; it is missed, and the mix of types was not "
    f"touched to reach it. Hard are lists, positions and counts. In scenes of four drawings the model gets {unseen:.3f} of the questions where two classes meet that "
    f"never met in training, and {seen:.3f} of the others."
))
assert sheet["headline"] == list(questions.TYPES) == main.header["headline"]

# %% [markdown]
# ## The comparison
#
# Tokens merge in all twelve layers of the tower; the language model reads what is left, each token at the place of the middle of
# its patches (the next but one section asks why). Nothing is trained again. At keep 0.9 it reads 45 tokens instead of 144.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy on the first 2,000 test questions minus the whole model's. Left: against the tokens that enter the language model; right: against the multiply-accumulates of tower and prefill. Bands for PiToMe and ToMe: 95 % bootstrap intervals of the paired difference, scenes resampled. *Recorded.*", "name": "fig-vqa-cost"}, "image": {"alt": "Two panels of falling curves. PiToMe, energy-sorted, ToMe and ToFu lie together; random merging lies far below; lower resolution starts above them and falls below at the fewest tokens."}}
shown = ["pitome", "pitome-released-llava", "energy-sorted", "tome", "tofu", "random-merge", "random-prune", "lower-resolution"]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
plots.against_cost(axes[0], full, "correct", shown, cost="image_tokens")
axes[0].set(xlabel="image tokens into the language model", xlim=(15, 150), ylabel="accuracy minus the whole model's")
plots.against_cost(axes[1], full, "correct", shown)
axes[0].legend(fontsize=7.5, loc="lower right")
plt.show()

# %% [markdown]
# Two differences were named as primary: PiToMe minus ToMe, and PiToMe minus the whole model, at keep 0.9 on all 10,000 questions.

# %%
to_tome = tasks.difference(main, ours, rival)
to_whole = tasks.difference(main, ours, "whole")

# %% tags=["hide-input"]
share = main.cells[ours]["share"]
lines = [f"| keep 0.9, {share:.0%} of the multiply-accumulates, {main.cells[ours]['image_tokens']} tokens | accuracy | could have been "
         "detected | only the first right, only the second | McNemar's p |", "|---" * 5 + "|"]
for label, other, found in (("ToMe", rival, to_tome), ("the whole model", "whole", to_whole),
                            ("random merging", random_merge, tasks.difference(main, ours, random_merge))):
    first, second, p = tasks.only_one_right(main, ours, other)
    lines.append(f"| PiToMe minus {label} | {found} | {found.detectable:.3f} | {first}, {second} | {'< 0.001' if p < 0.001 else f'{p:.2g}'} |")
lost, lost_tome = -to_whole.mean, -tasks.difference(main, rival, "whole").mean
display(Markdown("\n".join(lines)))

# %% tags=["hide-input"]
def verdict(found):
    """A difference in words, by its interval."""
    word = {1: "above", -1: "below", 0: "no difference found"}[found.side]
    return f"{word} ({found}" + (f"; detectable {found.detectable:.3f})" if not found.side else ")")


ladder = "; ".join(f"keep {keep:g}: {verdict(tasks.difference(full, f'pitome@{keep:g}', f'tome@{keep:g}'))}" for keep in grid.KEEPS)
pruned = {keep: verdict(tasks.difference(full, f"pitome@{keep:g}", f"random-prune@{keep:g}")) for keep in grid.KEEPS}
display(Markdown(
    f"PiToMe against ToMe on all questions: {verdict(to_tome)}. On the first 2,000: {ladder}. Both lose much: "
    f"{100 * lost:.1f} and {100 * lost_tome:.1f} answers in a hundred, for {1 - share:.0%} less work.\n\n"
    f"*Random pruning*, which drops tokens without looking, is no weak rival with mild budgets. PiToMe against it, keep 0.95: "
    f"{pruned[0.95]}; 0.9: {pruned[0.9]}; 0.85: {pruned[0.85]}. Training had left out up to 40 % of the tokens at random, so that the "
    f"language model is used to tokens that are missing and not to tokens that are means."
))

# %% [markdown]
# These two differences were named beforehand. All others on this page are secondary and not corrected for their number: some would
# exclude zero by chance. There is one training: intervals resample scenes, and say nothing about another.
#
# ### Does the record hold?
#
# The record was made on a GPU, but for one cell. Three cells are computed again here, on the first scenes; of the whole model's
# answers at most one in a hundred, or one, may differ. With merged tokens two, or one in ten, may: a plan hangs on the last digit
# ([chapter 10](10_retrieval.ipynb)).

# %%
model = llava.llava()
scenes = 3 if quick else 16
asked = list(questions.Questions("test", questions.PER_SCENE * scenes))
pixels = llava.draw([("test", number) for number in range(scenes)], model.device)
checked = (VqaCell("whole"), VqaCell("pitome", 0.9), VqaCell("tome", 0.9))
for cell in checked:
    with cell.applied(model) as running:
        given = llava.ask(running, pixels, [q.text for q in asked], [q.scene for q in asked])
    off = sum(a != b for a, b in zip(given, tasks.said(full, cell.key), strict=False))
    allowed = max(1, len(asked) // 100) if cell.arm == "whole" else max(2, len(asked) // 10)
    assert off <= allowed, f"{cell.key}: {off} of {len(asked)} answers are others than recorded"

# %% tags=["nbval-check-output"]
print("agree with the record:", ", ".join(cell.key for cell in checked))

# %% [markdown]
# ### What is lost?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy by type at keep 0.9 minus the whole model's, all 10,000 questions, with 95 % bootstrap intervals, scenes resampled. *Recorded.*", "name": "fig-vqa-types"}, "image": {"alt": "Nine rows of three intervals each, for PiToMe, ToMe and random merging. Lists and totals lose most; existence, relation and single objects least. PiToMe lies right of ToMe for totals and left of it for most others."}}
figure, ax = plt.subplots(figsize=(7.5, 4.6))
for shift, key in zip((-0.22, 0, 0.22), (ours, rival, random_merge), strict=True):
    colour, _, marker = plots.ARMS[key.split("@")[0]]
    for y, kind in enumerate(questions.TYPES):
        found = tasks.difference(main, key, "whole", [kind])
        ax.plot([found.low, found.high], [y + shift] * 2, color=colour, linewidth=1.6)
        ax.plot(found.mean, y + shift, marker, color=colour, markersize=5, label=None if y else LABELS[key.split("@")[0]])
ax.axvline(0, color="0.5", linewidth=1)
ax.set(yticks=range(len(questions.TYPES)), yticklabels=questions.TYPES, ylim=(8.6, -0.6), xlabel="accuracy minus the whole model's")
ax.legend(fontsize=8.5, loc="lower left")
plt.show()

# %% tags=["hide-input"]
def miscounted(record, key):
    """Mean of answer minus truth over the questions of type total that were answered with a number."""
    given = tasks.said(record, key)
    truth = [q.answer for q in questions.Questions("test", len(record))]
    pairs_ = [(int(a), int(b)) for a, b, kind in zip(given, truth, record.items["type"], strict=True) if kind == "total" and a.isdigit()]
    return np.mean([a - b for a, b in pairs_])


by = {kind: tasks.difference(main, ours, rival, [kind]) for kind in questions.TYPES}
better, worse, level = (", ".join(f"{kind} {found}" if side else kind for kind, found in by.items() if found.side == side)
                        for side in (1, -1, 0))
rest = tasks.difference(main, ours, rival, [kind for kind in questions.TYPES if kind != "total"])
counts = {LABELS[k.split("@")[0]]: miscounted(r, k)
          for k, r in (("whole", main), (ours, main), (rival, main), ("random-prune@0.9/seed0", full))}
counts = ", ".join(f"{name} {value:+.2f}" for name, value in counts.items())
display(Markdown(
    f"Below the level overall lie two things. PiToMe is above ToMe in {better or 'no type'}; below it in {worse or 'none'}; no difference was "
    f"found in {level}. Without *total*, PiToMe minus ToMe is {rest}: looked at because the figure suggested it, so a hint and no test. In "
    f"*total*, the number of objects, the errors have a direction. Answer minus truth on average: {counts}. Merged tokens are counted as "
    f"*more* objects than there are. Why was not tested; the shorter prefix itself may have a part in it, though random pruning, which leaves as "
    f"few tokens, errs the other way."
))
assert by["total"].side == 1 and rest.side == -1 and miscounted(main, ours) > 0.3

# %% [markdown]
# ## Three cards
#
# The rule: among the scenes on photographs, in the order of the record, the first question about three or more drawings that the
# whole model, PiToMe and ToMe all get right; the first that PiToMe gets right and ToMe wrong; and the first failure, right on the
# whole model and wrong with PiToMe; each of another scene.

# %%
every = list(questions.Questions("test", len(main)))
good = {key: main.outcome(key, "correct") == 1 for key in ("whole", ours, rival)}
fits = np.array([bool(s.photograph) and len(s.placed) > 2
                 for s in (layouts[q.scene] for q in every)])
rules = {"all right": good["whole"] & good[ours] & good[rival],
         "ToMe wrong": good["whole"] & good[ours] & ~good[rival],
         "a failure": good["whole"] & ~good[ours]}
cards = {}
for title, rule in rules.items():
    fresh = ~np.isin(place, place[list(cards.values())])
    cards[title] = int(np.flatnonzero(rule & fits & fresh)[0])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Three questions, chosen by the rule above: the picture, and the 45 tokens that PiToMe and ToMe leave at keep 0.9. Answers as recorded, token maps live. Emoji: OpenMoji 17, CC BY-SA 4.0; photographs: Stefan van der Walt (CC0), SpaceX (public domain); this figure is CC BY-SA 4.0.", "name": "fig-vqa-cards"}, "image": {"alt": "Three rows: a picture with several emoji on a photograph, and token maps of PiToMe and ToMe; above each row the question with the answers of the three models."}}
@torch.no_grad()
def tokens_of(cell, image):
    """`(12, 12)`: the token of every patch."""
    with cell.applied(model) as running, pc.record(running.model.vision_tower) as trace:
        answering.image_tokens(running, llava.normalised(image.to(model.device)))
    return trace.assignment[0].cpu().numpy().reshape(12, 12)


figure, axes = plt.subplots(3, 3, figsize=(8, 9.4))
for row, (title, item) in zip(axes, cards.items(), strict=True):
    question = every[item]
    view = questions.picture(questions.scene("test", question.scene))
    plots.picture(row[0], view)
    image = torch.from_numpy(view).permute(2, 0, 1)[None]
    for ax, cell in zip(row[1:], checked[1:], strict=True):
        plots.token_map(ax, view, tokens_of(cell, image))
        ax.set_title(f"{LABELS[cell.arm]}: {tasks.said(main, cell.key)[item]}", fontsize=9)
    row[0].set_title(f"{title}: {question.text}\nwhole model: {tasks.said(main, 'whole')[item]}", fontsize=9, loc="left")
plt.show()

# %% [markdown]
# ## In which order?
#
# Merged tokens come out of a tower in *some* order, and a language model reads them one after the other, each with a position.
# The released code leaves them as its matching does: those of the one side first, then those of the other, layer after layer, so that
# neighbours end up far apart, numbered from first to last. The paper says nothing about it. Three ways to read the same tokens:
#
# - *raster-centroid*, our default for every method: in raster order of the tokens' places, each with the position of the patch
#   that is nearest to the middle of its patches, and the text behind the full grid;
# - *raster-compact*: the same order, positions without gaps;
# - *released*: the order of the released code, positions without gaps.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Accuracy on 2,000 test questions at keep 0.9 by the order and the positions in which the same tokens are read, with 95 % bootstrap intervals, scenes resampled. *Recorded.*", "name": "fig-vqa-order"}, "image": {"alt": "Three groups of three intervals. For every method raster-centroid is highest, raster-compact lower, released lowest; the methods lie close together within each order."}}
figure, ax = plt.subplots(figsize=(7, 3.4))
orders = answering.ORDERS
for shift, arm in zip((-0.2, 0, 0.2), grid.ORDERED, strict=True):
    colour, _, marker = plots.ARMS[arm]
    for x, order in enumerate(orders):
        key = f"{arm}@0.9" + ("" if order == orders[0] else f"/{order}")
        mean, low, high = full.estimate(key, "correct")
        ax.errorbar(x + shift, mean, [[mean - low], [high - mean]], fmt=marker, color=colour, capsize=3,
                    markerfacecolor="none" if arm == "pitome-released-llava" else colour, label=None if x else LABELS[arm])
ax.set(xticks=range(3), xticklabels=orders, ylabel="accuracy")
ax.legend(fontsize=8.5)
plt.show()

# %% tags=["hide-input"]
lines = ["| 2,000 questions, keep 0.9 | raster-compact minus raster-centroid | released minus raster-compact | released minus raster-centroid |",
         "|---" * 4 + "|"]
for arm in grid.ORDERED:
    base, compact, released = f"{arm}@0.9", f"{arm}@0.9/raster-compact", f"{arm}@0.9/released"
    lines.append(f"| {LABELS[arm]} | {tasks.difference(full, compact, base)} | {tasks.difference(full, released, compact)} | "
                 f"{tasks.difference(full, released, base)} |")
kinds = ("position", "relation", "list", "total", "exist", "single")
lines += ["", "| PiToMe, accuracy by type | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
for order in orders:
    found = tasks.by_type(full, ours + ("" if order == orders[0] else f"/{order}"))
    lines.append(f"| {order} | " + " | ".join(f"{found[kind]:.2f}" for kind in kinds) + " |")
lines.append("| *blind prior* | " + " | ".join(f"{full.header['prior'][kind]:.2f}" for kind in kinds) + " |")
worth = [-tasks.difference(full, f"{arm}@0.9/released", f"{arm}@0.9").mean for arm in ("pitome", "tome")]
display(Markdown(
    "\n".join(lines) + f"\n\n**Order and positions are worth more than the method**: {100 * worth[0]:.0f} and {100 * worth[1]:.0f} answers in "
    f"a hundred, where between PiToMe and ToMe, read alike, no difference was found. Without positions on the grid *position* falls to "
    f"its prior; without the raster order *relation* does too."
))
assert all(tasks.difference(full, f"{arm}@0.9/released", f"{arm}@0.9").side == -1 for arm in grid.ORDERED)

# %% [markdown]
# Fair warning: this language model was trained with every token at its place on the grid, some left out. Positions without gaps are
# new to it in a way that they might not be to a LLaVA-1.5, which was trained on full grids and off the shelf meets gaps or new
# numbers for the first time either way. What the finding says is to look: whoever hands merged tokens to a language model chooses
# an order and positions, and can choose well at no cost.
#
# ## Where the time goes

# %%
def timed(call):
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


@torch.no_grad()
def stages(running, batch, words):
    """Seconds of the tower, of reading pictures and questions, and of three more tokens each."""
    rows = [row[1] for row in answering.encode(llava.tokenizer(), words, llava.IMAGE_TOKEN)]
    images, tower = timed(lambda: answering.image_tokens(running, llava.normalised(batch)))
    of = list(range(len(rows)))

    def answer(count):
        prefix = answering.read_prefix(running, training.before(), images)
        return answering.generate(running, prefix, of, rows, count)

    first, four = timed(lambda: answer(1))[1], timed(lambda: answer(4))[1]
    return tower, first, max(four - first, 0)


# %% tags=["hide-input"]
figures = {}
for size, rounds in ((1, 2 if quick else 7), (2 if quick else 8, 1 if quick else 3)):
    batch = pixels[:size].to(model.device)
    words = [llava.prompt(asked[3 * i].text) for i in range(size)]
    found = {cell.key: [] for cell in checked[:2]}
    for _ in range(rounds):  # taking turns
        for cell in checked[:2]:
            with cell.applied(model) as running:
                found[cell.key].append(stages(running, batch, words))
    figures[size] = {key: np.median(rows, axis=0) for key, rows in found.items()}
lines = ["| pictures at a time | | tower | reading | three more tokens | together | speed-up |", "|---" * 7 + "|"]
for size, rows in figures.items():
    for key, parts in rows.items():
        gain = rows["whole"].sum() / parts.sum()
        lines.append(f"| {size} | {LABELS[key.split('@')[0]]}{'' if key == 'whole' else ', keep 0.9'} | "
                     + " | ".join(f"{1000 * part:.0f} ms" for part in (*parts, parts.sum())) + f" | {gain:.2f} |")
cost = {key: main.cells[key] for key in ("whole", ours)}
implied = {part: cost["whole"][part] / cost[ours][part] for part in ("gmacs_tower", "gmacs_prefill", "gmacs")}
display(Markdown("\n".join(lines) + f"\n\n*Live*, {torch.get_num_threads()} threads, medians of a few rounds: an illustration, no benchmark. The "
                 f"counts imply {implied['gmacs_tower']:.2f} for the tower, {implied['gmacs_prefill']:.2f} for the reading and "
                 f"{implied['gmacs']:.2f} for both. Of the whole model's multiply-accumulates up to the first token, reading takes "
                 f"{cost['whole']['gmacs_prefill'] / cost['whole']['gmacs']:.0%}. Later tokens are read one at a time and gain little."))

# %% [markdown]
# ## Beside the paper's own numbers
#
# For orientation only, quoted from Table 3 and not measured here: LLaVA-1.5-7B, r = 0.9, off the shelf. The tower has 24 layers
# and 576 patches, and PiToMe in the released code begins in the fourteenth, ToMe standing in before. On the twelve layers of our tower
# that preset is ToMe throughout.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Quoted from Table 3 of the paper: score minus the whole model's, LLaVA-1.5-7B, r = 0.9, off the shelf. Hollow: not measured here. *Quoted.*", "name": "fig-vqa-quoted"}, "image": {"alt": "Hollow markers for PiToMe, ToMe, ToFu, DCT and DiffRate on five benchmarks. PiToMe and ToMe lie within two points of each other, DCT and DiffRate far below on TextVQA."}}
figure, ax = plt.subplots(figsize=(7, 3))
looks = {"PiToMe": "pitome", "ToMe": "tome", "ToFu": "tofu", "DCT": "dct", "DiffRate": "diffrate"}
for y, scores in enumerate(TABLE_3.values()):
    for shift, (method, arm) in zip(np.linspace(-0.25, 0.25, len(looks)), looks.items(), strict=True):
        colour, _, marker = plots.ARMS[arm]
        ax.plot(scores[method] - scores["whole"], y + shift, marker, color=colour, markerfacecolor="none", markersize=6,
                label=None if y else method)
ax.axvline(0, color="0.6", linewidth=1)
ax.set(yticks=range(len(TABLE_3)), yticklabels=list(TABLE_3), ylim=(4.6, -0.6), xlabel="score minus the whole model's")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %% [markdown]
# ## What was tried, and what counts

# %% tags=["hide-input"]
recipe, losses = sheet["recipe"], sheet["losses"]
display(Markdown(
    f"One recipe, one seed, chosen among no others: {recipe['align_steps']} steps in which the projector alone learns the words for "
    f"what patches show, then {recipe['steps']} steps of tuning (rank {recipe['rank']}, rate {recipe['rate']:g}), {sheet['scenes']:,} scenes in "
    f"all, none twice, in two and a half minutes on {sheet['made']['device']}. The loss per token fell from {losses[3][1]:.2f} (steps 150 to "
    f"200) to {losses[-1][1]:.2f}. The number of steps was set by the time that was left on that machine, before anything was scored. "
    f"Generator, mix of types and grid were fixed before training; no cell was scored on validation but the whole model. One cell of the "
    f"headline, {LABELS['pitome']} at keep 0.9, was scored on a CPU, because the memory of the graphics card had run out."
))

# %% tags=["hide-input"]
display(Markdown(
    f"> **Takeaway.** A small LLaVA that reads 45 tokens of 144 loses {100 * lost:.0f} answers in a hundred with PiToMe and "
    f"{100 * lost_tome:.0f} with ToMe, for {1 - share:.0%} less work; PiToMe against ToMe: {verdict(to_tome)}. Reading the same tokens in the "
    f"released order costs another {100 * worth[0]:.0f}. Most is lost where things must be counted or listed, least where one thing is "
    f"to be named. Energy-sorted matching, ToFu and smaller pictures lie close by; random merging far below."
))

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | LLaVA-1.5-7B merged at r = 0.9 off the shelf loses 1.2 points on VQAv2 and 2.1 on GQA with PiToMe, 1.4 and 2.5 with ToMe (Table 3). |
# | We saw | On a LLaVA of 135 + 22 million parameters a loss ten times as large, alike for both, and an effect of order and positions that exceeds every difference between them. |
# | What could overturn this | LLaVA-1.5 on VQAv2 and GQA: **not run**; the command is in [How to run it](../book/how_to_run.md). A larger language model; one that was never trained with tokens left out; other trainings than this one. |
#
# ## Exercises
#
# **1.** What do wrong answers to *Where is the ...?* look like when the order is the released one: any corner, or one?

# %% tags=["hide-cell"]
where = [i for i, kind in enumerate(full.items["type"]) if kind == "position"]
for key in ("whole", ours, f"{ours}/released"):
    given = tasks.said(full, key)
    print(key, Counter(given[i] for i in where).most_common(4))

# %% [markdown]
# **2.** Does a photograph behind the drawings make merging dearer? Compare the loss of PiToMe by background.

# %% tags=["hide-cell"]
backgrounds = np.array([layout.background for layout in layouts])[place]
for kind in questions.BACKGROUNDS:
    here = backgrounds == kind
    gap = (main.outcome(ours, "correct") - main.outcome("whole", "correct"))[here]
    mean, low, high = bootstrap_mean(gap, np.array(main.items["scene"])[here])
    print(f"{kind}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], whole model {main.outcome('whole', 'correct')[here].mean():.3f}")

# %% [markdown]
# **3.** At equal tokens into the language model, is a smaller picture better than a merged one? Where do the curves cross?

# %% tags=["hide-cell"]
for small, merged in (("lower-resolution@126px", "pitome@0.95"), ("lower-resolution@98px", ours), ("lower-resolution@70px", "pitome@0.85")):
    tokens = [full.cells[key]["image_tokens"] for key in (small, merged)]
    print(f"{tokens[0]} against {tokens[1]} tokens: {tasks.difference(full, small, merged)}")
