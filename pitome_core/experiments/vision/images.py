"""Labelled sets of images for classification: a folder with a folder for each class, or a data set of the hub."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pitome_core.experiments.runs.shards import Refused


@dataclass(frozen=True)
class Images:
    """A labelled set of images in fixed order, behind one of timm's readers.

    ``targets (images,)`` are class indices; ``classes`` is how many classes a model must have; ``digest`` identifies
    the ordered list of names and classes (12 hexadecimal digits of a SHA-256).
    """

    name: str
    reader: Any
    targets: np.ndarray
    classes: int
    digest: str

    def filename(self, index: int) -> str:
        """How messages and records call an image: its path below the folder, or its name in the hub data set."""
        try:
            name = self.reader.filename(index)
        except Exception:  # what is wrong with a row of a hub data set may be its name
            name = None
        return Path(name).as_posix() if name else f"{self.name}[{index}]"


def load_images(where: str | None, class_map: Path | None = None) -> Images:
    """The images of a folder with one folder per class, or of ``hub:NAME[:SPLIT]``, through timm's readers.

    Classes are numbered in the order of their sorted folder names, which for the 1000 WordNet ids is ImageNet's order,
    or as in `class_map` (timm's format: a text file with one class per line).

    Raises:
        Refused: no such folder, no images in it, classes that the map lacks, a data set without labels.
    """
    if not where:
        raise Refused("no data: pass --data FOLDER (one folder of images per class) or --data hub:NAME[:SPLIT]")
    if class_map is not None and not class_map.is_file():
        raise Refused(f"no class map {class_map}: pass a text file with one class per line, in the model's order")
    kind, _, rest = where.partition(":")
    if kind == "hub":
        name, _, split = rest.partition(":")
        reader = _hub_reader(name, split or "validation", class_map)
        targets, names = list(reader.iter_targets()), itertools.repeat(f"{name}:{split or 'validation'}")
        if any(target is None or target < 0 for target in targets):
            raise Refused(f"{where} has images without a label: choose another split, e.g. hub:{name}:validation")
    else:
        name, reader = Path(where).resolve().name, _folder_reader(Path(where), class_map)
        names, targets = reader.filenames(), [target for _, target in reader.samples]
    if not targets:
        raise Refused(f"no images in {where}: nothing to score")
    digest = hashlib.sha256()
    for file, target in zip(names, targets, strict=False):
        digest.update(f"{Path(file).as_posix()}\t{target}\n".encode())
    classes = len(reader.class_to_idx or ()) or max(targets) + 1
    return Images(name, reader, np.asarray(targets, dtype=np.int64), classes, digest.hexdigest()[:12])


def _folder_reader(folder: Path, class_map: Path | None) -> Any:
    from timm.data.readers import create_reader
    from timm.data.readers.img_extensions import get_img_extensions
    from timm.data.readers.reader_image_folder import find_images_and_targets

    if not folder.is_dir():
        raise Refused(f"no folder {folder}: pass one with a folder of images per class, or hub:NAME[:SPLIT]")
    # timm's reader leaves out images whose class the map lacks, and says nothing of it. So the classes are read here.
    classes = find_images_and_targets(str(folder), sort=False)[1]
    if not classes or "" in classes:
        raise Refused(
            f"0 images ({', '.join(get_img_extensions())}) in the folders below {folder}: --data needs one folder of "
            "images per class, as in val/n01440764/ILSVRC2012_val_00000293.JPEG"
        )
    reader = create_reader("", root=str(folder), class_map=_absolute(class_map))
    if unknown := sorted(set(classes) - set(reader.class_to_idx)):
        raise Refused(f"{len(unknown)} of {len(classes)} folders are not in {class_map}, such as {unknown[0]}: add "
                      "them")
    return reader


def _absolute(file: Path | None) -> str | None:
    return None if file is None else str(file.resolve())


def _hub_reader(name: str, split: str, class_map: Path | None) -> Any:
    from timm.data.readers import create_reader

    try:
        import datasets  # noqa: F401
    except ImportError:
        raise Refused("data sets of the hub need the library of that name: pip install datasets") from None
    try:
        return create_reader(f"hfds/{name}", split=split, class_map=_absolute(class_map))
    except Exception as error:  # whatever a network, a hub or a gated data set answers
        raise Refused(
            f"hub:{name}:{split} could not be loaded ({type(error).__name__}: {error}): check name, split, network and "
            "access rights, or pass a folder"
        ) from error
