"""Other methods for single instances of a class, which stays as it is.

An instance gets a class of its own, derived from the class that it had; `nn.utils.parametrize` and FSDP2 do the same.
A method of a class is given its module when it is called. A function stored on the instance would keep the module that
it was made for, and would run that one in a shallow copy and in the replicas of `nn.DataParallel`.

The methods of such a class look up what to do in the instance. An instance without merging does what its old class
does, so that wrappers around a method can be taken off before merging is taken out, or after.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Collection
from functools import cache, partial, wraps
from types import MappingProxyType, MethodType
from typing import Any

from torch import nn

from .checks import no_proxy

PATCH_ATTRIBUTE = "_pitome_patch"
_FUNCTIONS, _BASE, _NAMES = "_pitome_functions", "_pitome_base", "_pitome_names"
_BEHIND_A_HOOK = "_old_forward"  # where accelerate keeps the forward that its hook calls


def own_class(module: nn.Module) -> type:
    """The class that a module has without merging, and without being sharded by FSDP2."""
    for cls in type(module).__mro__:
        sharded = any(base.__name__ == "FSDPModule" for base in cls.__mro__)
        if _BASE not in vars(cls) and not sharded:
            return cls
    return type(module)


def original(module: nn.Module) -> type:
    """The class whose methods a patched module had before. It can be read in a forward, also in compiled code."""
    return module._pitome_base


def give_methods(module: nn.Module, patch: Any, functions: dict[str, Callable]) -> None:
    """Let `module.name(...)` call `function(module, patch, ...)`, for each name; what it was given before is replaced.

    Raises:
        ValueError: something else has replaced such a method on this instance already, so ours would not be called.
    """
    held = vars(module)
    for name in functions:
        if name in held and not _calls_the_class(module, name):
            raise ValueError(
                f"the {name} of a {type(module).__qualname__} was replaced on the instance (by a hook of accelerate "
                "or by hand), so that merging would be left out: take that out, call pc.apply, then put it in again"
            )
    for name in functions:
        if isinstance(held.get(name), MethodType):  # what a hook leaves when it is taken off
            del held[name]
    if not hasattr(type(module), _BASE):
        module.__class__ = _class_with(type(module), tuple(functions))
    held[PATCH_ATTRIBUTE], held[_FUNCTIONS] = patch, functions
    if _BEHIND_A_HOOK in held:
        held[_BEHIND_A_HOOK] = MethodType(type(module).forward, module)


def take_methods(module: nn.Module) -> None:
    """Undo `give_methods`. A class that was derived from ours in the meantime stays; it does what the old one does."""
    held, cls = vars(module), type(module)
    held.pop(PATCH_ATTRIBUTE, None)
    held.pop(_FUNCTIONS, None)
    if _is_ours(cls):
        for name in vars(cls)[_NAMES]:
            if isinstance(held.get(name), MethodType) and held[name].__func__ is getattr(cls, name):
                del held[name]
        module.__class__ = original(module)
        if _BEHIND_A_HOOK in held:
            held[_BEHIND_A_HOOK] = MethodType(type(module).forward, module)


def guards(model: nn.Module, patched: list[nn.Module], own: Collection[str]) -> dict[str, Callable]:
    """Functions for the methods of a model around towers, by which it notices a tower that was put in later.

    Such a tower would run unmerged. `patched` are the modules that have a forward of ours, `own` the methods of the
    model that are replaced anyway.
    """
    paths = [name for name, part in model.named_modules() if part in patched]
    outermost = tuple(path for path in paths if not any(path.startswith(f"{other}.") for other in paths))
    if "" in paths:
        return {}
    names = ("forward", "generate", "encode_image", "encode_text", "get_image_features")
    return {name: partial(_guarded, name, outermost) for name in names if hasattr(model, name) and name not in own}


def _guarded(name: str, towers: tuple[str, ...], model: nn.Module, patch: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own method; RuntimeError if a tower does not merge any more."""
    for path in towers:
        if getattr(model.get_submodule(path), PATCH_ATTRIBUTE, None) is None:
            raise RuntimeError(f"{path!r} was put in after pc.apply and does not merge: call pc.apply again")
    return getattr(original(model), name)(model, *args, **kwargs)


def _is_ours(cls: type) -> bool:
    return _BASE in vars(cls)


def _calls_the_class(module: nn.Module, name: str) -> bool:
    """Whether a method stored on the instance leads to that of the class: the method itself, or a hook of accelerate
    that keeps it where it can be replaced."""
    held = vars(module)
    stored = held.get(_BEHIND_A_HOOK) if name == "forward" and "_hf_hook" in held else held[name]
    own = getattr(type(module), name)
    return isinstance(stored, MethodType) and stored.__self__ is module and stored.__func__ is own


def _dispatcher(base: type, name: str) -> Callable:
    own = getattr(base, name)

    @wraps(own)  # its signature too, which trainers read
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        functions = getattr(self, _FUNCTIONS, None)  # a wrapper may call this method after merging was taken out
        if functions and name in functions:
            no_proxy(*args, *kwargs.values())
            return functions[name](self, self._pitome_patch, *args, **kwargs)
        if kwargs.get("step") is not None:
            raise RuntimeError(REMOVED)
        return own(self, *args, **kwargs)

    # torch.compile keeps at most eight versions for one code object, so methods and classes must not share one.
    method.__code__ = method.__code__.replace()
    return method


REMOVED = (
    "this block does not merge, although the forward that calls it does. Either it was put in after pc.apply: apply "
    "again. Or pc.remove was called while a forward ran, or between a forward and its backward: call it between steps"
)


def _reduce(self: nn.Module, protocol: int) -> tuple:
    """Copy and pickle: the class is made again from its base and its names."""
    make, (cls, *rest), *state = nn.Module.__reduce_ex__(self, max(protocol, 2))
    if not _is_ours(cls):  # a class that was derived from ours, by sharding or the like, is copied as it is
        return make, (cls, *rest), *state
    return _new, (original(self), vars(cls)[_NAMES]), *state


def _prepare_scriptable(self: nn.Module) -> nn.Module:
    """What `torch.jit.script` calls first. It reads the source of methods, which is that of the unmerged ones."""
    if getattr(self, PATCH_ATTRIBUTE) is None:
        return self
    raise TypeError("torch.jit.script cannot compile a merging model, because it reads the source of the methods that "
                    "merging replaces: use torch.export.export, or call pc.remove(model) first and script it unmerged")


def _new(base: type, names: tuple[str, ...]) -> nn.Module:
    return copyreg.__newobj__(_class_with(base, names))


@cache
def _class_with(base: type, names: tuple[str, ...]) -> type:
    """A class like `base`, in which the methods of these names can be replaced for single instances."""
    body = {name: _dispatcher(base, name) for name in names}
    body |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__,
             "__reduce_ex__": _reduce, "__prepare_scriptable__": _prepare_scriptable, PATCH_ATTRIBUTE: None,
             _FUNCTIONS: MappingProxyType({}), _BASE: base, _NAMES: names}
    return type(base)(base.__name__, (base,), body)
