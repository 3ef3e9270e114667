"""Generated pictures with questions: scenes of one to four OpenMoji drawings, three questions each.

Version ``questions-1``. A scene is a square with one to four drawings of 64 classes on a plain colour, a texture or a
part of a photograph. Twelve kinds of scene (`CYCLE`) take turns, with three questions each, so that the nine types of
question come equally often, and the three backgrounds too:

| type | question | answer |
|---|---|---|
| exist | Is there a fish drawing? | yes or no |
| count | How many fish drawings are there? | 1 to 3 |
| total | How many objects are there? | 1 to 4 |
| position | Where is the fish? | top left, top right, bottom left, bottom right |
| relation | Is the fish left or right of the owl? Is it above or below the owl? | one of the two words |
| biggest | What is the biggest object? | a class |
| single | What is the object? | a class |
| colour | What colour is the object? (of several: the biggest object?) | one of seven words |
| list | Which objects are there, from left to right? | two or three classes |

No question is ambiguous. Drawings lie in squares that do not touch. "The fish" is said of a class that is there once.
The biggest object is at least `RATIO` times as long as any other, which with these classes makes it the largest in area
too. Objects that are compared lie `APART` from each other along the axis in question, and one that is looked for lies
`MARGIN` off the middle lines. A class has a colour only where one word covers `DOMINANT` of what is filled in its
drawing (`measured_colour`). Classes with a colour come somewhat more often than the others: some questions need one.

The streams ``train``, ``validation`` and ``test`` come from hashes of stream and number, and have photographs of their
own (`pairs.backgrounds`). About a tenth of the pairs of classes (`held_out`) are never together in train and
validation; in test they are, as often as any. Everything follows from hashes: no generator, no order of calls, and
layouts and questions need no asset. OpenMoji is CC BY-SA 4.0 (`scenes.CREDIT`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from pitome_core.experiments.data import pairs, photos, scenes, splits

VERSION = "questions-1"
STREAMS = {"train": "train", "validation": "dev", "test": "test"}  # and whose photographs they have
TYPES = ("exist", "count", "total", "position", "relation", "biggest", "single", "colour", "list")
BACKGROUNDS = ("plain", "texture", "photograph")
TEST_QUESTIONS = 10_000
SIZE = 168  # pixels to a side

# Objects in a scene, and what is asked about it. Every type comes four times.
CYCLE = (
    (1, ("single", "exist", "total")),
    (1, ("single", "exist", "position")),
    (1, ("single", "exist", "colour")),
    (1, ("single", "position", "colour")),
    (2, ("list", "relation", "total")),
    (2, ("list", "relation", "biggest")),
    (3, ("list", "relation", "total")),
    (3, ("list", "relation", "biggest")),
    (4, ("count", "colour", "biggest")),
    (4, ("count", "position", "exist")),
    (4, ("count", "colour", "total")),
    (4, ("count", "position", "biggest")),
)
PER_SCENE = 3

# Shares of the side of the picture.
ALONE, SMALL, MIXED = (0.3, 0.6), (0.22, 0.28), (0.22, 0.34)  # longer side: a single object, beside a big one, any
BIG = (1.5, 1.7)  # the biggest object, over the second
RATIO = 1.49  # the same at least, after rounding
GAP = 0.02  # between squares
APART = 0.15  # between centres that are compared, along one axis
MARGIN = 0.08  # of the centre of an object that is looked for, from the middle lines
HELD_OUT = 0.1  # of the pairs of classes
CROP = (0.5, 1.0)  # of a photograph's shorter side

# Fills of OpenMoji's palette, by the word that we call them. Amber (F1B31C, F4AA41), greys and white have none: amber
# is yellow to some and orange to others, and on a photograph the light greys are white.
PALETTE = {
    "D22F27": "red", "EA5A47": "red", "FCEA2B": "yellow", "5C9E31": "green", "B1CC33": "green", "61B2E4": "blue",
    "92D3F5": "blue", "1E50A0": "blue", "A57939": "brown", "6A462F": "brown", "FFA7C0": "pink", "E67A94": "pink",
    "8967AA": "purple", "B399C8": "purple",
}  # fmt: skip
DOMINANT = 0.85  # share of what is filled

T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """A class. ``code`` is its drawing's (`scenes.Emoji.code`), ``colour`` a word, or empty where there is no one."""

    name: str
    code: str
    colour: str


