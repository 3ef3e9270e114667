"""Put merging into a model and take it out again: `apply`, `remove`, `patched`; what was put in: `settings`.

A patched model has other methods on the *instance* (`instances.py`); its class stays as it is. The model family says
which methods these are. What they do in a forward call stands in `patch.py`.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

from torch import nn

from . import checks
from .arguments import DEFAULT_KEEP, Arguments, checked_schedule, make_keep, make_rows
from .families import find_family
from .family import Family, UnsupportedModelError
from .instances import give_methods, guards, original, take_methods
from .mergers import find_method
from .mergers.preset_table import PRESETS
from .patch import Merged, Patch, active_patch
from .schedules import Schedule, check_every, fixed_schedule

_INSTALLED_ATTRIBUTE = "_pitome_installed"
_CHANGING = threading.RLock()  # a model that two threads changed at once would be patched in part, for good

def _one_at_a_time(change: Callable) -> Callable:
    @wraps(change)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _CHANGING:
            return change(*args, **kwargs)
    return locked


@dataclass(frozen=True, eq=False)
class Installed:
    """What `apply` did to a model. It is kept on the model, so that `remove` can undo it.

    Attributes:
        root: the model that `apply` was called on. A shallow copy of it holds this object too.
        towers: family and patch of each tower that merges, the image tower's first.
        modules: the modules that got other methods.
        given: the arguments, as `settings` returns them.
    """

    root: nn.Module
    towers: tuple[tuple[Family, Patch], ...]
    modules: tuple[nn.Module, ...]
    given: dict[str, Any]


def _installed(model: nn.Module) -> Installed | None:
    """What `apply` did to this very module; None if it was not called on it. TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got a {type(model).__qualname__}")
    return vars(model).get(_INSTALLED_ATTRIBUTE)


def _owned(model: nn.Module) -> Installed | None:
    """The same, for functions that change it; ValueError for a shallow copy, whose blocks belong to the original."""
    installed = _installed(model)
    if installed is None or installed.root is model:
        return installed
    if _installed(installed.root) is installed:
        raise ValueError("this is a shallow copy of a patched model and shares its blocks: call this on the original, "
                         "or copy the model with copy.deepcopy")
    take_methods(model)  # the original was changed since then, so what the copy holds is void
    del vars(model)[_INSTALLED_ATTRIBUTE]
    return None


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


def _not_patched(model: nn.Module) -> ValueError:
    inside = patched_parts(model)
    remedy = f"its part {inside[0]!r} is: take that" if inside else "call pc.apply on it first"
    return ValueError(f"this {type(model).__qualname__} is not patched: {remedy}")


def _extra_repr(model: nn.Module, patch: Patch) -> str:
    lines = [original(model).extra_repr(model), *(patch.describe() for _, patch in _installed(model).towers)]
    return "\n".join(line for line in lines if line)


@_one_at_a_time
def _install(model: nn.Module, towers: tuple[tuple[Family, Patch], ...], given: dict[str, Any]) -> None:
    """Put patches into a model, in place of those that it has; if that fails, the model stays as it was.

    At no time is a patched model unpatched in between, so that a forward in another thread cannot run unmerged.
    """
    methods: dict[nn.Module, tuple[Patch, dict[str, Any]]] = {model: (towers[0][1], {"extra_repr": _extra_repr})}
    for family, patch in towers:
        for module, name, function in family.entry_points(model):
            if function is None:
                _check_passed_by(module)
            else:
                methods.setdefault(module, (patch, {}))[1][name] = function
    functions = methods[model][1]
    functions |= guards(model, [module for module in methods if "forward" in methods[module][1]], functions)
    before = _installed(model)
    vars(model)[_INSTALLED_ATTRIBUTE] = Installed(model, towers, tuple(methods), given)
    try:
        for module, (patch, functions) in methods.items():
            give_methods(module, patch, functions)
        for module in () if before is None else before.modules:
            if module not in methods:
                take_methods(module)
    except BaseException:  # an interrupt too
        _uninstall(model)
        if before is not None:
            _install(model, before.towers, before.given)
        raise


