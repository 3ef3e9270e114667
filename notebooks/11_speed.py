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
# On the CPU of the record (two threads), merging at keep 0.9 pays for a ViT-S or larger model from 197 tokens on. PiToMe, as the paper writes it, is then
# 1.17 times as fast as the whole model at batch 1 and 1.73 times at batch 64; the multiply-accumulates imply 1.76. With 50 tokens, or with
# a ViT-Ti, it is slower at batch 1 (0.77 and 0.78). On the GPU of the record, with an earlier merge step, PiToMe was 0.14 to 0.51 times
# as fast in all five vision cells; the fused step of this package has not been timed there: **not run**.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports, and how the record is read"}
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from IPython.display import Markdown, display

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.cost.measure import measure
from pitome_core.experiments.cost.setups import PrefillShape, Setup
from pitome_core.experiments.cost.variants import Workshop, twin
from pitome_core.experiments.plots import timings
from pitome_core.experiments.plots.live.speed import MODELS, TYPES
from pitome_core.experiments.plots.timings import as_usual, load, pick
from pitome_core.experiments.records import results
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"
recorded, gpu = load("embedded/cost.json"), load("gpu/cost.json")
towers, plain = timings.whole_models(recorded), as_usual(recorded)
drawn = [cell for cell in pick(gpu, keep=0.9) if "speedup" in cell["variants"].get("pitome", {})]

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
    ("the same, one merge in three layers", "More. With ToMe it costs two digits in a hundred (below).",
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
few = [cell for cell in shown if cell["dtype"] == "float32" and cell["size"] in (112, 224) and (cell["batch"] in (1, 16) or "base_patch16_224" in cell["model"])]
timings.waterfall(few, [timings.name(cell).replace(", fp32", "") for cell in few])
plt.show()

# %% tags=["hide-input"]
table = np.array([timings.parts(cell) for cell in shown])
most = [timings.PARTS[1:][i] for i in table[:, 1:].argmax(axis=1)]
counted = {label: most.count(label) for label in timings.PARTS[1:]}
free = [cell["variants"]["free"]["efficiency"] for cell in pick(plain, keep=0.9)]
kept = [cell["variants"]["pitome"]["of_free"] for cell in pick(plain, keep=0.9)]
nearer = sum(cell["variants"]["tome"]["speedup"][1] > cell["variants"]["pitome"]["speedup"][1] for cell in shown)
display(Markdown(
    f"Over all {len(shown)} cells at keep 0.9 the free merge reaches {percent(median(free))} of the implied speed-up in the median ({percent(min(free))} at least), and "
    f"PiToMe {percent(median(kept))} of what the free merge reaches ({percent(min(kept))} to {percent(max(kept))}). The largest loss is "
    + ", ".join(f"*{label}* in {n} cell{'s' if n > 1 else ''}" for label, n in counted.items() if n)
    + f". The merge steps take {percent(table[:, 2].min(), 1)} to {percent(table[:, 2].max(), 1)} of the whole model's time. ToMe is faster than PiToMe in {nearer} cells. "
    "(A part is the difference of two medians. A part below zero is not drawn, so that bar is too long.)"
))

# %% [markdown]
# [The record: speed](record_speed.ipynb) has every cell: its three numbers, the parts of its time, the run that measured it.

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
# tokens the squares rule, and PiToMe's four times as many cosines show. [The record: speed](record_speed.ipynb) has the step alone, its
# operators before and after this package reworked it, what the rework taught, and the targets that were set for it.

# %% [markdown]
# ## Fewer operators, fewer steps
#
# Two things help where a step's fixed price is too high. `pc.apply(..., compile_step=True)` makes fewer and larger operators of a step: it
# takes seconds at the first call, needs a C++ compiler, and changes plans in near-ties only. (The whole model through the compiler: **not run** on the
# CPU.) `every=3` merges in one layer of three and removes as many tokens as three would. With ToMe that costs two digits in a hundred at keep 0.9, and 41 at keep 0.8
# ({ref}`figure <fig-vision-steps>`). [The record: speed](record_speed.ipynb) has all
# cells, and what else was tried: number types, rounded token counts, attention that does not count sizes.

# %% tags=["hide-input"]
gains = {}
for changed in pick(towers, model="vit_small_patch16_224", batch=1, dtype="float32", keep=0.9, size=224):
    manner = {"step": "compiled steps"}.get(changed["mode"], f"every {changed['every']} layers" if changed["every"] > 1 else "as usual")
    gains[manner] = changed["variants"]["pitome"]["speedup"][1]
digits = results.load("steps-digits")
lost = [digits.difference(f"tome@{keep}/every3", f"tome@{keep}", "correct") for keep in (0.9, 0.8)]
assert [round(100 * one.mean) for one in lost] == [-2, -41] and lost[0].side == -1
display(Markdown("A ViT-S at batch 1: " + ", ".join(f"{manner} {value:.2f}" for manner, value in gains.items()) + " times as fast as the whole model with PiToMe. *Recorded on a CPU.*"))

# %% [markdown]
# ## On a GPU
#
# There a new cost enters: every small operator has to be launched. In *eager* mode the processor that launches is the bottleneck of a small
# model. A captured CUDA *graph* takes launches out; in the cells below merging was still slower. They are of an earlier step of many
# small kernels. With `fused=True` the step is five kernels; its speed is **not run**.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed-up over the whole model on a GPU at keep 0.9: implied by the counts (hollow), free merge (grey bar), ToMe and PiToMe. Left of the line at 1 merging costs time: do not merge there. *Recorded; device, date and commit in [The record: speed](record_speed.ipynb).*", "name": "fig-cost-gpu"}, "image": {"alt": "Horizontal bars for the free merge on a GPU, with marks for the implied speed-up and for both methods; in eager mode the marks lie far left of the line at one."}}
words = [f"{MODELS.get(cell['model'], cell['model'])}, batch {cell['batch']}, {TYPES[cell['dtype']]}, {cell['mode']}" for cell in drawn]
timings.three_numbers(drawn, words, quartiles=False)
if gpu:  # what the first screen says
    on_gpu = [cell["variants"]["pitome"]["speedup"][1] for cell in drawn]
    assert len(on_gpu) == 5 and f"{min(on_gpu):.2f} {max(on_gpu):.2f}" == "0.14 0.51"
plt.show()

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
