"""The cells of `steps-1`: merging in every layer, in every second and in every third one."""

from __future__ import annotations

from collections.abc import Sequence

from pitome_core.experiments.records.cells import ARMS, WHOLE, Cell, among, checked

COMPARED = ("pitome", "energy-sorted", "tome")
RANDOM, SHUFFLED, SEEDS = "random-merge", "pitome-shuffled", 2
KEEPS = (0.9, 0.88, 0.8)  # share of the patch tokens that a layer keeps, or would keep; the primary one first
EVERY = (1, 2, 3)  # one of so many layers removes what all of them would
LEAST = 3  # the fewest steps
EQUAL_WORK = 0.88  # merged in every layer, costs what .9 costs in every third one, within 0.3 points of the whole model
NAMES = (*COMPARED, RANDOM, SHUFFLED)  # what a command may name


def of_protocol() -> list[Cell]:
    """All cells, the same on every task. The whole model comes first."""
    first, second = KEEPS[0], KEEPS[-1]
    seeds = range(SEEDS)
    return [
        Cell(WHOLE),
        *(Cell(arm, first, every=every) for every in EVERY for arm in COMPARED),
        *(Cell(arm, EQUAL_WORK) for arm in COMPARED),
        *(Cell(arm, second, every=every) for every in (1, LEAST) for arm in COMPARED),
        *(Cell(RANDOM, first, seed=seed, every=every) for every in (1, LEAST) for seed in seeds),
        *(Cell(SHUFFLED, first, seed=seed, every=LEAST) for seed in seeds),
    ]


def cells(arms: Sequence[str] | None = None, keeps: Sequence[float] | None = None) -> list[Cell]:
    """The cells of the protocol, or those of these arms and keep ratios among them, and the whole model.

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that the protocol does not have.
    """
    if missing := [f"{keep:g}" for keep in keeps or () if keep not in KEEPS]:
        raise ValueError(f"the protocol has no keep {', '.join(missing)}; it has {', '.join(map(str, KEEPS))}")
    return among(of_protocol(), checked(list(arms or NAMES), (), tuple(ARMS)), keeps)