@_one_at_a_time
def _uninstall(model: nn.Module) -> None:
    installed = _installed(model)
    if installed is not None:
        for module in installed.modules:
            take_methods(module)
        del vars(model)[_INSTALLED_ATTRIBUTE]


def _check_passed_by(module: nn.Module) -> None:
    """Raise ValueError if a module that the patched model does not call has a forward or hooks of its own.

    A hook of accelerate moves inputs to a device, which the hooks of the module's parts do as well.
    """
    held = vars(module)
    if ("forward" in held and "_hf_hook" not in held) or held["_forward_hooks"] or held["_forward_pre_hooks"]:
        raise ValueError(
            f"this {type(module).__qualname__} has hooks or a forward of its own, and a merged model does not call it: "
            "put them on the model or on its blocks"
        )


@_one_at_a_time
def apply(
    model: nn.Module,
    method: str = "pitome",
    keep: float | Sequence[float] | Schedule | Mapping[str, Any] | None = None,
    *,
    remove: int | Sequence[int] | None = None,
    every: int = 1,
    preset: str | None = None,
    proportional: bool | None = None,
    margin: float | Sequence[float] | None = None,
    metric: str | None = None,
    insertion: str | None = None,
    protect: str | None = None,
    restore: bool = True,
    compile_step: bool = False,
    fused: bool | str = False,
    towers: str = "vision",
    **options: Any,
) -> nn.Module:
    """Make a model merge its tokens, in every layer, between attention and MLP (eq. 1, eq. 2). Applying again replaces.

    Args:
        model: a supported model (`book/how_to_run`); the instance is changed and returned.
        method: a name from `pc.methods()`.
        keep: share of the patch tokens kept per layer; or one share per layer; or a `Schedule` from `pc.schedule` (or
            its fields, as `pc.settings` gives them). None = 0.925, if `remove` is not given either.
        remove: in place of keep, patch tokens to remove per layer, or one count per layer: ToMe's r. It is the same as
            `keep=pc.schedule(model, remove=...)` with the limits of this method, so it is made for the model's own
            input size, and a layer that cannot lose as many loses as many as it can.
        every: merge in one of so many layers, and remove what all of them would, so that as many tokens are left in the
            end. Of the layers that merge (a keep ratio below 1, or a count above 0, and a preset that merges
            there), each `every` in turn are a group, the last one maybe smaller. The first layer of a group removes
            what its layers would one after the other. So no layer has more tokens than with 1, and `pc.flops` says
            what is saved; few steps are faster where a step costs more than the work it saves (one image, a small
            model). With ToMe `every=3` cost two digits in a hundred of a linear head at keep 0.9, and 41 at keep 0.8
            (`notebooks/record_vision`). Where the method cannot remove as many in one layer (`pitome` and
            `tome`: half of the tokens; keep 0.9 allows up to 6 layers) it is an error. A `Schedule` says itself which
            layers merge: `pc.schedule` takes `every`, too.
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
        fused: merge by a few GPU kernels (five launches a layer for PiToMe) where there are some: on CUDA with Triton,
            for `pitome` and `tome`, on images with at most 4,096 patches, with the same plans up to rounding.
            `auto`: where they can run, else the torch path. True: ValueError where they cannot, here or in the forward.
            False: never; the default until their parity on a device is on record. With them, `compile_step` has no
            effect.
        towers: `vision`, `text` or `both`, for models with both; a model with one tower merges that one.
        options: the method's own (`pc.methods()[method].options`).

    Returns:
        The model.

    Warns:
        UserWarning: no layer removes a token, though `keep` or `remove` asks for it, because there are too few tokens.

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
    reason = offered.get(str(towers), "there is no such tower")
    if reason is not None:
        able = " or ".join(repr(name) for name, reason in offered.items() if reason is None)
        raise ValueError(f"towers={towers!r}: {reason}; a {type(model).__qualname__} merges in {able}")
    before = _owned(model)
    _check_alone(model)
    chosen = find_method(method)
    if keep is not None and remove is not None:
        raise ValueError("give keep or remove, not both: the share of tokens to keep, or how many to remove per layer")
    keep = DEFAULT_KEEP if keep is None and remove is None else keep
    keep = checked_schedule(keep) if isinstance(keep, (Schedule, Mapping)) else keep
    proportional = proportional if proportional is None else checks.flag(proportional, "proportional")
    restore, compile_step = checks.flag(restore, "restore"), checks.flag(compile_step, "compile_step")
    arguments = Arguments(
        chosen, keep, remove, every, preset, proportional, margin, metric, insertion, protect, restore, compile_step,
        fused if fused == "auto" else checks.flag(fused, "fused"), chosen.check_options(options),
    )
    parts = family.parts(towers)
    known = [name for part in parts for name in part.protects]
    if protect is not None and protect not in known:
        remedy = f"choose one of {', '.join(known)}" if known else "leave it out, the tokens in front never merge"
        raise ValueError(f"protect={protect!r} is not offered by {' and '.join(part.name for part in parts)}: {remedy}")
    patches = [(part, _make_patch(model, part, arguments)) for part in parts]
    if before is not None:  # recordings that are open go on
        traces = [patch.traces for _, patch in before.towers]
        if any(traces[len(patches) :]):
            raise RuntimeError("a recording of the text tower is open: leave it first, then apply to one tower alone")
        patches[: len(traces)] = [(part, replace(patch, traces=of_tower))
                                  for (part, patch), of_tower in zip(patches, traces, strict=False)]
    given = {name: checks.data(value) for name, value in vars(arguments).items() if name not in ("method", "options")}
    given |= {"towers": towers, **checks.data(arguments.options)}
    _install(model, tuple(patches), {"method": chosen.name, **given})
    return model


def _make_patch(model: nn.Module, family: Family, arguments: Arguments) -> Patch:
    """The patch of one tower. Everything that can be checked before a forward call is checked here."""
    shape, method, keep = family.shape(model, None), arguments.method, arguments.keep
    every = check_every(arguments.every, len(shape.layers))
    if every > 1 and isinstance(keep, Schedule):
        raise ValueError(f"every={every} beside a schedule, which says itself what each layer removes: give "
                         f"keep=pc.schedule(model, ..., every={every}), or keep=schedule.gathered({every})")
    if keep is None:
        keep = fixed_schedule(
            shape.num_patches, arguments.remove, len(shape.layers), shape.prefix, method.max_remove
        )
    family.check(method, keep)
    preset, rows = make_rows(arguments, len(shape.layers))
    keep = make_keep(keep, rows)
    keep = keep.gathered(every) if arguments.keep is None else keep
    wanted = arguments.protect or (None if preset is None else PRESETS[preset].protect)
    protect = wanted if wanted in family.protects else next(iter(family.protects), None)
    from .fused.choice import functions  # here, because importing the core does not look for kernels

    patch = Patch(method, preset, keep, rows, arguments.restore, arguments.compile_step, family.ragged, protect,
                  fused=arguments.fused, every=every, **functions(arguments.fused, method, rows, family.ragged))
    if any(row.merges and row.insertion == "before" and method.reads_attention(row.options) for row in rows):
        raise ValueError(f"{method.name!r} reads the block's attention map, which is not there before the block")
    removed = keep.remove if isinstance(keep, Schedule) else ()
    if shape.fixed or not isinstance(keep, Schedule):
        removed = patch.removals(shape.num_patches)  # raises here, and not in the first forward call
    patch.rehearse()
    reason = family.refusal(model, patch)
    if reason:
        raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
    asked = keep.clamped if isinstance(keep, Schedule) else any(ratio < 1 for ratio in keep)
    if asked and not any(removed):
        warnings.warn(f"nothing merges: this keeps all {shape.num_patches} tokens in every layer. A keep ratio of "
                      f"1 - 1/{shape.num_patches} or less removes a token", stacklevel=5)
    return patch


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


@_one_at_a_time
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
    installed = _owned(model)
    if installed is None:
        raise _not_patched(model)
    towers = tuple((family, replace(patch, merge_tokens=merge_tokens)) for family, patch in installed.towers)
    _install(model, towers, installed.given)
    return model


def settings(model: nn.Module) -> dict[str, Any]:
    """The arguments that `apply` put merging into a model with, as plain data: `pc.apply(other, **settings)`.

    Weights that are saved (`save_pretrained`, `state_dict`) do not carry merging. Store this beside them, as JSON or
    the like, and apply it to the model that is loaded.

    Raises:
        ValueError: the model is not patched.
        TypeError: an option of a method of your own that is no plain data.

    Example:
        >>> import json, timm, pitome_core as pc
        >>> model = pc.apply(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), "tome", remove=4)
        >>> stored = json.dumps(pc.settings(model))
        >>> other = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> pc.flops(pc.apply(other, **json.loads(stored))).tokens
        (17, 13, 9)
    """
    installed = _installed(model)
    if installed is None:
        raise _not_patched(model)
    return json.loads(json.dumps(installed.given))


@_one_at_a_time
def remove(model: nn.Module) -> nn.Module:
    """Take merging out again: the instance is as it was before `apply`, bit for bit. An unpatched model stays as it is.

    Raises:
        ValueError: `model` itself is not patched, but a part of it is, or it merges as a part of a patched model; or it
            is a shallow copy of a patched model.
        RuntimeError: a recording of the model is open.

    Example:
        >>> import timm, pitome_core as pc
        >>> model = pc.apply(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), keep=0.75)
        >>> pc.flops(pc.remove(model)).tokens
        (17, 17, 17)
    """
    installed = _owned(model)
    if installed is None and active_patch(model) is not None:
        raise ValueError(f"this {type(model).__qualname__} merges as a part of another model: call remove on that one")
    inside = patched_parts(model) if installed is None else ()
    if inside:
        raise ValueError(f"this {type(model).__qualname__} is not patched, its part {inside[0]!r} is: remove that")
    if installed is not None and any(patch.traces for _, patch in installed.towers):
        raise RuntimeError("a recording of this model is open: leave `with pc.record(model)` first, then remove")
    _uninstall(model)
    return model


def unmerged(block: nn.Module) -> Callable[..., Any]:
    """The forward that a block of a patched model has without merging, for probes of single blocks.

    A block cannot be called by itself while its model merges, because it would leave out the merge without a word.

    Raises:
        ValueError: the module is no part of a patched model, or it is more than a block.

    Example:
        >>> import timm, torch, pitome_core as pc
        >>> model = pc.apply(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval(), keep=0.75)
        >>> pc.unmerged(model.blocks[0])(torch.zeros(1, 17, 192)).shape
        torch.Size([1, 17, 192])
    """
    if not isinstance(block, nn.Module):
        raise TypeError(f"expected a module, got a {type(block).__qualname__}")
    if active_patch(block) is None:
        raise ValueError(f"this {type(block).__qualname__} is no part of a patched model: call it as it is")
    inside = [part for part in block.modules() if active_patch(part) is not None]
    if _installed(block) is not None or len(inside) > 3:  # a block and its attention, of which BERT has two
        raise ValueError(f"this {type(block).__qualname__} is more than a block, its parts merge: call pc.remove first")
    return partial(original(block).forward, block)


@contextmanager
def patched(model: nn.Module, method: str = "pitome", keep: Any = None, **arguments: Any) -> Iterator[nn.Module]:
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
    before = _owned(model)
    apply(model, method, keep, **arguments)
    try:
        yield model
    finally:
        _put_back(model, before)


@contextmanager
def paused(model: nn.Module) -> Iterator[nn.Module]:
    """`remove` for the length of a `with` block; afterwards the model is patched as it was before, or not at all."""
    before = _owned(model)
    remove(model)
    try:
        yield model
    finally:
        _put_back(model, before)


def _put_back(model: nn.Module, before: Installed | None) -> None:
    if before is None:
        _uninstall(model)
    else:
        _install(model, before.towers, before.given)
