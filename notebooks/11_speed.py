# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speed
#
# On the CPU of the record, merging at keep 0.9 pays for a ViT-S or larger model from 197 tokens on. PiToMe, as the paper writes it, is then
# 1.17 times as fast as the whole model at batch 1 and 1.73 times at batch 64; the multiply-accumulates imply 1.76. With 50 tokens, or with
# a ViT-Ti, it is slower at batch 1 (0.77 and 0.78). On the GPU of the record, with an earlier merge step, it was 0.14 to 0.51 times
# as fast in all five vision cells; the fused step of this package has not been timed there: **not run**.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports, and how the record is read"}
import json
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from IPython.display import Markdown, display

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.cost.measure import measure
from pitome_core.experiments.cost.setups import EVEN, STEPS, PrefillShape, Setup
from pitome_core.experiments.cost.variants import Workshop, twin
from pitome_core.experiments.plots.live.speed import MODELS, TYPES
from pitome_core.experiments.records import results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.runs import timings
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"


def load(file):
    """The cells of a record that have numbers, each with the run that measured it; none where nothing was run."""
    cells = timings.load(results.folder() / file, "cost")
    return [cell for cell in cells.values() if cell.get("variants")]


def pick(cells, **wanted):
    """The cells whose fields have these values."""
    return [cell for cell in cells if all(cell.get(name) == value for name, value in wanted.items())]


recorded, gpu = load("embedded/cost.json"), load("gpu/cost.json")
towers = [cell for cell in recorded if "whole" in cell["variants"]]
usual = {"mode": "eager", "proportional": "preset", "multiple": 1, "every": 1}
plain = [cell for cell in pick(towers, **usual) if cell["model"] not in EVEN]
drawn = [cell for cell in pick(gpu, keep=0.9) if "speedup" in cell["variants"].get("pitome", {})]


def name(cell):
    """A cell in a few words."""
    model, dtype = MODELS.get(cell["model"], cell["model"]), TYPES[cell["dtype"]]
    return f"{model}, {cell.get('size', '')} px, batch {cell['batch']}, {dtype}"


def brief(cell):
    """A cell in one short word that does not wrap, for tables."""
    model = MODELS.get(cell["model"], cell["model"]).removeprefix("ViT-").partition("/")[0]
    return f"{model}/{cell.get('size', '')}, b{cell['batch']}, {TYPES[cell['dtype']]}".replace(" ", "\u00a0")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed-up of PiToMe at keep 0.9 over the whole model, by tokens and batch (ViT-S in float32; 1,370 tokens: DINOv2's ViT-S/14 at 518 px). The bold line is break-even: below 1 merging does not pay. Empty: not measured. *Recorded on a CPU.*", "name": "fig-cost-crossover"}, "image": {"alt": "A grid of numbers over tokens and batch size, coloured by speed-up, with a bold line around the cells below one, if there are any."}}
ground = [cell for cell in pick(plain, keep=0.9, dtype="float32") if "small" in cell["model"]]
tokens, batches = (sorted({value(cell) for cell in ground}) for value in (lambda c: c["tokens"][0], lambda c: c["batch"]))
speed = np.full((len(batches), len(tokens)), np.nan)
for cell in ground:
    speed[batches.index(cell["batch"]), tokens.index(cell["tokens"][0])] = cell["variants"]["pitome"]["speedup"][1]
figure, ax = plt.subplots(figsize=(6.4, 2.8))
ax.imshow(speed, cmap="cividis_r", vmin=0.8, vmax=2, aspect="auto")
for (y, x), value in np.ndenumerate(speed):
    if np.isfinite(value):
        ax.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value > 1.4 else "black")
    for dy, dx in ((0, 1), (1, 0)):
        beside = speed[y + dy, x + dx] if y + dy < len(batches) and x + dx < len(tokens) else np.nan
        if (value - 1) * (beside - 1) < 0:  # False where one is missing
            ends = ([x + 0.5] * 2, [y - 0.5, y + 0.5]) if dx else ([x - 0.5, x + 0.5], [y + 0.5] * 2)
            ax.plot(*ends, color="black", linewidth=3)
ax.set(xticks=range(len(tokens)), xticklabels=[f"{n:,}" for n in tokens], yticks=range(len(batches)), yticklabels=batches,
       xlabel="tokens of the whole model", ylabel="batch")
ax.invert_yaxis()


def fast(batch, tokens=197, model="small"):
    """Speed-up of PiToMe in a cell of the record."""
    (cell,) = [c for c in pick(plain, keep=0.9, dtype="float32", batch=batch) if f"vit_{model}_patch" in c["model"] and c["tokens"][0] == tokens]
    return cell["variants"]["pitome"]["speedup"][1]


# what the first lines of this page say
assert [f"{fast(*which):.2f}" for which in ((1,), (64,), (1, 50), (1, 197, "tiny"))] == ["1.17", "1.73", "0.77", "0.78"]
assert all(c["variants"]["pitome"]["speedup"][1] > 1 for c in pick(plain, keep=0.9) if c["tokens"][0] >= 197 and "tiny" not in c["model"])
assert all(c["variants"]["pitome"]["speedup"][1] < 1 for c in gpu if "pitome" in c["variants"])
assert {f"{c['variants']['pitome']['implied']:.2f}" for c in pick(ground, size=224)} == {"1.76"}
plt.show()

