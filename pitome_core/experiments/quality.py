"""The tasks of the chapter on quality: which record each reads, what a difference is there, all rows of its figures.

A row is a cell minus another: minus ToMe or itself with shuffled energies, with attention, metric, place and tokens
equal (`Record.rival_of`), or minus the whole model. Nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import GRID_POOL, LABELS, LOWER, WHOLE, Cell
from pitome_core.experiments.records.statistics import Difference
from pitome_core.experiments.retrieval import recall
from pitome_core.experiments.vqa import tasks as vqa

QUESTIONS = ("vqa-2-headline", "vqa-2-grid")  # the primary pair on all questions about pictures; all cells on the first
RIVALS = {"tome": "ToMe", "whole": "the whole model", "shuffled": "shuffled energies"}
# Which arms a figure shows together: what they are called, and how their names begin; the first that fits counts.
GROUPS = {
    "PiToMe (paper)": ("pitome",),
    "released": ("pitome-released",),
    "hidden states": ("pitome-hidden",),
    "energy-sorted BSM": ("energy-sorted",),
    "controls": ("tome", "random", "dct", LOWER, GRID_POOL),
}


@dataclass(frozen=True)
class Task:
    """One task: where its outcomes are, and how two cells are compared.

    Attributes:
        name: short, for buttons and labels.
        asked: what is asked, in words.
        unit: of a difference.
        digits: decimals of a difference.
        keep: the keep ratio of its primary comparison.
        record: the outcomes.
        difference: of two cells by their keys.
        whole: the whole model's result, in the same unit.
    """

    name: str
    asked: str
    unit: str
    digits: int
    keep: float
    record: results.Record
    difference: Callable[[str, str], Difference]
    whole: float

    def keys(self) -> list[str]:
        """The cells at the task's keep ratio, attention as the arm has it and off, and the controls by resolution.

        Shuffled energies are no rows of their own, and keys less their mean belong to *When energy helps*.
        """
        chosen = []
        for key in self.record.groups():
            cell = Cell.of(self.record.about(key)).without_seed
            at = cell.arm in (LOWER, GRID_POOL) or cell == Cell(cell.arm, self.keep, cell.proportional)
            if at and not cell.arm.endswith(("-shuffled", "-centred")):
                chosen.append(key)
        return chosen

    def against(self, key: str, rival: str) -> Difference | None:
        """A cell minus one of `RIVALS`; None where the record has no such cell."""
        other = WHOLE if rival == "whole" else self.record.rival_of(key, rival)
        return None if other is None else self.difference(key, other)

    def label(self, key: str) -> str:
        """What a cell is called in figures."""
        cell = Cell.of(self.record.about(key))
        size = f", {cell.pixels} px" if cell.pixels else ""
        return LABELS[cell.arm] + size + (", attention off" if cell.proportional is False else "")


def tasks() -> dict[str, Task]:
    """The five tasks, by name."""
    scenes = results.joined(results.load("law-scenes"), results.load("vision-2-scenes"))
    digits, movies, pairs, headline, asked = map(
        results.load, ("vision-2-digits", "text-2-movies", "retrieval-2-collection", *QUESTIONS)
    )

    def mean(record: results.Record, outcome: str) -> dict[str, Any]:
        return {"record": record, "difference": partial(_difference, record, outcome),
                "whole": float(record.per_item(WHOLE, outcome).mean())}

    listed = (
        Task("objects", "find a drawn object", "AUC of a saliency map", 3, 0.9, **mean(scenes, "auc")),
        Task("digits", "read a digit through a linear head", "accuracy", 3, 0.9, **mean(digits, "correct")),
        Task("reviews", "judge the mood of a film review", "accuracy", 3, 0.8, **mean(movies, "correct")),
        Task("pairs", "find the text of a picture, and back", "rsum", 1, 0.9, pairs, partial(recall.difference, pairs),
             float(recall.rsum(pairs, WHOLE)[0])),
        Task("questions", "answer a question about a picture", "accuracy", 3, 0.9, asked,
             partial(_asked, headline, asked), vqa.accuracy(asked, WHOLE)["micro"]),
    )  # fmt: skip
    return {task.name: task for task in listed}


def figure_data(every: dict[str, Task]) -> dict[str, Any]:
    """What the figure with a filter holds (`plots.forest_figure`): the tasks, the choices, and all `rows`."""
    about = ("name", "asked", "unit", "digits", "keep", "whole")
    return {
        "tasks": [{name: getattr(task, name) for name in about} for task in every.values()],
        "groups": list(GROUPS), "rivals": RIVALS, "rows": rows(every),
    }  # fmt: skip


def _difference(record: results.Record, outcome: str, first: str, second: str) -> Difference:
    return record.difference(first, second, outcome)


def _asked(headline: results.Record, grid: results.Record, first: str, second: str) -> Difference:
    """On all questions where both cells answered all of them."""
    return vqa.difference(headline if first in headline and second in headline else grid, first, second)


def group_of(arm: str) -> str | None:
    """The group of `GROUPS` in which an arm is shown; the longest beginning that fits decides."""
    fits = [(len(stem), name) for name, stems in GROUPS.items() for stem in stems if arm.startswith(stem)]
    return max(fits)[1] if fits else None


def rows(every: dict[str, Task]) -> list[dict[str, Any]]:
    """All differences of the tasks, as plain data: task, group, label, rival, mean, low, high, detectable."""
    found = []
    for task in every.values():
        for key in task.keys():
            group = group_of(Cell.of(task.record.about(key)).arm)
            for rival in RIVALS if group else ():
                one = task.against(key, rival)
                if one is not None:
                    numbers = {name: round(getattr(one, name), 6) for name in ("mean", "low", "high", "detectable")}
                    found.append({"task": task.name, "key": key, "group": group, "label": task.label(key),
                                  "rival": rival, **numbers})  # fmt: skip
    return found
