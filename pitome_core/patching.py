"""Put merging into a model and take it out again: `apply`, `remove`, `patched`.

A patch replaces methods on the *instance*, never on a class. What belongs to one forward call (sizes, the plan so
far) travels through arguments and return values, so threads, nested calls, checkpointing and an exception in the
middle cannot mix it up; the patch itself never changes after it was made.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .energy import margin_schedule
from .families import Family, ModelShape, UnsupportedModelError, find_family
from .merge_plan import LinearPlan, MergePlan
from .mergers import Method, find_method, make_plan
from .mergers.preset_table import PRESETS
from .schedules import Schedule, check_keep, keep_schedule

METRICS = ("keys", "hidden", "concat")
_ATTRIBUTE = "_pitome_patch"


@dataclass(frozen=True)
class LayerStep:
    """What one block does about merging in one forward call."""

    patch: Patch
    layer: int
    remove: int
    prefix: int

    @property
    def proportional(self) -> bool:
        return self.patch.proportional

    def metric(self, x: Tensor, keys: Tensor) -> Tensor:
        """What tokens are compared by, `(B, N, .)`, from tokens `x (B, T, C)` and keys `(B, H, T, D)`."""
        if self.patch.metric == "hidden":
            return x[:, self.prefix :]
        keys = keys[:, :, self.prefix :]
        if self.patch.metric == "concat":
            return keys.transpose(1, 2).flatten(2)
        # The mean over heads in float32: rounding it to half precision would tie near-parallel keys.
        return keys.mean(dim=1, dtype=torch.promote_types(keys.dtype, torch.float32))

    def merge(
        self, x: Tensor, keys: Tensor, size: Tensor | None
    ) -> tuple[Tensor, Tensor | None, MergePlan | LinearPlan | None]:
        """Merge `x (B, T, C)`: tokens `(B, T', C)`, sizes `(B, T')`, and the plan (None when nothing goes)."""
        if self.remove == 0:
            return x, size, None
        patch = self.patch
        metric = self.metric(x.detach(), keys.detach())
        context = {
            "margin": patch.margins[self.layer],
            "size": None if size is None else size[:, self.prefix :],
            "layer": self.layer,
            "num_layers": len(patch.margins),
        }
        plan = make_plan(patch.method, metric, self.remove, context, patch.options)
        x, size = plan.with_prefix(self.prefix).merge(x, size)
        return x, size, plan


class ForwardState:
    """What one forward call has done so far. It lives in that call's frame and nowhere else."""

    def __init__(self, patch: Patch, x: Tensor, prefix: int):
        self.patch, self.prefix, self.batch, self.device = patch, prefix, x.shape[0], x.device
        self.num_patches = x.shape[1] - prefix
        self.remove = patch.removals(self.num_patches)
        self.size: Tensor | None = None
        self.plan: MergePlan | LinearPlan | None = None
        self.layers: list[tuple[MergePlan | LinearPlan | None, Tensor | None]] = []

    def step(self, layer: int) -> LayerStep:
        """The step of that layer."""
        return LayerStep(self.patch, layer, self.remove[layer], self.prefix)

    def add(self, size: Tensor | None, plan: MergePlan | LinearPlan | None) -> None:
        """Note what a layer did."""
        self.size = size
        if plan is not None:
            self.plan = plan if self.plan is None else self.plan.then(plan)
        self.layers.append((plan, size))

    def as_read(self, x: Tensor, plan: MergePlan | LinearPlan | None) -> Tensor:
        """Tokens as a caller reads them: with `restore`, every patch in its place again."""
        return x if plan is None or not self.patch.restore else plan.with_prefix(self.prefix).unmerge(x)

    def report(self) -> None:
        """Tell the traces that this thread has open."""
        traces = [trace for trace in self.patch.traces if trace.thread == threading.get_ident()]
        if not traces:
            return
        steps, left = [], self.num_patches
        for plan, size in self.layers:
            plan = MergePlan.identity(self.batch, left, self.device) if plan is None else plan
            size = plan.sizes if size is None else size[:, self.prefix :]
            steps.append((plan, size))
            left = plan.num_tokens
        for trace in traces:
            trace.add(steps)