# %% [markdown]
# ## Your own case
#
# Choose what is nearest to yours. Every number was recorded; nothing is interpolated.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Median time of one call of the whole batch, for the whole model and for PiToMe and ToMe at keep 0.9. The line in a bar is where the time would end if it followed the multiply-accumulates. *Recorded.*", "name": "fig-cost-estimate"}, "image": {"alt": "Three horizontal bars, the time of the whole model and, shorter, those of PiToMe and ToMe; the lines of the counts lie to the left of the ends of the bars."}}
start = ("CPU, 2 threads", "ViT-S, 224 px, fp32", 4)
plots.speed({"CPU, 2 threads": recorded, "GPU, one H100, an earlier merge step": gpu}, keep=0.9, start=start)

# %% [markdown]
# ## Merge or not
#
# More tokens, larger batches and larger models gain more: attention is then a larger part of the work, and the price of a step a smaller
# one. Prefill of a language model behind a merged tower gets most of what the counts imply; decoding does not get shorter by it.
# The fold has the rule for each device and length, with the smallest, median and largest speed-up of PiToMe at keep 0.9. Quality is
# another question: [Use it](12_use_it.ipynb) begins with it.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the rule for each device and length"}
def typical(cells, method="pitome"):
    """Least, median and largest speed-up, and how many cells that is."""
    values = [cell["variants"][method]["speedup"][1] for cell in cells if "speedup" in cell["variants"].get(method, {})]
    if len(values) < 2:
        return f"{values[0]:.2f} (1 cell)" if values else "not measured"
    return f"{min(values):.2f} to {max(values):.2f}, median {median(values):.2f} ({len(values)} cells)"


usually = pick(plain, keep=0.9)
short_, middle_, long_ = ([c for c in usually if low <= c["tokens"][0] < high] for low, high in ((0, 100), (100, 500), (500, 9999)))
rules = [
    ("a GPU in eager mode", "Launching costs more than is saved. Capture a graph, compile, or do not merge (earlier state of the code).",
     typical([c for c in drawn if c["mode"] == "eager"])),
    ("a GPU with a captured graph", "No gain in the cells that were run (earlier state of the code).", typical([c for c in drawn if c["mode"] == "graph"])),
    ("under 100 tokens on a CPU, batch 1", "A loss: the step has a fixed price.", typical(pick(short_, batch=1))),
    ("under 100 tokens on a CPU, larger batches", "The more images, the more gain.", typical([c for c in short_ if c["batch"] > 1])),
    ("about 200 tokens on a CPU, batch 1", "ViT-S gains a little, ViT-Ti loses.", typical(pick(middle_, batch=1))),
    ("the same, with compiled steps", "A little more.", typical([c for c in pick(towers, keep=0.9, batch=1, mode="step") if c["size"] == 224])),
    ("the same, one merge in three layers", "More; what it does to accuracy was not measured.",
     typical([c for c in pick(towers, keep=0.9, batch=1, every=3) if c["size"] == 224])),
    ("about 200 tokens on a CPU, larger batches", "Helps.", typical([c for c in middle_ if c["batch"] > 1])),
    ("more than 500 tokens on a CPU", "Helps, at small batches too: attention is a larger part, and it shrinks with the square.", typical(long_)),
    ("a language model behind a merged tower", "Prefill gets most of what the counts imply; decoding does not get shorter by it.",
     typical([c for c in gpu if "merged" in c["variants"]], "merged")),
]
display(Markdown(markdown(["if you have", "expect", "measured speed-up, keep 0.9"], rules)))

# %% [markdown]
# ## Counts and the clock
#
# Three numbers are compared. The *counts* are exact: `pc.flops` adds up every matrix product, those of the merge included. The *free merge* drops as many tokens in each
# layer by a slice and decides nothing; no method can be faster than that beyond noise. The *method* is PiToMe or ToMe.
#
# Time is lost in two places. From the counts to the free merge: the time of normalisation, casts and the patch embedding does not shrink as the counts do. From the free
# merge to a method: its merge steps, and *the rest*. The rest is attention, which has to read the sizes of the tokens, and the processor's cache: after
# a step it holds the step's numbers, and the model has to read its own again.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Time of the model with PiToMe at keep 0.9, as a share of the whole model's: what the counts imply, what the free merge takes beyond that, the merge steps, and the rest. A bar that passes 1 is a merge that does not pay. Float32. *Recorded on a CPU.*", "name": "fig-cost-waterfall"}, "image": {"alt": "Stacked horizontal bars, in four parts; the first part is the largest, the merge steps are a small part except in small models and small batches."}}
shown = sorted(pick(plain, keep=0.9), key=lambda cell: (cell["dtype"] != "float32", cell["model"], cell["tokens"][0], cell["batch"]))


def stack(ax, y, values, tints, names):
    """A bar of parts, one after the other; what noise makes negative is drawn as none. The first bar names them."""
    left = 0.0
    for value, tint, label in zip(values, tints, names, strict=True):
        ax.barh(y, max(value, 0), left=left, color=tint, label=None if y else label)
        left += max(value, 0)


def finish(figure, ax, names, xlabel, ncols=4):
    """The rows' names, first one on top, and a legend below; nothing to explain where there are no rows."""
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    ax.invert_yaxis()
    if names:
        figure.legend(fontsize=9, loc="outside lower center", ncols=ncols)
    plt.show()


def parts(cell, method="pitome"):
    """Shares of the whole model's time: counts, free beyond counts, steps, rest; the parts add up to the method's time."""
    told, free = cell["variants"][method], cell["variants"]["free"]
    taken, ideal, ceiling = 1 / told["speedup"][1], 1 / told["implied"], 1 / free["speedup"][1]
    inside = told.get("step_share", 0.0) * taken
    return np.array([ideal, ceiling - ideal, inside, taken - ceiling - inside])


