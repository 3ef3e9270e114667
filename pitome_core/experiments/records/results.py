"""Recorded runs: what was measured, item by item, by which code, on which machine.

A record is one JSON file, ``results/<tier>/<name>.json``: the items (what was scored), the cells (one way of running
the model each, with an outcome per item) and the runs that made them. It is written anew after every cell, all at once,
so a run that is killed loses no more than the cell it was in and continues there when it is started again. Whoever
writes holds the lock of the file (`locking.alone`) and first takes over what others have put into it since it was read.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pitome_core.experiments.records import files, locking
from pitome_core.experiments.records.cells import ARMS, Cell
from pitome_core.experiments.records.files import RecordError
from pitome_core.experiments.records.statistics import Difference, mcnemar, mean_interval, paired_difference

FORMAT = 1  # of the file; raise it when the layout changes
DIGITS = 5  # of outcomes: more would be noise of the processor
AGREE = 1e-3  # how far an outcome of one cell in two records may differ (`joined`)
WAIT = 60.0  # seconds that adding a cell waits for another writer; whoever writes for longer holds the lock for a run
HERE = Path(__file__).resolve()


def folder() -> Path:
    """Where the committed records are: ``results/`` of the clone, else the copy inside the installed package."""
    root = clone()
    return root / "results" if root else HERE.parents[1] / "recorded"


def writable(committed: bool) -> Path:
    """Where new records go: ``results/`` of the clone or working folder, or ``_build/results/``, not committed."""
    return (clone() or Path.cwd()) / ("results" if committed else "_build/results")


def clone() -> Path | None:
    """The repository this file lies in; None where the package is installed without it."""
    root = HERE.parents[3]
    return root if (root / "pyproject.toml").is_file() else None


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
        self._own: list[dict] = []  # the runs that this object added: a run of another process is none of them
        self._seen = _stamp(self.path)  # the state of the file that the attributes hold

    @classmethod
    def load(cls, path: Path | str) -> Record:
        """Read a file. `RecordError` if it is missing, damaged or of another format."""
        path = Path(path)
        seen = _stamp(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
            if (version := content["format"]) != FORMAT:
                raise RecordError(f"{path} has format {version}, this code reads {FORMAT}: run `make results`")
            items = {name: _expanded(column) for name, column in content["items"].items()}
            record = cls(path, content["header"], items, content["runs"], content["cells"])
            record._check()
        except FileNotFoundError:
            raise RecordError(f"no record {path}: run `make results`, or the command in its chapter") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise RecordError(f"{path} is no record ({error!r}): {files.REMEDY}") from error
        record._seen = seen
        return record

    def _check(self) -> None:
        """Raise an error of one kind or another where the parts of a file do not fit together."""
        _same_lengths(self.items)
        for table in (self.header, *self.runs):
            dict(table)
        for key, cell in self.cells.items():
            if cell["run"] not in range(len(self.runs)):
                raise ValueError(f"{key} is of run {cell['run']!r}, there are {len(self.runs)}")
            for name, values in cell["outcomes"].items():
                length = values["length"] if isinstance(values, dict) else len(values)
                if length != len(self):
                    raise ValueError(f"outcome {name!r} of {key} has {length} values for {len(self)} items")
                if isinstance(values, dict) and "bits" in values:
                    unpack(values)

    @classmethod
    def open(cls, path: Path | str, header: Mapping[str, Any], items: Mapping[str, Sequence]) -> Record:
        """The record at `path` to go on with, or a new one.

        Raises:
            RecordError: the file was made for other items, another model or another protocol.
            ValueError: columns of unequal length, or identities that repeat.
        """
        path, header = Path(path), files.plain(dict(header))
        items = {name: files.plain(list(column)) for name, column in items.items()}
        _same_lengths(items)
        if len(set(items["id"])) != len(items["id"]):
            raise ValueError("items need ids that differ")
        if not path.exists():
            return cls(path, header, items, [], {})
        record = cls.load(path)
        changed = [name for name in {**header, **record.header} if header.get(name) != record.header.get(name)]
        if changed or items != record.items:
            differences = ", ".join(f"{n} {record.header.get(n)!r} there, {header.get(n)!r} now" for n in changed) or (
                f"{len(record)} items there, {len(items['id'])} now"
                if len(record) != len(items["id"]) else "other items"
            )
            raise RecordError(f"{path} is of another run ({differences}): move it away, or choose another --output")
        return record

    def __len__(self) -> int:
        return len(self.items["id"])

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def add(
        self, key: str, cell: Mapping[str, Any], outcomes: Mapping[str, Any], run: Mapping[str, Any]
    ) -> None:
        """Add (or replace) a cell and write the file, with the cells that others have put into it meanwhile.

        Args:
            key: of the cell.
            cell: what the record says about it.
            outcomes: arrays whose first axis is the items, or what `pack` made of one.
            run: what `provenance.of_run` returned when the computation of the cell started. Runs of one process that
                differ in their dates only are one entry of `runs`.

        Raises:
            ValueError: an outcome has another number of values than there are items.
            RecordError: another run holds the lock of the file, the file cannot be written, or it is of another run by
                now.
        """
        lists = {name: values if isinstance(values, dict) else _rounded(values) for name, values in outcomes.items()}
        for name, values in lists.items():
            length = values["length"] if isinstance(values, dict) else len(values)
            if length != len(self):
                raise ValueError(f"outcome {name!r} of {key} has {length} values for {len(self)} items")
        with locking.alone(self.path, WAIT):
            self._merge()
            self.cells[key] = files.plain({**cell, "run": self._number_of(run), "outcomes": lists})
            files.write_atomically(self.path, self._text())
            self._seen = _stamp(self.path)

    def _merge(self) -> None:
        """Take over what the file holds, if it has changed since it was read; what it lacks of this record stays."""
        if self._seen == _stamp(self.path) or not self.path.exists():
            return
        there = self.open(self.path, self.header, self.items)
        there._own = self._own
        for key in [key for key in self.cells if key not in there]:
            cell = self.cells[key]
            there.cells[key] = cell | {"run": there._number_of(self.runs[cell["run"]])}
        self.runs, self.cells = there.runs, there.cells

    def _number_of(self, run: Mapping[str, Any]) -> int:
        """Where the run stands in `runs`, the last one that is the same; it is added if it is not there."""
        run = files.plain(dict(run))
        for number, other in reversed(list(enumerate(self.runs))):
            if other in self._own and other | {"date": None} == run | {"date": None}:
                return number
        self.runs.append(run)
        self._own.append(run)
        return len(self.runs) - 1

    def _text(self) -> str:
        """JSON with one line per column, run and cell, so that a diff can be read."""
        def block(table: Mapping[str, Any]) -> str:
            return ",\n".join(f"  {json.dumps(key)}: {files.one_line(value)}" for key, value in table.items())

        items = {name: _shortened(column) for name, column in self.items.items()}
        runs = ",\n".join(f"  {files.one_line(run)}" for run in self.runs)
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

    def is_outdated(self, key: str) -> bool:
        """Whether the cell `key` was made with other options than its arm has today.

        Its outcomes are then those of an earlier form of the arm: a live run is another computation, and the cell is to
        be made again.
        """
        cells = [self.cells[name] for name in self.seeds_of(key)]
        arms = [(cell, ARMS[cell["arm"]]) for cell in cells if cell.get("arm") in ARMS]
        return any(cell.get("options", {}) != arm.options for cell, arm in arms)

    def groups(self, cells: Iterable[Cell] | None = None) -> list[str]:
        """Keys without seeds, each once, in order: of the given cells, or of all cells of the record."""
        cells = map(Cell.of, self.cells.values()) if cells is None else cells
        return list(dict.fromkeys(cell.without_seed.key for cell in cells))

    def rival_of(self, key: str, rival: str = "tome") -> str | None:
        """The key of the cell of another arm that the cell `key` may be compared with (`Cell.beside`).

        The rival ``"shuffled"`` is the same arm with shuffled energies (`Cell.shuffled`). None where the record has no
        such cell, and for the rival itself.
        """
        rival_cell = self._rival_cell(key, rival)
        if rival_cell is None or rival_cell.arm == Cell.of(self.about(key)).arm:
            return None
        return rival_cell.key if rival_cell.key in self.groups() or rival_cell.key in self.cells else None

    def has_rival(self, key: str, rival: str = "tome") -> bool:
        """Whether there is such a cell, on record or still to be run."""
        return self._rival_cell(key, rival) is not None

    def _rival_cell(self, key: str, rival: str) -> Cell | None:
        cell = Cell.of(self.about(key))
        cell = cell if key in self.cells else cell.without_seed
        return cell.shuffled if rival == "shuffled" else cell.beside(rival)

    def mean_over_seeds(self, key: str, name: str) -> np.ndarray:
        """As `outcome`, averaged over the cells that `key` stands for (`seeds_of`) and that have the outcome."""
        return np.mean([self.outcome(cell_key, name) for cell_key in self.having(key, name)], axis=0)

    def has(self, key: str, name: str) -> bool:
        """Whether a cell that `key` stands for has the outcome `name`."""
        return any(name in self.cells[cell_key]["outcomes"] for cell_key in self.seeds_of(key))

    def having(self, key: str, name: str) -> list[str]:
        """The cells that `key` stands for and that have the outcome `name`; all of them where none has it."""
        keys = self.seeds_of(key)
        return [cell_key for cell_key in keys if name in self.cells[cell_key]["outcomes"]] or keys

    def per_item(self, key: str, name: str) -> np.ndarray:
        """As `mean_over_seeds`, one number per item: several, such as one for each layer, are averaged."""
        values = self.mean_over_seeds(key, name)
        return values.reshape(len(values), -1).mean(axis=1)

    @property
    def clusters(self) -> tuple[list, ...] | None:
        """The columns that say which items belong together, as `statistics` takes them; None: every item by itself."""
        names = self.header.get("clusters") or []
        if not names:
            return None
        return self.items[names[0]] if len(names) == 1 else tuple(self.items[name] for name in names)

    def clusters_among(self, names: Sequence[str], among: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """As `clusters`, of the columns `names`, at the items where ``among (items,)`` is true."""
        labels = [np.asarray(self.items[name])[among] for name in names]
        return None if not labels else labels[0] if len(labels) == 1 else tuple(labels)

    def estimate(self, key: str, name: str, *, skip_missing: bool = False) -> tuple[float, float, float]:
        """Mean of an outcome with its 95 % interval: (mean, low, high). `skip_missing` as in `difference`."""
        values = self.per_item(key, name)
        return mean_interval(*self._present([values], skip_missing))

    def difference(self, first: str, second: str, name: str, *, skip_missing: bool = False) -> Difference:
        """Outcome of cell `first` minus that of `second`, paired by item.

        `skip_missing` leaves out the items that have no value in either (``Difference.items`` says how many remain);
        without it a missing value is an error.
        """
        pair = [self.per_item(first, name), self.per_item(second, name)]
        return paired_difference(*self._present(pair, skip_missing))

    def _present(self, columns: list[np.ndarray], skip_missing: bool) -> tuple:
        """The columns and the clusters, at the items where no column misses a value."""
        present = ~np.isnan(columns).any(axis=0)
        if not skip_missing or present.all():
            return *columns, self.clusters
        return *(column[present] for column in columns), self.clusters_among(self.header.get("clusters") or [], present)

    def mcnemar(self, first: str, second: str, name: str) -> tuple[int, int, float]:
        """McNemar's exact test of two right-or-wrong outcomes: (only first right, only second right, p)."""
        return mcnemar(self.outcome(first, name), self.outcome(second, name))


