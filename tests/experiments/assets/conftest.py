"""A table of one asset, an empty cache, and tools that see nothing of this machine; nothing here needs a network."""

import dataclasses
import os

import pytest

from pitome_core.experiments.assets import store, table


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A function that makes one asset the whole table, with changed fields, and returns it. The cache is empty."""
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_VERIFIED", {})

    def use(asset, **changes):
        asset = dataclasses.replace(asset, **changes)
        monkeypatch.setattr(table, "ASSETS", {asset.name: asset})
        return asset

    return use


@pytest.fixture
def pip_sees(monkeypatch):
    """A function that confines pip to folders, without an index and without this machine's own settings."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return lambda *places: monkeypatch.setenv("PIP_FIND_LINKS", " ".join(map(str, places)))


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A function that puts shell scripts into a folder and makes that folder the whole PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()

    def install(**scripts):
        for name, script in scripts.items():
            file = folder / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return install