colours = ("#999999", "#CCBB44", plots.COLOURS["pitome"], plots.COLOURS["accent"])
labels = ("counts imply", "free merge, beyond the counts", "merge steps", "the rest (mask of sizes, caches)")


def waterfall(cells):
    """One bar a cell, and a line where the whole model ends."""
    figure, ax = plt.subplots(figsize=(7, 1.4 + 0.32 * len(cells)))
    for y, cell in enumerate(cells):
        stack(ax, y, parts(cell), colours, labels)
    ax.axvline(1, color="black", linewidth=0.8)
    finish(figure, ax, [name(cell).replace(", fp32", "") for cell in cells], "share of the whole model's time", ncols=2)


few = [cell for cell in shown if cell["dtype"] == "float32" and cell["size"] in (112, 224) and (cell["batch"] in (1, 16) or "base_patch16_224" in cell["model"])]
waterfall(few)

# %% tags=["hide-input"]
table = np.array([parts(cell) for cell in shown])
most = [labels[1:][i] for i in table[:, 1:].argmax(axis=1)]
counted = {label: most.count(label) for label in labels[1:]}
free = [cell["variants"]["free"]["efficiency"] for cell in pick(plain, keep=0.9)]
kept = [cell["variants"]["pitome"]["of_free"] for cell in pick(plain, keep=0.9)]
nearer = sum(cell["variants"]["tome"]["speedup"][1] > cell["variants"]["pitome"]["speedup"][1] for cell in shown)
display(Markdown(
    f"Over all {len(shown)} cells at keep 0.9 the free merge reaches {percent(median(free))} of the implied speed-up in the median ({percent(min(free))} at least), and "
    f"PiToMe {percent(median(kept))} of what the free merge reaches ({percent(min(kept))} to {percent(max(kept))}). The largest loss is "
    + ", ".join(f"*{label}* in {n} cells" for label, n in counted.items() if n)
    + f". The merge steps take {percent(table[:, 2].min(), 1)} to {percent(table[:, 2].max(), 1)} of the whole model's time. ToMe is faster than PiToMe in {nearer} cells. "
    "(A part is the difference of two medians. A part below zero is not drawn, so that bar is too long.)"
))

# %% tags=["hide-input", "hide-cell"] mystnb={"code_prompt_show": "Show all cells: counts, free merge, ToMe and PiToMe", "figure": {"caption": "Speed-up over the whole model at keep 0.9 in every layer: implied by the counts (hollow), free merge (grey bar), ToMe and PiToMe with quartiles. Left of the line at 1 a merged model is slower than the whole one. *Recorded on a CPU.*", "name": "fig-cost-three"}, "image": {"alt": "Horizontal bars for the free merge, one per cell, with marks for the implied speed-up to the right of the bar and for the two methods at its end."}}
shown = sorted(pick(plain, keep=0.9), key=lambda cell: (cell["dtype"] != "float32", cell["model"], cell["tokens"][0], cell["batch"]))
figure, ax = plt.subplots(figsize=(8, 1 + 0.32 * len(shown)))
for y, cell in enumerate(shown):
    variants = cell["variants"]
    ax.barh(y, variants["free"]["speedup"][1], color="0.85", label=None if y else "free merge")
    ax.plot(variants["pitome"]["implied"], y, "o", color="0.3", markerfacecolor="none", label=None if y else "counts imply (PiToMe)")
    for shift, method, marker in ((0.18, "tome", "s"), (-0.18, "pitome", "o")):
        low, middle, high = variants[method]["speedup"]
        ax.errorbar(middle, y + shift, xerr=[[middle - low], [high - middle]], fmt=marker, markersize=5,
                    color=plots.COLOURS[method], label=None if y else {"tome": "ToMe", "pitome": "PiToMe"}[method])
ax.axvline(1, color="black", linewidth=0.8)
finish(figure, ax, [name(cell) for cell in shown], "speed-up over the whole model")

# %% tags=["hide-input", "hide-cell"] mystnb={"code_prompt_show": "Show the parts of the time of all cells", "figure": {"caption": "The four parts of the time with PiToMe, as above, for every cell at keep 0.9. *Recorded on a CPU.*", "name": "fig-cost-waterfall-all"}, "image": {"alt": "Stacked horizontal bars, one per cell; cells in bfloat16 and with larger batches have hardly any time in the merge steps."}}
waterfall(shown)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the runs, and where PiToMe is slower"}
ours = code_of(measure, Workshop)
runs = {json.dumps(cell["run"], sort_keys=True): cell["run"] for cell in recorded}
lines = [f"- {run['device']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}, torch {run['packages']['torch']}, "
         f"{run['date'][:10]}, commit {(run['commit'] or '?')[:7]}{' and later changes' if run['modified'] else ''}"
         + (f" ({run['note']})" if run.get("note") else "") + ("" if run["code"] == ours else ", an earlier state of the code")
         for run in runs.values()]
slower = [name(cell) for cell in plain if cell["variants"]["pitome"]["speedup"][1] < 1]
efficiency = [cell["variants"]["pitome"]["efficiency"] for cell in pick(plain, keep=0.9)]
display(Markdown(
    f"{len(recorded)} cells were recorded:\n\n" + "\n".join(dict.fromkeys(lines)) + f"\n\nAt keep 0.9 PiToMe reaches {percent(min(efficiency))} to "
    f"{percent(max(efficiency))} of the speed-up that the counts imply, the median cell {percent(median(efficiency))}. "
    + (f"**Slower than the whole model** with PiToMe: {'; '.join(slower)}." if slower else
       "In none of these cells is PiToMe slower than the whole model.")
))

