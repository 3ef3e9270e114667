# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The record: speed
#
# *The recorded timings of merging: all cells, tables and profiles of operators. The short version is in [Speed](11_speed.ipynb).*
#
# **Found.** A *cell* is one model at one batch, number type and keep ratio. On the CPU of the record, at keep 0.9, PiToMe reaches 45 to 101 %
# of the speed-up that the multiply-accumulates imply. It is slower than the whole model in three of 37 cells without options (31 at keep 0.9, six at 0.8): ViT-S
# with 50 tokens at batch 1, in both types, and ViT-Ti at batch 1. Eighteen of the 37 miss the target that was set beforehand for this
# package's merge step; ToMe misses the same target in 14 of the eighteen. On the GPU of the record, with an earlier step, PiToMe is
# slower than the whole model in all five vision cells, and in none of the three in which memory was recorded does merging lower its
# peak. A language model behind a merged tower takes less time and less memory for its prompt.
#
# *Cells marked* recorded *come from `make bench` (a CPU, two threads) and `make gpu` (one H100), cells marked* live *from the build of
# this page. Times are not taken again, because seconds of another machine say nothing about the record. Multiply-accumulates and
# tokens are counted again in the last section.*

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
from pitome_core.experiments.cost.setups import SHAPES, STEPS
from pitome_core.experiments.cost.variants import Workshop
from pitome_core.experiments.plots import timings
from pitome_core.experiments.plots.timings import as_usual, brief, load, name, pick
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.tables import markdown

plots.use_style()
recorded, older, gpu = (load(f"{file}.json") for file in ("embedded/cost", "embedded/cost-before", "gpu/cost"))
towers, plain = timings.whole_models(recorded), as_usual(recorded)
shown = sorted(pick(plain, keep=0.9), key=lambda cell: (cell["dtype"] != "float32", cell["model"], cell["tokens"][0], cell["batch"]))
ours = code_of(measure, Workshop)


def target(cell):
    """Share of the free merge's speed-up that was aimed at."""
    return 0.85 if cell["batch"] == 1 else 0.90 if cell["dtype"] != "float32" else 0.95


def misses(cell, method="pitome"):
    """Whether a method is below the target of a cell."""
    return cell["variants"][method]["of_free"] < target(cell)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed-up over the whole model at keep 0.9 in every layer (*S/224, b16, fp32* is ViT-S at 224 px and batch 16 in float32): implied by the counts (hollow), free merge (grey bar), ToMe and PiToMe with quartiles. Left of the line at 1 a merged model is slower than the whole one. *Recorded on a CPU.*", "name": "fig-cost-three"}, "image": {"alt": "Horizontal bars for the free merge, one per cell, with marks for the implied speed-up to the right of the bar and for the two methods at its end."}}
timings.three_numbers(shown, list(map(brief, shown)), quartiles=True)
efficiency = [cell["variants"]["pitome"]["efficiency"] for cell in shown]
slower = [cell for cell in plain if cell["variants"]["pitome"]["speedup"][1] < 1]
short = [cell for cell in plain if misses(cell)]

# what the first lines of this page say
assert (percent(min(efficiency)), percent(max(efficiency)), len(plain)) == ("45 %", "101 %", 37)
assert sorted(map(name, slower)) == ["ViT-S, 112 px, batch 1, bf16", "ViT-S, 112 px, batch 1, fp32", "ViT-Ti, 224 px, batch 1, fp32"]
assert (len(short), sum(misses(cell, "tome") for cell in short)) == (18, 14)
plt.show()

# %% [markdown]
# ## Where the time goes
#
# *Counts* are multiply-accumulates, those of the merge included. The *free merge* drops as many tokens in each layer by a slice and decides
# nothing. [Speed](11_speed.ipynb) reads a few of these bars.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The time of the model with PiToMe at keep 0.9, as a share of the whole model's, in four parts, for every cell. A bar that passes 1 is a merge that does not pay. *Recorded on a CPU.*", "name": "fig-cost-waterfall-all"}, "image": {"alt": "Stacked horizontal bars, one per cell; cells in bfloat16 and with larger batches have hardly any time in the merge steps."}}
timings.waterfall(shown, list(map(brief, shown)))
plt.show()

