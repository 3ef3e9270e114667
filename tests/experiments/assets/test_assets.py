"""Fetching, with a tiny wheel in a local folder and the real pip; nothing here needs a network."""

import dataclasses
import hashlib
import http.server
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from pitome_core.experiments import assets
from pitome_core.experiments.assets import qt_resources

ROOT = Path(__file__).parents[3]
CONTENT = {"toy/data/a.bin": b"first" * 1000, "toy/data/b.txt": b"second", "toy/__init__.py": b"raise SystemExit\n"}


def write_wheel(folder: Path, content=CONTENT) -> Path:
    file = folder / "pitome_toy_asset-1.0-py3-none-any.whl"
    info = {
        "pitome_toy_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: pitome-toy-asset\nVersion: 1.0\n",
        "pitome_toy_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "pitome_toy_asset-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**content, **info}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file


def toy_asset(wheel: Path, **changes) -> assets.Asset:
    fields = dict(
        name="toy",
        package="pitome-toy-asset",
        version="1.0",
        filename=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        licence="MIT",
        purpose="a toy",
        members={"toy/data/a.bin": "a.bin", "toy/data/b.txt": "b.txt"},
    )
    return assets.Asset(**{**fields, **changes})


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder that pip takes for the whole world, with the toy wheel in it."""
    folder = tmp_path_factory.mktemp("shop")
    write_wheel(folder)
    return folder


@pytest.fixture
def toy(shop, tmp_path, monkeypatch):
    """The toy as the only asset, an empty cache, and pip confined to the shop."""
    asset = toy_asset(next(shop.glob("*.whl")))
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    monkeypatch.setattr(assets, "_VERIFIED", {})
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    return asset


@pytest.fixture(scope="module")
def filled_cache(shop, tmp_path_factory):
    """A cache that was filled once by the real pip, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("filled")
        patch.setattr(assets, "ASSETS", {"toy": toy_asset(next(shop.glob("*.whl")))})
        patch.setattr(assets, "_VERIFIED", {})
        patch.setenv("PITOME_CACHE", str(cache))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(shop))
        assets.fetch("toy")
    return cache


@pytest.fixture
def warm(toy, filled_cache):
    """The folder of the fetched toy in a cache of its own."""
    shutil.copytree(filled_cache, assets.path("toy").parents[1])
    return assets.path("toy")


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr(assets.subprocess, "run", refuse)


def assert_right(folder: Path):
    assert {p.name for p in folder.iterdir()} == {"a.bin", "b.txt", assets.MANIFEST}
    assert (folder / "a.bin").read_bytes() == CONTENT["toy/data/a.bin"]
    assert (folder / "b.txt").read_bytes() == CONTENT["toy/data/b.txt"]


def test_fetch_unpacks_only_the_members_and_leaves_nothing_behind(toy, capfd):
    assert assets.state("toy") == "missing"
    folder = assets.fetch("toy")
    assert_right(folder)
    assert assets.state("toy") == "ready"
    assert folder == assets.path("toy")
    assert {p.name for p in folder.parent.iterdir()} - {".toy-1.0.lock"} == {"toy-1.0"}
    assert capfd.readouterr() == ("", "")  # the library is quiet


def test_warm_cache_needs_no_pip_and_no_write(warm, no_pip, monkeypatch):
    monkeypatch.setattr(assets, "FileLock", None)  # would fail if it were used
    assert_right(assets.fetch("toy"))


def damage_flip(folder):
    data = bytearray((folder / "a.bin").read_bytes())
    data[17] ^= 1  # the size stays
    (folder / "a.bin").write_bytes(data)