@dataclass(frozen=True, eq=False)
class Patch:
    """How a model merges. Fixed once made; `traces` holds the recordings that are open and nothing else changes."""

    family: Family
    method: Method
    preset: str | None
    keep: tuple[float, ...] | Schedule
    margins: tuple[float, ...]
    metric: str
    proportional: bool
    restore: bool
    options: dict[str, Any]
    saved: list[tuple[nn.Module, str, bool, Any]] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)

    def start(self, x: Tensor, prefix: int) -> ForwardState:
        """Begin a forward call on tokens `(B, T, C)`."""
        return ForwardState(self, x, prefix)

    def removals(self, num_patches: int) -> tuple[int, ...]:
        """How many tokens go in each layer, for an input of that many patches."""
        if isinstance(self.keep, Schedule):
            made_for = self.keep.tokens[0] - self.keep.prefix
            if made_for != num_patches:
                raise ValueError(
                    f"the schedule was made for {made_for} patch tokens, this input has {num_patches}: "
                    "make one for this input size, or give keep as a ratio"
                )
            remove = self.keep.remove
        else:
            remove = keep_schedule(num_patches, self.keep, len(self.keep)).remove
        left = num_patches
        for k in remove:
            self.method.check_remove(k, left)
            left -= k
        return remove

    def describe(self) -> str:
        """One line for `repr(model)`."""
        if isinstance(self.keep, Schedule):
            keep = f"remove={list(self.keep.remove)}"
        else:
            keep = f"keep={self.keep[0]:g}" if len(set(self.keep)) == 1 else f"keep={list(self.keep)}"
        first, last = self.margins[0], self.margins[-1]
        margin = f"{first:g}" if first == last else f"{first:g}..{last:g}"
        words = [repr(self.method.name), keep, f"preset={self.preset!r}", f"metric={self.metric!r}"]
        words += [f"margin={margin}"] if "margin" in self.method.needs else []
        words += [f"proportional={self.proportional}", f"restore={self.restore}"]
        words += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"merging: {', '.join(words)}"

    def __deepcopy__(self, memo: dict) -> Patch:
        twin = copy.copy(self)
        memo[id(self)] = twin
        object.__setattr__(twin, "options", copy.deepcopy(self.options, memo))
        object.__setattr__(twin, "saved", copy.deepcopy(self.saved, memo))
        object.__setattr__(twin, "traces", [])  # a recording belongs to the model it was opened on
        return twin


def _extra_repr(model: nn.Module, patch: Patch) -> str:
    own = type(model).extra_repr(model)
    return f"{own}\n{patch.describe()}" if own else patch.describe()


def find_patch(model: nn.Module) -> Patch | None:
    """The patch on this very module, or None."""
    return model.__dict__.get(_ATTRIBUTE)


def _install(model: nn.Module, patch: Patch) -> None:
    points = patch.family.entry_points(model, patch) + [(model, "extra_repr", partial(_extra_repr, model, patch))]
    patch.saved[:] = [(m, name, name in m.__dict__, m.__dict__.get(name)) for m, name, _ in points]
    for module, name, function in points:
        setattr(module, name, function)
    setattr(model, _ATTRIBUTE, patch)


def _uninstall(model: nn.Module) -> Patch | None:
    patch = find_patch(model)
    if patch is not None:
        for module, name, had, value in patch.saved:
            if had:
                setattr(module, name, value)
            else:
                delattr(module, name)
        delattr(model, _ATTRIBUTE)
    return patch


def _per_layer(value: float | Sequence[float], num_layers: int, name: str) -> tuple[float, ...]:
    values = [value] * num_layers if isinstance(value, Real) else list(value)
    if len(values) != num_layers:
        raise ValueError(f"{name} has {len(values)} entries, the model {num_layers} layers: give one per layer")
    return tuple(float(v) for v in values)


