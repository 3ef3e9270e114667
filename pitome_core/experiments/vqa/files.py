"""Questions of VQAv2, GQA and TextVQA from their official files on the disk.

VQAv2 has questions and annotations in two files and the pictures of MS-COCO, ``COCO_val2014_000000262144.jpg``; GQA has
one file of questions by their id and pictures ``2370799.jpg``; TextVQA has one file and pictures
``003a8ae2ef43b901.jpg``. A record that is malformed, or whose picture is missing, is an error that names file and
entry: an accuracy over the rest is another number. Whoever wants it all the same leaves them out with ``skip=True`` and
reports how many they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitome_core.experiments.vqa.metrics import ANSWERS

SHOWN = 5  # malformed records that an error names; it counts all


class MalformedError(ValueError):
    """A file, or records in it, are not in the official format; ``problems`` names each, the message the first."""

    def __init__(self, message: str, problems: tuple[str, ...] = ()):
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Item:
    """One question. ``answers`` are all that people gave: ten of VQAv2 and TextVQA, one of GQA."""

    id: str
    image: Path
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """The questions of a benchmark in the order of their file, and what was left out, as ``FILE, ENTRY: REASON``."""

    benchmark: str
    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


Row = tuple[str, Callable[[], Item]]  # where an entry stands, and what reads it


def load(
    benchmark: str,
    questions: Path | str,
    images: Path | str,
    annotations: Path | str | None = None,
    *,
    skip: bool = False,
) -> Items:
    """The questions of ``vqav2``, ``gqa`` or ``textvqa``.

    ``questions`` is the official file, ``annotations`` VQAv2's second one, ``images`` the folder of the pictures.
    Pictures are looked for, not opened. Raises ``ValueError`` for an unknown benchmark or a file too many or too few,
    ``FileNotFoundError`` for a file or folder that is not there, `MalformedError` for a file in another format, for one
    without a usable question, and, unless ``skip``, for any record that is malformed, a duplicate, or without picture.
    """
    if benchmark not in READERS:
        raise ValueError(f"benchmark is {benchmark!r}; choose one of {', '.join(READERS)}")
    if (benchmark == "vqav2") != (annotations is not None):
        raise ValueError("vqav2 has its answers in a second file: pass it as annotations" if annotations is None else
                         f"{benchmark} has questions and answers in one file: leave annotations out")
    files = [Path(name) for name in (questions, annotations) if name is not None]
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: pass the folder of the pictures of {benchmark}")
    pictures = {entry.name for entry in os.scandir(folder)}

    items, problems, seen = [], [], set()
    for where, read in READERS[benchmark](*files, folder):
        try:
            item = read()
            if item.id in seen:
                raise MalformedError(f"question {item.id} stands here a second time")
            seen.add(item.id)
            if item.image.name not in pictures:
                raise MalformedError(f"no picture {item.image}")
        except MalformedError as error:
            problems.append(f"{where}: {error}")
        else:
            items.append(item)
    if problems and (not skip or not items):
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise MalformedError(
            f"{len(problems)} of {len(problems) + len(items)} records of {benchmark} cannot be used: "
            f"{'; '.join(problems[:SHOWN])}{more}. Complete the files, or leave such records out with skip=True, "
            "which needs at least 1 good one", tuple(problems))
    if not items:
        raise MalformedError(f"{files[0]} has no question: download the official file again")
    return Items(benchmark, tuple(items), tuple(problems))


# --- formats


def _vqav2(questions: Path, annotations: Path, folder: Path) -> Iterator[Row]:
    head, rows = _table(questions, "questions", list)
    _, answers = _table(annotations, "annotations", list)
    split = head.get("data_subtype")
    if not isinstance(split, str):
        raise MalformedError(f"{questions} says {split!r} where data_subtype should name the split, as val2014")
    by_id: dict[Any, tuple[int, dict]] = {}
    twice = set()
    for i, entry in enumerate(answers):
        key = entry.get("question_id") if isinstance(entry, dict) else None
        if not _is_number(key):
            yield f"{annotations.name}, entry {i}", _refuse("no question_id")
        elif key in by_id:
            twice.add(key)
        else:
            by_id[key] = i, entry

    def read(entry: Any) -> Item:
        key, image = _get(entry, "question_id", int), _get(entry, "image_id", int)
        text = _get(entry, "question", str)
        if key not in by_id:
            raise MalformedError(f"no annotation of question {key} in {annotations.name}")
        place, given = by_id[key]
        try:
            if key in twice:
                raise MalformedError(f"question {key} has more than one annotation")
            if given.get("image_id") != image:
                raise MalformedError(f"image_id {given.get('image_id')!r} is not the question's {image}")
            people = [_get(answer, "answer", str, empty=True) for answer in _get(given, "answers", list)]
            answers = _ten(people)
        except MalformedError as error:
            raise MalformedError(f"{annotations.name}, entry {place}: {error}") from None
        return Item(str(key), folder / f"COCO_{split}_{image:012d}.jpg", text, answers)

    for i, entry in enumerate(rows):
        yield f"{questions.name}, entry {i}", lambda entry=entry: read(entry)
    asked = [entry.get("question_id") for entry in rows if isinstance(entry, dict)]
    asked = {key for key in asked if _is_number(key)}
    for key, (place, _) in by_id.items():
        if key not in asked:
            yield f"{annotations.name}, entry {place}", _refuse(f"no question {key} in {questions.name}")


def _gqa(questions: Path, folder: Path) -> Iterator[Row]:
    def read(key: str, entry: Any) -> Item:
        image, text = _get(entry, "imageId", str), _get(entry, "question", str)
        return Item(key, folder / f"{_plain(image)}.jpg", text, (_get(entry, "answer", str),))

    for key, entry in _json(questions, dict).items():
        yield f"{questions.name}, entry {key}", lambda key=key, entry=entry: read(key, entry)


def _textvqa(questions: Path, folder: Path) -> Iterator[Row]:
    def read(entry: Any) -> Item:
        key, image = _get(entry, "question_id", int), _get(entry, "image_id", str)
        people = _get(entry, "answers", list)
        if not all(isinstance(answer, str) for answer in people):
            raise MalformedError("answers holds something that is no text")
        return Item(str(key), folder / f"{_plain(image)}.jpg", _get(entry, "question", str), _ten(people))

    for i, entry in enumerate(_table(questions, "data", list)[1]):
        yield f"{questions.name}, entry {i}", lambda entry=entry: read(entry)


READERS: dict[str, Callable[..., Iterator[Row]]] = {"vqav2": _vqav2, "gqa": _gqa, "textvqa": _textvqa}


# --- parts


def _refuse(reason: str) -> Callable[[], Item]:
    def read() -> Item:
        raise MalformedError(reason)

    return read


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}: pass the official one of the benchmark, unpacked") from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise MalformedError(f"{file} is no JSON ({error}): download and unpack the official file again") from None
    if not isinstance(found, kind):
        raise MalformedError(f"{file} holds a {type(found).__name__} where the official file has a {kind.__name__}")
    return found


def _table(file: Path, key: str, kind: type) -> tuple[dict, Any]:
    """The file, and the value of its ``key``."""
    found = _json(file, dict)
    if not isinstance(found.get(key), kind):
        have = ", ".join(map(repr, list(found)[:SHOWN])) or "nothing"
        raise MalformedError(f"{file} has no {kind.__name__} {key!r}, only {have}: is it another benchmark's file?")
    return found, found[key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _get(entry: Any, key: str, kind: type, *, empty: bool = False) -> Any:
    if not isinstance(entry, dict):
        raise MalformedError(f"a {type(entry).__name__} where a record should be")
    if key not in entry:
        raise MalformedError(f"no {key}")
    value = entry[key]
    right = _is_number(value) if kind is int else isinstance(value, kind)
    if not right or (kind is str and not empty and not value.strip()):
        raise MalformedError(f"{key} is {value!r}")
    return value


def _ten(people: list[str]) -> tuple[str, ...]:
    if len(people) != ANSWERS:
        raise MalformedError(f"{len(people)} answers, not {ANSWERS}")
    return tuple(people)


def _plain(name: str) -> str:
    if Path(name).name != name:  # a picture outside the folder is no picture of the benchmark
        raise MalformedError(f"{name!r} is no name of a picture")
    return name
