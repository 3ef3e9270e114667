"""The store: filled once, whole or not at all, verified at every use. No package is downloaded here."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_packages import asset_of

from pitome_core.experiments import assets
from pitome_core.experiments.assets import store
from pitome_core.experiments.assets.__main__ import main
from pitome_core.experiments.assets.sources.common import sha256

ROOT = Path(__file__).parents[3]
CONTENT = {"a.bin": b"first" * 1000, "folder/b.txt": b"second"}


@pytest.fixture
def toy(only, monkeypatch):
    """The toy as the only asset, with a fill that downloads nothing; its list of calls."""
    only(asset_of(Path(__file__)))
    calls = []

    def fill(asset, to, progress):
        calls.append(asset.name)
        (to.parent / "download").write_bytes(b"a file that the fill leaves beside the folder")
        for name, content in CONTENT.items():
            (to / name).parent.mkdir(exist_ok=True)
            (to / name).write_bytes(content)

    monkeypatch.setitem(store.FILL, "wheel", fill)
    return calls


@pytest.fixture
def warm(toy):
    """The folder of the fetched toy."""
    folder = assets.fetch("toy")
    toy.clear()
    return folder


def assert_right(folder: Path):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del files[assets.MANIFEST]
    assert files == CONTENT


def test_a_fetch_fills_the_folder_and_leaves_nothing_beside_it(toy, capfd):
    assert assets.state("toy") == "missing"
    folder = assets.fetch("toy")
    assert_right(folder)
    assert assets.state("toy") == "ready"
    assert folder == assets.path("toy")
    assert {p.name for p in folder.parent.iterdir()} - {".toy-1.0.lock"} == {"toy-1.0"}
    assert capfd.readouterr() == ("", "")  # the library prints nothing


def test_a_warm_cache_needs_no_download_and_no_write(warm, toy, monkeypatch):
    monkeypatch.setattr(store, "FileLock", None)  # would fail if it were used
    for folder in (warm, warm.parent):
        folder.chmod(0o555)
    try:
        assert_right(assets.fetch("toy"))
    finally:
        for folder in (warm.parent, warm):
            folder.chmod(0o755)
    assert not toy


def flip_a_bit(folder):
    data = bytearray((folder / "a.bin").read_bytes())
    data[17] ^= 1  # the size stays
    (folder / "a.bin").write_bytes(data)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "short file": lambda folder: os.truncate(folder / "a.bin", 100),
    "missing file": lambda folder: (folder / "folder/b.txt").unlink(),
    "missing manifest": lambda folder: (folder / assets.MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / assets.MANIFEST, 40),
    "manifest of something else": lambda folder: (folder / assets.MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended(warm, toy, damage):
    assert assets.state("toy") == "ready"  # also when the files were hashed before in this process
    DAMAGES[damage](warm)
    assert assets.state("toy") == "damaged"
    assert_right(assets.fetch("toy"))
    assert assets.state("toy") == "ready" and toy == ["toy"]


def forge(folder):
    """Put another file there, and a manifest that agrees with it."""
    (folder / "a.bin").write_bytes(b"forged")
    manifest = json.loads((folder / assets.MANIFEST).read_bytes())
    manifest["files"]["a.bin"] = {"sha256": sha256(folder / "a.bin"), "size": 6}
    (folder / assets.MANIFEST).write_text(json.dumps(manifest, indent=1))


def test_a_forged_file_with_a_forged_manifest_is_noticed_and_mended(warm, toy, only):
    """The table knows the hash of the manifest; a cache that was filled before it did is as good as ever."""
    asset = only(asset_of(Path(__file__)))
    pin = sha256(warm / assets.MANIFEST)
    only(asset, manifest=pin)
    assert assets.fetch("toy") == warm and toy == []
    forge(warm)
    assert assets.state("toy") == "damaged"
    only(asset)
    assert assets.state("toy") == "ready"  # without the pin nothing tells
    only(asset, manifest=pin)
    assert_right(assets.fetch("toy"))
    assert toy == ["toy"] and assets.state("toy") == "ready"


def test_files_of_another_manifest_than_the_tables_are_not_kept(toy, only):
    only(asset_of(Path(__file__)), manifest="0" * 64)
    with pytest.raises(assets.AssetError, match=f"manifest with sha256 .* where {'0' * 64} is pinned: the table"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing" and not list(assets.path("toy").parent.glob(".toy-1.0.tmp-*"))


@pytest.mark.parametrize("place", ["fill", "mkdtemp", "replace"])
def test_a_full_disk_is_said_in_one_line(toy, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "fill":
        monkeypatch.setitem(store.FILL, "wheel", full)
    else:
        monkeypatch.setattr({"mkdtemp": store.tempfile, "replace": store.os}[place], place, full)
    words = r"cannot be written \(No space left on device\): make room, or set PITOME_CACHE"
    with pytest.raises(assets.AssetError, match=words) as error:
        assets.fetch("toy")
    assert "\n" not in str(error.value) and not list(assets.path("toy").parent.glob(".toy-1.0.tmp-*"))


def test_a_cache_that_cannot_be_read_is_damaged_and_named(warm, monkeypatch, capsys):
    """Root reads everything, so the system's refusal is made up here."""
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refused)
    assert assets.state("toy") == "damaged"
    assert main(["list"]) == 0 and "damaged" in capsys.readouterr().out
    monkeypatch.setattr(store, "FileLock", refused)
    assert main(["fetch", "toy"]) == 1
    assert "cannot be written (Permission denied): make room, or set PITOME_CACHE" in capsys.readouterr().err


