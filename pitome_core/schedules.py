"""How many tokens each layer removes: from a keep ratio, from a fixed number, or towards a target.

A `Schedule` holds the numbers for one model at one input size. Prefix tokens (class token, registers)
are never removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .checks import count, in_graph, number, per_layer


def tokens_removed(num_tokens: int, keep: float) -> int:
    """k = floor(N - N r) for the keep ratio r; N = 200 and r = 0.9 give 20."""
    # The small number is there because 200 * (1 - 0.9) is 19.999999999999996 in floating point and must give 20. It is
    # written here, because a global would be a symbol in code compiled with dynamic=True.
    return math.floor(num_tokens - num_tokens * keep + 1e-9)


def removed_together(num_tokens: int, ratios: Sequence[float]) -> int:
    """How many of `num_tokens` tokens layers with these keep ratios remove, one after the other."""
    left = num_tokens
    for keep in ratios:
        left = left - tokens_removed(left, keep)
    return num_tokens - left


def check_every(every: int, num_layers: int) -> int:
    """`every` as an int. ValueError unless it is 1 to the number of layers, TypeError if it is no integer."""
    every = count(every, "every", 1)
    if every > num_layers:
        raise ValueError(f"every={every}: the model has {num_layers} layers; choose 1 (all of them merge) to "
                         f"{num_layers} (one merges for all)")
    return every


def remedy_of_every(every: int) -> str | None:
    """What to do where one layer cannot remove what `every` layers would; None if all layers merge."""
    if every == 1:
        return None
    return f"one layer removes what {every} would (every={every}): choose a smaller every, or keep more tokens"


def gathered(entries: Sequence[Any], every: int, idle: float) -> list[list[Any]]:
    """For every layer the entries whose tokens it removes, if one of `every` layers does it for all of them.

    `entries` are keep ratios or counts, one per layer. Layers with the entry `idle` do not merge and belong to no
    group. Of the others, each `every` that follow one another are a group (the last may be smaller), and the first one
    of the group has the entries of all its layers: the first, because then no layer has more tokens than before.
    """
    merging = [layer for layer, entry in enumerate(entries) if entry != idle]
    groups = {merging[i]: merging[i : i + every] for i in range(0, len(merging), every)}
    return [[entries[member] for member in groups.get(layer, ())] for layer in range(len(entries))]


def check_keep(keep: float, name: str = "keep") -> float:
    """The keep ratio as a float; ValueError unless 0 < keep <= 1, TypeError if it is no number."""
    keep = number(keep, name)
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"{name} is the share of tokens kept in each layer, above 0 and at most 1; got {keep}")
    return keep


@dataclass(frozen=True)
class Schedule:
    """Tokens to remove in each layer, for one input size. L is the number of layers.

    Attributes:
        remove: L ints.
        tokens: L + 1 ints, tokens entering each layer and leaving the last one, prefix tokens included.
        prefix: how many of them never merge.
        clamped: whether a fixed count was larger than the method can remove in some layer, and was reduced to that.

    Example:
        >>> import pitome_core as pc
        >>> pc.Schedule.from_removals(16, [4, 3], prefix=1)
        Schedule(remove=(4, 3), tokens=(17, 13, 10), prefix=1, clamped=False)
    """

    remove: tuple[int, ...]
    tokens: tuple[int, ...]
    prefix: int = 0
    clamped: bool = False

    @classmethod
    def from_removals(cls, num_tokens: int, remove: Sequence[int], prefix: int = 0, clamped: bool = False) -> Schedule:
        """The schedule that removes `remove` from `num_tokens` tokens, which do not include the prefix.

        ValueError or TypeError for numbers that are no counts, or that remove more tokens than there are.
        """
        if not in_graph():  # there, numbers may be tensors
            remove = tuple(count(k, f"remove[{layer}]") for layer, k in enumerate(remove))
            prefix, num_tokens = count(prefix, "prefix"), count(num_tokens, "num_tokens")
            if sum(remove) > num_tokens:
                raise ValueError(f"cannot remove {sum(remove)} of {num_tokens} tokens: {list(remove)} are too many")
        left = [num_tokens]
        for k in remove:
            left.append(left[-1] - k)
        return cls(tuple(remove), tuple(n + prefix for n in left), prefix, clamped)

    def gathered(self, every: int) -> Schedule:
        """The same removals in fewer layers: of `every` layers that remove tokens, the first removes those of all.

        As many tokens leave the last layer, and no layer has more than before. `apply` refuses a layer that would have
        to remove more than its method can.

        Raises:
            ValueError, TypeError: `every` is not one of 1 to L.

        Example:
            >>> import pitome_core as pc
            >>> pc.Schedule.from_removals(16, [4, 3, 2, 2]).gathered(3)
            Schedule(remove=(9, 0, 0, 2), tokens=(16, 7, 7, 7, 5), prefix=0, clamped=False)
        """
        remove = [sum(counts) for counts in gathered(self.remove, check_every(every, len(self.remove)), 0)]
        return Schedule.from_removals(self.tokens[0] - self.prefix, remove, self.prefix, self.clamped)


def keep_schedule(
    num_tokens: int, keep: float | Sequence[float], num_layers: int, prefix: int = 0, every: int = 1
) -> Schedule:
    """The paper's schedule: every layer keeps the share `keep` of its tokens (or a share of its own, from a list).

    With `every`, one of so many layers removes what all of them would (`gathered`).
    """
    remove, left = [], num_tokens
    for ratios in gathered(per_layer(keep, num_layers, "keep", check_keep), every, 1.0):
        remove.append(removed_together(left, ratios))
        left = left - remove[-1]
    return Schedule.from_removals(num_tokens, remove, prefix)


def fixed_schedule(
    num_tokens: int, remove: int | Sequence[int], num_layers: int, prefix: int, max_remove: Callable[[int], int]
) -> Schedule:
    """ToMe's schedule: the same k in every layer (or a list), reduced where the method cannot remove as many."""
    wanted = list(per_layer(remove, num_layers, "remove", count))
    possible, left = [], num_tokens
    for k in wanted:
        possible.append(min(k, max_remove(left)))
        left = left - possible[-1]
    return Schedule.from_removals(num_tokens, possible, prefix, clamped=possible != wanted)


def target_schedule(num_tokens: int, final: int, num_layers: int, prefix: int) -> Schedule:
    """The schedule that ends with `final` patch tokens and keeps the same share in each layer, up to rounding."""
    final = count(final, "tokens")
    if not 1 <= final <= num_tokens:
        raise ValueError(f"cannot end with {final} of {num_tokens} patch tokens: choose 1 to {num_tokens}")
    left = [round(num_tokens * (final / num_tokens) ** (layer / num_layers)) for layer in range(num_layers + 1)]
    return Schedule.from_removals(num_tokens, [a - b for a, b in zip(left, left[1:], strict=False)], prefix)


def cheapest_schedule(
    num_tokens: int, budget: float, num_layers: int, prefix: int, cost: Callable[[Schedule], float]
) -> Schedule:
    """The `target_schedule` whose cost is nearest to `budget`. The cost has to grow with the final number of tokens."""
    low, high = 1, num_tokens
    while high - low > 1:
        middle = (low + high) // 2
        if cost(target_schedule(num_tokens, middle, num_layers, prefix)) < budget:
            low = middle
        else:
            high = middle
    options = [target_schedule(num_tokens, final, num_layers, prefix) for final in (low, high)]
    return min(options, key=lambda option: abs(cost(option) - budget))