# %% [markdown]
# ## Count it, and time it
#
# The prediction needs no clock.

# %% tags=["nbval-check-output"]
whole = timm.create_model("vit_small_patch16_224").eval()
before = pc.flops(whole)
merged = pc.apply(twin(whole), "pitome", keep=0.9)
after = pc.flops(merged)
steps = sum(layer.merge for layer in after.layers)
print(f"whole {before.total / 1e9:.2f} GMAC, merged {after.total / 1e9:.2f}, "
      f"implied speed-up {before.total / after.total:.2f}")
print(f"merge steps: {percent(steps / after.total, 2)} of the merged model, "
      f"and {after.other_ops / 1e6:.1f} million exponentials and the like")

# %% [markdown]
# On paper the merge is next to free. A clock counts what the multiply-accumulates leave out: memory that is read and written,
# exponentials, sorting, and the start of some forty small operators in every layer. In a measurement the variants take turns, so that
# whatever drifts drifts for all of them. For your own cell: `python -m pitome_core.experiments cost --models ...`.

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show a measurement on the machine that built this page"}
workshop = Workshop(torch.device("cpu"))
batch, size = (1, 112) if quick else (4, 224)
setup = Setup("vit_tiny_patch16_224", batch, "float32", 0.9, size=size)
with torch.random.fork_rng():
    live = measure(setup, workshop, repeats=7, seconds=2)
for variant, told in live["variants"].items():
    gain = f", speed-up {told['speedup'][1]:.2f} of {told['implied']:.2f}" if "speedup" in told else ""
    print(f"{variant:7s} {1e3 * told['seconds'][1]:7.2f} ms{gain}")
implied = {variant: told.get("implied") for variant, told in live["variants"].items()}
assert implied["pitome"] < implied["tome"] < implied["free"]

# %% [markdown]
# ## The merge step
#
# A step compares all tokens with each other, so its arithmetic grows with $N^2$. Up to 197 tokens its price is mostly fixed; with more
# tokens the squares rule, and PiToMe's four times as many cosines show. The record has the step alone, its operators before and after
# this package reworked it, and the targets that were set for it.
#
# :::{dropdown} Four lessons of making the step faster
# *Choosing* between two values by a matrix of booleans costs a CPU more than the exponentials that it
# chooses from. Equation 4 needs no choice: its upper branch is a threshold, and its lower one is $e^{\min(x, m)} / e^m - 1$,
# which is 0 above the margin; both are passes that write floats only. *Adding up all tokens* in their slots writes every token twice
# although nine in ten stay alone, so the tokens that stay are copied to their places and only those that go are added. *Fresh
# memory* costs more than the arithmetic that fills it, so above 724 tokens a CPU never builds the whole matrix of cosines:
# energies come from blocks of rows, in memory that the block before has just given back. And much of what is left is *not
# deciding*: all keys are read and normalised, all tokens are read and written. ToMe pays for this as well, which is why its step
# is not much cheaper than PiToMe's at 197 tokens.
# :::

# %% tags=["hide-input", "hide-cell"] mystnb={"code_prompt_show": "Show the time of a step alone, by tokens", "figure": {"caption": "Left: time of one merge step (one image, 384 channels, six heads, keep 0.9) over the number of tokens; the grey line grows with the square of the tokens. Right: PiToMe's step over ToMe's, whose similarities are a quarter; dashed: the target. *Recorded on a CPU.*", "name": "fig-cost-step"}, "image": {"alt": "Left: two rising curves on log axes that are flat for few tokens and approach a slope of two. Right: their ratio, which stays below the dashed line at five."}}
alone = sorted((cell for cell in recorded if cell["model"] in STEPS), key=lambda cell: cell["tokens"][0])
count = np.array([cell["tokens"][0] - 1 for cell in alone])
took = {method: np.array([cell["variants"][method]["seconds"][1] for cell in alone]) for method in ("pitome", "tome")}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for method, label in (("pitome", "PiToMe"), ("tome", "ToMe")):
    axes[0].plot(count, 1e3 * took[method], "o-", color=plots.COLOURS[method], label=label)
if len(count):
    axes[0].plot(count, 1e3 * took["pitome"][-1] * (count / count[-1]) ** 2, color="0.6", linewidth=1, label="square")
    axes[1].plot(count, took["pitome"] / took["tome"], "o-", color="0.3")
axes[0].set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
axes[1].set(xscale="log", xlabel="tokens", ylabel="PiToMe's step over ToMe's")
axes[1].axhline(5, color="0.6", linewidth=1, linestyle="--")
axes[1].set_ylim(0, 5.5)
axes[0].legend(fontsize=8)
plt.show()

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show what a step spends its time on, before and now"}
if len(count):
    ratio, growth = took["pitome"] / took["tome"], took["pitome"][-1] / took["pitome"][0]
    each = ", ".join(f"{n:,}: {value:.1f}" for n, value in zip(count, ratio, strict=True))
    text = (f"From {count[0]} to {count[-1]:,} tokens the square grows by {(count[-1] / count[0]) ** 2:,.0f}, PiToMe's step by "
            f"{growth:,.0f}. Against ToMe's step it costs {ratio.min():.1f} to {ratio.max():.1f} times as much (the target is at most 5); by "
            f"tokens: {each}. The curve is not smooth: a step alone depends on whether the memory that it asks for was used before, for both methods.")
