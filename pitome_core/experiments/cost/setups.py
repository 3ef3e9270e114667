"""What is measured: the shapes of models, and the setups whose costs are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pitome_core.schedules import keep_schedule

# The type of weights and images. With `-autocast` they stay in float32, and every forward casts them.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "bfloat16-autocast": torch.float32}
MODES = ("eager", "graph", "step", "compile")
PROPORTIONAL = {"preset": None, "on": True, "off": False}  # the argument of `pc.apply` by its name here


@dataclass(frozen=True)
class TowerShape:
    """The shape of a vision model.

    Attributes:
        timm: the name of its architecture in timm.
        arguments: keyword arguments of `timm.create_model`.
        restore: the argument of `pc.apply`.
    """

    timm: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    restore: bool = True


@dataclass(frozen=True)
class PrefillShape:
    """The shape of a language model of the Llama kind that reads a prompt with one image (by default LLaVA-1.5-7B's).

    Attributes:
        hidden, intermediate, layers, heads, vocabulary: of the language model.
        image, text: tokens of the prompt when nothing is merged.
        tower_layers: layers of the vision tower; its features are the output of the last layer but one.
    """

    hidden: int = 4096
    intermediate: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32064
    image: int = 576
    text: int = 64
    tower_layers: int = 24

    def image_tokens(self, keep: float) -> int:
        """Image tokens that leave a tower merged at `keep`."""
        return keep_schedule(self.image, keep, self.tower_layers).tokens[self.tower_layers - 1]

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of a prompt of that many tokens.

        They are all linear maps, causal attention (each token with itself and the tokens before it), and the
        vocabulary for the last token.
        """
        linear = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        attention = tokens * (tokens + 1) * self.hidden  # queries times keys, and weights times values
        return self.layers * (tokens * linear + attention) + self.hidden * self.vocabulary


@dataclass(frozen=True)
class StepShape:
    """The shape of one merge step with no model around it: from the keys of a layer to merged tokens and sizes.

    Attributes:
        tokens: patch tokens, N; one class token stands in front of them.
        channels, heads: of the layer (by default ViT-S's).
    """

    tokens: int
    channels: int = 384
    heads: int = 6


# Any other name is an architecture of timm. MAE's classifiers average the patches. LLaVA-1.5 reads the output of block
# 23 of 24, has no head, and takes merged tokens as they are.
SHAPES: dict[str, TowerShape | PrefillShape] = {
    "deit_s": TowerShape("deit_small_patch16_224"),
    "vit_l_mae": TowerShape("vit_large_patch16_224", {"global_pool": "avg"}),
    "vit_h_mae": TowerShape("vit_huge_patch14_224", {"global_pool": "avg"}),
    "clip_l_336": TowerShape("vit_large_patch14_clip_336"),
    "llava15_tower": TowerShape(
        "vit_large_patch14_clip_336", {"depth": 23, "num_classes": 0, "global_pool": ""}, restore=False
    ),
    "llama_7b_prefill": PrefillShape(),
}
# ViT-S without a class token has 196 tokens in place of 197.
EVEN = {"vit_small_without_class": TowerShape("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"})}
STEPS = {f"step_{tokens}": StepShape(tokens) for tokens in (64, 128, 256, 512, 1024, 2048, 4096)}


@dataclass(frozen=True)
class Setup:
    """One model at one batch size, dtype and keep ratio. The record keeps one cell for each setup.

    Attributes:
        model: a name in `SHAPES`, `EVEN` or `STEPS`, or an architecture of timm.
        batch: images (prompts) in a call.
        dtype: a name in `DTYPES`.
        keep: share of the patch tokens kept per layer.
        mode: `eager`, `graph` (a captured CUDA graph), `step` (compiled merge steps) or `compile` (torch.compile).
        proportional: `preset`, `on` or `off`, for all methods.
        size: side of the image in pixels; None = the architecture's own.
        multiple: every layer that merges leaves a multiple of this number of tokens, the prefix included.
        every: one layer in so many merges. It keeps `keep ** every` of its tokens, rounded once: one or two fewer than
            that many layers would leave, which is what `pc.apply(every=)` leaves.
    """

    model: str
    batch: int
    dtype: str
    keep: float
    mode: str = "eager"
    proportional: str = "preset"
    size: int | None = None
    multiple: int = 1
    every: int = 1

    @property
    def key(self) -> str:
        """The name of its cell in the record, e.g. ``deit_s, batch 16, bfloat16, keep 0.9, eager``."""
        parts = [self.model, f"batch {self.batch}", self.dtype, f"keep {self.keep:g}", self.mode]
        parts += [f"proportional {self.proportional}"] if self.proportional != "preset" else []
        parts += [f"{self.size} px"] if self.size else []
        parts += [f"multiples of {self.multiple}"] if self.multiple > 1 else []
        parts += [f"every {self.every} layers"] if self.every > 1 else []
        return ", ".join(parts)

    def describe(self) -> dict[str, Any]:
        """Its fields as the record has them; the model says its size itself."""
        return {name: value for name, value in asdict(self).items() if name != "size"}