DAMAGES = {
    "flipped bit": damage_flip,
    "short file": lambda folder: os.truncate(folder / "a.bin", 100),
    "missing file": lambda folder: (folder / "b.txt").unlink(),
    "missing manifest": lambda folder: (folder / assets.MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / assets.MANIFEST, 40),
    "manifest of something else": lambda folder: (folder / assets.MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(warm, damage):
    assert assets.state("toy") == "ready"  # also when the files were hashed before in this process
    DAMAGES[damage](warm)
    assert assets.state("toy") == "damaged"


@pytest.mark.parametrize("damage", ["flipped bit", "missing manifest"])
def test_damage_is_mended(warm, damage):
    DAMAGES[damage](warm)
    assert_right(assets.fetch("toy"))
    assert assets.state("toy") == "ready"


def test_another_pin_makes_the_old_files_damaged(warm, toy, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy_asset(Path(__file__), filename=toy.filename)})
    assert assets.state("toy") == "damaged"


def test_left_overs_of_a_killed_fetch_are_swept(toy):
    dead = assets.path("toy").parent / ".toy-1.0.tmp-dead"
    dead.mkdir(parents=True)
    (dead / "half.whl").write_bytes(b"half")
    assert assets.state("toy") == "missing"
    assert_right(assets.fetch("toy"))
    assert not dead.exists()


def test_a_failed_fetch_leaves_nothing(toy, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy_asset(Path(__file__), filename=toy.filename)})
    with pytest.raises(assets.AssetError, match=assets.ASSETS["toy"].sha256):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"
    assert {p.name for p in assets.path("toy").parent.iterdir()} <= {".toy-1.0.lock"}


def test_the_wheel_is_hashed_by_us_too(toy, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    wheel = write_wheel(other, {"toy/data/a.bin": b"not what was pinned"})

    def careless_pip(command, **_):
        shutil.copytree(other, command[-1])
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(assets.subprocess, "run", careless_pip)
    with pytest.raises(assets.AssetError, match=f"{toy_asset(wheel).sha256} where {toy.sha256} is pinned"):
        assets.fetch("toy")


def test_a_wrong_table_is_named(toy, monkeypatch):
    wheel = Path(os.environ["PIP_FIND_LINKS"]) / toy.filename
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy_asset(wheel, members={"toy/data/c.bin": "c.bin"})})
    with pytest.raises(assets.AssetError, match="holds no toy/data/c.bin"):
        assets.fetch("toy")


def test_offline_and_cold_says_what_to_do_in_one_sentence(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in ("pitome-toy-asset==1.0", "python -m pitome_core.experiments.assets fetch toy", "PITOME_CACHE"):
        assert part in message
    assert "\n" not in message and ". " not in message


def test_a_cache_that_cannot_be_written_names_the_variable(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "file"))
    with pytest.raises(assets.AssetError, match="cannot be written.*PITOME_CACHE"):
        assets.fetch("toy")


def test_the_variable_moves_the_cache(warm, tmp_path, monkeypatch, no_pip):
    moved = tmp_path / "elsewhere"
    shutil.move(warm.parents[1], moved)
    assert assets.state("toy") == "missing"
    monkeypatch.setenv("PITOME_CACHE", str(moved))
    assert assets.fetch("toy") == moved / "assets" / "toy-1.0"


