"""What a merge does, computed once and applied to anything token-shaped.

A `MergePlan` says which output token ("slot") every input token joins. Everything else follows from it: merging by
size-weighted means, undoing the merge, composing the merges of several layers, the averaging matrix. Plans hold no
prefix tokens; `with_prefix` puts them in front.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _rows(slot: Tensor, count: int) -> Tensor:
    """Slots `(B, N)` of `count` per item as rows of `(B * count, C)`: what index_add and index_select are fast on."""
    return (slot + count * torch.arange(len(slot), device=slot.device)[:, None]).flatten()


def _sum(part: Tensor, rows: Tensor, number: int) -> Tensor:
    """Sums of `part (R, ...)` over the tokens that share a row: `(number, ...)`."""
    return part.new_zeros(number, *part.shape[1:]).index_add_(0, rows, part)


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which slot every token joins, for a batch of B items with N tokens each and M slots. `settled` changes fields.

    Attributes:
        assignment: `(B, N)` long, the slot of every input token; -1 = dropped or padding.
        num_tokens: M, the padded number of slots.
        anchored: `(B, N)` bool, which tokens are anchors: one in each slot, whose raster place and position the slot
            inherits. Slots stand in the raster order of their anchors.
        valid: `(B, M)` bool, or None when every slot of every item is in use.
        weight: `(B, N)` extra weights of the mean, or None for the paper's (weights = sizes).
        reduce: `mean`, or `mlerp`: the mean's direction with the largest norm of the group.
        energy: `(B, N)` energies that the plan was made from, or None; for traces only.
        drops: whether the assignment may hold -1. Known without reading the tensor, so that compiled code has no
            branch on data.
    """

    assignment: Tensor
    num_tokens: int
    anchored: Tensor
    valid: Tensor | None = None
    weight: Tensor | None = None
    reduce: str = "mean"
    energy: Tensor | None = None
    drops: bool = False

    @classmethod
    def identity(
        cls, batch: int, num_tokens: int, device: torch.device | str | None = None, valid: Tensor | None = None
    ) -> MergePlan:
        """The plan that merges nothing; `valid (B, N)` marks real tokens where there is padding."""
        place = torch.arange(num_tokens, device=device).expand(batch, num_tokens)
        if valid is not None:
            place = place.masked_fill(~valid, -1)
        return cls(place, num_tokens, place >= 0, valid, drops=valid is not None)

    @classmethod
    def from_roots(
        cls,
        root: Tensor,
        num_tokens: int | None = None,
        *,
        energy: Tensor | None = None,
        weight: Tensor | None = None,
        reduce: str = "mean",
        drops: bool = False,
    ) -> MergePlan:
        """Plan from the anchor that every token joins.

        Args:
            root: `(B, N)` long; `root[i] == i` for an anchor, -1 for a dropped token or padding, else the index of
                an anchor (not of a token that itself joins another: that is not checked).
            num_tokens: the number of anchors, where it is the same for every item. None: counted, and items with
                fewer anchors than the largest get padded slots (`valid`).
        """
        batch, width = root.shape
        anchored = root == torch.arange(width, device=root.device)
        slot = anchored.cumsum(dim=-1) - 1
        valid = None
        if num_tokens is None:
            count = anchored.sum(dim=-1)
            num_tokens = int(count.max()) if batch else 0
            if bool((count < num_tokens).any()):
                valid = torch.arange(num_tokens, device=root.device) < count[:, None]
        assignment = slot.gather(1, root.clamp_min(0)).masked_fill(root < 0, -1)
        return cls(assignment, num_tokens, anchored, valid, weight, reduce, energy, drops)

    @classmethod
    def from_merges(
        cls,
        source: Tensor,
        target: Tensor,
        width: int,
        *,
        active: Tensor | None = None,
        mask: Tensor | None = None,
        energy: Tensor | None = None,
    ) -> MergePlan:
        """Plan that merges `source[b, i]` into `target[b, i]`, both `(B, k)` indices into `width` tokens.

        Sources are distinct, and no target is a source; that is not checked, and items would mix. For items of unequal
        length `mask (B, width)` marks real tokens and `active (B, k)` the pairs in use (None: all).
        """
        if mask is None:
            return PairPlan(source, target, width, energy)
        root = torch.arange(width + 1, device=source.device).repeat(len(source), 1)
        if active is not None:
            source = torch.where(active, source, width)  # the spare column
        root = root.scatter(1, source, target)[:, :width]
        return cls.from_roots(root.masked_fill(~mask, -1), energy=energy, drops=True)

    def settled(self, **changes: Any) -> MergePlan:
        """The plan as a plain `MergePlan`, with other values in the fields that are named."""
        return MergePlan(**{name: getattr(self, name) for name in _FIELDS} | changes)

    @property
    def anchor(self) -> Tensor:
        """`(B, M)` long: the anchor of every slot, in raster order; -1 in padded slots."""
        batch, width = self.assignment.shape
        place = torch.arange(width, device=self.assignment.device).expand(batch, width)
        # Tokens that are no anchors are written to a spare column, which is cut off.
        slot = torch.where(self.anchored, self.assignment, self.num_tokens)
        return place.new_full((batch, self.num_tokens + 1), -1).scatter(1, slot, place)[:, : self.num_tokens]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return tuple(self.assignment.shape)

    def _check(self, x: Tensor, expected: int, name: str) -> None:
        if x.ndim != 3 or x.shape[:2] != (self.shape[0], expected):
            raise ValueError(
                f"this plan is for {self.shape[0]} items of {expected} tokens, {name} has shape "
                f"{tuple(x.shape)}; prefix tokens are not part of a plan (see with_prefix)"
            )

    def _sizes_for(self, x: Tensor, size: Tensor | None, prefix: int) -> Tensor:
        """The sizes of tokens that are to merge, 1 where there are none: float64 for float64 tokens, else float32."""
        self._check(x, prefix + self.shape[1], "x")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if size is None:
            return torch.ones(x.shape[:2], dtype=wide, device=x.device)
        if size.shape != x.shape[:2]:
            raise ValueError(f"size has shape {tuple(size.shape)}, the tokens {tuple(x.shape[:2])}")
        return size.to(wide)

    def _shares(self, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Share of every token in its slot's mean `(B N,)`, size of every slot `(B, M)`, row of every token `(B N,)`.

        The shares of a slot sum to 1, a lone token's is 1. A spare slot at the end of each item takes what is dropped.
        """
        slot, count = self.assignment, self.num_tokens
        if self.drops:
            slot, count = torch.where(slot < 0, count, slot), count + 1
        size = torch.ones(slot.shape, device=slot.device) if size is None else size
        rows, part = _rows(slot, count), size.flatten()
        total = whole = _sum(part, rows, len(slot) * count)
        if self.weight is not None:
            part = part * self.weight.flatten()
            whole = _sum(part, rows, len(total))
        share = (part / whole.index_select(0, rows)).nan_to_num(0.0)  # of nothing, nothing
        return share, total.view(len(slot), count), rows

    def merge(self, x: Tensor, size: Tensor | None = None, *, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """Merge tokens by their size-weighted mean: `x_b <- sum s_i x_i / sum s_i` over the group.

        Args:
            x: `(B, N, C)` of any dtype; sums run in float32 at least. A token that stays alone passes unchanged.
            size: `(B, N)` how many original tokens each one stands for; None = 1 each. 0 is for padding.
            prefix: tokens in front of the plan's, in x and size, that stay as they are.

        Returns:
            `(B, M, C)` in the dtype of x, and the new sizes `(B, M)`, float32 (0 in padded slots); prefix in front.

        Raises:
            ValueError: x or size does not have the plan's number of items and tokens.
        """
        size = self._sizes_for(x, size, prefix)
        if self.reduce == "stepwise":
            raise ValueError("a composition with mlerp is no single reduction: merge with one plan after the other")
        if prefix:
            return self.with_prefix(prefix).merge(x, size)
        share, total, rows = self._shares(size)
        shared = x.flatten(0, 1) * share[:, None]  # as wide as the shares
        out = _sum(shared, rows, total.numel()).view(*total.shape, x.shape[2])[:, : self.num_tokens]
        if self.reduce == "mlerp":
            out = self._rescale(out, x.to(out.dtype))
        return out.to(x.dtype), total[:, : self.num_tokens].float()

    def _rescale(self, mean: Tensor, x: Tensor) -> Tensor:
        """MLERP: keep the direction of each group's mean, take the largest norm in the group; lone tokens stay."""
        _, total, rows = self._shares()
        longest = x.new_zeros(total.numel()).scatter_reduce(0, rows, x.norm(dim=-1).flatten(), "amax")
        longest, number = (value.view_as(total)[:, : self.num_tokens, None] for value in (longest, total))
        norm = mean.norm(dim=-1, keepdim=True)
        return torch.where((norm > 0) & (number > 1), mean * (longest / norm), mean)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token the value of its slot: `(B, M, C) -> (B, N, C)`; zeros for dropped tokens."""
        self._check(y, self.num_tokens, "y")
        slot = self.assignment.clamp_min(0) if self.drops else self.assignment
        out = y.flatten(0, 1).index_select(0, _rows(slot, self.num_tokens)).view(*slot.shape, y.shape[2])
        return out.masked_fill((self.assignment < 0)[..., None], 0) if self.drops else out

    @property
    def sizes(self) -> Tensor:
        """`(B, M)` float32: how many input tokens joined each slot."""
        return self._shares()[1][:, : self.num_tokens]

    def then(self, other: MergePlan | LinearPlan) -> MergePlan | LinearPlan:
        """This plan followed by `other`, as one plan from this one's inputs to the other's slots.

        Weights compose as for unit sizes. A composition with `mlerp` keeps its assignment, anchors and unmerge, but
        is no single reduction: its `merge` and `matrix` raise.
        """
        if isinstance(other, LinearPlan):
            return self.as_linear().then(other)
        if other.shape[1] != self.num_tokens:
            raise ValueError(f"this plan leaves {self.num_tokens} tokens, the next takes {other.shape[1]}")
        drops = self.drops or other.drops
        slot = self.assignment.clamp_min(0) if self.drops else self.assignment
        assignment, anchored = other.assignment.gather(1, slot), self.anchored & other.anchored.gather(1, slot)
        if self.drops:
            assignment = assignment.masked_fill(self.assignment < 0, -1)
        weight = None
        if self.weight is not None or other.weight is not None:
            weight = other._shares(self.sizes)[0].view(len(slot), self.num_tokens, 1)
            weight = self._shares()[0].view_as(slot) * self.unmerge(weight)[..., 0]
        reduce = "mean" if self.reduce == other.reduce == "mean" else "stepwise"
        return other.settled(assignment=assignment, anchored=anchored, weight=weight, reduce=reduce, drops=drops,
                             energy=None)

    def matrix(self) -> Tensor:
        """The averaging matrix `(B, M, N)` for unit sizes: rows of used slots sum to 1, `merge(x) = matrix() @ x`."""
        if self.reduce != "mean":
            raise ValueError(f"a plan with reduce={self.reduce!r} is not linear and has no matrix")
        share = self._shares()[0].view_as(self.assignment)[:, None, :]
        slots = torch.arange(self.num_tokens, device=self.assignment.device)[None, :, None]
        return torch.where(self.assignment[:, None, :] == slots, share, torch.zeros_like(share))

    def with_prefix(self, prefix: int) -> MergePlan:
        """The same plan with `prefix` tokens in front that stay as they are (class, distillation, registers)."""
        if prefix == 0:
            return self
        place = torch.arange(prefix, device=self.assignment.device).expand(len(self.assignment), prefix)
        assignment = self.assignment + prefix
        if self.drops:
            assignment = assignment.masked_fill(self.assignment < 0, -1)

        def framed(value: Tensor | None) -> Tensor | None:
            return None if value is None else F.pad(value, (prefix, 0), value=1)

        return self.settled(assignment=torch.cat([place, assignment], dim=1), num_tokens=self.num_tokens + prefix,
                            anchored=framed(self.anchored), valid=framed(self.valid), weight=framed(self.weight),
                            energy=None)

    def keeping(self, kept: Tensor) -> MergePlan:
        """The same plan with the tokens `kept (B, N)`, which it left out, as slots of their own (a text's [SEP])."""
        place = torch.arange(kept.shape[1], device=kept.device)
        root = self.anchor.gather(1, self.assignment.clamp_min(0)).masked_fill(self.assignment < 0, -1)
        weight = None if self.weight is None else self.weight.masked_fill(kept, 1)
        root = torch.where(kept, place, root)
        return MergePlan.from_roots(root, energy=self.energy, weight=weight, reduce=self.reduce, drops=True)

    def as_linear(self) -> LinearPlan:
        """The plan as a pair of matrices (unit sizes)."""
        matrix = self.matrix()
        return LinearPlan(matrix, (matrix > 0).to(matrix.dtype).transpose(-1, -2))


_FIELDS = tuple(one.name for one in fields(MergePlan))


class PairPlan(MergePlan):
    """What `MergePlan.from_merges` makes without padding: k pairs, the rest worked out when somebody asks for it.

    A model in use only ever merges, and for that the pairs are enough: the rows of the anchors are copied, and those of
    the k tokens that go are added. `source` and `target` are `(B, k)`, `width` is N.
    """

    def __init__(self, source: Tensor, target: Tensor, width: int, energy: Tensor | None = None):
        self.__dict__.update(source=source, target=target, width=width, energy=energy, _worked_out=None)
        self.__dict__["num_tokens"] = width - source.shape[1]

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return len(self.source), self.width

    def _slots(self) -> tuple[Tensor, Tensor]:
        if self._worked_out is None:  # not a cached_property, whose lock cannot be compiled
            anchored = torch.ones(self.shape, dtype=torch.bool, device=self.source.device).scatter_(1, self.source, 0)
            slot = anchored.cumsum(dim=-1) - 1
            slot = slot.scatter_(1, self.source, slot.gather(1, self.target))
            object.__setattr__(self, "_worked_out", (slot, anchored))
        return self._worked_out

    @property
    def assignment(self) -> Tensor:
        """As in `MergePlan`."""
        return self._slots()[0]

    @property
    def anchored(self) -> Tensor:
        """As in `MergePlan`."""
        return self._slots()[1]

    def merge(self, x: Tensor, size: Tensor | None = None, *, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """As in `MergePlan`."""
        size = self._sizes_for(x, size, prefix).flatten()
        tokens, count = x.flatten(0, 1), prefix + self.num_tokens
        end, pace = prefix + max(len(tokens), len(x)), max(1, x.shape[1])  # of no tokens too: a first row for each item
        first = torch.arange(prefix, end, pace, device=x.device)[:, None]
        gone, into = (first + self.source).flatten(), (first + self.target).flatten()
        stays = torch.ones_like(size, dtype=torch.bool).index_fill_(0, gone, 0)
        # The row of the n-th token that stays is the first one up to which n of them do; no item's count is read back.
        number = torch.arange(1, len(x) * count + 1, device=x.device)
        kept = torch.searchsorted(stays.cumsum(0), number)
        slot = torch.searchsorted(kept, into)
        alone, joining = size.index_select(0, kept), size.index_select(0, gone)
        total = alone.index_add(0, slot, joining)
        whole = total.clamp_min(torch.finfo(total.dtype).tiny)  # of nothing, nothing
        out = tokens.index_select(0, kept).to(size.dtype).mul_((alone / whole)[:, None])
        joined = tokens.index_select(0, gone) * (joining / whole.index_select(0, slot))[:, None]
        out = out.index_add_(0, slot, joined).to(x.dtype).view(len(x), count, x.shape[2])
        return out, total.view(len(x), count).float()


@dataclass(frozen=True, eq=False)
class LinearPlan:
    """A reduction of N tokens to M that is no partition (a truncated transform such as the DCT).

    `forward` is `(M, N)` or `(B, M, N)`, `backward` `(N, M)` or `(B, N, M)`, float. Such outputs stand for no number
    of tokens: sizes are 1, and the laws of partitions (sums of sizes, means) do not apply.
    """

    forward: Tensor
    backward: Tensor
    energy: Tensor | None = None

    drops = False
    valid = None

    @property
    def num_tokens(self) -> int:
        """M."""
        return self.forward.shape[-2]

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        if x.shape[1] != matrix.shape[-1]:
            raise ValueError(f"this plan takes {matrix.shape[-1]} tokens, got {x.shape[1]}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            return (matrix.to(wide.dtype) @ wide).to(x.dtype)

    def merge(self, x: Tensor, size: Tensor | None = None, *, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """`(B, N, C) -> (B, M, C)` and sizes of one `(B, M)`; `size` is accepted and ignored; prefix tokens stay."""
        out = self._apply(self.with_prefix(prefix).forward, x)
        return out, torch.ones(out.shape[:2], device=x.device)

    def unmerge(self, y: Tensor) -> Tensor:
        """`(B, M, C) -> (B, N, C)`."""
        return self._apply(self.backward, y)

    def matrix(self) -> Tensor:
        """The forward matrix."""
        return self.forward

    def then(self, other: MergePlan | LinearPlan) -> LinearPlan:
        """This transform followed by `other`."""
        other = other if isinstance(other, LinearPlan) else other.as_linear()
        dtype = torch.promote_types(self.forward.dtype, other.forward.dtype)
        return LinearPlan(other.forward.to(dtype) @ self.forward.to(dtype),
                          self.backward.to(dtype) @ other.backward.to(dtype))

    def with_prefix(self, prefix: int) -> LinearPlan:
        """The same transform with `prefix` untouched tokens in front."""

        def framed(matrix: Tensor) -> Tensor:
            out = matrix.new_zeros(*matrix.shape[:-2], matrix.shape[-2] + prefix, matrix.shape[-1] + prefix)
            out[..., prefix:, prefix:] = matrix
            out[..., range(prefix), range(prefix)] = 1
            return out

        return LinearPlan(framed(self.forward), framed(self.backward))
