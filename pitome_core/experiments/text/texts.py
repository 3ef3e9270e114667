"""Sets of labelled texts: tables, folders of SST-2, IMDb and Rotten Tomatoes, and data sets of the hub."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pitome_core.experiments.data import splits
from pitome_core.experiments.runs.shards import Refused

COLUMNS = ("text", "sentence", "review")  # of texts, in tables; labels stand in `label`


class LabelledText(NamedTuple):
    """One item of a data set: the text, its label (0 negative, 1 positive) and a name for it."""

    text: str
    label: Any
    name: str


@dataclass(frozen=True)
class TextSet:
    """A data set of labelled texts in fixed order. ``digest`` identifies texts and labels."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    digest: str


def load_texts(where: str | None, first: int | None = None) -> TextSet:
    """The texts of a file, a folder or a data set of the hub, or the ``first`` of them.

    Items keep the order of the data. In folders files are sorted by a hash of their names, so that the first of them
    have both labels.

    Raises:
        Refused: there is nothing there, or it cannot be read.
    """
    if where is None:
        raise Refused("no data: pass --data, a .tsv, .csv, .jsonl, a folder with pos/ and neg/, or hub:NAME[:SPLIT]")
    if where.startswith("hub:"):
        rows = _from_hub(where)
    else:
        path = Path(where)
        if not path.exists():
            raise Refused(f"no {path}: pass a file, a folder, or hub:NAME[:SPLIT]")
        rows = _from_folder(path) if path.is_dir() else _from_file(path)
    if not rows:
        raise Refused(f"{where} has no texts")
    wrong = [row.label for row in rows if str(row.label) not in ("0", "1")]
    if wrong:
        remedy = "the test file of GLUE has none: use dev.tsv" if str(wrong[0]) == "-1" else "labels are 0 and 1"
        raise Refused(f"{where}: {len(wrong)} of {len(rows)} labels are not 0 or 1, the first is {wrong[0]!r}; "
                      f"{remedy}")
    texts, labels, names = zip(*rows[:first], strict=True)
    digest = hashlib.sha256(json.dumps([texts, list(map(int, labels))]).encode()).hexdigest()[:12]
    name = short_name(where) + (f"-first{first}" if first else "")
    return TextSet(name, texts, tuple(map(int, labels)), names, digest)


def _from_file(path: Path) -> list[LabelledText]:
    if path.suffix == ".jsonl":
        table = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as stream:
            # In GLUE's tables a quotation mark is a character like others: it opens no field.
            how = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else {}
            table = list(csv.DictReader(stream, **how))
    else:
        raise Refused(f"{path.name} is no .tsv, .csv or .jsonl")
    if not table:
        return []
    column = _column(table[0], path.name)
    return [LabelledText(row[column], row["label"], f"{i:05d}") for i, row in enumerate(table)]


def _column(names: Any, where: str) -> str:
    present = [name for name in COLUMNS if name in names]
    if not present or "label" not in names:
        raise Refused(f"{where} has columns {', '.join(names)}; it needs label and one of {', '.join(COLUMNS)}")
    return present[0]


def _from_folder(path: Path) -> list[LabelledText]:
    if (path / "rt-polarity.pos").is_file():  # Pang and Lee's files; Latin-1, one excerpt a line
        rows = []
        for label, name in enumerate(("neg", "pos")):
            lines = (path / f"rt-polarity.{name}").read_bytes().decode("latin-1").split("\n")
            rows += [
                LabelledText(line.strip(), label, f"{name}/{i:05d}") for i, line in enumerate(lines) if line.strip()
            ]
    else:
        folders = [path / "neg", path / "pos"]
        if missing := [folder.name for folder in folders if not folder.is_dir()]:
            raise Refused(f"{path.name} has no {' and no '.join(missing)}: pass IMDb's test folder, with pos/ and neg/")
        rows = [
            LabelledText(file.read_text(encoding="utf-8").replace("<br />", " "), label, f"{folder.name}/{file.stem}")
            for label, folder in enumerate(folders) for file in folder.glob("*.txt")
        ]
    return sorted(rows, key=lambda row: splits.unit(row.name))


def _from_hub(where: str) -> list[LabelledText]:
    try:
        import datasets
    except ImportError:
        raise Refused("data sets of the hub need the library of that name: pip install datasets") from None
    _, _, name = where.partition(":")
    name, _, split = name.partition(":")
    name, _, configuration = name.partition("@")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split or "test")
    except Exception as error:
        raise Refused(
            f"{where} could not be loaded ({type(error).__name__}: {error}): check name, split and network, or pass "
            "files. SST-2 is hub:nyu-mll/glue@sst2:validation"
        ) from error
    column = _column(table.column_names, where)
    pairs = zip(table[column], table["label"], strict=True)
    return [LabelledText(text, label, f"{i:05d}") for i, (text, label) in enumerate(pairs)]


def short_name(where: str) -> str:
    """A name for a data set or a model: the end of its path, in letters, digits, dots and dashes.

    Example: ``/data/SST-2/dev.tsv`` -> ``SST-2-dev``.
    """
    parts = [part for part in re.split(r"[/\\]", where.removeprefix("hub:")) if part]
    path = Path(where)
    if path.suffix in (".tsv", ".csv", ".jsonl") and len(parts) > 1:
        parts = [f"{parts[-2]}-{path.stem}"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", parts[-1]).strip("-")
