"""Count what was tried: `python tools/tried.py` writes the tables of book/tried.md and prints the numbers of its text.

A table stands between the lines `% table NAME` and `% end` of the page. tests/book/test_tried.py holds the tables, and
every number in the page's text, to what is counted here.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path

from pitome_core.experiments.law.settings_compared import Compared, compared
from pitome_core.experiments.plots import timings
from pitome_core.experiments.records.cells import ARMS
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.records.results import Record, RecordError, folder
from pitome_core.experiments.records.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "tried.md"
TABLE = re.compile(r"^% table (\w+)\n(.*?)^% end$", re.MULTILINE | re.DOTALL)
KINDS = {"pitome": "Forms of PiToMe", "shuffled": "Forms of PiToMe with shuffled energies",
         "merge": "ToMe, its forms, and other methods that merge", "transform": "Transforms",
         "prune": "Methods that prune", "control": "Random merging and pruning",
         "reference": "The whole model, smaller pictures, pooling"}  # fmt: skip
DEV = {"vision-scenes-dev": "auc", "vision-digits-dev": "correct", "text-movies-dev": "correct",
       "law-scenes-dev": "auc", "law-digits-dev": "correct", "law-emoji-dev": "correct"}  # fmt: skip


@functools.cache
def records() -> dict[str, Record]:
    """All committed records of outcomes, by name. Timings and diagrams have other layouts and are none of them."""
    found = {}
    for path in sorted((folder() / "embedded").glob("*.json")):
        try:
            found[path.stem] = Record.load(path)
        except RecordError:
            if "items" in json.loads(path.read_text()):
                raise
    return found


def log() -> list[dict]:
    """The lines of results/test_log.json: scorings of test sets that were begun."""
    return json.loads((folder() / "test_log.json").read_text())


def trainings(experiment: str) -> list[dict]:
    """The lines of a log of trainings."""
    path = folder() / "embedded" / f"{experiment}-training.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def cells_by_version() -> dict[str, Counter]:
    """Cells on record by version of the protocol and split.

    `settings` counts cells of test that differ in the seed alone once; `begun` counts lines of the log.
    """
    found: dict[str, Counter] = {}
    for record in records().values():
        counted = found.setdefault(record.header["protocol"], Counter())
        counted[record.header["split"]] += len(record.cells)
        if record.header["split"] == "test":
            counted["tasks"] += 1
            counted["settings"] += len(record.groups())
    for line in log():
        found.setdefault(line["protocol"], Counter()).update(begun=1, announced=line["new"] + line["again"])
    return dict(sorted(found.items()))


def arms(*splits: str) -> set[str]:
    """The arms that have a cell in a record of one of these splits."""
    scored = [record for record in records().values() if record.header["split"] in splits]
    return {cell["arm"] for record in scored for cell in record.cells.values()}


def kind(arm: str) -> str:
    """What an arm is, as a key of `KINDS`."""
    if arm.endswith("-shuffled"):
        return "shuffled"
    return ARMS[arm].kind if arm in ARMS else "reference"


def settings(name: str) -> list[Compared]:
    """The settings with energy in them of a record of dev, beside ToMe in the same setting; controls left out."""
    return [row for row in compared(records()[name], DEV[name]) if "shuffled" not in row.key]


def tables() -> dict[str, str]:
    """The tables of the page, by name."""
    return {"cells": _cells(), "arms": _arms(), "dev": _on_dev()}


def _cells() -> str:
    versions, columns = cells_by_version(), ("tasks", "test", "settings", "dev", "all", "begun", "announced")
    rows = [[f"`{version}`", *(counted[name] or "–" for name in columns)] for version, counted in versions.items()]
    rows.append(["*together*", *(f"{sum(counted[name] for counted in versions.values()):,}" for name in columns)])
    return markdown(["version", "test sets", "cells on test", "without seeds", "cells on dev", "cells on all items",
                     "scorings in the log", "cells they announce"], rows)


def _arms() -> str:
    """A list and no table, because names do not break and are wider than a phone."""
    on_test = arms("test")
    others = arms("dev", "all") - on_test
    lines = []
    for name, words in KINDS.items():
        tested, more = ([f"`{arm}`" for arm in sorted(some) if kind(arm) == name] for some in (on_test, others))
        lines.append(f"- **{words}**: {len(tested)} on test, {', '.join(tested)}"
                     + (f"; {len(more)} on dev alone, {', '.join(more)}" if more else ""))
    return "\n".join(lines)


def _on_dev() -> str:
    rows = []
    for name in DEV:
        sides = Counter(row.to_tome.side for row in settings(name))
        both = sum(row.beats_both for row in settings(name))
        rows.append([f"`{name}`", sides.total(), sides[1], sides[-1], sides[0], both])
    return markdown(["record", "settings", "above ToMe", "below ToMe", "no difference found",
                     "above ToMe and above itself with shuffled energies"], rows)


def recipes(experiment: str) -> dict[str, float]:
    """The recipes that were explored, with the best score on dev."""
    name = {"retrieval": "heads", "text": "weights"}[experiment]
    explored = [line for line in trainings(experiment) if line[name].startswith("explore-")]
    return {line[name].removeprefix("explore-"): max(line["dev"]) for line in explored}


def numbers() -> dict[str, str]:
    """The numbers of the page's text, as they are written there."""
    found = _of_cells() | _of_trainings() | _of_timings()
    text, retrieval = recipes("text"), recipes("retrieval")
    return {name: f"{value:,}" for name, value in found.items()} | {
        "all weights": percent(text["all-5e-5"], 1), "taken": percent(text["rank8-1e-3"], 1),
        "decay-2": f"{retrieval['decay-2']:.1f}", "decay-1": f"{retrieval['decay-1']:.1f}",
        "worst": f"{min(retrieval.values()):.1f}",
    }  # fmt: skip


