"""What the core needs to run outside plain eager code: in exported and traced graphs, and on the meta device.

Exporters lack some operators that the eager code uses (a stable sort, `searchsorted`). The forms for them give the same
numbers. Of the example's shape only the number of tokens stays in a graph, so that it is right for every batch size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Before torch 2.7 export cannot be told from compilation; compiled code then gets these forms, too.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def exporting() -> bool:
    """Whether the running code is being written into a graph that outlives it."""
    return _is_exporting() or torch.jit.is_tracing()


def constant(value: float) -> float:
    """The same float. Code that `torch.compile(dynamic=True)` makes is then for this value, and not for a symbol.

    Counts of tokens that depend on a symbol are nested symbolic floors, which the compiler does not finish with.
    """
    return float.fromhex(value.hex())  # symbols have no digits: asking for them fixes the value, with a guard


def refuse_exporting(reason: str) -> None:
    """Raise ValueError while exporting, where a graph would silently keep numbers of the example input."""
    if exporting():
        raise ValueError(
            f"a graph that is exported or traced would keep the plan of its example input: {reason}. "
            "Run the model itself, or call pc.remove(model) first and export it unmerged"
        )


def stable_order(values: Tensor, descending: bool = False) -> Tensor:
    """Stable argsort of `values (B, N)` along the last dimension: of equal values the first comes first.

    While exporting, the rank of a value is counted (how many values stand before it), because a stable sort is no
    operator of ONNX. That takes N^2 comparisons, a small part of the N^2 cosines. No value may be NaN.
    """
    if not exporting():
        return values.argsort(dim=-1, descending=descending, stable=True)
    here, other = values[..., :, None], values[..., None, :]  # (B, N, 1), (B, 1, N)
    place = torch.arange(values.shape[-1], device=values.device)
    before = (other > here if descending else other < here) | ((other == here) & (place < place[:, None]))  # (B, N, N)
    return torch.zeros_like(values, dtype=torch.long).scatter(-1, before.sum(dim=-1), place.expand_as(values))


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context without autocast; on the meta device, which has none, a context that does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