# fmt: off
_TABLE = {  # no cat and no rocket: photographs of test show them
    "red": {"apple": "1F34E", "tomato": "1F345", "crab": "1F980", "balloon": "1F388", "drum": "1F941",
            "backpack": "1F392", "heart": "2764", "scarf": "1F9E3"},
    "yellow": {"lemon": "1F34B", "cheese": "1F9C0", "star": "2B50", "sun": "2600", "bell": "1F514"},
    "green": {"pear": "1F350", "frog": "1F438", "turtle": "1F422", "cactus": "1F335", "kiwi": "1F95D",
              "olive": "1FAD2", "broccoli": "1F966", "tree": "1F333"},
    "blue": {"fish": "1F41F", "whale": "1F40B", "butterfly": "1F98B", "shirt": "1F455", "gem": "1F48E",
             "drop": "1F4A7", "puzzle piece": "1F9E9"},
    "brown": {"cookie": "1F36A", "bear": "1F43B", "door": "1F6AA", "horse": "1F434", "potato": "1F954",
              "briefcase": "1F4BC", "handbag": "1F45C", "eagle": "1F985"},
    "pink": {"pig": "1F437", "brain": "1F9E0", "peach": "1F351", "soap": "1F9FC"},
    "purple": {"eggplant": "1F346", "crystal ball": "1F52E"},
    "": {"koala": "1F428", "panda": "1F43C", "elephant": "1F418", "cow": "1F42E", "rabbit": "1F430",
         "mouse": "1F42D", "owl": "1F989", "fox": "1F98A", "tiger": "1F42F", "swan": "1F9A2",
         "soccer ball": "26BD", "television": "1F4FA", "laptop": "1F4BB", "robot": "1F916", "ghost": "1F47B",
         "castle": "1F3F0", "house": "1F3E0", "mushroom": "1F344", "airplane": "2708", "camera": "1F4F7",
         "watch": "231A", "bomb": "1F4A3"},
}
# fmt: on
THINGS = {name: Thing(name, code, colour) for colour, rows in _TABLE.items() for name, code in rows.items()}
_CLASS = re.compile(rf"\b(an? )?({'|'.join(THINGS)})\b")
COLOURED = tuple(thing.name for thing in THINGS.values() if thing.colour)


@dataclass(frozen=True)
class Placed:
    """A drawing's square: centre ``x, y`` from the top left, and ``side``, as shares of the picture's side."""

    name: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Question:
    """One question. ``id`` is ``STREAM-SCENE-PLACE``, ``type`` one of `TYPES`, ``scene`` the number of the scene."""

    id: str
    scene: int
    type: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture's layout with its questions. ``photograph`` is a name in `photos.PHOTOGRAPHS`, or empty."""

    stream: str
    number: int
    background: str
    photograph: str
    placed: tuple[Placed, ...]
    questions: tuple[Question, ...]

    @property
    def held_out(self) -> bool:
        """Whether two classes are together that never are in train."""
        return any(held_out(a, b) for a, b in itertools.combinations({p.name for p in self.placed}, 2))


