# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why merge
#
# A Vision Transformer {cite}`dosovitskiy2021vit` cuts a photograph into patches and carries all of them through all of its
# layers. A patch of table costs as much as the rim of the cup, and many patches say what others say already. If each layer
# merges one token in ten, 256 tokens become 75, and 44 % of the work is gone. How much is gone follows from *how many* tokens
# merge. What is lost follows from *which* ones, and that is what this book is about.

# %% tags=["remove-cell"]
import sys

if "google.colab" in sys.modules:  # beside Colab's own torch and numpy, which stay as they are
    import subprocess

    package = "pitome-core[experiments] @ git+https://github.com/OWNER/pitome-companion@v0.1.0"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Show the imports, the model and how this figure is made", "code_prompt_hide": "Hide it", "figure": {"caption": "A photograph as the tokens see it: patches that merged have one colour and an outline. Move *keep*: all three methods have the same number of tokens, so the work falls alike. Then compare the maps. Press *Play* to watch the layers. *Live; move the sliders, click a patch.*", "name": "fig-why-maps"}, "image": {"alt": "Three token maps of a cup of coffee on a wooden table. PiToMe and ToMe merge the table into larger tokens; random merging joins patches from everywhere. Sliders for the share of tokens kept and for the layer, counters for tokens and work."}}
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

import pitome_core as pc
import pitome_core.experiments.baselines  # registers random merging and pruning
from pitome_core.experiments import plots
from pitome_core.experiments.data import photos
from pitome_core.experiments.data.pictures import preprocess, to_display
from pitome_core.experiments.models import vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.formats import percent

plots.use_style()
pixels = photos.photographs(["coffee", "flower"])  # {name: (height, width, 3) uint8}
model = vit.vit_small(img_size=224)  # DINOv2-style ViT-S/14: 12 layers, 384 channels, patches of 14 pixels
depth, channels = len(model.blocks), model.embed_dim

arms = [("PiToMe", "pitome", "pitome", {}), ("ToMe", "tome", "tome", {}), ("random", "random", "random_merge", {})]
display(plots.token_map_figure(vit.vit_small(img_size=224), pixels, {"keep": 1, "layer": 7}, arms))

# %% [markdown]
# *Random* merges tokens by lot. *ToMe* {cite}`bolya2023tome` and *PiToMe* {cite}`tran2024pitome` merge tokens that look alike; they differ in
# which look-alikes may merge. (The model is a small one of the DINOv2 family {cite}`oquab2024dinov2`, with its own weights, unchanged.)
#
# ## Tokens repeat
#
# Is there anything to merge? Inside the model every token has a *key*, the vector by which other tokens find it. For each patch
# we look for its most similar fellow, and write down the cosine of the two keys: 1 means the same direction, 0 nothing in common.

# %%
picture = preprocess([pixels["coffee"]])  # (1, 3, 224, 224)
keys = layer_keys(model, picture).keys[5][0].cpu()  # (256, 64): mean of heads
unit = keys / keys.norm(dim=-1, keepdim=True)
cosine = (unit @ unit.T).fill_diagonal_(-1)  # a patch is not its own fellow
closest = cosine.max(dim=1).values  # (256,)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The cosine of every patch to the most similar other patch, in layer 5. Bright patches have a near-copy somewhere; dark ones stand for themselves. *Live.*", "name": "fig-why-repeat"}, "image": {"alt": "Left, a cup of coffee on a wooden table. Right, the same picture in grey with a heat map: most of table and saucer are bright, spoon and front of the cup are dark."}}
shown = to_display(picture)[0]
figure, axes = plt.subplots(1, 2, figsize=(6.2, 2.9))
plots.picture(axes[0], shown, "photograph")
heat = plots.heat_map(axes[1], shown, closest.view(16, 16).numpy(), "its nearest look-alike")
figure.colorbar(heat, ax=axes[1], shrink=0.8, label="cosine")
plt.show()

# %% tags=["hide-input"]
display(Markdown(f"Half of the patches have a look-alike at a cosine of {closest.median():.2f} or more."))

