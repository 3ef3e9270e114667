"""What the rest of the package needs to know of a model family, and the list of families."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..schedules import Schedule


class UnsupportedModelError(TypeError):
    """The model, or a part of it, is none that token merging can be put into rightly."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one block, for counting.

    Attributes:
        channels: C, width of a token.
        heads: H.
        attention_channels: width of all heads together.
        attention_linear: multiply-accumulates per token in the attention's linear maps (q, k, v, output, gate).
        mlp_linear: the same for the MLP.
    """

    channels: int
    heads: int
    attention_channels: int
    attention_linear: int
    mlp_linear: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model at one input size.

    Attributes:
        num_patches: N, tokens that may merge.
        prefix: tokens in front that never do.
        layers: one entry per block.
        embed: multiply-accumulates of the patch embedding.
        head: multiply-accumulates of everything behind the blocks, as a function of the patch tokens it reads.
        fixed: whether the model takes images of this size only.
        reads: behind how many blocks the head reads them; -1 = all.
    """

    num_patches: int
    prefix: int
    layers: tuple[LayerShape, ...]
    embed: int
    head: Callable[[int], int]
    fixed: bool = False
    reads: int = -1


def _vision(model: nn.Module) -> dict[str, str | None]:
    return {"vision": None}


@dataclass(frozen=True)
class Family:
    """How models of one kind run around a merge.

    Attributes:
        name: shown in errors and in `repr`.
        supports: what is supported, for error messages.
        matches: whether a module is (or derives from) this family's model.
        refusal: `(model, patch)`: why such a module cannot be patched (in this way), or None when it can. With None
            for the patch it says whether the module is of a kind that is known at all.
        entry_points: `(model, patch) -> [(module, method name, function)]`: the bound functions that take the place of
            the module's own while it is patched.
        shape: `(model, input_size or None) -> ModelShape`.
        towers: `(model) -> {tower: None, or the reason why it cannot merge}`.
        ragged: whether items have lengths of their own (text): keep ratios only, and methods that take a mask.
        text: the family of the text tower, for models with two towers that both can merge; it takes the whole model.
    """

    name: str
    supports: str
    matches: Callable[[nn.Module], bool]
    refusal: Callable[[nn.Module, Any], str | None]
    entry_points: Callable[[nn.Module, Any], list[tuple[nn.Module, str, Callable]]]
    shape: Callable[[nn.Module, tuple[int, ...] | None], ModelShape]
    towers: Callable[[nn.Module], dict[str, str | None]] = _vision
    ragged: bool = False
    text: Family | None = None

    def parts(self, towers: str) -> tuple[Family, ...]:
        """The families of the towers that are to merge, the image tower's first."""
        if self.text is None or towers == "vision":
            return (self,)
        return (self.text,) if towers == "text" else (self, self.text)

    def check(self, method: Any, keep: Any) -> None:
        """Raise ValueError for what cannot be right where every item has its own length."""
        if not self.ragged:
            return
        if isinstance(keep, Schedule):
            raise ValueError(
                f"a schedule is made for one length, here {keep.tokens[0]} tokens, and every text has its own: "
                "give keep as a ratio, or one ratio per layer"
            )
        if "mask" not in method.needs:
            raise ValueError(f"method {method.name!r} takes no mask and would merge padding: choose one that does")
        unknown = {"attention", "positions"} & set(method.needs)
        if unknown:
            raise ValueError(f"method {method.name!r} reads {unknown.pop()} of a grid of patches, which text has not")


# Library -> family files; a file is imported only for a model of its library, so none of them is a requirement.
_FILES = {"timm": ("timm_vit", "timm_eva", "timm_beit"), "open_clip": ("open_clip",),
          "transformers": ("hf_vision", "hf_bert", "hf_llava")}


_REGISTERED: list[Family] = []


def register_family(family: Family) -> None:
    """Add a family of one's own; it is asked before those that come with the package. Same name: replaces."""
    _REGISTERED[:] = [family, *(other for other in _REGISTERED if other.name != family.name)]


def _families(model: nn.Module) -> list[Family]:
    libraries = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    return _REGISTERED + [
        importlib.import_module(f"{__package__}.{file}").FAMILY
        for library, files in _FILES.items()
        if library in libraries
        for file in files
    ]


def _supported() -> str:
    """What is supported, of the libraries in use here; an error message should not import the others."""
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
    """The family of a model; UnsupportedModelError names what is supported and where a supported part lies."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a model, got a {type(model).__qualname__}. Supported: {_supported()}")
    for family in _families(model):
        if family.matches(model):
            reason = family.refusal(model, None)
            if reason:
                raise UnsupportedModelError(f"{reason}. Supported: {family.supports}")
            return family
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(f"{kind} is compiled: apply the patch first and compile the patched model")
    inside = [
        name
        for name, part in model.named_modules()
        if name and any(family.matches(part) and not family.refusal(part, None) for family in _families(part))
    ]
    hint = f" A supported model lies inside, at {inside[0]!r}: patch that one." if inside else ""
    raise UnsupportedModelError(f"{kind} is not supported. Supported: {_supported()}.{hint}")
