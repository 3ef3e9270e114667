"""Questions of VQAv2, GQA and TextVQA from their official files on the disk.

- VQAv2 has one file of questions, one of annotations, and the pictures of MS-COCO (``COCO_val2014_000000262144.jpg``).
- GQA has one file, with questions by their id, and pictures like ``2370799.jpg``.
- TextVQA has one file, and pictures like ``003a8ae2ef43b901.jpg``.

A record that is malformed, or whose picture is missing, raises an error that names file and entry, because the accuracy
over the other records is not that of the benchmark. With ``skip=True`` such records are left out and listed, so that
their number can be reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitome_core.experiments.vqa.metrics import ANSWERS

SHOWN = 5  # how many malformed records an error names; it says the number of all


class MalformedError(ValueError):
    """A file, or records in it, are not in the official format.

    ``problems`` has a line for each malformed record. The message names the first `SHOWN` of them.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()):
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Item:
    """One question. ``answers`` are the answers of all people: ten in VQAv2 and TextVQA, one in GQA."""

    id: str
    image: Path
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """The questions of a benchmark in the order of their file.

    ``problems`` lists the records that were left out, as ``FILE, ENTRY: REASON``.
    """

    benchmark: str
    items: tuple[Item, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


Entry = tuple[str, Callable[[], Item]]  # the place of a record, as "FILE, entry N", and a function that reads it


def load(
    benchmark: str,
    questions: Path | str,
    images: Path | str,
    annotations: Path | str | None = None,
    skip: bool = False,
) -> Items:
    """Read the questions of ``vqav2``, ``gqa`` or ``textvqa``.

    Args:
        benchmark: the name of the benchmark.
        questions: the official file of questions.
        images: the folder of the pictures. They must exist, but are not opened.
        annotations: the second official file of VQAv2.
        skip: leave out records that cannot be used, and list them in ``problems``.

    Raises:
        ValueError: an unknown benchmark, or one file too many or too few.
        FileNotFoundError: a file or folder that does not exist.
        MalformedError: a file in another format, or without a usable question. Without ``skip`` also any record that
            is malformed, has the id of an earlier one, or has no picture.
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

    items, problems, ids = [], [], set()
    for place, read in READERS[benchmark](*files, folder):
        try:
            item = read()
            if item.id in ids:
                raise MalformedError(f"question {item.id} stands here a second time")
            ids.add(item.id)
            if item.image.name not in pictures:
                raise MalformedError(f"no picture {item.image}")
        except MalformedError as error:
            problems.append(f"{place}: {error}")
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


def _vqav2(questions: Path, annotations: Path, folder: Path) -> Iterator[Entry]:
    head, records = _table(questions, "questions", list)
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
        place, annotation = by_id[key]
        try:
            if key in twice:
                raise MalformedError(f"question {key} has more than one annotation")
            if annotation.get("image_id") != image:
                raise MalformedError(f"image_id {annotation.get('image_id')!r} is not the question's {image}")
            answers = _ten([_get(answer, "answer", str, empty=True) for answer in _get(annotation, "answers", list)])
        except MalformedError as error:
            raise MalformedError(f"{annotations.name}, entry {place}: {error}") from None
        return Item(str(key), folder / f"COCO_{split}_{image:012d}.jpg", text, answers)

    for i, entry in enumerate(records):
        yield f"{questions.name}, entry {i}", lambda entry=entry: read(entry)
    question_ids = [entry.get("question_id") for entry in records if isinstance(entry, dict)]
    question_ids = {key for key in question_ids if _is_number(key)}
    for key, (place, _) in by_id.items():
        if key not in question_ids:
            yield f"{annotations.name}, entry {place}", _refuse(f"no question {key} in {questions.name}")


def _gqa(questions: Path, folder: Path) -> Iterator[Entry]:
    def read(key: str, entry: Any) -> Item:
        image, text = _get(entry, "imageId", str), _get(entry, "question", str)
        return Item(key, folder / f"{_plain(image)}.jpg", text, (_get(entry, "answer", str),))

    for key, entry in _json(questions, dict).items():
        yield f"{questions.name}, entry {key}", lambda key=key, entry=entry: read(key, entry)


def _textvqa(questions: Path, folder: Path) -> Iterator[Entry]:
    def read(entry: Any) -> Item:
        key, image = _get(entry, "question_id", int), _get(entry, "image_id", str)
        answers = _get(entry, "answers", list)
        if not all(isinstance(answer, str) for answer in answers):
            raise MalformedError("answers holds something that is no text")
        return Item(str(key), folder / f"{_plain(image)}.jpg", _get(entry, "question", str), _ten(answers))

    for i, entry in enumerate(_table(questions, "data", list)[1]):
        yield f"{questions.name}, entry {i}", lambda entry=entry: read(entry)


READERS: dict[str, Callable[..., Iterator[Entry]]] = {"vqav2": _vqav2, "gqa": _gqa, "textvqa": _textvqa}


# --- parts


def _refuse(reason: str) -> Callable[[], Item]:
    """A function that raises, for a record that cannot be read."""

    def read() -> Item:
        raise MalformedError(reason)

    return read


def _json(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {file}: pass the official one of the benchmark, unpacked") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise MalformedError(f"{file} is no JSON ({error}): download and unpack the official file again") from None
    if not isinstance(content, kind):
        raise MalformedError(f"{file} holds a {type(content).__name__} where the official file has a {kind.__name__}")
    return content


def _table(file: Path, key: str, kind: type) -> tuple[dict, Any]:
    """The content of a JSON file, and the value of its ``key``. Raises `MalformedError` for one of another type."""
    content = _json(file, dict)
    if not isinstance(content.get(key), kind):
        keys = ", ".join(map(repr, list(content)[:SHOWN])) or "nothing"
        raise MalformedError(f"{file} has no {kind.__name__} {key!r}, only {keys}: is it another benchmark's file?")
    return content, content[key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _get(entry: Any, key: str, kind: type, *, empty: bool = False) -> Any:
    """``entry[key]``, of type ``kind``. Raises `MalformedError` if it is not; a blank text needs ``empty``."""
    if not isinstance(entry, dict):
        raise MalformedError(f"a {type(entry).__name__} where a record should be")
    if key not in entry:
        raise MalformedError(f"no {key}")
    value = entry[key]
    is_kind = _is_number(value) if kind is int else isinstance(value, kind)
    if not is_kind or (kind is str and not empty and not value.strip()):
        raise MalformedError(f"{key} is {value!r}")
    return value


def _ten(answers: list[str]) -> tuple[str, ...]:
    if len(answers) != ANSWERS:
        raise MalformedError(f"{len(answers)} answers, not {ANSWERS}")
    return tuple(answers)


def _plain(name: str) -> str:
    if Path(name).name != name:  # a path that leads out of the folder
        raise MalformedError(f"{name!r} is no name of a picture")
    return name
