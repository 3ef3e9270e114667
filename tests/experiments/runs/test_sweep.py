"""The runner: it says what it will take, scores what is missing and nothing else, and survives being killed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from pitome_core.experiments.records import files, provenance, results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.runs import grid, sweep

ITEMS = 6
CELLS = grid.cells(["tome", "random-prune"], [0.9, 0.8])
KEYS = [cell.key for cell in CELLS]


class Fake:
    """Six items; the outcome depends on item and cell, and fails at the cell `bad`."""

    name, clusters, about = "fake", ("id",), {"model": "none"}
    model = torch.nn.Linear(2, 2)

    def __init__(self, bad: str | None = None):
        self.items = {"id": list(range(ITEMS))}
        self.bad, self.scored, self.prepared, self.patched = bad, [], 0, False

    def seconds_per_item(self) -> float:
        return 2.0

    def applied(self, cell):
        return Applied(self)

    def cost(self, cell) -> dict:
        return {"gmacs": 1.0, "share": 1.0 if cell.arm == grid.WHOLE else 0.5, "tokens": [4, 3]}

    def work(self, cell) -> int:
        return ITEMS * (2 if cell.arm == grid.WHOLE else 1)

    def prepare(self) -> None:
        self.prepared += 1
        assert not self.scored and not self.patched

    def score(self, running, cell):
        assert running is self.model and self.patched
        if cell.key == self.bad:
            raise ZeroDivisionError(cell.key)
        self.scored.append(cell.key)
        return {"value": outcome(cell.key)}


def outcome(key: str) -> np.ndarray:
    return np.random.default_rng([len(key), *key.encode()]).integers(100, size=ITEMS)


class Applied:
    """A patch that changes nothing, and tells the task that it is there."""

    def __init__(self, task: Fake):
        self.task = task

    def __enter__(self):
        self.task.patched = True
        return self.task.model

    def __exit__(self, *error):
        self.task.patched = False


@pytest.fixture(autouse=True)
def without_provenance(monkeypatch):
    monkeypatch.setattr(provenance, "of_run", lambda code, **options: {"code": code} | options)


@pytest.fixture
def logged(monkeypatch):
    """What the log of test sets was told, and what had been scored by then."""
    told = []

    def log_test(record, cells, run):
        told.append((list(cells), list(record.cells)))

    monkeypatch.setattr(provenance, "log_test", log_test)
    return told


def run(folder: Path, task: Fake, cells=CELLS, split: str = "dev", **options):
    return sweep.run("toy", task, cells, folder / "toy.json", split=split, protocol="p-1", **options)


def test_every_cell_is_scored_once_in_order_and_recorded(tmp_path, capsys):
    task = Fake()
    made = run(tmp_path, task)
    assert task.scored == KEYS == list(made.cells) and task.prepared == 1
    found = results.Record.load(tmp_path / "toy.json")
    assert found.cells == made.cells and found.items == task.items
    for cell in CELLS:
        about = found.cells[cell.key]
        assert about["outcomes"] == {"value": outcome(cell.key).tolist()}
        assert about["arm"] == cell.arm and about["tokens"] == [4, 3] and about["seconds"] >= 0
    expected = {"experiment": "toy", "task": "fake", "split": "dev", "protocol": "p-1", "clusters": ["id"]}
    assert expected.items() <= found.header.items() and found.header["model"] == "none" and found.header["tier"]


def test_the_estimate_comes_first_and_is_of_what_is_missing(tmp_path, capsys):
    run(tmp_path, Fake(), estimate_only=True)
    seconds = 2.0 * (2 * ITEMS + 0.5 * ITEMS * (len(CELLS) - 1))
    said = capsys.readouterr().out
    assert f"toy-fake, dev: 6 items, {len(CELLS)} cells, 0 recorded already" in said
    assert f"estimate: {seconds / 60:.1f} min on this machine for {len(CELLS)} cells" in said
    assert list(tmp_path.iterdir()) == []
    run(tmp_path, Fake(), CELLS[:4])
    capsys.readouterr()
    run(tmp_path, Fake(), estimate_only=True)
    left = len(CELLS) - 4
    said = capsys.readouterr().out
    assert f"{len(CELLS)} cells, 4 recorded already" in said
    assert f"estimate: {2.0 * 0.5 * ITEMS * left / 60:.1f} min on this machine for {left} cells" in said


def test_after_a_failure_it_goes_on_where_it_stopped(tmp_path):
    first = Fake(bad=KEYS[2])
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, first)
    assert first.scored == KEYS[:2] == list(results.Record.load(tmp_path / "toy.json").cells) and not first.patched
    second = Fake()
    made = run(tmp_path, second)
    assert second.scored == KEYS[2:] and list(made.cells) == KEYS
    straight = run(tmp_path / "other", Fake())
    assert {k: c["outcomes"] for k, c in made.cells.items()} == {k: c["outcomes"] for k, c in straight.cells.items()}
    assert [made.cells[key]["run"] for key in KEYS] == [0, 0] + [1] * (len(KEYS) - 2)


def test_with_nothing_to_do_nothing_is_done(tmp_path, capsys, logged):
    run(tmp_path, Fake())
    before = (tmp_path / "toy.json").read_bytes()
    task = Fake()
    made = run(tmp_path, task)
    assert (task.scored, task.prepared) == ([], 0) and list(made.cells) == KEYS
    assert (tmp_path / "toy.json").read_bytes() == before
    assert "estimate" not in capsys.readouterr().out.splitlines()[-1]


def test_a_smaller_call_leaves_the_other_cells(tmp_path):
    run(tmp_path, Fake())
    assert list(run(tmp_path, Fake(), CELLS[:2]).cells) == KEYS


def test_again_scores_what_was_asked_for_and_keeps_the_rest(tmp_path):
    run(tmp_path, Fake())
    task = Fake()
    made = run(tmp_path, task, CELLS[:2], again=True)
    assert task.scored == KEYS[:2] and list(made.cells) == KEYS
    assert [made.cells[key]["run"] for key in KEYS[:3]] == [1, 1, 0]


def test_a_cell_of_an_earlier_form_of_its_arm_is_scored_again(tmp_path):
    """Its outcomes are those of other options; the others stay."""
    made = run(tmp_path, Fake())
    made.cells[KEYS[3]]["options"] = {"earlier": True}
    files.write_atomically(made.path, made._text())
    task = Fake()
    made = run(tmp_path, task)
    assert task.scored == [KEYS[3]] and not any(made.is_outdated(key) for key in KEYS)
    assert [made.cells[key]["run"] for key in KEYS] == [int(key == KEYS[3]) for key in KEYS]
    assert run(tmp_path, task).cells == made.cells and task.scored == [KEYS[3]]


def test_a_test_set_is_logged_before_it_is_scored(tmp_path, logged):
    task = Fake(bad=KEYS[0])
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, task, split="test")
    assert logged == [(KEYS, [])]
    run(tmp_path, Fake(), CELLS[:1], split="test")
    run(tmp_path, Fake(), split="test")
    assert logged[1:] == [(KEYS[:1], []), (KEYS[1:], KEYS[:1])]
    run(tmp_path, Fake(), split="test")
    run(tmp_path, Fake(), split="test", again=True, estimate_only=True)
    assert len(logged) == 3  # nothing was scored
    run(tmp_path, Fake(), split="test", again=True)
    assert logged[3] == (KEYS, KEYS)


def test_a_cell_says_what_held_when_it_started(tmp_path, monkeypatch):
    """The run of a cell is taken before its computation, by the code of the task."""
    state = iter(range(100))
    monkeypatch.setattr(provenance, "of_run", lambda code, **options: {"code": code, "number": next(state)})

    class Slow(Fake):
        def score(self, running, cell):
            next(state)  # while a cell is scored, something else changes
            return super().score(running, cell)

    made = run(tmp_path, Slow(), CELLS[:3])
    assert [made.runs[made.cells[key]["run"]]["number"] for key in KEYS[:3]] == [0, 2, 4]
    assert {one["code"] for one in made.runs} == {code_of(Slow)}


def test_a_test_set_needs_committed_code(tmp_path, monkeypatch, logged):
    """Nothing is logged and nothing is scored; dev, an estimate and explicit permission go through."""
    asked = []

    def of_run(code, *, test, allow_modified):
        asked.append((test, allow_modified))
        if test and not allow_modified:
            raise results.RecordError("commit first, or pass --allow-modified")
        return {"code": code}

    monkeypatch.setattr(provenance, "of_run", of_run)
    task = Fake()
    with pytest.raises(results.RecordError, match="--allow-modified"):
        run(tmp_path, task, split="test")
    assert task.scored == [] and task.prepared == 0 and logged == [] and list(tmp_path.iterdir()) == []
    run(tmp_path, Fake(), split="test", estimate_only=True)
    assert asked == [(True, False)]
    assert list(run(tmp_path, Fake(), split="test", allow_modified=True).cells) == KEYS and len(logged) == 1
    assert list(run(tmp_path / "dev", Fake()).cells) == KEYS and asked[-1] == (False, False)


def test_dev_is_never_logged(tmp_path, logged):
    run(tmp_path, Fake())
    run(tmp_path, Fake(), again=True)
    assert logged == []


def test_another_run_in_the_same_place_is_refused(tmp_path):
    run(tmp_path, Fake())
    task = Fake()
    task.about = {"model": "another"}
    with pytest.raises(results.RecordError, match="model 'none' there, 'another' now.*choose another --output"):
        run(tmp_path, task)
    assert task.scored == [] and task.prepared == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share what was imported")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_it_goes_on_where_it_was(tmp_path):
    class Killed(Fake):
        def score(self, running, cell):
            if cell.key == KEYS[3]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().score(running, cell)

    child = os.fork()
    if child == 0:
        try:
            run(tmp_path, Killed())
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(results.Record.load(tmp_path / "toy.json").cells) == KEYS[:3]
    task = Fake()
    assert list(run(tmp_path, task).cells) == KEYS and task.scored == KEYS[3:]
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]


# --- two runs on one record
def refused(work) -> str:
    """The reason for which the work is refused in another thread, which stands for another process."""
    reasons = []

    def guarded():
        try:
            work()
        except results.RecordError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return reasons[0] if reasons else ""


def test_two_runs_at_once_lose_nothing(tmp_path, logged):
    """The second is refused before it scores, with the name of the first; the first loses nothing."""
    second = Fake()
    reasons = []

    class First(Fake):
        def score(self, running, cell):
            reasons.append(refused(lambda: run(tmp_path, second, CELLS[1:], split="test")))
            return super().score(running, cell)

    made = run(tmp_path, First(), CELLS[:2], split="test")
    assert all(f"toy.json is being written by process {os.getpid()}" in reason for reason in reasons)
    assert len(reasons) == 2 and second.scored == [] and second.prepared == 0 and logged == [(KEYS[:2], [])]
    run(tmp_path, second, CELLS[1:], split="test")  # and when the first has ended, the second goes on
    assert list(results.Record.load(tmp_path / "toy.json").cells) == KEYS and list(made.cells) == KEYS[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]


def test_what_another_run_records_meanwhile_is_kept_and_not_scored_again(tmp_path, logged):
    """The first has read the record and takes its time over the estimate, in which the second begins and ends."""
    class Slow(Fake):
        def seconds_per_item(self) -> float:
            run(tmp_path, Fake(), CELLS[:3], split="test")
            return super().seconds_per_item()

    task = Slow()
    made = run(tmp_path, task, split="test")
    assert task.scored == KEYS[3:] and logged == [(KEYS[:3], []), (KEYS[3:], KEYS[:3])]
    assert list(made.cells) == list(results.Record.load(tmp_path / "toy.json").cells) == KEYS
    assert made.cells[KEYS[0]]["run"] == 0 and made.cells[KEYS[3]]["run"] == 1


def test_results_that_cannot_be_written_are_found_out_before_the_work(tmp_path, monkeypatch, logged):
    """What needs no writing, an estimate or a table of what is recorded, still runs."""
    run(tmp_path, Fake(), CELLS[:2])

    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", read_only)
    task = Fake()
    with pytest.raises(results.RecordError, match=r"toy.json cannot be written \(Permission denied\)"):
        run(tmp_path, task, split="dev")
    assert task.scored == [] and task.prepared == 0
    run(tmp_path, Fake(), estimate_only=True)
    assert list(run(tmp_path, Fake(), CELLS[:2]).cells) == KEYS[:2]


def test_records_of_two_versions_of_a_protocol_lie_beside_each_other():
    names = [sweep.record_name(protocol, "scenes") for protocol in ("vision-1", "vision-2", "law-1")]
    assert names == ["vision-scenes", "vision-2-scenes", "law-scenes"]
