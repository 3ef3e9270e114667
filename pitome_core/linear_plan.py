"""A plan for transforms that mix all tokens, and so assign none of them to a slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import checks
from .portable import full_precision


@dataclass(frozen=True, eq=False)
class LinearPlan:
    """A reduction of N tokens to M that is no partition (a truncated transform such as the DCT).

    `forward` is `(M, N)` or `(B, M, N)`, `backward` `(N, M)` or `(B, N, M)`, float. An output of a transform does not
    stand for a number of tokens, so sizes are 1, and the laws of partitions (sums of sizes, means) do not apply.
    """

    forward: Tensor
    backward: Tensor
    energy: Tensor | None = None

    drops = False
    valid = None

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError unless these are two floating matrices, or two per item, there and back."""
        shape = checks.tensor(
            self.forward, "forward", (None,) * (3 if getattr(self.forward, "ndim", 0) == 3 else 2), "floating"
        ).shape
        checks.tensor(self.backward, "backward", (*shape[:-2], shape[-1], shape[-2]), "floating")

    @property
    def shape(self) -> tuple[int, int]:
        """`(B, N)`: the numbers of items and of input tokens; B is 1 if all items share the matrices."""
        return math.prod(self.forward.shape[:-2]), self.forward.shape[-1]

    @property
    def num_tokens(self) -> int:
        """M, how many tokens the transform leaves."""
        return self.forward.shape[-2]

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.forward.device

    def to(self, device: torch.device | str) -> LinearPlan:
        """The plan with its matrices on that device."""
        return LinearPlan(self.forward.to(device), self.backward.to(device),
                          None if self.energy is None else self.energy.to(device))

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        checks.tensor(x, "x", (None, None, None), "floating")
        if x.shape[1] != matrix.shape[-1]:
            raise ValueError(f"this plan takes {matrix.shape[-1]} tokens, got {x.shape[1]}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        with full_precision(x.device):
            return (matrix.to(dtype) @ x.to(dtype)).to(x.dtype)

    def merge(self, x: Tensor, size: Tensor | None = None, *, prefix: int = 0) -> tuple[Tensor, Tensor]:
        """`(B, N, C) -> (B, M, C)`, and sizes of 1 `(B, M)`. `size` is ignored. `prefix` tokens in front stay."""
        out = self._apply(self.with_prefix(prefix).forward, x)
        return out, torch.ones(out.shape[:2], device=x.device)

    def unmerge(self, y: Tensor) -> Tensor:
        """Apply the backward matrix: `(B, M, C) -> (B, N, C)`."""
        return self._apply(self.backward, y)

    def matrix(self) -> Tensor:
        """The forward matrix, `(M, N)` or `(B, M, N)`."""
        return self.forward

    def then(self, other: Any) -> LinearPlan:
        """This transform followed by `other`, a plan of either kind.

        ValueError if that does not take as many tokens as this one leaves.
        """
        if not hasattr(other, "as_linear"):
            raise TypeError(f"a plan is followed by a plan, got {type(other).__name__}")
        other = other.as_linear()
        if other.forward.shape[-1] != self.num_tokens:
            raise ValueError(f"this plan leaves {self.num_tokens} tokens, the next takes {other.forward.shape[-1]}")
        dtype = torch.promote_types(self.forward.dtype, other.forward.dtype)
        return LinearPlan(other.forward.to(dtype) @ self.forward.to(dtype),
                          self.backward.to(dtype) @ other.backward.to(dtype))

    def as_linear(self) -> LinearPlan:
        """The plan itself."""
        return self

    def with_prefix(self, prefix: int) -> LinearPlan:
        """The same transform with `prefix` tokens in front that stay as they are."""
        if not checks.in_graph():
            prefix = checks.count(prefix, "prefix")

        def framed(matrix: Tensor) -> Tensor:
            out = matrix.new_zeros(*matrix.shape[:-2], matrix.shape[-2] + prefix, matrix.shape[-1] + prefix)
            out[..., prefix:, prefix:] = matrix
            out[..., range(prefix), range(prefix)] = 1
            return out

        return LinearPlan(framed(self.forward), framed(self.backward))
