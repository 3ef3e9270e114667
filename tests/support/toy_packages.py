"""Small packages of every kind that the assets come in, and the entries of the table that describe them."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from pitome_core.experiments.assets.table import Asset


def asset_of(path: Path, **fields) -> Asset:
    """The entry of a package in a file: its name, hash and size, and made-up values for what ``fields`` leave out."""
    default = dict(name="toy", package="toy", kind="wheel", version="1.0", licence="MIT", purpose="a toy")
    file = dict(filename=path.name, size=path.stat().st_size)
    return Asset(**{**default, **file, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **fields})


def zip_of(file: Path, content: Mapping[str, bytes | str]) -> Path:
    """A zip archive of ``{name: content}``, with the same bytes at every call."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file


def tar_of(content: Mapping[str, bytes], mode: str = "w") -> bytes:
    """A tar archive of ``{name: content}``; mode ``w:gz`` compresses it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def wheel_of(folder: Path, content: Mapping[str, bytes]) -> Path:
    """A wheel that pip accepts as version 1.0 of ``pitome-toy-asset``."""
    metadata = {
        "METADATA": b"Metadata-Version: 2.1\nName: pitome-toy-asset\nVersion: 1.0\n",
        "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    metadata = {f"pitome_toy_asset-1.0.dist-info/{name}": data for name, data in metadata.items()}
    return zip_of(folder / "pitome_toy_asset-1.0-py3-none-any.whl", {**content, **metadata})


def qt_resources_of(
    files: Mapping[str, bytes], version: int = 3, packed: bool = False, flags: int | None = None, first_child: int = 1
) -> bytes:
    """A Qt resource file. ``packed``: contents as zlib. ``flags``, ``first_child`` of the root: wrong values to write.

    The tables come in the order contents, names, tree, so that whatever is cut off at the end is noticed.
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
    numbered = 1
    for name, node in waiting:
        name_at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(node, dict):
            nodes.append((name_at, 2, len(node), first_child if node is root else numbered))
            waiting += node.items()
            numbered += len(node)
        else:
            nodes.append((name_at, int(packed) if flags is None else flags, 0, len(contents)))
            content = struct.pack(">I", len(node)) + zlib.compress(node) if packed else node
            contents += struct.pack(">I", len(content)) + content
    tree = b"".join(struct.pack(">IHII", *node) + bytes(8 * (version > 1)) for node in nodes)
    start = 24
    tables = (start + len(contents) + len(names), start, start + len(contents))
    return b"qres" + struct.pack(">5I", version, *tables, 0) + contents + names + tree
