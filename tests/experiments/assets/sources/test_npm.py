"""npm packages, with a stand-in for npm."""

import shutil

import pytest
from toy_packages import asset_of, tar_of

from pitome_core.experiments import assets


@pytest.fixture
def icons(only, tools, tmp_path):
    package = tmp_path / "toy-icons-1.0.0.tgz"
    package.write_bytes(tar_of({"package/icons.json": b"icons", "package/index.js": b"code"}, "w:gz"))
    tools(npm=(
        '[ "$*" = "pack --ignore-scripts @toy/icons@1.0.0" ] || '
        '{ echo "npm ERR! code E404 at https://user:secret@registry.invalid" >&2; exit 1; }; '
        f'exec {shutil.which("cp")} {package} .'
    ))
    members = {"package/icons.json": "icons.json"}
    fields = dict(package="@toy/icons", kind="npm", version="1.0.0", members=members, optional=True)
    return only(asset_of(package, **fields))


def test_the_members_of_an_npm_package(icons):
    folder = assets.fetch("toy")
    assert {p.name for p in folder.iterdir()} == {"icons.json", assets.MANIFEST}
    assert (folder / "icons.json").read_bytes() == b"icons" and assets.state("toy") == "ready"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sha256": "0" * 64}, f"sha256 [0-9a-f]* where {'0' * 64} is pinned"),
        ({"version": "2.0.0"}, "npm package @toy/icons@2.0.0 could not .*E404.*optional.*PITOME_CACHE"),
        ({"members": {"package/no.json": "no.json"}}, "holds no package/no.json: the table"),
    ],
)
def test_one_that_cannot_be_had(icons, only, changes, message):
    only(icons, **changes)
    with pytest.raises(assets.AssetError, match=message) as error:
        assets.fetch("toy")
    assert "secret" not in str(error.value)
    assert assets.state("toy") == "missing"


def test_colours_do_not_hide_the_reason(icons, only, tools, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    tools(npm="printf 'npm \\033[31merror\\033[39m code \\033[1mE404\\033[0m\\n' >&2; exit 1")
    with pytest.raises(assets.AssetError, match="npm gave E404"):
        assets.fetch("toy")


def test_without_npm(icons, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(assets.AssetError, match="no npm here.*it is optional.*PITOME_CACHE"):
        assets.fetch("toy")
