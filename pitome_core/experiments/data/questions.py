"""Generated pictures with questions: scenes of one to four OpenMoji drawings, three questions each.

This is version ``questions-1``. A scene is a square picture with one to four drawings of 64 classes, on a plain colour,
a texture or a part of a photograph. Twelve kinds of scene (`CYCLE`) take turns, so that the nine types of question are
equally frequent, and so are the three backgrounds. The types are:

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

No question is ambiguous:

- The drawings lie in squares that do not touch.
- "The fish" stands for a class of which one drawing is in the scene.
- The side of the biggest object is at least `RATIO` times that of any other object. With these classes it is then the
  largest in area too.
- The centres of objects that a question compares differ by at least `APART` along the axis of the question.
- The centre of an object whose position is asked is at least `MARGIN` away from the middle lines.
- A class has a colour only if fills that one word names cover 85 % of the filled pixels of its drawing.

Classes with a colour are somewhat more frequent than the others, because some questions need a colour.

The scenes of the streams ``train``, ``validation`` and ``test`` are hashes of stream and number, and each stream has
its own photographs (`pairs.backgrounds`). About a tenth of the pairs of classes (`held_out`) are never together in
train and validation. In test they are as frequent as any other pair. There is no random generator, the order of calls
does not matter, and layouts and questions need no asset. OpenMoji is licensed under CC BY-SA 4.0 (see `scenes`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from pitome_core.experiments.data import pairs, photos, scenes, splits

VERSION = "questions-1"
STREAMS = {"train": "train", "validation": "dev", "test": "test"}  # stream: the split of its photographs
TYPES = ("exist", "count", "total", "position", "relation", "biggest", "single", "colour", "list")
BACKGROUNDS = ("plain", "texture", "photograph")
TEST_QUESTIONS = 10_000
SIZE = 168  # pixels on a side of the picture

# For each kind of scene: its number of objects, and the types of its questions. Every type occurs four times.
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

# Lengths as shares of the side of the picture, from smallest to largest.
ALONE = (0.3, 0.6)  # side of a single object
SMALL = (0.22, 0.28)  # side of an object in a scene that has a biggest one
MIXED = (0.22, 0.34)  # side of an object in any other scene
GAP = 0.02  # least distance between two squares
APART = 0.15  # least distance of two centres that are compared, along the axis in question
MARGIN = 0.08  # least distance of the centre of an object whose position is asked from the middle lines
# Ratios and shares.
BIG = (1.5, 1.7)  # side of the biggest object, over that of the second
RATIO = 1.49  # the least value of that ratio after rounding
HELD_OUT = 0.1  # share of the pairs of classes that are held out
CROP = (0.5, 1.0)  # side of the visible part of a photograph, over the photograph's shorter side

T = TypeVar("T")


@dataclass(frozen=True)
class DrawingClass:
    """A class of objects. ``code`` is the `scenes.Emoji.code` of its drawing. ``colour`` is a word, or empty."""

    name: str
    code: str
    colour: str


# fmt: off
_TABLE = {  # {colour: {name: code}}; no cat and no rocket, because photographs of test show them
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
CLASSES = {name: DrawingClass(name, code, colour) for colour, row in _TABLE.items() for name, code in row.items()}
_CLASS = re.compile(rf"\b(an? )?({'|'.join(CLASSES)})\b")
COLOURED = tuple(row.name for row in CLASSES.values() if row.colour)


@dataclass(frozen=True)
class PlacedDrawing:
    """A drawing in a scene: its class, and the centre ``x, y`` and ``side`` of its square.

    The three numbers are shares of the picture's side; ``x`` counts from the left and ``y`` from the top.
    """

    name: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Question:
    """One question of a scene.

    ``id`` is ``STREAM-SCENE-PLACE``, as in ``test-000012-1``. ``scene`` is the number of the scene, ``type`` one of
    `TYPES`.
    """

    id: str
    scene: int
    type: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """The layout of a picture, with its questions.

    ``background`` is one of `BACKGROUNDS`. ``photograph`` is a name in `photos.PHOTOGRAPHS`, or empty if the background
    is none. ``questions`` has `PER_SCENE` entries.
    """

    stream: str
    number: int
    background: str
    photograph: str
    placed: tuple[PlacedDrawing, ...]
    questions: tuple[Question, ...]

    @property
    def held_out(self) -> bool:
        """Whether two classes of the scene are never together in train."""
        return any(held_out(a, b) for a, b in itertools.combinations({p.name for p in self.placed}, 2))


class QuestionStream(Sequence[Question]):
    """The first ``count`` questions of a stream, as a sequence; the questions of one scene follow each other.

    A scene is laid out when one of its questions is read, so that a long stream costs nothing before. Raises
    ``ValueError`` for a stream that does not exist, and for a count below 0.

    >>> QuestionStream("test", 5)[4].id
    'test-000001-1'
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
    """Whether two classes are never together in train and validation. Their order does not matter."""
    return first != second and _unit("held out", *sorted((first, second))) < HELD_OUT


