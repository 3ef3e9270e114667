"""Recorded runs: what was measured, item by item, by which code, on which machine.

A record is one JSON file, ``results/<tier>/<name>.json``: the items (what was scored), the cells (one way of running
the model each, with an outcome per item) and the runs that made them. It is written anew after every cell, all at once,
so a run that is killed loses no more than the cell it was in and continues there when it is started again.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from pitome_core.experiments import settings
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.statistics import Difference, bootstrap_mean, mcnemar, paired_difference

FORMAT = 1  # of the file; raise it when the layout changes
DIGITS = 5  # of outcomes: more would be noise of the processor
PACKAGES = ("pitome-core", "torch", "torchvision", "timm", "transformers", "open_clip_torch", "numpy", "scikit-learn")
HERE = Path(__file__).resolve()


def folder() -> Path:
    """Where the committed records are: ``results/`` of the clone, else the copy inside the installed package."""
    clone = _clone()
    return clone / "results" if clone else HERE.parents[1] / "recorded"


def writable(committed: bool) -> Path:
    """Where new records go: ``results/`` of the clone or working folder, or ``_build/results/``, not committed."""
    return (_clone() or Path.cwd()) / ("results" if committed else "_build/results")


def _clone() -> Path | None:
    """The repository this file lies in; None where the package is installed without it."""
    root = HERE.parents[3]
    return root if (root / "pyproject.toml").is_file() else None


class RecordError(RuntimeError):
    """A record cannot be used for what was asked; the message says what to do."""


class Record:
    """One file of outcomes.

    Attributes:
        path: the file.
        header: experiment, task, tier, split, protocol, model, clusters and whatever else describes the run as a whole.
        items: columns, one value per item; ``id`` is always there.
        runs: provenance of every run that added cells.
        cells: by key, e.g. ``tome@0.9``; outcomes are lists with one value (or one list) per item.
    """

    def __init__(self, path: Path, header: dict, items: dict[str, list], runs: list[dict], cells: dict[str, dict]):
        self.path, self.header, self.items, self.runs, self.cells = Path(path), header, items, runs, cells
        self._run: int | None = None

    @classmethod
    def load(cls, path: Path | str) -> Record:
        """Read a file. `RecordError` if it is missing, damaged or of another format."""
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise RecordError(f"{path} has format {found['format']}, this code reads {FORMAT}: run `make results`")
            items = {name: _expanded(column) for name, column in found["items"].items()}
            return cls(path, found["header"], items, found["runs"], found["cells"])
        except FileNotFoundError:
            raise RecordError(f"no record {path}: run `make results`, or the command in its chapter") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "restore it from version control, or delete it"
            raise RecordError(f"{path} is no record ({error!r}): {remedy}") from error

    @classmethod
    def open(cls, path: Path | str, header: Mapping[str, Any], items: Mapping[str, Sequence]) -> Record:
        """The record at `path` to go on with, or a new one.

        Raises:
            RecordError: the file was made for other items, another model or another protocol.
            ValueError: columns of unequal length, or identities that repeat.
        """
        path, header = Path(path), json.loads(json.dumps(dict(header)))
        items = {name: json.loads(json.dumps(list(column))) for name, column in items.items()}
        lengths = {name: len(column) for name, column in items.items()}
        if len(set(lengths.values())) != 1 or "id" not in items:
            raise ValueError(f"items need a column id and columns of one length, got {lengths}")
        if len(set(items["id"])) != len(items["id"]):
            raise ValueError("items need ids that differ")
        if not path.exists():
            return cls(path, header, items, [], {})
        record = cls.load(path)
        changed = [name for name in {**header, **record.header} if header.get(name) != record.header.get(name)]
        if changed or items != record.items:
            what = ", ".join(f"{n} {record.header.get(n)!r} there, {header.get(n)!r} now" for n in changed) or (
                f"{len(record)} items there, {lengths['id']} now" if len(record) != lengths["id"] else "other items"
            )
            raise RecordError(f"{path} is of another run ({what}): move it away, or choose another --output")
        return record

    def __len__(self) -> int:
        return len(self.items["id"])

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def add(self, key: str, cell: Mapping[str, Any], outcomes: Mapping[str, Any], seed: int | None = 0) -> None:
        """Add (or replace) a cell and write the file.

        `outcomes`: arrays whose first axis is the items, or what `pack` made of one.
        """
        lists = {name: values if isinstance(values, dict) else _rounded(values) for name, values in outcomes.items()}
        for name, values in lists.items():
            length = values["length"] if isinstance(values, dict) else len(values)
            if length != len(self):
                raise ValueError(f"outcome {name!r} of {key} has {length} values for {len(self)} items")
        if self._run is None:
            self._run = len(self.runs)
            self.runs.append(provenance(seed))
        self.cells[key] = {**cell, "run": self._run, "outcomes": lists}
        self.save()

    def save(self) -> None:
        """Write the file: beside its place first, then renamed, so that there is always a whole one."""
        write_atomically(self.path, self._text())

    def _text(self) -> str:
        """JSON with one line per column, run and cell, so that a diff can be read."""
        def block(table: Mapping[str, Any]) -> str:
            return ",\n".join(f"  {json.dumps(key)}: {_compact(value)}" for key, value in table.items())

        items = {name: _shortened(column) for name, column in self.items.items()}
        runs = ",\n".join(f"  {_compact(run)}" for run in self.runs)
        return (
            f'{{\n "format": {FORMAT},\n "header": {{\n{block(self.header)}\n }},\n "items": {{\n{block(items)}\n }},\n'
            f' "runs": [\n{runs}\n ],\n "cells": {{\n{block(self.cells)}\n }}\n}}\n'
        )

    def outcome(self, key: str, name: str) -> np.ndarray:
        """``(items, ...)`` float; missing values are NaN. `KeyError` names the cells or outcomes there are."""
        if key not in self.cells:
            raise KeyError(f"no cell {key!r} in {self.path.name}; there are {', '.join(self.cells)}")
        outcomes = self.cells[key]["outcomes"]
        if name not in outcomes:
            raise KeyError(f"cell {key!r} of {self.path.name} has no outcome {name!r}; it has {', '.join(outcomes)}")
        return unpack(outcomes[name]) if isinstance(outcomes[name], dict) else np.array(outcomes[name], dtype=float)

    def about(self, key: str) -> dict[str, Any]:
        """The cell `key`, or that of the first of its seeds."""
        return self.cells[self.seeds_of(key)[0]]

    def seeds_of(self, key: str) -> list[str]:
        """The keys of the cells that `key` stands for: its own cell, or the cells of all seeds of an arm that draws.

        Example: ``random-prune@0.9`` stands for ``random-prune@0.9/seed0``, ``random-prune@0.9/seed1``, ...
        `KeyError` names the cells that there are.
        """
        if key in self.cells:
            return [key]
        of_seeds = {name: Cell.of(about) for name, about in self.cells.items() if "seed" in about}
        keys = [name for name, cell in of_seeds.items() if cell.without_seed.key == key]
        if not keys:
            raise KeyError(f"no cell {key!r} in {self.path.name}; there are {', '.join(self.cells)}")
        return keys

    def groups(self, cells: Iterable[Cell] | None = None) -> list[str]:
        """Keys without seeds, each once, in order: of the given cells, or of all cells of the record."""
        cells = map(Cell.of, self.cells.values()) if cells is None else cells
        return list(dict.fromkeys(cell.without_seed.key for cell in cells))

    def rival_of(self, key: str, rival: str = "tome") -> str | None:
        """The key of the cell of another arm that the cell `key` may be compared with (`Cell.beside`).

        None where the record has no such cell, and for the rival itself.
        """
        cell = Cell.of(self.about(key))
        other = (cell if key in self.cells else cell.without_seed).beside(rival)
        if other is None or other.arm == cell.arm:
            return None
        return other.key if other.key in self.groups() or other.key in self.cells else None

    def mean_over_seeds(self, key: str, name: str) -> np.ndarray:
        """As `outcome`, averaged over the cells that `key` stands for (`seeds_of`) and that have the outcome."""
        return np.mean([self.outcome(one, name) for one in self.having(key, name)], axis=0)

    def has(self, key: str, name: str) -> bool:
        """Whether a cell that `key` stands for has the outcome `name`."""
        return any(name in self.cells[one]["outcomes"] for one in self.seeds_of(key))

    def having(self, key: str, name: str) -> list[str]:
        """The cells that `key` stands for and that have the outcome `name`; all of them where none has it."""
        keys = self.seeds_of(key)
        return [one for one in keys if name in self.cells[one]["outcomes"]] or keys

    def per_item(self, key: str, name: str) -> np.ndarray:
        """As `mean_over_seeds`, one number per item: several, such as one for each layer, are averaged."""
        values = self.mean_over_seeds(key, name)
        return values.reshape(len(values), -1).mean(axis=1)

    @property
    def clusters(self) -> tuple[list, ...] | None:
        """The columns whose values are resampled, as `statistics` takes them; None: every item by itself."""
        names = self.header.get("clusters") or []
        if not names:
            return None
        return self.items[names[0]] if len(names) == 1 else tuple(self.items[name] for name in names)

    def estimate(self, key: str, name: str, *, skip_missing: bool = False) -> tuple[float, float, float]:
        """Mean of an outcome with its 95 % interval: (mean, low, high). `skip_missing` as in `difference`."""
        values = self.per_item(key, name)
        return bootstrap_mean(*self._present([values], skip_missing))

    def difference(self, first: str, second: str, name: str, *, skip_missing: bool = False) -> Difference:
        """Outcome of cell `first` minus that of `second`, paired by item.

        `skip_missing` leaves out the items that have no value in either (``Difference.items`` says how many remain);
        without it a missing value is an error.
        """
        pair = [self.per_item(first, name), self.per_item(second, name)]
        return paired_difference(*self._present(pair, skip_missing))

    def _present(self, columns: list[np.ndarray], skip_missing: bool) -> tuple:
        """The columns and the clusters, at the items where no column misses a value."""
        here = ~np.isnan(columns).any(axis=0)
        if not skip_missing or here.all():
            return *columns, self.clusters
        names = self.header.get("clusters") or []
        kept = [np.asarray(self.items[name])[here] for name in names]
        return *(column[here] for column in columns), None if not kept else kept[0] if len(kept) == 1 else tuple(kept)

    def mcnemar(self, first: str, second: str, name: str) -> tuple[int, int, float]:
        """McNemar's exact test of two right-or-wrong outcomes: (only first right, only second right, p)."""
        return mcnemar(self.outcome(first, name), self.outcome(second, name))


