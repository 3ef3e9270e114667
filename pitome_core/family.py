"""What a model family is: how models of one kind run around a merge, and their sizes for counting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from .mergers import Method
from .patch import Patch
from .schedules import Schedule

# A method of a module that is replaced while the model is patched: the module, the name of the method, and the function
# that is called with the module, the patch and the method's arguments. None for a function: the patched model passes
# by this module, so its method must not have been changed.
EntryPoint = tuple[nn.Module, str, Callable | None]
PROTECTS = ("ends", "cls")  # the choice of protected tokens that families of texts have, see `pc.apply`


class UnsupportedModelError(TypeError):
    """Merging cannot be put into this model, or into a part of it, without changing what the model computes."""


@dataclass(frozen=True)
class Unknown:
    """A number of multiply-accumulates that is not known, and why. What is computed from it is not known either.

    A model with such a number can merge; counting it raises `UnsupportedModelError` with the reason.
    """

    reason: str

    def _unknown(self, other: object) -> Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _unknown


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one block, for counting.

    Attributes:
        channels: C, width of a token.
        heads: H.
        attention_channels: width of all heads together.
        attention_linear: multiply-accumulates per token in the attention's linear maps (q, k, v, output, gate).
        mlp_linear: the same for the MLP. Both may be `Unknown`.
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


def _vision_alone(model: nn.Module) -> dict[str, str | None]:
    return {"vision": None}


@dataclass(frozen=True)
class Family:
    """How models of one kind run around a merge.

    Attributes:
        name: shown in errors and in `repr`.
        supports: what is supported, for error messages.
        matches: whether a module is (or derives from) this family's model.
        refusal: `(model, patch)`: why such a module cannot be patched in this way, or None when it can. With None for
            the patch it says whether the module is of a known kind at all.
        entry_points: `(model) -> [(module, method name, function)]`: the methods that are replaced while the model is
            patched (`EntryPoint`). Blocks are among them.
        shape: `(model, input_size or None) -> ModelShape`.
        towers: `(model) -> {tower: None, or the reason why it cannot merge}`.
        ragged: whether items have lengths of their own (text, images of any shape): keep ratios only, and methods that
            take a mask.
        protects: values of the argument `protect` of `pc.apply` that the family knows, its default first; empty if
            there is no choice of the tokens that never merge.
        text: the family of the text tower, for models with two towers that both can merge; it takes the whole model.
    """

    name: str
    supports: str
    matches: Callable[[nn.Module], bool]
    refusal: Callable[[nn.Module, Patch | None], str | None]
    entry_points: Callable[[nn.Module], list[EntryPoint]]
    shape: Callable[[nn.Module, tuple[int, ...] | None], ModelShape]
    towers: Callable[[nn.Module], dict[str, str | None]] = _vision_alone
    ragged: bool = False
    protects: tuple[str, ...] = ()
    text: Family | None = None

    def parts(self, towers: str) -> tuple[Family, ...]:
        """The families of the towers that are to merge, the image tower's first."""
        if self.text is None or towers == "vision":
            return (self,)
        return (self.text,) if towers == "text" else (self, self.text)

    def check(self, method: Method, keep: float | Sequence[float] | Schedule) -> None:
        """Raise ValueError for a method or a schedule that does not fit items with lengths of their own."""
        if not self.ragged:
            return
        if isinstance(keep, Schedule):
            raise ValueError(
                f"a schedule is made for one length, here {keep.tokens[0]} tokens, and every item has its own: "
                "give keep as a ratio, or one ratio per layer"
            )
        if "mask" not in method.needs:
            raise ValueError(f"method {method.name!r} takes no mask and would merge padding: choose one that does")
        of_images = {"attention", "positions"} & set(method.needs)
        if of_images:
            raise ValueError(f"method {method.name!r} reads {of_images.pop()} of a grid of patches, which items of "
                             "unequal length have not")
