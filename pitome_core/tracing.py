"""See what merging did: `with pc.record(model) as trace: model(images)`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .merge_plan import LinearPlan, MergePlan
from .patch import active_patch
from .patching import patched_parts


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """One layer of one forward call, prefix tokens left out; of a text all T tokens, padding assigned to -1.

    Attributes:
        plan: what merged; the identity where nothing did.
        size: `(B, M)` sizes after the merge; 0 in padded slots.
    """

    plan: MergePlan | LinearPlan
    size: Tensor

    @property
    def energy(self) -> Tensor | None:
        """`(B, N)` energies the plan was made from; None for methods without, and where nothing merged."""
        return self.plan.energy


@dataclass(frozen=True, eq=False)
class ForwardTrace:
    """One forward call."""

    layers: tuple[LayerTrace, ...]

    def plan(self, layers: int | None = None) -> MergePlan | LinearPlan:
        """The plan from the patches to the tokens behind the first `layers` layers (None = all)."""
        steps = [layer.plan for layer in self.layers[:layers]]
        if not steps:
            first = self.layers[0].plan
            return MergePlan.identity(*first.assignment.shape, device=first.assignment.device)
        plan = steps[0]
        for step in steps[1:]:
            plan = plan.then(step)
        return plan

    @property
    def assignment(self) -> Tensor:
        """`(B, N_patches)`: the final token of every patch, -1 = dropped; ValueError after a transform.

        For text `(B, T)` over all tokens, [CLS] and [SEP] included (they keep a token of their own), -1 = padding.
        """
        plan = self.plan()
        if not isinstance(plan, MergePlan):
            raise ValueError("a transform assigns no patch to a token: read `plan().matrix()` instead")
        return plan.assignment


class Trace:
    """What `record` yields. `forwards` has one entry per call of the recording thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.forwards: list[ForwardTrace] = []

    def add(self, steps: list[tuple[MergePlan | LinearPlan, Tensor]]) -> None:
        """Append a forward call (called by the patched model)."""
        self.forwards.append(ForwardTrace(tuple(LayerTrace(plan, size) for plan, size in steps)))

    @property
    def last(self) -> ForwardTrace:
        """The last call; RuntimeError when there was none."""
        if not self.forwards:
            raise RuntimeError("nothing was recorded: call the model inside `with pc.record(model) as trace:`")
        return self.forwards[-1]

    @property
    def layers(self) -> tuple[LayerTrace, ...]:
        """The layers of the last call."""
        return self.last.layers

    @property
    def assignment(self) -> Tensor:
        """The final assignment of the last call."""
        return self.last.assignment


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record every forward call that this thread makes on a patched model.

    Raises:
        RuntimeError: the model is not patched, or compiled (a compiled graph would keep the recording of its first
            call); it says what to do instead.
    """
    if hasattr(model, "_orig_mod"):
        raise RuntimeError("a compiled model cannot be recorded: record the model that was compiled, `model._orig_mod`")
    patch = active_patch(model)
    if patch is None:
        inside = patched_parts(model)
        hint = f"; a patched model lies inside, at {inside[0]!r}: record that one" if inside else ""
        raise RuntimeError(f"this {type(model).__qualname__} does not merge: call pc.apply on it first{hint}")
    trace = Trace()
    patch.traces.append(trace)
    try:
        yield trace
    finally:
        patch.traces.remove(trace)
