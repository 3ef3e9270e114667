"""Put merging into a model and take it out again: `apply`, `remove`, `patched`.

A patched model has other methods on the *instance*; its class stays as it is. The model family says which methods these
are. What they do in a forward call stands in `patch.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

from torch import nn

from .families import find_family
from .family import Family, UnsupportedModelError
from .merge_step import METRICS
from .mergers import Method, find_method
from .mergers.preset_table import PRESETS, PresetRow
from .patch import INSERTIONS, PATCH_ATTRIBUTE, LayerRow, Merged, Patch, active_patch
from .schedules import Schedule, check_keep

_INSTALLED_ATTRIBUTE = "_pitome_installed"


@dataclass(frozen=True)
class Arguments:
    """What `apply` was given for the patch of each tower; its docstring says what the fields mean."""

    method: Method
    keep: float | Sequence[float] | Schedule
    preset: str | None
    proportional: bool | None
    margin: float | Sequence[float] | None
    metric: str | None
    insertion: str | None
    protect: str | None
    restore: bool
    compile_step: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Installed:
    """What `apply` did to a model. It is kept on the model, so that `remove` can undo it.

    Attributes:
        towers: family and patch of each tower that merges, the image tower's first.
        replaced: module, attribute, whether the instance had an attribute of that name, and its value.
    """

    towers: tuple[tuple[Family, Patch], ...]
    replaced: tuple[tuple[nn.Module, str, bool, Any], ...]


def _installed(model: nn.Module) -> Installed | None:
    """What `apply` did to this very module; None if it was not called on it."""
    return vars(model).get(_INSTALLED_ATTRIBUTE)


def find_patch(model: nn.Module) -> Patch | None:
    """The patch that `apply` put on this very module (with two towers, the image tower's); None without one."""
    installed = _installed(model)
    return None if installed is None else installed.towers[0][1]


def family_of(model: nn.Module) -> Family:
    """The family whose sizes a model is counted by: that of the text tower where it alone merges."""
    installed = _installed(model)
    return find_family(model) if installed is None else installed.towers[0][0]


def patched_parts(model: nn.Module) -> list[str]:
    """Names of the modules inside a model that `apply` was called on."""
    return [name for name, part in model.named_modules() if name and _installed(part) is not None]


def _describe(model: nn.Module, towers: tuple[tuple[Family, Patch], ...]) -> str:
    lines = [type(model).extra_repr(model), *(patch.describe() for _, patch in towers)]
    return "\n".join(line for line in lines if line)


def _install(model: nn.Module, towers: tuple[tuple[Family, Patch], ...]) -> None:
    values: dict[tuple[nn.Module, str], Any] = {
        (model, "extra_repr"): partial(_describe, model, towers),
        (model, PATCH_ATTRIBUTE): towers[0][1],
    }
    for family, patch in towers:
        for module, name, function in family.entry_points(model, patch):
            values |= {(module, name): function, (module, PATCH_ATTRIBUTE): patch}
    replaced = tuple((module, name, name in vars(module), vars(module).get(name)) for module, name in values)
    for (module, name), value in values.items():
        setattr(module, name, value)
    setattr(model, _INSTALLED_ATTRIBUTE, Installed(towers, replaced))


def _uninstall(model: nn.Module) -> Installed | None:
    installed = _installed(model)
    if installed is not None:
        for module, name, had_own, value in installed.replaced:
            if had_own:
                setattr(module, name, value)
            else:
                delattr(module, name)
        delattr(model, _INSTALLED_ATTRIBUTE)
    return installed


def apply(
    model: nn.Module,
    method: str = "pitome",
    keep: float | Sequence[float] | Schedule = 0.925,
    *,
    preset: str | None = None,
    proportional: bool | None = None,
    margin: float | Sequence[float] | None = None,
    metric: str | None = None,
    insertion: str | None = None,
    protect: str | None = None,
    restore: bool = True,
    compile_step: bool = False,
    towers: str = "vision",
    **options: Any,
) -> nn.Module:
    """Make a model merge its tokens, in every layer, between attention and MLP. Applying again replaces.

    Args:
        model: a supported model (`book/how_to_run`); the instance is changed and returned.
        method: a name from `pc.methods()`.
        keep: share of the patch tokens kept per layer; or one share per layer; or a `Schedule` from `pc.schedule`.
        preset: a name from `pc.presets()`; None = the paper's row for `pitome`, no preset for other methods.
        proportional: whether keys count by token size in attention; None = as the preset says, else True.
        margin: the paper's m: one value for all layers, or one per layer; None = as the preset says.
        metric: `keys` (averaged over heads), `hidden` (tokens about to merge) or `concat` (keys of all heads), each
            also with the mean token subtracted (`keys-centred`, ...); None = as the preset says, else `keys`.
        insertion: where the merge sits: `between` attention and MLP, `after` the block, or `before` it (tokens are then
            compared by hidden states); None = as the preset says, else `between`.
        protect: which tokens of a text never merge and do not count in N: `ends` ([CLS], every [SEP], the last token of
            the text and of each segment) or `cls` (the first token alone); None = as the preset says, else `ends`.
        restore: give every token output its original shape, merged tokens copied back to their places. False: outputs
            hold the merged tokens.
        compile_step: put the merge step of each layer through `torch.compile`, once for every shape that it meets (one
            or two seconds a layer, at the first call). It is faster where a step is many small operators. Results are
            the same up to rounding, so that tokens of nearly equal energy may change ranks. From the ninth shape on,
            and on items of unequal length, steps are not compiled.
        towers: `vision`, `text` or `both`, for models with both; a model with one tower merges that one.
        options: the method's own (`pc.methods()[method].options`).

    Returns:
        The model.

    Raises:
        UnsupportedModelError: a model, block or attention whose computation a merge would change in other ways than
            intended; the message says which and why.
        ValueError, TypeError: arguments that do not fit; the message names the numbers and the remedy.

    Example:
        >>> import timm, torch, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()  # 16 patches, random weights
        >>> model = pc.apply(model, "pitome", keep=0.75)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
        >>> pc.flops(model).tokens  # class token included
        (17, 13, 10)
    """
    family = find_family(model)
    offered = family.towers(model)
    reason = offered.get(towers, "there is no such tower")
    if reason is not None:
        able = " or ".join(repr(name) for name, reason in offered.items() if reason is None)
        raise ValueError(f"towers={towers!r}: {reason}; a {type(model).__qualname__} merges in {able}")
    _check_alone(model)
    chosen = find_method(method)
    chosen.check_options(options)
    arguments = Arguments(
        chosen, keep, preset, proportional, margin, metric, insertion, protect, restore, compile_step, options
    )
    parts = family.parts(towers)
    known = [name for part in parts for name in part.protects]
    if protect is not None and protect not in known:
        remedy = f"choose one of {', '.join(known)}" if known else "leave it out, the tokens in front never merge"
        raise ValueError(f"protect={protect!r} is not offered by {' and '.join(part.name for part in parts)}: {remedy}")
    patches = tuple((part, _make_patch(model, part, arguments)) for part in parts)
    _uninstall(model)
    _install(model, patches)
    return model


def _make_patch(model: nn.Module, family: Family, arguments: Arguments) -> Patch:
    """The patch of one tower. Everything that can be checked before a forward call is checked here."""
    family.check(arguments.method, arguments.keep)
    shape = family.shape(model, None)
    preset, rows = _make_rows(arguments, len(shape.layers))
    keep = _make_keep(arguments.keep, rows)
    method = arguments.method
    wanted = arguments.protect or (None if preset is None else PRESETS[preset].protect)
    protect = wanted if wanted in family.protects else next(iter(family.protects), None)
    patch = Patch(method, preset, keep, rows, arguments.restore, arguments.compile_step, family.ragged, protect)
    if any(row.merges and row.insertion == "before" and method.reads_attention(row.options) for row in rows):
        raise ValueError(f"{method.name!r} reads the block's attention map, which is not there before the block")
    if shape.fixed or not isinstance(keep, Schedule):
        patch.removals(shape.num_patches)  # raises here, and not in the first forward call
    patch.rehearse()
    reason = family.refusal(model, patch)
    if reason:
        raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
    return patch


def _make_rows(arguments: Arguments, num_layers: int) -> tuple[str | None, tuple[LayerRow, ...]]:
    """The preset's name and the row of every layer: the preset's row, with the arguments given in its place."""
    method = arguments.method
    preset = "paper" if arguments.preset is None and method.name == "pitome" else arguments.preset
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; presets: {', '.join(PRESETS)}")
    if preset is not None and PRESETS[preset].method != method.name:
        raise ValueError(f"preset {preset!r} is for method {PRESETS[preset].method!r}, not {method.name!r}")
    explicit = {
        name: getattr(arguments, name)
        for name in ("metric", "insertion", "proportional")
        if getattr(arguments, name) is not None
    }
    for name, allowed in (("metric", METRICS), ("insertion", INSERTIONS)):
        if explicit.get(name, allowed[0]) not in allowed:
            raise ValueError(f"unknown {name} {explicit[name]!r}: choose one of {', '.join(allowed)}")
    margins = None if arguments.margin is None else _per_layer(arguments.margin, num_layers, "margin")
    if margins is not None and "margin" not in method.needs:
        raise TypeError(f"method {method.name!r} has no margin")
    if margins is not None and not all(math.isfinite(margin) for margin in margins):
        raise ValueError(f"margins are cosines, got {list(margins)}")
    rows: list[LayerRow] = []
    for layer, row in enumerate([PresetRow()] * num_layers if preset is None else PRESETS[preset].rows(num_layers)):
        base, slope = row.margin
        margin = base - slope * layer / num_layers if margins is None else margins[layer]
        fields = {"metric": row.metric, "insertion": row.insertion, "proportional": row.proportional, **explicit}
        options = {**row.options, **arguments.options}
        rows.append(LayerRow(margin=margin, sized=row.sized, options=options, merges=row.merges, **fields))
    return preset, tuple(rows)


def _per_layer(value: float | Sequence[float], num_layers: int, name: str) -> tuple[float, ...]:
    values = [value] * num_layers if isinstance(value, Real) else list(value)
    if len(values) != num_layers:
        raise ValueError(f"{name} has {len(values)} entries, the model {num_layers} layers: give one per layer")
    return tuple(float(v) for v in values)


def _make_keep(keep: float | Sequence[float] | Schedule, rows: tuple[LayerRow, ...]) -> tuple[float, ...] | Schedule:
    """One keep ratio per layer, 1 where the preset does not merge; or the schedule, checked."""
    if not isinstance(keep, Schedule):
        ratios = [check_keep(ratio) for ratio in _per_layer(keep, len(rows), "keep")]
        return tuple(ratio if row.merges else 1.0 for ratio, row in zip(ratios, rows, strict=True))
    if len(keep.remove) != len(rows):
        raise ValueError(f"the schedule has {len(keep.remove)} layers, the model {len(rows)}")
    idle = [layer for layer, (k, row) in enumerate(zip(keep.remove, rows, strict=True)) if k and not row.merges]
    if idle:
        raise ValueError(f"the schedule removes tokens in layers {idle}, where the preset does not merge")
    return keep


def _check_alone(model: nn.Module) -> None:
    """Raise ValueError if a part of this model runs under another patch, because two patches would get mixed up."""
    installed = _installed(model)
    own = () if installed is None else [patch for _, patch in installed.towers]
    for part in model.modules():
        if active_patch(part) not in (None, *own):
            raise ValueError(
                f"a part of this model, or a model around it, merges already (a {type(part).__qualname__} does): "
                "pc.remove that one first"
            )


def use_merge(model: nn.Module, merge_tokens: Callable[..., Merged]) -> nn.Module:
    """Let a patched model merge with another function in all its towers: to time merges, or to leave them out.

    Args:
        model: a model that `apply` was called on.
        merge_tokens: takes and returns what `patch.merge_tokens` does. It may return None for the plan and for the
            sizes if it cuts off the last `step.remove` tokens; outputs are then not restored.

    Returns:
        The model. `apply` again, or leaving a `patched` block, brings the old function back.

    Raises:
        ValueError: the model is not patched.
    """
    installed = _installed(model)
    if installed is None:
        raise ValueError(f"this {type(model).__qualname__} is not patched: call pc.apply on it first")
    _uninstall(model)
    _install(model, tuple((family, replace(patch, merge_tokens=merge_tokens)) for family, patch in installed.towers))
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take merging out again: the instance is as it was before `apply`, bit for bit. An unpatched model stays as it is.

    Raises:
        ValueError: `model` itself is not patched, but a part of it is, or it merges as a part of a patched model.

    Example:
        >>> import timm, pitome_core as pc
        >>> model = pc.apply(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), keep=0.75)
        >>> pc.flops(pc.remove(model)).tokens
        (17, 17, 17)
    """
    if find_patch(model) is None and active_patch(model) is not None:
        raise ValueError(f"this {type(model).__qualname__} merges as a part of another model: call remove on that one")
    if _uninstall(model) is None:
        inside = patched_parts(model)
        if inside:
            raise ValueError(f"this {type(model).__qualname__} is not patched, its part {inside[0]!r} is: remove that")
    return model


@contextmanager
def patched(model: nn.Module, method: str = "pitome", keep: Any = 0.925, **arguments: Any) -> Iterator[nn.Module]:
    """`apply` for the length of a `with` block; afterwards the model is patched as it was before, or not at all.

    Example:
        >>> import timm, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> with pc.patched(model, "tome", keep=0.75):
        ...     pc.flops(model).tokens
        (17, 13, 10)
        >>> pc.flops(model).tokens
        (17, 17, 17)
    """
    before = _installed(model)
    apply(model, method, keep, **arguments)
    try:
        yield model
    finally:
        _uninstall(model)
        if before is not None:
            _install(model, before.towers)
