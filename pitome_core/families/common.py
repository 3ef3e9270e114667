"""What model families share: the loop over the blocks, the order of calls inside a block, counts of linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..family import EntryPoint, Unknown
from ..instances import PATCH_ATTRIBUTE, REMOVED, original
from ..merge_plan import LinearPlan, MergePlan
from ..patch import ForwardState, LayerStep, Merged, Patch, anchors

# What a block's attention half returns: its update `(B, T, C)`, keys `(B, H, T, D)`, attention map `(B, T, T)` or None.
Attended = tuple[Tensor, Tensor, Tensor | None]


class AttentionCall:
    """What a block gives its attention besides the tokens, and what it gets back besides the output.

    It is passed to the attention module as an argument of its own, so that the module's output stays what it is without
    merging: hooks and wrappers of the module see what they know. The object lives as long as one call of the block.

    Attributes:
        bias: what attention adds to its scores, `(B, 1, 1, T)` or `(B, H, T, T)`; None = nothing.
        wants_map: whether the attention map is wanted.
        rope: angles of rotary positions, for attention that turns its queries and keys.
        keys: `(B, H, T, D)`, before any rotation; set by the attention.
        map: `(B, T, T)`, the mean over heads, if it is wanted; set by the attention.
    """

    def __init__(self, bias: Tensor | None, wants_map: bool, rope: Tensor | None = None):
        self.bias, self.wants_map, self.rope = bias, wants_map, rope
        self.keys: Tensor | None = None
        self.map: Tensor | None = None

    def with_output(self, y: Tensor) -> Attended:
        """The attention's output together with keys and map; RuntimeError if its forward did not run."""
        if self.keys is None:
            raise RuntimeError(
                "the attention of this block gave no keys: its forward was replaced after pc.apply, or the module was. "
                "Take that out, call pc.apply, then put it in again"
            )
        return y, self.keys, self.map


def attention_point(attn: nn.Module, attend: Callable[..., Any]) -> EntryPoint:
    """The entry point of an attention module: `attend(attn, call, x, ...)` if a block that merges calls it.

    Without a call it does what it does unmerged.
    """
    return attn, "forward", partial(_attention_forward, attend)


def _attention_forward(
    attend: Callable[..., Any],
    attn: nn.Module,
    patch: Patch,
    *args: Any,
    call: AttentionCall | None = None,
    **kwargs: Any,
) -> Any:
    return own_forward(attn, *args, **kwargs) if call is None else attend(attn, call, *args)


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a patched module's forward does without merging."""
    return original(module).forward(module, *args, **kwargs)


def check_step(step: LayerStep | None, block: nn.Module) -> None:
    """Raise RuntimeError if a block is called without a step: by a loop that is not the one of the patched model."""
    if step is None:
        raise RuntimeError(
            f"this {original(block).__qualname__} is a block of a model that merges, and was called by itself. Only "
            "the model's own methods merge, such as model(...) or timm's forward_features. To run the block without "
            "merging: pc.unmerged(block)(...)"
        )


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    state: ForwardState,
    *,
    checkpointing: bool = False,
    take: tuple[int, ...] = (),
    tables: dict[str, Any] | None = None,
) -> tuple[Tensor, list[tuple]]:
    """Run all blocks on the tokens of one forward call.

    Args:
        blocks: the blocks, whose forward takes `size` and `step` and returns tokens, sizes and the plan.
        x: `(B, T, C)` tokens.
        state: the state of the call.
        checkpointing: whether blocks are recomputed in the backward pass.
        take: layers whose tokens are to be returned.
        tables: arguments of the blocks that hold a value for every place on the patch grid (rotary angles, position
            biases). Such blocks also get `place (B, M)`, where the anchors of their tokens stand; None while all tokens
            are in place.

    Returns:
        Tokens `(B, T', C)`, and (tokens, plan so far) after each layer in `take`.
    """
    taken = []
    for layer, block in enumerate(blocks):
        arguments = {"size": state.size, "step": state.step(layer)}
        if tables is not None:
            arguments |= {**tables, "place": state.place}
        if checkpointing and torch.is_grad_enabled():
            x, size, plan = checkpoint(_call, block, x, use_reentrant=False, **arguments)
        else:
            x, size, plan = _call(block, x, **arguments)
        state.add(x, size, plan)
        if layer in take:
            taken.append((x, state.plan))
    state.report()
    return x, taken


def _call(block: nn.Module, x: Tensor, **arguments: Any) -> Merged:
    """Call a block, in the forward or again in the backward; RuntimeError if it does not merge by now."""
    if getattr(block, PATCH_ATTRIBUTE, None) is None:
        raise RuntimeError(REMOVED)
    return block(x, **arguments)


