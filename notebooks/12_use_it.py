# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Use it
#
# Begin with ToMe {cite}`bolya2023tome` at keep 0.9, with attention that counts sizes. On a CPU it pays for a ViT-S or larger at 224 pixels
# and more. With few tokens or a tiny model at batch 1, and in the GPU cells on record, merging is slower than the whole model.
# `pc.diagnose` asks your own model and pictures.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments,open-clip,recipes,transformers] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the imports, and how the records are read"}
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import timm
import torch
import transformers
from IPython.display import Markdown, display
from PIL import Image
from torch import nn

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments import quality as measured_tasks
from pitome_core.experiments.data import scenes as pictures_of
from pitome_core.experiments.models import vit
from pitome_core.experiments.records import results
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.tables import markdown, unbroken
from pitome_core.experiments.runs import timings
from pitome_core.experiments.settings import profile

plots.use_style()
quick = profile() == "smoke"
folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)

on_cpu, on_gpu = (timings.load(results.folder() / kind / "cost.json", "cost").values() for kind in ("embedded", "gpu"))


def measured(cells, **wanted):
    """Speed-ups of PiToMe and ToMe, smallest and largest, over those of the recorded cells that have these fields."""
    some = [cell["variants"] for cell in cells if all(cell.get(name) == value for name, value in wanted.items())
            and "pitome" in cell.get("variants", {}) and "free" in cell["variants"]]
    speeds = [variants[method]["speedup"][1] for variants in some for method in ("pitome", "tome")]
    return (min(speeds), max(speeds), len(some)) if some else None


def said(found):
    return "not run" if found is None else f"{found[0]:.2f} to {found[1]:.2f} ({found[2]} cell{'s' if found[2] > 1 else ''})"


fewer = results.load("steps-digits").difference("tome@0.9/every3", "tome@0.9", "correct")
usual = {"mode": "eager", "keep": 0.9, "proportional": "preset", "every": 1, "multiple": 1}
small, base, tiny = "vit_small_patch16_224", "vit_base_patch16_224", "vit_tiny_patch16_224"
rows = [
    ("CPU, ViT-S or larger, batch 4 or more", "merge",
     [measured(on_cpu, model=model, batch=batch, size=224, **usual)
      for model, batch in ((small, 4), (small, 16), (small, 64), (base, 8))]),
    ("CPU, ViT-S, batch 1, 224 px", "merge; `every=3` is faster still",
     [measured(on_cpu, model=small, batch=1, size=224, **usual)]),
    ("the same with `every=3`", f"as many tokens go (2 more in these cells); costs {-100 * fewer.mean:.0f} digits in a hundred, with ToMe",
     [measured(on_cpu, model=small, batch=1, size=224, **{**usual, "every": 3})]),
    ("CPU, batch 1, a tiny model or 112 px", "do not merge in every layer",
     [measured(on_cpu, model=tiny, batch=1, **usual),
      measured(on_cpu, model=small, batch=1, size=112, **usual)]),
    ("CPU, ViT-S at 384 px and more", "merge: the longer the input, the more it saves",
     [measured(on_cpu, model=small, size=384, **usual), measured(on_cpu, model="vit_small_patch14_dinov2", size=518, **usual)]),
    ("GPU (one H100, an earlier merge step)", "measure first: it was slower than the whole model in these cells",
     [measured(on_gpu, keep=0.9, proportional="preset")]),
    ("CPU, batch 4 or more, a tiny model or 112 px", "merge",
     [measured(on_cpu, model=tiny, batch=batch, **usual) for batch in (4, 16)]
     + [measured(on_cpu, model=small, batch=batch, size=112, **usual) for batch in (4, 16, 64)]),
]


def together(parts):
    parts = [part for part in parts if part]
    return (min(p[0] for p in parts), max(p[1] for p in parts), sum(p[2] for p in parts)) if parts else None


