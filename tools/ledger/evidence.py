"""What recorded runs say to a claim: which cells are compared, every comparison of a claim, Holm, and its verdict.

A claim names arms and a *rival*; which cell stands against an arm's cell follows (`counterpart`), and which comparisons
there are follows from results/comparisons.yml. Nothing of it is chosen.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml

from pitome_core.experiments.records.cells import ARMS, GRID_POOL, LOWER, WHOLE, Cell
from pitome_core.experiments.records.results import Record, joined
from pitome_core.experiments.records.statistics import (
    Difference,
    McNemar,
    holm,
    mcnemar,
    paired_difference,
    trainings_difference,
)
from pitome_core.experiments.retrieval import recall

LISTED = "results/comparisons.yml"
RSUM = {"rsum": "rank", "rsum_retrained": "rank_retrained"}  # outcomes of the list, and the ranks they come from
TRAININGS = ("seed0", "seed1", "seed2")  # outcomes of a cell of text, one for each training of the classifier
SHUFFLED, WORK, ZERO = "shuffled", "work", "zero"
RIVALS = (*ARMS, WHOLE, SHUFFLED, WORK, ZERO)
LEVEL = 0.05
SCORED = ("test", "all")


class NoCounterpart(ValueError):
    """No cell, on record or to be recorded, may stand against this one."""


class NotRun(Exception):
    """A cell of the comparison is not on record."""


def cell_of(key: str) -> Cell:
    """The cell of a method that a key of the list (`arm@strength`, no seed) stands for, on record or not.

    ValueError for a key that no cell has.
    """
    name, *parts = key.split("/")
    arm, _, keep = name.partition("@")
    cell = Cell(
        arm, float(keep), proportional=False if "off" in parts else None, retrained="retrained" in parts,
        every=next((int(part[5:]) for part in parts if part[:5] == "every" and part[5:].isdecimal()), 1),
        every_layer="all" in parts, towers=next((part for part in parts if part in ("text", "both")), "vision"),
        order=next((part for part in parts if part in ("raster-compact", "released")), None),
    )
    if cell.key != key:
        raise ValueError(f"{key!r} is no cell: what it names is {cell.key!r}")
    return cell


def counterpart(record: Record | None, key: str, rival: str) -> str:
    """The key of the cell that the cell `key` is compared with.

    `rival` is an arm: the cell of its method with the same attention, metric, place, tokens, towers, layers, order and
    training (`Cell.beside`). Or it is one of four other kinds: `whole`, the model that merges nothing; `shuffled`, the
    same arm with shuffled energies; `work`, the control of the record with nearly the same multiply-accumulates;
    `zero`, no cell: the outcome itself is asked for, with its interval.

    Raises:
        NoCounterpart: there is no such cell, because no arm merges like this one with the rival's matching.
        NotRun: `work`, and the record has no control within a twentieth of the work.
    """
    cell = cell_of(key)
    if rival in (WHOLE, ZERO):
        return rival
    if rival == SHUFFLED:
        if cell.shuffled is None:
            raise NoCounterpart(f"{key} has no control with shuffled energies: it reads no energy")
        return cell.shuffled.key
    if rival == WORK:
        return _of_equal_work(record, key)
    other = cell.beside(rival)
    if other is None or other.arm == cell.arm:
        raise NoCounterpart(f"no arm is to {key} as {rival}: its layers differ, or none has its metric and its place")
    return other.key


def _of_equal_work(record: Record | None, key: str) -> str:
    work = record.cells.get(key, {}).get("gmacs") if record else None
    controls = {name: cell["gmacs"] for name, cell in record.cells.items()
                if cell.get("arm") in (GRID_POOL, LOWER) and "gmacs" in cell} if record else {}
    near = [name for name, gmacs in controls.items() if work and max(gmacs, work) <= 1.05 * min(gmacs, work)]
    if not near:
        raise NotRun(f"no control within a twentieth of the work of `{key}`")
    return min(near, key=lambda name: abs(controls[name] - work))


def check_pair(record: Record, first: str, second: str, rival: str) -> None:
    """ValueError unless `second` is the counterpart of `first` on record, under its own name and at equal tokens."""
    if second != (wanted := counterpart(record, first, rival)):
        raise NoCounterpart(f"{second} is no counterpart of {first}: {wanted} is")
    pair = [first] if second == ZERO else [first, second]
    for key in pair:
        for name in record.seeds_of(key):
            if (is_of := Cell.of(record.cells[name]).without_seed.key) != key:
                raise ValueError(f"the cell {name} of {record.path.name} describes itself as {is_of}")
    if rival in (WHOLE, WORK, ZERO):
        return
    # Where one layer merges at a time, a record has no tokens per layer: equal keep ratios are equal tokens.
    what = "tokens" if any("tokens" in cell for cell in record.cells.values()) else "keep"
    counts = [record.cells[name].get(what) for key in pair for name in record.seeds_of(key)]
    if None in counts:
        raise ValueError(f"the record does not say how many tokens {first} and {second} have")
    if any(count != counts[0] for count in counts):
        raise ValueError(f"{first} and {second} have different tokens per layer")


# --- every comparison of a claim


@dataclass(frozen=True)
class Comparison:
    """One outcome of two cells. `sign`: 1 if the claim says that the first is above the second, -1 if below.

    `second` is the rival's name as long as there is no cell of it. `group` is the number of the group in its claim.
    `pending` says why there is no `found`. `holm` and `holm_primary` are p-values adjusted over all comparisons of the
    claim and over its primaries; `survives` is whether one of them is below 5 %.
    """

    task: str
    about: dict = field(hash=False)
    outcome: str = ""
    first: str = ""
    second: str = ""
    column: str = ""
    sign: int = 1
    primary: bool = False
    digits: int = 3
    group: int = 0
    pending: str = ""
    found: Difference | None = None
    test: McNemar | None = None
    marks: str = ""
    holm: float = np.nan
    holm_primary: float = np.nan

    @property
    def says(self) -> str:
        """What the interval says by itself: ``for``, ``against``, or ``open`` where it contains zero."""
        side = self.sign * self.found.side
        return "for" if side > 0 else "against" if side < 0 else "open"

    @property
    def survives(self) -> bool:
        return self.says != "open" and min(self.holm, self.holm_primary if self.primary else 1.0) <= LEVEL

    @property
    def heard(self) -> str:
        """What counts in a verdict: `says` where it survives, else ``open``."""
        return self.says if self.survives else "open"


@functools.lru_cache(maxsize=4)
def _list_of(path: Path, changed: int) -> dict:
    return yaml.safe_load(path.read_text())


def listed(root: Path) -> dict:
    """results/comparisons.yml."""
    path = root / LISTED
    return _list_of(path, path.stat().st_mtime_ns)


def tasks(root: Path) -> Iterator[tuple[str, dict]]:
    """``vision-1 scenes`` and its entry, for every task of every version."""
    for version, entries in listed(root)["grids"].items():
        for task, entry in entries.items():
            yield f"{version} {task}", entry


def scored_by(entry: dict) -> Iterator[tuple[str, str, str]]:
    """Column, outcome and key of all cells that an entry of the list has scored."""
    for block in entry["cells"]:
        for outcome, arm, at in itertools.product(block["outcomes"], block["arms"], block["at"]):
            yield block["column"], outcome, f"{arm}@{at}"


def first_cells(entry: dict) -> list[str]:
    """The first cells of a task's primary differences; most tasks have one, or none."""
    first = entry.get("primary", {}).get("first", [])
    return [first] if isinstance(first, str) else first