# %% tags=["hide-input"]
runs = {json.dumps(cell["run"], sort_keys=True): cell["run"] for cell in recorded}
lines = [f"- {run['device']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}, torch {run['packages']['torch']}, "
         f"{run['date'][:10]}, commit {(run['commit'] or '?')[:7]}{' and later changes' if run['modified'] else ''}"
         + (f" ({run['note']})" if run.get("note") else "") + ("" if run["code"] == ours else ", an earlier state of the code")
         for run in runs.values()]
display(Markdown(
    f"{len(recorded)} cells were recorded on a CPU:\n\n" + "\n".join(dict.fromkeys(lines)) + f"\n\nAt keep 0.9 PiToMe reaches {percent(min(efficiency))} to "
    f"{percent(max(efficiency))} of the speed-up that the counts imply, the median cell {percent(median(efficiency))}. **Slower than the whole model** with "
    f"PiToMe: {'; '.join(map(name, slower))}."
))

# %% [markdown]
# ## The merge step alone
#
# A step compares all tokens with each other, so its arithmetic grows with the square of the tokens. Up to 197 tokens its price is mostly fixed.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: time of one merge step (one image, 384 channels, six heads, keep 0.9) over the number of tokens; the grey line grows with the square of the tokens. Right: PiToMe's step over ToMe's, whose similarities are a quarter; dashed: the target. *Recorded on a CPU.*", "name": "fig-cost-step"}, "image": {"alt": "Left: two rising curves on log axes that are flat for few tokens and approach a slope of two. Right: their ratio, which stays below the dashed line at five."}}
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

# %% tags=["hide-input"]
if len(count):
    ratio, growth = took["pitome"] / took["tome"], took["pitome"][-1] / took["pitome"][0]
    each = ", ".join(f"{n:,}: {value:.1f}" for n, value in zip(count, ratio, strict=True))
    text = (f"From {count[0]} to {count[-1]:,} tokens the square grows by {(count[-1] / count[0]) ** 2:,.0f}, PiToMe's step by "
            f"{growth:,.0f}. Against ToMe's step it costs {ratio.min():.1f} to {ratio.max():.1f} times as much (the target is at most 5); by "
            f"tokens: {each}. The curve is not smooth: a step alone depends on whether the memory that it asks for was used before, for both methods.")
else:
    text = "The steps were **not run**."
display(Markdown(text))

# %% [markdown]
# ## Operators, before and now
#
# What the operators inside of the steps of one forward are for, before this package reworked its step and after.

# %% tags=["hide-input"]
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
# ### Four lessons of making the step faster
#
# *Choosing* between two values by a matrix of booleans costs a CPU more than the exponentials that it
# chooses from. Equation 4 needs no choice: its upper branch is a threshold, and its lower one is $e^{\min(x, m)} / e^m - 1$,
# which is 0 above the margin; both are passes that write floats only. *Adding up all tokens* in their slots writes every token twice
# although nine in ten stay alone, so the tokens that stay are copied to their places and only those that go are added. *Fresh
# memory* costs more than the arithmetic that fills it, so above 724 tokens a CPU never builds the whole matrix of cosines:
# energies come from blocks of rows, in memory that the block before has just given back. And much of what is left is *not
# deciding*: all keys are read and normalised, all tokens are read and written. ToMe pays for this as well, which is why its step
# is not much cheaper than PiToMe's at 197 tokens.

# %% [markdown]
# ## Targets, met and missed
#
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

# %% tags=["hide-input"]
heavy, rows = [], {0.9: [], 0.8: []}
for cell in plain:
    told, most = cell["variants"], 0.08 if cell["dtype"] != "float32" else 0.03
    reached, inside = told["pitome"]["of_free"], told["pitome"]["step_share"] / told["pitome"]["speedup"][1]
    applies, mark = cell["size"] == 224, "**" if misses(cell) else ""
    over = applies and inside > most
    heavy += [cell] * over
    speeds = [f"{told['pitome']['implied']:.2f}", *(f"{told[v]['speedup'][1]:.2f}" for v in ("free", "tome", "pitome"))]
    rows[cell["keep"]].append([brief(cell), *speeds, f"{mark}{reached:.3f}{mark} ({target(cell):.2f})",
                 f"{'**' if over else ''}{percent(inside, 1)}{'**' if over else ''}{f' ({percent(most)})' if applies else ''}"])