def _of_cells() -> dict[str, int]:
    versions, on_test = cells_by_version().values(), arms("test")
    digits = settings("law-digits-dev")
    above = [row.key for row in digits if row.to_tome.side == 1]
    return {name: sum(counted[name] for counted in versions) for name in ("test", "dev", "tasks")} | {
        "arms": len(on_test), "arms more": len(arms("dev", "all") - on_test),
        "forms": sum(kind(arm) == "pitome" for arm in on_test),
        "controls": sum(kind(arm) in ("shuffled", "control", "reference") for arm in on_test),
        "digits": len(digits), "digits above": len(above),
        "digits below": sum(row.to_tome.side == -1 for row in digits),
        "digits hidden off": sum("hidden" in key and key.endswith("/off") for key in above),
    }  # fmt: skip


def _of_trainings() -> dict[str, int]:
    text, retrieval, recipe = recipes("text"), recipes("retrieval"), trainings("vqa")[-1]["recipe"]
    heads = [line["heads"] for line in trainings("retrieval") if line["heads"].endswith(".safetensors")]
    return {
        "recipes": len(text) + len(retrieval), "recipes text": len(text), "recipes retrieval": len(retrieval),
        "text trained": len(trainings("text")) - len(text), "heads": len(heads),
        "heads plain": sum(name.startswith("head") for name in heads),
        "steps": recipe["steps"], "align": recipe["align_steps"],
    }  # fmt: skip


def _of_timings() -> dict[str, int]:
    now, before, gpu = (timings.load(f"{name}.json") for name in ("embedded/cost", "embedded/cost-before", "gpu/cost"))
    phase = json.loads((folder() / "embedded" / "law-phase.json").read_text())
    return {"timed": len(now), "timed plain": len(timings.as_usual(now)), "timed before": len(before),
            "timed gpu": len(gpu), "diagram": len(phase["diagram"]), "layers": len(phase["layers"])}


def with_tables(page: str) -> str:
    """The page with its tables written anew."""
    found = tables()
    return TABLE.sub(lambda match: f"% table {match[1]}\n\n{found[match[1]]}\n\n% end", page)


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text()))
    for name, value in numbers().items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
