"""How each kind of asset is fetched: one module for each kind.

``FILL[kind](asset, to, progress)`` puts the files of an asset into the empty folder ``to``. It may use the folder above
``to`` for what it downloads; the store deletes that one. It raises ``AssetError`` where the asset cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pitome_core.experiments.assets.sources import debian, npm, sdist, wheel
from pitome_core.experiments.assets.table import Asset

FILL: dict[str, Callable[[Asset, Path, bool], None]] = {
    "wheel": wheel.fill,
    "sdist": sdist.fill,
    "debian": debian.fill,
    "npm": npm.fill,
}