def test_another_pin_makes_the_old_files_damaged(warm, only):
    only(asset_of(Path(__file__), sha256="0" * 64))
    assert assets.state("toy") == "damaged"


def test_a_failed_fill_leaves_nothing(toy, monkeypatch):
    def fail(asset, to, progress):
        (to / "half").write_bytes(b"half")
        raise assets.AssetError("no network")

    monkeypatch.setitem(store.FILL, "wheel", fail)
    with pytest.raises(assets.AssetError, match="no network"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"
    assert {p.name for p in assets.path("toy").parent.iterdir()} <= {".toy-1.0.lock"}


def test_a_cache_that_cannot_be_written_names_the_variable(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "file"))
    with pytest.raises(assets.AssetError, match="cannot be written.*PITOME_CACHE"):
        assets.fetch("toy")


def test_the_variable_moves_the_cache(warm, toy, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.move(warm.parents[1], moved)
    assert assets.state("toy") == "missing"
    monkeypatch.setenv("PITOME_CACHE", str(moved))
    assert assets.fetch("toy") == moved / "assets" / "toy-1.0"
    assert not toy


FILL_SLOWLY = """
import sys, time
from pathlib import Path
from pitome_core.experiments import assets
folder, log, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def fill(to):
    (to / "a.bin").write_bytes(b"first")
    with open(log, "a") as stream: stream.write("x")
    time.sleep(seconds)
print(assets.cached(folder, "source", fill))
"""


def filling(folder: Path, log: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", FILL_SLOWLY, str(folder), str(log), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_fill_once(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    both = [filling(folder, log, 2) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [str(folder)] * 2
    assert log.read_text() == "x"
    assert store.check(folder, "source") == "ready"


def test_a_process_killed_in_the_middle_is_swept_up_after(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    with filling(folder, log, 600) as process:
        while not log.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert store.check(folder, "source") == "missing"
    assert list(tmp_path.glob(".folder.tmp-*"))
    assets.cached(folder, "source", lambda to: (to / "a.bin").write_bytes(b"first"))
    assert store.check(folder, "source") == "ready"
    assert not list(tmp_path.glob(".folder.tmp-*"))


def test_unknown_names_are_refused(toy):
    for function in (assets.fetch, assets.state, assets.path):
        with pytest.raises(KeyError, match="no asset 'nothing'; there are toy"):
            function("nothing")


@pytest.mark.parametrize("module", ["pitome_no_such_module", "filelock"])
def test_an_installed_package_without_the_folder(only, module):
    fields = dict(kind="installed", package="toy-package", folder=f"{module}/no_such_folder")
    only(asset_of(Path(__file__), sha256="", **fields))
    assert assets.state("toy") == "missing"
    with pytest.raises(assets.AssetError, match="asset 'toy'.*pip install .*toy-package"):
        assets.fetch("toy")
