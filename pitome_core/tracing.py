"""Record what merging did: `with pc.record(model) as trace: model(images)`.

A trace holds every forward call of a recording, a forward call its layers, and a layer its plan, sizes and energies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .drawing import plot_trace
from .merge_plan import LinearPlan, MergePlan
from .patch import active_patch
from .patching import patched_parts


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """One layer of one forward call, without prefix tokens. Of a text it has all T tokens; padding is assigned to -1.

    Attributes:
        plan: which tokens merged; the identity in layers that merge nothing.
        size: `(B, M)` sizes after the merge; 0 in padded slots.
    """

    plan: MergePlan | LinearPlan
    size: Tensor

    @property
    def energy(self) -> Tensor | None:
        """`(B, N)` energies that the plan was made from; None for methods without, and in layers that merge nothing."""
        return self.plan.energy


@dataclass(frozen=True, eq=False)
class ForwardTrace:
    """One forward call, layer by layer."""

    layers: tuple[LayerTrace, ...]

    def plan(self, layers: int | None = None) -> MergePlan | LinearPlan:
        """The plan from the patches to the tokens after the first `layers` layers (None = all).

        After 0 layers it is the identity, also for a transform.
        """
        first = self.layers[0]
        plan, *steps = [layer.plan for layer in self.layers[:layers]] or [
            MergePlan.identity(first.size.shape[0], first.plan.shape[1], first.size.device)
        ]
        for step in steps:
            plan = plan.to(step.device).then(step)  # layers of one model may lie on several devices
        return plan

    @property
    def assignment(self) -> Tensor:
        """`(B, N_patches)` long: the final token of every patch, -1 = dropped.

        For text `(B, T)` over all tokens. [CLS] and [SEP] are included and keep a token of their own; -1 = padding.

        Raises:
            ValueError: the method is a transform, which assigns no patch to a token.
        """
        plan = self.plan()
        if not isinstance(plan, MergePlan):
            raise ValueError("a transform assigns no patch to a token: read `plan().matrix()` instead")
        return plan.assignment


class Trace:
    """What `record` yields. `forwards` has one entry for each forward call of the recording thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.forwards: list[ForwardTrace] = []

    def add(self, steps: list[tuple[MergePlan | LinearPlan, Tensor]]) -> None:
        """Append a forward call from the plan and the sizes of each layer. The patched model calls this."""
        self.forwards.append(ForwardTrace(tuple(LayerTrace(plan, size) for plan, size in steps)))

    @property
    def last(self) -> ForwardTrace:
        """The last forward call; RuntimeError if there was none."""
        if not self.forwards:
            raise RuntimeError("nothing was recorded: call the model inside `with pc.record(model) as trace:`")
        return self.forwards[-1]

    @property
    def layers(self) -> tuple[LayerTrace, ...]:
        """The layers of the last forward call."""
        return self.last.layers

    @property
    def assignment(self) -> Tensor:
        """The final token of every patch in the last forward call, as in `ForwardTrace.assignment`."""
        return self.last.assignment

    def plot(self, axes: Any = None) -> Any:
        """Draw the last forward call: tokens by layer, and the sizes of the last ones (all items together).

        Outputs of a transform have size 1 each, because they stand for no number of patches.

        Args:
            axes: two axes of matplotlib; None = those of a new figure.

        Returns:
            The axes. ImportError without matplotlib.
        """
        return plot_trace(self, axes)


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record every forward call that this thread makes on a patched model.

    Raises:
        RuntimeError: the model is not patched, or it is compiled (a compiled graph would keep the recording of its
            first call). The message says what to do instead.

    Example:
        >>> import timm, torch, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()  # 16 patches, random weights
        >>> with pc.record(pc.apply(model, keep=0.75)) as trace:
        ...     logits = model(torch.zeros(1, 3, 64, 64))
        >>> [layer.plan.num_tokens for layer in trace.layers], trace.assignment.shape
        ([12, 9], torch.Size([1, 16]))
    """
    if hasattr(model, "_orig_mod"):
        raise RuntimeError("a compiled model cannot be recorded: record the model that was compiled, `model._orig_mod`")
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got a {type(model).__qualname__}")
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
