"""How the book is built: failures fail, caches know what they depend on, addresses come from one place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image
from toy_clone import write_book, write_notebook

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import companion  # noqa: E402


@pytest.fixture
def small_book(tmp_path):
    """A page and a notebook under the book's own settings."""
    book = tmp_path / "small"
    write_book(book)
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, book)
    (book / "pitome_core").mkdir()
    (book / "pitome_core" / "__init__.py").write_text("answer = 1\n")
    return book


def build(book: Path, cell: str, *options: str) -> subprocess.CompletedProcess:
    write_notebook(book, cell)
    command = [sys.executable, str(ROOT / "tools" / "build_book.py"), "--source", str(book), *options]
    return subprocess.run(command, capture_output=True, text=True)


def shown(book: Path) -> str:
    return (book / "_build/html/notebooks/cells.html").read_text()


@pytest.mark.slow
def test_outputs_follow_the_package_and_a_failing_cell_fails_the_build(small_book):
    ask = "import pitome_core\nprint('answer', pitome_core.answer)"
    good = build(small_book, ask)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "answer 1" in shown(small_book)

    # The cells are as before, the package is not: what jupyter-cache alone would miss.
    (small_book / "pitome_core" / "__init__.py").write_text("answer = 2\n")
    good = build(small_book, ask)
    assert good.returncode == 0 and "answer 2" in shown(small_book), good.stdout + good.stderr

    for _ in range(2):  # and it goes on failing
        bad = build(small_book, "1 / 0")
        assert bad.returncode != 0 and "ZeroDivisionError" in bad.stdout + bad.stderr, bad.stdout + bad.stderr


@pytest.mark.slow
def test_a_warning_fails_every_build_until_it_is_mended(small_book):
    page = small_book / "book" / "index.md"
    page.write_text("# A page\n\nSee {ref}`nowhere`.\n")
    assert build(small_book, "1").returncode != 0
    assert build(small_book, "1").returncode != 0
    page.write_text("# A page\n\nSee nothing.\n")
    mended = build(small_book, "1")
    assert mended.returncode == 0, mended.stdout + mended.stderr


@pytest.mark.slow
def test_in_the_smoke_tier_two_notebooks_run_at_once(small_book, monkeypatch):
    """Each of two notebooks waits for the other one: run one after the other, the first would wait in vain."""
    monkeypatch.setenv("PITOME_PROFILE", "smoke")
    wait = ("import pathlib, time\nwith open('{mine}', 'a') as file:\n    file.write('ran\\n')\nfor _ in range(600):\n"
            "    if pathlib.Path('{other}').exists():\n        break\n    time.sleep(0.1)\nelse:\n"
            "    raise TimeoutError\nprint('met', 6 * 7)")
    write_notebook(small_book, wait.format(mine="second", other="first"), "again")
    toc = small_book / "_toc.yml"
    toc.write_text(toc.read_text() + "  - file: notebooks/again\n")
    good = build(small_book, wait.format(mine="first", other="second"))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "met 42" in shown(small_book) and "met 42" in (small_book / "_build/html/notebooks/again.html").read_text()

    assert [(small_book / "notebooks" / name).read_text() for name in ("first", "second")] == ["ran\n"] * 2, "ran twice"


def test_the_execution_key_knows_code_lock_results_tier_and_device(small_book, monkeypatch):
    keys = [companion.execution_key(small_book)]
    (small_book / "results").mkdir()
    for name in ("pitome_core/__init__.py", "requirements.lock", "results/table.json"):
        with (small_book / name).open("a") as file:
            file.write("# changed\n")
        keys.append(companion.execution_key(small_book))
    for variable, value in (("PITOME_PROFILE", "paper"), ("PITOME_DEVICE", "meta")):
        monkeypatch.setenv(variable, value)
        keys.append(companion.execution_key(small_book))
    assert len(set(keys)) == len(keys) and keys[-1].startswith("paper-")
    (small_book / "book" / "index.md").write_text("# Another page\n")
    assert companion.execution_key(small_book) == keys[-1], "prose does not run"


@pytest.mark.parametrize(("remote", "url"), [
    ("https://github.com/Ada/pitome.git", "https://github.com/Ada/pitome"),
    ("git@github.com:Ada/pitome.git", "https://github.com/Ada/pitome"),
    ("https://name:secret@github.com/Ada/pitome", "https://github.com/Ada/pitome"),
    ("../elsewhere/pitome.git", "https://github.com/OWNER/pitome-companion"),
    (None, "https://github.com/OWNER/pitome-companion"),
])
def test_the_repository_is_the_remote_or_the_placeholder(tmp_path, remote, url):
    text = '[project.urls]\nRepository = "https://github.com/OWNER/pitome-companion"\n'
    (tmp_path / "pyproject.toml").write_text(text)
    plain = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
    for command in (["git", "init"], ["git", "remote", "add", "origin", remote]):
        if None not in command:
            subprocess.run(command, cwd=tmp_path, env=plain, check=True, capture_output=True)
    assert companion.repository_url(tmp_path) == url


def test_plots_are_told_from_pictures_by_their_paper(tmp_path):
    """Dark mode inverts plots and heat maps with axes: photographs, and token maps with a narrow frame, stay."""
    paper = np.full((60, 100, 3), 255, np.uint8)
    plot, bars, heat, tiles, picture = (paper.copy() for _ in range(5))
    plot[::12] = 40
    bars[10:50, :55] = (0, 114, 178)
    heat[4:48, 24:90] = np.arange(44 * 66).reshape(44, 66, 1) // 242 * (10, 9, 4)
    tiles[3:57, 3:97] = np.arange(54)[:, None, None] // 9 * (40, 30, 20)
    picture[5:55, 5:95] = np.random.default_rng(0).integers(0, 255, (50, 90, 3))
    doctree = new_document("page")
    for name, pixels in (("plot", plot), ("bars", bars), ("heat", heat), ("tiles", tiles), ("picture", picture)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        doctree += nodes.image(uri=f"{name}.png")
    doctree += nodes.image(uri="https://elsewhere/plot.png")
    doctree += nodes.image(uri="bars.png", classes=["picture"])
    companion.mark_plots(SimpleNamespace(srcdir=tmp_path), doctree)
    found = [node["classes"] for node in doctree.findall(nodes.image)]
    assert found == [["plot"], ["plot"], ["plot"], [], [], [], ["picture"]]