def load(name: str, tier: str = "embedded") -> Record:
    """The committed record ``<tier>/<name>.json``. Raises `RecordError` where there is none."""
    return Record.load(folder() / tier / f"{name}.json")


def disagreement(recorded: Sequence, live: Sequence, tolerance: float) -> tuple[int, int]:
    """How many items have a live value further than `tolerance` from the recorded one, and how many may.

    The protocol allows 1 % of the items, or one: another processor may flip a near-tie. A value that is missing (NaN)
    in both agrees; in one of them, it does not.
    """
    recorded, live = np.asarray(recorded, float), np.asarray(live, float)
    if recorded.shape != live.shape:
        raise ValueError(f"{recorded.shape} recorded values and {live.shape} live ones: pass the same items")
    same = np.isclose(live, recorded, rtol=0, atol=tolerance, equal_nan=True).reshape(len(live), -1).all(axis=1)
    return int((~same).sum()), max(1, len(live) // 100)


def log_test(record: Record, cells: Sequence[str], log: Path | None = None) -> None:
    """Note in ``results/test_log.json`` that cells of a test set are about to be scored. Call it before, not after.

    A run that is killed and started again makes two entries; `new` counts the cells that the record lacked each time.
    """
    log = log or writable(committed=True) / "test_log.json"
    about = {name: record.header.get(name) for name in ("experiment", "task", "tier", "protocol", "model")}
    made = provenance(None)
    entry = {
        "date": made["date"], **about, "items": len(record), "new": len([k for k in cells if k not in record]),
        "again": len([k for k in cells if k in record]), "code": made["code"], "commit": made["commit"],
        "device": made["device"], "command": made["command"],
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(log.with_name(f".{log.name}.lock")):  # tasks may run side by side
        entries = json.loads(log.read_text(encoding="utf-8")) if log.exists() else []
        lines = ",\n".join(f" {_compact(one)}" for one in [*entries, entry])
        write_atomically(log, f"[\n{lines}\n]\n")


def note(name: str, entry: Mapping[str, Any], log: Path | None = None) -> None:
    """Add a line to ``name.jsonl`` beside the records that are not committed: one short write, which processes share.

    To what `entry` says come date, code, device and command. `log` is another file to write to.
    """
    log = log or writable(committed=False) / f"{name}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    made = provenance(None)
    line = {**entry, **{name: made[name] for name in ("date", "code", "device", "command")}}
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def provenance(seed: int | None = 0) -> dict[str, Any]:
    """Commit, code, command, versions, device, threads, seed and date of this process.

    ``code`` is a hash of the package's sources: it tells runs of different code apart where there is no commit, or
    where files were changed since. ``modified`` says whether the package differs from the commit (None: unknown).
    """
    device = settings.device()
    root = _clone()
    told = os.environ.get("PITOME_COMMIT")  # a copy of the tree may have no history, or an older one
    commit = _git(root, "rev-parse", "HEAD") if root and not told else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *_arguments()]),
        "commit": told or commit,
        "modified": bool(_git(root, "status", "--porcelain", "--", "pitome_core")) if commit else None,
        "code": code_fingerprint(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "seed": seed,
    }