else:
    text = "The steps were **not run**."
display(Markdown(text))

older = load("embedded/cost-before.json")
WORDS = {
    "sums and means": ("sum", "mean", "div_"),
    "normalising, dividing": ("abs", "amax", "div", "linalg_vector_norm", "nan_to_num"),
    "energies": ("exp_", "clamp_max", "threshold", "expm1", "where", "ge", "sub"),
    "cosines": ("bmm", "baddbmm"),
    "moving tokens": ("index_select", "index_add_", "index_add", "scatter_add_", "mul_", "mul", "fill_", "zero_"),
    "sorting and matching": ("sort", "max", "gather", "searchsorted", "scatter_", "cumsum"),
}


def grouped(cell, method="pitome"):
    """Milliseconds in the steps of a forward, by what the operators are for."""
    told = dict.fromkeys([*WORDS, "all others"], 0.0)
    ranked = sorted(cell["variants"][method]["operators"].items(), key=lambda item: (item[0] == "others", -item[1][0]))
    for rank, (operator, (spent, _)) in enumerate(ranked):  # some records name sixteen operators and add up the rest
        words = next((words for words, names in WORDS.items() if operator in names and rank < 16), "all others")
        told[words] += spent
    return told


profiled = [(new, old) for old in older for new in pick(plain, **{name: old[name] for name in ("model", "batch", "dtype", "keep", "size")})
            if "operators" in new["variants"]["pitome"]]
for new, old in profiled:
    now, then = grouped(new), grouped(old)
    rows = [[words, f"{then[words]:.1f}", f"{now[words]:.1f}"] for words in then]
    rows.append(["*all*", f"{sum(then.values()):.1f}", f"{sum(now.values()):.1f}"])
    table = markdown([f"{name(new)}: milliseconds in the steps of a forward", "before", "now"], rows)
    was, present = (cell["variants"]["pitome"] for cell in (old, new))
    display(Markdown(table + f"\n\nWith the clock on the whole model: speed-up {was['speedup'][1]:.2f} before, {present['speedup'][1]:.2f} now; "
                     f"steps {percent(was['step_share'], 1)} of the forward before, {percent(present['step_share'], 1)} now; of the free merge's speed-up "
                     f"{was['of_free']:.2f} and {present['of_free']:.2f}. Other sessions and few rounds: of these only the share of the steps is beyond noise. "
                     f"Before: commit {old['run']['commit'][:7]}."))
if not profiled:
    display(Markdown("There is no pair of profiles in the record: **not run**."))
display(Markdown("Each row of these tables adds up operators of one kind, whatever they were called for: the sums are those of keys over heads and "
                 "those of energies over tokens. The sixteen that take most time are named, the rest are others."))

# %% [markdown]
# :::{dropdown} The targets of this package's step
# For this package's own step some targets were set beforehand: at keep 0.9 and 0.8 PiToMe should reach 0.95 of the free
# merge's speed-up in float32, 0.90 in bfloat16 and 0.85 at batch 1; at 224 px its steps should take at most 3 % of the whole
# model's time in float32 and 8 % in bfloat16; and the step at most five times ToMe's. They were set for ViT-S and ViT-B at 224 and
# 384 px; the other cells are measured against them all the same.
#
# A cell that misses gets its profile: how much more time than the free merge PiToMe takes, and what the operators in the steps were
# doing. *Between operators* is what the clock says of the steps beyond the operators' own time: the interpreter, and starting
# them (at least that much, since a profiler makes small operators look longer). *Outside* is what is not in the steps: the mask of sizes,
# the caches that the steps have filled with other things.
#
# Two reasons came out. Where ToMe misses as well, it is what every method does: read the keys, sort, copy tokens, and start some forty
# operators; in a small model at batch 1 each of them does next to nothing and costs a few millionths of a second all the same.
# Where only PiToMe misses, its cosines, four times ToMe's, and its exponentials come on top; with many tokens they are a third
# of the loss and more, elsewhere small operators and what lies outside the steps still weigh more. The share also depends on how fast
# the rest is: on a processor with faster matrix products the same steps are a larger part.
# :::

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the table of all settings, with the targets"}
def target(cell):
    """Share of the free merge's speed-up that was aimed at."""
    return 0.85 if cell["batch"] == 1 else 0.90 if cell["dtype"] != "float32" else 0.95


def misses(cell):
    """Whether a cell is below its target."""
    return cell["variants"]["pitome"]["of_free"] < target(cell)


heavy, rows = [], []
for cell in plain:
    told, most = cell["variants"], 0.08 if cell["dtype"] != "float32" else 0.03
    reached, inside = told["pitome"]["of_free"], told["pitome"]["step_share"] / told["pitome"]["speedup"][1]
    applies, mark = cell["size"] == 224, "**" if misses(cell) else ""
    over = applies and inside > most
    heavy += [cell] * over
    speeds = [f"{told['pitome']['implied']:.2f}", *(f"{told[v]['speedup'][1]:.2f}" for v in ("free", "tome", "pitome"))]
    rows.append([brief(cell), f"{cell['keep']:g}", *speeds, f"{mark}{reached:.3f}{mark} ({target(cell):.2f})",
                 f"{'**' if over else ''}{percent(inside, 1)}{'**' if over else ''}{f' ({percent(most)})' if applies else ''}"])
