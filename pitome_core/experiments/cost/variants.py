"""The variants of a setup: the whole model, the same model with a free merge, and with every method."""

from __future__ import annotations

import copy
import gc
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.cost.setups import (
    DTYPES,
    EVEN,
    PROPORTIONAL,
    SHAPES,
    STEPS,
    PrefillShape,
    Setup,
    StepShape,
    TowerShape,
)
from pitome_core.mergers import Method, find_method, make_plan
from pitome_core.patch import LayerStep
from pitome_core.patching import use_merge
from pitome_core.schedules import Schedule, tokens_removed

METHODS = ("pitome", "tome")


def free_merge(model: nn.Module, keep: float | Sequence[float] | Schedule, restore: bool = True) -> nn.Module:
    """Make every layer of `model` drop as many tokens as a merge at `keep` would: the last ones, by a slice.

    The output means nothing. The time is the shortest that any merge to these token counts can reach, because a slice
    takes next to no time, and because there are no sizes for attention to count. The free merge is no method of the
    registry, because a metric and a plan alone would cost something. `pc.remove` takes it out again.

    Raises:
        UnsupportedModelError, ValueError: as `pc.apply`.
    """
    return use_merge(pc.apply(model, "tome", keep, restore=restore), _drop_last)


def _drop_last(
    step: LayerStep, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None = None
) -> tuple[Tensor, None, None]:
    return x[:, : x.shape[1] - step.remove], None, None  # (B, T, C) -> (B, T - k, C)


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules of a model that shares its parameters and buffers.

    A patch of the copy does not change the original. The copy takes no memory for weights.
    """
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def rounded(schedule: Schedule, multiple: int) -> Schedule:
    """The schedule with every token count behind a merge rounded up to a multiple, the prefix included.

    A layer that would have to lose more than half of its patch tokens for that loses none.
    """
    if multiple == 1:
        return schedule
    counts = [schedule.tokens[0]]
    for tokens in schedule.tokens[1:]:
        current, wanted = counts[-1], multiple * math.ceil(tokens / multiple)
        counts.append(wanted if 0 <= current - wanted <= (current - schedule.prefix) // 2 else current)
    remove = [before - after for before, after in itertools.pairwise(counts)]
    return Schedule.from_removals(counts[0] - schedule.prefix, remove, schedule.prefix)


@dataclass(frozen=True)
class Variants:
    """What is run for a setup.

    Attributes:
        calls: one function without arguments per variant.
        macs: multiply-accumulates of one image (prompt), by variant.
        about: what the record says of the model, token counts first.
        merging: the models that a method is applied to, by variant.
    """

    calls: Mapping[str, Callable[[], Any]]
    macs: Mapping[str, int]
    about: Mapping[str, Any]
    merging: Mapping[str, nn.Module] = field(default_factory=dict)


class Workshop:
    """Builds the variants of setups. It keeps the last model, because setups of one model follow one another.

    Args:
        device: where the models are built.
        methods: names of the methods beside the whole model and the free merge.
        shapes: shapes by name; any other name is an architecture of timm.
    """

    def __init__(self, device: torch.device, methods: Sequence[str] = METHODS,
                 shapes: Mapping[str, Any] = SHAPES | EVEN | STEPS):
        self.device, self.methods, self.shapes = device, tuple(methods), shapes
        self._built: tuple[Any, nn.Module] | None = None

    def variants(self, setup: Setup) -> Variants:
        """The variants of a setup. Raises what `timm.create_model` and `pc.apply` raise."""
        shape = self._shape(setup)
        if isinstance(shape, TowerShape):
            return self._tower(setup, shape)
        if (setup.mode == "step", setup.every, setup.multiple) != (False, 1, 1):
            raise ValueError(f"{setup.model} has no layers that merge: leave out --mode step, --every and --multiple")
        return self._prefill(setup, shape) if isinstance(shape, PrefillShape) else self._step(setup, shape)

    def macs(self, setup: Setup) -> Mapping[str, int]:
        """Multiply-accumulates of one image (prompt) by variant. On the device `meta` nothing is run or loaded."""
        shape = self._shape(setup)
        if isinstance(shape, PrefillShape):
            return {name: shape.macs(tokens) for name, tokens in _prompts(setup, shape).items()}
        return self.variants(replace(setup, batch=1)).macs

    def forget(self) -> None:
        """Free the memory of the model that is kept."""
        self._built = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shape(self, setup: Setup) -> TowerShape | PrefillShape | StepShape:
        return self.shapes.get(setup.model, TowerShape(setup.model))

    def _model(self, key: Any, make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
        if self._built is None or self._built[0] != key:
            self.forget()
            default = torch.get_default_dtype()
            devices = [self.device] if self.device.type == "cuda" else []
            # Weights are made on the device that uses them. The caller's random state does not change.
            with torch.random.fork_rng(devices), self.device:
                torch.manual_seed(0)
                try:
                    torch.set_default_dtype(dtype)
                    self._built = key, make().to(self.device, dtype).eval().requires_grad_(False)
                finally:
                    torch.set_default_dtype(default)
        return self._built[1]

    def _tower(self, setup: Setup, shape: TowerShape) -> Variants:
        import timm

        dtype, arguments = DTYPES[setup.dtype], dict(shape.arguments)
        if setup.size is not None:
            arguments["img_size"] = setup.size
        make = partial(timm.create_model, shape.timm, pretrained=False, **arguments)
        # timm initialises weights in float32; they are cast afterwards.
        model = self._model((setup.model, setup.dtype, setup.size), lambda: make().to(dtype), torch.float32).to(dtype)
        height, width = model.patch_embed.img_size
        x = _normal((setup.batch, 3, height, width), dtype, self.device)
        keep = setup.keep
        if setup.every > 1:
            keep = [1.0 if layer % setup.every else keep**setup.every for layer in range(len(model.blocks))]
        if setup.multiple > 1:
            keep = rounded(pc.schedule(model, keep=keep), setup.multiple)
        options = {"proportional": PROPORTIONAL[setup.proportional], "restore": shape.restore,
                   "compile_step": setup.mode == "step"}
        merging = {method: pc.apply(twin(model), method, keep, **options) for method in self.methods}
        models = {"whole": model, "free": free_merge(twin(model), keep, shape.restore), **merging}
        counts = {name: pc.flops(variant) for name, variant in models.items()}
        macs = {name: count.total for name, count in counts.items()}
        macs["free"] -= sum(layer.merge for layer in counts["free"].layers)
        about = {"tokens": list(counts["free"].tokens), "size": height, "timm": shape.timm,
                 "parameters": _parameters(model)}
        return Variants({name: partial(variant, x) for name, variant in models.items()}, macs, about, merging)

    def _prefill(self, setup: Setup, shape: PrefillShape) -> Variants:
        from transformers import LlamaConfig, LlamaForCausalLM

        dtype = DTYPES[setup.dtype]
        config = LlamaConfig(
            hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
            max_position_embeddings=4096, attn_implementation="sdpa",
        )
        model = self._model((setup.model, setup.dtype), lambda: LlamaForCausalLM(config), dtype)
        prompts = _prompts(setup, shape)

        def run(embedded: Tensor) -> Tensor:
            # Prefill fills the cache, so its cost is measured, too.
            return model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1).logits

        calls = {
            name: partial(run, _normal((setup.batch, tokens, shape.hidden), dtype, self.device))
            for name, tokens in prompts.items()
        }
        about = {"tokens": list(prompts.values()), "text_tokens": shape.text, "parameters": _parameters(model)}
        return Variants(calls, {name: shape.macs(tokens) for name, tokens in prompts.items()}, about)

    def _step(self, setup: Setup, shape: StepShape) -> Variants:
        dtype, (heads, width) = DTYPES[setup.dtype], (shape.heads, shape.channels // shape.heads)
        # Attention makes queries, keys and values of all heads in one product; heads come to the front by a view.
        projected = _normal((setup.batch, shape.tokens + 1, 3, heads, width), dtype, self.device)
        keys = projected[:, :, 1].transpose(1, 2)[:, :, 1:]  # (B, H, N, D)
        x = _normal((setup.batch, shape.tokens + 1, shape.channels), dtype, self.device)
        size = torch.ones(x.shape[:2], device=self.device)
        remove = tokens_removed(shape.tokens, setup.keep)

        def run(method: Method) -> Tensor:
            metric = keys.mean(dim=1, dtype=torch.float32)  # (B, N, D)
            plan = make_plan(method, metric, remove, {"margin": 0.9, "layer": 0}, {})
            return plan.merge(x, size, prefix=1)[0]

        methods = {name: find_method(name) for name in self.methods}
        macs = {name: method.cost(shape.tokens, remove, width)[0] + (shape.tokens + 1) * shape.channels
                for name, method in methods.items() if method.cost is not None}
        about = {"tokens": [shape.tokens + 1, shape.tokens + 1 - remove], "channels": shape.channels, "heads": heads}
        return Variants({name: partial(run, methods[name]) for name in macs}, macs, about)


def _prompts(setup: Setup, shape: PrefillShape) -> dict[str, int]:
    """Tokens of the prompt: with all image tokens, and with those that leave a merged tower."""
    return {"whole": shape.image + shape.text, "merged": shape.image_tokens(setup.keep) + shape.text}


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers, the same at every call."""
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
