"""The laws of the runner in shards, on a toy: whatever happens to a run, its record is that of one that went well."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import processes
import pytest
import toy_sharded
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from toy_sharded import SHARED, Numbers, main

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import sharded, shards

pytest.importorskip("accelerate")
TOY = (toy_sharded.__file__,)
COUNT, SHARD = 17, 5
KEYS = ["whole", "tome@0.9", "tome@0.8", "tome@0.9/off"]
SHARDS = 4 * (len(KEYS) + 1)  # of the cells, and of the piece that they share


@pytest.fixture(autouse=True)
def paper_tier(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


@pytest.fixture
def words(tmp_path):
    """words(*extra, lines={number: text}) -> the command line; a later argument wins."""

    def make(*extra, lines: dict[int, str] | None = None) -> list[str]:
        content = {i: str(i * i) for i in range(COUNT)} | (lines or {})
        (tmp_path / "numbers.txt").write_text("\n".join(content.values()))
        return ["--data", str(tmp_path / "numbers.txt"), "--output", str(tmp_path / "out"), "--shard", str(SHARD),
                *map(str, extra)]

    return make


@pytest.fixture
def scored(monkeypatch):
    """The units that this process scores from now on, as (key of the piece, shard)."""
    units, score = [], Numbers.score

    def watched(self, running, unit, batches):
        units.append((unit.piece.key, unit.shard))
        return score(self, running, unit, batches)

    monkeypatch.setattr(Numbers, "score", watched)
    return units


def load(output: Path, model: str = "sine") -> results.Record:
    return results.Record.load(output / f"toy-numbers-{model}.json")


def values(record: results.Record) -> dict:
    return {key: cell["outcomes"] for key, cell in record.cells.items()}


def formula(i: int, keep: float) -> float:
    def one(factor: float) -> float:
        return math.sin(factor * i * i) + factor

    return one(keep) + one(0.5)


def parts_of(output: Path) -> list[Path]:
    return sorted(output.glob("*.parts/*/*/shard-*.json"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The record of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "numbers.txt").write_text("\n".join(str(i * i) for i in range(COUNT)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_PROFILE", "paper")
        patch.setenv("PITOME_DEVICE", "cpu")
        assert main(["--data", str(folder / "numbers.txt"), "--output", str(folder / "out"), "--shard", "5"]) == 0
    assert list((folder / "out").iterdir()) == [folder / "out" / "toy-numbers-sine.json"]  # no part and no lock is left
    return load(folder / "out")


# ------------------------------------------------------------------------------------------------------ one whole run
def test_the_record_is_that_of_a_plain_loop(whole_run):
    assert list(whole_run.cells) == KEYS and len(whole_run) == COUNT and len(whole_run.runs) == 1
    for key, keep in (("whole", 1.0), ("tome@0.9", 0.9), ("tome@0.8", 0.8)):
        assert whole_run.outcome(key, "value") == pytest.approx([formula(i, keep) for i in range(COUNT)], abs=1e-4)
        about = whole_run.cells[key]
        assert about["share"] == keep and about["scored"] == COUNT and about["unreadable"] == []
        assert about["seconds"] >= 0 and len(about["devices"]) == 1
    assert whole_run.header["protocol"] == "toy-1" and whole_run.header["tier"] == "paper"


@pytest.mark.parametrize("batch, shard", [(1, 1), (4, 5), (3, 100)])
def test_batches_and_shards_change_no_outcome(batch, shard, words, tmp_path, whole_run):
    assert main(words("--batch-size", batch, "--shard", shard)) == 0
    assert values(load(tmp_path / "out")) == values(whole_run)


def test_a_piece_that_cells_share_is_run_once(words, scored, capsys):
    assert main(words()) == 0
    assert len(scored) == len(set(scored)) == SHARDS and [key for key, _ in scored].count(SHARED.key) == 4
    printed = capsys.readouterr().out
    assert f"0 recorded already; {SHARDS} of {SHARDS} shards to score in 1 process" in printed
    assert printed.count("estimate:") == 1 and printed.count("tome@0.9/off") == 1  # the table has it, once


def test_a_record_can_get_further_cells(words, scored, tmp_path, whole_run, capsys):
    assert main(words("--keep", 0.9)) == 0
    assert list(load(tmp_path / "out").cells) == ["whole", "tome@0.9", "tome@0.9/off"]
    scored.clear()
    assert main(words()) == 0
    assert {key for key, _ in scored} == {"tome@0.8", SHARED.key}  # its parts went with the last cell that needed them
    assert "3 recorded already; 8 of 8 shards" in capsys.readouterr().out
    assert values(load(tmp_path / "out")) == values(whole_run)


def test_nothing_to_do_changes_nothing(words, tmp_path, scored, capsys):
    assert main(words()) == 0
    text = load(tmp_path / "out").path.read_text()
    scored.clear()
    assert main(words()) == 0
    assert load(tmp_path / "out").path.read_text() == text and not scored
    assert "4 recorded already; 0 of 0 shards" in capsys.readouterr().out


def test_models_have_records_of_their_own(words, tmp_path):
    assert main(words("--model", "one", "two")) == 0
    assert values(load(tmp_path / "out", "one")) == values(load(tmp_path / "out", "two"))
    assert main(words("--dtype", "bfloat16")) == 0 and (tmp_path / "out" / "toy-numbers-sine-bfloat16.json").is_file()


# ------------------------------------------------------------------------------------------------ killed, and shared
@pytest.mark.slow
def test_two_processes_give_the_record_of_one(words, tmp_path, whole_run):
    printed = processes.in_two_processes(words("--pause", 0.05), TOY)
    assert f"{SHARDS} of {SHARDS} shards to score in 2 processes" in printed
    assert printed.count("tome@0.9/off") == 1  # one table
    record = load(tmp_path / "out")
    assert values(record) == values(whole_run) and record.header == whole_run.header
    assert list(record.cells) == KEYS and len(record.runs) == 1 and not parts_of(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("words_of, reason", [
    (lambda words, path: [*words(), "--data", "nowhere.txt"], "no file nowhere.txt: pass --data FILE"),
    (lambda words, path: words(), "{path} is being written by process 7: wait until it has ended, or stop it"),
    (lambda words, path: words(lines={12: "stop"}), "line 12 says stop: mend it"),  # the main process reads it
    (lambda words, path: words(lines={6: "stop"}), "line 6 says stop: mend it"),  # the other one does
], ids=["no data", "locked", "in the main process", "in the other process"])
def test_what_two_processes_refuse_is_one_line_and_status_2(words_of, reason, words, tmp_path):
    path = tmp_path / "out" / "toy-numbers-sine.json"
    path.parent.mkdir()
    with FileLock(path.with_name(f".{path.name}.lock")) if "process 7" in reason else contextlib.nullcontext():
        path.with_name(f".{path.name}.lock").write_text("process 7")
        statuses, said = processes.side_by_side(words_of(words, path), TOY)
    assert statuses == [2, 2] and said.splitlines() == [f"error: {reason.format(path=path)}"]


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_no_shard(words, tmp_path, whole_run, scored):
    process = subprocess.Popen(**processes.command(words("--pause", 0.1), program=TOY), start_new_session=True,
                               stdout=subprocess.DEVNULL)
    path, deadline = tmp_path / "out" / "toy-numbers-sine.json", time.monotonic() + 240
    while not path.exists() or len(parts_of(tmp_path / "out")) < 6:  # a cell is recorded, the next has begun
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    parts = [json.loads(part.read_text()) for part in parts_of(path.parent)]
    left = {(part["piece"], part["start"] // SHARD) for part in parts}
    recorded = list(load(path.parent).cells)
    left = {(key, start) for key, start in left if key not in recorded}  # killed before it could take those away
    assert recorded and {key for key, _ in left} == {SHARED.key, KEYS[len(recorded)]}
    assert main(words()) == 0
    assert not left & set(scored) and len(scored) == len(set(scored)) == SHARDS - 4 * len(recorded) - len(left)
    assert values(load(path.parent)) == values(whole_run) and not path.with_suffix(".parts").exists()


@pytest.mark.parametrize("finished", range(0, SHARDS, 3))
def test_a_stopped_run_goes_on_where_it_was(finished, words, tmp_path, whole_run, monkeypatch, scored):
    score = Numbers.score

    def stopping(self, *arguments):
        if len(scored) == finished:
            raise KeyboardInterrupt
        return score(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Numbers, "score", stopping)
        main(words())
    assert len(scored) == finished
    assert main(words()) == 0
    assert len(scored) == len(set(scored)) == SHARDS and values(load(tmp_path / "out")) == values(whole_run)


def test_a_run_that_died_while_it_recorded_a_cell(words, tmp_path, whole_run, monkeypatch):
    """The record has the cell, and its parts are still there."""
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards.Parts, "remove", killed)
        main(words())
    assert list(load(tmp_path / "out").cells) == ["whole"] and len(parts_of(tmp_path / "out")) == 8
    assert main(words()) == 0
    assert values(load(tmp_path / "out")) == values(whole_run) and not parts_of(tmp_path / "out")


def test_parts_that_the_record_has_are_not_taken_for_new_ones(words, tmp_path, whole_run, monkeypatch, scored):
    with monkeypatch.context() as patch:
        patch.setattr(shards.Parts, "remove", lambda *_: None)
        assert main(words()) == 0
    assert len(parts_of(tmp_path / "out")) == SHARDS
    scored.clear()
    assert main(words("--again")) == 0
    assert len(scored) == SHARDS and values(load(tmp_path / "out")) == values(whole_run)
    assert not (tmp_path / "out" / "toy-numbers-sine.parts").exists()


def test_one_run_at_a_time(words, tmp_path, capsys):
    path = tmp_path / "out" / "toy-numbers-sine.json"
    path.parent.mkdir()
    with FileLock(path.with_name(f".{path.name}.lock")):
        path.with_name(f".{path.name}.lock").write_text("process 7 (`python x`)")
        assert main(words()) == 2
        assert main(words("--estimate")) == 2
    assert f"error: {path} is being written by process 7 (`python x`): wait" in capsys.readouterr().err
    assert not path.with_suffix(".parts").exists() and main(words()) == 0


def test_a_finished_record_needs_no_lock_and_no_write(words, tmp_path, monkeypatch, capsys):
    assert main(words()) == 0

    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    capsys.readouterr()
    monkeypatch.setattr(FileLock, "acquire", read_only)
    assert main(words()) == 0
    assert main(words("--again")) == 2  # found out before the work
    captured = capsys.readouterr()
    assert captured.out.count("0 of 0 shards") == 1 and "estimate" not in captured.out.splitlines()[-1]
    words = "cannot be written (Permission denied): make room, or choose a folder that can be written\n"
    assert captured.err == f"error: {tmp_path / 'out' / 'toy-numbers-sine.json'} {words}"


# ------------------------------------------------------------------------------------------------- scored once more
STEPS = ("rename", "replace", "unlink", "rmdir")  # of the file system, by which parts come and go
FEW = ("--shard", 9, "--keep", 0.9)  # two shards for each of four pieces


def killed_at(step: int, arguments: list[str]) -> bool:
    """Run the command in a process that ends, as a kill would end it, before its change number `step` of the disk.

    Returns whether it got that far. It says so by its exit status alone: nothing of it is closed or cleaned up.
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        return status == 9
    count = itertools.count()

    def counted(function):
        def call(*positional, **named):
            if next(count) == step:
                os._exit(9)
            return function(*positional, **named)
        return call

    try:
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        os._exit(main(arguments))
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share what was imported")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("restart", [(), ("--again",)], ids=["without --again", "with --again"])
def test_no_stale_shard_is_used_wherever_again_is_killed(restart, words, tmp_path, monkeypatch, capsys):
    """A line could not be read; all parts of the recorded cells are still there; the line is mended.

    From the moment when --again has begun, every way of going on ends with the record of a whole run on the mended
    lines. Before that moment, the record is as it was.
    """
    assert main(words(*FEW)) == 0
    right = values(load(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shards.Parts, "remove", lambda *_: None)
        assert main(words(*FEW, lines={3: "x"})) == 1
    stale, state = values(load(tmp_path / "out")), tmp_path / "state"
    assert len(parts_of(tmp_path / "out")) == 8 and all(stale[key] != right[key] for key in right)
    (tmp_path / "out").rename(state)
    begun = []
    for step in itertools.count():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(state, tmp_path / "out")
        if not killed_at(step, words(*FEW, "--again")):
            break
        begun.append((tmp_path / "out" / "toy-numbers-sine.parts" / "again.json").exists())
        before = values(load(tmp_path / "out"))
        status = main(words(*FEW, *restart))
        after = values(load(tmp_path / "out"))
        if restart or begun[-1] or before == right:
            assert (status, after) == (0, right), step
        else:
            assert (status, after) == (1, stale), step
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names - {".toy-numbers-sine.json.lock"} == {"toy-numbers-sine.json"}  # a lock that nobody holds may stay
    assert sum(begun) > 20 and values(load(tmp_path / "out")) == right


def test_parts_of_a_run_before_are_not_taken_by_again(words, tmp_path, scored, capsys):
    """A run that was stopped has left parts, one with a line that could not be read; the line is mended."""
    assert main(words(lines={1: "x", 12: "stop"})) == 2
    assert len(parts_of(tmp_path / "out")) == 2
    scored.clear()
    assert main(words("--again")) == 0
    assert len(scored) == SHARDS and load(tmp_path / "out").cells["whole"]["unreadable"] == []


def test_a_run_with_again_that_was_stopped_goes_on_without_it(words, tmp_path, monkeypatch, scored, whole_run, capsys):
    """What it has scored is kept, cells of another call included; with it, everything is scored again."""
    assert main(words()) == 0
    first = load(tmp_path / "out")
    scored.clear()
    score = Numbers.score

    def stopping(self, *arguments):
        if len(scored) == 11:
            raise KeyboardInterrupt
        return score(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Numbers, "score", stopping)
        main(words("--again"))
    assert main(words("--keep", 0.9)) == 0  # three cells
    assert main(words()) == 0
    assert len(scored) == len(set(scored)) + 4 == SHARDS + 4  # the shared piece went with the last cell that needed it
    again = load(tmp_path / "out")
    assert values(again) == values(first) == values(whole_run)
    assert all(again.cells[key]["run"] > first.cells[key]["run"] for key in KEYS)
    assert not (tmp_path / "out" / "toy-numbers-sine.parts").exists()


def test_what_cannot_be_merged_is_refused_before_again_begins(words, tmp_path, monkeypatch, capsys):
    assert main(words()) == 0

    def refused(*_):
        raise ValueError("keep 0.1 is too low")

    with monkeypatch.context() as patch:
        patch.setattr(Numbers, "cost", refused)
        assert main(words("--again")) == 2
    assert "error: keep 0.1 is too low" in capsys.readouterr().err
    assert not (tmp_path / "out" / "toy-numbers-sine.parts" / "again.json").exists()


def test_an_estimate_of_again_begins_nothing(words, tmp_path, scored, capsys):
    assert main(words()) == 0
    text = load(tmp_path / "out").path.read_text()
    assert main(words("--again", "--estimate")) == 0
    assert f"the first of {SHARDS} shards" in capsys.readouterr().out
    scored.clear()
    assert main(words()) == 0 and not scored and load(tmp_path / "out").path.read_text() == text
    assert not parts_of(tmp_path / "out")


def test_a_shard_that_nobody_delivers_is_missed_at_the_end(words, tmp_path, monkeypatch, capsys):
    write = shards.Parts.write

    def losing(self, unit, content):
        if (unit.piece.key, unit.shard) != ("tome@0.9", 2):
            write(self, unit, content)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Parts, "write", losing)
        assert main(words()) == 2
    assert "1 of 8 shards of tome@0.9 are not in" in capsys.readouterr().err
    assert list(load(tmp_path / "out").cells) == ["whole"]  # in the order of the grid, however much is there
    assert main(words()) == 0 and f"1 of {SHARDS - 4} shards" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ estimates, parts, the log
