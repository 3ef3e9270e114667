"""Wheels, with a tiny one in a local folder and the real pip."""

import shutil
import subprocess

import pytest
from toy_packages import asset_of, wheel_of

from pitome_core.experiments import assets
from pitome_core.experiments.assets.sources import common

CONTENT = {"toy/data/a.bin": b"first" * 1000, "toy/data/b.txt": b"second", "toy/__init__.py": b"raise SystemExit\n"}
MEMBERS = {"toy/data/a.bin": "a.bin", "toy/data/b.txt": "b.txt"}


@pytest.fixture
def toy(only, pip_sees, tmp_path):
    """A wheel in a folder that is all that pip sees, as the only asset."""
    shop = tmp_path / "shop"
    shop.mkdir()
    wheel = wheel_of(shop, CONTENT)
    pip_sees(shop)
    return only(asset_of(wheel, package="pitome-toy-asset", members=MEMBERS))


def test_the_members_of_a_wheel(toy, capfd):
    folder = assets.fetch("toy")
    assert {p.name for p in folder.iterdir()} == {"a.bin", "b.txt", assets.MANIFEST}
    assert all((folder / file).read_bytes() == CONTENT[member] for member, file in MEMBERS.items())
    assert {p.name for p in folder.parent.iterdir()} - {".toy-1.0.lock"} == {"toy-1.0"}
    assert capfd.readouterr() == ("", "")


def test_a_wheel_of_many_files_is_kept_whole(toy, only, tmp_path):
    only(toy, members={})
    folder = assets.fetch("toy")
    assert {p.name for p in folder.iterdir()} == {toy.filename, assets.MANIFEST}
    assert (folder / toy.filename).read_bytes() == (tmp_path / "shop" / toy.filename).read_bytes()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sha256": "0" * 64}, f"does not have the pinned sha256 {'0' * 64}"),
        ({"members": {"toy/data/c.bin": "c.bin"}}, "holds no toy/data/c.bin: the table"),
        ({"filename": "other.whl"}, "pip downloaded another file than other.whl"),
    ],
)
def test_a_wrong_table_is_named(toy, only, changes, message):
    only(toy, **changes)
    with pytest.raises(assets.AssetError, match=message):
        assets.fetch("toy")
    assert assets.state("toy") == "missing"


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE"])
@pytest.mark.parametrize("changes, reason", [
    ({"sha256": "0" * 64}, r"\(the file that pip was given does not have the pinned sha256 0+\)"),
    ({"version": "7.0"}, r"\(No matching distribution found for pitome-toy-asset==7.0"),
])
def test_the_reason_of_pip_is_read_where_colours_are_asked_for(toy, only, monkeypatch, variable, changes, reason):
    """Jupyter sets such a variable for everything that a notebook starts."""
    monkeypatch.setenv(variable, "1")
    only(toy, **changes)
    with pytest.raises(assets.AssetError, match=reason) as error:
        assets.fetch("toy")
    assert "\x1b" not in str(error.value)


def test_no_more_is_unpacked_than_there_may_be(toy, monkeypatch):
    size = sum(len(CONTENT[member]) for member in MEMBERS)
    monkeypatch.setattr(common, "LARGEST", size)
    monkeypatch.setattr(common, "MOST_FILES", 2)
    assets.fetch("toy")
    shutil.rmtree(assets.path("toy"))
    for name, limit in (("LARGEST", size - 1), ("MOST_FILES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(common, name, limit)
            with pytest.raises(assets.AssetError, match=f"unpacks to more than .*{limit:,} (bytes|files)"):
                assets.fetch("toy")
        assert assets.state("toy") == "missing"


def test_a_damaged_archive_is_an_error_in_one_line(toy, only, tmp_path):
    """Its hash is the pinned one: whoever pinned it has not looked."""
    for content in (b"no archive", b"PK\5\6" + bytes(18)):
        wheel = tmp_path / "shop" / toy.filename
        wheel.write_bytes(content)
        with pytest.raises(assets.AssetError, match="cannot be unpacked|holds no"):
            common.unpack(asset_of(wheel, members=MEMBERS), wheel, tmp_path)


def test_the_wheel_is_hashed_by_us_too(toy, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    wheel = wheel_of(other, {"toy/data/a.bin": b"not what was pinned"})

    def careless_pip(command, **_):
        other.rename(command[-1])
        return subprocess.CompletedProcess(command, 0, stderr="")

    actual = asset_of(wheel).sha256
    monkeypatch.setattr(subprocess, "run", careless_pip)
    with pytest.raises(assets.AssetError, match=f"{actual} where {toy.sha256} is pinned.*pip cache purge"):
        assets.fetch("toy")


def test_offline_and_cold_says_what_to_do_in_one_sentence(toy, pip_sees, tmp_path):
    pip_sees(tmp_path)
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in ("pitome-toy-asset==1.0", "python -m pitome_core.experiments.assets fetch toy", "PITOME_CACHE"):
        assert part in message
    assert "\n" not in message and ". " not in message
