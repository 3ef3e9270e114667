"""What recorded runs say to a claim: counterparts, generated comparisons, Holm, trainings, verdicts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from ledger import evidence
from ledger.evidence import NoCounterpart, NotRun, check_pair, counterpart

from pitome_core.experiments.records.cells import ARMS, Cell
from pitome_core.experiments.records.results import FORMAT, Record
from pitome_core.experiments.records.statistics import holm, paired_difference, trainings_difference
from pitome_core.experiments.retrieval import recall

ITEMS = 40
ROOT = Path(__file__).resolve().parents[2]


def record_of(cells: dict[str, dict], items: dict | None = None, **header) -> Record:
    """A record with outcomes by key; arm, keep, tokens and switches follow from the key."""
    table = {}
    for key, outcomes in cells.items():
        name, *parts = key.split("/")
        arm, _, keep = name.partition("@")
        seeds = [int(part[4:]) for part in parts if part.startswith("seed")]
        plain = "/".join([name, *(part for part in parts if not part.startswith("seed"))])
        known = evidence.cell_of(plain) if keep else Cell(arm)
        about = known.describe() if arm in ARMS or not keep else {"arm": arm, "keep": float(keep)}
        about |= {"retrained": known.retrained, "towers": known.towers} | ({"seed": seeds[0]} if seeds else {})
        about |= {"layers": "all"} if known.every_layer else {}
        about |= {"tokens": [100, round(100 * float(keep))]} if keep else {}
        table[key] = about | {"run": 0, "outcomes": {k: np.asarray(v).tolist() for k, v in outcomes.items()}}
    header = {"model": "toy", "split": "test", "protocol": "toy-1", "task": "task", "tier": "embedded"} | header
    items = items or {"id": [str(i) for i in range(ITEMS)]}
    return Record(Path("toy.json"), header, items, [{"code": "0123456789ab", "modified": False}], table)


def write(root: Path, record: Record, *blocks: dict, **more) -> None:
    """The record as `results/toy/record.json` and a list of comparisons with one task, which has these blocks."""
    content = {"format": FORMAT, "header": record.header, "items": record.items, "runs": record.runs,
               "cells": record.cells}
    (root / "results/toy").mkdir(parents=True, exist_ok=True)
    (root / "results/toy/record.json").write_text(json.dumps(content))
    outcomes = {"auc": {"about": "quality", "better": "higher"}, "mixed": {"about": "mixing", "better": "lower"},
                "correct": {"about": "quality", "better": "higher"}, "rsum": {"about": "quality", "better": "higher"},
                "rsum_retrained": {"about": "quality", "better": "higher"}}
    blocks = [{"column": "off-the-shelf"} | block for block in blocks]
    task = {"record": "results/toy/record.json", "data": "toys", "page": "book/toy", "cells": blocks} | more
    listed = {"outcomes": outcomes, "ignored": [], "grids": {"toy-1": {"task": task}}}
    (root / evidence.LISTED).write_text(yaml.safe_dump(listed))


def group(arms=("pitome",), rival="tome", about=("quality",), predicts="better", columns=("off-the-shelf",)) -> dict:
    return {"arms": list(arms), "rival": rival, "about": list(about), "columns": list(columns), "predicts": predicts}


# --- which cells are compared


@pytest.mark.parametrize("first, rival, second", [
    ("pitome@0.9", "tome", "tome@0.9"),
    ("pitome@0.9/off", "tome", "tome@0.9/off"),
    ("pitome-released-deit@0.9", "tome", "tome@0.9/off"),
    ("pitome-released-mae@0.85", "tome", "tome@0.85/off"),
    ("pitome-released-bert@0.8/retrained", "tome", "tome@0.8/off/retrained"),
    ("pitome-hidden@0.9", "tome", "tome-hidden@0.9"),
    ("energy-sorted-hidden@0.9", "tome", "tome-hidden@0.9"),
    ("pitome-centred@0.9/off", "tome", "tome-centred@0.9/off"),
    ("pitome-released-clip@0.9", "tome", "tome-hidden@0.9/off"),
    ("pitome@0.8/both", "tome", "tome@0.8/both"),
    ("pitome@0.8/all", "energy-sorted", "energy-sorted@0.8/all"),
    ("pitome@0.9/released", "tome", "tome@0.9/released"),
    ("pitome@0.9/off", "random-merge", "random-merge@0.9/off"),
    ("pitome@0.9", "whole", "whole"),
    ("pitome@0.9/off", "shuffled", "pitome-shuffled@0.9/off"),
    ("tome@0.9", "zero", "zero"),
])
def test_the_counterpart_follows(first, rival, second):
    assert counterpart(None, first, rival) == second


@pytest.mark.parametrize("first, rival", [("pitome-released-llava@0.9", "tome"), ("tome@0.9", "tome"),
                                          ("pitome-released-clip@0.9", "tome-released-clip")])
def test_some_have_no_counterpart(first, rival):
    with pytest.raises(NoCounterpart, match=f"no arm is to {first} as {rival}"):
        counterpart(None, first, rival)


def test_a_shuffled_control_differs_in_energies_alone():
    for name, arm in ARMS.items():
        if arm.kind == "pitome":
            control = ARMS[counterpart(None, f"{name}@0.9", "shuffled").partition("@")[0]]
            assert dict(control.options) == {**arm.options, "score": "shuffled"} and control.seeds > 1, name
    with pytest.raises(NoCounterpart, match="it reads no energy"):
        counterpart(None, "tome@0.9", "shuffled")


def test_equal_work_is_that_of_a_control():
    record = record_of({name: {"auc": np.zeros(ITEMS)} for name in ("pitome@0.9", "tome@0.9", "whole")})
    for name, arm, gmacs in (("pool", "grid-pool", 3.6), ("low", "lower-resolution", 3.35), ("far", "grid-pool", 3.9)):
        record.cells[name] = {"arm": arm, "gmacs": gmacs, "run": 0, "outcomes": {"auc": [0.0] * ITEMS}}
    record.cells["pitome@0.9"]["gmacs"] = record.cells["tome@0.9"]["gmacs"] = 3.43
    assert counterpart(record, "pitome@0.9", "work") == "low"
    record.cells["pitome@0.9"]["gmacs"] = 2.0
    with pytest.raises(NotRun, match="no control within a twentieth of the work"):
        counterpart(record, "pitome@0.9", "work")


CELLS = {name: {"auc": np.zeros(ITEMS)} for name in (
    "pitome@0.9", "pitome-released-deit@0.9", "pitome-hidden@0.9", "tome@0.9", "tome@0.9/off", "tome-hidden@0.9",
    "tome@0.8", "tome@0.9/both", "whole")}


@pytest.mark.parametrize("first, second", [
    ("pitome-released-deit@0.9", "tome@0.9"),  # attention: what the ledger had
    ("pitome@0.9", "tome@0.9/off"),
    ("pitome-hidden@0.9", "tome@0.9"),  # metric
    ("pitome@0.9", "tome@0.8"),  # tokens
    ("pitome@0.9", "tome@0.9/both"),  # towers
    ("pitome@0.9", "pitome-hidden@0.9"),  # method
])
def test_a_second_cell_that_is_no_counterpart_is_refused(first, second):
    with pytest.raises(NoCounterpart, match=f"{second} is no counterpart of {first}"):
        check_pair(record_of(CELLS), first, second, "tome")


def test_a_counterpart_is_taken():
    for first, second in (("pitome-released-deit@0.9", "tome@0.9/off"), ("pitome-hidden@0.9", "tome-hidden@0.9")):
        check_pair(record_of(CELLS), first, second, "tome")
    check_pair(record_of(CELLS), "pitome@0.9", "whole", "whole")


@pytest.mark.parametrize("change, words", [
    ({"tokens": [100, 91]}, "different tokens per layer"),
    ({"tokens": None}, "does not say how many tokens"),
    ({"proportional": False}, "describes itself as tome@0.9/off"),
    ({"retrained": True}, "describes itself as tome@0.9/retrained"),
    ({"arm": "tofu"}, "describes itself as tofu@0.9"),
])
def test_a_record_is_held_to_what_its_keys_say(change, words):
    record = record_of(CELLS)
    record.cells["tome@0.9"] |= change
    with pytest.raises(ValueError, match=words):
        check_pair(record, "pitome@0.9", "tome@0.9", "tome")


@pytest.mark.parametrize("key", ["tome@0.90", "tome@0.9/of", "tome@0.9/seed0", "tome@0.9/off/both"])
def test_a_key_that_no_cell_has_is_refused(key):
    with pytest.raises(ValueError, match="is no cell"):
        evidence.cell_of(key)


# --- every comparison, none chosen


def test_every_listed_comparison_is_there(tmp_path):
    noise = np.random.default_rng(0).normal(size=(9, ITEMS))
    there = ["pitome@0.9", "tome@0.9", "pitome@0.9/off", "tome@0.9/off", "pitome@0.8", "pitome-released-deit@0.9"]
    record = record_of({key: {"auc": values, "mixed": values} for key, values in zip(there, noise, strict=False)})
    arms = ["pitome", "tome", "pitome-released-deit"]
    write(tmp_path, record, {"outcomes": ["auc", "mixed"], "arms": arms, "at": ["0.9", "0.8"]},
          {"outcomes": ["auc"], "arms": ["pitome", "tome"], "at": ["0.9/off"]})
    found = evidence.comparisons([group(["pitome", "pitome-released-deit"])], [], tmp_path)
    assert [(one.first, one.second, one.pending) for one in found] == [
        ("pitome@0.9", "tome@0.9", ""), ("pitome@0.8", "tome", "no `tome@0.8`"),
        ("pitome-released-deit@0.9", "tome@0.9/off", ""),
        ("pitome-released-deit@0.8", "tome", "no `pitome-released-deit@0.8`"),
        ("pitome@0.9/off", "tome@0.9/off", ""),
    ]
    assert all((one.found is None) == bool(one.pending) for one in found)


def test_an_outcome_that_a_cell_lacks_is_pending(tmp_path):
    record = record_of({"pitome@0.9": {"auc": np.zeros(ITEMS)}, "tome@0.9": {"mixed": np.zeros(ITEMS)}})
    write(tmp_path, record, {"outcomes": ["auc"], "arms": ["pitome"], "at": ["0.9"]})
    assert [one.pending for one in evidence.comparisons([group()], [], tmp_path)] == ["no `auc` of `tome@0.9`"]


@pytest.mark.parametrize("outcome, about, gain, predicts, says", [
    ("auc", "quality", 1, "better", "for"), ("auc", "quality", -1, "better", "against"),
    ("mixed", "mixing", 1, "better", "against"), ("mixed", "mixing", -1, "better", "for"),
    ("mixed", "mixing", 1, "worse", "for"), ("auc", "quality", 0, "better", "open"),
])
def test_what_an_interval_says(tmp_path, outcome, about, gain, predicts, says):
    noise = np.random.default_rng(0).normal(size=(2, ITEMS)) / 10
    write(tmp_path, record_of({"pitome@0.9": {outcome: noise[0] + gain}, "tome@0.9": {outcome: noise[1]}}),
          {"outcomes": [outcome], "arms": ["pitome"], "at": ["0.9"]})
    (one,) = evidence.comparisons([group(about=[about], predicts=predicts)], [], tmp_path)
    assert one.says == says and one.heard == says


def test_an_estimate_is_a_comparison_with_zero(tmp_path):
    values = np.random.default_rng(0).uniform(size=ITEMS)
    write(tmp_path, record_of({"tome@0.9": {"mixed": [None, *values[1:]]}}),
          {"outcomes": ["mixed"], "arms": ["tome"], "at": ["0.9"]})
    (one,) = evidence.comparisons([group(["tome"], "zero", ["mixing"], "worse")], [], tmp_path)
    assert one.found.mean == pytest.approx(values[1:].mean()) and one.found.items == ITEMS - 1 and one.says == "for"


def test_seeds_are_averaged_item_by_item(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, ITEMS))
    keys = ("pitome@0.9", "random-merge@0.9/seed0", "random-merge@0.9/seed1")
    write(tmp_path, record_of({key: {"auc": row} for key, row in zip(keys, values, strict=True)}),
          {"outcomes": ["auc"], "arms": ["pitome"], "at": ["0.9"]})
    (one,) = evidence.comparisons([group(rival="random-merge")], [], tmp_path)
    assert one.found.mean == pytest.approx(np.mean(values[0] - values[1:].mean(axis=0)))


def test_of_questions_those_of_the_headline_count(tmp_path):
    right = np.random.default_rng(0).integers(2, size=(2, ITEMS))
    items = {"id": [str(i) for i in range(ITEMS)], "type": ["count", "colour"] * (ITEMS // 2)}
    record = record_of({"pitome@0.9": {"correct": right[0]}, "tome@0.9": {"correct": right[1]}}, items,
                       headline=["colour"])
    write(tmp_path, record, {"outcomes": ["correct"], "arms": ["pitome"], "at": ["0.9"]},
          primary={"outcome": "correct", "first": "pitome@0.9", "rivals": ["tome"]})
    (one,) = evidence.comparisons([group()], [], tmp_path)
    assert one.found == paired_difference(right[0][1::2], right[1][1::2]) and one.test is not None


def test_ranks_speak_through_recall():
    """Of ranks a claim gets rsum, and no test of right or wrong."""
    path = ROOT / "results/embedded/retrieval-white.json"
    files = (str(path),), (path.stat().st_mtime_ns,)
    found, test = evidence.difference(files, "rsum", "pitome@0.9", "tome@0.9", "items")
    assert test is None and found == recall.difference(Record.load(path), "pitome@0.9", "tome@0.9", "rank")
    retrained, _ = evidence.difference(files, "rsum_retrained", "pitome@0.9", "tome@0.9", "trainings")
    record = Record.load(path)
    assert retrained.clusters == (3,) and retrained.mean == pytest.approx(
        recall.table(record, "pitome@0.9", "rank_retrained")["rsum"]
        - recall.table(record, "tome@0.9", "rank_retrained")["rsum"])


def test_a_lead_of_one_training_is_no_finding(tmp_path):
    """Two of three trainings are level: an interval over items excludes zero, the one over trainings does not."""
    generator = np.random.default_rng(0)
    base = generator.integers(2, size=(3, ITEMS))
    other = base.copy()
    other[0] = 0
    outcomes = [{"correct": rows.mean(axis=0)} | {f"seed{i}": row for i, row in enumerate(rows)}
                for rows in (base, other)]
    record = record_of(dict(zip(("pitome@0.8/retrained", "tome@0.8/retrained"), outcomes, strict=True)))
    block = {"outcomes": ["correct"], "arms": ["pitome"], "at": ["0.8/retrained"]}
    write(tmp_path, record, block)
    assert evidence.comparisons([group()], [], tmp_path)[0].says == "for"
    write(tmp_path, record, block | {"over": "trainings"})
    (one,) = evidence.comparisons([group()], [], tmp_path)
    assert one.says == "open" and one.found == trainings_difference(base, other)


# --- what survives


def small_effects(root: Path, sizes: dict[str, float], **more) -> list:
    """Comparisons at several strengths, each with an effect of so many standard errors."""
    cells, noise = {}, np.random.default_rng(1).normal(size=(len(sizes), ITEMS))
    for (at, size), values in zip(sizes.items(), noise, strict=True):
        values = (values - values.mean()) / values.std(ddof=1)
        cells |= {f"pitome@{at}": {"auc": values + size / np.sqrt(ITEMS)}, f"tome@{at}": {"auc": np.zeros(ITEMS)}}
    write(root, record_of(cells), {"outcomes": ["auc"], "arms": ["pitome"], "at": list(sizes)}, **more)
    return evidence.comparisons([group()], [], root)


def test_holm_is_over_all_comparisons_of_a_claim(tmp_path):
    sizes = {"0.95": 2.4, "0.9": 5.0, "0.85": 0.3, "0.8": -0.2, "0.7": 0.1}
    found = {one.first: one for one in small_effects(tmp_path, sizes)}
    assert [found[f"pitome@{at}"].says for at in sizes] == ["for", "for", "open", "open", "open"]
    assert [one.survives for one in found.values()] == [False, True, False, False, False]
    assert found["pitome@0.95"].heard == "open"
    assert [one.holm for one in found.values()] == pytest.approx(holm([one.found.p for one in found.values()]))
    (alone,) = small_effects(tmp_path, {"0.95": 2.4})
    assert alone.survives


def test_primaries_have_a_correction_of_their_own(tmp_path):
    sizes = {"0.95": 2.4, "0.9": 0.1, "0.85": 0.3, "0.8": -0.2, "0.7": 0.1}
    primary = {"outcome": "auc", "first": "pitome@0.95", "rivals": ["tome"]}
    (first, *others) = small_effects(tmp_path, sizes, primary=primary)
    assert first.primary and first.holm > 0.05 > first.holm_primary and first.survives
    assert not any(one.primary or one.survives for one in others)
    primary["rivals"] = ["whole"]
    assert not small_effects(tmp_path, sizes, primary=primary)[0].primary


@pytest.mark.parametrize("heard, verdict, dev", [
    ([], "not run", False),
    ([("none", "open")], "not run", False),
    ([("test", "open")], "no difference found", False),
    ([("test", "open"), ("test", "for")], "holds here", False),
    ([("test", "against"), ("test", "open")], "does not hold here", False),
    ([("test", "for"), ("test", "against")], "mixed here", False),
    ([("dev", "for"), ("dev", "open")], "holds here", True),
    ([("dev", "for"), ("test", "open")], "no difference found", False),
    ([("dev", "against"), ("all", "for")], "holds here", False),
    ([("dev", "for"), ("not needed", "against")], "mixed here", False),
])
def test_verdicts(heard, verdict, dev):
    assert evidence.verdict(heard) == (verdict, dev)