def test_two_processes_at_once_fetch_once(toy, tmp_path):
    log = tmp_path / "log"
    script = f"""
import time
from pitome_core.experiments import assets
assets.ASSETS = {{"toy": assets.{toy!r}}}
original = assets._download_and_unpack
def slow(*arguments):
    with open({str(log)!r}, "a") as stream: stream.write("x")
    original(*arguments)
    time.sleep(2)
assets._download_and_unpack = slow
print(assets.fetch("toy"))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [str(assets.path("toy"))] * 2
    assert log.read_text() == "x"
    assert_right(assets.path("toy"))


def test_a_wheel_of_many_files_is_kept_whole(toy, monkeypatch):
    wheel = Path(os.environ["PIP_FIND_LINKS"]) / toy.filename
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy_asset(wheel, members={})})
    folder = assets.fetch("toy")
    assert {p.name for p in folder.iterdir()} == {toy.filename, assets.MANIFEST}
    assert (folder / toy.filename).read_bytes() == wheel.read_bytes()


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """An optional asset in a Debian package, and stand-ins for the two tools: its package is a plain tar."""
    package = tmp_path / "toy-stamps_1.0_all.deb"
    with tarfile.open(package, "w") as tree:
        for name, content in {
            "a/cat.png": b"cat",
            "a/cat.txt": b"A cat.",
            "a/cat.ogg": b"mew",
            "../etc/x.txt": b"",
        }.items():
            entry = tarfile.TarInfo(f"./usr/share/toy/{name}")
            entry.size = len(content)
            tree.addfile(entry, io.BytesIO(content))
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool, script in {
        "apt-get": f'[ "$2 $3" = "download toy-stamps=1.0" ] || exit 9; exec {shutil.which("cp")} {package} .',
        "dpkg-deb": f'exec {shutil.which("cat")} "$2"',
    }.items():
        (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    asset = assets.Asset(
        name="stamps",
        package="toy-stamps",
        kind="debian",
        version="1.0",
        filename=package.name,
        sha256=hashlib.sha256(package.read_bytes()).hexdigest(),
        size=package.stat().st_size,
        licence="GPL-2",
        purpose="stamps",
        folder="usr/share/toy/a",
        optional=True,
    )
    monkeypatch.setattr(assets, "ASSETS", {"stamps": asset})
    return asset


def test_a_debian_package_becomes_one_zip_of_pictures_and_captions(debian):
    folder = assets.fetch("stamps")
    assert {p.name for p in folder.iterdir()} == {assets.FILES_ZIP, assets.MANIFEST}
    with zipfile.ZipFile(folder / assets.FILES_ZIP) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"cat.png": b"cat", "cat.txt": b"A cat."}
    assert assets.state("stamps") == "ready"
    assert {p.name for p in folder.parent.iterdir()} - {".stamps-1.0.lock"} == {"stamps-1.0"}


def test_pictures_inside_qt_resource_files(debian, tmp_path, monkeypatch):
    """Of one resource file that is asked for, the pictures in one folder and its README; nothing of the others."""
    files = {
        "app/quiz/README": b"licences",
        "app/quiz/far/cat.webp": b"cat",
        "app/quiz/cat.svg": b"drawn",
        "app/quizzes/dog.webp": b"dog",
    }
    package = tmp_path / debian.filename
    with tarfile.open(package, "w") as tree:
        for name, content in {"quiz.rcc": write_rcc(files), "other.rcc": b"no", "x.png": b"no"}.items():
            entry = tarfile.TarInfo(f"./usr/share/toy/a/{name}")
            entry.size = len(content)
            tree.addfile(entry, io.BytesIO(content))
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    change(monkeypatch, debian, sha256=sha256, members={"quiz.rcc": "app/quiz"})
    with zipfile.ZipFile(assets.fetch("stamps") / assets.FILES_ZIP) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {"quiz/README": b"licences", "quiz/far/cat.webp": b"cat"}
    shutil.rmtree(assets.path("stamps"))
    change(monkeypatch, debian, sha256=sha256, members={"quiz.rcc": "app/quiz", "none.rcc": "app"})
    with pytest.raises(assets.AssetError, match="holds no none.rcc: the table"):
        assets.fetch("stamps")
    assert assets.state("stamps") == "missing"


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_qt_resource_files(version, packed):
    files = {"a/b/é.txt": b"deep", "a/c": b"x" * 300, "d": b"", "e/f": b"last"}
    assert qt_resources.read(write_rcc(files, version, packed)) == files
    assert qt_resources.read(write_rcc({}, version)) == {}


def test_damaged_qt_resource_files():
    whole = write_rcc({"a/b": b"content", "c": b"more"}, version=1)  # later ones end in a time stamp, which is not read
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="no whole Qt resource file|not with b'qres'"):
            qt_resources.read(whole[:size])
    for wrong, words in {
        b"PK\3\4" + whole[4:]: "not with b'qres'",
        whole[:7] + b"\4" + whole[8:]: "a version from 1 to 3",
        write_rcc({"a": b""}, flags=4): "a is packed with zstd",
        write_rcc({"a": b"no zlib"}, flags=1): "no whole Qt resource file",
        write_rcc({"a": b""}, first_child=0): "node 0 is in the tree twice",
    }.items():
        with pytest.raises(ValueError, match=words):
            qt_resources.read(wrong)


def write_rcc(files, version: int = 3, packed: bool = False, flags: int | None = None, first_child: int = 1) -> bytes:
    """A Qt resource file. ``packed``: contents as zlib; ``flags``: a lie about the files; ``first_child``: of the root.

    The tables come in the order contents, names, tree, so that whatever is cut off at the end is missed.
    """
    root: dict = {}
    for path, content in files.items():
        *folders, name = path.split("/")
        folder = root
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[name] = content
    contents, names, nodes = b"", b"", []
    waiting = [("", root)]  # breadth first: the children of a folder follow one another
    given = 1
    for name, thing in waiting:
        name_at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(thing, dict):
            nodes.append((name_at, 2, len(thing), given if waiting[0][1] is not thing else first_child))
            waiting += thing.items()
            given += len(thing)
        else:
            nodes.append((name_at, int(packed) if flags is None else flags, 0, len(contents)))
            content = struct.pack(">I", len(thing)) + zlib.compress(thing) if packed else thing
            contents += struct.pack(">I", len(content)) + content
    tree = b"".join(struct.pack(">IHII", *node) + bytes(8 * (version > 1)) for node in nodes)
    start = 24
    tables = (start + len(contents) + len(names), start, start + len(contents))
    return b"qres" + struct.pack(">5I", version, *tables, 0) + contents + names + tree


def test_the_optional_is_fetched_by_name_only(debian, capfd):
    assert assets.main(["fetch"]) == 0
    assert "stamps: missing; optional" in capfd.readouterr().out and assets.state("stamps") == "missing"
    assert assets.main(["fetch", "stamps"]) == 0
    assert assets.state("stamps") == "ready"


def test_a_debian_package_that_cannot_be_had(debian, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", {"stamps": dataclasses.replace(debian, sha256="0" * 64)})
    with pytest.raises(assets.AssetError, match=f"sha256 {debian.sha256} where {'0' * 64} is pinned"):
        assets.fetch("stamps")
    monkeypatch.setattr(assets, "ASSETS", {"stamps": dataclasses.replace(debian, version="2.0")})
    with pytest.raises(assets.AssetError, match="toy-stamps=2.0, and apt-get could not download it .exit 9.*optional"):
        assets.fetch("stamps")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(assets.AssetError, match="no apt-get here: it is optional.*PITOME_CACHE"):
        assets.fetch("stamps")
    assert assets.state("stamps") == "missing"


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An optional asset in an npm package, and a stand-in for npm."""
    package = tmp_path / "toy-icons-1.0.0.tgz"
    with tarfile.open(package, "w:gz") as tree:
        for name in ("package/icons.json", "package/index.js"):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tree.addfile(entry, io.BytesIO(name.encode()))
    tools = tmp_path / "tools"
    tools.mkdir()
    script = (
        '[ "$*" = "pack --ignore-scripts @toy/icons@1.0.0" ] || '
        '{ echo "npm ERR! code E404 at https://user:secret@registry.invalid" >&2; exit 1; }; '
        f'exec {shutil.which("cp")} {package} .'
    )
    (tools / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    asset = assets.Asset(
        name="icons", package="@toy/icons", kind="npm", version="1.0.0", filename=package.name,
        sha256=hashlib.sha256(package.read_bytes()).hexdigest(), size=package.stat().st_size, licence="MIT",
        purpose="icons", members={"package/icons.json": "icons.json"}, optional=True,
    )
    monkeypatch.setattr(assets, "ASSETS", {"icons": asset})
    return asset


def test_the_members_of_an_npm_package(npm):
    folder = assets.fetch("icons")
    assert {p.name for p in folder.iterdir()} == {"icons.json", assets.MANIFEST}
    assert (folder / "icons.json").read_bytes() == b"package/icons.json" and assets.state("icons") == "ready"


def test_an_npm_package_that_cannot_be_had(npm, tmp_path, monkeypatch):
    wrong = {"sha256": "0" * 64}, {"version": "2.0.0"}, {"members": {"package/no.json": "no.json"}}
    words = (f"sha256 {npm.sha256} where {'0' * 64} is pinned", "@toy/icons@2.0.0, and npm could not .*E404.*optional",
             "holds no package/no.json")
    for change_, message in zip(wrong, words, strict=True):
        monkeypatch.setattr(assets, "ASSETS", {"icons": dataclasses.replace(npm, **change_)})
        with pytest.raises(assets.AssetError, match=message) as error:
            assets.fetch("icons")
        assert "secret" not in str(error.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(assets.AssetError, match="no npm here: it is optional.*PITOME_CACHE"):
        assets.fetch("icons")
    assert assets.state("icons") == "missing"


SENTENCES = {"data/good.txt": b"good\tfine\n" * 300, "data/raw/bad.txt": b"bad", "data/odd.txt": b"odd"}


@pytest.fixture
def sdist(tmp_path, monkeypatch):
    """A source archive with the data in a tar inside it, and a setup.py that must never run; pip sees one folder."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tree:
        for name, content in SENTENCES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tree.addfile(entry, io.BytesIO(content))
    places = tmp_path / "places"
    places.mkdir()
    file = places / "ToySentences-0.5.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ToySentences-0.5/setup.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
        archive.writestr("ToySentences-0.5/more/data.tar.gz", inner.getvalue())
    asset = assets.Asset(
        name="toy",
        package="ToySentences",
        kind="sdist",
        version="0.5",
        filename=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        size=file.stat().st_size,
        licence="MIT",
        purpose="a toy",
        inner="ToySentences-0.5/more/data.tar.gz",
        members={"data/good.txt": "good.txt", "data/raw/bad.txt": "bad.txt"},
    )
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # none of this machine's own
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'nowhere'} {places.as_uri()}")
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    monkeypatch.setattr(assets, "_VERIFIED", {})
    yield asset
    assert not (tmp_path / "ran").exists()


def assert_sentences(folder: Path):
    assert {p.name for p in folder.iterdir()} == {"good.txt", "bad.txt", assets.MANIFEST}
    assert (folder / "good.txt").read_bytes() == SENTENCES["data/good.txt"]
    assert (folder / "bad.txt").read_bytes() == SENTENCES["data/raw/bad.txt"]
    assert assets.state("toy") == "ready"
    assert {p.name for p in folder.parent.iterdir()} == {"toy-0.5", ".toy-0.5.lock"}


def change(monkeypatch, asset: assets.Asset, **fields) -> assets.Asset:
    changed = dataclasses.replace(asset, **fields)
    monkeypatch.setattr(assets, "ASSETS", {asset.name: changed})
    return changed


def test_a_source_archive_is_data(sdist, capfd, monkeypatch):
    assert_sentences(assets.fetch("toy"))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(assets, "_find_sdist", None)  # would fail if it were used
    assert_sentences(assets.fetch("toy"))


def test_a_source_archive_without_an_archive_inside(sdist, monkeypatch):
    change(monkeypatch, sdist, inner="", members={"ToySentences-0.5/more/data.tar.gz": "data.tar.gz"})
    with tarfile.open(assets.fetch("toy") / "data.tar.gz") as tree:
        assert tree.getnames() == list(SENTENCES)


@pytest.mark.parametrize(
    "fields, missing",
    [
        ({"members": {"data/good.txt": "good.txt", "data/none.txt": "none.txt"}}, "data/none.txt"),
        ({"members": {"data/raw": "raw"}}, "data/raw"),
        ({"inner": "ToySentences-0.5/less/data.tar.gz"}, "ToySentences-0.5/less/data.tar.gz"),
    ],
)
def test_a_wrong_table_of_a_source_archive_is_named(sdist, monkeypatch, fields, missing):
    change(monkeypatch, sdist, **fields)
    with pytest.raises(assets.AssetError, match=f"ToySentences-0.5.zip holds no {missing}: the table"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing" and not list(assets.path("toy").parent.glob(".toy-0.5.tmp-*"))


def test_a_source_archive_with_another_hash(sdist, monkeypatch):
    change(monkeypatch, sdist, sha256="0" * 64)
    with pytest.raises(assets.AssetError, match=f"has sha256 {sdist.sha256} where {'0' * 64} is pinned: run"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"


def test_a_source_archive_that_cannot_be_had(sdist, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in ("ToySentences-0.5.zip", "pip is told to use no index", "assets fetch toy", "PITOME_CACHE"):
        assert part in message
    assert "\n" not in message and ". " not in message


@pytest.fixture
def index(sdist, tmp_path, monkeypatch):
    """The archive on a package index of this machine's own, which pip is told to use; what was asked of it."""
    page = f'<!DOCTYPE html><a href="../../files/{sdist.filename}#sha256={sdist.sha256}">{sdist.filename}</a>'
    answers = {
        "/simple/toysentences/": ("text/html", page.encode()),
        f"/files/{sdist.filename}": ("application/zip", (tmp_path / "places" / sdist.filename).read_bytes()),
    }
    asked = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            kind, content = answers.get(self.path, ("text/plain", b"no such page"))
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://reader:secret@127.0.0.1:{server.server_port}/simple")
        yield asked
        server.shutdown()
        thread.join()


def test_a_source_archive_comes_from_the_index_of_pip(index, sdist):
    assert_sentences(assets.fetch("toy"))
    assert [path for path, _ in index] == ["/simple/toysentences/", f"/files/{sdist.filename}"]
    assert all(word == "Basic cmVhZGVyOnNlY3JldA==" for _, word in index)  # reader:secret


def test_a_second_index_is_asked_after_the_first(index, sdist, tmp_path, monkeypatch):
    good = os.environ["PIP_INDEX_URL"]
    monkeypatch.setenv("PIP_INDEX_URL", good.replace("/simple", "/nothing"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", good)
    assert_sentences(assets.fetch("toy"))
    folder = tmp_path / "folders" / "toysentences"  # an index may also be a folder of folders
    shutil.copytree(tmp_path / "places", folder)
    shutil.rmtree(assets.path("toy"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", folder.parent.as_uri())
    index.clear()
    assert_sentences(assets.fetch("toy"))
    assert not index


def test_an_index_that_has_not_got_it(index, sdist, monkeypatch):
    change(monkeypatch, sdist, filename="ToySentences-0.6.zip")
    with pytest.raises(assets.AssetError, match="an index has no ToySentences-0.6.zip"):
        assets.fetch("toy")
    change(monkeypatch, sdist, package="others")
    with pytest.raises(assets.AssetError, match="an index has no others"):
        assets.fetch("toy")
    monkeypatch.setenv("PIP_INDEX_URL", "http://reader:secret@127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(assets.AssetError, match="an index gave ConnectionError") as caught:
        assets.fetch("toy")
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "pypi_simple", None)
    with pytest.raises(assets.AssetError, match=r"pypi_simple is missing: pip install 'pitome-core\[experiments\]'"):
        assets.fetch("toy")


def test_unknown_names_are_refused(toy):
    for function in (assets.fetch, assets.state, assets.path):
        with pytest.raises(KeyError, match="no asset 'nothing'; there are toy"):
            function("nothing")


def test_a_package_that_is_not_installed(toy, monkeypatch):
    absent = assets.Asset(
        "absent", "pitome-no-such-package", "nothing", "MIT", kind="installed", folder="pitome_no_such_module/data"
    )
    monkeypatch.setattr(assets, "ASSETS", {"absent": absent})
    assert assets.state("absent") == "missing"
    with pytest.raises(assets.AssetError, match="pip install pitome-no-such-package"):
        assets.fetch("absent")


def test_command_line_lists_states(warm, capsys):
    assert assets.main([]) == 0
    header, row, *_, last = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "SIZE"]
    assert row.split()[:2] == ["toy", "ready"] and "pitome-toy-asset 1.0" in row and "MIT" in row and "a toy" in row
    assert str(warm.parents[1]) in last
    DAMAGES["flipped bit"](warm)
    assets.main(["list"])
    assert "damaged" in capsys.readouterr().out


def test_command_line_fetches(toy, tmp_path, monkeypatch, capfd):
    assert assets.main(["fetch"]) == 0
    assert "toy: missing; fetching pitome-toy-asset" in capfd.readouterr().out
    assert assets.main(["fetch", "toy"]) == 0
    assert capfd.readouterr().out == "toy: ready\n"
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cold"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert assets.main(["fetch"]) == 1
    assert "pitome-toy-asset==1.0" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        assets.main(["fetch", "nothing"])


def test_the_table_of_assets():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name and asset.licence and asset.purpose
        if asset.kind != "installed":
            assert len(asset.sha256) == 64 and asset.size > 0
            stem = {"debian": f"{asset.package}_", "npm": asset.package.strip("@").replace("/", "-") + "-"}.get(
                asset.kind, f"{asset.package.replace('-', '_')}-")
            assert asset.filename.startswith(stem + asset.version)
        else:
            assert assets.state(name) == "ready"


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "pitome_core.experiments.assets"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in assets.ASSETS)
