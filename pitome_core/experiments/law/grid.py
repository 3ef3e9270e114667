"""The cells of `law-1`: the settings in which PiToMe, its parts and its controls stand beside ToMe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pitome_core.experiments.records.cells import ARMS, WHOLE, Cell, among, checked

SEEDS = 3  # of shuffled energies
METRICS = ("", "-centred", "-hidden")  # what follows the name of an arm; nothing: keys
KEEPS = (0.9, 0.8, 0.95)  # share of the patch tokens that every layer keeps; the primary one first
PARTS_AT = 0.9
# The parts of PiToMe. Gate: the 2k tokens of highest energy may merge, or more of them, or all. Split: in the order of
# energy, or by place as in ToMe. Edges: the best, or those of the tokens of highest energy.
GATES = ("pitome", "gate-1.25", "gate-1.5", "gate-2", "gate-3", "gate-4", "energy-sorted")  # the dial, from 2k to N
PLACED = ("pitome-position", "gate-2-position", "tome")  # split by place
UNGATED = ("ungated", "ungated-position")
CONTROLLED = ("pitome", "gate-2", "energy-sorted")  # with energies shuffled as well


def when() -> list[Cell]:
    """On scenes: PiToMe, energy-sorted matching, ToMe and shuffled energies, in every setting. The whole model first.
    """
    return [Cell(WHOLE)] + [
        Cell(arm, keep, proportional, seed)
        for keep in KEEPS for proportional in (None, False) for metric in METRICS
        for arm, seed in [
            (f"pitome{metric}", None), (f"tome{metric}", None), (f"energy-sorted{metric}", None),
            *((f"pitome{metric}-shuffled", seed) for seed in range(SEEDS)),
        ]
    ]


def parts(attention: Sequence[bool | None] = (None, False)) -> list[Cell]:
    """On digits and emoji: the parts of PiToMe on keys and hidden states. The whole model comes first.

    ``attention`` says how proportional attention is: as the arm has it (None), or off (False).
    """
    return [Cell(WHOLE)] + [
        Cell(arm, PARTS_AT, proportional, seed)
        for metric in ("", "-hidden") for proportional in attention
        for arm, seed in [
            *((f"{arm}{metric}", None) for arm in (*GATES, *PLACED, *UNGATED)),
            *((f"{arm}{metric}-shuffled", seed) for arm in CONTROLLED for seed in range(SEEDS)),
        ]
    ]


def cells(listed: Iterable[Cell], arms: Sequence[str] | None, keeps: Sequence[float] | None) -> list[Cell]:
    """Those of the listed cells that are of these arms and keep ratios (None: all), and the whole model.

    Raises ValueError for an arm or a keep ratio that is not among the listed cells.
    """
    listed = list(listed)
    chosen = checked(list(ARMS if arms is None else arms), tuple(keeps or ()), tuple(ARMS))
    there = {cell.keep for cell in listed if cell.arm in chosen}
    if missing := [name for name in arms or () if name != WHOLE and name not in {cell.arm for cell in listed}]:
        raise ValueError(f"the protocol has no {', '.join(missing)} for this task")
    if missing := [f"{keep:g}" for keep in keeps or () if keep not in there]:
        raise ValueError(f"the protocol has no keep {', '.join(missing)} for these arms of this task")
    return among(listed, chosen, keeps)


ALL = tuple(dict.fromkeys(cell.arm for cell in (*when(), *parts()) if cell.arm != WHOLE))  # what a command may name
