"""The command line of the assets: what it lists, what it fetches, its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_packages import asset_of

from pitome_core.experiments import assets
from pitome_core.experiments.assets import store
from pitome_core.experiments.assets.__main__ import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def toy(only, monkeypatch):
    monkeypatch.setitem(store.FILL, "wheel", lambda asset, to, progress: (to / "a.bin").write_bytes(b"first"))
    return only(asset_of(Path(__file__), package="pitome-toy-asset"))


def test_it_lists_states(toy, tmp_path, capsys):
    folder = assets.fetch("toy")
    assert main([]) == 0
    header, row, *_, last = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "SIZE"]
    assert row.split()[:2] == ["toy", "ready"] and "pitome-toy-asset 1.0" in row and "MIT" in row and "a toy" in row
    assert str(tmp_path / "cache") in last
    (folder / "a.bin").write_bytes(b"other")
    main(["list"])
    assert "damaged" in capsys.readouterr().out


def test_it_fetches(toy, tmp_path, monkeypatch, capfd):
    assert main(["fetch"]) == 0
    assert "toy: missing; fetching pitome-toy-asset" in capfd.readouterr().out
    assert main(["fetch", "toy"]) == 0
    assert capfd.readouterr().out == "toy: ready\n"

    def fail(asset, to, progress):
        raise assets.AssetError("no network")

    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cold"))
    monkeypatch.setitem(store.FILL, "wheel", fail)
    assert main(["fetch"]) == 1
    assert capfd.readouterr().err == "error: no network\n"
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "nothing"])


def test_the_optional_is_fetched_by_name_only(toy, only, capfd):
    only(toy, optional=True)
    assert main(["fetch"]) == 0
    assert "toy: missing; optional" in capfd.readouterr().out and assets.state("toy") == "missing"
    assert main(["fetch", "toy"]) == 0
    assert assets.state("toy") == "ready"


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "pitome_core.experiments.assets"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in assets.ASSETS)
