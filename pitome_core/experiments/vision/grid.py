"""The cells of `vision-2`: what is compared on each task of the embedded tier, chosen by the question.

The paper tier has the grid of `runs.grid`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pitome_core.experiments.records.cells import (
    ARMS,
    GRID_POOL,
    LOWER,
    RANDOM,
    WHOLE,
    Cell,
    among,
    checked,
    seeds_of,
)

KEEPS = (0.9, 0.8)  # share of the patch tokens that every layer keeps; the primary one first
SEEDS = {0.9: 5, 0.8: 2}  # of shuffled energies
FEW = 2  # seeds of random merging and pruning
COMPARED = ("pitome", "energy-sorted", "tome")
HIDDEN = tuple(f"{arm}-hidden" for arm in COMPARED)
RELEASED = ("pitome-released-deit", "pitome-released-mae", "pitome-released-clip")
BASELINES = ("tome-released-deit", "tome-released-clip")  # ToMe as the repository of the paper runs it beside PiToMe
RIVALS = ("dct",)  # the others are left to `vision-1`
ENERGIES = tuple(arm for arm in (*COMPARED, *HIDDEN, *RELEASED) if f"{arm}-shuffled" in ARMS)  # they read an energy
SIDES = {224: 168, 112: 84}  # pixels of a smaller picture that costs the whole model about what keep .9 costs
NAMES = tuple(dict.fromkeys((
    *COMPARED, *HIDDEN, *RELEASED, *BASELINES, *RIVALS, *RANDOM, *(f"{arm}-shuffled" for arm in ENERGIES), GRID_POOL,
    LOWER,
)))  # what a command may name


def every(keeps: Sequence[float] = KEEPS, side: int = SIDES[224]) -> list[Cell]:
    """All arms at these keep ratios, which are those of `KEEPS`. The whole model comes first.

    Attention on and off for the arms of `COMPARED` and `HIDDEN`: every released preset, whose attention is off, has its
    counterpart among them. At the second strength there are these, and shuffled energies beside PiToMe on keys and on
    hidden states.
    """
    def of(arm: str, keep: float, most: int) -> Iterator[Cell]:
        return (Cell(arm, keep, seed=seed) for seed in seeds_of(arm, most))

    chosen = [Cell(WHOLE)]
    for keep in keeps:
        chosen += [Cell(arm, keep, proportional) for arm in (*COMPARED, *HIDDEN) for proportional in (None, False)]
        energies = ENERGIES if keep == KEEPS[0] else ("pitome", "pitome-hidden")
        chosen += [cell for arm in energies for cell in of(f"{arm}-shuffled", keep, SEEDS[keep])]
        if keep == KEEPS[0]:
            chosen += [cell for arm in (*RELEASED, *BASELINES, *RIVALS, *RANDOM) for cell in of(arm, keep, FEW)]
    return [*chosen, Cell(GRID_POOL), Cell(LOWER, pixels=side)]


def in_law(cell: Cell) -> bool:
    """Whether `law-1` scores the cell on the very scenes of ``scenes``, so that it is not scored twice.

    A test compares this with the list of `law-1`. The whole model is in both records: `results.joined` compares the
    two.
    """
    metrics = ("", "-hidden")
    if cell.arm in [f"pitome{metric}-shuffled" for metric in metrics]:
        return cell.keep in (*KEEPS, 0.95) and cell.seed in (0, 1, 2)
    return cell.arm in (*COMPARED, *HIDDEN) and cell.keep in (*KEEPS, 0.95)


def _without(cells: Iterable[Cell], arms: Sequence[str]) -> list[Cell]:
    return [cell for cell in cells if cell.arm not in arms]


def task_cells(task: str) -> list[Cell]:
    """All cells of a task, those among them that `law-1` scores as well.

    ``scenes`` and ``digits`` have two strengths. The others ask the primary question again of other objects, at keep .9
    alone and with energies shuffled beside ours alone; without labels (``collection``) nothing is shuffled.
    """
    if task == "scenes":
        return every()
    if task == "digits":
        return every(side=SIDES[112])
    if task in ("emoji", "stamps", "stamp-groups"):
        return _without(every(KEEPS[:1]), [f"{arm}-shuffled" for arm in RELEASED])
    if task == "collection":
        return _without(every(KEEPS[:1]), [f"{arm}-shuffled" for arm in ENERGIES])
    raise KeyError(f"no task {task!r}")


def cells(task: str, arms: Sequence[str] | None = None, keeps: Sequence[float] | None = None) -> list[Cell]:
    """The cells that the protocol lists for a task; or, of all cells of the task, those of these arms and keep ratios.

    On ``scenes`` the list leaves out what `law-1` scores (`in_law`). Who names arms or keep ratios gets these cells
    too. The whole model comes first.

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is not between 0 and 1.
    """
    of_task = task_cells(task)
    if arms is None and keeps is None:
        return [cell for cell in of_task if task != "scenes" or not in_law(cell)]
    chosen = checked(list(NAMES if arms is None else arms), tuple(keeps or ()), NAMES)
    return among(of_task, chosen, keeps)
