"""Resource files of Qt, written by the helper and read back."""

import struct

import pytest
from toy_packages import qt_resources_of

from pitome_core.experiments.assets.sources import qt_resources


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_qt_resource_files(version, packed):
    files = {"a/b/é.txt": b"deep", "a/c": b"x" * 300, "d": b"", "e/f": b"last"}
    assert qt_resources.read(qt_resources_of(files, version, packed)) == files
    assert qt_resources.read(qt_resources_of({}, version)) == {}


def test_contents_that_lie_about_their_length():
    """A content that unpacks to more, or to less, than it says; and more than may be unpacked."""
    whole = qt_resources_of({"a": bytes(1000)}, packed=True)
    at = whole.index(struct.pack(">I", 1000))
    for size in (999, 1001, 0):
        with pytest.raises(ValueError, match=f"no whole Qt resource file: a content of {size} bytes has"):
            qt_resources.read(whole[:at] + struct.pack(">I", size) + whole[at + 4 :])
    assert qt_resources.read(whole, most=1000) == {"a": bytes(1000)}
    with pytest.raises(ValueError, match="contents up to a are 1 bytes more than may be unpacked"):
        qt_resources.read(whole, most=999)


def test_files_that_are_cut_off():
    # Version 1, because later versions end in a time stamp, which is not read.
    whole = qt_resources_of({"a/b": b"content", "c": b"more"}, version=1)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match="no whole Qt resource file|not with b'qres'"):
            qt_resources.read(whole[:size])


WHOLE = qt_resources_of({"a/b": b"content"})


@pytest.mark.parametrize(
    "resources, message",
    [
        (b"PK\3\4" + WHOLE[4:], "not with b'qres'"),
        (WHOLE[:7] + b"\4" + WHOLE[8:], "a version from 1 to 3"),
        (qt_resources_of({"a": b""}, flags=4), "a is packed with zstd"),
        (qt_resources_of({"a": b"no zlib"}, flags=1), "no whole Qt resource file"),
        (qt_resources_of({"a": b""}, first_child=0), "node 0 is in the tree twice"),
    ],
)
def test_damaged_files(resources, message):
    with pytest.raises(ValueError, match=message):
        qt_resources.read(resources)