def run_block(
    step: LayerStep,
    x: Tensor,
    size: Tensor | None,
    attend: Callable[[Tensor, Tensor | None, MergePlan | LinearPlan | None], Attended],
    feed: Callable[[Tensor], Tensor],
) -> Merged:
    """Run one block with its merge: tokens `(B, T', C)`, sizes `(B, T')`, and the plan (None if nothing merges).

    Args:
        step: what the block has to know about merging.
        x, size: tokens `(B, T, C)` and their sizes `(B, T)`, None = 1 each.
        attend: `(x, bias, plan)` -> the block's attention half without the residual. `bias (B, 1, 1, T)` makes keys
            count by size, and `plan` is the merge just before it (None: there was none).
        feed: `x` -> the block's MLP half without the residual.
    """
    step, plan = step.on(x.device), None
    if size is not None:
        size = size.to(x.device)
    if step.insertion == "before":
        x, size, plan = step.merge(x, None, size)
    bias = step.bias(size, x.dtype)
    y, keys, attn_map = attend(x, bias, plan)
    x = x + y
    if step.insertion == "between":
        x, size, plan = step.merge(x, keys, size, attn_map)
    x = x + feed(x)
    if step.insertion == "after":
        x, size, plan = step.merge(x, keys, size, attn_map)
    return x, size, plan


def move(place: Tensor | None, plan: MergePlan | LinearPlan | None) -> Tensor | None:
    """Where the tokens stand after a plan, `(B, M)` long, given where they stood (None: each in its own place).

    A merged token stands where its anchor stood.
    """
    if plan is None:
        return place
    return anchors(plan) if place is None else place.to(plan.device).gather(1, anchors(plan))


def transforms(patch: Patch) -> bool:
    """Whether the method is a transform, whose outputs have no place on the patch grid."""
    return any(isinstance(plan, LinearPlan) for plan in patch.rehearse())


def pooled_by_size(patch: Patch, state: ForwardState) -> bool:
    """Whether pooling over patches has to weigh tokens by size: some were dropped, or merged ones are not restored."""
    return state.size is not None and (not patch.restore or state.plan.drops)


def weighted_mean(x: Tensor, size: Tensor) -> Tensor:
    """Mean over tokens of `x (B, T, C)`, each counted `size (B, T)` times: `(B, C)`, summed in float32."""
    share = size / size.sum(dim=1, keepdim=True)
    return (x * share[..., None]).sum(dim=1).to(x.dtype)


def as_grid(x: Tensor, rows: int, columns: int) -> Tensor:
    """Patch tokens `(B, rows * columns, C)` -> `(B, C, rows, columns)`."""
    return x.reshape(x.shape[0], rows, columns, -1).permute(0, 3, 1, 2).contiguous()


def check_format(output_fmt: str, patch: Patch) -> None:
    """Raise ValueError unless intermediates can be given in that format."""
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
    if output_fmt == "NCHW" and not patch.restore:
        raise ValueError("merged tokens (restore=False) form no grid: ask for output_fmt='NLC'")


def image_size(own: tuple[int, int], input_size: tuple[int, ...] | None) -> tuple[int, int]:
    """Height and width to count at; `own` are the model's. ValueError for another number of sizes."""
    if input_size is None:
        return own
    if len(input_size) not in (2, 3):
        raise ValueError(f"the input of this model has a size of (channels, height, width), got {input_size}")
    return input_size[-2:]


# Tensors of attention and pooling modules that are no factor of a product with tokens.
_NO_FACTORS = {"latent", "pos_embed", "relative_position_bias_table", "relative_position_index"}


def linear(*modules: nn.Module | None) -> int | Unknown:
    """Multiply-accumulates per token of all linear maps inside the modules; of a convolution per output position.

    Maps are counted by their features, so that quantised ones, whose weights are packed, count like others. An adapter
    of peft counts as it is: its base, and the updates that are active and not added to the base. Where a module holds a
    matrix in another way, the number is not known.
    """
    return sum(_linear(module, "") for module in modules if module is not None)


def _linear(module: nn.Module, path: str) -> int | Unknown:
    here = f"{path or 'it'} is a {type(module).__qualname__}"
    if hasattr(module, "base_layer") and hasattr(module, "active_adapters"):
        return _adapted(module, path, here)
    if hasattr(module, "original_module") and hasattr(module, "modules_to_save"):  # peft's other copy of a module
        chosen = [] if module.disable_adapters else [n for n in module.active_adapters if n in module.modules_to_save]
        return _linear(module.modules_to_save[chosen[0]] if chosen else module.original_module, path)
    children = dict(module.named_children())
    if isinstance(getattr(module, "in_features", None), int) and (hasattr(module, "weight") or not children):
        return module.in_features * module.out_features
    if isinstance(getattr(module, "in_channels", None), int) and hasattr(module, "kernel_size"):
        return module.out_channels * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(getattr(module, "nx", None), int) and isinstance(getattr(module, "nf", None), int):
        return module.nx * module.nf  # the Conv1D of transformers
    for name, held in {**module._parameters, **module._buffers, **vars(module)}.items():
        if isinstance(held, torch.ScriptObject) or (isinstance(held, Tensor) and held.ndim > 1):
            if name not in _NO_FACTORS:
                return Unknown(f"{here}, and what its {name!r} costs is not known")
    return sum(_linear(child, f"{path}.{name}".lstrip(".")) for name, child in children.items())


def _adapted(layer: nn.Module, path: str, here: str) -> int | Unknown:
    """A map with adapters of peft around it."""
    base = _linear(layer.base_layer, path)
    if layer.disable_adapters or layer.merged:
        return base
    if not hasattr(layer, "lora_A") or set(layer.active_adapters) & set(getattr(layer, "lora_variant", ())):
        return Unknown(f"{here}, and what its adapters cost is not known: merge them into the weights")
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return base + sum(_linear(part[name], path) for name in active for part in (layer.lora_A, layer.lora_B))
