"""Records: nothing is lost on the way to the file and back, and nothing is mixed up."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pitome_core.experiments.records import results, statistics
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record, RecordError

HEADER = {"experiment": "vision", "task": "toy", "tier": "smoke", "split": "dev", "protocol": "p-1", "model": "m"}
ITEMS = {"id": ["a", "b", "c", "d"], "object": ["x", "x", "y", "y"], "photograph": ["p", "q", "p", "q"]}


RUN = {"date": "2000-01-01", "code": "c", "commit": None, "device": "d", "command": "python", "seed": 0}


def record(tmp_path, clusters=(), **columns) -> Record:
    """A record with the cells of `columns`: cell name with _ for its signs -> outcome ``score``."""
    made = Record.open(tmp_path / "toy.json", HEADER | {"clusters": list(clusters)}, ITEMS)
    for key, values in columns.items():
        made.add(key, {"share": 0.5}, {"score": values}, RUN)
    return made


# --- to the file and back
OUTCOMES = {
    "floats": np.array([0.123456789, -1.0, np.nan, 1e-9]),
    "floats32": torch.tensor([0.1, 0.25, float("nan"), 3.0]),
    "booleans": np.array([True, False, True, True]),
    "integers": np.array([3, -4, 0, 2**40]),
    "nested": np.array([[0.5, np.nan], [1.0, 2.0], [3.0, 4.0], [np.nan, np.nan]]),
    "list": [1.0, 2.0, float("nan"), 4.0],
    "packed": results.pack([1.0, 0.0, np.nan, 1.0]),
}


def test_what_is_added_is_read_back(tmp_path):
    made = Record.open(tmp_path / "sub" / "toy.json", HEADER, ITEMS)
    made.add("tome@0.9", {"keep": 0.9, "tokens": [256, 231]}, OUTCOMES, RUN | {"seed": 3})
    found = Record.load(made.path)
    assert (found.header, found.items, found.runs, found.cells) == (made.header, made.items, made.runs, made.cells)
    assert found.cells["tome@0.9"]["tokens"] == [256, 231] and found.runs[0]["seed"] == 3
    for name, values in OUTCOMES.items():
        expected = results.unpack(values) if isinstance(values, dict) else np.asarray(values, dtype=float)
        np.testing.assert_allclose(found.outcome("tome@0.9", name), expected, rtol=0, atol=0.5 * 10**-results.DIGITS)
        assert found.outcome("tome@0.9", name).dtype == float


def test_the_comparison_sees_a_changed_value(tmp_path):
    """The round trip above can fail: another value of the file is another outcome."""
    made = record(tmp_path, first=[0.25, 0.5, 0.75, 1.0])
    made.path.write_text(made.path.read_text().replace("0.75", "0.76"))
    assert Record.load(made.path).outcome("first", "score").tolist() == [0.25, 0.5, 0.76, 1.0]


def test_the_file_is_json_by_the_book_with_a_line_per_cell(tmp_path):
    made = record(tmp_path, one=[0.1, np.nan, 1, 2], two=[True, False, True, True], three=[[1.5, 2]] * 4)
    text = made.path.read_text()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    assert set(json.loads(text, parse_constant=refuse)["cells"]) == {"one", "two", "three"}
    for cell in made.cells:
        (line,) = [line for line in text.splitlines() if f'"{cell}"' in line]
        assert json.loads("{" + line.rstrip(",") + "}")[cell] == made.cells[cell]
    assert '"score": [0.1, null, 1.0, 2.0]' in text and '"score": [1, 0, 1, 1]' in text


def test_adding_a_cell_changes_no_other_line(tmp_path):
    made = record(tmp_path, one=[1, 2, 3, 4])
    before = {line.rstrip(",") for line in made.path.read_text().splitlines()}
    made.add("two", {}, {"score": [1, 2, 3, 5]}, RUN)
    after = {line.rstrip(",") for line in made.path.read_text().splitlines()}
    assert before < after and len(after - before) == 1


@pytest.mark.parametrize("length", [1, 7, 8, 9, 1000])
def test_packing_loses_nothing(length):
    values = np.random.default_rng(length).choice([0.0, 1.0, np.nan], size=length)
    packed = json.loads(json.dumps(results.pack(values)))
    np.testing.assert_array_equal(results.unpack(packed), values)
    assert not np.array_equal(results.unpack(packed), 1 - values, equal_nan=True)


@pytest.mark.parametrize("damage, words", [
    ({"bits": "gA=="}, "1 bytes of bits for 12 values, 2 are needed"),
    ({"bits": ""}, "0 bytes of bits for 12 values, 2 are needed"),
    ({"bits": "gIAA"}, "3 bytes of bits"),
    ({"bits": "gIA"}, "padding"),
    ({"bits": "gI!A="}, "base64"),
    ({"length": 20}, "2 bytes of bits for 20 values, 3 are needed"),
    ({"bits": "gI8="}, "bits are set.* none of 12 values has"),
    ({"missing": [12]}, "none of 12 values has"),
    ({"missing": [-1]}, "none of 12 values has"),
    ({"missing": [0]}, "none of 12 values has"),  # its bit is set as well
])
def test_truncated_bits_are_refused(tmp_path, damage, words):
    """In `unpack`, and where a record with them is read."""
    values = np.zeros(12)
    values[[0, 8]], values[3] = 1, np.nan
    packed = results.pack(values)
    assert packed == {"length": 12, "missing": [3], "bits": "gIA="}
    with pytest.raises(ValueError, match=words):
        results.unpack(packed | damage)
    made = Record.open(tmp_path / "toy.json", HEADER, {"id": list(range(12))})
    made.add("one", {}, {"correct": packed}, RUN)
    text = json.loads(made.path.read_text())
    text["cells"]["one"]["outcomes"]["correct"] |= damage
    made.path.write_text(json.dumps(text))
    with pytest.raises(RecordError, match="is no record .*restore it from version control, or delete it"):
        Record.load(made.path)


INFINITE = [1.0, float("inf"), -float("inf"), float("nan")]


def test_what_is_not_finite_is_null_and_read_as_nan(tmp_path):
    """In outcomes, in what is said of cells, runs, header and items, and where an older file has the words."""
    header = HEADER | {"prior": {"a": float("nan")}, "limits": (1, float("inf"))}
    items = {"id": ["a", "b", "c", "d"], "weight": INFINITE}
    made = Record.open(tmp_path / "toy.json", header, items)
    outcomes = {"score": INFINITE, "deep": [[x] for x in INFINITE]}
    made.add("one", {"loss": float("inf"), "by": {"x": [float("nan")]}}, outcomes, RUN | {"minutes": float("inf")})
    text = made.path.read_text()
    assert "NaN" not in text and "Infinity" not in text and '"score": [1.0, null, null, null]' in text
    found = Record.open(made.path, header, items)  # what a run says of itself is compared by the same rule
    assert (found.header, found.items, found.cells, found.runs) == (made.header, made.items, made.cells, made.runs)
    assert found.cells["one"]["loss"] is None and found.header["limits"] == [1, None]
    np.testing.assert_array_equal(found.outcome("one", "score"), [1, nan, nan, nan])
    np.testing.assert_array_equal(found.outcome("one", "deep"), [[1], [nan], [nan], [nan]])
    made.path.write_text(text.replace("[1.0, null, null, null]", "[1.0, Infinity, -Infinity, NaN]"))
    older = Record.load(made.path)
    np.testing.assert_array_equal(older.outcome("one", "score"), [1, nan, nan, nan])
    older.add("two", {}, {"score": INFINITE}, RUN)
    assert "Infinity" not in made.path.read_text()


def test_packing_refuses_what_it_would_lose():
    with pytest.raises(ValueError, match="2 of 3 are not, the first at 1"):
        results.pack([1, 0.5, 2])


def test_numbered_items_are_not_listed(tmp_path):
    long = {"id": list(range(5000)), "label": [i % 7 for i in range(5000)]}
    made = Record.open(tmp_path / "long.json", HEADER, long)
    made.add("whole", {}, {"correct": results.pack(np.ones(5000))}, RUN)
    assert Record.load(made.path).items == long and len(made.path.read_text()) < 20_000
    assert Record.open(made.path, HEADER, long).cells == made.cells
    with pytest.raises(RecordError, match="other items"):
        Record.open(made.path, HEADER, long | {"id": [*range(4999), 6000]})


# --- all or nothing
def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_crash_in_the_middle_leaves_the_old_file_whole(tmp_path, monkeypatch, step):
    made = record(tmp_path, one=[1, 2, 3, 4])
    before = made.path.read_bytes()

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    if step == "rename":
        monkeypatch.setattr(os, "replace", crash)
    else:  # the first half of the text reaches the disk
        opened = os.fdopen

        class Half:
            def __init__(self, *args, **kwargs):
                self.stream = opened(*args, **kwargs)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.stream.close()

            def write(self, text):
                self.stream.write(text[: len(text) // 2])
                self.stream.flush()
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fdopen", Half)
    with pytest.raises(KeyboardInterrupt):
        made.add("two", {}, {"score": [1, 2, 3, 5]}, RUN)
    monkeypatch.undo()
    assert made.path.read_bytes() == before and files(tmp_path) == ["toy.json"]


def test_writing_leaves_one_readable_file(tmp_path):
    made = record(tmp_path, one=[1, 2, 3, 4], two=[1, 2, 3, 4])
    assert files(tmp_path) == ["toy.json"] and made.path.stat().st_mode & 0o777 == 0o644


# --- going on
def test_the_same_header_and_items_go_on(tmp_path):
    record(tmp_path, one=[1, 2, 3, 4], two=[4, 3, 2, 1])
    again = record(tmp_path)
    assert list(again.cells) == ["one", "two"] and "one" in again and "three" not in again and len(again) == 4
    again.add("three", {}, {"score": [0, 0, 0, 1]}, RUN)
    found = Record.load(again.path)
    assert [found.cells[key]["run"] for key in ("one", "two", "three")] == [0, 0, 1] and len(found.runs) == 2


def test_a_cell_names_the_run_that_its_computation_began_in(tmp_path):
    """Runs of one process that differ in their dates only are one; those of another process are never taken for it."""
    made = record(tmp_path)
    later = {"date": "2000-01-02"}
    starts = {"a": RUN, "b": RUN | later, "c": RUN | later | {"code": "other"}, "d": RUN | {"modified": True}, "e": RUN}
    for key, run in starts.items():
        made.add(key, {}, {"score": [1, 2, 3, 4]}, run)
    assert [made.cells[key]["run"] for key in starts] == [0, 0, 1, 2, 0]
    assert made.runs == [RUN, RUN | later | {"code": "other"}, RUN | {"modified": True}]
    again = record(tmp_path, f=[1, 2, 3, 4])
    assert again.cells["f"]["run"] == 3 and again.runs[3] == RUN


def test_opening_writes_nothing(tmp_path):
    record(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "header, items, words",
    [
        ({"model": "n"}, {}, "model 'm' there, 'n' now"),
        ({"penalty": 2}, {}, "penalty None there, 2 now"),
        ({}, {"id": ["a", "b", "c", "e"]}, "other items"),
        ({}, {"object": ["x", "x", "x", "y"]}, "other items"),
        ({}, {"label": [1, 2, 3, 4]}, "other items"),
        ({}, {"id": ["a"], "object": ["x"], "photograph": ["p"]}, "4 items there, 1 now"),
    ],
)
def test_a_file_of_another_run_is_refused_with_what_differs(tmp_path, header, items, words):
    path = record(tmp_path, one=[1, 2, 3, 4]).path
    with pytest.raises(RecordError, match=f"toy.json is of another run .{words}.*another --output"):
        Record.open(path, HEADER | {"clusters": []} | header, ITEMS | items)


@pytest.mark.parametrize(
    "items, words",
    [
        ({"id": ["a", "a"]}, "ids that differ"),
        ({"id": ["a", "b"], "label": [1]}, "columns of one length, got .*'id': 2, 'label': 1"),
        ({"label": [1]}, "need a column id"),
    ],
)
def test_items_that_cannot_be(tmp_path, items, words):
    with pytest.raises(ValueError, match=words):
        Record.open(tmp_path / "toy.json", HEADER, items)


def test_an_outcome_of_another_length_is_refused(tmp_path):
    made = record(tmp_path, one=[1, 2, 3, 4])
    for outcome, length in (([1, 2, 3], 3), (results.pack([1, 0]), 2)):
        with pytest.raises(ValueError, match=f"outcome 'score' of two has {length} values for 4 items"):
            made.add("two", {}, {"score": outcome}, RUN)
    assert list(Record.load(made.path).cells) == ["one"]


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no record .*toy.json: run `make results`"),
        ("", "is no record .*restore it from version control"),
        ("{", "is no record"),
        ("[]", "is no record"),
        ('{"format": 1, "header": {}}', "is no record .*items"),
        ('{"format": 99}', "has format 99, this code reads 1"),
        ("[" * 100_000, "is no record .*restore it"),
        ("\udcff", "is no record .*utf-8.*restore it"),
    ],
)
def test_files_that_are_no_records(tmp_path, text, words):
    path = tmp_path / "toy.json"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(RecordError, match=words):
        Record.load(path)


def damaged(**changes):
    """A change of the parts of the file by its path in dots."""
    def change(content):
        for name, value in changes.items():
            *path, last = name.split("__")
            for part in path:
                content = content[part]
            content[last] = value
    return change


@pytest.mark.parametrize("change", [
    damaged(items=[]), damaged(items={"label": [1, 2, 3, 4]}), damaged(items__object=["x"]), damaged(header=[1]),
    damaged(runs=[]), damaged(runs=[3]), damaged(runs={}), damaged(cells=[]), damaged(cells__one=[]),
    damaged(cells__one__run=-1), damaged(cells__one__run=1), damaged(cells__one__run="0"),
    damaged(cells__one__outcomes=[1]), damaged(cells__one__outcomes__score=[1, 2, 3]),
    damaged(cells__one__outcomes__score=7), damaged(cells__one__outcomes__score={"bits": ""}),
    damaged(cells__one={"run": 0}),
])
def test_parts_that_do_not_fit_together_are_damage(tmp_path, change):
    """It is found where the file is read, with the remedy, and not where an outcome is asked for."""
    made = record(tmp_path, one=[1, 2, 3, 4])
    content = json.loads(made.path.read_text())
    change(content)
    made.path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="toy.json is no record .*restore it from version control, or delete it"):
        Record.load(made.path)


def test_a_record_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    made = record(tmp_path, one=[1, 2, 3, 4])
    with pytest.raises(RecordError, match="is no record .*Is a directory.*restore it"):
        Record.load(tmp_path)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(RecordError, match="Permission denied"):
        Record.load(made.path)


def test_what_is_missing_is_named_with_what_there_is(tmp_path):
    made = record(tmp_path, one=[1, 2, 3, 4], two=[1, 2, 3, 4])
    with pytest.raises(KeyError, match="no cell 'three' in toy.json; there are one, two"):
        made.outcome("three", "score")
    with pytest.raises(KeyError, match="cell 'one' of toy.json has no outcome 'auc'; it has score"):
        made.outcome("one", "auc")


# --- what it tells
def seeded(tmp_path, clusters=()) -> tuple[Record, np.ndarray]:
    drawn = np.random.default_rng(0).normal(size=(3, 4)).round(4)
    made = record(tmp_path, clusters, tome=[0.5, 0.5, 1.0, 0.0])
    for seed, values in enumerate(drawn):
        cell = Cell("random-merge", 0.9, seed=seed)
        refit = {"refit": values + 1} if seed == 0 else {}
        made.add(cell.key, cell.describe(), {"score": values} | refit, RUN)
    off = Cell("random-merge", 0.9, False, seed=0)
    made.add(off.key, off.describe(), {"score": [9, 9, 9, 9]}, RUN)
    return made, drawn


def test_the_mean_is_over_the_seeds(tmp_path):
    made, drawn = seeded(tmp_path)
    np.testing.assert_allclose(made.mean_over_seeds("random-merge@0.9", "score"), drawn.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(made.mean_over_seeds("random-merge@0.9/seed1", "score"), drawn[1], atol=1e-12)
    np.testing.assert_array_equal(made.mean_over_seeds("tome", "score"), made.outcome("tome", "score"))
    assert made.mean_over_seeds("random-merge@0.9/off", "score").tolist() == [9, 9, 9, 9]


def test_an_outcome_that_one_seed_has_is_that_seeds(tmp_path):
    made, drawn = seeded(tmp_path)
    np.testing.assert_allclose(made.mean_over_seeds("random-merge@0.9", "refit"), drawn[0] + 1, atol=1e-12)
    with pytest.raises(KeyError, match="no outcome 'auc'; it has score"):
        made.mean_over_seeds("random-merge@0.9", "auc")
    with pytest.raises(KeyError, match="no cell 'random'"):
        made.mean_over_seeds("random", "score")


@pytest.mark.parametrize("clusters", [(), ("object",), ("object", "photograph")])
def test_intervals_are_those_of_the_columns(tmp_path, clusters):
    made, drawn = seeded(tmp_path, clusters)
    labels = [None, ITEMS["object"], (ITEMS["object"], ITEMS["photograph"])][len(clusters)]
    assert made.clusters == labels
    whole = made.outcome("tome", "score")
    assert made.difference("random-merge@0.9", "tome", "score") == statistics.paired_difference(
        drawn.mean(axis=0), whole, labels
    )
    assert made.estimate("tome", "score") == statistics.mean_interval(whole, labels)
    assert made.difference("tome", "tome", "score").mean == 0


def test_missing_values_are_an_error_or_left_out_of_both(tmp_path):
    made = record(tmp_path, ["object"], one=[1.0, np.nan, 3.0, 5.0], two=[1.0, 2.0, 1.0, np.nan])
    with pytest.raises(ValueError, match="1 of 4 outcomes in first are no finite numbers"):
        made.difference("one", "two", "score")
    found = made.difference("one", "two", "score", skip_missing=True)
    assert (found.mean, found.items, found.clusters) == (1.0, 2, (2,))
    assert made.estimate("one", "score", skip_missing=True)[0] == 3.0


def test_mcnemar_is_that_of_the_columns(tmp_path):
    made = record(tmp_path, one=[1, 1, 1, 0], two=[0, 0, 1, 1])
    assert made.mcnemar("one", "two", "score") == statistics.mcnemar([1, 1, 1, 0], [0, 0, 1, 1]) == (2, 1, 1.0)


# --- recorded and live
def slow_disagreement(recorded, live, tolerance):
    """Items, one by one."""

    def same(a, b):
        if isinstance(a, list):
            return all(map(same, a, b))
        return (a != a and b != b) or abs(a - b) <= tolerance

    return sum(not same(a, b) for a, b in zip(recorded, live, strict=True)), max(1, int(0.01 * len(live) + 1e-9))


nan = float("nan")


@pytest.mark.parametrize(
    "recorded, live",
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0, nan], [1.005, 2.02, nan]),
        ([nan, 1.0, 0.0], [1.0, nan, 0.0]),
        ([[1.0, 2.0], [nan, 4.0]], [[1.5, 2.5], [nan, 4.0]]),
        ([0.0] * 99, [1.0] * 3 + [0.0] * 96),
        ([0.0] * 199, [0.0] * 199),
        ([0.0] * 200, [0.0] * 200),
        ([0.0] * 301, [0.0, 1.0] + [0.0] * 299),
    ],
)
def test_disagreement_counts_items(recorded, live):
    assert results.disagreement(recorded, live, 0.01) == slow_disagreement(recorded, live, 0.01)


def test_two_records_of_the_same_items_are_read_together(tmp_path):
    first = record(tmp_path / "one", ["object"], whole=[1.0, 2, 3, 4], tome=[1.0, 1, 1, 1])
    second = record(tmp_path / "two", ["object"], whole=[1.0, 2, 3, 4.0005], pitome=[0.0, 1, 2, 3])
    second.header["protocol"] = "p-2"
    second.runs[0]["commit"] = "of the second"
    both = results.joined(first, second)
    assert [*both.cells] == ["whole", "tome", "pitome"] and both.header["protocol"] == "p-1"
    assert both.outcome("whole", "score").tolist() == [1, 2, 3, 4]
    assert both.difference("pitome", "tome", "score").mean == 0.5
    assert both.runs[both.cells["pitome"]["run"]]["commit"] == "of the second"
    assert both.runs[both.cells["tome"]["run"]]["commit"] is None
    assert [*first.cells] == ["whole", "tome"] and len(first.runs) == 1  # neither is changed


def test_records_that_do_not_belong_together_are_not_joined(tmp_path):
    first = record(tmp_path / "one", whole=[1.0, 2, 3, 4])
    for change, words in (
        ({"split": "test"}, "toy.json and toy.json cannot be read together: split differ"),
        ({"model": "other"}, "model differ"), ({}, "their items differ"),
    ):
        second = record(tmp_path / "two", whole=[1.0, 2, 3, 4])
        second.header |= change
        if not change:
            second.items = second.items | {"object": ["x", "x", "x", "y"]}
        with pytest.raises(RecordError, match=words):
            results.joined(first, second)
    other = record(tmp_path / "three", whole=[1.0, 2.01, 3.01, 4])
    with pytest.raises(RecordError, match="'score' of whole differs by more than 0.001 in 2 of 4 items, 1 may"):
        results.joined(first, other)


def test_disagreement_needs_the_same_items():
    with pytest.raises(ValueError, match="recorded values and .* live ones: pass the same items"):
        results.disagreement([1.0, 2.0], [1.0], 0.1)


# --- where records are
@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The module lies in ``root/pitome_core/experiments/records``, and the working folder is another."""
    monkeypatch.setattr(results, "HERE", tmp_path / "root" / "pitome_core" / "experiments" / "records" / "results.py")
    results.HERE.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "root"


