"""Put merging into a model and take it out again: `apply`, `remove`, `patched`.

A patch replaces methods on the *instance*, never on a class. What belongs to one forward call (sizes, the plan so
far) travels through arguments and return values, so threads, nested calls, checkpointing and an exception in the
middle cannot mix it up; the patch itself never changes after it was made.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .attention import size_bias
from .families import Family, UnsupportedModelError, find_family
from .merge_plan import LinearPlan, MergePlan
from .mergers import Method, find_method, make_plan
from .mergers.preset_table import PRESETS, Row
from .schedules import Schedule, check_keep, keep_schedule, tokens_removed

METRICS = ("keys", "hidden", "concat", "keys-centred", "hidden-centred", "concat-centred")
INSERTIONS = ("before", "between", "after")
_ATTRIBUTE = "_pitome_patch"


@dataclass(frozen=True)
class LayerRow:
    """What a patch does in one layer; the fields are those of a preset's `Row`, the margin worked out."""

    metric: str
    margin: float
    proportional: bool
    sized: bool
    insertion: str
    options: dict[str, Any]


@dataclass(frozen=True)
class LayerStep:
    """What one block does about merging in one forward call: all it needs to know, fixed, so that checkpointing can
    run the block again later.

    Where items differ in length, `mergeable (B, T)` marks the tokens that may merge, `counts (B,)` says how many of
    each item go, and `remove` is the largest of these counts.
    """

    patch: Patch
    layer: int
    remove: int
    prefix: int
    class_token: bool
    positions: Tensor | None
    mergeable: Tensor | None = None
    counts: Tensor | None = None

    @property
    def row(self) -> LayerRow | None:
        """This layer's row of the patch; None where the preset does not merge."""
        return self.patch.rows[self.layer]

    @property
    def proportional(self) -> bool:
        """Whether attention in this layer counts keys by size."""
        return self.row is None or self.row.proportional

    @property
    def insertion(self) -> str:
        """Where the merge sits; `between` where nothing merges."""
        return "between" if self.row is None else self.row.insertion

    @property
    def reads_attention(self) -> bool:
        """Whether the block has to hand an attention map to `merge`."""
        return self.remove > 0 and self.patch.method.reads_attention(self.row.options)

    def bias(self, size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What attention adds to its scores, `(B, 1, 1, T)` or None: log sizes where this layer counts them, and -inf
        for padding in any case."""
        if self.proportional or size is None:
            return size_bias(size, dtype)
        return None if self.mergeable is None else size_bias((size > 0).to(size.dtype), dtype)

    def merge(
        self, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, MergePlan | LinearPlan | None]:
        """Merge `x (B, T, C)` by the function of the patch, `Patch.merge_tokens`; see `merge_tokens`."""
        return self.patch.merge_tokens(self, x, keys, size, attention_map)


def merge_tokens(
    step: LayerStep, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None = None
) -> tuple[Tensor, Tensor | None, MergePlan | LinearPlan | None]:
    """Merge `x (B, T, C)`: tokens `(B, T', C)`, sizes `(B, T')`, and the plan (None when nothing goes).

    `keys (B, H, T, D)` is None before a block; `attention_map (B, T, T)`, the mean over heads, is there if
    `reads_attention`.
    """
    if step.remove == 0:
        return x, size, None
    row, method, prefix, mask = step.row, step.patch.method, step.prefix, step.mergeable
    context = {"margin": row.margin, "size": None, "mask": mask, "layer": step.layer,
               "num_layers": len(step.patch.rows), "positions": step.positions}
    if size is not None and "size" in method.needs:
        context["size"] = size[:, prefix:].clamp_min(1)  # of padding: any size will do
    if attention_map is not None:
        received = attention_map.detach()[:, :, prefix:]  # (B, T, N)
        context["attention"] = received
        if mask is not None:  # the class token of a text is its first token that is no padding
            first = (size > 0).to(torch.int8).argmax(dim=1)
            context["class_attention"] = received[torch.arange(len(first), device=first.device), first]
        else:
            context["class_attention"] = received[:, 0] if step.class_token else received.mean(dim=1)
    if mask is None:
        # Inside a model that is compiled or traced as a whole the step is a part of its graph.
        compiled = step.patch.compile_step and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        run = _compiled(step.patch, step.layer) if compiled else _step
        arguments = method.arguments(context) | row.options
        merged, new_size, plan = run(method.function, arguments, row.metric, step.remove, prefix, x, keys, size)
    else:
        with torch.no_grad():
            metric = _metric(row.metric, x, keys, prefix, mask)
        plan = make_plan(method, metric, step.counts, context, row.options).keeping((size > 0) & ~mask)
        merged, new_size = plan.merge(x, size, prefix=prefix)
    if not row.sized and size is not None:  # plain means; sizes are still counted
        merged, _ = plan.merge(x, prefix=prefix)
    return merged, new_size, plan


def _metric(kind: str, x: Tensor, keys: Tensor | None, prefix: int, mergeable: Tensor | None = None) -> Tensor:
    """What tokens are compared by, `(B, N, .)`, from tokens `x (B, T, C)` and keys `(B, H, T, D)`."""
    kind, _, centred = kind.partition("-")
    if kind == "hidden" or keys is None:
        metric = x[:, prefix:]
    elif kind == "concat":
        metric = keys[:, :, prefix:].transpose(1, 2).flatten(2)
    else:
        # The mean over heads in float32: rounding it to half precision would tie near-parallel keys.
        wide = torch.float32 if keys.dtype.itemsize < 4 else keys.dtype
        metric = keys[:, :, prefix:].mean(dim=1, dtype=wide)
    if not centred:
        return metric
    if mergeable is None:
        return metric - metric.mean(dim=1, keepdim=True)
    share = mergeable / mergeable.sum(dim=1, keepdim=True).clamp_min(1)
    return metric - (metric * share[..., None]).sum(dim=1, keepdim=True)


def _step(
    function: Callable, arguments: dict[str, Any], kind: str, remove: int, prefix: int,
    x: Tensor, keys: Tensor | None, size: Tensor | None,
) -> tuple[Tensor, Tensor, MergePlan | LinearPlan]:
    """A merge step on items of one length: from plain values, since compiled code checks at each call all it read."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        plan = function(_metric(kind, x, keys, prefix), remove, **arguments)
    merged, new_size = plan.merge(x, size, prefix=prefix)
    return merged, new_size, plan


_COMPILED: WeakKeyDictionary[Patch, dict[int, Callable]] = WeakKeyDictionary()  # not in the patch, which is pickled


def _compiled(patch: Patch, layer: int) -> Callable:
    """`_step`, compiled for the shapes of that layer."""
    known = _COMPILED.setdefault(patch, {})
    if layer not in known:
        # Compiled versions belong to a code object, eight at most, and are tried in turn: each layer has a copy.
        known[layer] = torch.compile(FunctionType(_step.__code__.replace(), globals()), dynamic=False)
    return known[layer]


class ForwardState:
    """What one forward call has done so far. It lives in that call's frame and nowhere else.

    Items of unequal length come with `protected (B, T)`, tokens anywhere that never merge, and with `size (B, T)`, 1
    for real tokens and 0 for padding; sizes above 0 tell the real tokens from then on, in every layer.
    """

    def __init__(
        self,
        patch: Patch,
        x: Tensor,
        prefix: int,
        class_token: bool,
        columns: int | None,
        size: Tensor | None = None,
        protected: Tensor | None = None,
    ):
        self.patch, self.prefix, self.batch, self.device = patch, prefix, x.shape[0], x.device
        self.class_token, self.columns, self.protected = class_token, columns, protected
        self.num_patches = x.shape[1] - prefix
        self.remove = patch.removals(self.num_patches) if protected is None else ()
        self.size: Tensor | None = size
        self._composed: MergePlan | LinearPlan | None = None
        self._since: list[MergePlan | LinearPlan] = []
        self.layers: list[tuple[MergePlan | LinearPlan | None, Tensor | None]] = []

    @property
    def plan(self) -> MergePlan | LinearPlan | None:
        """All merges so far as one plan, None before the first; composed when somebody asks."""
        for plan in self._since:
            self._composed = plan if self._composed is None else self._composed.then(plan)
        self._since = []
        return self._composed

    def step(self, layer: int) -> LayerStep:
        """The step of that layer."""
        positions = self._positions() if "positions" in self.patch.method.needs else None
        if self.protected is None:
            return LayerStep(self.patch, layer, self.remove[layer], self.prefix, self.class_token, positions)
        mergeable = (self.size > 0) & ~self.protected
        counts = self.patch.removals_each(layer, mergeable.sum(dim=1))
        remove = int(counts.max())
        return LayerStep(self.patch, layer, remove, self.prefix, self.class_token, positions, mergeable, counts)

    def _positions(self) -> Tensor | None:
        """Row and column of every token's anchor on the patch grid, `(B, N, 2)` long; None without a grid."""
        if self.columns is None or isinstance(self.plan, LinearPlan):
            return None
        place = torch.arange(self.num_patches, device=self.device).expand(self.batch, -1)
        place = place if self.plan is None else self.plan.anchor
        return torch.stack([place // self.columns, place % self.columns], dim=-1)

    def add(self, size: Tensor | None, plan: MergePlan | LinearPlan | None) -> None:
        """Note what a layer did."""
        # Checkpointing may have put it on the graph.
        self.size = size.detach() if size is not None and size.requires_grad else size
        if plan is not None:
            if self.protected is not None:
                self.protected = self.protected.gather(1, plan.anchor.clamp_min(0)) & (plan.anchor >= 0)
            self._since.append(plan)
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
            if plan is None:
                valid = None if self.protected is None else size > 0
                plan = MergePlan.identity(self.batch, left, self.device, valid)
            size = plan.sizes if size is None else size[:, self.prefix :]
            steps.append((plan, size))
            left = plan.num_tokens
        for trace in traces:
            trace.add(steps)


@dataclass(frozen=True, eq=False)
class Patch:
    """How a model merges. Fixed once made; `traces` holds the recordings that are open and nothing else changes.

    `beside` is how its other tower does, where both merge.
    """

    family: Family
    method: Method
    preset: str | None
    keep: tuple[float, ...] | Schedule
    rows: tuple[LayerRow | None, ...]
    restore: bool
    compile_step: bool = False
    beside: Patch | None = None
    saved: list[tuple[nn.Module, str, bool, Any]] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    merge_tokens: Callable = merge_tokens

    @property
    def towers(self) -> tuple[Patch, ...]:
        """The patches of all towers that merge."""
        return (self,) if self.beside is None else (self, self.beside)

    def start(self, x: Tensor, prefix: int, class_token: bool, columns: int | None, **masks: Tensor) -> ForwardState:
        """Begin a forward call on tokens `(B, T, C)`; `columns` of the patch grid, None where there is none; `masks`
        as in `ForwardState`, for items of unequal length."""
        return ForwardState(self, x, prefix, class_token, columns, **masks)

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

    def rehearse(self) -> list[MergePlan | LinearPlan]:
        """A tiny plan per merging layer, so that a bad option is refused before a model is touched."""
        if "positions" in self.method.needs:
            return []  # what it can remove depends on the grid
        context = {"size": None, "num_layers": len(self.rows), "class_attention": torch.ones(1, 8) / 9,
                   "attention": torch.ones(1, 9, 8) / 9}
        metric, one = torch.eye(8)[None], 1
        if self.family.ragged:
            context["mask"], one = metric.any(dim=1), torch.tensor([1])
        return [
            make_plan(self.method, metric, one, {**context, "margin": row.margin, "layer": layer}, row.options)
            for layer, row in enumerate(self.rows)
            if row is not None
        ]

    def removals_each(self, layer: int, lengths: Tensor) -> Tensor:
        """How many tokens of every item go in that layer, `(B,)` long, from its own number of mergeable tokens."""
        numbers = lengths.tolist()
        removed = [tokens_removed(number, self.keep[layer]) for number in numbers]
        for k, number in zip(removed, numbers, strict=True):
            self.method.check_remove(k, number)
        return torch.tensor(removed, device=lengths.device)

    def describe(self) -> str:
        """One line for `repr(model)`."""
        if isinstance(self.keep, Schedule):
            keep = f"remove={list(self.keep.remove)}"
        else:
            keep = f"keep={self.keep[0]:g}" if len(set(self.keep)) == 1 else f"keep={list(self.keep)}"
        rows = [row for row in self.rows if row is not None]
        words = [repr(self.method.name), keep, f"preset={self.preset!r}"]
        if "margin" in self.method.needs:
            words.append(f"margin={_span([row.margin for row in rows])}")
        words += [f"{name}={_span([getattr(row, name) for row in rows])}" for name in ("metric", "proportional")]
        words.append(f"restore={self.restore}")
        words += ["compile_step=True"] if self.compile_step else []
        for name in dict.fromkeys(name for row in rows for name in row.options):
            default = self.method.options[name]
            words.append(f"{name}={_span([row.options.get(name, default) for row in rows])}")
        return f"merging: {', '.join(words)}"

    def __deepcopy__(self, memo: dict) -> Patch:
        twin = copy.copy(self)
        memo[id(self)] = twin
        object.__setattr__(twin, "saved", copy.deepcopy(self.saved, memo))
        object.__setattr__(twin, "beside", copy.deepcopy(self.beside, memo))
        object.__setattr__(twin, "traces", [])  # a recording belongs to the model it was opened on
        return twin


def _span(values: list) -> str:
    """How the layers' values read: one if they agree, else the first and the last."""
    words = [f"{value:g}" if isinstance(value, float) else repr(value) for value in values]
    return words[0] if len(set(words)) == 1 else f"{words[0]}..{words[-1]}"


def _extra_repr(model: nn.Module, patch: Patch) -> str:
    lines = [type(model).extra_repr(model), *(tower.describe() for tower in patch.towers)]
    return "\n".join(line for line in lines if line)


def find_patch(model: nn.Module) -> Patch | None:
    """The patch on this very module, or None."""
    return model.__dict__.get(_ATTRIBUTE)


def family_of(model: nn.Module) -> Family:
    """The family whose shape a model is counted by: that of the tower that merges, where only its text tower does."""
    patch = find_patch(model)
    return find_family(model) if patch is None else patch.family


def patched_parts(model: nn.Module) -> list[str]:
    """Names of the patched modules inside a model."""
    return [name for name, part in model.named_modules() if name and find_patch(part) is not None]


def active_patch(module: nn.Module) -> Patch | None:
    """The patch that a module runs under: its own, or that of a model around it; None without one."""
    bound = (value for value in vars(module).values() if isinstance(value, partial))
    return next((part for value in bound for part in value.args if isinstance(part, Patch)), None)


def _install(model: nn.Module, patch: Patch) -> None:
    points = [point for tower in patch.towers for point in tower.family.entry_points(model, tower)]
    points.append((model, "extra_repr", partial(_extra_repr, model, patch)))
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
    insertion: str | None = None,
    restore: bool = True,
    compile_step: bool = False,
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
        metric: `keys` (averaged over heads), `hidden` (tokens about to merge) or `concat` (keys of all heads), each
            also with the mean token subtracted (`keys-centred`, ...); None = as the preset says, else `keys`.
        insertion: where the merge sits: `between` attention and MLP, `after` the block, or `before` it (compared by
            hidden states then); None = as the preset says, else `between`.
        restore: give every token output its original shape, merged tokens copied back to their places; False hands
            on the merged tokens.
        compile_step: put the merge steps through `torch.compile`, each layer's for the shapes that it meets (a second
            or two a layer, at the first call of a shape). Faster where a step is many small operators; the same up to
            rounding, so that nearly equal energies may change ranks. From the ninth shape on, and on items of unequal
            length, steps stay eager.
        towers: `vision`, `text` or `both`, for models with both; a model with one tower merges that one.
        options: the method's own (`pc.methods()[method].options`).

    Returns:
        The model.

    Raises:
        UnsupportedModelError: a model, block or attention that cannot be patched rightly; it says which and why.
        ValueError, TypeError: arguments that do not fit; they name the numbers and the remedy.
    """
    family, patch = find_family(model), None
    offered = family.towers(model)
    reason = offered.get(towers, "there is no such tower")
    if reason is not None:
        able = " or ".join(repr(name) for name, reason in offered.items() if reason is None)
        raise ValueError(f"towers={towers!r}: {reason}; a {type(model).__qualname__} merges in {able}")
    _check_alone(model)
    chosen = find_method(method)
    chosen.check_options(options)
    given = {"proportional": proportional, "margin": margin, "metric": metric, "insertion": insertion}
    for part in reversed(family.parts(towers)):
        patch = _make_patch(model, part, chosen, keep, preset, given, restore, compile_step, options, patch)
    _uninstall(model)
    _install(model, patch)
    return model


def _make_patch(
    model: nn.Module, family: Family, chosen: Method, keep: Any, preset: str | None, given: dict[str, Any],
    restore: bool, compile_step: bool, options: dict[str, Any], beside: Patch | None,
) -> Patch:
    """The patch of one tower, with everything checked that can be; arguments as in `apply`."""
    family.check(chosen, keep)
    shape = family.shape(model, None)
    name, rows = _make_rows(chosen, len(shape.layers), preset, given, options)
    patch = Patch(family, chosen, name, _make_keep(keep, rows), rows, restore, compile_step, beside)
    if any(row and row.insertion == "before" and chosen.reads_attention(row.options) for row in rows):
        raise ValueError(f"{chosen.name!r} reads the block's attention map, which is not there before the block")
    if shape.fixed or not isinstance(keep, Schedule):
        patch.removals(shape.num_patches)  # what does not fit is said here, not in the first forward
    patch.rehearse()
    reason = family.refusal(model, patch)
    if reason:
        raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
    return patch


def _make_rows(
    method: Method, num_layers: int, preset: str | None, given: dict[str, Any], options: dict[str, Any]
) -> tuple[str | None, tuple[LayerRow | None, ...]]:
    """The preset's name and the row of every layer: the preset's, with what was given explicitly in its place."""
    preset = "paper" if preset is None and method.name == "pitome" else preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; presets: {', '.join(PRESETS)}")
    if preset is not None and PRESETS[preset].method != method.name:
        raise ValueError(f"preset {preset!r} is for method {PRESETS[preset].method!r}, not {method.name!r}")
    for name, allowed in (("metric", METRICS), ("insertion", INSERTIONS)):
        if given[name] is not None and given[name] not in allowed:
            raise ValueError(f"unknown {name} {given[name]!r}: choose one of {', '.join(allowed)}")
    explicit = {name: given[name] for name in ("metric", "insertion", "proportional") if given[name] is not None}
    margins = None if given["margin"] is None else _per_layer(given["margin"], num_layers, "margin")
    if margins is not None and "margin" not in method.needs:
        raise TypeError(f"method {method.name!r} has no margin")
    if margins is not None and not all(math.isfinite(margin) for margin in margins):
        raise ValueError(f"margins are cosines, got {list(margins)}")
    rows: list[LayerRow | None] = []
    for layer, row in enumerate([Row()] * num_layers if preset is None else PRESETS[preset].rows(num_layers)):
        if row is None:
            rows.append(None)
            continue
        base, slope = row.margin
        margin = base - slope * layer / num_layers if margins is None else margins[layer]
        fields = {"metric": row.metric, "insertion": row.insertion, "proportional": row.proportional, **explicit}
        rows.append(LayerRow(margin=margin, sized=row.sized, options={**row.options, **options}, **fields))
    return preset, tuple(rows)


def _make_keep(
    keep: float | Sequence[float] | Schedule, rows: tuple[LayerRow | None, ...]
) -> tuple[float, ...] | Schedule:
    """One keep ratio per layer, 1 where the preset does not merge; or the schedule, checked."""
    if not isinstance(keep, Schedule):
        ratios = [check_keep(ratio) for ratio in _per_layer(keep, len(rows), "keep")]
        return tuple(1.0 if row is None else ratio for ratio, row in zip(ratios, rows, strict=True))
    if len(keep.remove) != len(rows):
        raise ValueError(f"the schedule has {len(keep.remove)} layers, the model {len(rows)}")
    idle = [layer for layer, (k, row) in enumerate(zip(keep.remove, rows, strict=True)) if k and row is None]
    if idle:
        raise ValueError(f"the schedule removes tokens in layers {idle}, where the preset does not merge")
    return keep


def _check_alone(model: nn.Module) -> None:
    """Raise ValueError where another patch holds a part of this model: taking one out would take both out."""
    own = find_patch(model)
    for part in model.modules():
        if active_patch(part) not in (None, *(own.towers if own else ())):
            raise ValueError(
                f"a part of this model, or a model around it, merges already (a {type(part).__qualname__} does): "
                "pc.remove that one first"
            )


def use_merge(model: nn.Module, merge_tokens: Callable) -> nn.Module:
    """Make all towers of a patched model merge by this function in place of `merge_tokens`."""
    patch = _uninstall(model)
    if patch is None:
        raise ValueError(f"this {type(model).__qualname__} is not patched: apply a method first")
    changed = None
    for tower in reversed(patch.towers):
        changed = replace(tower, merge_tokens=merge_tokens, beside=changed)
    _install(model, changed)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take merging out again: the instance is as it was before `apply`, bit for bit. Nothing to take out is fine.

    Raises:
        ValueError: `model` itself is not patched, but a part of it is, or it merges as a part of a patched model.
    """
    if find_patch(model) is None and active_patch(model) is not None:
        raise ValueError(f"this {type(model).__qualname__} merges as a part of another model: call remove on that one")
    if _uninstall(model) is None:
        inside = patched_parts(model)
        if inside:
            raise ValueError(f"this {type(model).__qualname__} is not patched, its part {inside[0]!r} is: remove that")
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
