"""A small clone: the Makefile and tools of this one, a toy package, a book of one page and one notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]

PROJECT = """\
[build-system]
requires = []
build-backend = "toy_backend"
backend-path = ["."]

[project]
name = "toy"
version = "1"

[project.urls]
Repository = "https://github.com/OWNER/toy"
"""

# The hook that `pip install -e .` calls: a wheel with nothing but a path to the clone.
BACKEND = """\
import os, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("toy.pth", os.getcwd() + "\\n")
        wheel.writestr("toy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "")
    return name
"""

# Read by every python with PYTHONPATH set to its folder: the whole set-up gets a signal at the first event of the
# interpreter (a file that is opened or renamed, a process that is started) whose arguments hold the text of KILL_AT.
KILLER = """\
import os, sys

def watch(event, arguments, text=os.environ["KILL_AT"], number=int(os.environ["KILL_BY"])):
    if event in ("open", "os.rename", "subprocess.Popen") and text in repr(arguments[:2]):
        os.killpg(0, number)

sys.addaudithook(watch)
"""

# `orphan`: the process that waits for this one is killed, and this one goes on.
ASSETS = """\
import os, signal, sys, time
if os.environ.get("TOY_ASSETS") == "orphan":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1)
with open("fetched", "a") as file:
    file.write(os.environ.get("TOY_ASSETS", "plain") + " ")
print("assets are there")
"""


def write_book(book: Path) -> None:
    """The settings, extension and style of the real book, and a page; the notebook is `notebooks/cells.ipynb`."""
    shutil.copytree(ROOT / "book" / "_ext", book / "book" / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book" / "_static", book / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", book)
    (book / "notebooks").mkdir()
    (book / "book" / "references.bib").write_text("")
    (book / "book" / "index.md").write_text("# A page\n\nSome text.\n")
    (book / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n  - file: notebooks/cells\n")


def write_notebook(book: Path, cell: str, name: str = "cells") -> None:
    """A notebook of a title and one cell of code."""
    cells = [nbformat.v4.new_markdown_cell("# Cells", id="title"), nbformat.v4.new_code_cell(cell, id="code")]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), book / "notebooks" / f"{name}.ipynb")


def write_clone(root: Path) -> None:
    """A clone that can be set up without a network: its lock names the packages toy-a and toy-b of `root/wheels`."""
    root.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root)
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "toy_backend.py").write_text(BACKEND)
    (root / "requirements.lock").write_text("toy-a==1\ntoy-b==1\n    # via toy\n")
    assets = root / "pitome_core" / "experiments" / "assets.py"
    assets.parent.mkdir(parents=True)
    (root / "pitome_core" / "__init__.py").write_text("answer = 1\n")
    assets.write_text(ASSETS)
    (root / "wheels").mkdir()
    for name in ("toy_a", "toy_b"):
        with zipfile.ZipFile(root / "wheels" / f"{name}-1-py3-none-any.whl", "w") as wheel:
            # The metadata first: a package that is half installed then looks as if it were there.
            about = f"{name}-1.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", f"{name}.py,,\n")
            wheel.writestr(f"{name}.py", "value = 1\n")
    (root / "killer").mkdir()
    (root / "killer" / "sitecustomize.py").write_text(KILLER)


def surroundings(root: Path, **more: str) -> dict[str, str]:
    """The environment of a command in the clone: nothing of the process that runs the tests, and no network."""
    ours = ("PYTHON", "PIP_", "PITOME_", "PYTEST", "MAKE", "VENV", "BASE_PYTHON", "VIRTUAL_ENV", "CI")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (root / "wheels").as_uri(), "PIP_NO_CACHE_DIR": "1"}
    return {**plain, **offline, **more}


def make(root: Path, *words: str, check: bool = True, **more: str) -> str:
    """What `make` prints in the clone; with `check` it has to succeed."""
    done = subprocess.run(["make", "--no-print-directory", *words], cwd=root, env=surroundings(root, **more),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def share_packages(venv: Path) -> None:
    """Let an environment import what the running one has, except its editable installations."""
    (own,) = venv.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "shared.pth").write_text("\n".join(shared) + "\n")
