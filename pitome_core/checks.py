"""Checks of what callers give: every argument of a public function is looked at here before it is used.

Values that depend on tensors are read only where this is possible and where it does not slow a model down: a plan of a
registered method is made inside a forward call, which may be compiled, exported or traced (`in_graph`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, fx


def in_graph() -> bool:
    """Whether this code runs while a model is compiled, exported or traced, so that no tensor can be read."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def readable(*values: Tensor) -> bool:
    """Whether the values of tensors can be read here: not in a graph (of CUDA neither), nor on the device `meta`."""
    captured = in_graph() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    return not captured and all(value.device.type != "meta" for value in values)


def plain(value: Any) -> Any:
    """A number of numpy, or a tensor of one number, as the Python number; other real numbers as float.

    A number of lower precision becomes the shortest decimal that rounds to it: float32 has 0.925 as 0.92500001192...,
    and 1 - 0.92500001192... of 200 tokens would be 14 tokens, not 15.
    """
    if isinstance(value, str) or not (isinstance(value, Tensor) or type(value).__module__ == "numpy"):
        return float(value) if isinstance(value, Real) and not isinstance(value, int) else value
    value = torch.as_tensor(value)
    if value.ndim > 0:
        return value
    if not value.is_floating_point():
        return value.item()
    decimals = (float(f"{value.item():.{digits}g}") for digits in range(1, 18))
    return next((decimal for decimal in decimals if value.new_tensor(decimal) == value), value.item())


def number(value: Any, name: str) -> float:
    """`value` as a float. TypeError unless it is one real number, ValueError if float32 has it as NaN or infinite."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_short(value)}")
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name} must be a finite number, got {value}")
    return float(value)


def integer(value: Any, name: str) -> int:
    """`value` as an int. TypeError unless it is one integer."""
    value = plain(value)
    if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {_short(value)}")
    return operator.index(value)


def count(value: Any, name: str, least: int = 0) -> int:
    """`value` as an int. TypeError unless it is one integer, ValueError if it is below `least`."""
    value = integer(value, name)
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    return value


def flag(value: Any, name: str) -> bool:
    """`value` as a bool. TypeError for everything else, because "no" and 2 would count as true."""
    if not isinstance(plain(value), bool):
        raise TypeError(f"{name} must be True or False, got {_short(value)}")
    return plain(value)


def word(value: Any, name: str, allowed: Iterable[str]) -> str:
    """`value`, one of the allowed words; ValueError otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")
    return value


def per_layer(value: Any, num_layers: int, name: str, entry: Callable[[Any, str], Any] = number) -> tuple:
    """One number per layer, from one for all layers or from a list, tuple, array or tensor with one for each."""
    values = list(plain(value)) if getattr(value, "ndim", 0) == 1 else value
    if isinstance(values, str) or not isinstance(values, Sequence):
        return (entry(values, name),) * num_layers
    if len(values) != num_layers:
        raise ValueError(f"{name} has {len(values)} entries, the model {num_layers} layers: give one per layer")
    return tuple(entry(part, f"{name}[{layer}]") for layer, part in enumerate(values))