def load(name: str, tier: str = "embedded") -> Record:
    """The committed record ``<tier>/<name>.json``. Raises `RecordError` where there is none."""
    return Record.load(folder() / tier / f"{name}.json")


def joined(first: Record, second: Record) -> Record:
    """The cells of two records of the same items, to be read together; `first` lends path and header.

    A cell that both have, such as the whole model's, is that of `first`, and has to agree with that of `second` in the
    outcomes that both have, within `AGREE`: the difference between two methods would else be one between two machines.
    Nothing is written.

    Raises:
        RecordError: other items, another model, split or tier, or a cell of both that disagrees.
    """
    both = f"{first.path.name} and {second.path.name}"
    about = ("split", "tier", "clusters", "model", "input", "dtype")
    changed = [name for name in about if first.header.get(name) != second.header.get(name)]
    if changed or first.items != second.items:
        raise RecordError(f"{both} cannot be read together: {', '.join(changed) or 'their items'} differ")
    cells = {
        key: cell | {"run": cell["run"] + len(first.runs)} for key, cell in second.cells.items() if key not in first
    }
    for key in (key for key in second.cells if key in first):
        for name in (name for name in first.cells[key]["outcomes"] if name in second.cells[key]["outcomes"]):
            off, allowed = disagreement(first.outcome(key, name), second.outcome(key, name), AGREE)
            if off > allowed:
                raise RecordError(
                    f"{both} cannot be read together: {name!r} of {key} differs by more than {AGREE:g} in {off} of "
                    f"{len(first)} items, {allowed} may: score one of them again, on the machine of the other"
                )
    return Record(first.path, first.header, first.items, [*first.runs, *second.runs], first.cells | cells)


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