digits, scenes = results.load("law-digits"), results.load("law-scenes")
quality = digits.difference("pitome@0.9", "tome@0.9", "correct"), scenes.difference("pitome@0.9", "tome@0.9", "auc")
gated = digits.difference("gate-2-hidden@0.9/off", "tome-hidden@0.9/off", "correct")
slow = [together(rows[i][2]) for i in (3, 5)]
assert slow[1][1] < 1 and together(rows[4][2])[0] > 1
assert together(rows[0][2])[0] > 1.2 and together(rows[1][2])[0] > 1 and all(part[0] < 1 for part in slow)
assert together(rows[2][2])[0] > together(rows[1][2])[0]
assert quality[0].side < 0 == quality[1].side < gated.side

# %% tags=["hide-input"] mystnb={"figure": {"caption": "What to do. Speed-ups over the whole model, smallest and largest of PiToMe and ToMe, keep 0.9; changes of accuracy with 95 % intervals, one backbone. *Drawn from recorded runs.*", "name": "fig-use-decision"}, "image": {"alt": "A decision tree. On a GPU: measure first. On a CPU: with few tokens or a tiny model at batch 1 do not merge in every layer, otherwise merge; with attention that counts sizes by ToMe, else by PiToMe on hidden states with gate 2."}}
def box(at, text, colour="0.93"):
    """A box of the tree, its middle at a place."""
    ax.text(*at, text, ha="center", va="center", fontsize=9, linespacing=1.35,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "0.55"})