def device_name(device: torch.device) -> str:
    """What the graphics card or the processor calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


@functools.lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """12 hexadecimal digits of a SHA-256 over the sources and tables of ``pitome_core``, names and contents."""
    package, digest = HERE.parents[2], hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.csv")]):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def exact_float32() -> None:
    """No TF32: convolutions would round to it by default, and plans hang on small differences."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, all or nothing, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def pack(values: Sequence[float]) -> dict[str, Any]:
    """An outcome of zeros, ones and NaN in a sixth of a character per item: for test sets of tens of thousands.

    ``bits`` is base64 of the values, eight to a byte, the first in the highest bit; ``missing`` lists where NaN stood.
    `ValueError` for any other value.
    """
    values = np.asarray(values, dtype=float)
    missing = np.flatnonzero(np.isnan(values))
    if odd := np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1)).tolist():
        raise ValueError(f"only 0, 1 and NaN can be packed: {len(odd)} of {len(values)} are not, the first at {odd[0]}")
    bits = base64.b64encode(np.packbits(values == 1).tobytes()).decode("ascii")
    return {"length": len(values), "missing": missing.tolist(), "bits": bits}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """``(items,)`` float: what `pack` was given."""
    stored = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    values = np.unpackbits(stored, count=packed["length"]).astype(float)
    values[packed["missing"]] = np.nan
    return values


