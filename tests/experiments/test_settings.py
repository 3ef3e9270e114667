"""The environment variables: defaults, values, and errors that name the remedy."""

import sys
from pathlib import Path

import pytest
import torch

from pitome_core.experiments import settings


@pytest.mark.parametrize(
    "value, expected",
    [(None, "embedded"), ("", "embedded"), ("smoke", "smoke"), ("embedded", "embedded"), ("paper", "paper")],
)
def test_profile(monkeypatch, value, expected):
    monkeypatch.delenv("PITOME_PROFILE", raising=False)
    if value is not None:
        monkeypatch.setenv("PITOME_PROFILE", value)
    assert settings.profile() == expected


def test_profile_refuses_other_values(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "Smoke")
    with pytest.raises(ValueError, match="'Smoke'.*smoke, embedded, paper"):
        settings.profile()


@pytest.mark.parametrize("present, expected", [(True, "cuda"), (False, "cpu")])
def test_device_defaults_to_cuda_where_present(monkeypatch, present, expected):
    monkeypatch.delenv("PITOME_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert settings.device() == torch.device(expected)


def test_device_from_the_environment(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        monkeypatch.setenv("PITOME_DEVICE", name)
        assert settings.device() == torch.device(name)


@pytest.mark.parametrize("count, name", [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1")])
def test_absent_cuda_is_an_error(monkeypatch, count, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("PITOME_DEVICE", name)
    with pytest.raises(RuntimeError, match=f"'{name}'.*sees {count} CUDA devices.*set it to cpu"):
        settings.device()


def test_unknown_device_is_an_error(monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "gpu")
    with pytest.raises(ValueError, match="'gpu'.*cpu, cuda or cuda:N"):
        settings.device()


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "mine"))
    assert settings.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("PITOME_CACHE")
    assert settings.cache_dir() == tmp_path / "xdg" / "pitome"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, folder in [("linux", ".cache/pitome"), ("darwin", "Library/Caches/pitome")]:
        monkeypatch.setattr(sys, "platform", platform)
        assert settings.cache_dir() == tmp_path / folder
    assert not settings.cache_dir().exists()  # asking creates nothing


def test_a_relative_cache_survives_a_change_of_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PITOME_CACHE", "cache")
    assert settings.cache_dir() == tmp_path / "cache"


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    """An experiment whose package is not installed says which extra brings it; any other failure stays what it is."""
    from pitome_core.experiments import __main__ as command

    def without(package):
        def import_module(name):
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

        monkeypatch.setattr(command.importlib, "import_module", import_module)

    without("transformers.models")
    with pytest.raises(SystemExit, match=r"vqa needs transformers.models: pip install 'pitome-core\[transformers\]'"):
        command.main(["vqa", "--help"])
    without("nonsense")
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        command.main(["vqa", "--help"])