def branch(start, end, word):
    """A line between two boxes, and the answer that leads along it."""
    ax.plot(*zip(start, end, strict=True), color="0.55", linewidth=1.2, zorder=0)
    ax.text(*((a + b) / 2 for a, b in zip(start, end, strict=True)), word, ha="center", va="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def times(*numbers):
    """Speed-ups of some rows of the table."""
    low, high, _ = together([part for number in numbers for part in rows[number][2]])
    return f"{low:.2f} to {high:.2f}"


yes, no, ask = "#d9ecd9", "#f6dcd0", "#fdf2cf"
figure, ax = plt.subplots(figsize=(7, 5.6))
device, size, kind = (6.2, 9.4), (3.1, 7.6), (5.2, 3.0)
pays, little, gpu_box, tome, gate = (3.6, 4.9), (0.9, 4.9), (9.2, 7.6), (2.6, 0.8), (8.4, 0.8)
branch(device, size, "CPU")
branch(device, gpu_box, "GPU")
branch(size, pays, "no")
branch(size, little, "yes")
branch(pays, kind, "method")
branch(kind, tome, "yes")
branch(kind, gate, "no")
box(device, "Where does it run?", ask)
box(size, "Batch 1, with 50 tokens\nor a tiny model?", ask)
box(gpu_box, f"Slower on one H100: {times(5)}\ntimes as fast, with an earlier step.\nMeasure. Fused step: not run", no)
box(little, f"Do not merge in every\nlayer: {times(3)}\ntimes as fast", no)
box(pays, f"Merge: {times(0, 1, 4, 6)}\ntimes as fast", yes)
box(kind, "Can attention count sizes?", ask)
box(tome, f"ToMe, keep 0.9.\nPiToMe in its place: {quality[0]}\non digits", yes)
box(gate, f"PiToMe on hidden states, gate 2:\n{gated}\non digits, against ToMe", yes)
ax.set(xlim=(-0.6, 11), ylim=(0, 10))
ax.set_axis_off()
plt.show()

# %% [markdown]
# If you are unsure, start at keep 0.95 and lower it as long as your task stands it. For a text model, merge in the first layers; for a LLaVA
# see [In which order does a language model read?](10_llava.ipynb). Why the choice of method depends on whether attention counts sizes: [When energy helps](09_when_energy_helps.ipynb).
# What costs time: [Speed](11_speed.ipynb). Another model is another question: try both methods on your own pictures.
# Attention can count sizes wherever this package puts it in (`proportional=True`, the default of ToMe here); where a kernel or a server takes no
# mask, it cannot.
#
# What the merge itself costs with ToMe, against the whole model: under one point of AUC on objects and nothing found on digits at keep 0.9, five reviews in a
# hundred at keep 0.8, and *fourteen questions in a hundred* for a small LLaVA. Behind a language model begin at keep 0.95; at 0.9 try PiToMe on hidden
# states (`metric="hidden"`), which keeps three answers in a hundred more.

# %% tags=["hide-input"]
lost = {task.asked: (task.against(f"tome@{task.keep:g}", "whole"), task) for task in measured_tasks.tasks().values()}
display(Markdown(markdown(["ToMe minus the whole model", "unit", "keep", "difference", "the whole model has"],
                          [[asked, task.unit, f"{task.keep:g}", unbroken(one), f"{task.whole:.{task.digits}f}"] for asked, (one, task) in lost.items()])
                 + "\n\n*Recorded, with 95 % intervals.*"))
objects, read, reviews, _, asked = (one for one, _ in lost.values())
once_more = results.load("vqa-3-replication")
assert round(100 * once_more.difference("pitome-hidden@0.9", "tome@0.9", "correct").mean) == 3
assert -0.01 < objects.mean < 0 == read.side and [round(-100 * one.mean) for one in (reviews, asked)] == [5, 14]

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the speed-ups by device and size"}
lines = ["| where | what to do | speed-up, PiToMe and ToMe |", "|---|---|---|"]
lines += [f"| {where} | {advice} | {said(together(parts))} |" for where, advice, parts in rows]
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Ask your own model
#
# `pc.diagnose` runs the whole model and a small grid of merged ones on your own pictures. It counts what each setting saves, times it on your
# device, measures how near its output stays to the whole model's, and recommends a setting, or says why not. In a shell:
# `pitome diagnose deit_small_patch16_224 pictures/ --html report.html`. The times below are of the one run that built this page, perhaps beside other work.

# %%
made = pictures_of.scenes(6 if quick else 36, split="dev")
backbone = vit.saliency_model(224).backbone
keeps, seconds = ((0.9,), 0) if quick else ((0.95, 0.9, 0.8), 5)
diagnosis = pc.diagnose(backbone, made.images, keeps=keeps, seconds=seconds)
display(Markdown(diagnosis.reason))

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the whole diagnosis: every setting and every layer"}
diagnosis

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: what stays against what it costs, for the ViT-S/14 of this book on scenes of the dev split; the ring is the recommended setting, if there is one. Right: a picture and its tokens after the fourth layer, with PiToMe and with ToMe, keep 0.9, each in the mean colour of its patches; hatched: kept out of the merge by the energy. Emoji: OpenMoji, CC BY-SA 4.0, as this figure ([credits](../book/credits.md)). *Live.*", "name": "fig-use-diagnosis"}, "image": {"alt": "Left: two lines, likeness over the share of FLOPs; ToMe stays higher than PiToMe as the share falls. Right: a pasted drawing on a photograph, and the same picture in patches of even colour, larger where the background is even."}}
figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.9), width_ratios=[1.3, 1, 1, 1])
diagnosis.plot(axes[0])
picture = (made.images[0] - made.images[0].amin()) / (made.images[0].amax() - made.images[0].amin())
axes[1].imshow(picture.permute(1, 2, 0))
for ax, (method, label) in zip(axes[2:], (("pitome", "PiToMe"), ("tome", "ToMe")), strict=True):
    with torch.no_grad(), pc.patched(backbone, method, keep=0.9), pc.record(backbone) as trace:
        backbone(made.images[:1])
    ax.imshow(pc.token_map(trace, picture, layer=3))
    ax.set_title(f"{label}: {trace.layers[3].plan.num_tokens} tokens", fontsize=9)
for ax in axes[1:]:
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Recipes
#
# Small models with random weights stand in for yours. What each option means stands in [the API](../book/api.md), which models are known
# in [Supported models](../book/supported_models.md).

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the small models"}
model = timm.create_model("deit_tiny_patch16_224", img_size=96, depth=4).eval()
images = torch.randn(2, 3, 96, 96)
clip = open_clip.CLIP(
    32, vision_cfg={"image_size": 64, "layers": 3, "width": 64, "patch_size": 8}, text_cfg={"layers": 2, "width": 32, "heads": 2}
).eval()
pictures, texts = torch.randn(2, 3, 64, 64), open_clip.tokenize(["a cat", "a dog", "a house"])
small_vit = transformers.ViTForImageClassification(transformers.ViTConfig(
    image_size=64, patch_size=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, num_labels=5
)).eval()
processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64})
photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
llava = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(image_size=64, patch_size=8, **sizes),
    text_config=transformers.LlamaConfig(vocab_size=60, num_key_value_heads=2, **sizes), image_token_id=16,
)).eval()


