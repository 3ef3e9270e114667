"""What a run says about itself, the log of scored test sets, and what may not be scored."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.results import Record, RecordError

HEADER = {"experiment": "vision", "task": "toy", "tier": "smoke", "split": "test", "protocol": "p-1", "model": "m"}


def of_run(**options):
    return provenance.of_run("0123456789ab", **options)


def test_a_run_says_what_the_design_asks_for():
    run = of_run(seed=7)
    names = {"date", "command", "commit", "modified", "code", "device", "threads", "tf32", "packages", "seed"}
    assert names <= set(run) and "allow_modified" not in run
    assert run["seed"] == 7 and run["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run["date"])
    assert run["code"] == "0123456789ab" and isinstance(run["device"], str)
    assert run == json.loads(json.dumps(run))


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["tools/x.py", "--keep", "0.9"], "tools/x.py --keep 0.9"),
        (["/opt/some/where/x.py"], ".../x.py"),
        (["x.py", "--data", "/opt/imagenet/val", "--output=/tmp/out", "~/a/b"],
         "x.py --data .../val --output=.../out .../b"),
        (["x.py", "--methods", "tome", "a/b", "two words"], "x.py --methods tome a/b 'two words'"),
    ],
)
def test_a_command_names_no_folder_of_the_machine(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))
    assert of_run()["command"] == f"python {expected}"


@pytest.mark.parametrize("spec, name", [("runs.__main__", "runs"), ("runs.vision", "runs.vision")])
def test_a_module_is_called_by_its_name(monkeypatch, spec, name):
    main = type(sys)("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec(spec, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/opt/some/where/runs/__main__.py", "vision", "--output", "/opt/x"])
    assert of_run()["command"] == f"python -m {name} vision --output .../x"


# --- the commit
@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small tree in the package's place, outside of version control: ``root/pitome_core`` with one source."""
    root = tmp_path / "root"
    monkeypatch.setattr(results, "HERE", root / "pitome_core" / "experiments" / "records" / "results.py")
    monkeypatch.delenv("PITOME_COMMIT")
    (root / "pitome_core").mkdir(parents=True)
    (root / "pitome_core" / "energy.py").write_text("x = 1\n")
    (root / "pyproject.toml").touch()
    return root


def git(root: Path, *arguments: str) -> None:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, env=os.environ | who)


@pytest.fixture
def committed(tree):
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "first")
    return tree


def test_without_version_control_the_commit_is_unknown(tree, monkeypatch):
    """Or it is the one that the environment names. What is unknown is said, and refused to nobody."""
    run = of_run(test=True)
    assert (run["commit"], run["modified"]) == (None, None) and "allow_modified" not in run
    monkeypatch.setenv("PITOME_COMMIT", "abc")
    run = of_run(test=True)
    assert (run["commit"], run["modified"]) == ("abc", None)


def test_modified_is_about_the_package(committed):
    """Writing records and notes does not make the code another one; a new or a changed source does."""
    assert re.fullmatch("[0-9a-f]{40}", of_run()["commit"]) and of_run()["modified"] is False
    (committed / "pyproject.toml").write_text("# other\n")
    (committed / "results").mkdir()
    (committed / "results" / "toy.json").touch()
    assert of_run()["modified"] is False
    (committed / "pitome_core" / "new.py").touch()
    assert of_run()["modified"] is True
    (committed / "pitome_core" / "new.py").unlink()
    assert of_run()["modified"] is False
    (committed / "pitome_core" / "energy.py").write_text("x = 2\n")
    assert of_run()["modified"] is True


def test_the_repository_around_an_environment_is_not_ours(committed):
    """Installed below somebody's repository, the commit is unknown, not theirs."""
    (committed / "pyproject.toml").unlink()
    assert (of_run()["commit"], of_run()["modified"]) == (None, None)