header = ["cell", "keep", "implied", "free merge", "ToMe", "PiToMe", "of free (target)", "steps (target)"]
short = [cell for cell in plain if misses(cell)]
meant = [cell for cell in plain if cell["size"] in (224, 384) and any(kind in cell["model"] for kind in ("small_patch16", "base_patch16_224"))]
rounds = [cell["rounds"] for cell in plain]
display(Markdown(markdown(header, rows) + f"\n\n*Steps*: their share of the whole model's time. Bold: missed. Each cell is {min(rounds)} to {max(rounds)} rounds, so that differences of up to 0.04 say nothing where they are few. {len(short)} of {len(plain)} cells are below their share of the free merge, {sum(map(misses, meant))} of the "
                 f"{len(meant)} that the targets were set for; of these at 224 px {sum(c in meant for c in heavy)} are above the share of the steps. In those {len(meant)} PiToMe is at least "
                 f"{min(c['variants']['pitome']['speedup'][1] for c in meant):.2f} times as fast as the whole model."))

# %% tags=["hide-input", "hide-cell"] mystnb={"code_prompt_show": "Show where the time goes in cells that miss a target", "figure": {"caption": "What PiToMe's forward takes beyond the free merge's, by cause, as a share of that forward, in the cells that miss their target; behind the name the share of the free merge's speed-up that ToMe and PiToMe reach. *Recorded on a CPU.*", "name": "fig-cost-misses"}, "image": {"alt": "Stacked horizontal bars, one per cell that misses its target; at batch 1 small operators, the time between operators and what lies outside the steps make up most of the bar, with many tokens energies and cosines do."}}
CAUSES = {"keys: means, normalising": ("sums and means", "normalising, dividing"), "energies and cosines": ("energies", "cosines"),
          "sorting and matching": ("sorting and matching",), "moving tokens": ("moving tokens",), "small operators": ("all others",)}


def lost(cell, method="pitome"):
    """Shares of a method's forward that the free merge does not need, by cause; they add up to the difference of the medians."""
    told, free = cell["variants"][method], cell["variants"]["free"]["seconds"][1]
    taken, spent = told["seconds"][1], grouped(cell, method)
    found = {cause: sum(spent[words] for words in kinds) / (1e3 * taken) for cause, kinds in CAUSES.items()}
    found["between operators"] = told["step_share"] - sum(found.values())
    found["outside the steps"] = 1 - free / taken - told["step_share"]
    return found


described = [cell for cell in short if "operators" in cell["variants"]["pitome"]]
figure, ax = plt.subplots(figsize=(8, 1.2 + 0.34 * max(len(described), 1)))
tints = ("#999999", plots.COLOURS["pitome"], "#66CCEE", "#228833", "#CCBB44", "#EE6677", "#AA3377")
causes = [lost(cell) for cell in described]
for y, found in enumerate(causes):
    stack(ax, y, found.values(), tints, found)
names = [f"{brief(c)}, {c['keep']:g}  ({c['variants']['tome']['of_free']:.2f}, {c['variants']['pitome']['of_free']:.2f})" for c in described]
ax.set_title("" if described else "no cell with a profile misses its target")
finish(figure, ax, names, "share of the forward with PiToMe")

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the causes in words"}
both = [cell for cell in described if cell["variants"]["tome"]["of_free"] < target(cell)]
largest = [max(found, key=found.get) for found in causes]
display(Markdown(
    "The largest cause: " + ", ".join(f"{cause} in {largest.count(cause)}" for cause in dict.fromkeys(largest)) + f" of {len(described)} cells. "
    f"ToMe, which decides with a quarter of the cosines and no energies, misses the same target in {len(both)} of them. (Differences of medians: "
    "a part below zero is drawn as none.)"))

# %% [markdown]
# ## Fewer operators, fewer steps
#
# Two things help where a step's fixed price is too high. `pc.apply(..., compile_step=True)` makes fewer and larger operators of a step: it
# takes seconds at the first call, needs a C++ compiler, and changes plans in near-ties only. `every=3` merges in one layer of three and
# removes as many tokens as three would; what it does to accuracy was **not run**.

# %% tags=["hide-input"]
gains = {}
for changed in pick(towers, model="vit_small_patch16_224", batch=1, dtype="float32", keep=0.9, size=224):
    manner = {"step": "compiled steps"}.get(changed["mode"], f"every {changed['every']} layers" if changed["every"] > 1 else "as usual")
    gains[manner] = changed["variants"]["pitome"]["speedup"][1]
display(Markdown("A ViT-S at batch 1: " + ", ".join(f"{manner} {value:.2f}" for manner, value in gains.items()) + " times as fast as the whole model with PiToMe. *Recorded on a CPU.*"))

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show compiled steps and fewer steps, all cells"}
pairs = [(changed, base) for changed in towers if changed["mode"] in ("step", "compile") or changed["every"] > 1
         for base in pick(plain, **{f: changed[f] for f in ("model", "batch", "dtype", "keep", "size")})]
MANNER = {"step": "compiled steps", "compile": "the whole model compiled"}
rows = []
for changed, base in pairs:
    told, usually = changed["variants"], base["variants"]["pitome"]
    speeds = [side["speedup"][1] for side in (told["free"], told["tome"], usually, told["pitome"])]
    numbers = [*speeds, usually["of_free"], told["pitome"]["of_free"]]
    manner = MANNER.get(changed["mode"], f"every {changed['every']} layers")
    rows.append([brief(changed), manner, *(f"{value:.2f}" for value in numbers)])