def tiny_vit(depth=3, num_classes=5, **options):
    """A small ViT of timm for 96 px."""
    return timm.create_model("vit_tiny_patch16_224", img_size=96, depth=depth, num_classes=num_classes, **options)

# %% [markdown]
# ### A timm classifier
#
# `keep` is the share of the tokens that each layer keeps. `pc.patched` merges inside a block only; `pc.apply` until `pc.remove`. A budget in
# place of a ratio: `pc.schedule`. Fewer merge steps: `every=3`, at keep 0.9 or more.

# %% tags=["nbval-check-output"]
with torch.no_grad(), pc.patched(model, "tome", keep=0.9), pc.record(model) as trace:
    logits = model(images)
print("patches by layer", [layer.plan.num_tokens for layer in trace.layers])
whole = pc.flops(model).total
pc.apply(model, "pitome", keep=pc.schedule(model, flops=0.6))
print(f"{percent(pc.flops(model).total / whole)} of the work")

# %% [markdown]
# ### open_clip: image features and zero-shot
#
# `encode_image` of open_clip {cite}`ilharco2021openclip` merges; texts and the scale stay as they are. For both towers: `towers="both"`.

# %% tags=["nbval-check-output"]
pc.apply(clip, "tome", keep=0.9)
with torch.no_grad():
    picture, text = clip.encode_image(pictures, normalize=True), clip.encode_text(texts, normalize=True)
print("zero-shot", tuple((100 * picture @ text.T).softmax(dim=-1).shape))

# %% [markdown]
# ### A transformers model in its pipeline
#
# Patch the model and hand it to the pipeline; images are prepared as ever.

# %% tags=["nbval-check-output"]
pc.apply(small_vit, "tome", keep=0.9)
classify = transformers.pipeline("image-classification", model=small_vit, image_processor=processor, device="cpu")
print(len(classify(photograph)), "labels with scores")

# %% [markdown]
# ### A dense head: segmentation
#
# With `restore=True`, the default, every token output has a token for every patch again, each a copy of what its patch merged into. A head
# on the grid of patches needs no change; patches of one token get one prediction. What that costs a segmentation was **not run**.

# %% tags=["nbval-check-output"]
encoder, segment = tiny_vit(4, 0).eval(), nn.Conv2d(192, 7, kernel_size=1)  # seven classes
pc.apply(encoder, "tome", keep=0.9)
with torch.no_grad():
    tokens = encoder.forward_features(images)[:, encoder.num_prefix_tokens :]  # (2, 36, 192), on all patches
    grid = segment(tokens.transpose(1, 2).unflatten(2, (6, 6)))
    maps = nn.functional.interpolate(grid, size=images.shape[2:], mode="bilinear")
print("a class for every pixel:", tuple(maps.shape))

# %% [markdown]
# ### A LLaVA: fewer tokens into the language model
#
# Here, in a LLaVA {cite}`liu2024llava15`, the merged tokens themselves are what one wants: `restore=False`, which is required. A prompt
# needs as many image placeholders as the tower leaves. `generate` reads the tokens in raster order, at positions without gaps. A language model may
# answer better with each token at its place on the grid: [In which order does a language model read?](10_llava.ipynb) has both, and
# `experiments/models/llava_answers.py` the code.

# %% tags=["nbval-check-output"]
from pitome_core.families.hf_llava import expand_placeholders, image_token_count

whole_count = image_token_count(llava)
pc.apply(llava, "tome", keep=0.8, restore=False)
print("image tokens:", whole_count, "of the whole model, merged", image_token_count(llava))
ids = expand_placeholders(torch.tensor([[1, 16, 5, 7]]), 16, image_token_count(llava))  # 16 is the placeholder
answer = llava.generate(
    input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False
)
print("new tokens:", answer.shape[1] - ids.shape[1])

# %% [markdown]
# ### Fine-tuning, LoRA, more than one device
#
# Gradients flow through merges; the choice of pairs has none. Train as ever. For LoRA {cite}`hu2022lora` by peft
# {cite}`mangrulkar2022peft` apply first, then wrap; `pc` functions take the model inside the wrapper. DDP and accelerate wrap a merged
# model like any other.