def replaced(root: Path) -> set[tuple[str, str, str, str]]:
    """Task, column, outcome and key of what a later task scored again: of each comparison the latest is evidence.

    What the later task lists and its record does not have yet leaves the earlier one in force.
    """
    again = set()
    for _, entry in tasks(root):
        record = record_of(entry, root) if "replaces" in entry else None
        if record is not None:
            groups = set(record.groups())
            scored = [what for what in scored_by(entry) if what[2] in groups]
            again |= {(earlier, *what) for earlier in entry["replaces"] for what in scored}
    return again


@functools.lru_cache(maxsize=128)  # more than there are records: tasks are gone through in turn, again and again
def _record(paths: tuple[str, ...], changed: tuple[int, ...]) -> Record:
    return functools.reduce(joined, map(Record.load, paths))


def files_of(entry: dict, root: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The files of a task's record, the one whose cells are read first in front, and when they were changed."""
    files = [root / entry[name] for name in ("beside", "record") if name in entry]
    return tuple(map(str, files)), tuple(path.stat().st_mtime_ns for path in files)


def record_of(entry: dict, root: Path) -> Record | None:
    """The record of a task; None where there is none yet. ValueError if it is of another split or of a smoke run."""
    path = root / entry["record"]
    if not path.is_file():
        return None
    record = _record(*files_of(entry, root))
    if (split := record.header.get("split")) != entry.get("split", "test"):
        raise ValueError(f"{path.name} is of the split {split!r}, its list says {entry.get('split', 'test')!r}")
    if record.header.get("tier") == "smoke":
        raise ValueError(f"{path.name} is of the smoke tier, which only shows that the code runs")
    return record


def model_of(entry: dict, root: Path) -> str | None:
    """The model of a task's record; None where there is no record yet."""
    record = record_of(entry, root)
    return record.header.get("model") if record else None


def planned(group: dict, root: Path) -> Iterator[Comparison]:
    """Every comparison that a group of a claim (`arms`, `rival`, `about`, `columns`, `predicts`) asks for."""
    outcomes, again = listed(root)["outcomes"], replaced(root)
    for task, entry in tasks(root):
        primary, firsts = entry.get("primary", {}), first_cells(entry)
        blocks = [block for block in entry["cells"] if block["column"] in group["columns"]]
        for block, arm in itertools.product(blocks, group["arms"]):
            asked = [name for name in block["outcomes"] if outcomes[name]["about"] in group["about"]]
            for outcome, at in itertools.product(asked, block["at"] if arm in block["arms"] else ()):
                first, direction = f"{arm}@{at}", outcomes[outcome]["better"]
                if (task, block["column"], outcome, first) in again:
                    continue
                yield Comparison(
                    task, entry | {"over": block.get("over", "items")}, outcome, first, group["rival"], block["column"],
                    sign=1 if (group["predicts"] == "better") == (direction == "higher") else -1,
                    primary=outcome == primary.get("outcome") and first in firsts
                    and group["rival"] in primary["rivals"],
                    digits=outcomes[outcome].get("digits", 3),
                )


def comparisons(groups: list[dict], uncommitted: list[str], root: Path) -> list[Comparison]:
    """The comparisons of all groups of a claim, computed where both cells are on record, with Holm over all of them."""
    return computed([replace(one, group=number) for number, group in enumerate(groups)
                     for one in planned(group, root)], uncommitted, root)


def primaries(uncommitted: list[str], root: Path) -> list[Comparison]:
    """The primary quantities of the protocol, whether a claim asks for them or not, with Holm over them."""
    some = []
    for task, entry in tasks(root):
        primary = entry.get("primary", {"rivals": []})
        arms = list(dict.fromkeys(first.partition("@")[0] for first in first_cells(entry)))
        for rival in primary["rivals"]:
            group = {"arms": arms, "rival": rival, "predicts": "better",
                     "about": [listed(root)["outcomes"][primary["outcome"]]["about"]],
                     "columns": [block["column"] for block in entry["cells"]]}
            some += [one for one in planned(group, root) if one.primary and one.task == task]
    return computed(some, uncommitted, root)


def computed(some: list[Comparison], uncommitted: list[str], root: Path) -> list[Comparison]:
    """Planned comparisons with what the records say, and with Holm over all of them."""
    some = [_computed(one, uncommitted, root) for one in some]
    done = [i for i, one in enumerate(some) if one.found]
    for name, chosen in (("holm", done), ("holm_primary", [i for i in done if some[i].primary])):
        for i, p in zip(chosen, holm([some[i].found.p for i in chosen]) if chosen else [], strict=True):
            some[i] = replace(some[i], **{name: float(p)})
    return some


def _computed(one: Comparison, uncommitted: list[str], root: Path) -> Comparison:
    record, rival = record_of(one.about, root), one.second
    column = TRAININGS[0] if one.about["over"] == "trainings" and one.outcome not in RSUM else one.outcome
    try:
        second = counterpart(record, one.first, rival)
        pair = [one.first] if rival == ZERO else [one.first, second]
        for key in pair:
            _must_have(record, key, RSUM.get(column, column))
            if record.is_outdated(key):
                raise NotRun(f"no `{key}` but of an earlier form of the arm")
    except NotRun as why:
        return replace(one, pending=str(why))
    check_pair(record, one.first, second, rival)
    found, test = difference(files_of(one.about, root), one.outcome, one.first, second, one.about["over"])
    if not np.isfinite(found.detectable):
        raise ValueError(f"{one.task}: a single cluster gives no interval")
    runs = [record.runs[record.cells[name]["run"]] for key in pair for name in record.seeds_of(key)]
    marks = "†" if any(run.get("modified") or run.get("code") in uncommitted for run in runs) else ""
    return replace(one, second=second, found=found, test=test if one.primary else None, marks=marks)


def _must_have(record: Record | None, key: str, outcome: str) -> None:
    """`NotRun` where the record, the cell or its outcome is not there."""
    try:
        if record is not None and record.has(key, outcome):
            return
        lacking = f"no record of `{key}`" if record is None else f"no `{outcome}` of `{key}`"
    except KeyError:
        lacking = f"no `{key}`"
    raise NotRun(lacking)


@functools.lru_cache(maxsize=4096)
def difference(files: tuple[tuple[str, ...], tuple[int, ...]], outcome: str, first: str, second: str, over: str):
    """First minus second, paired, with McNemar's test where every outcome is right or wrong: (Difference, McNemar).

    Items without a value in either are left out. Of questions about pictures those of the headline's types count.
    """
    record = _record(*files)
    if over == "trainings":
        return trainings_difference(*(_of_trainings(record, key, outcome) for key in (first, second))), None
    if outcome in RSUM:  # not a mean of ranks: a sum of recalls
        return recall.difference(record, first, second, RSUM[outcome]), None
    values = record.per_item(first, outcome)
    columns = np.array([values, np.zeros(len(values)) if second == ZERO else record.per_item(second, outcome)])
    here = ~np.isnan(columns).any(axis=0)
    if "headline" in record.header:
        here &= np.isin(record.items["type"], record.header["headline"])
    columns = columns[:, here]
    labels = [list(np.asarray(record.items[name])[here]) for name in record.header.get("clusters") or []]
    clusters = None if not labels else labels[0] if len(labels) == 1 else tuple(labels)
    test = mcnemar(*columns) if second != ZERO and np.isin(columns, (0, 1)).all() else None
    return paired_difference(*columns, clusters), test


def _of_trainings(record: Record, key: str, outcome: str) -> np.ndarray:
    """``(S, items)``: the outcome under each of S trainings."""
    if outcome in RSUM:
        values = record.outcome(key, RSUM[outcome])  # ranks (Q, S)
        return np.stack([recall.contributions(of_one, record.items["query"]) for of_one in values.T])
    return np.stack([record.outcome(key, name) for name in TRAININGS])


def unlisted(root: Path) -> list[str]:
    """What records of this root hold and results/comparisons.yml does not: records with a test split, cells, outcomes.
    """
    everything, wrong = listed(root), []
    entries = {entry["record"]: (version, task, entry) for version, tasks_of in everything["grids"].items()
               for task, entry in tasks_of.items()}
    for path in sorted((root / "results").glob("*/*.json")):
        head = json.loads(path.read_text())
        if not isinstance(head, dict) or head.get("header", {}).get("split") is None:
            continue
        name = path.relative_to(root).as_posix()
        if name not in entries:
            is_scored = head["header"]["split"] in SCORED
            wrong += [f"{name} is scored and not listed"] if is_scored else []
            continue
        version, task, entry = entries[name]
        there = (head["header"].get("protocol"), head["header"].get("task"))
        if there != (version, task):
            wrong.append(f"{name} is of {' '.join(map(str, there))}, and listed under {version} {task}")
        record = _record((str(path),), (path.stat().st_mtime_ns,))
        wrong += [f"{name}: {text}" for text in _unlisted(entry, record, set(everything["ignored"]))]
        wrong += [f"{name}: {key} is said to be scored again, and no other task has it of the same items"
                  for key in entry.get("again", ()) if not _elsewhere(root, entry, record, key)]
    return wrong


def _elsewhere(root: Path, entry: dict, record: Record, key: str) -> bool:
    """Whether another task lists this cell with the same outcomes, and has scored it on the same items."""
    asked = {name for block in entry["cells"] for name in block["outcomes"]}
    for _, other in tasks(root):
        listed_there = {name for _, name, cell in scored_by(other) if cell == key}
        if other is entry or not asked <= listed_there:
            continue
        there = record_of(other, root)
        if there is not None and there.items == record.items and all(there.has(key, name) for name in asked):
            return True
    return False


def _unlisted(entry: dict, record: Record, ignored: set[str]) -> list[str]:
    named: dict[str, set] = {}
    for block in entry["cells"]:
        columns = {RSUM.get(name, name) for name in block["outcomes"]} | (set(TRAININGS) & _outcomes(record))
        for arm, at in itertools.product(block["arms"], block["at"]):
            named.setdefault(f"{arm}@{at}", set()).update(columns)
    wrong = []
    for key in record.groups():
        if record.about(key).get("arm") in ARMS and key not in entry.get("again", ()):
            outcomes = set().union(*(record.cells[name]["outcomes"] for name in record.seeds_of(key))) - ignored
            wrong += [f"the outcome {name} of {key} is not listed" for name in sorted(outcomes - named.get(key, set()))]
    return wrong


def _outcomes(record: Record) -> set[str]:
    return set().union(*(cell["outcomes"] for cell in record.cells.values()))


# --- verdicts

VERDICTS = {"holds here": "✓", "does not hold here": "✗", "mixed here": "◐", "no difference found": "=", "not run": "○"}


def verdict(heard: list[tuple[str, str]]) -> tuple[str, bool]:
    """The verdict that evidence gives, and whether it rests on dev alone.

    `heard` has a pair for each piece of evidence: its split, and ``for``, ``against`` or ``open``. Illustrations (split
    ``none``) say nothing. Where there is evidence from a test split or from all items, dev evidence decides nothing.
    """
    heard = [(split, word) for split, word in heard if split != "none"]
    if not heard:
        return "not run", False
    scored = any(split in SCORED for split, _ in heard)
    decisive = {word for split, word in heard if not (scored and split == "dev")} - {"open"}
    dev = {split for split, _ in heard} == {"dev"}
    if decisive == {"for", "against"}:
        return "mixed here", dev
    word = next(iter(decisive), "open")
    return {"for": "holds here", "against": "does not hold here", "open": "no difference found"}[word], dev