def apply(
    model: nn.Module,
    method: str = "pitome",
    keep: float | Sequence[float] | Schedule = 0.925,
    *,
    preset: str | None = None,
    proportional: bool | None = None,
    margin: float | Sequence[float] | None = None,
    metric: str | None = None,
    restore: bool = True,
    towers: str = "vision",
    **options: Any,
) -> nn.Module:
    """Make a model merge its tokens, in every layer, between attention and MLP. Applying again replaces.

    Args:
        model: a supported model (`book/how_to_run`); the instance is changed and returned.
        method: a name from `pc.methods()`.
        keep: share of the patch tokens kept per layer; or one share per layer; or a `Schedule` from `pc.schedule`.
        preset: a name from `pc.presets()`; None = the paper's row for `pitome`, none for other methods.
        proportional: whether keys count by token size in attention; None = as the preset says, else True.
        margin: the paper's m: one value for all layers, or one per layer; None = as the preset says.
        metric: `keys` (averaged over heads), `hidden` (tokens about to merge) or `concat` (keys of all heads);
            None = as the preset says, else `keys`.
        restore: give every token output its original shape, merged tokens copied back to their places; False hands
            on the merged tokens.
        towers: `vision`; models with more towers take others.
        options: the method's own (`pc.methods()[method].options`).

    Returns:
        The model.

    Raises:
        UnsupportedModelError: a model, block or attention that cannot be patched rightly; it says which and why.
        ValueError, TypeError: arguments that do not fit; they name the numbers and the remedy.
    """
    family = find_family(model)
    if towers != "vision":
        raise ValueError(f"towers={towers!r}: a {family.name} has a vision tower only")
    chosen = find_method(method)
    shape = family.shape(model, None)
    patch = _make_patch(family, chosen, shape, keep, preset, proportional, margin, metric, restore, options)
    reason = family.refusal(model, patch)
    if reason:
        raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
    _uninstall(model)
    _install(model, patch)
    return model


def _make_patch(
    family: Family,
    method: Method,
    shape: ModelShape,
    keep: float | Sequence[float] | Schedule,
    preset: str | None,
    proportional: bool | None,
    margin: float | Sequence[float] | None,
    metric: str | None,
    restore: bool,
    options: dict[str, Any],
) -> Patch:
    num_layers = len(shape.layers)
    preset = "paper" if preset is None and method.name == "pitome" else preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; presets: {', '.join(PRESETS)}")
    row = None if preset is None else PRESETS[preset]
    if row is not None and row.method != method.name:
        raise ValueError(f"preset {preset!r} is for method {row.method!r}, not {method.name!r}")
    if metric is None:
        metric = "keys" if row is None else row.metric
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    if proportional is None:
        proportional = True if row is None else row.proportional
    if margin is None:
        margin = margin_schedule(num_layers) if row is None else row.margins(num_layers)
    options = {**({} if row is None else row.options), **options}
    method.check_options(options)
    if isinstance(keep, Schedule):
        if len(keep.remove) != num_layers:
            raise ValueError(f"the schedule has {len(keep.remove)} layers, the model {num_layers}")
    else:
        keep = tuple(check_keep(r) for r in _per_layer(keep, num_layers, "keep"))
    patch = Patch(family, method, preset, keep, _per_layer(margin, num_layers, "margin"), metric, proportional, restore,
                  options)
    if not isinstance(keep, Schedule):
        patch.removals(shape.num_patches)  # too small a ratio is said here, not in the first forward
    _rehearse(patch)
    return patch


def _rehearse(patch: Patch) -> None:
    """Make a tiny plan per layer, so that a bad option is refused before the model is touched."""
    metric = torch.eye(4)[None]
    if "attention" in patch.method.needs or "positions" in patch.method.needs:
        return
    for layer, margin in enumerate(patch.margins):
        context = {"margin": margin, "size": None, "layer": layer, "num_layers": len(patch.margins)}
        make_plan(patch.method, metric, 1, context, patch.options)


def remove(model: nn.Module) -> nn.Module:
    """Take merging out again: the instance is as it was before `apply`, bit for bit. Nothing to take out is fine."""
    _uninstall(model)
    return model


@contextmanager
def patched(model: nn.Module, method: str = "pitome", keep: Any = 0.925, **arguments: Any) -> Iterator[nn.Module]:
    """`apply` for the length of a `with` block; afterwards the model is patched as it was before, or not at all."""
    before = find_patch(model)
    apply(model, method, keep, **arguments)
    try:
        yield model
    finally:
        _uninstall(model)
        if before is not None:
            _install(model, before)
