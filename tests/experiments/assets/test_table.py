"""The table: what it must hold, and that a wrong entry is named."""

import pytest

from pitome_core.experiments import assets
from pitome_core.experiments.assets import table

ENTRY = f"""
[toy]
package = "toy"
kind = "wheel"
version = "1.0"
filename = "toy-1.0.whl"
sha256 = "{'0' * 64}"
size = 1_000
licence = "MIT"
purpose = "a toy"
"""
DEBIAN = ENTRY.replace('"wheel"', '"debian"')
INSTALLED = '[toy]\npackage = "toy"\nkind = "installed"\nlicence = "MIT"\npurpose = "a toy"\n'


def test_the_assets():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name
        if asset.kind == "installed":
            assert assets.state(name) == "ready"
            continue
        assert asset.manifest, "a fetch with a made-up manifest names the right one"
        stems = {"debian": f"{asset.package}_", "npm": asset.package.strip("@").replace("/", "-") + "-"}
        stem = stems.get(asset.kind, f"{asset.package.replace('-', '_')}-")
        assert asset.filename.startswith(stem + asset.version)


def test_an_entry_is_an_asset():
    toy = table.read(ENTRY + 'members = {"toy/a.bin" = "a.bin"}')["toy"]
    assert (toy.name, toy.size, toy.members, toy.optional) == ("toy", 1000, {"toy/a.bin": "a.bin"}, False)
    assert table.read(INSTALLED + 'folder = "toy/data"')["toy"].folder == "toy/data"


@pytest.mark.parametrize(
    "text, message",
    [
        (ENTRY + 'hash = "0"', "asset 'toy': no field is called 'hash'"),
        (ENTRY + 'name = "other"', "asset 'toy': no field is called 'name'"),
        (ENTRY.replace("wheel", "weel"), "asset 'toy': field 'kind' is 'weel'; choose one of wheel, "),
        (ENTRY.replace('kind = "wheel"', ""), "asset 'toy': field 'kind' is ''"),
        (ENTRY.replace('licence = "MIT"', ""), "asset 'toy': field 'licence' is missing"),
        (ENTRY.replace("sha256", "#"), "asset 'toy': field 'sha256' is missing; an asset of kind 'wheel' needs it"),
        (ENTRY.replace("0" * 64, "0" * 63), "asset 'toy': field 'sha256' is '0+'; 64 digits"),
        (ENTRY + 'manifest = "f"', "asset 'toy': field 'manifest' is 'f'; 64 digits"),
        (ENTRY.replace("1_000", '"1000"'), "asset 'toy': field 'size' is '1000' of type str; int is needed"),
        (ENTRY + "optional = 1", "asset 'toy': field 'optional' is 1 of type int; bool is needed"),
        (ENTRY + 'members = ["a"]', "asset 'toy': field 'members' is .'a'. of type list; Mapping"),
        (DEBIAN, "asset 'toy': field 'folder' is missing; an asset of kind 'debian' needs it"),
        (ENTRY.replace("wheel", "npm"), "asset 'toy': field 'members' is missing; an asset of kind 'npm' needs it"),
        (INSTALLED, "asset 'toy': field 'folder' is missing"),
        ("toy = 1", "asset 'toy' is 1; write it as a table"),
    ],
)
def test_a_wrong_entry_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        table.read(text)