def _shortened(column: list) -> list | dict[str, int]:
    """A column as the file has it: items that are only numbered are not listed."""
    return {"range": len(column)} if len(column) > 100 and column == list(range(len(column))) else column


def _expanded(column: list | dict[str, int]) -> list:
    return list(range(column["range"])) if isinstance(column, dict) else column


def _rounded(values: Any) -> list:
    """Numbers with `DIGITS` decimals, whole ones as integers, NaN as None; lists as they are nested."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind in ("b", "u", "i"):
        return array.astype(int).tolist()

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(v) for v in value]
        if not isinstance(value, float):
            return value
        return None if value != value else round(value, DIGITS)

    return [one(value) for value in array.tolist()]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _arguments() -> list[str]:
    """How this process was started, without the folders of this machine."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    given = [_without_folders(word) for word in sys.argv]
    if spec is not None and spec.name:
        return ["-m", spec.name.removesuffix(".__main__"), *given[1:]]
    return given if given and given[0] else []


def _without_folders(word: str) -> str:
    """``/data/imagenet/val`` -> ``.../val``, also behind ``--data=`` and ``local-dir:``."""
    before, value = re.fullmatch(r"(.*?[=:](?=[/~]))?(.*)", word, re.DOTALL).groups("")
    away = value.startswith("~") or Path(value).is_absolute()
    return f"{before}.../{Path(value).name}" if away else word


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
