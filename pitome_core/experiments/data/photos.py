"""Photographs to measure on.

A few photographs are on the disk already, in installed packages. A hundred more, the collection, come with an optional
asset; ``collection.csv`` lists them.
"""

from __future__ import annotations

import csv
import functools
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

from pitome_core.experiments import assets
from pitome_core.experiments.data.splits import split_of


@dataclass(frozen=True)
class Photograph:
    """One picture inside an installed package.

    ``natural`` is a colour photograph of an everyday scene; the others (grey, textures, microscopy,
    medicine, astronomy) are far from what an image encoder is trained on. ``size`` is height, width in pixels.
    """

    name: str
    asset: str
    file: str
    size: tuple[int, int]
    shows: str
    credit: str
    natural: bool = True


# Credits as the docstrings of skimage.data and the README in sklearn.datasets.images state them. That README names
# danielbuechele for the flower too, but both its links lead to vultilion. The motorcycle is from the Middlebury 2014
# stereo benchmark (Scharstein et al., GCPR 2014). Its right view, the same scene, is left out.
SKIMAGE, SKLEARN = "photos-skimage", "photos-sklearn"
# fmt: off
PHOTOGRAPHS: dict[str, Photograph] = {photo.name: photo for photo in (
    Photograph("chelsea", SKIMAGE, "chelsea.png", (300, 451),
               "the face of a tabby cat", "Stefan van der Walt, CC0"),
    Photograph("astronaut", SKIMAGE, "astronaut.png", (512, 512),
               "the astronaut Eileen Collins before a flag", "NASA, public domain"),
    Photograph("coffee", SKIMAGE, "coffee.png", (400, 600),
               "a cup of coffee on a wooden table", "Rachel Michetti, CC0"),
    Photograph("rocket", SKIMAGE, "rocket.jpg", (427, 640),
               "a Falcon 9 between its towers at dusk", "SpaceX, public domain"),
    Photograph("motorcycle", SKIMAGE, "motorcycle_left.png", (500, 741),
               "a red motorcycle in a garage", "Middlebury 2014 stereo benchmark, no licence stated"),
    Photograph("china", SKLEARN, "china.jpg", (427, 640),
               "a pagoda above trees and a lake", "danielbuechele on Flickr, CC BY 2.0"),
    Photograph("flower", SKLEARN, "flower.jpg", (427, 640),
               "a dahlia against dark leaves", "vultilion on Flickr, CC BY 2.0"),
    Photograph("camera", SKIMAGE, "camera.png", (512, 512),
               "a man behind a film camera, grey", "Lav Varshney, CC0", natural=False),
    Photograph("coins", SKIMAGE, "coins.png", (303, 384),
               "rows of Greek coins, grey", "Brooklyn Museum, no known copyright restrictions", natural=False),
    Photograph("brick", SKIMAGE, "brick.png", (512, 512),
               "a brick wall, grey", "CC0Textures, CC0", natural=False),
    Photograph("grass", SKIMAGE, "grass.png", (512, 512),
               "grass, grey", "linolafett on DeviantArt, CC0", natural=False),
    Photograph("gravel", SKIMAGE, "gravel.png", (512, 512),
               "gravel, grey", "CC0Textures, CC0", natural=False),
    Photograph("retina", SKIMAGE, "retina.jpg", (1411, 1411),
               "the back of a human eye", "Mikael Häggström, CC0", natural=False),
    Photograph("tissue", SKIMAGE, "ihc.png", (512, 512),
               "stained glands under a microscope", "CMMI, no known copyright restrictions", natural=False),
    Photograph("hubble", SKIMAGE, "hubble_deep_field.jpg", (872, 1000),
               "the Hubble eXtreme Deep Field", "NASA, public domain", natural=False),
)}
# fmt: on


GCOMPRIS = "photos-gcompris"  # the asset of the collection
COLLECTION_SALT = "collection-1"  # of the split of identities


@dataclass(frozen=True)
class Collected:
    """One photograph of the collection. ``kind`` is ``animal`` or ``place``, ``size`` height, width in pixels.

    ``identity`` is what a split keeps together: two photographs of one kind of animal share it; no two files hold the
    same picture or crops of one. ``member`` is the path in the asset's zip, ``sha256`` the first 16 digits of that
    file's. ``author``, ``licence``, ``source`` and ``changes`` (what was done to it since) are as the README files in
    the package state them; its general copyright file does not.
    """

    name: str
    kind: str
    identity: str
    member: str
    size: tuple[int, int]
    author: str
    licence: str
    source: str
    changes: str
    sha256: str

    @property
    def credit(self) -> str:
        """Author and licence, as a figure that shows the photograph has to name them."""
        return f"{self.author}, {self.licence}" + (f" (changed: {self.changes})" if self.changes else "")

    @property
    def split(self) -> str:
        """``train``, ``dev`` or ``test``, from the identity alone."""
        return split_of(self.identity, COLLECTION_SALT)


@functools.cache
def _collection() -> dict[str, Collected]:
    with (resources.files(__package__) / "collection.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row | {"size": (int(row.pop("height")), int(row.pop("width")))} for row in csv.DictReader(stream)]
    return {row["name"]: Collected(**row) for row in rows}


def __getattr__(name: str) -> dict[str, Collected]:
    """``COLLECTION``, ``{name: Collected}``, is read when first asked for: most who import this need none of it."""
    if name == "COLLECTION":
        return _collection()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def collection_available() -> bool:
    """Whether the photographs of the collection are in the cache. Nothing is fetched."""
    return assets.state(GCOMPRIS) == "ready"


def collection(names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """``{name: (height, width, 3) uint8 RGB}`` of the collection in the order of ``names``; by default all 103.

    All of them take 360 MB. Fetches the optional asset where apt is at hand. Raises ``KeyError`` for a name that is not
    in the collection, ``assets.AssetError`` where the asset cannot be had.
    """
    chosen = list(_collection()) if names is None else _listed(names)
    if unknown := [name for name in chosen if name not in _collection()]:
        raise KeyError(f"no photograph {unknown[0]!r} in the collection; there are {', '.join(_collection())}")
    return {name: _read(name) for name in chosen}


def photographs(names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """``{name: (height, width, 3) uint8 RGB}`` in the order of ``names``; by default every natural photograph.

    Read from the installed scikit-image and scikit-learn, without a network; names of the collection from its asset,
    as `collection` does. Raises ``KeyError`` for an unknown name, ``assets.AssetError`` when the package or the file
    is not there.
    """
    chosen = [p.name for p in PHOTOGRAPHS.values() if p.natural] if names is None else _listed(names)
    return {name: _read(name) for name in chosen}


def _listed(names: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"names is the string {names!r}; pass a list: [{names!r}]")
    return list(names)


def _read(name: str) -> np.ndarray:
    if name not in PHOTOGRAPHS and name in _collection():
        with zipfile.ZipFile(assets.fetch(GCOMPRIS) / assets.FILES_ZIP) as archive:
            content = archive.read(_collection()[name].member)
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    if name not in PHOTOGRAPHS:
        raise KeyError(f"no photograph {name!r}; there are {', '.join(PHOTOGRAPHS)}, and those of photos.COLLECTION")
    photo = PHOTOGRAPHS[name]
    file = assets.fetch(photo.asset) / photo.file
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        package = assets.ASSETS[photo.asset].package
        raise assets.AssetError(
            f"the installed {package} has no {photo.file}: install the version in requirements.lock"
        ) from None


