"""Multiply-accumulates of a model, merging included: every matrix product and convolution, from the shapes.

Norms, softmax, activations and scaling are not counted, as usual. Counters that watch kernels miss the attention
product inside a fused kernel. One multiply-accumulate counts once (many papers write "FLOPs" for the same number).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .family import ModelShape
from .mergers import Method, find_method
from .mergers.preset_table import PresetRow
from .patch import Patch, active_patch
from .patching import family_of
from .schedules import Schedule, cheapest_schedule, fixed_schedule, keep_schedule, target_schedule

PAPER_ROWS = (PresetRow(),)  # where no patch says otherwise


@dataclass(frozen=True)
class LayerCounts:
    """Multiply-accumulates of one block for one image: attention on the tokens before the merge, MLP after it (for a
    merge between the two)."""

    attention: int
    mlp: int
    merge: int

    @property
    def total(self) -> int:
        """All three."""
        return self.attention + self.mlp + self.merge


@dataclass(frozen=True)
class Counts:
    """Multiply-accumulates of one image (batch 1).

    Attributes:
        layers: one entry per block.
        embed: patch embedding.
        head: everything behind the blocks.
        other_ops: exponentials, comparisons and sorts of making the plans; no multiply-accumulates.
        blocks_released: the blocks as the released counter sees them: the MLP charged with the tokens before the
            merge, the merge itself not counted. For comparison with published numbers.
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
        """Embedding, blocks with merges, head."""
        return self.embed + sum(layer.total for layer in self.layers) + self.head


def _count(shape: ModelShape, schedule: Schedule, method: Method | None, patch: Patch | None) -> Counts:
    """Counts under a schedule; `patch` says in which way `method` is used (None: as the paper)."""
    layers, other, released = [], 0, 0
    rows = PAPER_ROWS * len(shape.layers) if patch is None else patch.rows
    for block, row, before, after in zip(shape.layers, rows, schedule.tokens, schedule.tokens[1:], strict=False):
        insertion = "between" if row is None else row.insertion
        attending = after if insertion == "before" else before
        attention = attending * block.attention_linear + 2 * attending**2 * block.attention_channels
        merge = 0
        if before != after and method is not None:
            kind = row.metric.partition("-")[0] if insertion != "before" else "hidden"
            width = {"keys": block.attention_channels // block.heads, "concat": block.attention_channels,
                     "hidden": block.channels}[kind]
            if method.cost is not None:
                merge, extra = method.cost(before - shape.prefix, before - after, width)
                other += extra
            if method.reads_attention(row.options):  # queries times keys once more
                merge += before**2 * block.attention_channels
                other += before**2 * block.heads
            transform = not (method.partition or method.drops)
            merge += before * (after if transform else 1) * block.channels  # applying the plan
        layers.append(LayerCounts(attention, (before if insertion == "after" else after) * block.mlp_linear, merge))
        released += before * (block.attention_linear + block.mlp_linear) + 2 * before**2 * block.attention_channels
    whole_at_head = patch is None or (patch.restore and not patch.method.drops)
    head = shape.head(shape.num_patches if whole_at_head else schedule.tokens[shape.reads] - shape.prefix)
    return Counts(tuple(layers), shape.embed, head, other, released, schedule.tokens)


def _schedule_of(patch: Patch | None, shape: ModelShape) -> Schedule:
    if patch is None:
        return Schedule.from_removals(shape.num_patches, [0] * len(shape.layers), shape.prefix)
    return Schedule.from_removals(shape.num_patches, patch.removals(shape.num_patches), shape.prefix)


def flops(model: nn.Module, input_size: tuple[int, ...] | None = None) -> Counts:
    """Multiply-accumulates of a model for one image (or text), merged as it is now.

    Of a model with two towers they are the image tower's; where its text tower alone merges, that one's.

    Args:
        model: patched or not.
        input_size: (channels, height, width), or (tokens,) for text; None = the model's own.

    Raises:
        UnsupportedModelError: a model of no supported family.
        ValueError: a size that the model does not take.
    """
    shape = family_of(model).shape(model, input_size)
    patch = active_patch(model)
    return _count(shape, _schedule_of(patch, shape), None if patch is None else patch.method, patch)


def schedule(
    model: nn.Module,
    *,
    keep: float | list[float] | None = None,
    remove: int | list[int] | None = None,
    tokens: int | None = None,
    flops: float | None = None,
    input_size: tuple[int, int, int] | None = None,
) -> Schedule:
    """Tokens to remove per layer, for `pc.apply(model, keep=...)`. Give exactly one of the four.

    Args:
        model: patched or not; a patched one lends its method's limits and costs, else `pitome`'s are used.
        keep: share of patch tokens kept per layer (or one per layer).
        remove: patch tokens to remove per layer (or one count per layer); reduced where a layer cannot lose as many.
        tokens: patch tokens to end with; the number shrinks geometrically.
        flops: a share of the whole model's multiply-accumulates (up to 1), or their number (above 1).
        input_size: (channels, height, width); None = the model's own.

    Returns:
        The schedule; `tokens` and `flops` targets are met as closely as whole tokens allow.

    Raises:
        ValueError: none or several targets given, or one that cannot be met.
    """
    given = {"keep": keep, "remove": remove, "tokens": tokens, "flops": flops}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give exactly one of keep, remove, tokens, flops; got {', '.join(named) or 'none'}")
    shape = family_of(model).shape(model, input_size)
    patch = active_patch(model)
    method = find_method("pitome") if patch is None else patch.method
    num, depth, prefix = shape.num_patches, len(shape.layers), shape.prefix
    if keep is not None:
        made = keep_schedule(num, keep, depth, prefix)
    elif remove is not None:
        made = fixed_schedule(num, remove, depth, prefix, method.max_remove)
    elif tokens is not None:
        made = target_schedule(num, tokens, depth, prefix)
    else:
        whole = _count(shape, _schedule_of(None, shape), None, None).total
        budget = flops * whole if flops <= 1 else flops

        def cost(option: Schedule) -> float:
            return _count(shape, option, method, patch).total

        cheapest = cost(fixed_schedule(num, num, depth, prefix, method.max_remove))
        if not cheapest <= budget <= whole:
            raise ValueError(
                f"a budget of {budget:.4g} multiply-accumulates cannot be met: this model takes {whole:.4g} whole, "
                f"and {cheapest:.4g} with as many tokens removed as {method.name!r} can"
            )
        made = cheapest_schedule(num, budget, depth, prefix, cost)
    remedy = {"tokens": "ask for more tokens", "flops": "ask for more of them"}.get(named[0])
    for k, entering in zip(made.remove, made.tokens, strict=False):
        method.check_remove(k, entering - prefix, remedy)
    return made