def _grid(
    model: str, batches: Iterable[int], keeps: Iterable[float], dtypes: Iterable[str] = ("bfloat16",), **fields: Any
) -> list[Setup]:
    return [
        Setup(model, batch, dtype, keep, **fields) for dtype, batch, keep in itertools.product(dtypes, batches, keeps)
    ]


def gpu_setups() -> list[Setup]:
    """The setups of `make gpu`: first the most important ones, then the grid.

    A lent GPU may be taken back before the grid is measured. In both parts the setups of one model and dtype follow
    one another, so that each model is built once.
    """
    important = [
        *(Setup("deit_s", batch, "bfloat16", 0.9, mode) for batch in (1, 64) for mode in ("eager", "graph")),
        *(Setup("vit_l_mae", batch, "bfloat16", 0.9, mode) for batch in (1, 64) for mode in ("eager", "graph")),
        Setup("llava15_tower", 16, "bfloat16", 0.9),
        *(Setup("clip_l_336", 64, "bfloat16", 0.9, mode) for mode in ("eager", "graph")),
        *(Setup("vit_h_mae", 64, "bfloat16", 0.9, mode) for mode in ("eager", "graph")),
        Setup("llama_7b_prefill", 16, "bfloat16", 0.9),
    ]
    grid = [
        *_grid("deit_s", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("deit_s", (16,), (0.9,), mode="graph"),
        *_grid("deit_s", (64,), (0.9,), ("float32",)),
        *_grid("vit_l_mae", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("vit_l_mae", (16, 64), (0.975,)),
        *_grid("vit_l_mae", (1, 16, 64, 256), (0.9,), proportional="off"),
        *_grid("vit_l_mae", (16,), (0.9,), mode="graph"),
        *_grid("vit_l_mae", (16, 64), (0.9,), ("float32",)),
        *_grid("vit_h_mae", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("clip_l_336", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("clip_l_336", (1, 16), (0.9,), mode="graph"),
        *_grid("llava15_tower", (1, 4, 16, 64), (0.95, 0.9, 0.85)),
        *_grid("llama_7b_prefill", (1, 4, 16), (0.95, 0.9, 0.85)),
    ]
    return list(dict.fromkeys([*important, *grid]))


def cpu_setups() -> list[Setup]:
    """The setups of `make bench`: first those that have targets, then a map of ViT-S over tokens and batch sizes."""
    tiny, small, base = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
    clip, dino = "vit_base_patch16_clip_224", "vit_small_patch14_dinov2"  # DINOv2 at 518 px
    one_type, both_types = ("float32",), ("float32", "bfloat16")
    return [
        *_grid(small, (16, 1), (0.9,), both_types),
        *_grid(small, (4,), (0.9,), both_types, size=384),
        *_grid(small, (16, 1), (0.9,), both_types, mode="step"),
        *_grid(small, (4,), (0.9,), both_types, size=384, mode="step"),
        *(Setup(name, 1, "float32", 0.9) for name in STEPS),
        *_grid(small, (1, 16), (0.9,), one_type, size=112),
        *_grid(small, (1,), (0.9,), one_type, size=112, mode="step"),
        *_grid(small, (1,), (0.9,), one_type, size=384),
        *_grid(dino, (1,), (0.9,), one_type),
        *_grid(tiny, (1, 16), (0.9,), one_type),
        *_grid(tiny, (1, 16), (0.9,), one_type, mode="step"),
        *_grid(base, (8,), (0.9,), both_types),
        *_grid(clip, (8,), (0.9,), one_type),
        *_grid(base, (2,), (0.9,), both_types, size=384),
        *_grid(small, (16,), (0.8,), both_types),
        *_grid(small, (4,), (0.8,), both_types, size=384),
        *_grid(base, (8,), (0.8,), both_types),
        *_grid(small, (4, 64), (0.9,), one_type, size=112),
        *_grid(small, (4, 64), (0.9,), one_type),
        *_grid(small, (16,), (0.9,), one_type, size=384),
        *_grid(dino, (4,), (0.9,), one_type),
        *_grid(small, (1, 16), (0.9,), size=112),
        *_grid(dino, (1,), (0.9,)),
        *_grid(small, (16,), (0.9,), both_types, proportional="off"),
        *_grid(small, (4,), (0.9,), size=384, proportional="off"),
        *_grid(small, (16,), (0.9,), multiple=8),
        *_grid(small, (16,), (0.9,), multiple=16),
        *_grid(small, (4,), (0.9,), size=384, multiple=16),
        *_grid("vit_small_without_class", (16,), (0.9,), both_types),
        *_grid(small, (1,), (0.9,), one_type, every=2),
        *_grid(small, (1,), (0.9,), one_type, every=3),
        *_grid(small, (1,), (0.9,), one_type, size=112, every=3),
        *_grid(tiny, (1,), (0.9,), one_type, every=3),
        *_grid(small, (16,), (0.9,), ("bfloat16-autocast",)),
        *_grid(small, (4,), (0.9,), ("bfloat16-autocast",), size=384),
        *_grid(tiny, (16,), (0.9,)),
        *_grid(clip, (8,), (0.9,)),
        *_grid(tiny, (4,), (0.9,), one_type),
        *_grid(tiny, (4,), (0.9,), one_type, mode="compile"),
    ]
