"""The files inside a resource file of Qt (``.rcc``), without Qt.

Qt's resource compiler writes three tables behind a header, all numbers big-endian: the tree of nodes, the names and the
contents. Node 0 is the root; the children of a folder follow one another. Layout of format versions 1 to 3, as written
by ``rcc --binary`` of Qt 4 to 6:

    header    "qres", version, offsets of tree, contents, names (32 bit each)
    node      offset of the name (32), flags (16); a folder: number of children, first child (32 each);
              a file: territory, language (16 each), offset of the content (32); from version 2 on a time stamp (64)
    name      length in UTF-16 units (16), hash (32), UTF-16
    content   length in bytes (32), bytes; compressed with zlib: the length before (32) comes first
"""

from __future__ import annotations

import struct
import zlib

ZLIB, FOLDER, ZSTD = 1, 2, 4  # flags of a node
NODE_SIZE = {1: 14, 2: 22, 3: 22}  # bytes, by format version


def read(resources: bytes, most: int = 1 << 30) -> dict[str, bytes]:
    """``{path without a leading slash: content}`` of a whole ``.rcc`` file, in the order of its tree.

    Raises ``ValueError`` for bytes that are no such file, are cut off, hold a loop, are packed with zstd, or hold
    contents of more than ``most`` bytes together.
    """
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4s4I", resources)
        if magic != b"qres" or version not in NODE_SIZE:
            raise ValueError(f"starts with {resources[:8]!r}, not with b'qres' and a version from 1 to 3")
        return _walk(resources, NODE_SIZE[version], tree, contents, names, most)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"no whole Qt resource file: {error}") from error


def _walk(resources: bytes, node_size: int, tree: int, contents: int, names: int, most: int) -> dict[str, bytes]:
    """The files of the tree. ``tree``, ``contents`` and ``names`` are the offsets of the three tables, in bytes."""
    files = {}
    visited = set()
    waiting = [(0, "")]  # node, the folder that it is in
    while waiting:
        node, folder = waiting.pop()
        if node in visited:  # a damaged file; its loop would be walked for ever
            raise ValueError(f"node {node} is in the tree twice")
        visited.add(node)
        name_at, flags, first, second = struct.unpack_from(">IHII", resources, tree + node * node_size)
        path = folder
        if node:  # the root has no name
            (units,) = struct.unpack_from(">H", resources, names + name_at)
            path += _part(resources, names + name_at + 6, 2 * units).decode("utf-16-be")
        if flags & FOLDER:  # `first` children from `second` on
            children = range(second, second + min(first, len(resources)))
            waiting += [(child, f"{path}/" if node else "") for child in reversed(children)]
        else:
            if flags & ZSTD:
                raise ValueError(f"{path} is packed with zstd, which is not read here")
            (size,) = struct.unpack_from(">I", resources, contents + second)
            content = _part(resources, contents + second + 4, size)
            files[path] = _inflated(content, most) if flags & ZLIB else content
            if (most := most - len(files[path])) < 0:
                raise ValueError(f"the contents up to {path} are {-most} bytes more than may be unpacked")
    return files


def _inflated(content: bytes, most: int) -> bytes:
    """Content packed with zlib, behind its length; at most one byte more than ``most``."""
    (size,) = struct.unpack_from(">I", content)
    inflated = zlib.decompressobj().decompress(content[4:], min(size, most) + 1)
    if len(inflated) != size and len(inflated) <= most:
        raise ValueError(f"no whole Qt resource file: a content of {size} bytes has {len(inflated)}")
    return inflated


def _part(resources: bytes, start: int, size: int) -> bytes:
    """``size`` bytes from ``start``; ``ValueError`` where the file ends before that."""
    if start + size > len(resources):
        raise ValueError(f"no whole Qt resource file: bytes {start} to {start + size} of {len(resources)} are missing")
    return resources[start : start + size]
