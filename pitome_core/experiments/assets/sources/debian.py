"""Assets in a Debian package: apt-get downloads it, dpkg-deb lists its files; nothing is installed, no script runs."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import IO

from pitome_core.experiments.assets.sources import qt_resources
from pitome_core.experiments.assets.sources.common import Room, no_download, no_member, run, verify
from pitome_core.experiments.assets.table import Asset, AssetError

FILES_ZIP = "files.zip"  # all that is kept of a package


def fill(asset: Asset, to: Path, progress: bool) -> None:
    """Put the pictures and captions of the package into one zip archive in ``to``."""
    package = _download(asset, to.parent, progress)
    verify(asset, package, "the Debian mirror holds another file")
    command, failure = ["dpkg-deb", "--fsys-tarfile", str(package)], None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
        try:
            _keep(asset, unpacking.stdout, to / FILES_ZIP, Room(asset))
            while unpacking.stdout.read(1 << 20):  # what follows the tar archive; dpkg-deb would fail to write it
                pass
        except (tarfile.TarError, ValueError) as error:
            failure = error
    if unpacking.returncode > 0 or (unpacking.returncode and not failure):
        failure = f"dpkg-deb ended with exit status {unpacking.returncode}"
    if failure:
        raise AssetError(f"{asset.filename} cannot be unpacked ({failure}): fetch it again, or mend dpkg-deb")


def _keep(asset: Asset, stream: IO[bytes], to: Path, room: Room) -> None:
    """Write the pictures and captions of the tar archive in ``stream`` to the zip archive ``to``."""
    missing = set(asset.members)
    with tarfile.open(fileobj=stream, mode="r|") as tree, zipfile.ZipFile(to, "w") as archive:
        for entry in tree:
            before, _, name = entry.name.removeprefix("./").partition(f"{asset.folder}/")
            if before or not name or not entry.isfile():
                continue
            files: dict[str, bytes] = {}
            if name in missing:
                missing.remove(name)
                resources = room.read(tree.extractfile(entry))
                files = _pictures(resources, asset.members[name], name.removesuffix(".rcc"), room.bytes)
            elif not asset.members and name.endswith((".png", ".txt")):
                files = {name: room.read(tree.extractfile(entry))}
            room.take(sum(map(len, files.values())), len(files))
            for file, content in files.items():
                archive.writestr(zipfile.ZipInfo(file), content)
    if missing:
        raise no_member(asset, min(missing))


def _download(asset: Asset, folder: Path, progress: bool) -> Path:
    """The package as a file in ``folder``."""
    pin = f"{asset.package}={asset.version}"
    what, where = f"the Debian package {pin}", "apt-get can reach a mirror (after `apt-get update`)"
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise no_download(asset, what, f"there is no {tool} here", where)
    done = run(
        ["apt-get", "--quiet=1" if progress else "--quiet=2", "download", pin],
        cwd=folder,
        stdout=None if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    package = folder / asset.filename
    if done.returncode != 0 or not package.is_file():
        errors = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = errors[-1] if errors else f"apt-get ended with exit status {done.returncode}"
        raise no_download(asset, what, reason, where)
    return package


def _pictures(resources: bytes, folder: str, stem: str, most: int) -> dict[str, bytes]:
    """The WebP pictures below ``folder`` of a Qt resource file, and the README with their licences, as STEM/..."""
    return {
        f"{stem}/{path.removeprefix(f'{folder}/')}": content
        for path, content in qt_resources.read(resources, most).items()
        if path.startswith(f"{folder}/") and path.endswith((".webp", "/README"))
    }
