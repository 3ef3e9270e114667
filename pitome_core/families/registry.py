"""The list of model families: those of this package, and those that users register."""

from __future__ import annotations

import importlib
import sys

from torch import nn

from ..family import Family, UnsupportedModelError

# Library -> files of families. A file is imported when a model of its library is patched, so no library is required.
_FILES = {"timm": ("timm_vit", "timm_eva", "timm_beit"), "open_clip": ("open_clip",),
          "transformers": ("hf_vision", "hf_bert", "hf_llava", "hf_siglip2")}
_REGISTERED: list[Family] = []
# Under these names torch.compile, checkpointing and FSDP1 keep the module that they wrap.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def register_family(family: Family) -> None:
    """Add a family. It is asked before those of this package, and replaces a registered family of the same name.

    Example:
        A model of one block without attention. `book/own_model.md` shows a complete family with a forward that merges.

        >>> import torch, pitome_core as pc
        >>> from pitome_core.family import LayerShape, ModelShape
        >>> class Tiny(torch.nn.Module):
        ...     def forward(self, images):
        ...         return images.mean(dim=(2, 3))
        >>> pc.register_family(pc.Family(
        ...     name="Tiny", supports="Tiny",
        ...     matches=lambda model: isinstance(model, Tiny),
        ...     refusal=lambda model, patch: None if patch is None else "it has no block to merge in",
        ...     entry_points=lambda model: [],
        ...     shape=lambda model, size: ModelShape(4, 0, (LayerShape(8, 1, 8, 256, 512),), 0, lambda patches: 0),
        ... ))
        >>> pc.flops(Tiny()).total  # 4 tokens: linear maps of attention and MLP, products of attention
        3328
    """
    if not isinstance(family, Family):
        raise TypeError(f"expected a Family, got a {type(family).__qualname__}")
    _REGISTERED[:] = [family, *(other for other in _REGISTERED if other.name != family.name)]


def _families(model: nn.Module) -> list[Family]:
    """The families that may know a model: the registered ones, and those of the libraries its class derives from."""
    libraries = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    return _REGISTERED + [
        importlib.import_module(f"{__package__}.{file}").FAMILY
        for library, files in _FILES.items()
        if library in libraries
        for file in files
    ]


def _supported() -> str:
    """What is supported, for error messages. A library that is not imported yet is named and not imported."""
    names = [family.supports for family in _REGISTERED]
    for library, files in _FILES.items():
        try:
            used = files if library in sys.modules else ()
            names += [importlib.import_module(f"{__package__}.{file}").FAMILY.supports for file in used]
        except ImportError:  # a version that the family does not know
            used = ()
        if not used:
            names.append(f"models of {library}")
    return "; ".join(names)


def find_family(model: nn.Module) -> Family:
    """The family of a model.

    Raises:
        UnsupportedModelError: there is none. The message names what is supported, and a supported part of the model,
            or a wrapper that stands in the way.
    """
    try:
        return _find_family(model)
    except UnsupportedModelError as error:
        for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
            if any(wrapper in part._modules for wrapper in _WRAPPERS):
                raise UnsupportedModelError(
                    f"{name or 'the model'} is wrapped in a {type(part).__qualname__} (torch.compile, checkpointing, "
                    "sharding): call pc.apply first, then wrap or compile the patched model"
                ) from error
        raise


def _find_family(model: nn.Module) -> Family:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a model, got a {type(model).__qualname__}. Supported: {_supported()}")
    for family in _families(model):
        if family.matches(model):
            reason = family.refusal(model, None)
            if reason:
                raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
            return family
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    inside = [
        name
        for name, part in model.named_modules()
        if name and any(family.matches(part) and not family.refusal(part, None) for family in _families(part))
    ]
    hint = f" A supported model lies inside, at {inside[0]!r}: patch that one." if inside else ""
    raise UnsupportedModelError(f"{kind} is not supported. Supported: {_supported()}.{hint}")