def test_an_estimate_scores_one_shard_and_keeps_it(words, tmp_path, whole_run, scored, capsys):
    assert main(words("--estimate", "--split", "test")) == 0  # of a test set, too: nothing goes into the log
    assert scored == [("whole", 0)] and "estimate: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["toy-numbers-sine.parts"]
    assert main(words()) == 0
    assert f"{SHARDS - 1} of {SHARDS} shards" in capsys.readouterr().out and len(set(scored)) == len(scored) == SHARDS
    assert values(load(tmp_path / "out")) == values(whole_run)


def test_an_estimate_follows_the_work(words, monkeypatch, capsys):
    """17 numbers, one cell at share 1 and a half, the shared piece: 5 of 51 numbers are done in 5 seconds."""
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(sharded.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(Numbers, "cost", lambda self, cell: {"share": 1.0})
    monkeypatch.setattr(Numbers, "work", lambda self, piece, cost: 2.0 if piece == SHARED else cost["share"])
    assert main(words("--methods", "tome", "--keep", 0.8, "--estimate")) == 0
    assert f"estimate: {17 * (1 + 1 + 2) / 60:.1f} min; the first of 12 shards took 5.0 s" in capsys.readouterr().out


def test_parts_of_other_runs_are_named_and_not_used(words, tmp_path, whole_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sharded, "code_of", lambda *_: "other")
        assert main(words("--estimate")) == 0
    (old,) = parts_of(tmp_path / "out")
    text = old.read_text()
    assert main(words()) == 0
    captured = capsys.readouterr()
    assert f"{SHARDS} of {SHARDS} shards" in captured.out
    assert "1 finished shards of another run (different code) are kept in" in captured.err
    assert old.read_text() == text and values(load(tmp_path / "out")) == values(whole_run)


@pytest.mark.parametrize("damage", [
    lambda text: text.replace('"stop": 5', '"stop": 6'),
    lambda text: text.replace('"piece": "whole"', '"piece": "tome@0.9"'),
    lambda text: text[: len(text) // 2],
    lambda text: text.replace("1.0", "1.1"),
    lambda text: "[]",
    lambda text: "",
])
def test_a_damaged_part_is_an_error(damage, words, tmp_path, capsys):
    assert main(words("--estimate")) == 0
    (part,) = parts_of(tmp_path / "out")
    text = part.read_text()
    assert damage(text) != text
    part.write_text(damage(text))
    assert main(words()) == 2
    assert "shard-00000.json is damaged or of another run: delete it" in capsys.readouterr().err
    part.unlink()
    assert main(words()) == 0


def test_another_data_set_is_not_added_to_a_record(words, tmp_path, capsys):
    assert main(words()) == 0
    assert main(words(lines={COUNT: "1"})) == 2
    assert "is of another run" in capsys.readouterr().err


def test_the_test_set_is_logged_once_and_before_it_is_scored(words, tmp_path, monkeypatch, scored, capsys):
    monkeypatch.setattr(results, "writable", lambda committed: tmp_path / ("results" if committed else "scratch"))
    log, score, entries = tmp_path / "results" / "test_log.json", Numbers.score, []

    def reading(self, *arguments):
        entries.append(len(json.loads(log.read_text())))
        return score(self, *arguments)

    monkeypatch.setattr(Numbers, "score", reading)
    arguments = [word for word in words("--split", "test") if word not in ("--output", str(tmp_path / "out"))]
    assert main(arguments) == 0 and main(arguments) == 0
    assert entries == [1] * SHARDS
    (entry,) = json.loads(log.read_text())
    assert (entry["experiment"], entry["task"], entry["tier"]) == ("toy", "numbers-sine", "paper")
    assert (entry["items"], entry["new"], entry["again"]) == (COUNT, 4, 0)
    record = load(tmp_path / "results" / "paper")
    assert (entry["code"], entry["commit"]) == (record.runs[0]["code"], record.runs[0]["commit"])
    assert main([*arguments, "--again"]) == 0
    assert [(one["new"], one["again"]) for one in json.loads(log.read_text())] == [(4, 0), (0, 4)]


# -------------------------------------------------------------------------------------------- items that are left out
def test_items_that_cannot_be_read_are_named_counted_and_left_out(words, tmp_path, whole_run, scored, capsys):
    assert main(words(lines={3: "x", 11: "y"})) == 1
    error = capsys.readouterr().err
    assert error.count("cannot read line 3 ('x')") == error.count("cannot read line 11 ('y')") == 1  # not once per cell
    assert "2 of 17 numbers could not be read and are left out: line 3; line 11. Mend them and pass --again" in error
    record = load(tmp_path / "out")
    for key in KEYS:
        outcome, rest = record.outcome(key, "value"), np.delete(np.arange(COUNT), [3, 11])
        assert np.flatnonzero(np.isnan(outcome)).tolist() == [3, 11]
        assert outcome[rest].tolist() == whole_run.outcome(key, "value")[rest].tolist()
        assert record.cells[key]["scored"] == 15 and set(record.cells[key]["unreadable"]) == {"line 3", "line 11"}
    assert main(words(lines={3: "x", 11: "y"})) == 1  # the record still says so
    assert "2 of 17" in capsys.readouterr().err
    scored.clear()
    assert main(words("--again")) == 0
    assert len(scored) == SHARDS and values(load(tmp_path / "out")) == values(whole_run)


def test_many_of_them_are_counted(words, capsys):
    assert main(words(lines=dict.fromkeys(range(8), "x"))) == 1
    assert "line 3; line 4; and 3 more. Mend" in capsys.readouterr().err


def test_records_that_were_left_out_are_named_and_counted(words, capsys):
    for _ in range(2):  # when everything is recorded, too
        assert main(words("--comments", 7)) == 1
        error = capsys.readouterr().err
        assert "7 records left out: line 0: comment; " in error and "; and 2 more" in error
        assert "7 records of the data set were left out" in error


def test_a_refusal_on_the_way_keeps_what_is_finished(words, tmp_path, whole_run, scored, capsys):
    assert main(words(lines={12: "stop"})) == 2
    assert "error: line 12 says stop: mend it" in capsys.readouterr().err
    assert len(parts_of(tmp_path / "out")) == 2 and not (tmp_path / "out" / "toy-numbers-sine.json").exists()
    scored.clear()
    assert main(words()) == 0
    assert len(scored) == SHARDS - 2 and values(load(tmp_path / "out")) == values(whole_run)


@pytest.mark.parametrize("extra, message", [
    (["--data", "nowhere.txt"], "no file nowhere.txt"),
    (["--shard", "0"], "--shard 0 is below 1"),
    (["--batch-size", "-1"], "--batch-size -1 is below 1"),
    (["--workers", "-1"], "--workers -1 is below 0"),
])
def test_what_cannot_be_run_is_refused(words, extra, message, tmp_path, capsys):
    assert main(words(*extra)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and not captured.out and not (tmp_path / "out").exists()


def test_accelerate_is_asked_for(words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(words()) == 2
    assert "pip install 'pitome-core[experiments]'" in capsys.readouterr().err


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_units_and_batches_cover_every_item_once(count, shard, batch):
    units = shards.split(Cell("whole"), count, shard)
    assert [i for unit in units for numbers in unit.batches(batch) for i in numbers] == list(range(count))
    assert all(0 < len(unit) <= shard for unit in units) and [unit.shard for unit in units] == list(range(len(units)))
    assert all(one.stop == other.start for one, other in pairwise(units))
