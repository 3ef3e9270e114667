"""Image-text pairs of the embedded tier: pictures with the texts that describe them, and their views.

An OpenMoji drawing has two or three texts: its name in em-keyboard's list, its name in Unicode's list if that differs,
and its keywords separated by commas. A Noto Emoji drawing shows the same emoji in another style and has the same texts.
A Tux Paint stamp has its caption. A text that several pictures share is a right answer for each of them. OpenMoji is
licensed under CC BY-SA 4.0, Noto Emoji under Apache-2.0. The stamps are licensed under GPL-2 and are for measuring
only.

A view is a picture of 224 x 224 pixels: the object on white, or on a part of a photograph. No photograph is in two
splits. Installed packages have few photographs: each split has two of the six natural ones with a known licence, and
train also has those that are not natural (textures, medicine, astronomy). The collection, an optional asset, has 65, 18
and 20 more. It is never replaced by other photographs: its backgrounds raise ``assets.AssetError`` where it cannot be
fetched.

All choices are hashes of the item, without a random generator. A view therefore does not depend on the other views.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, scenes, splits
from pitome_core.experiments.data.scenes import Cutout, Stamp

SOURCES = (*scenes.SOURCES, "noto")
SIDE = 224  # pixels
BACKGROUNDS = ("white", "photographs", "collection")
SALT = "retrieval-backgrounds-1"
CENTRED = 0.85  # size of an object on white, over the side of the view
SCALE = (0.6, 0.95)  # the same on photographs: smallest and largest
CROP = (0.5, 1.0)  # side of the part of a photograph behind an object, over the photograph's shorter side
_WORD = re.compile(r"[a-z]{2}")  # a keyword without two letters in a row is an emoticon, a number or a code


@dataclass(frozen=True)
class Pairs:
    """Pictures and texts of one split. ``answers[t]`` are the indices of the pictures that ``texts[t]`` describes."""

    things: tuple[Cutout, ...]
    texts: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.things)

    @functools.cached_property
    def captions(self) -> tuple[tuple[int, ...], ...]:
        """The indices of the texts of every picture: the inverse of ``answers``."""
        texts: list[list[int]] = [[] for _ in self.things]
        for text, row in enumerate(self.answers):
            for picture in row:
                texts[picture].append(text)
        return tuple(map(tuple, texts))


def pairs(split: str, source: str = "openmoji", count: int | None = None) -> Pairs:
    """The pictures of a split in the order of a hash, and each of their texts once.

    ``source`` is ``openmoji``, ``noto`` (the same emoji by other artists) or ``stamps``. ``count`` takes the first
    pictures alone, which are a sample of all kinds because of the hash. The split follows from the identity
    (`Cutout.split`). Raises ``ValueError`` for a split or source that does not exist, ``assets.AssetError`` where an
    asset cannot be fetched.
    """
    splits.check_split(split)
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; choose one of {', '.join(SOURCES)}")
    cutouts = {"openmoji": scenes.objects, "noto": scenes.noto, "stamps": scenes.stamps}[source]()
    things = sorted((c for c in cutouts if c.split == split), key=lambda c: splits.unit(SALT, "order", c.member))
    things = things[:count]
    answers: dict[str, list[int]] = {}
    for i, thing in enumerate(things):
        for text in texts_of(thing):
            answers.setdefault(text, []).append(i)
    return Pairs(tuple(things), tuple(answers), tuple(map(tuple, answers.values())))


def texts_of(thing: Cutout) -> tuple[str, ...]:
    """The texts of a picture, each once: names first, then the keywords as one text."""
    if isinstance(thing, Stamp):
        return (thing.name.lower(),)
    keyboard, unicode_names = _words()
    names = list(dict.fromkeys([thing.name, _plain(unicode_names[thing.code].lower())]))
    keywords = dict.fromkeys(_plain(word.lower()) for word in keyboard[thing.code][1:] if _WORD.search(word.lower()))
    joined = ", ".join(word for word in keywords if word not in names)
    return tuple(dict.fromkeys([*names, joined] if joined else names))


def backgrounds(split: str, collection: bool = False) -> tuple[str, ...]:
    """Names of the photographs behind the objects of a split: of the installed ones, or of the collection.

    No photograph is in two splits. No picture is read and no asset is needed. Raises ``ValueError`` for a split that
    does not exist.
    """
    splits.check_split(split)
    if collection:
        return tuple(name for name, photo in photos.COLLECTION.items() if photo.split == split)
    natural = sorted(photos.LICENSED, key=lambda name: splits.unit(SALT, name))
    share, place = len(natural) // len(splits.SPLITS), splits.SPLITS.index(split)
    others = [p.name for p in photos.PHOTOGRAPHS.values() if not p.natural] if split == "train" else []
    return (*natural[place * share : (place + 1) * share], *others)


def views(things: Sequence[Cutout], background: str, split: str = "", seed: int = 0) -> Iterator[np.ndarray]:
    """Yield a picture ``(224, 224, 3)`` uint8 of every object.

    ``background`` is ``white``, ``photographs`` (the installed ones) or ``collection``. On white, the object is centred
    and ``split`` and ``seed`` do not matter. On photographs, hashes of ``seed`` and the object choose one of the
    photographs of ``split``, the part of it that is visible, whether it is mirrored, and the object's size and place.

    Raises ``ValueError`` for a background that does not exist, else as `scenes.render` and `photos.photographs`.
    """
    for thing in things:
        name = photograph_of(thing, background, split, seed)
        yield _on_photograph(thing, name, seed) if name else _on_white(thing)


def photograph_of(thing: Cutout, background: str, split: str = "", seed: int = 0) -> str:
    """Name of the photograph behind an object in a view, empty on white. Arguments and errors as `views`; no asset."""
    if background not in BACKGROUNDS:
        raise ValueError(f"background is {background!r}; choose one of {', '.join(BACKGROUNDS)}")
    if background == "white":
        return ""
    names = backgrounds(split, background == "collection")
    return names[int(splits.unit(SALT, seed, thing.member, "photograph") * len(names))]


def _on_white(thing: Cutout) -> np.ndarray:
    drawing = scenes.trim(scenes.render(thing, round(CENTRED * SIDE)))  # (h, w, 4)
    h, w = drawing.shape[:2]
    return scenes.paste(np.full((SIDE, SIDE, 3), 255, np.uint8), drawing, (SIDE - h) // 2, (SIDE - w) // 2)


def _on_photograph(thing: Cutout, name: str, seed: int) -> np.ndarray:
    def unit(choice: str) -> float:
        return splits.unit(SALT, seed, thing.member, choice)

    def between(span: tuple[float, float], choice: str) -> float:
        return span[0] + (span[1] - span[0]) * unit(choice)

    background = photos.part_of(
        name, SIDE, between(CROP, "crop"), across=unit("left"), down=unit("top"), mirrored=unit("mirrored") < 0.5
    )
    drawing = scenes.trim(scenes.render(thing, round(between(SCALE, "scale") * SIDE)))  # (h, w, 4)
    top, left = scenes.corner(drawing, (SIDE, SIDE), unit("object top"), unit("object left"))
    return scenes.paste(np.asarray(background), drawing, top, left)


def _plain(words: str) -> str:
    return " ".join(words.replace("_", " ").replace("-", " ").split())


@functools.cache
def _words() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Of every emoji, by `Emoji.code`: em-keyboard's name with its keywords, and Unicode's name."""
    keyboard = json.loads((assets.fetch(scenes.NAMES) / "emojis.json").read_text(encoding="utf-8"))
    entries = json.loads((assets.fetch(scenes.GROUPS) / "emoji.json").read_text(encoding="utf-8"))
    names = {"".join(chr(int(code, 16)) for code in entry["unified"].split("-")): entry["name"] for entry in entries}
    by_code = [{scenes.code_of(emoji): value for emoji, value in table.items()} for table in (keyboard, names)]
    return by_code[0], by_code[1]