def test_folders_of_a_clone_and_of_an_installed_package(elsewhere, tmp_path):
    assert results.clone() is None
    assert results.folder() == elsewhere / "pitome_core" / "experiments" / "recorded"
    assert results.writable(committed=False) == tmp_path / "_build" / "results"
    assert results.writable(committed=True) == tmp_path / "results"  # never among the installed files
    (elsewhere / "pyproject.toml").touch()
    assert results.folder() == results.writable(committed=True) == elsewhere / "results"
    assert results.writable(committed=False) == elsewhere / "_build" / "results" and results.clone() == elsewhere


def test_committed_records_are_found_by_name(elsewhere, tmp_path):
    (elsewhere / "pyproject.toml").touch()
    with pytest.raises(RecordError, match="no record .*results/embedded/toy.json"):
        results.load("toy")
    made = record(tmp_path, one=[1, 2, 3, 4])
    (elsewhere / "results" / "smoke").mkdir(parents=True)
    shutil.copy(made.path, elsewhere / "results" / "smoke" / "toy.json")
    assert results.load("toy", "smoke").cells == made.cells


COMMITTED = [path for path in sorted(results.folder().glob("*/*.json"))
             if {"header", "items"} <= set(json.loads(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_records_stay_readable(path):
    """And writing one changes no byte of it."""
    committed = Record.load(path)
    assert len(committed) > 0 and committed.cells
    for cell in committed.cells.values():
        assert {"date", "commit", "code"} <= set(committed.runs[cell["run"]])
    for key, cell in committed.cells.items():
        numbers = [name for name, values in cell["outcomes"].items() if "texts" not in values]  # answers are words
        assert all(len(committed.outcome(key, name)) == len(committed) for name in numbers)
    assert committed._text() == path.read_text(encoding="utf-8")


def test_packed_outcomes_come_back():
    generator = np.random.default_rng(0)
    for length in (0, 1, 7, 8, 9, 50_000):
        values = generator.integers(0, 2, length).astype(float)
        values[generator.random(length) < 0.01] = np.nan
        packed = json.loads(json.dumps(results.pack(values)))
        np.testing.assert_array_equal(results.unpack(packed), values)
    assert len(json.dumps(packed)) < 15_000
    with pytest.raises(ValueError, match="1 of 2 are not, the first at 1"):
        results.pack([0, 0.5])


def test_a_record_of_numbered_items_is_small(tmp_path):
    record = results.Record.open(tmp_path / "r.json", {}, {"id": range(50_000)})
    record.add("whole", {}, {"correct": results.pack(np.ones(50_000))}, {})
    assert record.path.stat().st_size < 15_000
    again = results.Record.open(tmp_path / "r.json", {}, {"id": range(50_000)})
    assert again.items == record.items and again.outcome("whole", "correct").sum() == 50_000
    with pytest.raises(results.RecordError, match="50000 items there, 49999 now"):
        results.Record.open(tmp_path / "r.json", {}, {"id": range(49_999)})


def test_a_cell_of_an_earlier_form_of_its_arm_is_told(tmp_path):
    """By its options; seeds are no options of the arm, and a cell that no arm stands for has none."""
    made = record(tmp_path)
    cells = [Cell("whole"), Cell("tome", 0.8), Cell("pitome-released-bert", 0.8), Cell("pitome-hidden", 0.8),
             *(Cell("random-merge", 0.8, seed=seed) for seed in range(2))]
    for cell in cells:
        made.add(cell.key, cell.describe(), {"score": [1, 2, 3, 4]}, RUN)
    assert not any(made.is_outdated(key) for key in made.groups())
    made.cells["pitome-released-bert@0.8"]["options"] = {"preset": "released-bert"}
    made.cells["random-merge@0.8/seed1"]["options"] = {"other": 1}
    assert [key for key in made.groups() if made.is_outdated(key)] == ["pitome-released-bert@0.8", "random-merge@0.8"]


def test_recorded_cells_are_outdated_where_a_preset_was_mended_after_them():
    """The records at hand: the cells of that arm in the version of the protocol before the mending, and no others."""
    for path in sorted((results.folder() / "embedded").glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content.get("cells"), dict) and "items" in content:
            made = Record.load(path)
            outdated = {key for key in made.groups() if made.is_outdated(key)}
            earlier = made.groups() if made.header["protocol"] == "text-1" else []
            assert outdated == {key for key in earlier if key.startswith("pitome-released-bert@")}, path.name
