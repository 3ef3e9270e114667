"""One writer at a time, whose name the others are given; and nothing is lost where two write in turns."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pitome_core.experiments.records import locking, results
from pitome_core.experiments.records.locking import alone
from pitome_core.experiments.records.results import Record, RecordError

HEADER, ITEMS = {"experiment": "toy"}, {"id": ["a", "b"]}
RUN = {"date": "2000-01-01", "code": "c"}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share what was imported")
quietly = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def in_a_process(work) -> int:
    """The id of a process that does the work and ends with status 0, or 1 for an error."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def in_a_thread(work) -> list:
    """What the work raised in a thread of its own, for which the lock is another one's."""
    raised: list = []

    def guarded():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return raised


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "toy.json"
    monkeypatch.setattr(sys, "argv", ["/some/where/run.py", "--data", "/opt/imagenet/val"])
    monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))

    def second():
        with alone(path):
            raise AssertionError("two are inside")

    with alone(path):
        (error,) = in_a_thread(second)
    assert isinstance(error, RecordError) and "\n" not in str(error)
    words = f"being written by process {os.getpid()} (`python .../run.py --data .../val`, since 20"
    assert words in str(error) and str(error).endswith("wait until it has ended, or stop it")
    with alone(path):
        pass
    assert list(path.parent.iterdir()) == []  # the lock goes with its holder


def test_a_block_inside_a_block_enters(tmp_path):
    path = tmp_path / "toy.json"
    with alone(path):
        with alone(path), alone(tmp_path / "other.json"):
            pass
        assert isinstance(in_a_thread(lambda: alone(path).__enter__())[0], RecordError)  # it is still held
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_enters_after_the_other(tmp_path):
    path, order = tmp_path / "toy.json", []

    def first():
        with alone(path):
            order.append("first in")
            time.sleep(0.3)
            order.append("first out")

    thread = threading.Thread(target=first)
    thread.start()
    while not order:
        time.sleep(0.005)
    with alone(path, wait=60):
        order.append("second")
    thread.join()
    assert order == ["first in", "first out", "second"]


@forks
@quietly
def test_a_killed_writer_leaves_no_lock_and_no_file(tmp_path):
    """What its write had begun is removed by the next holder; what others write beside it stays."""
    path = tmp_path / "toy.json"
    record = Record.open(path, HEADER, ITEMS)
    record.add("one", {}, {"score": [1, 2]}, RUN)
    beside = [tmp_path / name for name in (".other.json.abcdefgh", ".toy.json.swp", "toy.json.bak")]
    for one in beside:
        one.touch()

    def killed():
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        record.add("two", {}, {"score": [1, 2]}, RUN)

    assert os.WTERMSIG(os.waitpid(in_a_process(killed), 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 6  # the record, three beside it, the half-written one and the lock
    record.add("three", {}, {"score": [1, 2]}, RUN)
    assert sorted(tmp_path.iterdir()) == sorted([path, *beside])
    assert list(Record.load(path).cells) == ["one", "three"]


@forks
@quietly
def test_writers_at_once_lose_nothing(tmp_path):
    """Each adds cells to a record that it opened before the others wrote."""
    path = tmp_path / "toy.json"
    writers, cells = 4, 12

    def writer(number):
        record = Record.open(path, HEADER, ITEMS)
        for cell in range(cells):
            record.add(f"{number}-{cell}", {}, {"score": [number, cell]}, RUN | {"seed": number})

    children = [in_a_process(lambda number=number: writer(number)) for number in range(writers)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * writers
    record = Record.load(path)
    assert sorted(record.cells) == sorted(f"{a}-{b}" for a in range(writers) for b in range(cells))
    assert len(record.runs) == writers
    for key, cell in record.cells.items():
        number, count = map(int, key.split("-"))
        assert cell["outcomes"]["score"] == [number, count] and record.runs[cell["run"]]["seed"] == number
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_takes_over_what_others_have_written(tmp_path):
    path = tmp_path / "toy.json"
    first, second = Record.open(path, HEADER, ITEMS), Record.open(path, HEADER, ITEMS)
    first.add("one", {}, {"score": [1, 2]}, RUN)
    second.add("two", {}, {"score": [3, 4]}, RUN | {"code": "d"})
    first.add("three", {}, {"score": [5, 6]}, RUN)
    second.add("one", {}, {"score": [7, 8]}, RUN | {"code": "d"})
    first.add("four", {}, {"score": [9, 9]}, RUN)
    found = Record.load(path)
    assert {key: (cell["outcomes"]["score"], cell["run"]) for key, cell in found.cells.items()} == {
        "one": ([7, 8], 1), "two": ([3, 4], 1), "three": ([5, 6], 0), "four": ([9, 9], 0)}
    assert (found.cells, found.runs) == (first.cells, first.runs) and len(found.runs) == 2
    path.unlink()  # somebody removes the file: what this record holds is not lost with it
    first.add("five", {}, {"score": [0, 0]}, RUN)
    assert list(Record.load(path).cells) == ["one", "two", "three", "four", "five"]
    Record.open(tmp_path / "new.json", HEADER, ITEMS).add("new", {}, {"score": [0, 0]}, RUN | {"code": "e"})
    os.replace(tmp_path / "new.json", path)  # or puts another one there
    first.add("six", {}, {"score": [0, 0]}, RUN)
    merged = Record.load(path)
    assert list(merged.cells) == ["new", "one", "two", "three", "four", "five", "six"]
    assert [merged.runs[cell["run"]]["code"] for cell in merged.cells.values()] == list("eddcccc")


def test_a_file_of_another_run_is_not_merged(tmp_path):
    path = tmp_path / "toy.json"
    first = Record.open(path, HEADER, ITEMS)
    first.add("one", {}, {"score": [1, 2]}, RUN)
    path.unlink()
    Record.open(path, {"experiment": "other"}, ITEMS).add("two", {}, {"score": [1, 2]}, RUN)
    text = path.read_text()
    with pytest.raises(RecordError, match="is of another run"):
        first.add("three", {}, {"score": [1, 2]}, RUN)
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_a_cell_is_not_added_while_a_run_holds_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "WAIT", 0.1)
    record = Record.open(tmp_path / "toy.json", HEADER, ITEMS)
    with alone(record.path):
        (error,) = in_a_thread(lambda: record.add("one", {}, {"score": [1, 2]}, RUN))
    assert f"process {os.getpid()}" in str(error) and "one" not in record


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, code):
    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", refused)
    words = rf"toy.json cannot be written \({os.strerror(code)}\): make room, or choose a folder that can be written"
    with pytest.raises(RecordError, match=words), alone(tmp_path / "toy.json"):
        pass


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="toy.json cannot be written"), alone(tmp_path / "file" / "toy.json"):
        pass


def test_a_lock_without_a_name(tmp_path):
    """A holder that has not written its name yet, or an older one, is another run."""
    path = Path(tmp_path / "toy.json")
    with FileLock(tmp_path / ".toy.json.lock"), pytest.raises(RecordError, match="being written by another run"):
        alone(path).__enter__()
    assert locking.command().startswith("python")
