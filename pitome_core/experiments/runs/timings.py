"""A file of timings: cells by key, each with the run that measured it.

Seconds are only comparable within one state of the code on one machine. So a cell counts as measured for one code,
device, set of packages, number of threads, TF32 setting and version of CUDA. Under any other it is measured again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pitome_core.experiments.records import files, locking, provenance, results

FORMAT = 1  # of the file; raise it when the layout changes
CIRCUMSTANCES = ("code", "device", "packages", "threads", "tf32", "torch_cuda")


def load(path: Path, experiment: str) -> dict[str, dict[str, Any]]:
    """The cells of a file by key; the field `run` of a cell is the run that measured it. No file: no cells.

    Raises:
        RecordError: the file is no record of timings of that experiment in this format, or it is damaged.
    """
    if not path.exists():
        return {}
    record = files.read_json(path)
    about = record if isinstance(record, dict) else {}
    if about.get("format") != FORMAT or about.get("experiment") != experiment:
        raise results.RecordError(
            f"{path} is no record of {experiment!r} timings in format {FORMAT}: choose another --output"
        )
    try:
        if "lengths" in record:  # an older layout: one run, and the variants of every length of a text
            return {
                f"{tokens} tokens, batch {record['batch']}":
                    {"tokens": int(tokens), "batch": record["batch"], "variants": variants, "run": record["run"]}
                for tokens, variants in record["lengths"].items()
            }
        return {key: {**cell, "run": record["runs"][cell["run"]]} for key, cell in record["cells"].items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise results.RecordError(f"{path} is damaged ({error!r}): {files.REMEDY}") from error


class Timings:
    """The record at `path`, to be added to. It is written after every cell, all at once, as `results.Record` is.

    Attributes:
        cells: as `load` returns them.
        now: the run that measures now: its code, device, packages, threads, date and command.
    """

    def __init__(self, path: Path, experiment: str, units: str, code: str, note: str = ""):
        self.path, self.experiment, self.units = Path(path), experiment, units
        self.cells = load(self.path, experiment)
        self.now = provenance.of_run(code) | {"torch_cuda": torch.version.cuda}
        if note:
            self.now["note"] = note

    def __contains__(self, key: str) -> bool:
        """Whether the cell was measured, without an error, by this code under these circumstances."""
        cell = self.cells.get(key)
        if cell is None or "error" in cell:
            return False
        return all(cell["run"].get(name) == self.now[name] for name in CIRCUMSTANCES)

    def add(self, key: str, cell: Mapping[str, Any]) -> None:
        """Add or replace a cell and write the file, with the cells that others have put into it meanwhile."""
        with locking.alone(self.path, results.WAIT):
            self.cells |= load(self.path, self.experiment)
            self.cells[key] = files.plain({**cell, "run": self.now})
            files.write_atomically(self.path, self.text())

    def text(self) -> str:
        """The file: JSON with one line per run and cell, so that a diff can be read.

        It holds the runs that at least one cell comes from, the oldest first. A cell names its run by number.
        """
        numbered: list[dict[str, Any]] = []
        for cell in self.cells.values():
            if cell["run"] not in numbered:
                numbered.append(cell["run"])
        numbered.sort(key=lambda run: run["date"])
        line = functools.partial(json.dumps, allow_nan=False)
        runs = ",\n".join(f"  {line(run)}" for run in numbered)
        cells = ",\n".join(
            f"  {line(key)}: {line({**cell, 'run': numbered.index(cell['run'])})}" for key, cell in self.cells.items()
        )
        return (
            f'{{\n "format": {FORMAT},\n "experiment": {json.dumps(self.experiment)},\n'
            f' "units": {json.dumps(self.units)},\n "runs": [\n{runs}\n ],\n "cells": {{\n{cells}\n }}\n}}\n'
        )
