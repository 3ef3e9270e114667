"""Debian packages, with stand-ins for apt-get and dpkg-deb; the package is a plain tar archive."""

import os
import shutil
import zipfile

import pytest
from toy_packages import asset_of, qt_resources_of, tar_of

from pitome_core.experiments import assets
from pitome_core.experiments.assets.sources import common

STAMPS = {"a/cat.png": b"cat", "a/cat.txt": b"A cat.", "a/cat.ogg": b"mew", "../etc/x.txt": b""}


@pytest.fixture
def package(tmp_path):
    package = tmp_path / "toy-stamps_1.0_all.deb"
    package.write_bytes(tar_of({f"./usr/share/toy/{name}": content for name, content in STAMPS.items()}))
    return package


@pytest.fixture
def stamps(only, tools, package):
    tools(
        apt_get=f'[ "$2 $3" = "download toy-stamps=1.0" ] || exit 9; exec {shutil.which("cp")} {package} .',
        dpkg_deb=f'exec {shutil.which("cat")} "$2"',
    )
    return only(asset_of(package, package="toy-stamps", kind="debian", folder="usr/share/toy/a", optional=True))


def kept() -> dict[str, bytes]:
    with zipfile.ZipFile(assets.fetch("toy") / assets.FILES_ZIP) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_debian_package_becomes_one_zip_of_pictures_and_captions(stamps):
    assert kept() == {"cat.png": b"cat", "cat.txt": b"A cat."}
    folder = assets.path("toy")
    assert {p.name for p in folder.iterdir()} == {assets.FILES_ZIP, assets.MANIFEST}
    assert assets.state("toy") == "ready"
    assert {p.name for p in folder.parent.iterdir()} - {".toy-1.0.lock"} == {"toy-1.0"}


def test_pictures_inside_qt_resource_files(stamps, package, only):
    """Of one resource file that is asked for, the pictures in one folder and its README; nothing of the others."""
    files = {
        "app/quiz/README": b"licences",
        "app/quiz/far/cat.webp": b"cat",
        "app/quiz/cat.svg": b"drawn",
        "app/quizzes/dog.webp": b"dog",
    }
    content = {"quiz.rcc": qt_resources_of(files), "other.rcc": b"no", "x.png": b"no"}
    package.write_bytes(tar_of({f"./usr/share/toy/a/{name}": data for name, data in content.items()}))
    asset = only(stamps, sha256=asset_of(package).sha256, members={"quiz.rcc": "app/quiz"})
    assert kept() == {"quiz/README": b"licences", "quiz/far/cat.webp": b"cat"}
    shutil.rmtree(assets.path("toy"))
    only(asset, members={"quiz.rcc": "app/quiz", "none.rcc": "app"})
    with pytest.raises(assets.AssetError, match="holds no none.rcc: the table"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"


@pytest.mark.parametrize("script, reason", [
    ('cat "$2"; exit 2', "dpkg-deb ended with exit status 2"),
    ("head -c 1024 \"$2\"; exit 2", "dpkg-deb ended with exit status 2"),  # up to the end of a file: a whole archive
    ("exit 2", "dpkg-deb ended with exit status 2"),
    ('head -c 700 "$2"', "unexpected end of data"),
    ("exit 0", "empty file"),
    ('cat "$2"; kill -9 $$', "dpkg-deb ended with exit status -9"),
])
def test_a_package_that_is_unpacked_in_part_is_not_accepted(stamps, tools, package, script, reason):
    for tool in ("cat", "head"):
        script = script.replace(f"{tool} ", f"{shutil.which(tool, path=os.defpath)} ")
    tools(dpkg_deb=script)
    with pytest.raises(assets.AssetError, match=f"{package.name} cannot be unpacked .{reason}.: fetch it again"):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"


def test_what_follows_the_archive_ends_nothing(stamps, tools):
    """dpkg-deb writes more than the archive needs; it may write it to its end."""
    cat, head = (shutil.which(tool, path=os.defpath) for tool in ("cat", "head"))
    tools(dpkg_deb=f'set -e; {cat} "$2"; {head} -c 3000000 /dev/zero')
    assert set(kept()) == {"cat.png", "cat.txt"}


def test_no_more_is_unpacked_than_there_may_be(stamps, package, only, monkeypatch):
    for name, limit in (("LARGEST", 8), ("MOST_FILES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(common, name, limit)
            with pytest.raises(assets.AssetError, match=f"unpacks to more than .*{limit:,} (bytes|files)"):
                assets.fetch("toy")
    resources = qt_resources_of({"app/a.webp": bytes(100_000)}, packed=True)
    package.write_bytes(tar_of({"./usr/share/toy/a/quiz.rcc": resources}))
    only(stamps, sha256=asset_of(package).sha256, members={"quiz.rcc": "app"})
    with monkeypatch.context() as patch:
        patch.setattr(common, "LARGEST", 99_999)
        with pytest.raises(assets.AssetError, match="contents up to app/a.webp are 1 bytes more than may be unpacked"):
            assets.fetch("toy")
    assert list(kept()) == ["quiz/a.webp"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sha256": "0" * 64}, f"sha256 [0-9a-f]* where {'0' * 64} is pinned"),
        ({"version": "2.0"}, "Debian package toy-stamps=2.0 could not be .*status 9.*optional.*PITOME_CACHE"),
    ],
)
def test_one_that_cannot_be_had(stamps, only, changes, message):
    only(stamps, **changes)
    with pytest.raises(assets.AssetError, match=message):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"


def test_without_apt(stamps, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(assets.AssetError, match="no apt-get here.*it is optional.*PITOME_CACHE"):
        assets.fetch("toy")
