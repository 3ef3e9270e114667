"""A notebook runs where there is no clone: the wheel, an environment of its own, an empty folder. As on Colab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "02_energy_score.ipynb"


def run(*command, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> dict:
    """An environment with the wheel of its own; everything heavy is the running environment's."""
    venv = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    (own,) = venv.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # A path in a .pth file is searched, but the .pth files in it are not read: the clone's editable
    # installation stays out of sight.
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (own / "shared.pth").write_text("\n".join(shared) + "\n")
    folder = tmp_path_factory.mktemp("empty")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "JUPYTER"))}
    clean |= {"PITOME_PROFILE": "smoke", "JUPYTER_DATA_DIR": str(venv / "jupyter"), "JUPYTER_PREFER_ENV_PATH": "1"}
    return {"python": python, "venv": venv, "folder": folder, "env": clean}


def test_the_wheel_carries_the_package_and_its_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name for name in names if name.startswith("pitome_core/")}
    files = [path for ending in ("py", "csv", "toml") for path in (ROOT / "pitome_core").rglob(f"*.{ending}")]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= packaged
    assert "pitome_core/experiments/data/collection.csv" in packaged
    assert "pitome_core/experiments/assets/table.toml" in packaged
    records = {path.relative_to(ROOT / "results").as_posix() for path in (ROOT / "results").glob("embedded/*.json")}
    assert records and {f"pitome_core/experiments/recorded/{name}" for name in records} <= packaged
    assert any(name.endswith("/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pitome_core"}


def test_the_clone_cannot_be_imported(elsewhere):
    where = "import pitome_core, sys; print(pitome_core.__file__); print('\\n'.join(sys.path))"
    found, *path = run(elsewhere["python"], "-c", where, cwd=elsewhere["folder"], env=elsewhere["env"]).splitlines()
    assert Path(found).is_relative_to(elsewhere["venv"])
    assert str(ROOT) not in path


def test_records_are_found_where_there_is_no_clone(elsewhere):
    load = "from pitome_core.experiments.records import results; print(len(results.load('vision-scenes')))"
    assert int(run(elsewhere["python"], "-c", load, cwd=elsewhere["folder"], env=elsewhere["env"])) > 100


@pytest.mark.slow
def test_a_notebook_runs_in_an_empty_folder(elsewhere):
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, elsewhere["folder"])
    execute = f"""
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read({NOTEBOOK!r}, as_version=4)
notebook.cells.append(nbformat.v4.new_code_cell("import pitome_core; print(pitome_core.__file__)"))
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text)
"""
    printed = run(elsewhere["python"], "-c", execute, cwd=elsewhere["folder"], env=elsewhere["env"])
    assert Path(printed.strip().splitlines()[-1]).is_relative_to(elsewhere["venv"]), "the kernel was another one"