# %% [markdown]
# ## Where the work goes
#
# Attention compares all pairs of tokens, and $N$ tokens have $N^2$ pairs. It is a natural guess that this is what makes a
# Transformer expensive. The count says otherwise. One block of width $C$ costs
#
# $$\underbrace{12\,N C^2}_{\text{projections and MLP}} + \underbrace{2\,N^2 C}_{\text{pairs}}$$
#
# multiply-accumulates (MACs). `pc.flops` counts them from the shapes of the layers.

# %% tags=["nbval-check-output"]
whole = pc.flops(model)
N, C = 257, channels  # 256 patches and one class token
block = whole.layers[0].total
assert block == 12 * N * C**2 + 2 * N**2 * C
print(f"whole model: {whole.total / 1e9:.2f} GMACs for {whole.tokens[0]} tokens")
pairs, rest = 2 * N**2 * C / block, 12 * N * C**2 / block
print(f"pairs: {percent(pairs)} of a block, projections and MLP: {percent(rest)}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Work of one block of this model by the number of tokens. At 224 pixels a tenth of it is pairs; pairs take over at $N = 6C$, a picture of 672 pixels. *Live, exact counts.*", "name": "fig-why-work"}, "image": {"alt": "Two stacked areas against the number of tokens: projections and MLP grow along a straight line, pairs bend upwards. Lines mark 224, 448 and 672 pixels; at 672 pixels both areas are equally high."}}
tokens = np.arange(1, 2601)
linear, square = 12 * tokens * C**2 / 1e9, 2 * tokens**2 * C / 1e9
figure, ax = plt.subplots(figsize=(6.6, 2.9))
ax.stackplot(tokens, linear, square, colors=["0.85", "0.45"])
ax.text(1250, 0.7, "projections and MLP: $12NC^2$", color="black", fontsize=9)
ax.text(1760, 5.5, "pairs: $2N^2C$", color="black", fontsize=9, ha="right")
for side in (224, 448, 672):
    n = (side // 14) ** 2 + 1
    ax.plot([n, n], [0, 12 * n * C**2 / 1e9 + 2 * n**2 * C / 1e9], color="black", linewidth=1)
    ax.text(n, 12 * n * C**2 / 1e9 + 2 * n**2 * C / 1e9 + 0.25, f"{side} px", ha="right", fontsize=9)
ax.set(xlabel="tokens", ylabel="billion MACs of a block", xlim=(0, 2600), ylim=(0, 10.5))
plt.show()

# %% [markdown]
# So half of the tokens cost about half of the work: a little less than half for large pictures, where pairs count. All layers
# share the cost evenly. Tokens that go early are therefore saved many times, and tokens that go late hardly at all. That is why
# merging removes some in *every* layer: it takes what is safe in each, and everything after it gets cheaper.

# %% tags=["nbval-check-output"]
for keep in (0.95, 0.9, 0.85, 0.8):
    with pc.patched(model, "tome", keep=keep):
        merged = pc.flops(model)
    saved = 1 - merged.total / whole.total
    print(f"keep {keep:.2f}: {merged.tokens[-1] - 1:3d} patches leave, {percent(saved)} saved")

# %% tags=["hide-cell"] mystnb={"code_prompt_show": "Show the check of the numbers on this page"}
with pc.patched(model, "pitome", keep=0.9):
    merged = pc.flops(model)
assert merged.tokens[-1] - 1 == 75 and round(100 * (1 - merged.total / whole.total)) == 44
assert round(100 * 2 * N**2 * C / block) == 10  # "a tenth of it"
assert (672 // 14) ** 2 == 6 * C  # where 12 N C^2 = 2 N^2 C

# %% [markdown]
# ## Three ways to have fewer tokens
#
# *A smaller picture* has fewer patches everywhere. It is the simplest way and a strong rival, but it spends its tokens
# evenly: the rim of the cup gets as few as the table.
#
# *Pruning* drops tokens, for instance those that the class token attends to least {cite}`liang2022evit`. What is dropped is gone. A classifier
# may not mind; a map for every patch has holes.
#
# *Merging* replaces tokens by their mean. Every patch stays somewhere, and its token knows how many it stands for. A model
# that was trained without merging can run with it, without any training.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "64 tokens from 256, in three ways. A smaller picture is equally coarse everywhere; pruning (by the attention of the class token) leaves holes, grey; merging (ToMe) makes large tokens where the picture is even and small ones elsewhere. *Live.*", "name": "fig-why-three"}, "image": {"alt": "Three panels of the same photograph: an even grid of eight by eight squares; a patchwork with most patches grey and crossed out; and regions of different size that follow the table and the cup."}}
schedule = pc.schedule(model, tokens=64)
coarse = torch.arange(64).view(8, 8).repeat_interleave(2, 0).repeat_interleave(2, 1)
found = {"smaller picture": coarse}
for title, method in (("pruning", "topk_attention"), ("merging", "tome")):
    with pc.patched(model, method, keep=schedule), pc.record(model) as trace, torch.no_grad():
        model.forward_features(picture)
    found[title] = trace.assignment[0].view(16, 16).cpu()
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9))
for ax, (title, at) in zip(axes, found.items(), strict=True):
    assert len(at[at >= 0].unique()) == 64
    plots.token_map(ax, shown, at.numpy(), title)