header = ["implied", "free", "ToMe", "PiToMe", "of free (target)", "steps (target)"]
meant = [cell for cell in plain if cell["size"] in (224, 384) and any(kind in cell["model"] for kind in ("small_patch16", "base_patch16_224"))]
rounds = [cell["rounds"] for cell in plain]
tables = [markdown([f"cell, keep {keep:g}", *header], some) for keep, some in rows.items()]
display(Markdown("\n\n".join(tables) + f"\n\nSpeed-ups over the whole model; *free* is the free merge. *Steps*: their share of the whole model's time. Bold: missed. Each cell is {min(rounds)} to {max(rounds)} rounds, so that differences of up to 0.04 say nothing where they are few. {len(short)} of {len(plain)} cells are below their share of the free merge, {sum(map(misses, meant))} of the "
                 f"{len(meant)} that the targets were set for; of these at 224 px {sum(c in meant for c in heavy)} are above the share of the steps. In those {len(meant)} PiToMe is at least "
                 f"{min(c['variants']['pitome']['speedup'][1] for c in meant):.2f} times as fast as the whole model."))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What PiToMe's forward takes beyond the free merge's, by cause, as a share of that forward, in the cells that miss their target; behind the name the share of the free merge's speed-up that ToMe and PiToMe reach. *Recorded on a CPU.*", "name": "fig-cost-misses"}, "image": {"alt": "Stacked horizontal bars, one per cell that misses its target; at batch 1 small operators, the time between operators and what lies outside the steps make up most of the bar, with many tokens energies and cosines do."}}
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
    timings.stack(ax, y, found.values(), tints, found)
names = [f"{brief(c)}, {c['keep']:g}  ({c['variants']['tome']['of_free']:.2f}, {c['variants']['pitome']['of_free']:.2f})" for c in described]
ax.set_title("" if described else "no cell with a profile misses its target")
timings.finish(figure, ax, names, "share of the forward with PiToMe")
plt.show()

# %% tags=["hide-input"]
both = [cell for cell in described if misses(cell, "tome")]
largest = [max(found, key=found.get) for found in causes]
display(Markdown(
    "The largest cause: " + ", ".join(f"{cause} in {largest.count(cause)}" for cause in dict.fromkeys(largest)) + f" of {len(described)} cells. "
    f"ToMe, which decides with a quarter of the cosines and no energies, misses the same target in {len(both)} of them. (Differences of medians: "
    "a part below zero is drawn as none.)"))

# %% [markdown]
# ## Compiled steps, and fewer of them
#
# `compile_step=True` makes fewer and larger operators of a step. `every=3` merges in one layer of three, with as many tokens in the end; what it
# does to accuracy is in [The record: vision](record_vision.ipynb).

# %% tags=["hide-input"]
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

# %% [markdown]
# ## What was tried to raise the ceiling
#
# Other types, token counts and attention change what the free merge can reach. Each cell stands beside the usual one of the same shape.

# %% tags=["hide-input"]
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
# One H100, with the merge step of many small kernels that this package had then. [Speed](11_speed.ipynb) draws these speed-ups. The present step
# and the fused one are **not run** there.

# %% tags=["hide-input"]
lines = []
for run in {json.dumps(cell["run"], sort_keys=True): cell["run"] for cell in gpu}.values():
    state = "this code" if run.get("code") == ours else "**an earlier state of the code**"
    lines.append(f"- {run['device']}, torch {run['packages']['torch']}, {run['date'][:10]}, commit {(run['commit'] or '?')[:7]}: {state}")
prefill = [f"a prompt of {c['tokens'][0]} tokens against one of {c['tokens'][1]} (batch {c['batch']}): {c['variants']['merged']['speedup'][1]:.2f} "
           f"of {c['variants']['merged']['implied']:.2f} implied" for c in gpu if "merged" in c["variants"]]
