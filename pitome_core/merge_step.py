"""The merge step of one layer, on items of one length: what tokens are compared by, the plan, the merge.

It is a function of plain values, so that it can be compiled. `patch.py` calls it, and has the step for items of unequal
length.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .merge_plan import LinearPlan, MergePlan
from .portable import full_precision


def layer_metric(kind: str, x: Tensor, keys: Tensor | None, prefix: int, mergeable: Tensor | None = None) -> Tensor:
    """What tokens are compared by, `(B, N, .)`, from tokens `x (B, T, C)` and keys `(B, H, T, D)`.

    `kind` is one of `METRICS`. `mergeable (B, N)` marks the tokens that a centred metric takes the mean of (None: all).
    """
    kind, _, centred = kind.partition("-")
    if kind == "hidden" or keys is None:
        metric = x[:, prefix:]  # (B, N, C)
    elif kind == "concat":
        metric = keys[:, :, prefix:].transpose(1, 2).flatten(2)  # (B, N, H D)
    else:
        # The mean is float32, because near-parallel keys would become equal in half precision.
        dtype = torch.float32 if keys.dtype.itemsize < 4 else keys.dtype
        metric = keys[:, :, prefix:].mean(dim=1, dtype=dtype)  # (B, N, D)
    if not centred:
        return metric
    if mergeable is None:
        return metric - metric.mean(dim=1, keepdim=True)
    share = mergeable / mergeable.sum(dim=1, keepdim=True).clamp_min(1)
    return metric - (metric * share[..., None]).sum(dim=1, keepdim=True)


METRICS = ("keys", "hidden", "concat", "keys-centred", "hidden-centred", "concat-centred")


def merge_step(
    function: Callable, arguments: dict[str, Any], kind: str, remove: int, prefix: int,
    x: Tensor, keys: Tensor | None, size: Tensor | None,
) -> tuple[Tensor, Tensor, MergePlan | LinearPlan]:
    """Merge `x (B, T, C)` by the plan of a method: tokens `(B, T', C)`, sizes `(B, T')`, the plan.

    `function` and `arguments` are the method's, `kind` is its metric. They are plain values, because compiled code
    checks in each call every object that it has read.
    """
    with torch.no_grad(), full_precision(x.device):
        plan = function(layer_metric(kind, x, keys, prefix), remove, **arguments)
    merged, new_size = plan.merge(x, size, prefix=prefix)
    return merged, new_size, plan


# Compiled steps of each owner, by layer. They are not stored on the owner, because it can be pickled and they cannot.
_COMPILED: WeakKeyDictionary[object, dict[int, Callable]] = WeakKeyDictionary()


def compiled_step(owner: object, layer: int) -> Callable:
    """`merge_step`, compiled for the shapes that this layer of the owner (a patch) meets."""
    by_layer = _COMPILED.setdefault(owner, {})
    if layer not in by_layer:
        # torch.compile keeps at most eight versions for one code object and tries them in turn. Every layer has shapes
        # of its own, so with one code object for all layers a ninth layer would not be compiled, and finding the
        # version for a layer would take time. Therefore every layer has a copy of the code object.
        copied = FunctionType(merge_step.__code__.replace(), globals())
        by_layer[layer] = torch.compile(copied, dynamic=False)
    return by_layer[layer]
