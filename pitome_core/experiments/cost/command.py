"""What merging costs and what it gains, in seconds: `python -m pitome_core.experiments cost`.

A cell is one model at one batch size, dtype and keep ratio. It holds four variants, measured in one process, taking
turns: the whole model; the same model with a *free merge* (as many tokens go in each layer, by a slice, with no choice
and no sizes), the ceiling of any merge; and the methods. The weights are random, which a clock cannot see: nothing is
downloaded. Three numbers answer "how much faster": what the multiply-accumulates imply, what the free merge reaches,
and what the method reaches.

Prefill of a language model is a cell with two variants: the prompt with all image tokens, and with those that a merged
LLaVA-1.5 tower leaves.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments import settings
from pitome_core.experiments.records import results
from pitome_core.mergers import Method, find_method, make_plan
from pitome_core.patch import ForwardState, LayerStep
from pitome_core.patching import find_patch
from pitome_core.schedules import Schedule, keep_schedule, tokens_removed

FORMAT = 1  # of the file; raise it when the layout changes
WARM_UP = 3  # calls of every variant before anything is timed: kernels are chosen and memory is taken
FEWEST = 5  # rounds, however long they take: quartiles of fewer say nothing
METHODS = ("pitome", "tome")
# Weights and images in that type; `-autocast` leaves them in float32 and casts in every forward.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "bfloat16-autocast": torch.float32}
MODES = ("eager", "graph", "step", "compile")
PROPORTIONAL = {"preset": None, "on": True, "off": False}


@dataclass(frozen=True)
class Tower:
    """The shape of a vision model.

    Attributes:
        timm: its architecture in timm.
        arguments: of `timm.create_model`.
        restore: as `pc.apply` takes it.
    """

    timm: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    restore: bool = True


@dataclass(frozen=True)
class Prefill:
    """The shape of a language model of the Llama kind that reads a prompt with one image (LLaVA-1.5-7B's by default).

    Attributes:
        hidden, intermediate, layers, heads, vocabulary: of the language model.
        image, text: tokens of the prompt when nothing is merged.
        tower_layers: layers of the vision tower; the features are those behind the last but one.
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
        """Image tokens that a tower merged at `keep` hands over."""
        return keep_schedule(self.image, keep, self.tower_layers).tokens[self.tower_layers - 1]

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of a prompt of that many tokens: all linear maps, causal attention (each token with
        those up to itself), the vocabulary for the last token."""
        linear = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        attention = tokens * (tokens + 1) * self.hidden  # queries times keys, and weights times values
        return self.layers * (tokens * linear + attention) + self.hidden * self.vocabulary


@dataclass(frozen=True)
class Step:
    """One merge step alone, with no model around it: from the keys of a layer to merged tokens and sizes.

    Attributes:
        tokens: patch tokens, N; one class token stands in front.
        channels, heads: of the layer (ViT-S's by default).
    """

    tokens: int
    channels: int = 384
    heads: int = 6


# Shapes in use; any other name is one of timm's. MAE's classifiers average the patches. LLaVA-1.5 reads what the last
# but one of 24 blocks leaves, without a head, and takes merged tokens as they are.
SHAPES: dict[str, Tower | Prefill] = {
    "deit_s": Tower("deit_small_patch16_224"),
    "vit_l_mae": Tower("vit_large_patch16_224", {"global_pool": "avg"}),
    "vit_h_mae": Tower("vit_huge_patch14_224", {"global_pool": "avg"}),
    "clip_l_336": Tower("vit_large_patch14_clip_336"),
    "llava15_tower": Tower("vit_large_patch14_clip_336", {"depth": 23, "num_classes": 0, "global_pool": ""}, False),
    "llama_7b_prefill": Prefill(),
}
# ViT-S without a class token: 196 tokens where there were 197.
EVEN = {"vit_small_without_class": Tower("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"})}
STEPS = {f"step_{tokens}": Step(tokens) for tokens in (64, 128, 256, 512, 1024, 2048, 4096)}


@dataclass(frozen=True)
class Cell:
    """What is measured together.

    Attributes:
        model: a name in `SHAPES`, or one of timm's architectures.
        batch: images (prompts) in a call.
        dtype: a name in `DTYPES`.
        keep: share of the patch tokens kept per layer.
        mode: `eager`, `graph` (a captured CUDA graph), `step` (compiled merge steps) or `compile` (torch.compile).
        proportional: `preset`, `on` or `off`, for all methods.
        size: side of the image in pixels; None = the architecture's own.
        multiple: token counts (prefix included) are rounded up to multiples of this behind every layer that merges.
        every: one layer in so many merges, keeping the power of `keep` that the layers keep together.
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
        """How the record calls it."""
        parts = [self.model, f"batch {self.batch}", self.dtype, f"keep {self.keep:g}", self.mode]
        parts += [f"proportional {self.proportional}"] if self.proportional != "preset" else []
        parts += [f"{self.size} px"] if self.size else []
        parts += [f"multiples of {self.multiple}"] if self.multiple > 1 else []
        parts += [f"every {self.every} layers"] if self.every > 1 else []
        return ", ".join(parts)


def _grid(model: str, batches: Iterable[int], keeps: Iterable[float], **fields: Any) -> list[Cell]:
    dtype = fields.pop("dtype", "bfloat16")
    return [Cell(model, batch, dtype, keep, **fields) for batch in batches for keep in keeps]


def gpu_cells() -> list[Cell]:
    """The cells of `make gpu`: first those that say most, since a lent GPU may go before the rest; then the grid. In
    both parts the cells of a model and dtype follow one another, so that each is built once."""
    telling = [
        *(Cell("deit_s", batch, "bfloat16", 0.9, mode) for batch in (1, 64) for mode in ("eager", "graph")),
        *(Cell("vit_l_mae", batch, "bfloat16", 0.9, mode) for batch in (1, 64) for mode in ("eager", "graph")),
        Cell("llava15_tower", 16, "bfloat16", 0.9),
        *(Cell("clip_l_336", 64, "bfloat16", 0.9, mode) for mode in ("eager", "graph")),
        *(Cell("vit_h_mae", 64, "bfloat16", 0.9, mode) for mode in ("eager", "graph")),
        Cell("llama_7b_prefill", 16, "bfloat16", 0.9),
    ]
    rest = [
        *_grid("deit_s", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("deit_s", (16,), (0.9,), mode="graph"),
        *_grid("deit_s", (64,), (0.9,), dtype="float32"),
        *_grid("vit_l_mae", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("vit_l_mae", (16, 64), (0.975,)),
        *_grid("vit_l_mae", (1, 16, 64, 256), (0.9,), proportional="off"),
        *_grid("vit_l_mae", (16,), (0.9,), mode="graph"),
        *_grid("vit_l_mae", (16, 64), (0.9,), dtype="float32"),
        *_grid("vit_h_mae", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("clip_l_336", (1, 16, 64, 256), (0.925, 0.9)),
        *_grid("clip_l_336", (1, 16), (0.9,), mode="graph"),
        *_grid("llava15_tower", (1, 4, 16, 64), (0.95, 0.9, 0.85)),
        *_grid("llama_7b_prefill", (1, 4, 16), (0.95, 0.9, 0.85)),
    ]
    return list(dict.fromkeys([*telling, *rest]))


def cpu_cells() -> list[Cell]:
    """The cells of `make bench`, those first that targets are set for. Map: ViT-S over tokens and batch."""
    tiny, small, base = (f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))
    clip, dino = "vit_base_patch16_clip_224", "vit_small_patch14_dinov2"  # the latter at 518 px
    types = ("float32", "bfloat16")
    return [
        *(cell for dtype in types for cell in _grid(small, (16, 1), (0.9,), dtype=dtype)),
        *(cell for dtype in types for cell in _grid(small, (4,), (0.9,), dtype=dtype, size=384)),
        *(cell for dtype in types for cell in _grid(small, (16, 1), (0.9,), dtype=dtype, mode="step")),
        *(cell for dtype in types for cell in _grid(small, (4,), (0.9,), dtype=dtype, size=384, mode="step")),
        *(Cell(name, 1, "float32", 0.9) for name in STEPS),
        *_grid(small, (1, 16), (0.9,), dtype="float32", size=112),
        *_grid(small, (1,), (0.9,), dtype="float32", size=112, mode="step"),
        *_grid(small, (1,), (0.9,), dtype="float32", size=384),
        *_grid(dino, (1,), (0.9,), dtype="float32"),
        *_grid(tiny, (1, 16), (0.9,), dtype="float32"),
        *_grid(tiny, (1, 16), (0.9,), dtype="float32", mode="step"),
        *(cell for dtype in types for cell in _grid(base, (8,), (0.9,), dtype=dtype)),
        *_grid(clip, (8,), (0.9,), dtype="float32"),
        *(cell for dtype in types for cell in _grid(base, (2,), (0.9,), dtype=dtype, size=384)),
        *(cell for dtype in types for cell in _grid(small, (16,), (0.8,), dtype=dtype)),
        *(cell for dtype in types for cell in _grid(small, (4,), (0.8,), dtype=dtype, size=384)),
        *(cell for dtype in types for cell in _grid(base, (8,), (0.8,), dtype=dtype)),
        *_grid(small, (4, 64), (0.9,), dtype="float32", size=112),
        *_grid(small, (4, 64), (0.9,), dtype="float32"),
        *_grid(small, (16,), (0.9,), dtype="float32", size=384),
        *_grid(dino, (4,), (0.9,), dtype="float32"),
        *_grid(small, (1, 16), (0.9,), size=112),
        *_grid(dino, (1,), (0.9,)),
        *(cell for dtype in types for cell in _grid(small, (16,), (0.9,), dtype=dtype, proportional="off")),
        *_grid(small, (4,), (0.9,), size=384, proportional="off"),
        *(cell for many in (8, 16) for cell in _grid(small, (16,), (0.9,), multiple=many)),
        *_grid(small, (4,), (0.9,), size=384, multiple=16),
        *(cell for dtype in types for cell in _grid("vit_small_without_class", (16,), (0.9,), dtype=dtype)),
        *_grid(small, (1,), (0.9,), dtype="float32", every=2),
        *_grid(small, (1,), (0.9,), dtype="float32", every=3),
        *_grid(small, (1,), (0.9,), dtype="float32", size=112, every=3),
        *_grid(tiny, (1,), (0.9,), dtype="float32", every=3),
        *_grid(small, (16,), (0.9,), dtype="bfloat16-autocast"),
        *_grid(small, (4,), (0.9,), dtype="bfloat16-autocast", size=384),
        *_grid(tiny, (16,), (0.9,)),
        *_grid(clip, (8,), (0.9,)),
        *_grid(tiny, (4,), (0.9,), dtype="float32"),
        *_grid(tiny, (4,), (0.9,), dtype="float32", mode="compile"),
    ]


# --- the free merge


class _FreeStep(LayerStep):
    """The step of a block whose merge is a slice."""

    def merge(self, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None = None):
        return x[:, : x.shape[1] - self.remove], None, None


class _FreeState(ForwardState):
    """A forward call in which blocks drop their last tokens: no plan, no sizes, hence no bias in attention."""

    def step(self, layer: int) -> LayerStep:
        return _FreeStep(self.patch, layer, self.remove[layer], self.prefix, self.class_token, None)


def free_merge(model: nn.Module, keep: float | Sequence[float] | Schedule, restore: bool = True) -> nn.Module:
    """Make every layer of `model` drop as many tokens as a merge at `keep` would: the last ones, by a slice between
    attention and MLP.

    What the model says is worthless; how long it takes is the ceiling of any merge to these token counts. It is no
    method of the registry, since a metric and a plan alone would cost something. `pc.remove` takes it out again.

    Raises:
        UnsupportedModelError, ValueError: as `pc.apply`.
    """
    pc.apply(model, "tome", keep, restore=restore)
    patch = find_patch(model)
    # Families ask their patch to start a forward call; everything else about one stays as it is for a method.
    object.__setattr__(patch, "start", partial(_FreeState, patch))
    return model


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules around the very same parameters and buffers: patched for itself, no memory for weights."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


# --- the clock


def stopwatch(device: torch.device) -> Callable[[Callable[[], Any], int], float]:
    """A function `(call, times) -> seconds per call`: CUDA events between synchronisations, or the CPU's clock."""
    if device.type != "cuda":
        def on_processor(call: Callable[[], Any], times: int) -> float:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return (time.perf_counter() - start) / times

        return on_processor

    def on_device(call: Callable[[], Any], times: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / times

    return on_device


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    timed: Callable[[Callable[[], Any], int], float],
    *,
    repeats: int,
    seconds: float,
    shortest: float,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time variants in turns, so that whatever drifts drifts for all of them.

    Args:
        calls: one function without arguments per variant, warmed up.
        timed: `stopwatch(device)`.
        repeats: rounds at most; in each round every variant is timed once, and each round begins with another one.
        seconds: stop earlier where the rounds would take longer than this in all, though not under `FEWEST` rounds.
        shortest: seconds that one timing lasts at least; short calls are repeated within it.

    Returns:
        Seconds per call, one entry per round, and how many calls were timed together, by variant.
    """
    once = {name: timed(call, 1) for name, call in calls.items()}
    times = {name: max(1, math.ceil(shortest / max(spent, 1e-7))) for name, spent in once.items()}
    estimate = sum(once[name] * times[name] for name in calls)
    rounds = min(repeats, max(FEWEST, int(seconds / estimate)))
    names, samples = list(calls), {name: [] for name in calls}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(timed(calls[name], times[name]))
    return samples, times


def quartiles(values: Sequence[float], digits: int = 5) -> list[float]:
    """Lower quartile, median and upper quartile, with `digits` significant digits."""
    cut = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{value:.{digits}g}") for value in cut]


def summarize(samples: Mapping[str, Sequence[float]], macs: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What a cell says of each variant, from seconds per round and multiply-accumulates per image.

    Speed-ups are ratios to the whole model in the same round, as quartiles. `implied` is the ratio of
    multiply-accumulates, `efficiency` the median speed-up over it, `of_free` the median speed-up over that of the free
    merge, and `over_free` the share of the forward that the free merge does not need.
    """
    variants: dict[str, dict[str, Any]] = {}
    for name, spent in samples.items():
        variants[name] = {"seconds": quartiles(spent), "macs": macs[name]}
        if name == "whole" or "whole" not in samples:
            continue
        speedup = quartiles([whole / one for whole, one in zip(samples["whole"], spent, strict=True)])
        implied = macs["whole"] / macs[name]
        variants[name] |= {"speedup": speedup, "implied": round(implied, 4),
                           "efficiency": round(speedup[1] / implied, 4)}
        if "free" in samples and name != "free":
            pairs = list(zip(samples["free"], spent, strict=True))
            variants[name]["of_free"] = round(statistics.median(free / one for free, one in pairs), 4)
            variants[name]["over_free"] = round(statistics.median(1 - free / one for free, one in pairs), 4)
    return variants


# --- models and their variants


def rounded(schedule: Schedule, multiple: int) -> Schedule:
    """The schedule with every token count behind a merge rounded up to a multiple (prefix included).

    Where a layer would have to lose more than half of its patch tokens for that, it loses none.
    """
    if multiple == 1:
        return schedule
    left = [schedule.tokens[0]]
    for tokens in schedule.tokens[1:]:
        now, wanted = left[-1], multiple * math.ceil(tokens / multiple)
        left.append(wanted if 0 <= now - wanted <= (now - schedule.prefix) // 2 else now)
    remove = [before - after for before, after in itertools.pairwise(left)]
    return Schedule.from_removals(left[0] - schedule.prefix, remove, schedule.prefix)


@contextmanager
def around_steps(wrapped: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """While open, every merge step runs as `wrapped(step)`, which has to call it and return what it returns."""
    merge = LayerStep.merge
    LayerStep.merge = lambda step, *arguments: wrapped(partial(merge, step, *arguments))
    try:
        yield
    finally:
        LayerStep.merge = merge


def step_share(call: Callable[[], Any], repeats: int = FEWEST) -> float:
    """Share of a merged model's forward that is spent in merge steps: the median of `repeats` calls.

    On a CPU only, where calls return when they end.
    """
    inside, shares = [], []

    def timed(step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        inside.append(time.perf_counter() - start)
        return result

    with around_steps(timed):
        for _ in range(repeats):
            inside.clear()
            start = time.perf_counter()
            call()
            shares.append(sum(inside) / (time.perf_counter() - start))
    return round(statistics.median(shares), 4)


def step_operators(call: Callable[[], Any], repeats: int = 5, most: int = 16) -> dict[str, list[float]]:
    """What the merge steps of one forward consist of: by operator its own milliseconds and calls, most time first.

    Operators beyond the first `most` are added up as `others`.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    def named(step: Callable[[], Any]) -> Any:
        with record_function("merge step"):
            return step()

    found: dict[str, list[float]] = {}

    def note(event: Any) -> None:
        for child in event.cpu_children:
            entry = found.setdefault(child.name.removeprefix("aten::"), [0.0, 0.0])
            entry[0] += child.self_cpu_time_total / 1e3 / repeats
            entry[1] += 1 / repeats
            note(child)

    with around_steps(named), profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            call()
    for event in seen.events():
        if event.name == "merge step":
            note(event)
    ranked = sorted(found.items(), key=lambda item: -item[1][0])
    rest = [sum(column) for column in zip(*(told for _, told in ranked[most:]), strict=True)]
    ranked = ranked[:most] + ([("others", rest)] if rest else [])
    return {name: [round(spent, 4), round(calls)] for name, (spent, calls) in ranked}


@dataclass(frozen=True)
class Variants:
    """What a cell runs.

    Attributes:
        calls: one function without arguments per variant.
        macs: multiply-accumulates of one image (prompt), by variant.
        about: what the record says of the model, token counts first.
    """

    calls: dict[str, Callable[[], Any]]
    macs: dict[str, int]
    about: dict[str, Any]


class Workshop:
    """Builds models, one at a time: the last one is kept, since cells follow one another model by model."""

    def __init__(self, device: torch.device, methods: Sequence[str] = METHODS,
                 shapes: Mapping[str, Any] = SHAPES | EVEN | STEPS):
        self.device, self.methods, self.shapes = device, tuple(methods), shapes
        self._built: tuple[Any, nn.Module] | None = None

    def variants(self, cell: Cell) -> Variants:
        """The variants of a cell. Raises what `timm.create_model` and `pc.apply` raise."""
        shape = self.shapes.get(cell.model, Tower(cell.model))
        if not isinstance(shape, Tower) and (cell.mode == "step", cell.every, cell.multiple) != (False, 1, 1):
            raise ValueError(f"{cell.model} has no layers that merge: leave out --mode step, --every and --multiple")
        if isinstance(shape, Prefill):
            return self._prefill(cell, shape)
        if isinstance(shape, Step):
            return self._step(cell, shape)
        return self._tower(cell, shape)

    def macs(self, cell: Cell) -> dict[str, int]:
        """Multiply-accumulates of one image (prompt) by variant, without running or loading anything: for `meta`."""
        shape = self.shapes.get(cell.model, Tower(cell.model))
        if isinstance(shape, Prefill):
            tokens = {"whole": shape.image, "merged": shape.image_tokens(cell.keep)}
            return {name: shape.macs(image + shape.text) for name, image in tokens.items()}
        return self.variants(replace(cell, batch=1)).macs

    def forget(self) -> None:
        """Let go of the model."""
        self._built = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _model(self, key: Any, make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
        if self._built is None or self._built[0] != key:
            self.forget()
            before = torch.get_default_dtype()
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices), self.device:  # made where they are used, the caller's seed untouched
                torch.manual_seed(0)
                try:
                    torch.set_default_dtype(dtype)
                    self._built = key, make().to(self.device, dtype).eval().requires_grad_(False)
                finally:
                    torch.set_default_dtype(before)
        return self._built[1]

    def _tower(self, cell: Cell, shape: Tower) -> Variants:
        import timm

        dtype, arguments = DTYPES[cell.dtype], dict(shape.arguments)
        if cell.size is not None:
            arguments["img_size"] = cell.size
        make = partial(timm.create_model, shape.timm, pretrained=False, **arguments)
        # Initialised in float32, as timm expects, and cast afterwards.
        model = self._model((cell.model, cell.dtype, cell.size), lambda: make().to(dtype), torch.float32).to(dtype)
        height, width = model.patch_embed.img_size
        x = _normal((cell.batch, 3, height, width), dtype, self.device)
        keep = cell.keep
        if cell.every > 1:
            keep = [1.0 if layer % cell.every else keep**cell.every for layer in range(len(model.blocks))]
        if cell.multiple > 1:
            keep = rounded(pc.schedule(model, keep=keep), cell.multiple)
        models = {"whole": model, "free": free_merge(twin(model), keep, shape.restore)}
        options = {"proportional": PROPORTIONAL[cell.proportional], "restore": shape.restore,
                   "compile_step": cell.mode == "step"}
        for method in self.methods:
            models[method] = pc.apply(twin(model), method, keep, **options)
        counts = {name: pc.flops(part) for name, part in models.items()}
        macs = {name: count.total for name, count in counts.items()}
        macs["free"] -= sum(layer.merge for layer in counts["free"].layers)
        about = {"tokens": list(counts["free"].tokens), "size": height, "timm": shape.timm}
        return Variants({name: partial(part, x) for name, part in models.items()}, macs,
                        {**about, "parameters": _parameters(model)})

    def _prefill(self, cell: Cell, shape: Prefill) -> Variants:
        from transformers import LlamaConfig, LlamaForCausalLM

        dtype = DTYPES[cell.dtype]
        config = LlamaConfig(
            hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
            max_position_embeddings=4096, attn_implementation="sdpa",
        )
        model = self._model((cell.model, cell.dtype), lambda: LlamaForCausalLM(config), dtype)
        prompts = {"whole": shape.image, "merged": shape.image_tokens(cell.keep)}
        tokens = {name: image + shape.text for name, image in prompts.items()}

        def run(embedded: Tensor) -> Tensor:
            return model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1).logits  # the cache is part of it

        calls = {
            name: partial(run, _normal((cell.batch, count, shape.hidden), dtype, self.device))
            for name, count in tokens.items()
        }
        about = {"tokens": list(tokens.values()), "text_tokens": shape.text, "parameters": _parameters(model)}
        return Variants(calls, {name: shape.macs(count) for name, count in tokens.items()}, about)


    def _step(self, cell: Cell, shape: Step) -> Variants:
        dtype, (heads, width) = DTYPES[cell.dtype], (shape.heads, shape.channels // shape.heads)
        # As attention makes them: queries, keys and values of all heads in one product, heads in front by a view.
        projected = _normal((cell.batch, shape.tokens + 1, 3, heads, width), dtype, self.device)
        keys = projected[:, :, 1].transpose(1, 2)[:, :, 1:]
        x = _normal((cell.batch, shape.tokens + 1, shape.channels), dtype, self.device)
        size = torch.ones(x.shape[:2], device=self.device)
        remove = tokens_removed(shape.tokens, cell.keep)

        def run(method: Method) -> Tensor:
            plan = make_plan(method, keys.mean(dim=1, dtype=torch.float32), remove, {"margin": 0.9, "layer": 0}, {})
            return plan.merge(x, size, prefix=1)[0]

        chosen = {name: find_method(name) for name in self.methods}
        macs = {name: method.cost(shape.tokens, remove, width)[0] + (shape.tokens + 1) * shape.channels
                for name, method in chosen.items() if method.cost is not None}
        tokens = [shape.tokens + 1, shape.tokens + 1 - remove]
        about = {"tokens": tokens, "channels": shape.channels, "heads": heads}
        return Variants({name: partial(run, chosen[name]) for name in macs}, macs, about)


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call as a captured CUDA graph: what is left without the processor that launches the kernels."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _prepared(call: Callable[[], Any], cell: Cell, device: torch.device) -> Callable[[], Any]:
    if cell.mode == "graph":
        return _graphed(call, device)
    if cell.mode == "compile" and isinstance(call, partial):
        return partial(torch.compile(call.func, dynamic=False), *call.args)
    return call


def _peak(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Bytes on the device before a call and at its fullest; nothing where there is no such counter."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return {"bytes_before": before, "bytes_peak": torch.cuda.max_memory_allocated(device)}


def measure(
    cell: Cell, workshop: Workshop, *, repeats: int, seconds: float, profiled: bool = False
) -> dict[str, Any]:
    """Measure a cell: its fields, the model's, `rounds`, and the variants as `summarize` tells them.

    A variant that does not fit into the device's memory has `out_of_memory` in place of numbers; if that is the whole
    model, the others have seconds and no speed-ups.
    """
    device = workshop.device
    result: dict[str, Any] = {"model": cell.model, "batch": cell.batch, "dtype": cell.dtype, "keep": cell.keep,
                              "mode": cell.mode, "proportional": cell.proportional, "multiple": cell.multiple,
                              "every": cell.every}
    # A shortest timing of 20 ms is hundreds of times the clock's resolution and hides no slow call.
    shortest = 0.02
    cast = torch.autocast(device.type, torch.bfloat16) if cell.dtype.endswith("autocast") else nullcontext()
    variants = workshop.variants(cell)
    ready, memory, missing = {}, {}, []
    with torch.inference_mode(), cast:
        for name, call in variants.calls.items():
            try:
                call = _prepared(call, cell, device)
                for _ in range(WARM_UP):
                    call()
                memory[name] = _peak(call, device)
                ready[name] = call
            except torch.cuda.OutOfMemoryError:
                missing.append(name)
            if name in missing:
                torch.cuda.empty_cache()
        samples, times = {}, {}
        if ready:
            timed = stopwatch(device)
            samples, times = alternate(ready, timed, repeats=repeats, seconds=seconds, shortest=shortest)
        merged = [name for name in ready if name in workshop.methods and "whole" in variants.calls]
        observed = device.type == "cpu" and cell.mode in ("eager", "step")
        inside = {name: {"step_share": step_share(ready[name])} for name in merged if observed}
        if profiled and cell.mode == "eager":  # a compiled step has other operators
            inside = {name: {**told, "operators": step_operators(ready[name])} for name, told in inside.items()}
    summary = summarize(samples, variants.macs)
    for name, told in inside.items():
        summary[name] |= told
    for name in summary:
        summary[name] |= {"calls": times[name], **(memory[name] if cell.mode == "eager" else {})}
    rounds = max(map(len, samples.values()), default=0)
    result |= {**variants.about, "rounds": rounds, "variants": summary}
    return {**result, "out_of_memory": missing} if missing else result


def rate(dtype: str, device: torch.device, seconds: float = 0.3) -> float:
    """Multiply-accumulates per second of a product of matrices in that type, for estimates."""
    kind = torch.bfloat16 if dtype.endswith("autocast") else DTYPES[dtype]
    a, timed = _normal((1024, 1024), kind, device), stopwatch(device)
    timed(lambda: a @ a, 3)
    return 1024**3 / timed(lambda: a @ a, max(1, int(seconds / max(timed(lambda: a @ a, 1), 1e-6))))


# A model is slower than its products alone: by that much in float32 and in half precision on a CPU. For estimates only.
_SLOWER = {"float32": 1.4, "bfloat16": 2.0, "float16": 2.0, "bfloat16-autocast": 2.2}
_COMPILING = 60.0  # seconds a variant; inductor sees another shape in every layer


def estimate(cells: Sequence[Cell], device: torch.device, *, seconds: float, repeats: int) -> list[float]:
    """Seconds that each cell will take, roughly: exact counts over the speed of a product, and what compiling takes."""
    rates = {dtype: rate(dtype, device) / _SLOWER[dtype] for dtype in {cell.dtype for cell in cells}}
    counts, found = Workshop(torch.device("meta")), []
    for cell in cells:
        once = [max(0.02, cell.batch * macs / rates[cell.dtype]) for macs in counts.macs(cell).values()]
        rounds = WARM_UP + 1 + min(repeats, max(FEWEST, int(seconds / sum(once))))
        start = 1.0 + len(once) * {"compile": _COMPILING, "step": _COMPILING / 4}.get(cell.mode, 0.0)
        found.append(start + rounds * sum(once) + FEWEST * sum(once[2:]))
    return found


# --- the record


class CostRecord:
    """The file: `cells` by key, each with the number of the run in `runs` that measured it.

    It is written anew after every cell, all at once. Cells of other code, another device, other packages, another
    number of threads or another TF32 setting are not taken over: they are measured again.
    """

    def __init__(self, path: Path, note: str = ""):
        self.path, self.runs, self.cells = Path(path), [], {}
        self._run: int | None = None
        if self.path.exists():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found.get("format") != FORMAT or found.get("experiment") != "cost":
                raise results.RecordError(f"{path} is no record of costs in format {FORMAT}: choose another --output")
            self.runs, self.cells = found["runs"], found["cells"]
        self.now = results.provenance(0) | {"torch_cuda": torch.version.cuda} | ({"note": note} if note else {})

    def has(self, key: str) -> bool:
        """Whether the cell was measured by this code under these circumstances."""
        cell = self.cells.get(key)
        if cell is None or "error" in cell:
            return False
        run = self.runs[cell["run"]]
        return all(run.get(n) == self.now[n] for n in ("code", "device", "packages", "threads", "tf32", "torch_cuda"))

    def add(self, key: str, cell: Mapping[str, Any]) -> None:
        """Add or replace a cell and write the file; runs that no cell is left of are dropped."""
        if self._run is None:
            self._run = len(self.runs)
            self.runs.append(self.now)
        self.cells[key] = {**cell, "run": self._run}
        used = sorted({one["run"] for one in self.cells.values()})
        place = {old: new for new, old in enumerate(used)}
        self.runs = [self.runs[old] for old in used]
        self.cells = {name: {**one, "run": place[one["run"]]} for name, one in self.cells.items()}
        self._run = place[self._run]
        results.write_atomically(self.path, self._text())

    def _text(self) -> str:
        """JSON with a line per run and cell, so that a diff can be read."""
        runs = ",\n".join(f"  {json.dumps(run)}" for run in self.runs)
        cells = ",\n".join(f"  {json.dumps(key)}: {json.dumps(cell)}" for key, cell in self.cells.items())
        units = "seconds per call of the whole batch; macs per image or prompt"
        return (
            f'{{\n "format": {FORMAT},\n "experiment": "cost",\n "units": {json.dumps(units)},\n'
            f' "runs": [\n{runs}\n ],\n "cells": {{\n{cells}\n }}\n}}\n'
        )


# --- the command


EXAMPLES = """examples:
  python -m pitome_core.experiments cost
      on CUDA: the shapes of DeiT-S, ViT-L and ViT-H (MAE), CLIP-L/14@336, LLaVA-1.5's tower and prefill (`make gpu`);
      on a CPU: the grid of `make bench`, half an hour on two cores
  python -m pitome_core.experiments cost --estimate
  python -m pitome_core.experiments cost --models vit_tiny_patch16_224 --batch 1 8 --keep 0.9 --dtype float32
  python -m pitome_core.experiments cost --models vit_small_patch16_224 --size 384 --batch 4 --threads 2
  python -m pitome_core.experiments cost --models clip_l_336 --batch 1 16 --mode eager graph
  python -m pitome_core.experiments cost --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--models", nargs="+", metavar="NAME",
                        help=f"{', '.join(SHAPES | EVEN)}, or architectures of timm; weights are random")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="batch sizes (default 1 16)")
    parser.add_argument("--keep", nargs="+", type=float, metavar="R", help="keep ratios (default 0.9)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--size", nargs="+", type=int, metavar="PX", help="image sides (default: the model's own)")
    parser.add_argument("--multiple", nargs="+", type=int, default=[1], metavar="M",
                        help="round token counts behind a merge up to multiples of M (default 1)")
    parser.add_argument("--every", nargs="+", type=int, default=[1], metavar="N",
                        help="merge in one layer of N, as many tokens as N layers would (default 1)")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["eager"],
                        help="as it is, as a captured CUDA graph, with compiled steps, or through torch.compile")
    parser.add_argument("--proportional", nargs="+", choices=PROPORTIONAL, default=["preset"],
                        help="attention that counts tokens by size: as the preset says, on, off")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods beside the whole and free model")
    parser.add_argument("--repeats", type=int, default=25, help="rounds of a cell at most (default 25)")
    parser.add_argument("--seconds", type=float, default=None,
                        help=f"of a cell's rounds, though {FEWEST} at least (default 0.5 on CUDA, 6 on a CPU)")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="begin no cell after that time; the same command goes on with the rest")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: as torch has them)")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in float32 products (default: exact float32)")
    parser.add_argument("--list", action="store_true", help="print the cells and measure nothing")
    parser.add_argument("--estimate", action="store_true", help="print how long the cells will take, measure nothing")
    parser.add_argument("--operators", action="store_true", help="on a CPU: the operators of the merge steps as well")
    parser.add_argument("--note", default="", help="kept in the record beside the command")
    parser.add_argument("--output", type=Path,
                        help="record (default: results/gpu/cost.json on CUDA, _build/results/cost.json on a CPU)")


def cells_of(args: argparse.Namespace, device: torch.device) -> list[Cell]:
    """The cells that the arguments ask for."""
    named = (args.models, args.batch, args.keep, args.dtype, args.size)
    plain = (args.mode, args.proportional, args.multiple, args.every) == (["eager"], ["preset"], [1], [1])
    if named == (None,) * 5 and plain:
        return gpu_cells() if device.type == "cuda" else cpu_cells()
    axes = (
        args.models or (["vit_l_mae"] if device.type == "cuda" else ["vit_small_patch16_224"]),
        args.dtype or (["bfloat16"] if device.type == "cuda" else ["float32"]),
        args.size or [None], args.batch or [1, 16], args.keep or [0.9], args.mode, args.proportional, args.multiple,
        args.every,
    )
    return [
        Cell(model, batch, dtype, keep, mode, proportional, size, multiple, every)
        for model, dtype, size, batch, keep, mode, proportional, multiple, every in itertools.product(*axes)
    ]


def main(args: argparse.Namespace) -> int:
    """Measure what is not measured yet. Exit status 1 if a cell failed other than for memory, or none has a number."""
    device = settings.device()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    results.exact_float32()
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    cells = cells_of(args, device)
    if device.type != "cuda" and any(cell.mode == "graph" for cell in cells):
        raise SystemExit(f"--mode graph captures CUDA graphs, the device is {device}: choose eager, step or compile")
    on_gpu = device.type == "cuda"
    default = results.writable(on_gpu) / ("gpu" if on_gpu else "") / "cost.json"
    record = CostRecord(args.output or default, args.note)
    todo = [cell for cell in cells if not record.has(cell.key)]
    now = record.now
    where = f"torch {now['packages'].get('torch')}, {now['threads']} threads, TF32 {'on' if now['tf32'] else 'off'}"
    print(f"{now['device']}, {where}", flush=True)
    print(f"{len(todo)} cells to measure, {len(cells) - len(todo)} measured before", flush=True)
    seconds = args.seconds or (0.5 if device.type == "cuda" else 6.0)
    if args.estimate:
        spans = estimate(todo, device, seconds=seconds, repeats=args.repeats)
        for cell, span in zip(todo, spans, strict=True):
            print(f"{span:6.0f} s  {cell.key}")
        print(f"about {sum(spans) / 60:.0f} minutes in all, if nothing else runs")
        return 0
    if args.list:
        print("\n".join(("- " if cell in todo else "x ") + cell.key for cell in cells))
        return 0
    workshop, begun, failed = Workshop(device, args.methods), time.monotonic(), 0
    for number, cell in enumerate(todo):
        if time.monotonic() - begun > 60 * args.minutes:
            print(f"{len(todo) - number} cells not measured within {args.minutes:g} minutes; run it again to go on")
            break
        try:
            measured = measure(cell, workshop, repeats=args.repeats, seconds=seconds, profiled=args.operators)
        except torch.cuda.OutOfMemoryError:
            measured = {"model": cell.model, "out_of_memory": ["all"]}
        except Exception as error:  # one cell that cannot be run should not take the others along
            failed += 1
            reason = [type(error).__name__, *str(error).splitlines()[:1]]
            measured = {"model": cell.model, "error": ": ".join(reason)[:300]}
        if "variants" not in measured:
            workshop.forget()
        record.add(cell.key, measured)
        print("\n".join(_lines(cell, measured)), flush=True)
    workshop.forget()
    numbers = [cell.key for cell in cells if record.has(cell.key) and record.cells[cell.key].get("rounds")]
    print(f"{len(numbers)} of {len(cells)} cells have numbers, {failed} failed; {time.monotonic() - begun:.0f} s")
    return int(failed > 0 or not numbers)


def _lines(cell: Cell, measured: Mapping[str, Any]) -> Iterator[str]:
    """A cell, for a reader: a line per variant."""
    if "error" in measured:
        yield f"{cell.key}: failed: {measured['error']}"
        return
    tokens = measured.get("tokens", ["?"])
    yield f"{cell.key}: {tokens[0]} -> {tokens[-1]} tokens, {measured.get('rounds', 0)} rounds"
    for name, variant in measured.get("variants", {}).items():
        low, middle, high = (1e3 * value for value in variant["seconds"])
        line = f"  {name:8s} {middle:9.3f} ms [{low:.3f}, {high:.3f}]"
        if "speedup" in variant:
            line += f"  speed-up {variant['speedup'][1]:.3f}, implied {variant['implied']:.3f}"
            line += f", efficiency {variant['efficiency']:.3f}"
        if "of_free" in variant:
            line += f", of free {variant['of_free']:.3f}"
        if "step_share" in variant:
            line += f", steps {variant['step_share']:.1%}"
        if "bytes_peak" in variant:
            line += f", peak {variant['bytes_peak'] / 2**30:.2f} GiB"
        yield line
    if "out_of_memory" in measured:
        yield f"  out of memory: {', '.join(measured['out_of_memory'])}"
