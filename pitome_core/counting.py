"""Multiply-accumulates of a model, merging included: every matrix product and convolution, from the shapes.

Norms, softmax, activations and scaling are not counted, as usual. The numbers come from shapes, because counters that
watch kernels miss the products inside fused attention. A multiplication with its addition counts as one (many papers
call this number "FLOPs").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from . import checks
from .family import ModelShape, Unknown, UnsupportedModelError
from .mergers import Method, find_method
from .mergers.preset_table import PresetRow
from .patch import Patch, active_patch
from .patching import family_of
from .schedules import (
    Schedule,
    cheapest_schedule,
    check_every,
    fixed_schedule,
    keep_schedule,
    remedy_of_every,
    target_schedule,
)

PAPER_ROW = PresetRow()  # what layers do if no patch says otherwise


@dataclass(frozen=True)
class LayerCounts:
    """Multiply-accumulates of one block for one image.

    With the merge between attention and MLP, attention runs on the tokens before the merge and the MLP on those after.
    """

    attention: int
    mlp: int
    merge: int

    @property
    def total(self) -> int:
        """Attention, MLP and merge together."""
        return self.attention + self.mlp + self.merge


@dataclass(frozen=True)
class Counts:
    """Multiply-accumulates of one image (batch 1).

    Attributes:
        layers: one entry per block.
        embed: patch embedding.
        head: everything behind the blocks.
        other_ops: exponentials, comparisons and sorts of making the plans, which are no multiply-accumulates.
        blocks_released: the blocks as the released code counts them, for comparison with published numbers: the MLP
            with the tokens before the merge, and no merge.
        tokens: tokens entering each block and leaving the last, prefix included.
    """

    layers: tuple[LayerCounts, ...]
    embed: int
    head: int
    other_ops: int
    blocks_released: int
    tokens: tuple[int, ...]

    @property
    def total(self) -> int:
        """Embedding, blocks with their merges, and head together."""
        return self.embed + sum(layer.total for layer in self.layers) + self.head


def _count(shape: ModelShape, schedule: Schedule, method: Method | None, patch: Patch | None) -> Counts:
    """Counts under a schedule. `patch` says how `method` is used (None: as in the paper)."""
    layers, other_ops, released = [], 0, 0
    rows = [PAPER_ROW] * len(shape.layers) if patch is None else patch.rows
    for block, row, before, after in zip(shape.layers, rows, schedule.tokens, schedule.tokens[1:], strict=False):
        attending = after if row.insertion == "before" else before
        attention = attending * block.attention_linear + 2 * attending**2 * block.attention_channels
        merge = 0
        if before != after and method is not None:
            kind = row.metric.partition("-")[0] if row.insertion != "before" else "hidden"
            width = {"keys": block.attention_channels // block.heads, "concat": block.attention_channels,
                     "hidden": block.channels}[kind]
            if method.cost is not None:
                merge, extra = method.cost(before - shape.prefix, before - after, width)
                other_ops += extra
            if method.reads_attention(row.options):  # queries times keys once more
                merge += before**2 * block.attention_channels
                other_ops += before**2 * block.heads
            transform = not (method.partition or method.drops)
            merge += before * (after if transform else 1) * block.channels  # applying the plan
        layers.append(LayerCounts(attention, (before if row.insertion == "after" else after) * block.mlp_linear, merge))
        released += before * (block.attention_linear + block.mlp_linear) + 2 * before**2 * block.attention_channels
    restored = patch is None or (patch.restore and not patch.method.drops)
    head = shape.head(shape.num_patches if restored else schedule.tokens[shape.reads] - shape.prefix)
    counts = Counts(tuple(layers), shape.embed, head, other_ops, released, schedule.tokens)
    if isinstance(counts.total, Unknown):
        raise UnsupportedModelError(f"this model cannot be counted: {counts.total.reason}")
    return counts


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """The model's sizes. ValueError or TypeError for an input size that is none."""
    if input_size is not None:
        if isinstance(input_size, str) or not isinstance(input_size, Sequence):
            raise TypeError(f"input_size must be (channels, height, width), or (tokens,) of a text; got {input_size!r}")
        input_size = tuple(checks.count(number, f"input_size[{i}]", 1) for i, number in enumerate(input_size))
    return family_of(model).shape(model, input_size)


def _schedule_of(patch: Patch | None, shape: ModelShape) -> Schedule:
    if patch is None:
        return Schedule.from_removals(shape.num_patches, [0] * len(shape.layers), shape.prefix)
    return Schedule.from_removals(shape.num_patches, patch.removals(shape.num_patches), shape.prefix)


