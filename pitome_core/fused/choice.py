"""What a patch merges with: the functions of `step.py` where kernels are wanted and can be had, else none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..mergers import Method
from ..patch import LayerRow


def functions(
    fused: bool | str, method: Method, rows: tuple[LayerRow, ...], ragged: bool
) -> dict[str, Callable[..., Any]]:
    """Fields of a patch that merges by kernels; none for one that does not. Triton is imported only where it may run.

    Raises:
        ValueError: `fused` is True, and the installation, the method, its options or texts stand against it.
    """
    if fused is False or (fused == "auto" and (ragged or not torch.cuda.is_available())):
        return {}
    from . import step

    reasons = tuple(step.not_covered(method, row.options) if row.merges else None for row in rows)
    reason = next(filter(None, (step.missing(), "texts take the torch path" if ragged else None, *reasons)), None)
    if reason and fused is True:
        raise ValueError(f"fused=True cannot merge: {reason}. fused='auto' takes the torch path there")
    if step.missing():
        return {}
    merge_tokens = partial(step.merge_tokens, reasons=reasons, required=fused is True)
    return {"merge_tokens": merge_tokens, "size_bias": step.bias_of_sizes}
