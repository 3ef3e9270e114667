"""Image-text pairs of the embedded tier: pictures with the texts that describe them, and their views.

An OpenMoji drawing has two or three texts: its names in two lists (em-keyboard's, and Unicode's where it says something
else) and its keywords in a row. Noto Emoji draws the same emoji in another style, and has the same texts. A Tux Paint
stamp has its caption. A text that several pictures share is right for each of them. OpenMoji is CC BY-SA 4.0
(`scenes.CREDIT`), Noto Emoji Apache-2.0; stamps are GPL-2 and for measuring only.

A view is a picture of 224 x 224 pixels: the object on white, or on a part of a photograph. Photographs of train, dev
and test are not the same ones. Those in installed packages are few: of the six natural ones with a licence each side
has two, and train also has the others (textures, medicine, astronomy). The collection, an optional asset, gives 65, 18
and 20 more; nothing here fetches it or falls back on it by itself: who asks for its backgrounds without having it gets
``assets.AssetError``.

Everything is chosen by hashes, item by item: no generator, and the first of many views is the same as the only one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, scenes, splits
from pitome_core.experiments.data.scenes import Emoji, Stamp

SOURCES = (*scenes.SOURCES, "noto")
SIDE = 224  # pixels
BACKGROUNDS = ("white", "photographs", "collection")
SALT = "retrieval-backgrounds-1"
CENTRED = 0.85  # share of the side that an object on white takes
SCALE = (0.6, 0.95)  # the same on photographs, drawn anew for every view
CROP = (0.5, 1.0)  # share of a photograph's shorter side that is seen behind an object
_SHORTER = 448  # pixels of a photograph's shorter side that are kept in memory
_WORD = re.compile(r"[a-z]{2}")  # a keyword without two letters in a row is an emoticon, a number or a code


@dataclass(frozen=True)
class Pairs:
    """Pictures and texts of one split. ``answers[t]`` are the pictures (indices) that ``texts[t]`` describes."""

    things: tuple[Emoji | Stamp, ...]
    texts: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.things)

    @functools.cached_property
    def captions(self) -> tuple[tuple[int, ...], ...]:
        """For every picture its texts (indices), the other way round from ``answers``."""
        found: list[list[int]] = [[] for _ in self.things]
        for text, row in enumerate(self.answers):
            for picture in row:
                found[picture].append(text)
        return tuple(map(tuple, found))


def pairs(split: str, source: str = "openmoji", count: int | None = None) -> Pairs:
    """The pictures of a split in the order of a hash, and every text of theirs once.

    ``source`` is ``openmoji`` (without flags), ``noto`` (the same emoji by other artists) or ``stamps``. ``count`` is
    how many pictures to take, the first ones, a sample of all kinds. The split goes by identity (`Emoji.split`,
    `Stamp.split`). Raises ``ValueError`` for a split or source that does not exist, ``assets.AssetError`` where an
    asset cannot be had.
    """
    if split not in splits.SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(splits.SPLITS)}")
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; choose one of {', '.join(SOURCES)}")
    every = {"openmoji": scenes.objects, "noto": scenes.noto, "stamps": scenes.stamps}[source]()
    chosen = sorted((t for t in every if t.split == split), key=lambda t: splits.unit(f"{SALT}\norder\n{t.member}"))
    chosen = chosen[:count]
    answers: dict[str, list[int]] = {}
    for i, thing in enumerate(chosen):
        for text in texts_of(thing):
            answers.setdefault(text, []).append(i)
    return Pairs(tuple(chosen), tuple(answers), tuple(map(tuple, answers.values())))


def texts_of(thing: Emoji | Stamp) -> tuple[str, ...]:
    """The texts of a picture, each once, the name first."""
    if isinstance(thing, Stamp):
        return (thing.name.lower(),)
    known, unicode_names = _words()
    names = list(dict.fromkeys([thing.name, _plain(unicode_names[thing.code].lower())]))
    keywords = dict.fromkeys(_plain(word.lower()) for word in known[thing.code][1:] if _WORD.search(word.lower()))
    row = ", ".join(word for word in keywords if word not in names)
    return tuple(dict.fromkeys([*names, row] if row else names))


def backgrounds(split: str, collection: bool = False) -> tuple[str, ...]:
    """Names of the photographs that may stand behind objects of a split: the installed ones, or the collection's.

    No photograph is in two splits. Names only: nothing is read. `ValueError` for a split that does not exist.
    """
    if split not in splits.SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(splits.SPLITS)}")
    if collection:
        return tuple(name for name, photo in photos.COLLECTION.items() if photo.split == split)
    natural = [p.name for p in photos.PHOTOGRAPHS.values() if p.natural and p.name not in scenes.NO_LICENCE]
    natural.sort(key=lambda name: splits.unit(f"{SALT}\n{name}"))
    share, place = len(natural) // len(splits.SPLITS), splits.SPLITS.index(split)
    others = [p.name for p in photos.PHOTOGRAPHS.values() if not p.natural] if split == "train" else []
    return (*natural[place * share : (place + 1) * share], *others)


def views(
    things: Sequence[Emoji | Stamp], background: str, split: str = "", seed: int = 0
) -> Iterator[np.ndarray]:
    """A picture ``(224, 224, 3)`` uint8 of every object, one after the other.

    ``background`` is ``white`` (centred, always the same), ``photographs`` (installed ones) or ``collection``: there,
    photograph, the part of it that is seen, its mirroring, size and place of the object follow from ``seed`` and the
    object. ``split`` says whose photographs. Raises ``ValueError`` for a background that does not exist, else as
    `scenes.render` and `photos.photographs`.
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"background is {background!r}; choose one of {', '.join(BACKGROUNDS)}")
    names = () if background == "white" else backgrounds(split, background == "collection")
    for thing in things:
        yield _on_white(thing) if background == "white" else _on_photograph(thing, names, seed)


