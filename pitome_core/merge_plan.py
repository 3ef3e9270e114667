"""What a merge does: computed once, then applied to anything token-shaped.

A `MergePlan` says which output token ("slot") every input token joins. Everything else follows from that: the merge by
size-weighted means, the way back, the merges of several layers as one plan, the averaging matrix. A plan does not
contain prefix tokens; `with_prefix` puts them in front. A `LinearPlan` is the same for transforms that mix all tokens.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .linear_plan import LinearPlan
from .portable import exporting

REDUCTIONS = ("mean", "mlerp", "stepwise")


def _rows(slot: Tensor, count: int) -> Tensor:
    """Slots `(B, N)`, of which each item has `count`, as row numbers `(B N,)` of a `(B count, C)` matrix.

    index_add and index_select are fast on rows of a matrix.
    """
    return (slot + count * torch.arange(slot.shape[0], device=slot.device)[:, None]).flatten()


def _sum_by_row(values: Tensor, rows: Tensor, number: int) -> Tensor:
    """Sums of `values (R, ...)` over the entries that have the same row number in `rows (R,)`: `(number, ...)`."""
    return values.new_zeros(number, *values.shape[1:]).index_add_(0, rows, values)


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which slot every token joins, for a batch of B items with N tokens and M slots each.

    A plan cannot be changed; `settled` makes one with other values. What is given to the constructor and to the class
    methods is checked (ValueError, TypeError), because a wrong slot would mix items in silence. Values of tensors are
    not read in a model that is compiled, exported or traced.

    Attributes:
        assignment: `(B, N)` long, the slot of every input token; -1 = dropped or padding.
        num_tokens: M, the padded number of slots.
        anchored: `(B, N)` bool, True for anchors. Each slot has one anchor and inherits its raster place and position.
            Slots stand in the raster order of their anchors.
        valid: `(B, M)` bool, or None when every slot of every item is in use.
        weight: `(B, N)` weights of the tokens in the mean, besides their sizes; None = 1 each, as in the paper.
        reduce: `mean`, or `mlerp`: the direction of the mean with the largest norm of the group.
        energy: `(B, N)` energies that the plan was made from, or None. Only traces read them.
        drops: whether the assignment may hold -1. It is stored, because reading it from the tensor would be a branch
            on data, which compiled code cannot have.
        pairs: (source, target), `(B, k)` long each, if the plan was made from pairs (`from_merges`); else None.
            `assignment` and `anchored` are then worked out when they are first asked for. A model only merges, for
            which the pairs are enough.
    """

    assignment: Tensor
    num_tokens: int
    anchored: Tensor
    valid: Tensor | None = None
    weight: Tensor | None = None
    reduce: str = "mean"
    energy: Tensor | None = None
    drops: bool = False
    pairs: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    @classmethod
    def identity(
        cls, batch: int, num_tokens: int, device: torch.device | str | None = None, valid: Tensor | None = None
    ) -> MergePlan:
        """The plan that merges nothing; `valid (B, N)` marks the real tokens if there is padding."""
        place = torch.arange(num_tokens, device=device).expand(batch, num_tokens)
        if valid is not None:
            place = place.masked_fill(~checks.tensor(valid, "valid", (batch, num_tokens), "bool"), -1)
        return cls._made(
            assignment=place, num_tokens=num_tokens, anchored=place >= 0, valid=valid, drops=valid is not None
        )

    @classmethod
    def _made(cls, **values: Any) -> MergePlan:
        """The plan of these fields; others have their defaults. No value of a tensor is read, so no device waited for.

        Without `assignment` and `anchored` they are worked out from `pairs`, see __getattr__.
        """
        plan = object.__new__(cls)
        plan.__dict__.update(values)
        return plan

    def __post_init__(self) -> None:
        checks.fields(self, REDUCTIONS)
        checks.slots(self)
        object.__setattr__(self, "assignment", self.assignment.long())

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
        checked: bool = True,
    ) -> MergePlan:
        """Plan from the anchor that every token joins.

        Args:
            root: `(B, N)` integers. `root[i] == i` for an anchor; -1 for a dropped token or padding; for every other
                token the index of an anchor.
            num_tokens: the number of anchors, if every item has the same number. None: they are counted, and items
                with fewer anchors than the largest number get padded slots (`valid`).
            checked: whether roots are looked at. A GPU has to be waited for then, so a method that is sure of its roots
                says False.

        Raises:
            ValueError: a root that is no anchor, or no token; -1 without `drops`; another number of anchors.
            TypeError: roots that are no tensor.
        """
        if checked:
            root = checks.roots(root, num_tokens, drops)
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
        num_tokens = operator.index(num_tokens)  # an int, also where it comes from a traced shape
        plan = cls._made(assignment=assignment, num_tokens=num_tokens, anchored=anchored, valid=valid, weight=weight,
                         reduce=reduce, energy=energy, drops=drops)
        return checks.fields(plan, REDUCTIONS)

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
        checked: bool = True,
    ) -> MergePlan:
        """Plan that merges token `source[b, i]` into token `target[b, i]`.

        Args:
            source, target: `(B, k)` integers, indices of tokens. Sources are distinct, and no target is a source.
            width: N.
            active: `(B, k)` bool, the pairs in use if items have different numbers of them, which needs a mask; None =
                all. Other pairs may hold anything.
            mask: `(B, N)` bool, True for real tokens, if there is padding.
            checked: as in `from_roots`; where unchecked pairs are wrong, items mix.

        Raises:
            ValueError: pairs that are no such merges, or no tokens; shapes or dtypes that do not fit.
            TypeError: pairs that are no tensors.
        """
        if checked:
            source, target = checks.pairs(source, target, width, active, mask)
        if mask is None:
            count = operator.index(width) - operator.index(source.shape[1])  # an int, also where shapes are traced
            return cls._made(num_tokens=count, energy=energy, pairs=(source, target))
        root = torch.arange(width + 1, device=source.device).repeat(source.shape[0], 1)  # (B, N + 1)
        if active is not None:
            source = torch.where(active, source, width)  # the spare column
        root = root.scatter(1, source, target)[:, :width]  # (B, N)
        return cls.from_roots(root.masked_fill(~mask, -1), energy=energy, drops=True, checked=False)

    def __getattr__(self, name: str) -> Tensor:
        """Work out `assignment` and `anchored` of a plan made from pairs. Python asks here for missing attributes only.

        A cached_property would do the same, but compiled code cannot take its lock.
        """
        if name not in ("assignment", "anchored") or self.pairs is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        source, target = self.pairs
        anchored = source.new_ones(self.shape, dtype=torch.bool).scatter_(1, source, 0)  # new_ones: vmap knows it
        slot = anchored.cumsum(dim=-1) - 1
        object.__setattr__(self, "assignment", slot.scatter_(1, source, slot.gather(1, target)))
        object.__setattr__(self, "anchored", anchored)
        return self.assignment if name == "assignment" else self.anchored

    def settled(self, **changes: Any) -> MergePlan:
        """A plan with the same values, worked out, and with other values in the fields that are named.

        TypeError for an unknown field; dtypes and shapes are checked, slots are not.
        """
        if unknown := changes.keys() - set(_FIELDS):
            raise TypeError(f"a plan has no field {', '.join(unknown)}; its fields: {', '.join(_FIELDS)}")
        values = {name: getattr(self, name) for name in _FIELDS} | changes
        return checks.fields(MergePlan._made(**values), REDUCTIONS)

    def to(self, device: torch.device | str) -> MergePlan:
        """The plan with its tensors on that device; the plan itself if they are there."""
        if self.device == torch.device(device):
            return self
        if self.pairs is not None:
            source, target = self.pairs
            energy = None if self.energy is None else self.energy.to(device)
            pairs = source.to(device), target.to(device)
            return MergePlan._made(num_tokens=self.num_tokens, energy=energy, pairs=pairs)
        held = {name: getattr(self, name) for name in _FIELDS}
        return MergePlan._made(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in held.items()})

    @property
    def device(self) -> torch.device:
        """Where the tensors of the plan are."""
        return self.assignment.device if self.pairs is None else self.pairs[0].device

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
        """`(B, N)`: the numbers of items and of input tokens."""
        if self.pairs is None:
            return tuple(self.assignment.shape)
        batch, removed = self.pairs[0].shape
        return batch, self.num_tokens + removed

    def _check(self, x: Tensor, expected: int, name: str) -> None:
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[:2] != (self.shape[0], expected):
            raise ValueError(
                f"this plan is for {self.shape[0]} items of {expected} tokens, {name} has shape "
                f"{tuple(getattr(x, 'shape', ()))}; prefix tokens are not part of a plan (see with_prefix)"
            )

    def _sizes_for(self, x: Tensor, size: Tensor | None, prefix: int) -> Tensor:
        """The sizes of the tokens `x`, 1 each if None is given: float64 for float64 tokens, else float32."""
        self._check(x, (prefix if checks.in_graph() else checks.count(prefix, "prefix")) + self.shape[1], "x")
        if not x.is_floating_point():
            raise ValueError(f"a merge takes means of floating tokens, got {x.dtype}: give x.float(), or the real and "
                             "the imaginary part of complex tokens each")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if size is None:
            return x.new_ones(x.shape[:2], dtype=dtype)
        if not isinstance(size, Tensor) or size.is_complex() or size.shape != x.shape[:2]:
            got = f"{size.dtype} of shape {tuple(size.shape)}" if isinstance(size, Tensor) else type(size).__name__
            raise ValueError(f"size must be real numbers of shape {tuple(x.shape[:2])}, as the tokens; got {got}")
        return size.to(dtype)

    def _shares(self, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Share of every token in its slot's mean `(B N,)`, size of every slot `(B, M)`, row of every token `(B N,)`.

        The shares in a slot sum to 1, so that the share of a lone token is 1. If the plan drops tokens, every item has
        a spare slot behind its last one, which the dropped tokens join.
        """
        slot, count = self.assignment, self.num_tokens
        if self.drops:
            slot, count = torch.where(slot < 0, count, slot), count + 1
        size = torch.ones_like(slot, dtype=torch.float32) if size is None else size
        rows, part = _rows(slot, count), size.flatten()  # (B N,)
        total = whole = _sum_by_row(part, rows, slot.shape[0] * count)  # (B M,)
        if self.weight is not None:
            part = part * self.weight.flatten()
            whole = _sum_by_row(part, rows, total.shape[0])
        share = (part / whole.index_select(0, rows)).nan_to_num(0.0)  # 0 / 0 in a group of padding is 0
        return share, total.view(slot.shape[0], count), rows

    def merge(self, x: Tensor, size: Tensor | None = None, *, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """Merge tokens by their size-weighted mean: `x_b <- sum s_i x_i / sum s_i` over each group.

        Args:
            x: `(B, N, C)`, floating; sums run in float32 at least. A token that stays alone passes unchanged.
            size: `(B, N)`, how many original tokens each one stands for; None = 1 each. Padding has size 0.
            prefix: number of tokens in front of the plan's, in x and size, that stay as they are.

        Returns:
            `(B, M, C)` in the dtype of x, and the new sizes `(B, M)`, float32 (0 in padded slots). Prefix tokens stand
            in front of both.

        Raises:
            ValueError: x or size does not have the plan's number of items and tokens; x is integer (its means would be
                cut off) or complex.

        Example:
            >>> import torch, pitome_core as pc
            >>> plan = pc.MergePlan.from_roots(torch.tensor([[0, 0, 2]]))  # token 1 joins token 0
            >>> x, size = plan.merge(torch.tensor([[[1.0], [3.0], [9.0]]]))
            >>> x.flatten().tolist(), size.tolist()
            ([2.0, 9.0], [[2.0, 1.0]])
        """
        size = self._sizes_for(x, size, prefix)
        if self.reduce == "stepwise":
            raise ValueError("a composition with mlerp is no single reduction: merge with one plan after the other")

        if self.pairs is not None and exporting():
            return self._merge_pairs(x, size, prefix)
        if self.pairs is not None:
            # k pairs: copy the tokens that stay, add the k sources. Tokens are rows of a matrix, T = prefix + N.
            source, target = self.pairs
            batch, width, count = x.shape[0], x.shape[1], prefix + self.num_tokens
            tokens, size = x.flatten(0, 1), size.flatten()  # (B T, C), (B T,)
            stride = max(1, width)  # 1 if there are no tokens, because arange refuses 0
            first = torch.arange(prefix, prefix + batch * stride, stride, device=x.device)[:, None]  # (B, 1)
            going, joined = (first + source).flatten(), (first + target).flatten()  # (B k,) each
            stays = torch.ones_like(size, dtype=torch.bool).index_fill_(0, going, 0)  # (B T,)
            # The n-th row that stays is the first row up to which n rows stay. Searching for it, unlike nonzero, does
            # not make the processor wait for the device.
            number = torch.arange(1, batch * count + 1, device=x.device)
            staying = torch.searchsorted(stays.cumsum(0), number)  # (B M,)
            slot = torch.searchsorted(staying, joined)  # (B k,)
            own, added = size.index_select(0, staying), size.index_select(0, going)  # (B M,), (B k,)
            total = own.index_add(0, slot, added)  # (B M,)
            divisor = total.clamp_min(torch.finfo(total.dtype).tiny)  # a group of padding has size 0
            out = tokens.index_select(0, staying).to(size.dtype).mul_((own / divisor)[:, None])  # (B M, C)
            part = tokens.index_select(0, going) * (added / divisor.index_select(0, slot))[:, None]  # (B k, C)
            out = out.index_add_(0, slot, part).view(batch, count, x.shape[2])  # (B, M, C)
            return out.to(x.dtype), total.view(batch, count).float()

        # In general: every token is scaled by its share and added to its slot.
        if prefix:
            return self.with_prefix(prefix).merge(x, size)
        share, total, rows = self._shares(size)  # (B N,), (B, M) with the spare slot, (B N,)
        scaled = x.flatten(0, 1) * share[:, None]  # (B N, C), in float32 at least, as the shares are
        out = _sum_by_row(scaled, rows, total.numel()).view(*total.shape, x.shape[2])  # (B, M, C) with the spare slot
        out, total = out[:, : self.num_tokens], total[:, : self.num_tokens]  # (B, M, C), (B, M)
        if self.reduce == "mlerp":
            out = self._rescale(out, x.to(out.dtype))
        return out.to(x.dtype), total.float()

    def _merge_pairs(self, x: Tensor, size: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """`merge` of a plan made from pairs by gathers and sums within each item, for graphs of any batch size."""
        source, target = self.pairs
        batch, count, channels = x.shape[0], prefix + self.num_tokens, x.shape[2]
        x = x.view(batch, count + source.shape[1], channels)  # a traced graph refuses other numbers of tokens here
        front = torch.arange(prefix, device=x.device).expand(batch, prefix)
        staying, going = torch.cat([front, self.anchor + prefix], dim=1), source + prefix  # (B, M), (B, k)
        slot = self.assignment.gather(1, target) + prefix  # (B, k)
        own, added = size.gather(1, staying), size.gather(1, going)
        total = own.scatter_add(1, slot, added)  # (B, M)
        divisor = total.clamp_min(torch.finfo(total.dtype).tiny)  # a group of padding has size 0

        def channelwise(index: Tensor) -> Tensor:
            return index[..., None].expand(-1, -1, channels)

        part = x.gather(1, channelwise(going)) * (added / divisor.gather(1, slot))[..., None]  # (B, k, C)
        out = x.gather(1, channelwise(staying)) * (own / divisor)[..., None]  # (B, M, C), in float32 at least
        return out.scatter_add(1, channelwise(slot), part).to(x.dtype), total.float()

    def _rescale(self, mean: Tensor, x: Tensor) -> Tensor:
        """MLERP: each group's mean `(B, M, C)`, scaled to the largest norm in the group; lone tokens stay."""
        _, total, rows = self._shares()
        longest = x.new_zeros(total.numel()).scatter_reduce(0, rows, x.norm(dim=-1).flatten(), "amax")
        longest, number = (value.view_as(total)[:, : self.num_tokens, None] for value in (longest, total))
        norm = mean.norm(dim=-1, keepdim=True)
        return torch.where((norm > 0) & (number > 1), mean * (longest / norm), mean)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token the value of its slot: `(B, M, C) -> (B, N, C)`; zeros for dropped tokens.

        Values of any dtype are copied.

        Raises:
            ValueError: y does not have the plan's number of items and slots.

        Example:
            >>> import torch, pitome_core as pc
            >>> plan = pc.MergePlan.from_roots(torch.tensor([[0, 0, 2]]))
            >>> plan.unmerge(torch.tensor([[[2.0], [9.0]]])).flatten().tolist()
            [2.0, 2.0, 9.0]
        """
        self._check(y, self.num_tokens, "y")
        slot = self.assignment.clamp_min(0) if self.drops else self.assignment
        rows = _rows(slot, self.num_tokens)  # (B N,)
        out = y.flatten(0, 1).index_select(0, rows).view(*slot.shape, y.shape[2])  # (B, N, C)
        return out.masked_fill((self.assignment < 0)[..., None], 0) if self.drops else out

    @property
    def sizes(self) -> Tensor:
        """`(B, M)` float32: how many input tokens joined each slot."""
        return self._shares()[1][:, : self.num_tokens]

    def then(self, other: MergePlan | LinearPlan) -> MergePlan | LinearPlan:
        """This plan followed by `other`, as one plan from this one's inputs to the other's slots.

        Weights compose as for unit sizes. A composition with `mlerp` keeps its assignment, anchors and unmerge, but it
        is no single reduction, so its `merge` and `matrix` raise.

        Raises:
            ValueError: `other` does not take as many tokens of as many items as this plan leaves.
            TypeError: `other` is no plan.

        Example:
            >>> import torch, pitome_core as pc
            >>> first = pc.MergePlan.from_roots(torch.tensor([[0, 0, 2, 3]]))  # four tokens to three
            >>> second = pc.MergePlan.from_roots(torch.tensor([[0, 1, 1]]))  # three to two
            >>> first.then(second).assignment.tolist()
            [[0, 0, 1, 1]]
        """
        if isinstance(other, LinearPlan):
            return self.as_linear().then(other)
        if not isinstance(other, MergePlan):
            raise TypeError(f"a plan is followed by a plan, got {type(other).__name__}")
        if other.shape != (self.shape[0], self.num_tokens):
            raise ValueError(f"this plan leaves {self.num_tokens} tokens of {self.shape[0]} items, the next takes "
                             f"{other.shape[1]} of {other.shape[0]}")
        drops = self.drops or other.drops
        slot = self.assignment.clamp_min(0) if self.drops else self.assignment
        assignment = other.assignment.gather(1, slot)  # (B, N)
        anchored = self.anchored & other.anchored.gather(1, slot)
        if self.drops:
            assignment = assignment.masked_fill(self.assignment < 0, -1)
        weight = None
        if self.weight is not None or other.weight is not None:
            weight = other._shares(self.sizes)[0].view(slot.shape[0], self.num_tokens, 1)
            weight = self._shares()[0].view_as(slot) * self.unmerge(weight)[..., 0]
        reduce = "mean" if self.reduce == other.reduce == "mean" else "stepwise"
        return other.settled(assignment=assignment, anchored=anchored, weight=weight, reduce=reduce, drops=drops,
                             energy=None)

    def matrix(self) -> Tensor:
        """The averaging matrix `(B, M, N)` for unit sizes: `merge(x) = matrix() @ x`. Rows of used slots sum to 1."""
        if self.reduce != "mean":
            raise ValueError(f"a plan with reduce={self.reduce!r} is not linear and has no matrix")
        share = self._shares()[0].view_as(self.assignment)[:, None, :]
        slots = torch.arange(self.num_tokens, device=self.assignment.device)[None, :, None]
        return torch.where(self.assignment[:, None, :] == slots, share, torch.zeros_like(share))

    def with_prefix(self, prefix: int) -> MergePlan:
        """The same plan with `prefix` tokens in front that stay as they are (class, distillation, registers)."""
        if not checks.in_graph():
            prefix = checks.count(prefix, "prefix")
        if prefix == 0:
            return self
        place = torch.arange(prefix, device=self.assignment.device).expand(self.assignment.shape[0], prefix)
        assignment = self.assignment + prefix
        if self.drops:
            assignment = assignment.masked_fill(self.assignment < 0, -1)

        def framed(value: Tensor | None) -> Tensor | None:
            return None if value is None else F.pad(value, (prefix, 0), value=1)

        return self.settled(assignment=torch.cat([place, assignment], dim=1), num_tokens=self.num_tokens + prefix,
                            anchored=framed(self.anchored), valid=framed(self.valid), weight=framed(self.weight),
                            energy=None)

    def keeping(self, kept: Tensor) -> MergePlan:
        """The same plan with the tokens `kept (B, N)`, which it dropped, as slots of their own (a text's [SEP])."""
        place = torch.arange(checks.tensor(kept, "kept", self.shape, "bool").shape[1], device=kept.device)
        root = self.anchor.gather(1, self.assignment.clamp_min(0)).masked_fill(self.assignment < 0, -1)
        weight = None if self.weight is None else self.weight.masked_fill(kept, 1)
        return MergePlan.from_roots(torch.where(kept, place, root), energy=self.energy, weight=weight,
                                    reduce=self.reduce, drops=True, checked=False)

    def as_linear(self) -> LinearPlan:
        """The plan as a pair of matrices (unit sizes)."""
        matrix = self.matrix()
        return LinearPlan(matrix, (matrix > 0).to(matrix.dtype).transpose(-1, -2))


_FIELDS = tuple(entry.name for entry in fields(MergePlan) if entry.init)