display(Markdown(markdown(["cell", "instead", "free merge", "ToMe", "PiToMe: usual", "PiToMe: changed", "of free: usual", "changed"], rows)
                 + "\n\nSpeed-ups over the whole model of the same cell, the free merge with the changed token counts. *Recorded on a CPU.* "
                 + ("" if any(c["mode"] == "compile" for c in towers) else "The whole model through the compiler: **not run**.") if pairs else "**Not run.**"))

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show what raises the ceiling: types, counts, no sizes"}
def against(changed, **fields):
    """Rows that compare a changed cell with the plain one of the same shape: seconds of whole, free and PiToMe."""
    rows = []
    for cell in changed:
        same = {field: cell[field] for field in ("model", "batch", "keep", "size")} | {"dtype": cell["dtype"]} | fields
        for base in pick(plain, **same):
            row = [cell["variants"][v]["seconds"][1] / base["variants"][v]["seconds"][1] for v in ("whole", "free", "pitome")]
            label = f"{brief(cell)}, keep {cell['keep']:g}" + (f", multiples of {cell['multiple']}" if cell["multiple"] > 1 else "")
            rows.append(f"| {label} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    return rows


eager = pick(towers, mode="eager", every=1)
groups = {
    "cast in every forward (autocast) over weights in bfloat16": against(pick(eager, dtype="bfloat16-autocast"), dtype="bfloat16"),
    "token counts rounded up to multiples of 8 or 16": against([c for c in eager if c["multiple"] > 1]),
    "no class token, hence 196 tokens instead of 197": against(pick(towers, model="vit_small_without_class"), model="vit_small_patch16_224"),
    "no mask of sizes (proportional attention off)": against(pick(eager, proportional="off")),
    "bfloat16 over float32": against(pick(plain, dtype="bfloat16"), dtype="float32"),
}
lines = ["| time over that of the plain cell | whole | free merge | PiToMe |", "|---|---|---|---|"]
for title, rows in groups.items():
    lines += [f"| **{title}**{'' if rows else ': not run'} | | | |", *rows]
display(Markdown("\n".join(lines) + "\n\nOne row per cell; below 1 is faster. *Recorded on a CPU.* Where the whole model is the same "
                 "in both cells (token counts rounded up, no mask), its column shows how far the machine drifted between them, and the other two have "
                 "to be read against it. The groups on types have the same drift and cannot show it. Half precision is not faster as "
                 "such: it needs a processor that multiplies it."))

# %% [markdown]
# ## On a GPU
#
# There a new cost enters: every small operator has to be launched. In *eager* mode the processor that launches is the bottleneck of a small
# model. A captured CUDA *graph* takes launches out; in the cells below merging was still slower. They are of an earlier step of many
# small kernels. With `fused=True` the step is five kernels; its speed is **not run**.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed-up over the whole model on a GPU at keep 0.9: implied by the counts (hollow), free merge (grey bar), ToMe and PiToMe. Left of the line at 1 merging costs time: do not merge there. *Recorded; device, date and commit in the fold below.*", "name": "fig-cost-gpu"}, "image": {"alt": "Horizontal bars for the free merge on a GPU, with marks for the implied speed-up and for both methods; in eager mode the marks lie far left of the line at one."}}
figure, ax = plt.subplots(figsize=(7, 1.4 + 0.34 * max(len(drawn), 1)))
for y, cell in enumerate(drawn):
    told = cell["variants"]
    ax.barh(y, told["free"]["speedup"][1], color="0.85", label=None if y else "free merge")
    ax.plot(told["pitome"]["implied"], y, "o", color="0.3", markerfacecolor="none", label=None if y else "counts imply (PiToMe)")
    for method, marker, label in (("tome", "s", "ToMe"), ("pitome", "o", "PiToMe")):
        ax.plot(told[method]["speedup"][1], y, marker, color=plots.COLOURS[method], label=None if y else label)
ax.axvline(1, color="black", linewidth=0.8)
words = [f"{MODELS.get(cell['model'], cell['model'])}, batch {cell['batch']}, {TYPES[cell['dtype']]}, {cell['mode']}" for cell in drawn]
ax.set_title("" if drawn else "not run: `make gpu` on a machine with CUDA")
finish(figure, ax, words, "speed-up over the whole model")

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the runs, and the prefill of a language model"}
lines = []
for run in {json.dumps(cell["run"], sort_keys=True): cell["run"] for cell in gpu}.values():
    state = "this code" if run.get("code") == ours else "**an earlier or later state of the code**"
    lines.append(f"- {run['device']}, torch {run['packages']['torch']}, {run['date'][:10]}, commit {(run['commit'] or '?')[:7]}: {state}")
prefill = [f"a prompt of {c['tokens'][0]} tokens against one of {c['tokens'][1]} (batch {c['batch']}): {c['variants']['merged']['speedup'][1]:.2f} "
           f"of {c['variants']['merged']['implied']:.2f} implied" for c in gpu if "merged" in c["variants"]]
slow = sum(cell["variants"]["pitome"]["speedup"][1] < 1 for cell in drawn)
display(Markdown(
    ("\n".join(dict.fromkeys(lines)) + f"\n\nPiToMe is slower than the whole model in {slow} of {len(drawn)} cells. "
     + (f"Prefill of a language model of 7 billion weights behind a merged tower: {'; '.join(prefill)}. There the merge was done "
        "before, by the tower, and the language model only sees fewer tokens." if prefill else "")) if gpu else
    "**Not run.** `make gpu` on a machine with CUDA measures it, with nothing to download."
))
if gpu:  # what the first screen says
    on_gpu = [cell["variants"]["pitome"]["speedup"][1] for cell in drawn]
    assert len(on_gpu) == 5 and f"{min(on_gpu):.2f} {max(on_gpu):.2f}" == "0.14 0.51"

# %% [markdown]
# ## Larger models, on paper
#
# What was not measured can be counted: ViT-H/14 {cite}`dosovitskiy2021vit` at 518 px, and LLaVA-1.5 {cite}`liu2024llava15`, whose tower
# hands 576 tokens to a language model of 7 billion weights. With more tokens and layers the same ratio saves more. *Computed.*

# %% tags=["hide-cell", "nbval-check-output"] mystnb={"code_prompt_show": "Show the counts of ViT-H/14 and LLaVA-1.5"}
with torch.device("meta"):
    huge = timm.create_model("vit_huge_patch14_224", img_size=518)
    tower = timm.create_model("vit_large_patch14_clip_336", depth=23, num_classes=0,
                              global_pool="")
prompt = PrefillShape()
paper = {keep: [pc.flops(pc.apply(model, "pitome", keep, restore=model is huge))
                for model in (huge, tower)] for keep in (1.0, 0.95, 0.9)}
for keep, (image, seen) in paper.items():
    left = prompt.image_tokens(keep)
    together = seen.total + prompt.macs(left + prompt.text)
    print(f"keep {keep:g}: ViT-H at 518 px {image.total / 1e9:.0f} GMAC, "
          f"{image.tokens[-1]} tokens leave; LLaVA-1.5 {left} image tokens, "
          f"tower and prefill {together / 1e12:.2f} TMAC")

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show what the counts imply"}
totals = {keep: (image.total, seen.total + prompt.macs(prompt.image_tokens(keep) + prompt.text)) for keep, (image, seen) in paper.items()}
gains = [totals[1.0][i] / totals[0.9][i] for i in (0, 1)]
merging = sum(layer.merge for layer in paper[0.9][0].layers) / paper[0.9][0].total
share = prompt.macs(prompt.image + prompt.text) / totals[1.0][1]
display(Markdown(
    f"At keep 0.9 the counts imply {gains[0]:.2f} for ViT-H and {gains[1]:.2f} for LLaVA-1.5, of whose work the language model does "
    f"{percent(share)}. The merge steps are {percent(merging, 2)} of the merged ViT-H. These are the first of the three numbers; the second and the "
    "third need the machine."
))
assert gains[0] > before.total / after.total, "with more tokens and layers the same ratio saves more"

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | 40 to 60 % of the FLOPs of the base models are saved (abstract). |
# | We saw | The counts agree with two independent counters. On a CPU, gains that grow with tokens, batch and model, and none for a small model or few tokens at batch 1. On a GPU, losses in the cells that were run, in eager mode and in a captured graph, with an earlier step. |
# | What could overturn this | Another processor: faster matrix products make the same steps a larger part. The fused step on a GPU, which would make most launches vanish: `make gpu` measures it, **not run**. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} The quadratic part
# :label: ex-quadratic-half
# Which part of a ViT-S block's work shrinks with the square of the tokens, and from how many tokens on is it half?
# ```
#
# ```{solution-start} ex-quadratic-half
# :class: dropdown
# ```

# %%
width = 384
n = 12 * width**2 / (2 * width)
print(f"attention: 2 N^2 C of 12 N C^2 + 2 N^2 C; half at N = 6 C = {n:.0f} tokens")

# %% [markdown]
# The two products of attention, $2 N^2 C$ of $12 N C^2 + 2 N^2 C$. They are half from $N = 6 C$ tokens on.
#
# ```{solution-end}
# ```
#
# ```{exercise} The step itself
# :label: ex-step-share
# By the counts alone, what does a merge step itself cost as a share of its block, at 197 and at 1,370 tokens?
# ```
#
# ```{solution-start} ex-step-share
# :class: dropdown
# ```

# %%
for name_, size in (("vit_small_patch16_224", 224), ("vit_small_patch14_dinov2", 518)):
    with torch.device("meta"):
        model = timm.create_model(name_, img_size=size)
    counts = pc.flops(pc.apply(model, "pitome", 0.9))
    layer = counts.layers[0]
    print(f"{counts.tokens[0]} tokens: {percent(layer.merge / layer.total, 2)} of the first block")

# %% [markdown]
# Its share grows with the number of tokens, because the cosines of all pairs are quadratic in it and most of a block is not.
#
# ```{solution-end}
# ```
#
# ```{exercise} Early steps only
# :label: ex-first-half
# A schedule may save the steps that pay least. Merge only in the first half of ViT-S's layers, twice as many tokens each, so
# that as many leave: does that cost more or less arithmetic than merging everywhere?
# ```
#
# ```{solution-start} ex-first-half
# :class: dropdown
# ```

# %%
last = after.tokens[-1]
half = pc.schedule(whole, keep=[(last / after.tokens[0]) ** (1 / 6)] * 6 + [1.0] * 6)
early = pc.flops(pc.apply(twin(whole), "pitome", half))
print(f"everywhere {after.total / 1e9:.2f} GMAC with {after.tokens[-1]} tokens left; first half {early.total / 1e9:.2f} with {early.tokens[-1]}")
assert early.total < after.total, "tokens that leave earlier are saved for longer; what it does to accuracy is another question"

# %% [markdown]
# Less: tokens that leave earlier are saved for longer. What it does to accuracy is another question.
#
# ```{solution-end}
# ```
