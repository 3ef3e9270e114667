"""What a merge does, computed once and applied to anything token-shaped.

A `MergePlan` says which output token ("slot") every input token joins. Everything else follows from it: merging by
size-weighted means, undoing the merge, composing the merges of several layers, the averaging matrix. Plans hold no
prefix tokens; `with_prefix` puts them in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MergePlan:
    """Which slot every token joins, for a batch of B items with N tokens each and M slots.

    Attributes:
        assignment: `(B, N)` long, the slot of every input token; -1 = dropped or padding.
        num_tokens: M, the padded number of slots.
        anchor: `(B, M)` long, the input token whose raster place and position a slot inherits; slots stand in the
            raster order of their anchors. -1 in padded slots.
        valid: `(B, M)` bool, or None when every slot of every item is in use.
        weight: `(B, N)` extra weights of the mean, or None for the paper's (weights = sizes).
        reduce: `mean`, or `mlerp`: the mean's direction with the largest norm of the group.
        energy: `(B, N)` energies that the plan was made from, or None; for traces only.
        drops: whether the assignment may hold -1. Known without reading the tensor, so that compiled code has no
            branch on data.
    """

    assignment: Tensor
    num_tokens: int
    anchor: Tensor
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
        return cls(assignment=place, num_tokens=num_tokens, anchor=place, valid=valid, drops=valid is not None)

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
        place = torch.arange(width, device=root.device).expand(batch, width)
        is_anchor = root == place
        slot = is_anchor.cumsum(dim=-1) - 1
        valid = None
        if num_tokens is None:
            count = is_anchor.sum(dim=-1)
            num_tokens = int(count.max()) if batch else 0
            if bool((count < num_tokens).any()):
                valid = torch.arange(num_tokens, device=root.device) < count[:, None]
        assignment = slot.gather(1, root.clamp_min(0)).masked_fill(root < 0, -1)
        # Tokens that are no anchors are written to a spare column, which is cut off.
        anchor = torch.full((batch, num_tokens + 1), -1, dtype=torch.long, device=root.device)
        anchor = anchor.scatter(1, torch.where(is_anchor, slot, num_tokens), place)[:, :num_tokens]
        return cls(assignment, num_tokens, anchor, valid, weight, reduce, energy, drops)

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

        Sources are distinct, and no target is a source. `active (B, k)` switches pairs off and `mask (B, width)` marks
        real tokens; both only for items of unequal length.
        """
        batch, k = source.shape
        root = torch.arange(width + 1, device=source.device).repeat(batch, 1)
        if active is not None:
            source = torch.where(active, source, width)  # the spare column
        root = root.scatter(1, source, target)[:, :width]
        if mask is None:
            return cls.from_roots(root, width - k, energy=energy)
        return cls.from_roots(root.masked_fill(~mask, -1), energy=energy, drops=True)

    def _check(self, x: Tensor, expected: int, name: str) -> None:
        if x.ndim != 3 or x.shape[0] != self.assignment.shape[0] or x.shape[1] != expected:
            raise ValueError(
                f"this plan is for {self.assignment.shape[0]} items of {expected} tokens, {name} has shape "
                f"{tuple(x.shape)}; prefix tokens are not part of a plan (see with_prefix)"
            )

    def _slots(self) -> tuple[Tensor, int]:
        """Flat row of every token in a `(B * rows, C)` buffer, and the rows per item (one spare row for drops)."""
        batch = self.assignment.shape[0]
        rows = self.num_tokens + 1 if self.drops else self.num_tokens
        slot = torch.where(self.assignment < 0, self.num_tokens, self.assignment) if self.drops else self.assignment
        offset = rows * torch.arange(batch, device=slot.device)[:, None]
        return (slot + offset).reshape(-1), rows

    def _sum_rows(self, values: Tensor) -> Tensor:
        """Sum `(B, N, ...)` over the tokens of each slot: `(B, M, ...)`. Flat rows are what index_add is fast on."""
        index, rows = self._slots()
        tail = values.shape[2:]
        total = values.new_zeros(self.assignment.shape[0] * rows, *tail).index_add(0, index, values.reshape(-1, *tail))
        return total.view(-1, rows, *tail)[:, : self.num_tokens]

    def _spread_rows(self, values: Tensor) -> Tensor:
        """Copy slots `(B, M, ...)` back to their tokens: `(B, N, ...)`; zero for dropped tokens."""
        batch, width = self.assignment.shape
        slot = self.assignment.clamp_min(0) if self.drops else self.assignment
        offset = self.num_tokens * torch.arange(batch, device=slot.device)[:, None]
        tail = values.shape[2:]
        rows = values.reshape(-1, *tail).index_select(0, (slot + offset).reshape(-1)).view(batch, width, *tail)
        if self.drops:
            dropped = (self.assignment < 0).view(batch, width, *[1] * len(tail))
            rows = rows.masked_fill(dropped, 0)
        return rows

    def _shares(self, size: Tensor) -> Tensor:
        """Share of every token in its slot's mean, `(B, N)`; the shares of a slot sum to 1, a lone token's is 1."""
        part = size if self.weight is None else size * self.weight
        total = self._spread_rows(self._sum_rows(part))
        return torch.where(total > 0, part / total, torch.zeros_like(part))

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge tokens by their size-weighted mean: `x_b <- sum s_i x_i / sum s_i` over the group.

        Args:
            x: `(B, N, C)` of any dtype; sums run in float32 at least. A token that stays alone passes unchanged.
            size: `(B, N)` how many original tokens each one stands for; None = 1 each.

        Returns:
            `(B, M, C)` in the dtype of x, and the new sizes `(B, M)`, float32 (0 in padded slots).

        Raises:
            ValueError: x or size does not have the plan's number of items and tokens.
        """
        self._check(x, self.assignment.shape[1], "x")
        if self.reduce == "stepwise":
            raise ValueError("a composition with mlerp is no single reduction: merge with one plan after the other")
        if size is None:
            size = torch.ones(self.assignment.shape, device=x.device)
        elif size.shape != self.assignment.shape:
            raise ValueError(f"size has shape {tuple(size.shape)}, the plan {tuple(self.assignment.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        share = self._shares(size.to(wide.dtype))
        out = self._sum_rows(wide * share[..., None])
        if self.reduce == "mlerp":
            out = self._rescale(out, wide)
        return out.to(x.dtype), self._sum_rows(size.to(torch.float32))

    def _rescale(self, mean: Tensor, x: Tensor) -> Tensor:
        """MLERP: keep the direction of each group's mean, take the largest norm in the group; lone tokens stay."""
        index, rows = self._slots()
        longest = x.new_zeros(x.shape[0] * rows).scatter_reduce(0, index, x.norm(dim=-1).reshape(-1), "amax")
        longest = longest.view(-1, rows, 1)[:, : self.num_tokens]
        norm = mean.norm(dim=-1, keepdim=True)
        scaled = torch.where(norm > 0, mean * (longest / norm), mean)
        return torch.where(self.sizes[..., None] > 1, scaled, mean)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every input token the value of its slot: `(B, M, C) -> (B, N, C)`; zeros for dropped tokens."""
        self._check(y, self.num_tokens, "y")
        return self._spread_rows(y)

    @property
    def sizes(self) -> Tensor:
        """`(B, M)` float32: how many input tokens joined each slot."""
        return self._sum_rows(torch.ones(self.assignment.shape, device=self.assignment.device))

    def then(self, other: MergePlan | LinearPlan) -> MergePlan | LinearPlan:
        """This plan followed by `other`, as one plan from this one's inputs to the other's slots.

        Weights compose as for unit sizes. A composition with `mlerp` keeps its assignment, anchors and unmerge, but
        is no single reduction: its `merge` and `matrix` raise.
        """
        if isinstance(other, LinearPlan):
            return self.as_linear().then(other)
        if other.assignment.shape[1] != self.num_tokens:
            raise ValueError(f"this plan leaves {self.num_tokens} tokens, the next takes {other.assignment.shape[1]}")
        drops = self.drops or other.drops
        assignment = other.assignment.gather(1, self.assignment.clamp_min(0))
        if self.drops:
            assignment = assignment.masked_fill(self.assignment < 0, -1)
        anchor = self.anchor.gather(1, other.anchor.clamp_min(0)).masked_fill(other.anchor < 0, -1)
        weight = None
        if self.weight is not None or other.weight is not None:
            ones = torch.ones(self.assignment.shape, device=self.assignment.device)
            weight = self._shares(ones) * self._spread_rows(other._shares(self.sizes))
        reduce = "mean" if self.reduce == other.reduce == "mean" else "stepwise"
        return replace(other, assignment=assignment, anchor=anchor, weight=weight, reduce=reduce, drops=drops,
                       energy=None)

    def matrix(self) -> Tensor:
        """The averaging matrix `(B, M, N)` for unit sizes: rows of used slots sum to 1, `merge(x) = matrix() @ x`."""
        if self.reduce != "mean":
            raise ValueError(f"a plan with reduce={self.reduce!r} is not linear and has no matrix")
        ones = torch.ones(self.assignment.shape, device=self.assignment.device)
        share = self._shares(ones)[:, None, :]
        slots = torch.arange(self.num_tokens, device=self.assignment.device)[None, :, None]
        return torch.where(self.assignment[:, None, :] == slots, share, torch.zeros_like(share))

    def with_prefix(self, prefix: int) -> MergePlan:
        """The same plan with `prefix` tokens in front that stay as they are (class, distillation, registers)."""
        if prefix == 0:
            return self
        front = torch.arange(prefix, device=self.assignment.device).expand(self.assignment.shape[0], prefix)

        def shifted(index: Tensor) -> Tensor:
            return torch.cat([front, torch.where(index < 0, index, index + prefix)], dim=1)

        def padded(value: Tensor | None, fill: float) -> Tensor | None:
            return None if value is None else torch.cat([torch.full_like(front, fill).to(value.dtype), value], dim=1)

        return replace(self, assignment=shifted(self.assignment), anchor=shifted(self.anchor),
                       num_tokens=self.num_tokens + prefix, valid=padded(self.valid, 1),
                       weight=padded(self.weight, 1), energy=None)

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

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`(B, N, C) -> (B, M, C)` and sizes of one `(B, M)`; `size` is accepted and ignored."""
        out = self._apply(self.forward, x)
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