# %% tags=["nbval-check-output"]
trained = pc.apply(tiny_vit(), "pitome", keep=0.9)
optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
loss = nn.functional.cross_entropy(trained(images), torch.tensor([0, 3]))
loss.backward()
optimizer.step()
print("all weights have gradients:", all(p.grad is not None for p in trained.parameters()))

# %% tags=["hide-cell", "nbval-check-output"] mystnb={"code_prompt_show": "Show LoRA by peft, eight steps of training, and accelerate"}
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

tuned = get_peft_model(pc.apply(tiny_vit(), "tome", keep=0.9), LoraConfig(r=4, target_modules=["qkv", "proj"]))
tuned(images).sum().backward()
adapted = [name for name, p in tuned.named_parameters() if p.grad is not None]
print("only adapters are trained:", all("lora" in name for name in adapted), "; settings inside:", pc.settings(tuned.get_base_model())["keep"])

losses = [loss.item()]
for _ in range(7):
    loss = nn.functional.cross_entropy(trained(images), torch.tensor([0, 3]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("the loss falls:", losses[-1] < losses[0])

accelerator = Accelerator(cpu=True)
parallel = pc.apply(tiny_vit(2), "tome", keep=0.9)
parallel, optimizer = accelerator.prepare(parallel, torch.optim.AdamW(parallel.parameters()))
accelerator.backward(parallel(images.to(accelerator.device)).sum())
optimizer.step()
print("a step was taken; merged by", pc.settings(accelerator.unwrap_model(parallel))["method"])

# %% [markdown]
# ### ONNX, and onnxruntime
#
# Apply, then export. The graph needs nothing of this package; [Export](../book/export.md) has more.

# %% tags=["nbval-check-output"]
import onnxruntime

exported = pc.apply(timm.create_model("deit_tiny_patch16_224", img_size=64, depth=2).eval(), "tome", keep=0.8)
torch.onnx.export(exported, (pictures,), folder / "merged.onnx", dynamo=True, verbose=False)
session = onnxruntime.InferenceSession(folder / "merged.onnx")
(answers,) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
with torch.no_grad():
    print("onnxruntime agrees:", np.allclose(answers, exported(pictures), atol=1e-4))

# %% [markdown]
# ### Save it, and bring it back
#
# Weights are saved as ever and hold nothing of the merging. Its settings are plain data.

# %% tags=["nbval-check-output"]
saved, again = pc.apply(tiny_vit().eval(), "pitome", keep=0.9), tiny_vit().eval()
torch.save(saved.state_dict(), folder / "weights.pt")
(folder / "merging.json").write_text(json.dumps(pc.settings(saved)))

again.load_state_dict(torch.load(folder / "weights.pt"))
pc.apply(again, **json.loads((folder / "merging.json").read_text()))
with torch.no_grad():
    print("same output:", torch.equal(saved(images), again(images)))

# %% [markdown]
# ### Your own method
#
# A function from a metric to a plan. Once registered it runs in every model that is supported.

# %% tags=["nbval-check-output"]
def plan_neighbours(metric, remove):
    """Merge the most similar neighbours in reading order: token 2i + 1 goes into token 2i."""
    unit = nn.functional.normalize(metric, dim=-1)
    pairs = metric.shape[1] // 2
    alike = (unit[:, 0 : 2 * pairs : 2] * unit[:, 1 : 2 * pairs : 2]).sum(dim=-1)  # (B, pairs)
    best = alike.topk(remove, dim=1).indices
    return pc.MergePlan.from_merges(2 * best + 1, 2 * best, metric.shape[1])


pc.register_method("neighbours", plan_neighbours, paper="this page", summary="neighbours in reading order")
other = tiny_vit().eval()
with torch.no_grad(), pc.patched(other, "neighbours", keep=0.8), pc.record(other) as trace:
    other(images)
print("patches by layer", [layer.plan.num_tokens for layer in trace.layers])

# %% [markdown]
# A model that is not supported: [Your own Vision Transformer](../book/own_model.md), one small file.