def flops(model: nn.Module, input_size: tuple[int, ...] | None = None) -> Counts:
    """Multiply-accumulates of a model for one image (or text), with the merges that it has now.

    Of a model with two towers the image tower is counted; if the text tower alone merges, the text tower.

    Args:
        model: patched or not.
        input_size: (channels, height, width), or (tokens,) for text; None = the model's own.

    Raises:
        UnsupportedModelError: a model of no supported family, or one with a matrix whose products are not known (most
            quantised and LoRA layers are known).
        ValueError: a size that the model does not take.

    Example:
        >>> import timm, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> whole = pc.flops(model).total
        >>> whole, round(pc.flops(pc.apply(model, keep=0.75)).total / whole, 2)
        (17813760, 0.78)
    """
    shape, patch = _shape(model, input_size), active_patch(model)
    return _count(shape, _schedule_of(patch, shape), None if patch is None else patch.method, patch)


def schedule(
    model: nn.Module,
    *,
    keep: float | list[float] | None = None,
    remove: int | list[int] | None = None,
    tokens: int | None = None,
    flops: float | None = None,
    every: int = 1,
    input_size: tuple[int, int, int] | None = None,
) -> Schedule:
    """Tokens to remove per layer, for `pc.apply(model, keep=...)`. Give exactly one of keep, remove, tokens, flops.

    Args:
        model: patched or not. Limits and costs are those of its method; of `pitome` if it is not patched.
        keep: share of patch tokens kept per layer (or one per layer).
        remove: patch tokens to remove per layer (or one count per layer); reduced where a layer cannot lose as many.
        tokens: patch tokens to end with; the number shrinks geometrically.
        flops: a share of the whole model's multiply-accumulates (up to 1), or their number (above 1).
        every: one of so many layers removes what all of them would, as in `pc.apply`.
        input_size: (channels, height, width); None = the model's own.

    Returns:
        The schedule; `tokens` and `flops` targets are met as closely as whole tokens allow.

    Raises:
        ValueError: none or several targets given, or one that cannot be met; `every` that is not 1 to the number of
            layers, or a layer that would have to remove more than it can.

    Example:
        >>> import timm, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)  # 16 patches and a class token
        >>> pc.schedule(model, keep=0.75).tokens, pc.schedule(model, tokens=4).tokens
        ((17, 13, 10), (17, 9, 5))
        >>> pc.schedule(model, keep=0.75, every=2).tokens
        (17, 10, 10)
    """
    targets = {"keep": keep, "remove": remove, "tokens": tokens, "flops": flops}
    given_names = [name for name, value in targets.items() if value is not None]
    if len(given_names) != 1:
        raise ValueError(f"give exactly one of keep, remove, tokens, flops; got {', '.join(given_names) or 'none'}")
    shape, patch = _shape(model, input_size), active_patch(model)
    method = find_method("pitome") if patch is None else patch.method
    num, depth, prefix = shape.num_patches, len(shape.layers), shape.prefix
    every = check_every(every, depth)
    if keep is not None:
        result = keep_schedule(num, keep, depth, prefix, every)
    elif remove is not None:
        result = fixed_schedule(num, remove, depth, prefix, method.max_remove)
    elif tokens is not None:
        result = target_schedule(num, tokens, depth, prefix)
    else:
        flops, whole = checks.number(flops, "flops"), _count(shape, _schedule_of(None, shape), None, None).total
        budget = flops * whole if flops <= 1 else flops

        def cost(option: Schedule) -> float:
            return _count(shape, option, method, patch).total

        most = [0 if layer % every else num for layer in range(depth)]
        cheapest = cost(fixed_schedule(num, most, depth, prefix, method.max_remove))
        if not cheapest <= budget <= whole:
            raise ValueError(
                f"a budget of {budget:.4g} multiply-accumulates cannot be met: this model takes {whole:.4g} whole, "
                f"and {cheapest:.4g} with as many tokens removed as {method.name!r} can"
            )
        result = cheapest_schedule(num, budget, depth, prefix, lambda option: cost(option.gathered(every)))
    result = result if keep is not None else result.gathered(every)
    of_target = {"tokens": "ask for more tokens", "flops": "ask for more of them"}
    for k, entering in zip(result.remove, result.tokens, strict=False):
        method.check_remove(k, entering - prefix, remedy_of_every(every) or of_target.get(given_names[0]))
    return result
