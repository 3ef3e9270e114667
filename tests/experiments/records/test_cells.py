"""A cell is fields: its key follows from them, comes back from every record, and finds what it may be compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pitome_core.experiments.models.llava_answers import ORDERS
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import ARMS, FIRST_ORDER, LABELS, Cell, checked, seeds_of, with_counterparts

FILES = (Path(__file__).parents[3] / "results" / "embedded").glob("*.json")
RECORDS = sorted(path for path in FILES if "items" in json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_fields_of_every_recorded_cell_give_its_key(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert {key: Cell.of(about).key for key, about in cells.items()} == {key: key for key in cells}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_keys_without_seeds_stand_for_all_seeds(path):
    record = results.Record.load(path)
    members = [key for group in record.groups() for key in record.seeds_of(group)]
    assert sorted(members) == sorted(record.cells)


@pytest.mark.parametrize("cell, key", [
    (Cell("whole"), "whole"),
    (Cell("whole", towers="text"), "whole/text"),
    (Cell("lower-resolution", pixels=98), "lower-resolution@98px"),
    (Cell("tome", 0.9, False), "tome@0.9/off"),
    (Cell("tome", 0.9, True), "tome@0.9"),
    (Cell("random-prune", 0.8, seed=1, towers="both"), "random-prune@0.8/both/seed1"),
    (Cell("random-merge", 0.8, seed=0, every_layer=True), "random-merge@0.8/all/seed0"),
    (Cell("random-merge", 0.9, seed=1, every=3), "random-merge@0.9/every3/seed1"),
    (Cell("tome", 0.9, False, every=2), "tome@0.9/every2/off"),
    (Cell("tome", 0.8, retrained=True), "tome@0.8/retrained"),
    (Cell("tome", 0.9, order="released"), "tome@0.9/released"),
    (Cell("tome", 0.9, order=ORDERS[0]), "tome@0.9"),
    (Cell("random-merge", 0.9, seed=1, order="released"), "random-merge@0.9/seed1/released"),
])  # fmt: skip
def test_keys(cell, key):
    assert cell.key == key


def test_the_first_order_is_that_of_the_answers():
    assert FIRST_ORDER == ORDERS[0]
    assert Cell("tome", 0.9, order=ORDERS[0]) == Cell("tome", 0.9) != Cell("tome", 0.9, order=ORDERS[1])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_plain_cell_says_no_more_than_arm_and_strength(path):
    """The curves of the book are made of the plain cells."""
    record = results.Record.load(path)
    cells = {key: Cell.of(about) for key, about in record.cells.items()}
    assert {key for key, cell in cells.items() if cell.is_plain} == {
        key for key, cell in cells.items() if "/" not in cell.without_seed.key
    }


@pytest.mark.parametrize("cell, rival", [
    (Cell("pitome", 0.9), "tome@0.9"),
    (Cell("pitome", 0.9, False), "tome@0.9/off"),
    (Cell("pitome", 0.9, True), "tome@0.9"),
    (Cell("random-prune", 0.8, seed=3), "tome@0.8"),
    (Cell("energy-sorted", 0.8, towers="both"), "tome@0.8/both"),
    (Cell("pitome", 0.8, every_layer=True), "tome@0.8/all"),
    (Cell("pitome-hidden", 0.9, every=3), "tome-hidden@0.9/every3"),
    (Cell("pitome", 0.8, retrained=True), "tome@0.8/retrained"),
    (Cell("pitome", 0.9, order="released"), "tome@0.9/released"),
    (Cell("pitome-hidden", 0.9), "tome-hidden@0.9"),
    (Cell("pitome-released-deit", 0.9), "tome@0.9/off"),  # the preset switches proportional attention off
    (Cell("pitome-released-bert", 0.8), "tome@0.8/off"),
    (Cell("pitome-released-bert", 0.8, retrained=True), "tome@0.8/off/retrained"),
])  # fmt: skip
def test_a_cell_is_compared_with_one_of_the_same_attention_metric_place_and_training(cell, rival):
    assert cell.beside("tome").key == rival


@pytest.mark.parametrize("rival", ["tofu-merge", "tofu", "atc", "energy-sorted", "pitome"])
def test_a_rival_is_met_with_its_own_options(rival):
    assert Cell("mctf", 0.9).beside(rival).key == f"{rival}@0.9"


@pytest.mark.parametrize("cell", [
    Cell("whole"), Cell("lower-resolution", pixels=98), Cell("grid-pool"),
    Cell("pitome-released-llava", 0.9),  # hidden states, behind the block: no arm with ToMe's parity is like that
    Cell("tome-released-clip", 0.9),
])  # fmt: skip
def test_without_a_counterpart_there_is_no_comparison(cell):
    assert cell.beside("tome") is None


@pytest.mark.parametrize("name", [name for name in ARMS if "llava" not in name and name != "tome-released-clip"])
def test_beside_changes_the_method_alone(name):
    """What is compared differs in its method: settings of attention, metric and insertion are the same, worked out."""
    cell = Cell(name, 0.9, seed=seeds_of(name)[0], towers="both", every_layer=True, retrained=True, order="released")
    other = cell.beside("tome")

    def attention(cell):
        fixed = ARMS[cell.arm].settings["proportional"]
        return fixed if cell.proportional is None else {cell.proportional}

    assert attention(cell) == attention(other)
    for setting in ("metric", "insertion"):
        assert ARMS[cell.arm].settings[setting] == ARMS[other.arm].settings[setting]
    assert replace(other, arm=cell.arm, seed=cell.seed, proportional=cell.proportional) == cell


def test_counterparts_stand_behind_the_cells_once():
    cells = [Cell("pitome-released-bert", 0.8), Cell("pitome", 0.8), Cell("tome", 0.8), Cell("whole")]
    keys = [cell.key for cell in with_counterparts(cells, ["pitome", "tome"])]
    assert keys == ["pitome-released-bert@0.8", "pitome@0.8", "tome@0.8", "whole", "tome@0.8/off"]
    assert with_counterparts(cells, ["pitome"]) == cells and with_counterparts([], ["tome"]) == []


def test_the_control_for_energy_is_the_same_arm_with_energies_shuffled():
    for name, arm in ARMS.items():
        control = Cell(name, 0.8, False).shuffled
        if arm.kind != "pitome":
            assert control is None
            continue
        shuffled = ARMS[control.arm]
        assert shuffled.options == {**arm.options, "score": "shuffled"} and shuffled.seeds > 1
        assert shuffled.settings == arm.settings and replace(control, arm=name) == Cell(name, 0.8, False)


def test_what_the_repository_runs_beside_pitome_is_no_counterpart():
    """Its ToMe differs from ours in more than attention, so it is a row of its own."""
    assert Cell("pitome-released-clip", 0.9).beside("tome").key == "tome-hidden@0.9/off"
    assert ARMS["tome-released-clip"].settings["insertion"] == {"after"}


def test_a_record_names_the_rival_that_it_holds(tmp_path):
    record = results.Record(tmp_path / "r.json", {}, {"id": ["a"]}, [], {})
    for cell in (Cell("whole"), Cell("pitome", 0.9), Cell("tome", 0.9), Cell("pitome", 0.9, False),
                 *(Cell("random-merge", 0.9, seed=seed) for seed in range(2))):
        record.cells[cell.key] = cell.describe()
    rivals = {key: record.rival_of(key) for key in record.groups()}
    assert rivals == {"whole": None, "pitome@0.9": "tome@0.9", "tome@0.9": None, "pitome@0.9/off": None,
                      "random-merge@0.9": "tome@0.9"}


def test_what_cannot_be_listed_is_refused():
    assert checked(["whole", "tome"], [0.5], ["tome"], least=0.5) == ["tome"]
    with pytest.raises(ValueError, match="no method 'best' in this experiment; there are tome"):
        checked(["best"], [0.9], ["tome"])
    for keep in (0.49, 1.0, 0.0, -1):
        with pytest.raises(ValueError, match=f"keep {keep} must lie between 0.5 and 1"):
            checked(["tome"], [keep], ["tome"], least=0.5)


def test_labels_differ():
    assert len(set(LABELS.values())) == len(LABELS)
