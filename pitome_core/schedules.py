"""How many tokens go in each layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

# Floats such as 200 * (1 - 0.9) = 19.999999999999996 must floor to 20.
_GUARD = 1e-9


def tokens_removed(num_tokens: int, keep: float) -> int:
    """k = floor(N - N r) for the keep ratio r, guarded against float error (N = 200, r = 0.9 gives 20)."""
    return math.floor(num_tokens - num_tokens * keep + _GUARD)


def check_keep(keep: float) -> float:
    """The keep ratio as a float; ValueError unless 0 < keep <= 1."""
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is the share of tokens kept in each layer, above 0 and at most 1; got {keep}")
    return float(keep)


@dataclass(frozen=True)
class Schedule:
    """Tokens to remove in each layer, for one input size.

    Attributes:
        remove: L ints.
        tokens: L + 1 ints, tokens entering each layer and leaving the last one, prefix tokens included.
        prefix: how many of them never merge.
        clamped: whether a fixed count was more than the method can remove somewhere, and was reduced to that.
    """

    remove: tuple[int, ...]
    tokens: tuple[int, ...]
    prefix: int = 0
    clamped: bool = False

    @classmethod
    def from_removals(cls, num_tokens: int, remove: Sequence[int], prefix: int = 0, clamped: bool = False) -> Schedule:
        """The schedule that takes `remove` away from `num_tokens` (prefix not counted)."""
        left = [num_tokens]
        for k in remove:
            left.append(left[-1] - k)
        return cls(tuple(remove), tuple(n + prefix for n in left), prefix, clamped)


def keep_schedule(num_tokens: int, keep: float | Sequence[float], num_layers: int, prefix: int = 0) -> Schedule:
    """The paper's schedule: every layer keeps the share `keep` of its tokens (or its own share, from a list)."""
    ratios = [keep] * num_layers if isinstance(keep, Real) else list(keep)
    if len(ratios) != num_layers:
        raise ValueError(f"keep has {len(ratios)} entries, the model {num_layers} layers: give one ratio per layer")
    remove, left = [], num_tokens
    for ratio in ratios:
        remove.append(tokens_removed(left, check_keep(ratio)))
        left -= remove[-1]
    return Schedule.from_removals(num_tokens, remove, prefix)


def fixed_schedule(
    num_tokens: int, remove: int | Sequence[int], num_layers: int, prefix: int, max_remove: Callable[[int], int]
) -> Schedule:
    """ToMe's schedule: the same k in every layer (or a list), clamped to what the method can remove."""
    wanted = [int(remove)] * num_layers if isinstance(remove, Integral) else [operator.index(k) for k in remove]
    if len(wanted) != num_layers:
        raise ValueError(f"remove has {len(wanted)} entries, the model {num_layers} layers: give one count per layer")
    if min(wanted) < 0:
        raise ValueError(f"cannot remove {min(wanted)} tokens: counts are 0 or more")
    given, left = [], num_tokens
    for k in wanted:
        given.append(min(k, max_remove(left)))
        left -= given[-1]
    return Schedule.from_removals(num_tokens, given, prefix, clamped=given != wanted)


def target_schedule(num_tokens: int, final: int, num_layers: int, prefix: int) -> Schedule:
    """Shrink geometrically to exactly `final` patch tokens, rounding in each layer."""
    if not 1 <= final <= num_tokens:
        raise ValueError(f"cannot end with {final} of {num_tokens} patch tokens: choose 1 to {num_tokens}")
    left = [round(num_tokens * (final / num_tokens) ** (layer / num_layers)) for layer in range(num_layers + 1)]
    return Schedule.from_removals(num_tokens, [a - b for a, b in zip(left, left[1:], strict=False)], prefix)


def cheapest_schedule(
    num_tokens: int, budget: float, num_layers: int, prefix: int, cost: Callable[[Schedule], float]
) -> Schedule:
    """The geometric schedule whose cost is nearest to `budget` (cost grows with the tokens that are left)."""
    low, high = 1, num_tokens
    while high - low > 1:
        middle = (low + high) // 2
        if cost(target_schedule(num_tokens, middle, num_layers, prefix)) < budget:
            low = middle
        else:
            high = middle
    options = [target_schedule(num_tokens, final, num_layers, prefix) for final in (low, high)]
    return min(options, key=lambda option: abs(cost(option) - budget))