def test_a_test_set_is_scored_by_committed_code(committed, tmp_path):
    """Work that is not committed may explore. A test set it may score if that is asked for; run and log then say so."""
    log, record = tmp_path / "log.json", Record.open(tmp_path / "toy.json", HEADER, {"id": [1]})
    run = of_run(test=True)
    assert run["modified"] is False and "allow_modified" not in of_run(test=True, allow_modified=True)
    provenance.log_test(record, ["one"], run, log)
    (committed / "pitome_core" / "energy.py").write_text("x = 2\n")
    assert of_run()["modified"] is True
    with pytest.raises(RecordError, match=r"commit first, or pass --allow-modified(.|\n)*pitome_core/energy.py"):
        of_run(test=True)
    run = of_run(test=True, allow_modified=True)
    assert run["modified"] is True and run["allow_modified"] is True
    assert "allow_modified" not in of_run(allow_modified=True)  # dev asks nobody
    provenance.log_test(record, ["one"], run, log)
    before, after = json.loads(log.read_text())
    assert before["modified"] is False and "allow_modified" not in before and before["commit"] == after["commit"]
    assert after["modified"] is True and after["allow_modified"] is True


# --- the logs
def test_each_scoring_adds_a_line_that_tells_new_from_again(tmp_path):
    record = Record.open(tmp_path / "toy.json", HEADER, {"id": ["a", "b", "c", "d"]})
    log, run = tmp_path / "log" / "test_log.json", of_run(test=True)
    record.add("one", {}, {"score": [1, 2, 3, 4]}, run)
    provenance.log_test(record, ["one", "two", "three"], run, log)
    first = log.read_text()
    record.add("two", {}, {"score": [1, 2, 3, 4]}, run)
    provenance.log_test(record, ["one", "two", "three"], run, log)
    entries = json.loads(log.read_text())
    assert [(entry["new"], entry["again"], entry["items"]) for entry in entries] == [(2, 1, 4), (1, 2, 4)]
    for entry in entries:
        assert all(entry[name] == HEADER[name] for name in ("experiment", "task", "tier", "protocol", "model"))
        assert all(entry[name] == run[name] for name in ("date", "code", "commit", "modified", "device", "command"))
    assert first.removesuffix("\n]\n") in log.read_text() and "test_log.json" in os.listdir(log.parent)


@pytest.mark.parametrize("text", ["", "[", '{"a": 1}', "3"])
def test_a_damaged_log_is_named_with_its_remedy_and_kept(tmp_path, text):
    record, log = Record.open(tmp_path / "toy.json", HEADER, {"id": ["a"]}), tmp_path / "test_log.json"
    log.write_text(text)
    with pytest.raises(RecordError, match="test_log.json .*restore it from version control, or delete it") as error:
        provenance.log_test(record, ["one"], of_run(test=True), log)
    assert "\n" not in str(error.value) and log.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["test_log.json"]


def test_logs_are_json_by_the_book(tmp_path):
    log, run = tmp_path / "test_log.json", of_run(test=True)
    record = Record.open(tmp_path / "toy.json", HEADER, {"id": ["a"]})
    provenance.log_test(record, [], run | {"device": float("nan")}, log)
    assert json.loads(log.read_text())[0]["device"] is None and "NaN" not in log.read_text()
    provenance.note("toy", {"loss": [1.0, float("inf")]}, "0123456789ab", tmp_path / "notes.jsonl")
    assert '"loss": [1.0, null]' in (tmp_path / "notes.jsonl").read_text()


def test_a_note_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="notes.jsonl cannot be written"):
        provenance.note("toy", {}, "0123456789ab", tmp_path / "file" / "notes.jsonl")


def test_a_note_is_a_line_with_who_wrote_it(tmp_path):
    log = tmp_path / "sub" / "notes.jsonl"
    for number in range(2):
        provenance.note("toy", {"number": number}, "0123456789ab", log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["number"] for line in lines] == [0, 1]
    assert all(set(line) == {"number", "date", "code", "device", "command"} for line in lines)
    assert lines[0]["code"] == "0123456789ab"