def pack(values: Sequence[float]) -> dict[str, Any]:
    """An outcome of zeros, ones and NaN as text of a sixth of a character per item, for tens of thousands of items.

    ``bits`` is base64 of the values, eight to a byte, the first in the highest bit. ``missing`` lists the places of the
    NaNs. Raises `ValueError` for any other value.
    """
    values = np.asarray(values, dtype=float)
    missing = np.flatnonzero(np.isnan(values))
    if odd := np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1)).tolist():
        raise ValueError(f"only 0, 1 and NaN can be packed: {len(odd)} of {len(values)} are not, the first at {odd[0]}")
    bits = base64.b64encode(np.packbits(values == 1).tobytes()).decode("ascii")
    return {"length": len(values), "missing": missing.tolist(), "bits": bits}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The values that `pack` was given, as floats: ``(items,)``.

    Raises:
        ValueError: there are more or fewer bits than values, bits that are no base64, or places that are not there.
    """
    length, missing = packed["length"], np.array(packed["missing"], dtype=int)
    stored = np.frombuffer(base64.b64decode(packed["bits"], validate=True), dtype=np.uint8)
    if len(stored) != (length + 7) // 8:
        raise ValueError(f"{len(stored)} bytes of bits for {length} values, {(length + 7) // 8} are needed")
    values = np.unpackbits(stored)
    if values[length:].any() or not ((missing >= 0) & (missing < length)).all() or values[missing].any():
        raise ValueError(f"bits are set, or values missing, at places that none of {length} values has")
    values = values[:length].astype(float)
    values[missing] = np.nan
    return values


def _same_lengths(items: Mapping[str, Sequence]) -> None:
    lengths = {name: len(column) for name, column in items.items()}
    if len(set(lengths.values())) != 1 or "id" not in items:
        raise ValueError(f"items need a column id and columns of one length, got {lengths}")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells one state of a file from another; None: there is no file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _shortened(column: list) -> list | dict[str, int]:
    """A column as it stands in the file: numbers 0, 1, 2, ... of more than 100 items are not listed."""
    return {"range": len(column)} if len(column) > 100 and column == list(range(len(column))) else column


def _expanded(column: list | dict[str, int]) -> list:
    return list(range(column["range"])) if isinstance(column, dict) else column


def _rounded(values: Any) -> list:
    """Numbers with `DIGITS` decimals, whole ones as integers, NaN and infinity as None; lists as they are nested."""
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
        return round(value, DIGITS) if math.isfinite(value) else None

    return [one(value) for value in array.tolist()]