def _on_white(thing: Emoji | Stamp) -> np.ndarray:
    drawing = scenes.trim(scenes.render(thing, round(CENTRED * SIDE)))  # (h, w, 4)
    h, w = drawing.shape[:2]
    return scenes.paste(np.full((SIDE, SIDE, 3), 255, np.uint8), drawing, (SIDE - h) // 2, (SIDE - w) // 2)


def _on_photograph(thing: Emoji | Stamp, names: Sequence[str], seed: int) -> np.ndarray:
    def unit(what: str) -> float:
        return splits.unit("\n".join((SALT, str(seed), thing.member, what)))

    def between(span: tuple[float, float], what: str) -> float:
        return span[0] + (span[1] - span[0]) * unit(what)

    picture = _photograph(names[int(unit("photograph") * len(names))])
    side = between(CROP, "crop") * min(picture.size)
    left, top = (unit(what) * (length - side) for what, length in zip(("left", "top"), picture.size, strict=True))
    canvas = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if unit("mirrored") < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = scenes.trim(scenes.render(thing, round(between(SCALE, "scale") * SIDE)))  # (h, w, 4)
    h, w = drawing.shape[:2]
    place = int(unit("object top") * (SIDE - h + 1)), int(unit("object left") * (SIDE - w + 1))
    return scenes.paste(np.asarray(canvas), drawing, *place)


@functools.cache
def _photograph(name: str) -> Image.Image:
    """A photograph, no larger than a view needs: all of the collection at full size would take 360 MB."""
    picture = Image.fromarray(photos.photographs([name])[name])
    scale = min(1.0, _SHORTER / min(picture.size))
    return picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BOX)


def _plain(words: str) -> str:
    return " ".join(words.replace("_", " ").replace("-", " ").split())


@functools.cache
def _words() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Name and keywords, and Unicode's name, of every emoji, by `Emoji.code`."""
    known = json.loads((assets.fetch(scenes.NAMES) / "emojis.json").read_text(encoding="utf-8"))
    table = json.loads((assets.fetch(scenes.GROUPS) / "emoji.json").read_text(encoding="utf-8"))
    characters = {"".join(chr(int(code, 16)) for code in entry["unified"].split("-")): entry["name"] for entry in table}
    by_code = [{scenes.code_of(emoji): value for emoji, value in found.items()} for found in (known, characters)]
    return by_code[0], by_code[1]
