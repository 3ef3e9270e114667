"""The store of assets: folders that appear whole, carry a manifest of their hashes, and are verified at every use."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pitome_core.experiments.assets import table
from pitome_core.experiments.assets.sources import FILL, installed
from pitome_core.experiments.assets.sources.common import sha256
from pitome_core.experiments.assets.table import Asset, AssetError

MANIFEST = "manifest.json"


def path(name: str) -> Path:
    """The folder where asset ``name`` belongs. Nothing is checked or fetched.

    Raises ``KeyError`` for an unknown name, ``AssetError`` for an asset of a package that is not installed.
    """
    asset = _asset(name)
    return installed.folder(asset) if asset.kind == "installed" else asset.cache_folder


def state(name: str) -> str:
    """``ready``, ``missing`` or ``damaged``. Nothing is written; files are hashed in full once per process."""
    asset = _asset(name)
    if asset.kind != "installed":
        return check(asset.cache_folder, asset.sha256, asset.manifest)
    try:
        return "ready" if installed.folder(asset).is_dir() else "missing"
    except AssetError:
        return "missing"


def fetch(name: str, *, progress: bool = False) -> Path:
    """The folder of asset ``name``; the asset is downloaded, verified and unpacked first if it is not ready.

    A ready asset is returned without a download and without a lock, so a filled cache works offline and read-only.
    ``progress`` shows the progress of the downloading tool. Raises ``KeyError`` for an unknown name and
    ``AssetError`` when the asset cannot be had.
    """
    asset = _asset(name)
    if asset.kind != "installed":
        return cached(
            asset.cache_folder, asset.sha256, lambda to: FILL[asset.kind](asset, to, progress), asset.manifest
        )
    folder = installed.folder(asset)
    if not folder.is_dir():
        raise AssetError(f"asset {name!r}: {folder} is not there; run pip install --force-reinstall {asset.package}")
    return folder


def cached(folder: Path, source: str, fill: Callable[[Path], None], pin: str = "") -> Path:
    """``folder``, filled once by ``fill(temporary_folder)`` and verified at every later call.

    ``source`` identifies what the files were made from; a folder made from something else counts as damaged.
    The folder appears with all its files or not at all, because it is filled beside its place and then renamed.
    A damaged folder is replaced. A file lock lets one process at a time fill the folder while the others wait.
    ``fill`` may put other files beside the temporary folder; they are deleted. ``pin`` is the hash that the manifest
    must have; without it, whoever can write the folder can put other files and a manifest of them there.
    Raises ``AssetError`` if the parent folder cannot be written, is full, or if the manifest is another.
    """
    if check(folder, source, pin) == "ready":
        return folder
    try:
        _fill(folder, source, fill, pin)
    except OSError as error:
        raise AssetError(
            f"the cache {folder.parent} cannot be written ({error.strerror or error}): make room, or set PITOME_CACHE "
            "to a folder that can be written"
        ) from error
    return folder


def _fill(folder: Path, source: str, fill: Callable[[Path], None], pin: str) -> None:
    """Fill the folder, unless another process has done so by the time that this one has the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if check(folder, source, pin) == "ready":
            return
        prefix = f".{folder.name}.tmp-"
        for left_over in folder.parent.glob(f"{prefix}*"):  # the rest of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            new = work / "new"
            new.mkdir()
            fill(new)
            inside = [file for file in sorted(new.rglob("*")) if file.is_file()]
            files = {
                file.relative_to(new).as_posix(): {"sha256": sha256(file), "size": file.stat().st_size}
                for file in inside
            }
            manifest = json.dumps({"source": source, "files": files}, indent=1, allow_nan=False)
            (new / MANIFEST).write_bytes(manifest.encode())  # not as text: its hash is the same on every system
            if pin and (actual := sha256(new / MANIFEST)) != pin:
                raise AssetError(
                    f"the files of {folder.name} have a manifest with sha256 {actual} where {pin} is pinned: the table "
                    "of assets is wrong, or was made by another way of unpacking"
                )
            if folder.exists():
                os.replace(folder, work / "damaged")
            os.replace(new, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


# folder -> (name, size, time of change) of its files when their hashes were last computed and were right.
_VERIFIED: dict[Path, list[tuple[str, int, int]]] = {}


def check(folder: Path, source: str, pin: str = "") -> str:
    """``ready``, ``missing`` or ``damaged``; ready: every file of the manifest is there with its size and hash.

    ``source`` and ``pin`` are what `cached` was given. The files are hashed again only where a size or a time of change
    is new, the manifest always. What cannot be read is damaged.
    """
    try:
        if not folder.is_dir():
            return "missing"
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["source"] != source or (pin and sha256(folder / MANIFEST) != pin):
            return "damaged"
        stamps = []
        for file, expected in sorted(manifest["files"].items()):
            stat = (folder / file).stat()
            if stat.st_size != expected["size"]:
                return "damaged"
            stamps.append((file, stat.st_size, stat.st_mtime_ns))
        if _VERIFIED.get(folder) != stamps:
            if any(sha256(folder / file) != expected["sha256"] for file, expected in manifest["files"].items()):
                return "damaged"
            _VERIFIED[folder] = stamps
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # unreadable file, or no manifest of ours
        return "damaged"
    return "ready"


def _asset(name: str) -> Asset:
    if name not in table.ASSETS:
        raise KeyError(f"no asset {name!r}; there are {', '.join(table.ASSETS)}")
    return table.ASSETS[name]