plt.show()

# %% [markdown]
# ## What merging cannot do
#
# Fewer MACs are not less time. Merging has to look at the tokens before it can merge them; those are small operations that count
# little and still take time. A small model on a GPU with one picture at a time mostly waits for its own instructions, and
# merging adds to them: in eager mode it was slower there than the whole model. [Speed](11_speed.ipynb) has the times.
#
# Nor does it know what you will ask. Tokens that look alike to a layer may differ in what the task needs, as two digits do in a
# few strokes. And a model that must give each patch its own answer gets the same one for all patches of a token.
#
# ## What to ask now
#
# - Which tokens can be spared? The [energy](02_energy_score.ipynb) of a token is PiToMe's answer, and [one merge](03_one_merge.ipynb) its use.
# - What protects an object from its background? [Three switches](04_gate_or_edges.ipynb) tell PiToMe from ToMe.
# - Is there a theory? The tokens form a graph, and a merge [changes its spectrum](05_spectral_distance.ipynb); there is
#   [a theorem](06_theorem.ipynb), and there are [the tokens of a real model](07_real_tokens.ipynb).
# - Does it help? [Quality](08_quality.ipynb), [when energy helps](09_when_energy_helps.ipynb),
#   [questions about pictures](10_llava.ipynb), [speed](11_speed.ipynb).
# - How do I [use it](12_use_it.ipynb), and where do [the paper and its code](../book/paper_and_code.md) differ?

# %% [markdown]
# | | |
# |---|---|
# | The paper claims | Most tokens of a Transformer repeat what others say; merging them saves 40 to 60 % of the work with small losses. |
# | We saw | The counts hold: 44 % at keep 0.9, the merging itself included. Tokens repeat in this photograph. Nothing here says what it costs in quality. |
# | What could overturn this | One model and two photographs. Pictures full of detail repeat less. |

# %% [markdown]
# ## Exercises
#
# ```{exercise} Where pairs take over
# :label: ex-why-pairs
# A block costs $12NC^2 + 2N^2C$. At how many tokens are both parts equal? How large is a picture of so many patches for this
# model, and for a wider one with $C = 1024$?
# ```
#
# ```{solution-start} ex-why-pairs
# :class: dropdown
# ```

# %%
for width in (384, 1024):
    equal = 6 * width  # 12 N C^2 = 2 N^2 C
    print(f"C = {width}: {equal} tokens, {14 * equal**0.5:.0f} x {14 * equal**0.5:.0f} pixels")

# %% [markdown]
# The wider a model, the larger the picture at which pairs matter. For most Vision Transformers at 224 pixels they do not.
#
# ```{solution-end}
# ```
#
# ```{exercise} Early or late
# :label: ex-why-early
# You may remove 128 of the 256 patches, all in one layer. Guess the share of the work that is saved if it is the first layer,
# the middle one, the last one. Then count.
# ```
#
# ```{solution-start} ex-why-early
# :class: dropdown
# ```

# %%
for at in (0, 6, 11):
    plan = pc.schedule(model, remove=[128 if i == at else 0 for i in range(depth)])
    with pc.patched(model, "tome", keep=plan):
        print(f"all in layer {at:2d}: {percent(1 - pc.flops(model).total / whole.total)} saved")

# %% [markdown]
# The first layer saves half, the last next to nothing: its own MLP. But in the first layer the tokens know little about the
# picture, so that look-alikes there may differ later. A staircase over all layers is a compromise.
#
# ```{solution-end}
# ```
