"""Assets that are part of an installed package. They are located, not fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pitome_core.experiments.assets.table import Asset, AssetError


def folder(asset: Asset) -> Path:
    """The folder of ``asset`` in its package; it may not exist. Raises ``AssetError`` where the package is absent."""
    module, _, subfolder = asset.folder.partition("/")
    # find_spec locates a top-level package without importing it, because importing scikit-learn takes a second.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise AssetError(
            f"asset {asset.name!r} is part of {asset.package}, which is not installed: pip install {asset.package}"
        )
    return Path(spec.submodule_search_locations[0]) / subfolder