drawn = [cell for cell in gpu if "pitome" in cell["variants"]]
slow = sum(cell["variants"]["pitome"]["speedup"][1] < 1 for cell in drawn)
rows = [[brief(cell), cell["mode"], f"{1e3 * cell['variants']['whole']['seconds'][1]:.2f}", f"{cell['variants']['pitome']['implied']:.2f}",
         *(f"{cell['variants'][v]['speedup'][1]:.2f}" for v in ("free", "tome", "pitome"))] for cell in drawn]
table = markdown(["cell", "mode", "whole, ms", "implied", "free merge", "ToMe", "PiToMe"], rows)
display(Markdown(
    (table + "\n\nSpeed-ups over the whole model at keep 0.9. *Recorded.*\n\n" + "\n".join(dict.fromkeys(lines)) + f"\n\nPiToMe is slower than the whole model in {slow} of {len(drawn)} cells. "
     + (f"Prefill of a language model of 7 billion weights behind a merged tower: {'; '.join(prefill)}. There the merge was done "
        "before, by the tower, and the language model only sees fewer tokens." if prefill else "")) if gpu else
    "**Not run.** `make gpu` on a machine with CUDA measures it, with nothing to download."
))
assert not gpu or (slow, len(drawn)) == (5, 5)  # what the first lines of this page say

# %% [markdown]
# ## Memory
#
# The peak of one call, above the weights and the input. It was recorded on the GPU, in eager mode; on a CPU it is **not recorded**.

# %% tags=["hide-input"]
kept = [cell for cell in gpu if "bytes_peak" in cell["variants"]["whole"]]
above = [{v: (told["bytes_peak"] - told["bytes_before"]) / 2**20 for v, told in cell["variants"].items()} for cell in kept]
LANGUAGE = "language model, prompt"
rows = [[LANGUAGE + f", b{cell['batch']}" if "merged" in taken else brief(cell), f"{cell['variants']['whole']['bytes_before'] / 2**20:,.0f}",
         *(f"{taken[v]:,.1f}" if v in taken else "" for v in ("whole", "free", "tome", "pitome", "merged"))] for cell, taken in zip(kept, above, strict=True)]
display(Markdown(markdown(["cell, MiB", "weights and input", "whole", "free merge", "ToMe", "PiToMe", "behind a merged tower"], rows)
                 + "\n\n*Recorded.* In the three vision towers the peak is not lower with merging. A likely reason is that the first block runs "
                 "on all tokens; which operator takes the peak was not measured. A language model has fewer tokens from its first layer on.") if kept else Markdown("**Not run.**"))
vision, prompts = ([taken for taken in above if name_ in taken] for name_ in ("pitome", "merged"))
assert not kept or len(vision) == 3 and all(taken["pitome"] >= taken["whole"] for taken in vision)
assert all(taken["merged"] < taken["whole"] for taken in prompts)

# %% [markdown]
# ## Does the record hold?
#
# The counts and tokens of the record are made again, from the shapes of its models, for the whole model and both methods. They
# have to be equal. *Live.*

# %% tags=["nbval-check-output"]
counted = {}
for cell in pick(plain, keep=0.9, dtype="float32", batch=1):
    shape = SHAPES.get(cell["model"])
    with torch.device("meta"):
        model = timm.create_model(shape.timm if shape else cell["model"], img_size=cell["size"])
    macs = {"whole": pc.flops(model)}
    macs |= {method: pc.flops(pc.apply(model, method, 0.9)) for method in ("tome", "pitome")}
    assert {v: count.total for v, count in macs.items()} == {v: cell["variants"][v]["macs"] for v in macs}
    assert list(macs["pitome"].tokens) == cell["tokens"]
    counted[name(cell)] = macs
for cell_name, macs in counted.items():
    implied = macs["whole"].total / macs["pitome"].total
    print(f"{cell_name}: {macs['whole'].total / 1e9:.2f} GMAC, implied {implied:.2f}")
