"""Galleries of pictures with captions: Karpathy's files of Flickr30k and MS-COCO, and COCO's own format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pitome_core.experiments.runs.shards import Refused

PER_IMAGE = 5  # captions of an image
LARGEST = 5000  # images; of a larger file in COCO's own format, the user says which of them are the test split


@dataclass(frozen=True)
class Captions:
    """A gallery: ``files`` are the pictures, ``texts`` the captions, five after the other for each picture.

    ``left_out`` counts captions beyond the first five; ``digest`` identifies names and texts in their order.
    """

    name: str
    files: tuple[Path, ...]
    texts: tuple[str, ...]
    left_out: int
    digest: str

    @property
    def answers(self) -> list[list[int]]:
        """For every text the picture that it describes, as `recall.both_ways` takes it."""
        return [[text // PER_IMAGE] for text in range(len(self.texts))]


def load_captions(
    kind: str, annotations: Path | None, images: Path | None, only: Path | None = None
) -> Captions:
    """The gallery that a file of captions describes.

    Raises:
        Refused: no file or folder, no JSON, another data set, a missing picture, a wrong number of captions, an empty
            one. It names the file and the entry.
    """
    if annotations is None or images is None:
        raise Refused("no data: pass --annotations FILE and --images FOLDER")
    if not annotations.is_file():
        raise Refused(f"no file {annotations}: pass dataset_{kind}.json of Karpathy, or captions in COCO's format")
    if not images.is_dir():
        raise Refused(f"no folder {images}: pass the one that holds the pictures")
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except ValueError as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(f"{annotations.name}{line}: no JSON ({error}): fetch the file again") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise Refused(f"{annotations.name} has no list of images: it is neither Karpathy's format nor COCO's")
    try:
        entries = list(_coco(content, annotations.name, only) if "annotations" in content
                       else _karpathy(content, annotations.name, kind, only))
    except (KeyError, TypeError) as error:
        raise Refused(f"{annotations.name} is neither Karpathy's format nor COCO's ({error!r})") from None
    return _checked(kind, entries, annotations.name, images)


class GalleryEntry(NamedTuple):
    """One picture of a file of captions: where it stands there, its path, its captions and where each of them stands.
    """

    entry: str
    path: str
    captions: list[str]
    places: list[str]


def _karpathy(content: dict, file: str, kind: str, only: Path | None) -> Iterator[GalleryEntry]:
    if only is not None:
        raise Refused(f"--only is for captions in COCO's format; {file} has a test split of its own")
    if content.get("dataset", kind) != kind:
        raise Refused(f"{file} is of {content['dataset']}: pass --data {content['dataset']}")
    for i, entry in enumerate(content["images"]):
        if entry["split"] == "test":
            path = "/".join(part for part in (entry.get("filepath"), entry["filename"]) if part)
            places = [f"sentences[{j}]" for j in range(len(entry["sentences"]))]
            yield GalleryEntry(f"images[{i}]", path, [sentence["raw"] for sentence in entry["sentences"]], places)


def _coco(content: dict, file: str, only: Path | None) -> Iterator[GalleryEntry]:
    names = {entry["id"]: entry["file_name"] for entry in content["images"]}
    captions: dict[Any, list[tuple[int, str, str]]] = {number: [] for number in names}
    for i, entry in enumerate(content["annotations"]):
        if entry["image_id"] not in captions:
            raise Refused(f"{file}: annotations[{i}] is of image {entry['image_id']}, which images does not list")
        captions[entry["image_id"]].append((entry["id"], entry["caption"], f"annotations[{i}]"))
    chosen = set(names.values())
    if only is not None:
        chosen = set(_listed(only, chosen, file))
    elif len(names) > LARGEST:
        raise Refused(f"{file} has {len(names)} images: pass --only FILE with the names of the {LARGEST} of the test "
                      "split, one per line, or Karpathy's dataset_coco.json")
    for i, entry in enumerate(content["images"]):
        if entry["file_name"] in chosen:
            rows = sorted(captions[entry["id"]], key=lambda row: row[0])
            texts, places = [row[1] for row in rows], [row[2] for row in rows]
            yield GalleryEntry(f"images[{i}]", entry["file_name"], texts, places)


def _listed(only: Path, known: set[str], file: str) -> Iterator[str]:
    if not only.is_file():
        raise Refused(f"no file {only}: pass names of pictures, one per line")
    for number, line in enumerate(only.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if line.strip() not in known:
            raise Refused(f"{only.name} line {number}: {line.strip()!r} is no file_name in {file}")
        yield line.strip()


def _checked(kind: str, entries: Sequence[GalleryEntry], file: str, images: Path) -> Captions:
    if not entries:
        raise Refused(f"{file} has no image of the test split: nothing to score")
    files: dict[Path, str] = {}
    texts: list[str] = []
    left_out, digest = 0, hashlib.sha256()
    for entry, path, captions, places in entries:
        where = f"{file}: {entry} ({path})"
        exact = kind == "flickr30k"
        if len(captions) < PER_IMAGE or (exact and len(captions) > PER_IMAGE):
            raise Refused(f"{where} has {len(captions)} captions, {kind} has {PER_IMAGE} of every image"
                          f"{'' if exact else ' at least'}: mend the entry")
        left_out += len(captions) - PER_IMAGE
        for caption, place in zip(captions[:PER_IMAGE], places, strict=False):
            if not isinstance(caption, str) or not caption.strip():
                raise Refused(f"{where}: {place} is an empty caption: mend the entry")
            texts.append(" ".join(caption.split()))
        picture = next((p for p in (images / path, images / Path(path).name) if p.is_file()), None)
        if picture is None:
            raise Refused(f"{where}: no such picture in {images}: fetch it, or pass the folder that holds it")
        if picture in files:
            raise Refused(f"{where} has the picture of {files[picture]}: an image has one entry")
        files[picture] = entry
        digest.update("\n".join([path, *texts[-PER_IMAGE:], ""]).encode())
    return Captions(kind, tuple(files), tuple(texts), left_out, digest.hexdigest()[:12])
