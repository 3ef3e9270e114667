"""The merge step of a layer made of the fused operators: what it covers, the plan, the merge.

It covers `pitome` (all kernels; `split` alternate or high_low; any `protection`, `edges` and `gate`) and `tome`, on
items of one length with at most 4,096 patch tokens, in float32 or half precision. Texts, larger grids, float64 and
other methods take the torch path. A plan is the one of the torch path; where two scores are closer than 1e-6 it may
differ.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from ..attention import size_bias
from ..merge_plan import MergePlan
from ..mergers import Method
from ..mergers.pitome import plan_pitome
from ..mergers.pitome_variants import Variant
from ..mergers.tome import plan_tome
from ..patch import LayerStep, Merged
from ..patch import merge_tokens as merge_by_torch
from ..portable import exporting

try:
    from . import operators
except (ImportError, AttributeError):  # no Triton, or a PyTorch before 2.6
    operators = None

MOST_TOKENS, MOST_CHANNELS, MOST_ITEMS = 4096, 8192, 65535
SPLITS = ("alternate", "high_low")
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1), which takes tensors of any device."""
    if operators is None:
        return False
    from . import kernels

    return type(kernels.metric_kernel).__name__ == "InterpretedFunction"


def missing() -> str | None:
    """What this installation lacks, or None."""
    if operators is not None:
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch's CUDA wheels)"
    return f"PyTorch {torch.__version__} cannot register Triton kernels (2.6 or later can)"


def not_covered(method: Method, options: dict[str, Any]) -> str | None:
    """Why no kernels merge by that method with these options, or None."""
    if method.function is plan_tome:
        return None
    if method.function is not plan_pitome:
        return f"there are no kernels for method {method.name!r}"
    chosen = method.options | options
    if chosen["score"] != "energy":
        return f"there is no kernel for score={chosen['score']!r}"
    if chosen["split"] not in SPLITS:
        return f"there is no kernel for split={chosen['split']!r}"
    return None


def not_here(step: LayerStep, x: Tensor, keys: Tensor | None) -> str | None:
    """Why the kernels cannot run on these tensors, or None."""
    read = x if keys is None or step.row.metric.startswith("hidden") else keys
    heads = read.shape[1] if read.ndim == 4 and step.row.metric.startswith("concat") else 1
    tokens, channels = x.shape[1] - step.prefix, heads * read.shape[-1]
    if step.mergeable is not None:
        return "items of unequal length take the torch path"
    if x.device.type != "cuda" and not _INTERPRETED:
        return f"the kernels are for CUDA, the tokens are on the device {x.device.type!r}"
    if x.dtype not in TYPES or read.dtype not in TYPES:
        return f"there are no kernels for {x.dtype if x.dtype not in TYPES else read.dtype}"
    if not 0 < x.shape[0] <= MOST_ITEMS:
        return f"{x.shape[0]} items: the kernels take 1 to {MOST_ITEMS:,}"
    if tokens > MOST_TOKENS or channels > MOST_CHANNELS:
        return (f"{tokens:,} tokens of {channels:,} channels: the kernels take at most {MOST_TOKENS:,} of "
                f"{MOST_CHANNELS:,}")
    return None


_INTERPRETED = interpreted()


def make_plan(step: LayerStep, x: Tensor, keys: Tensor | None) -> MergePlan:
    """The plan of a layer, from tokens `(B, T, C)` and keys `(B, H, T, D)`."""
    kind, _, centred = step.row.metric.partition("-")
    if kind == "hidden" or keys is None:
        read, kind = x[:, step.prefix :], "hidden"
    else:
        read = keys[:, :, step.prefix :]
    width, k, options = x.shape[1] - step.prefix, step.remove, step.patch.method.options | step.row.options
    metric = read, k, kind == "concat", bool(centred)
    if step.patch.method.function is plan_tome:
        source, target = operators.pairs_by_place(*metric, options["parity"] == "all")
        return MergePlan.from_merges(source, target, width, checked=False)
    variant = Variant(**{name: options[name] for name in Variant.__dataclass_fields__})
    source, target, energy = operators.pairs_by_energy(
        *metric, options["kernel"], step.row.margin, options["alpha"], min(variant.mergeable(k, width), width),
        variant.split == "high_low", variant.edges == "best" or variant.gate > 1,
    )
    return MergePlan.from_merges(source, target, width, energy=energy, checked=False)


def merge_tokens(
    step: LayerStep, x: Tensor, keys: Tensor | None, size: Tensor | None, attention_map: Tensor | None,
    *, reasons: tuple[str | None, ...], required: bool,
) -> Merged:
    """`patch.merge_tokens` by kernels. Where they cannot, it is the torch path, or with `required` ValueError.

    `reasons` has `not_covered` of every layer. They are worked out once, at `pc.apply`, and not in every forward.
    """
    if step.remove == 0:
        return x, size, None
    reason = reasons[step.layer] or not_here(step, x, keys)
    if reason and required:
        raise ValueError(f"fused=True cannot merge layer {step.layer}: {reason}. "
                         "fused='auto' takes the torch path there")
    if reason or (exporting() and not required):  # a graph for other devices
        return merge_by_torch(step, x, keys, size, attention_map)
    with torch.no_grad():
        made = make_plan(step, x, keys)
    merged, new_size = operators.merge_pairs(x, size, *made.pairs, step.prefix, step.row.sized)
    return merged, new_size, made


def bias_of_sizes(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`attention.size_bias` in one launch, where the kernels can run."""
    here = size is not None and (size.device.type == "cuda" or _INTERPRETED) and not exporting()
    if not here or size.dtype != torch.float32 or dtype not in TYPES or size.numel() == 0:
        return size_bias(size, dtype)
    return operators.log_sizes(size, dtype)[:, None, None, :]