def tensor(value: Any, name: str, shape: tuple[int | None, ...], kinds: str = "real") -> Tensor:
    """`value`, a tensor of that shape (None = any size) and of one of these kinds: TypeError or ValueError otherwise.

    `kinds`: `real` (floating or integer), `floating`, `integer`, `bool`.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_short(value)}")
    floating, boolean = value.is_floating_point(), value.dtype == torch.bool
    fits = {"real": not boolean, "floating": floating, "integer": not (floating or boolean), "bool": boolean}[kinds]
    if value.is_complex() or not fits:
        raise ValueError(f"{name} must be {'an' if kinds == 'integer' else 'a'} {kinds} tensor, got {value.dtype}")
    if in_graph():  # there, sizes may be symbols or tensors, and a comparison would fix them
        return value
    given = tuple(value.shape)
    if len(given) != len(shape) or any(want not in (None, have) for want, have in zip(shape, given, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {given}")
    return value


def fields(plan: Any, reductions: Sequence[str]) -> Any:
    """The `MergePlan`; ValueError or TypeError if its fields have wrong dtypes or shapes."""
    slot = tensor(plan.assignment, "assignment", (None, None), "integer")
    tensor(plan.anchored, "anchored", tuple(slot.shape), "bool")
    word(plan.reduce, "reduce", reductions)
    if plan.valid is not None:
        tensor(plan.valid, "valid", (slot.shape[0], plan.num_tokens), "bool")
    for name in ("weight", "energy"):
        if getattr(plan, name) is not None:
            tensor(getattr(plan, name), name, tuple(slot.shape))
    return plan


def slots(plan: Any) -> None:
    """Raise ValueError unless the slots of a `MergePlan`, built by hand, are those of its anchors."""
    if not readable(plan.assignment, plan.anchored):
        return
    slot, number = plan.assignment, plan.anchored.sum(dim=1, keepdim=True)  # (B, N), (B, 1)
    used = plan.num_tokens if plan.valid is None else plan.valid.sum(dim=1, keepdim=True)
    own = (plan.anchored.cumsum(dim=1) - 1 == slot) | ~plan.anchored
    if not bool((own & (slot >= -int(plan.drops)) & (slot < number)).all() & (number == used).all()):
        raise ValueError("this is no plan: anchors have the slots 0, 1, ... in their order, as many as are in use, "
                         "and other tokens one of these (-1 with drops=True)")


def roots(root: Tensor, num_tokens: int | None, drops: bool) -> Tensor:
    """Roots `(B, N)` as long. ValueError unless each is an anchor, or -1 if tokens drop; anchors are `num_tokens`."""
    root = tensor(root, "root", (None, None), "integer").long()
    if not readable(root):
        return root
    outside = (root < -1) | (root >= root.shape[1])
    if bool(outside.any()):
        raise ValueError(f"a root is a token, 0 to {root.shape[1] - 1}, or -1; got {int(root[outside][0])}")
    if not flag(drops, "drops") and bool((root < 0).any()):
        raise ValueError("a root of -1 drops its token, or marks padding: say drops=True")
    chained = (root.gather(1, root.clamp_min(0)) != root) & (root >= 0)
    if bool(chained.any()):
        item, token = chained.nonzero()[0].tolist()
        raise ValueError(f"root[{item}, {token}] is {int(root[item, token])}, which is no anchor, because it joins "
                         "another token: give the root of that one")
    number = (root == torch.arange(root.shape[1], device=root.device)).sum(dim=1)
    if num_tokens is not None and bool((number != count(num_tokens, "num_tokens")).any()):
        raise ValueError(f"num_tokens is {num_tokens}, but items have {number.min()} to {number.max()} anchors")
    return root


def pairs(source: Tensor, target: Tensor, width: int, active: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """Sources and targets `(B, k)` as long. ValueError unless distinct tokens merge into tokens that stay."""
    width, source = count(width, "width"), tensor(source, "source", (None, None), "integer").long()
    target = tensor(target, "target", tuple(source.shape), "integer").long()
    for value, name, size in ((active, "active", source.shape[1]), (mask, "mask", width)):
        if value is not None:
            tensor(value, name, (source.shape[0], size), "bool")
    if active is not None and mask is None:
        raise ValueError("active needs a mask: without padding all items merge equally many pairs")
    if not readable(source, target):
        return [source, target]
    used = torch.ones_like(source, dtype=torch.bool) if active is None else active
    source, target = source.where(used, 0), target.where(used, 0)
    ends = torch.cat([source, target], dim=1)
    if bool(((ends < 0) | (ends >= width)).any()):
        raise ValueError(f"tokens have the indices 0 to {width - 1}, got {ends.min()} to {ends.max()}")
    times = source.new_zeros(source.shape[0], width).scatter_add_(1, source, used.long())  # how often each is a source
    if bool((times > 1).any()):
        raise ValueError(f"token {int((times > 1).nonzero()[0, 1])} is a source twice: a token merges once")
    if bool((used & (times.gather(1, target) > 0)).any()):
        raise ValueError("a target is a source as well: merge into the token that stays")
    if mask is not None and bool((used & ~(mask.gather(1, source) & mask.gather(1, target))).any()):
        raise ValueError("a source or target is padding: mark pairs that are not in use in `active`")
    return [source, target]


def data(value: Any) -> Any:
    """`value` as JSON has it: lists for tuples, arrays and tensors, objects for dataclasses; what is none, as it is."""
    value = plain(value)
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: data(part) for name, part in value.items()}
    if isinstance(value, (Sequence, Tensor)) and not isinstance(value, str):
        return [data(part) for part in value]
    return value


def no_proxy(*values: Any) -> None:
    """TypeError for the stand-ins that `torch.fx.symbolic_trace` calls a model with: they have no number of tokens."""
    if any(isinstance(value, fx.Proxy) for value in values):
        raise TypeError("torch.fx.symbolic_trace cannot trace a merging model, because its input has no shape there: "
                        "use torch.export.export, which traces with an example")


def _short(value: Any) -> str:
    """A value and its type in an error message."""
    shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return f"{type(value).__name__} {shown if len(shown) < 60 else shown[:57] + '...'}"
