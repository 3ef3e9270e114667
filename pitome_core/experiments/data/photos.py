"""Photographs to measure on.

`PHOTOGRAPHS` are 15 photographs in installed packages. `COLLECTION` are 103 more, in an optional asset; the file
``collection.csv`` lists them.
"""

from __future__ import annotations

import csv
import functools
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from pitome_core.experiments import assets
from pitome_core.experiments.data.splits import check_split, split_of, unit


@dataclass(frozen=True)
class Photograph:
    """One photograph in an installed package.

    ``natural`` is True for a colour photograph of an everyday scene. The others (grey pictures, textures, microscopy,
    medicine, astronomy) differ much from what an image encoder is trained on. ``asset`` and ``file`` say where the
    photograph is, and ``size`` is its height and width in pixels.
    """

    name: str
    asset: str
    file: str
    size: tuple[int, int]
    shows: str
    credit: str
    natural: bool = True


# The credits are those in the docstrings of skimage.data and in the README of sklearn.datasets.images. That README also
# names danielbuechele for the flower, but both of its links lead to vultilion. The motorcycle is from the Middlebury
# 2014 stereo benchmark (Scharstein et al., GCPR 2014); the benchmark's right view is left out, because it shows the
# same scene.
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
NATURAL = tuple(photo.name for photo in PHOTOGRAPHS.values() if photo.natural)
LICENSED = tuple(name for name in NATURAL if name != "motorcycle")  # natural ones whose licence is known


GCOMPRIS = "photos-gcompris"  # the asset of the collection
COLLECTION_SALT = "collection-1"  # of the split of identities
HALVES_SALT = "law-1"  # of the split into halves, see `photographs_of`


@dataclass(frozen=True)
class CollectedPhotograph:
    """One photograph of the collection, as a row of ``collection.csv`` describes it.

    Attributes:
        name: what `photographs` calls it.
        kind: ``animal`` or ``place``.
        identity: what a split keeps together. Two photographs of one kind of animal have the same identity. No two
            files hold the same picture or parts of one picture.
        member: the path in the asset's zip file.
        size: height and width in pixels.
        author, licence, source, changes: as the README files in the package state them (the package's general
            copyright file does not). ``changes`` says how the photograph was changed after its publication.
        sha256: the first 16 digits of the file's SHA-256.
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
    def split(self) -> str:
        """``train``, ``dev`` or ``test``, from the identity alone."""
        return split_of(self.identity, COLLECTION_SALT)


def _read_collection() -> dict[str, CollectedPhotograph]:
    with (resources.files(__package__) / "collection.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row | {"size": (int(row.pop("height")), int(row.pop("width")))} for row in csv.DictReader(stream)]
    return {row["name"]: CollectedPhotograph(**row) for row in rows}


COLLECTION = _read_collection()


def photographs_of(split: str) -> list[str]:
    """The photographs of the collection behind the objects of a split: half of the identities for ``test``.

    Objects of ``train`` and ``dev`` have the photographs of the other half. With three parts the test set would have
    20 photographs, and photographs are what limits an interval. Raises ``ValueError`` for another split.
    """
    check_split(split)
    in_test = {photo.identity: unit(HALVES_SALT, photo.identity) >= 0.5 for photo in COLLECTION.values()}
    return [name for name, photo in COLLECTION.items() if in_test[photo.identity] == (split == "test")]


def photographs(names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """``{name: (height, width, 3) uint8 RGB}`` in the order of ``names``, from both tables; by default `NATURAL`.

    Photographs of `PHOTOGRAPHS` are read from the installed scikit-image and scikit-learn, without a network. Those of
    `COLLECTION` are read from its asset, which is fetched first where apt can be used; all 103 take 360 MB of memory.

    Raises ``KeyError`` for a name that is in neither table, ``TypeError`` for a string in place of a list, and
    ``assets.AssetError`` if the package, the file or the asset is missing.
    """
    if isinstance(names, str):
        raise TypeError(f"names is the string {names!r}; pass a list: [{names!r}]")
    return {name: _read(name) for name in (NATURAL if names is None else names)}


def part_of(name: str, size: int, share: float, across: float, down: float, mirrored: bool) -> Image.Image:
    """A square part of a photograph, resized to ``size`` x ``size`` pixels, as a background for objects.

    ``share`` is the side of the part over the shorter side of the photograph. ``across`` and ``down`` are its position
    from 0 (left, top) to 1 (right, bottom). Raises as `photographs` does.
    """
    photo = _small(name)
    side = share * min(photo.size)
    left, top = across * (photo.width - side), down * (photo.height - side)
    part = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part


@functools.cache
def _small(name: str) -> Image.Image:
    """A photograph whose shorter side has at most 448 pixels, because it stays in memory and a part needs no more."""
    photo = Image.fromarray(photographs([name])[name])
    scale = min(1.0, 448 / min(photo.size))
    return photo.resize([round(scale * side) for side in photo.size], Image.Resampling.BOX)


def _read(name: str) -> np.ndarray:
    if name in PHOTOGRAPHS:
        photo = PHOTOGRAPHS[name]
        file: Path | io.BytesIO = assets.fetch(photo.asset) / photo.file
    elif name in COLLECTION:
        with zipfile.ZipFile(assets.fetch(GCOMPRIS) / assets.FILES_ZIP) as archive:
            file = io.BytesIO(archive.read(COLLECTION[name].member))
    else:
        raise KeyError(f"no photograph {name!r}; there are {', '.join(PHOTOGRAPHS)}, and those of photos.COLLECTION")
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        package = assets.ASSETS[photo.asset].package
        raise assets.AssetError(
            f"the installed {package} has no {photo.file}: install the version in requirements.lock"
        ) from None
