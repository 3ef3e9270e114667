"""Stages of training: each is done once, none begins too late, and what is finished survives a kill."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pitome_core.experiments.runs import stages
from pitome_core.experiments.runs.stages import Stage, run_stages


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    seconds = [0.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: seconds[0])
    return seconds


def files(folder: Path, names: str, clock: list[float], minutes: float = 1.0) -> tuple[list[Stage], list[str]]:
    """A stage for every letter, which takes some minutes and writes a file; and the list of what ran."""
    ran: list[str] = []

    def stage(name: str) -> Stage:
        def run(budget: stages.Budget) -> int:
            ran.append(name)
            clock[0] += 60 * minutes
            (folder / name).write_text(name)
            return 0

        return Stage(name, (folder / name).is_file, run)

    return [stage(name) for name in names], ran


def test_what_is_done_is_not_done_again(tmp_path, clock, capsys):
    (tmp_path / "b").touch()
    todo, ran = files(tmp_path, "abc", clock)
    assert run_stages("letters", todo) == 0 and ran == ["a", "c"]
    assert capsys.readouterr().out.splitlines() == ["letters: 2 of 3 to do", "  a: 60 s", "  c: 60 s"]
    assert run_stages("letters", todo) == 0 and ran == ["a", "c"]
    assert capsys.readouterr().out == "letters: 0 of 3 to do\n"
    assert run_stages("letters", todo, again=True) == 0 and ran == ["a", "c", "a", "b", "c"]


def test_none_begins_after_the_minutes(tmp_path, clock, capsys):
    todo, ran = files(tmp_path, "abcde", clock)
    assert run_stages("letters", todo, minutes=0) == 5 and ran == []
    assert run_stages("letters", todo, minutes=1.5) == 3 and ran == ["a", "b"]
    assert "3 left after 1.5 minutes: run it again to go on" in capsys.readouterr().out
    assert run_stages("letters", todo, minutes=60) == 0 and ran == list("abcde")
    assert "left" not in capsys.readouterr().out
    assert run_stages("letters", todo, minutes=1, again=True) == 4


def test_an_estimate_does_nothing(tmp_path, clock, capsys):
    (tmp_path / "a").touch()
    todo, ran = files(tmp_path, "abc", clock)
    assert run_stages("letters", todo, estimate_only=True) == 2
    assert run_stages("letters", todo, estimate_only=True, again=True) == 3
    assert not ran and "letters: 2 of 3 to do" in capsys.readouterr().out


def test_a_stage_with_a_checkpoint_stops_on_its_own(clock, capsys):
    """It counts its steps, and goes on where it stopped; the stage behind it waits."""
    state = {"step": 0, "second": False}

    def run(budget: stages.Budget) -> int:
        while state["step"] < 10 and not budget.over():
            state["step"] += 1
            clock[0] += 60
        return 10 - state["step"]

    def second(budget: stages.Budget) -> int:
        state["second"] = True
        return 0

    todo = [Stage("long", lambda: state["step"] == 10, run, size=10),
            Stage("second", lambda: state["second"], second)]
    assert run_stages("both", todo, estimate_only=True) == 11
    assert run_stages("both", todo, minutes=4) == 7 and state == {"step": 4, "second": False}
    assert "7 left after 4 minutes" in capsys.readouterr().out
    assert run_stages("both", todo, minutes=60) == 0 and state == {"step": 10, "second": True}


def test_an_error_leaves_what_was_finished(tmp_path, clock):
    todo, ran = files(tmp_path, "abc", clock)
    broken = Stage("broken", lambda: False, lambda budget: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_stages("letters", [todo[0], broken, todo[1]])
    assert run_stages("letters", todo) == 0 and ran == ["a", "b", "c"]


KILLED = """
import pathlib, sys, time
from pitome_core.experiments.records import files
from pitome_core.experiments.runs.stages import Stage, run_stages

folder = pathlib.Path(sys.argv[1])

def stage(name):
    def run(budget):
        (folder / "begun").open("a").write(name)
        if name == "b" and sys.argv[2] == "hang":
            time.sleep(60)
        files.write_atomically(folder / name, name)
        return 0
    return Stage(name, (folder / name).is_file, run)

print("left", run_stages("letters", [stage(name) for name in "abc"]))
"""


def test_nothing_finished_is_lost_when_killed(tmp_path):
    """kill -9 in the second stage: the first is kept, the second is done anew, the same command goes on."""
    call = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen([*call, "hang"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "begun").is_file() and (tmp_path / "begun").read_text() == "ab"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (tmp_path / "a").is_file() and not (tmp_path / "b").is_file()
    done = subprocess.run([*call, "go"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "left 0" and "letters: 2 of 3 to do" in done.stdout
    assert (tmp_path / "begun").read_text() == "abbc"
