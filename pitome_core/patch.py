"""What runs inside a forward call of a patched model.

A `Patch` says how one tower of a model merges. It is made once, by `patching.apply`, and does not change. A model
family runs its blocks with the help of two objects: the `ForwardState` of the call, which knows what has merged so far,
and the `LayerStep` of the layer, which knows what the layer has to do. Both belong to one forward call. They travel
through arguments and return values, so that threads, nested calls, checkpointing and exceptions cannot mix up calls.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import size_bias
from .checks import in_graph
from .instances import PATCH_ATTRIBUTE
from .merge_plan import LinearPlan, MergePlan
from .merge_step import compiled_step, layer_metric, merge_step
from .mergers import Method, make_plan
from .portable import constant, refuse_exporting
from .schedules import Schedule, gathered, keep_schedule, remedy_of_every, removed_together

INSERTIONS = ("before", "between", "after")

# What a merge leaves: tokens `(B, T', C)`, sizes `(B, T')` or None, the plan or None.
Merged = tuple[Tensor, Tensor | None, MergePlan | LinearPlan | None]


def active_patch(module: nn.Module) -> Patch | None:
    """The patch that a module runs under: its own, or that of the patched model it is a part of; None without one."""
    return vars(module).get(PATCH_ATTRIBUTE)


@dataclass(frozen=True)
class LayerRow:
    """What a patch does in one layer: the preset's row and what `apply` was given, with the margin worked out.

    The fields are those of `PresetRow`.
    """

    metric: str
    margin: float
    proportional: bool
    sized: bool
    insertion: str
    options: dict[str, Any]
    merges: bool


@dataclass(frozen=True)
class LayerStep:
    """What one block has to know about merging in one forward call. It is fixed, so that checkpointing can rerun it.

    Attributes:
        patch, layer: how the model merges, and the number of this layer.
        remove: how many tokens are removed; the largest of `counts` where items differ in length.
        prefix: how many tokens in front never merge.
        class_token: whether the first of them is a class token.
        positions: `(B, N, 2)` long, row and column of the tokens on the patch grid, if the method asks for them.
        mergeable: `(B, T)` bool, the tokens that may merge, where items differ in length; else None.
        counts: `(B,)` long, how many tokens each item loses, where items differ in length; else None.
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
    def row(self) -> LayerRow:
        """This layer's row of the patch."""
        return self.patch.rows[self.layer]

    @property
    def proportional(self) -> bool:
        """Whether attention in this layer counts keys by size."""
        return self.row.proportional

    @property
    def insertion(self) -> str:
        """Where the merge sits, or would sit where nothing merges."""
        return self.row.insertion

    @property
    def reads_attention(self) -> bool:
        """Whether the block has to hand an attention map to `merge`."""
        return self.remove > 0 and self.patch.method.reads_attention(self.row.options)

    def bias(self, size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What attention adds to its scores, `(B, 1, 1, T)` or None.

        It is the logarithm of the sizes where this layer counts keys by size. Padding gets -inf in every layer.
        """
        if self.proportional or size is None:
            return self.patch.size_bias(size, dtype)
        return None if self.mergeable is None else size_bias((size > 0).to(size.dtype), dtype)

    def on(self, device: torch.device) -> LayerStep:
        """The step with its tensors on that device, for models whose layers lie on several."""
        held = {name: getattr(self, name) for name in ("positions", "mergeable", "counts")}
        moved = {name: value.to(device) for name, value in held.items() if value is not None and value.device != device}
        return replace(self, **moved) if moved else self

    def merge(
        self, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None = None
    ) -> Merged:
        """Merge the tokens of this layer with the function of the patch; arguments as in `merge_tokens`."""
        return self.patch.merge_tokens(self, x, keys, size, attention_map)


def merge_tokens(
    step: LayerStep, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None
) -> Merged:
    """Merge the tokens of one layer.

    Args:
        step: the layer.
        x: `(B, T, C)` tokens.
        keys: `(B, H, T, D)` keys of the layer; None before a block.
        size: `(B, T)` sizes; None = 1 each.
        attention_map: `(B, T, T)`, the mean over heads, if `step.reads_attention`; else None.

    Returns:
        Tokens `(B, T', C)`, sizes `(B, T')`, and the plan; x, size and None if no token is removed.
    """
    if step.remove == 0:
        return x, size, None
    row, method, prefix = step.row, step.patch.method, step.prefix
    context = _context(step, size, attention_map)
    if step.mergeable is None:
        # In a model that is compiled or traced as a whole, the step becomes a part of that model's graph.
        run = compiled_step(step.patch, step.layer) if step.patch.compile_step and not in_graph() else merge_step
        arguments = method.arguments(context) | row.options
        merged, new_size, plan = run(method.function, arguments, row.metric, step.remove, prefix, x, keys, size)
    else:
        with torch.no_grad():
            metric = layer_metric(row.metric, x, keys, prefix, step.mergeable)
        plan = make_plan(method, metric, step.counts, context, row.options)
        plan = plan.keeping((size > 0) & ~step.mergeable)
        merged, new_size = plan.merge(x, size, prefix=prefix)
    if not row.sized and size is not None:  # plain means of the tokens; their sizes are counted all the same
        merged, _ = plan.merge(x, prefix=prefix)
    return merged, new_size, plan


def _context(step: LayerStep, size: Tensor | None, attention_map: Tensor | None) -> dict[str, Any]:
    """What a method can ask for in a layer, by the names in `mergers.registry.CONTEXT`."""
    context = {
        "margin": constant(step.row.margin), "size": None, "mask": step.mergeable, "layer": step.layer,
        "num_layers": len(step.patch.rows), "positions": step.positions,
    }
    if size is not None and "size" in step.patch.method.needs:
        # Padding has size 0. It takes no part, but a method may divide by sizes before it looks at the mask.
        context["size"] = size[:, step.prefix :].clamp_min(1)  # (B, N)
    if attention_map is not None:
        attention = attention_map.detach()[:, :, step.prefix :]  # (B, T, N)
        context["attention"] = attention
        if step.mergeable is not None:  # the class token of a text is its first token that is no padding
            first = (size > 0).to(torch.int8).argmax(dim=1)  # (B,)
            context["class_attention"] = attention[torch.arange(first.shape[0], device=first.device), first]
        else:
            context["class_attention"] = attention[:, 0] if step.class_token else attention.mean(dim=1)
    return context


class ForwardState:
    """What one forward call has done so far. The frame of that call holds it, and nothing else does.

    Args:
        patch: how the tower merges.
        x: `(B, T, C)` tokens before the first layer.
        prefix: how many tokens in front never merge.
        class_token: whether the first of them is a class token.
        columns: columns of the patch grid; None if there is no grid.
        size: `(B, T)` for items of unequal length: 1 for real tokens, 0 for padding.
        protected: `(B, T)` bool for items of unequal length: tokens, at any place, that never merge.

    Attributes:
        size: `(B, T)` sizes after the last layer; None while all are 1. Padding has size 0 in every layer.
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
        self.patch, self.batch, self.device = patch, x.shape[0], x.device
        self.class_token, self.columns, self.protected = class_token, columns, protected
        if protected is not None:
            refuse_exporting("how many tokens merge depends on the length of every text")
        # Plain ints: under tracing and dynamic compilation shapes have none, and int() would leave them symbolic.
        self.prefix = operator.index(prefix)
        self.num_patches = self.num_tokens = operator.index(x.shape[1]) - self.prefix
        self.remove = patch.removals(self.num_patches) if protected is None else ()
        self.size: Tensor | None = size
        self._composed: MergePlan | LinearPlan | None = None
        self._not_composed: list[MergePlan | LinearPlan] = []
        self.layers: list[tuple[MergePlan | LinearPlan | None, Tensor | None, int]] = []

    @property
    def plan(self) -> MergePlan | LinearPlan | None:
        """All merges so far as one plan; None before the first. Plans are composed when this is read."""
        for plan in self._not_composed:
            self._composed = plan if self._composed is None else self._composed.to(plan.device).then(plan)
        self._not_composed = []
        return self._composed

    @property
    def place(self) -> Tensor | None:
        """`(B, N')` long: where on the patch grid the anchors of the tokens stand; None while all are in place."""
        if self.plan is not None:
            return anchors(self.plan)
        if self.num_tokens == self.num_patches:
            return None
        # A merge that returns no plan cuts off the last tokens.
        return torch.arange(self.num_tokens, device=self.device).expand(self.batch, -1)

    def step(self, layer: int) -> LayerStep:
        """The step of that layer; RuntimeError for a layer that the patch does not know."""
        if layer >= len(self.patch.rows):
            raise RuntimeError(f"the model has more than the {len(self.patch.rows)} blocks that it had at pc.apply: "
                               "call pc.apply again")
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
        place = self.place
        if place is None:
            place = torch.arange(self.num_patches, device=self.device).expand(self.batch, -1)
        return torch.stack([place // self.columns, place % self.columns], dim=-1)

    def add(self, x: Tensor, size: Tensor | None, plan: MergePlan | LinearPlan | None) -> None:
        """Note what a layer left: tokens `(B, T', C)`, sizes, and its plan (None: nothing merged)."""
        self.num_tokens, self.device = operator.index(x.shape[1]) - self.prefix, x.device
        if self.protected is not None:
            self.protected = self.protected.to(x.device)
        if self.protected is not None and plan is not None:
            self.protected = self.protected.gather(1, plan.anchor.clamp_min(0)) & (plan.anchor >= 0)
        elif self.protected is not None and size is None:
            # A merge that returns neither plan nor sizes cuts off the last tokens. Sizes must stay: they mark padding.
            size, self.protected = self.size[:, : x.shape[1]], self.protected[:, : x.shape[1]]
        # Checkpointing may have put sizes on the graph.
        self.size = size.detach() if size is not None and size.requires_grad else size
        if plan is not None:
            self._not_composed.append(plan)
        self.layers.append((plan, size, self.num_tokens))

    def as_read(self, x: Tensor, plan: MergePlan | LinearPlan | None) -> Tensor:
        """Tokens as a caller reads them: with `restore`, every patch in its place again."""
        if plan is None or not self.patch.restore:
            return x
        return plan.to(x.device).with_prefix(self.prefix).unmerge(x)

    def report(self) -> None:
        """Hand the layers of this call to the recordings that this thread has open.

        Raises:
            RuntimeError: tokens are gone without a plan, so that it is not known where they went.
        """
        traces = [trace for trace in self.patch.traces if trace.thread == threading.get_ident()]
        if not traces:
            return
        steps, entering = [], self.num_patches
        for plan, size, leaving in self.layers:
            if plan is None and leaving != entering:
                raise RuntimeError("a merge that returns no plan cannot be recorded")
            if plan is None:
                valid = None if self.protected is None else size > 0
                plan = MergePlan.identity(self.batch, leaving, self.device, valid)
            steps.append((plan, plan.sizes if size is None else size[:, self.prefix :]))
            entering = leaving
        for trace in traces:
            trace.add(steps)


def anchors(plan: MergePlan | LinearPlan) -> Tensor:
    """`(B, M)` long: which input token each output token of a plan inherits its place from; 0 in padded slots.

    Raises:
        ValueError: a transform, whose outputs have no place.
    """
    if isinstance(plan, LinearPlan):
        raise ValueError("a transform's outputs stand at no place of the input, so they have no position")
    return plan.anchor.clamp_min(0)


@dataclass(frozen=True, eq=False)
class Patch:
    """How one tower of a model merges. It is fixed; only its list of open recordings changes.

    Attributes:
        method: the method.
        preset: the name of the preset, or None.
        keep: one keep ratio per layer, or a schedule.
        rows: what every layer does.
        restore: whether every token output gets its original shape back.
        compile_step: whether the merge steps are compiled.
        ragged: whether items have lengths of their own (text).
        protect: which tokens never merge, in families that have a choice; else None.
        merge_tokens: what merges the tokens of a layer; `patching.use_merge` puts another function in its place.
        size_bias: what makes the bias of proportional attention from sizes.
        fused: whether kernels merge, as in `pc.apply`; the two functions above are then those of `fused.step`.
        every: of so many layers that merge, one removes what all of them would. A schedule has that in its numbers.
        traces: the open recordings.
    """

    method: Method
    preset: str | None
    keep: tuple[float, ...] | Schedule
    rows: tuple[LayerRow, ...]
    restore: bool
    compile_step: bool = False
    ragged: bool = False
    protect: str | None = None
    merge_tokens: Callable[[LayerStep, Tensor, Tensor | None, Tensor | None, Tensor | None], Merged] = merge_tokens
    size_bias: Callable[[Tensor | None, torch.dtype], Tensor | None] = size_bias
    fused: bool | str = False
    every: int = 1
    traces: list[Any] = field(default_factory=list)

    def start(self, x: Tensor, prefix: int, class_token: bool, columns: int | None, **masks: Tensor) -> ForwardState:
        """Begin a forward call on tokens `(B, T, C)`; all arguments are those of `ForwardState`."""
        return ForwardState(self, x, prefix, class_token, columns, **masks)

    def removals(self, num_patches: int) -> tuple[int, ...]:
        """How many tokens each layer removes, for an input of that many patches.

        Raises:
            ValueError: a schedule for another number of patches, or more tokens than the method can remove.
        """
        if isinstance(self.keep, Schedule):
            made_for = self.keep.tokens[0] - self.keep.prefix
            if made_for != num_patches:
                raise ValueError(
                    f"the schedule was made for {made_for} patch tokens, this input has {num_patches}: "
                    "make one for this input size, or give keep as a ratio"
                )
            remove = tuple(map(operator.index, self.keep.remove))
        else:
            keep = [constant(share) for share in self.keep]
            remove = keep_schedule(num_patches, keep, len(keep), every=self.every).remove
        remaining = num_patches
        for k in remove:
            self.method.check_remove(k, remaining, remedy_of_every(self.every))
            remaining = remaining - k
        return remove

    def removals_each(self, layer: int, lengths: Tensor) -> Tensor:
        """How many tokens that layer removes of every item, `(B,)` long.

        `lengths (B,)` are the numbers of tokens that may merge.
        """
        numbers, ratios = lengths.tolist(), gathered(self.keep, self.every, 1.0)[layer]
        removed = [removed_together(number, ratios) for number in numbers]
        for k, number in zip(removed, numbers, strict=True):
            self.method.check_remove(k, number, remedy_of_every(self.every))
        return torch.tensor(removed, device=lengths.device)

    def rehearse(self) -> list[MergePlan | LinearPlan]:
        """A tiny plan per merging layer, so that a bad option is refused before a model is touched."""
        if "positions" in self.method.needs:
            return []  # how many tokens such a method can remove depends on the grid
        context = {"size": None, "num_layers": len(self.rows), "class_attention": torch.ones(1, 8) / 9,
                   "attention": torch.ones(1, 9, 8) / 9}
        metric, remove = torch.eye(8)[None], 1
        if self.ragged:
            context["mask"], remove = metric.any(dim=1), torch.tensor([1])
        return [
            make_plan(self.method, metric, remove, {**context, "margin": row.margin, "layer": layer}, row.options)
            for layer, row in enumerate(self.rows)
            if row.merges
        ]

    def describe(self) -> str:
        """One line for `repr(model)`."""
        if isinstance(self.keep, Schedule):
            keep = f"remove={list(self.keep.remove)}"
        else:
            keep = f"keep={self.keep[0]:g}" if len(set(self.keep)) == 1 else f"keep={list(self.keep)}"
        rows = [row for row in self.rows if row.merges]
        words = [repr(self.method.name), keep, f"preset={self.preset!r}"]
        if "margin" in self.method.needs:
            words.append(f"margin={_span([row.margin for row in rows])}")
        words.append(f"metric={_span([row.metric for row in rows])}")
        words.append(f"proportional={_span([row.proportional for row in self.rows])}")  # of layers without merges, too
        for name, usual in (("insertion", "between"), ("sized", True)):
            values = [getattr(row, name) for row in rows]
            words += [] if set(values) == {usual} else [f"{name}={_span(values)}"]
        words += [] if self.protect is None else [f"protect={self.protect!r}"]
        words.append(f"restore={self.restore}")
        given = (("every", self.every, 1), ("compile_step", self.compile_step, False), ("fused", self.fused, False))
        words += [f"{name}={value}" for name, value, usual in given if value != usual]
        for name in dict.fromkeys(name for row in rows for name in row.options):
            default = self.method.options[name]
            words.append(f"{name}={_span([row.options.get(name, default) for row in rows])}")
        return f"merging: {', '.join(words)}"

    # A recording belongs to the model that it was opened on, and not to copies of it.
    def __deepcopy__(self, memo: dict) -> Patch:
        twin = memo[id(self)] = replace(self, traces=[])
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "traces": []}


def _span(values: list) -> str:
    """The values of the layers in short: one if they agree, else the first and the last; all if these two are equal."""
    words = [f"{value:g}" if isinstance(value, float) else repr(value) for value in values]
    if words[0] == words[-1] and len(set(words)) > 1:
        return f"[{', '.join(words)}]"
    return words[0] if len(set(words)) == 1 else f"{words[0]}..{words[-1]}"
