"""Notebooks: both files of a pair agree, stored outputs are the checked ones only, figures can be read by all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import pair  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_every_notebook_is_a_pair():
    assert SCRIPTS and [path.stem for path in SCRIPTS] == [path.stem for path in STORED]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_pair_is_in_step(script):
    assert pair.problems(script) == [], "run `make pair`"


@each_notebook
def test_at_least_one_output_is_checked(path):
    assert any(pair.is_checked(cell) for cell in code_cells(path))


@each_notebook
def test_runs_on_the_standard_kernel(path):
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@each_notebook
def test_figures_have_caption_name_and_alt(path):
    names = []
    for cell in code_cells(path):
        mystnb = cell.metadata.get("mystnb", {})
        draws = re.search(r"\.show\(\)", cell.source)
        if draws or "figure" in mystnb or "image" in mystnb:
            where = f"the cell that starts with {cell.source[:60]!r}"
            assert mystnb.get("figure", {}).get("caption"), f"{where} has no caption"
            assert mystnb["figure"].get("name"), f"{where} has no name"
            assert mystnb.get("image", {}).get("alt"), f"{where} has no alt text"
            assert {"hide-input", "hide-cell"} & set(tags(cell)), f"{where}: plot code is folded"
            names.append(mystnb["figure"]["name"])
    assert names and len(set(names)) == len(names)


@each_notebook
def test_no_code_is_removed(path):
    """Folded code can be opened; removed code cannot be read at all. Only Colab's installation is no reading matter."""
    removed = {"remove-input", "remove-cell", "remove-output"}
    for cell in code_cells(path):
        assert "google.colab" in cell.source or not removed & set(tags(cell)), cell.source[:60]


@each_notebook
def test_colab_installs_this_version_from_this_repository(path):
    (cell,) = [cell for cell in code_cells(path) if "google.colab" in cell.source]
    assert 'if "google.colab" in sys.modules' in cell.source
    (wanted,) = re.findall(r"pitome-core\[[^\"']+", cell.source)
    extras, source = re.fullmatch(r"pitome-core\[([a-z,-]+)\](.*)", wanted).groups()
    assert source == f" @ git+{PROJECT['urls']['Repository']}@v{PROJECT['version']}"
    assert "experiments" in extras.split(",") and set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


# --- the checks can fail

SMALL = """\
# %%
x = 2

# %% tags=["nbval-check-output"]
print("twice", 2 * x)
"""


@pytest.fixture
def small_pair(tmp_path):
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    pair.write(script, force=False)
    return script


def test_pair_writes_what_it_accepts_and_nothing_new_the_second_time(small_pair):
    stored = small_pair.with_suffix(".ipynb")
    before = stored.read_text()
    assert pair.problems(small_pair) == []
    plain, checked = code_cells(stored)
    assert (plain.outputs, plain.execution_count) == ([], None)
    assert (checked.outputs[0].text, checked.execution_count) == ("twice 4\n", 1)
    assert "unchanged" in pair.write(small_pair, force=True) and stored.read_text() == before


def test_cell_ids_follow_the_text(small_pair):
    before = [cell.id for cell in pair.from_script(small_pair).cells]
    small_pair.write_text(SMALL.replace("# %%\nx = 2", "# %% [markdown]\n# New.\n\n# %%\nx = 2"))
    assert [cell.id for cell in pair.from_script(small_pair).cells][1:] == before


@pytest.mark.parametrize("edit", [
    lambda cells: cells[0].update(source="x = 3"),
    lambda cells: cells[0].metadata.update(tags=["hide-input"]),
    lambda cells: cells[1].update(execution_count=None),
    lambda cells: cells[1].update(outputs=[]),
    lambda cells: cells[0].update(execution_count=1),
    lambda cells: cells[0].update(outputs=cells[1].outputs),
    lambda cells: cells.pop(),
])
def test_a_pair_out_of_step_is_noticed(small_pair, edit):
    stored = small_pair.with_suffix(".ipynb")
    notebook = nbformat.read(stored, as_version=4)
    edit(notebook.cells)
    nbformat.write(notebook, stored)
    assert pair.problems(small_pair)


def nbval(notebook: Path) -> subprocess.CompletedProcess:
    """nbval with the project's own options, on a notebook elsewhere."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"].split()
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, notebook.name],
        cwd=notebook.parent, capture_output=True, text=True, env=os.environ | {"PYTEST_ADDOPTS": ""},
    )


def test_nbval_accepts_the_right_number_and_rejects_a_wrong_one(small_pair):
    stored = small_pair.with_suffix(".ipynb")
    right = nbval(stored)
    assert right.returncode == 0, right.stdout
    stored.write_text(stored.read_text().replace("twice 4", "twice 5"))
    assert pair.problems(small_pair) == [], "only nbval can see this"
    wrong = nbval(stored)
    assert wrong.returncode == 1 and "twice 5" in wrong.stdout, wrong.stdout