class Questions(Sequence[Question]):
    """The first ``count`` questions of a stream; a scene is laid out when one of its questions is asked for.

    Without ``count``: 10,000. Questions of a scene follow each other. Raises ``ValueError`` for a stream that does not
    exist, and for a count below 0.
    """

    def __init__(self, stream: str, count: int = TEST_QUESTIONS):
        _check(stream, count)
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        place = range(self.count)[index]
        return scene(self.stream, place // PER_SCENE).questions[place % PER_SCENE]


def held_out(first: str, second: str) -> bool:
    """Whether two classes are never together in train and validation. The order does not matter."""
    return first != second and _unit("held out", *sorted((first, second))) < HELD_OUT


@functools.lru_cache(maxsize=4096)
def scene(stream: str, number: int) -> Scene:
    """Scene ``number`` (from 0) of a stream. Needs no asset. Raises ``ValueError`` as `Questions` does."""
    _check(stream, number)
    key = (stream, number)
    count, types = CYCLE[number % len(CYCLE)]
    groups = _groups(key, count, types)  # group of every object; group 0 is counted
    biggest = _pick(range(count), *key, "biggest") if {"biggest", "colour"} & set(types) else None
    names = _names(key, groups, groups[biggest] if "colour" in types else None)
    once = [i for i, group in enumerate(groups) if groups.count(group) == 1]
    sought = _pick(once, *key, "sought") if "position" in types else None
    compared = tuple(_order(once, *key, "compared")[:2]) if "relation" in types else ()
    placed = _layout(key, [names[group] for group in groups], biggest, sought, compared, "list" in types)

    questions = []
    for place, kind in enumerate(types):
        text, answer = _ask(kind, key, placed, biggest, sought, compared)
        questions.append(Question(f"{stream}-{number:06d}-{place}", number, kind, text, answer))
    # Kind of scene and background take turns such that every pair of them does.
    background = BACKGROUNDS[(number // len(CYCLE) + number) % len(BACKGROUNDS)]
    photographs = pairs.backgrounds(STREAMS[stream])
    photograph = _pick(photographs, *key, "photograph") if background == "photograph" else ""
    return Scene(stream, number, background, photograph, placed, tuple(questions))


def picture(of: Scene, size: int = SIZE) -> np.ndarray:
    """The scene as ``(size, size, 3)`` uint8.

    Raises ``ValueError`` for a size below 64 pixels, where objects are no longer drawings, else as `scenes.render`.
    """
    if size < 64:
        raise ValueError(f"size {size} must be at least 64 pixels: objects take a fifth of it")
    canvas = _background(of, size)
    for thing in of.placed:
        side = round(thing.side * size)
        drawing = scenes.render(_emoji()[THINGS[thing.name].code], side)  # (side, side, 4)
        top, left = (min(max(round(at * size - side / 2), 0), size - side) for at in (thing.y, thing.x))
        canvas = scenes.paste(canvas, drawing, top, left)
    return canvas


def measured_colour(drawing: np.ndarray) -> str:
    """The colour of a drawing ``(H, W, 4)``: the word that covers `DOMINANT` of what is filled, or an empty string.

    Filled are opaque pixels of any colour that covers a hundredth of them or more, without black, which is outline: the
    blends at edges do not. A colour outside `PALETTE` has no word.
    """
    opaque = drawing[drawing[..., 3] == 255][:, :3]
    pixels = Counter(map(bytes, opaque))
    filled = {fill: n for fill, n in pixels.items() if n >= 0.01 * len(opaque) and any(fill)}
    words: Counter[str] = Counter()
    for fill, n in filled.items():
        words[PALETTE.get(fill.hex().upper(), "")] += n
    word, n = words.most_common(1)[0]
    return word if n >= DOMINANT * sum(filled.values()) else ""


def blind_prior(known: Iterable[Question], asked: Iterable[Question]) -> dict[str, float]:
    """Accuracy by type, 0 to 1, of who sees no picture: the most frequent answer to the same text in ``known``.

    Where the text is not in ``known``: the most frequent to texts that differ from it in classes alone, or none. Ties
    go to the answer that is first in the alphabet. Use another stream as ``known``: within one, many texts come once
    and answer themselves.
    """
    seen: dict[str, Counter[str]] = {}
    for question in known:
        for text in (question.text, _without_classes(question.text)):
            seen.setdefault(text, Counter())[question.answer] += 1
    guess = {text: min(found, key=lambda answer: (-found[answer], answer)) for text, found in seen.items()}
    right: dict[str, list[bool]] = {}
    for question in asked:
        answer = guess.get(question.text, guess.get(_without_classes(question.text)))
        right.setdefault(question.type, []).append(answer == question.answer)
    return {kind: sum(row) / len(row) for kind, row in right.items()}


def _without_classes(text: str) -> str:
    return _CLASS.sub("*", text)


def fingerprint(stream: str, count: int) -> str:
    """SHA-256 of the first ``count`` questions with the layouts of their scenes, in hexadecimal."""
    digest = hashlib.sha256(VERSION.encode())
    for question in Questions(stream, count):
        layout = {k: v for k, v in dataclasses.asdict(scene(stream, question.scene)).items() if k != "questions"}
        digest.update(json.dumps([dataclasses.asdict(question), layout], sort_keys=True).encode())
    return digest.hexdigest()


# --- layout


def _check(stream: str, number: int) -> None:
    if stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; choose one of {', '.join(STREAMS)}")
    if number < 0:
        raise ValueError(f"number {number} must be 0 or more")


def _unit(*parts: object) -> float:
    return splits.unit("\n".join(map(str, (VERSION, *parts))))


def _pick(options: Sequence[T], *parts: object) -> T:
    return options[int(_unit(*parts) * len(options))]


def _order(options: Iterable[T], *parts: object) -> list[T]:
    return sorted(options, key=lambda option: _unit(*parts, option))


def _groups(key: tuple, count: int, types: Sequence[str]) -> tuple[int, ...]:
    """The class of every object, as a number. Counts of 1, 2 and 3 come equally often."""
    if "count" not in types:
        return tuple(range(count))
    once = ((0, 1, 2, 3), (0, 1, 1, 2), (0, 1, 1, 1))  # else "1" were the answer only where all differ
    return _pick((_pick(once, *key, "once"), (0, 0, 1, 2), (0, 0, 0, 1)), *key, "count")


def _names(key: tuple, groups: Sequence[int], coloured: int | None) -> dict[int, str]:
    """A class for every group; for ``coloured`` one with a colour."""
    found: dict[int, str] = {}
    for group in sorted(set(groups), key=lambda group: group != coloured):
        among = COLOURED if group == coloured else tuple(THINGS)
        for attempt in itertools.count():
            name = _pick(among, *key, "class", group, attempt)
            apart = key[0] != "test" and any(held_out(name, other) for other in found.values())
            if name not in found.values() and not apart:
                found[group] = name
                break
    return found


def _layout(
    key: tuple, names: Sequence[str], biggest: int | None, sought: int | None, compared: Sequence[int], listed: bool
) -> tuple[Placed, ...]:
    """The first of many attempts that keeps all distances."""
    axis, quadrant = _axis(key), _quadrant(key)

    def one(attempt: int, i: int, side: float) -> Placed:
        ends = (side / 2, 1 - side / 2)
        if i == sought:  # low or high half of each axis
            halves = ((side / 2, 0.5 - MARGIN), (0.5 + MARGIN, 1 - side / 2))
            across, down = halves["right" in quadrant], halves["bottom" in quadrant]
        else:
            across = down = ends
        x, y = (_between(span, *key, attempt, i, at) for at, span in (("x", across), ("y", down)))
        return Placed(names[i], x, y, side)

    for attempt in itertools.count():
        span = ALONE if len(names) == 1 else MIXED if biggest is None else SMALL
        sides = [_between(span, *key, attempt, i, "side") for i in range(len(names))]
        if biggest is not None and len(names) > 1:
            second = max(side for i, side in enumerate(sides) if i != biggest)
            sides[biggest] = round(second * _between(BIG, *key, attempt, "big"), 4)
        placed = tuple(one(attempt, i, side) for i, side in enumerate(sides))
        couples = list(itertools.combinations(placed, 2))
        if any(max(abs(a.x - b.x), abs(a.y - b.y)) < (a.side + b.side) / 2 + GAP for a, b in couples):
            continue
        if listed and any(abs(a.x - b.x) < APART for a, b in couples):
            continue
        if compared and abs(np.subtract(*(getattr(placed[i], axis) for i in compared))) < APART:
            continue
        return placed


def _between(span: tuple[float, float], *parts: object) -> float:
    return round(span[0] + (span[1] - span[0]) * _unit(*parts), 4)


def _axis(key: tuple) -> str:
    return _pick(("x", "y"), *key, "axis")


def _quadrant(key: tuple) -> str:
    return _pick(("top left", "top right", "bottom left", "bottom right"), *key, "quadrant")


# --- questions


def _ask(
    kind: str, key: tuple, placed: Sequence[Placed], biggest: int | None, sought: int | None, compared: Sequence[int]
) -> tuple[str, str]:
    """Text and answer."""
    names = [thing.name for thing in placed]
    match kind:
        case "exist":
            there = _unit(*key, "exist") < 0.5
            name = _pick([n for n in THINGS if (n in names) == there], *key, "exist class")
            return f"Is there {'an' if name[0] in 'aeio' else 'a'} {name} drawing?", "yes" if there else "no"
        case "count":
            return f"How many {names[0]} drawings are there?", str(names.count(names[0]))
        case "total":
            return "How many objects are there?", str(len(names))
        case "position":
            return f"Where is the {names[sought]}?", _quadrant(key)
        case "relation":
            first, second = (placed[i] for i in compared)
            words = {"x": ("left", "right"), "y": ("above", "below")}[_axis(key)]
            after = getattr(first, _axis(key)) > getattr(second, _axis(key))
            of = " of" if _axis(key) == "x" else ""
            return f"Is the {first.name} {words[0]} or {words[1]}{of} the {second.name}?", words[after]
        case "biggest":
            return "What is the biggest object?", names[biggest]
        case "single":
            return "What is the object?", names[0]
        case "colour":
            which = "object" if len(names) == 1 else "biggest object"
            return f"What colour is the {which}?", THINGS[names[biggest]].colour
        case _:  # list
            row = sorted(placed, key=lambda thing: thing.x)
            return "Which objects are there, from left to right?", ", ".join(thing.name for thing in row)


# --- pictures

# Cells of one colour down and across, and what lies between them.
PLAIN = (1, 1, Image.Resampling.NEAREST)
TEXTURES = (
    (6, 6, Image.Resampling.BICUBIC),
    (8, 8, Image.Resampling.NEAREST),
    (12, 1, Image.Resampling.NEAREST),
    (1, 12, Image.Resampling.NEAREST),
)


def _background(of: Scene, size: int) -> np.ndarray:
    key = (of.stream, of.number, "background")
    if of.photograph:
        photo = _photograph(of.photograph)
        side = _between(CROP, *key, "crop") * min(photo.size)
        left, top = (_unit(*key, at) * (length - side) for at, length in zip("xy", photo.size, strict=True))
        canvas = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        if _unit(*key, "mirrored") < 0.5:
            canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(canvas)
    down, across, between = PLAIN if of.background == "plain" else _pick(TEXTURES, *key, "texture")
    text = "\n".join(map(str, (VERSION, *key)))
    cells = np.frombuffer(hashlib.shake_256(text.encode()).digest(down * across * 3), np.uint8)
    light = (96 + cells.astype(int) * 159 // 255).astype(np.uint8)  # outlines are black
    return np.array(Image.fromarray(light.reshape(down, across, 3)).resize((size, size), between))


@functools.cache
def _photograph(name: str) -> Image.Image:
    photo = Image.fromarray(photos.photographs([name])[name])
    scale = min(1.0, 448 / min(photo.size))  # no larger than a crop needs
    return photo.resize([round(scale * side) for side in photo.size], Image.Resampling.BOX)


@functools.cache
def _emoji() -> dict[str, scenes.Emoji]:
    return {emoji.code: emoji for emoji in scenes.objects()}