@functools.lru_cache(maxsize=4096)
def scene(stream: str, number: int) -> Scene:
    """Scene ``number`` (from 0) of a stream. Needs no asset.

    Raises ``ValueError`` for a stream that does not exist, and for a number below 0.
    """
    _check(stream, number)
    key = (stream, number)
    count, types = CYCLE[number % len(CYCLE)]
    groups = _groups(key, count, types)  # objects of one group have one class; a question counts group 0
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
    # The background moves on by one after each cycle, so that every kind of scene meets every background.
    background = BACKGROUNDS[(number // len(CYCLE) + number) % len(BACKGROUNDS)]
    photographs = pairs.backgrounds(STREAMS[stream])
    photograph = _pick(photographs, *key, "photograph") if background == "photograph" else ""
    return Scene(stream, number, background, photograph, placed, tuple(questions))


def picture(scene: Scene, size: int = SIZE) -> np.ndarray:
    """The picture of a scene, ``(size, size, 3)`` uint8.

    Raises ``ValueError`` for a size below 64 pixels, because objects have too few pixels then; else as `scenes.render`.
    """
    if size < 64:
        raise ValueError(f"size {size} must be at least 64 pixels: objects take a fifth of it")
    canvas = _background(scene, size)
    for placed in scene.placed:
        side = round(placed.side * size)
        drawing = scenes.render(_emoji()[CLASSES[placed.name].code], side)  # (side, side, 4)
        top, left = (min(max(round(at * size - side / 2), 0), size - side) for at in (placed.y, placed.x))
        canvas = scenes.paste(canvas, drawing, top, left)
    return canvas


def blind_prior(known: Iterable[Question], asked: Iterable[Question]) -> dict[str, float]:
    """Accuracy (0 to 1) by type of question, of the best guess without the picture.

    The guess for a question is the most frequent answer to the same text in ``known``. If ``known`` does not have the
    text, it is the most frequent answer to texts that differ from it in their classes alone. If there are none either,
    the question counts as wrong. Of equally frequent answers the first in the alphabet is the guess.

    Take ``known`` from another stream than ``asked``, because many texts occur once in a stream and would answer
    themselves.
    """
    counts: dict[str, Counter[str]] = {}
    for question in known:
        for text in (question.text, _without_classes(question.text)):
            counts.setdefault(text, Counter())[question.answer] += 1
    guess = {text: min(count, key=lambda answer: (-count[answer], answer)) for text, count in counts.items()}
    right: dict[str, list[bool]] = {}
    for question in asked:
        answer = guess.get(question.text, guess.get(_without_classes(question.text)))
        right.setdefault(question.type, []).append(answer == question.answer)
    return {kind: sum(row) / len(row) for kind, row in right.items()}


def _without_classes(text: str) -> str:
    return _CLASS.sub("*", text)


# --- layout


def _check(stream: str, number: int) -> None:
    if stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; choose one of {', '.join(STREAMS)}")
    if number < 0:
        raise ValueError(f"number {number} must be 0 or more")


def _unit(*parts: object) -> float:
    return splits.unit(VERSION, *parts)


def _pick(options: Sequence[T], *parts: object) -> T:
    return options[int(_unit(*parts) * len(options))]


def _order(options: Iterable[T], *parts: object) -> list[T]:
    return sorted(options, key=lambda option: _unit(*parts, option))


def _groups(key: tuple, count: int, types: Sequence[str]) -> tuple[int, ...]:
    """A number for the class of every object. If group 0 is counted, counts of 1, 2 and 3 are equally frequent."""
    if "count" not in types:
        return tuple(range(count))
    # Three ways to count 1, so that the answer 1 does not mean that all classes of the scene differ.
    once = ((0, 1, 2, 3), (0, 1, 1, 2), (0, 1, 1, 1))
    return _pick((_pick(once, *key, "once"), (0, 0, 1, 2), (0, 0, 0, 1)), *key, "count")


def _names(key: tuple, groups: Sequence[int], coloured: int | None) -> dict[int, str]:
    """A class for every group. The group ``coloured`` gets a class that has a colour."""
    names: dict[int, str] = {}
    for group in sorted(set(groups), key=lambda group: group != coloured):
        options = COLOURED if group == coloured else tuple(CLASSES)
        for attempt in itertools.count():
            name = _pick(options, *key, "class", group, attempt)
            forbidden = key[0] != "test" and any(held_out(name, other) for other in names.values())
            if name not in names.values() and not forbidden:
                names[group] = name
                break
    return names


def _layout(
    key: tuple, names: Sequence[str], biggest: int | None, sought: int | None, compared: Sequence[int], listed: bool
) -> tuple[PlacedDrawing, ...]:
    """The first of many random layouts that keeps all distances.

    ``names`` are the classes of the objects; the other arguments are indices of objects, as in `scene`. ``listed`` says
    that the objects are listed from left to right.
    """
    axis, quadrant = _axis(key), _quadrant(key)

    def place(attempt: int, i: int, side: float) -> PlacedDrawing:
        if i == sought:  # in the lower or the upper half of each axis, so that it lies in the quadrant
            halves = ((side / 2, 0.5 - MARGIN), (0.5 + MARGIN, 1 - side / 2))
            across, down = halves["right" in quadrant], halves["bottom" in quadrant]
        else:
            across = down = (side / 2, 1 - side / 2)
        x, y = (_between(span, *key, attempt, i, at) for at, span in (("x", across), ("y", down)))
        return PlacedDrawing(names[i], x, y, side)

    for attempt in itertools.count():
        span = ALONE if len(names) == 1 else MIXED if biggest is None else SMALL
        sides = [_between(span, *key, attempt, i, "side") for i in range(len(names))]
        if biggest is not None and len(names) > 1:
            second = max(side for i, side in enumerate(sides) if i != biggest)
            sides[biggest] = round(second * _between(BIG, *key, attempt, "big"), 4)
        placed = tuple(place(attempt, i, side) for i, side in enumerate(sides))
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
    kind: str, key: tuple, placed: Sequence[PlacedDrawing], biggest: int | None, sought: int | None, compared:
    Sequence[int]
) -> tuple[str, str]:
    """Text and answer of a question of type ``kind``."""
    names = [drawing.name for drawing in placed]
    match kind:
        case "exist":
            is_there = _unit(*key, "exist") < 0.5
            name = _pick([n for n in CLASSES if (n in names) == is_there], *key, "exist class")
            return f"Is there {'an' if name[0] in 'aeio' else 'a'} {name} drawing?", "yes" if is_there else "no"
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
            return f"What colour is the {which}?", CLASSES[names[biggest]].colour
        case _:  # list
            row = sorted(placed, key=lambda drawing: drawing.x)
            return "Which objects are there, from left to right?", ", ".join(drawing.name for drawing in row)


# --- pictures

# Rows and columns of cells of one colour, and how the colours are interpolated between the cells.
PLAIN = (1, 1, Image.Resampling.NEAREST)
TEXTURES = (
    (6, 6, Image.Resampling.BICUBIC),
    (8, 8, Image.Resampling.NEAREST),
    (12, 1, Image.Resampling.NEAREST),
    (1, 12, Image.Resampling.NEAREST),
)


def _background(scene: Scene, size: int) -> np.ndarray:
    key = (scene.stream, scene.number, "background")
    if scene.photograph:
        share, mirrored = _between(CROP, *key, "crop"), _unit(*key, "mirrored") < 0.5
        return np.array(
            photos.part_of(scene.photograph, size, share, _unit(*key, "x"), _unit(*key, "y"), mirrored=mirrored)
        )
    rows, columns, resample = PLAIN if scene.background == "plain" else _pick(TEXTURES, *key, "texture")
    text = "\n".join(map(str, (VERSION, *key)))
    cells = np.frombuffer(hashlib.shake_256(text.encode()).digest(rows * columns * 3), np.uint8)
    light = (96 + cells.astype(int) * 159 // 255).astype(np.uint8)  # 96 to 255, because outlines of drawings are black
    return np.array(Image.fromarray(light.reshape(rows, columns, 3)).resize((size, size), resample))


@functools.cache
def _emoji() -> dict[str, scenes.Emoji]:
    return {emoji.code: emoji for emoji in scenes.objects()}
