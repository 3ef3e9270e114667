"""Spectral distance on the tokens of a real model, and its relation to the damage that merging does.

Every layer is measured by itself. On the keys of the whole model each method plans one merge of a tenth of the tokens.
The distance of equation 5 is measured between the token graph and its lifted coarsening, on both Laplacians. Then the
model runs with that one merge, in that one layer, and its last class and patch tokens are compared with those of the
whole model. One more run merges in all layers.

tasks:
  photographs   the natural photographs in installed packages
  collection    103 other photographs, if that optional asset is in the cache
  scenes        objects on photographs, dev split
  sentences     rated sentences of the dev split, on the keys of all-MiniLM-L6-v2; a fifth of the words merge

examples:
  python -m pitome_core.experiments spectra --tasks photographs
  python -m pitome_core.experiments spectra --tasks scenes --count 12 --output /tmp/spectra
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

import pitome_core.experiments.baselines  # noqa: F401  registers rivals and controls
from pitome_core.experiments import settings
from pitome_core.experiments.models import vit
from pitome_core.experiments.records import locking, provenance, results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.runs.command_line import refusing

from .layers import OUTCOMES
from .tasks import KEEP, TASKS, TEXT_KEEP, available, cells, load

PROTOCOL = "spectra-2"  # the grid in book/protocol.md
TEXT_MODEL = "all-MiniLM-L6-v2"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    parser.add_argument("--profile", choices=settings.PROFILES, help="tier; default: PITOME_PROFILE, else embedded")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK",
                        help=f"some of {', '.join(TASKS)}; default: all whose data are in the cache")
    parser.add_argument("--count", type=int, metavar="N", help="measure the first N items only; needs --output")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the records; default: results/<tier>")
    parser.add_argument("--again", action="store_true", help="score cells again that are already recorded")
    parser.add_argument("--allow-modified", action="store_true", help="write a committed record although the package "
                        "differs from the commit; the record says so")
    parser.add_argument("--estimate", action="store_true", help="print how long the run would take, and stop")


@refusing
def main(args: argparse.Namespace) -> int:
    """Measure the tasks, print a table for each, and return the exit status."""
    if args.count and not args.output:
        print("--count makes a partial record: name its folder with --output", file=sys.stderr)
        return 2
    settings.exact_float32()
    for task in args.tasks or [name for name in TASKS if available(name)]:
        record = run(task, args)
        if not args.estimate:
            print(summary(record))
    return 0


def run(task: str, args: argparse.Namespace) -> results.Record:
    """Score the cells that are missing in the record of a task, and write the record after each one."""
    data = load(task, args.count)
    text = task == "sentences"
    keep = TEXT_KEEP if text else KEEP
    header = {
        "experiment": "spectra", "task": task, "tier": settings.profile(),
        "split": "dev" if task in ("scenes", "sentences") else "all", "protocol": PROTOCOL,
        "clusters": list(data.clusters), "model": TEXT_MODEL if text else vit.MODEL, "keep": keep, "outcomes": OUTCOMES,
    }
    folder = args.output or results.writable(committed=True) / settings.profile()
    record = results.Record.open(folder / f"{sweep.record_name(PROTOCOL, task)}.json", header, data.items)
    todo = [cell for cell in cells(keep) if args.again or cell.key not in record]
    minutes = len(record) * len(todo) * (0.003 if text else 0.018)  # measured on one core
    print(f"spectra-{task}: {len(record)} items, {len(todo)} cells to go, about {minutes:.0f} min on one core")
    if args.estimate or not todo:
        return record
    with locking.alone(record.path):
        layers = data.make_layers()
        for cell in tqdm(todo, unit="cell", file=sys.stdout, disable=None):
            origin = provenance.of_run(
                code_of(load), test=args.output is None, allow_modified=args.allow_modified
            )
            start = time.perf_counter()
            outcomes = layers.score(cell)
            description = cell.describe() | {"seconds": round(time.perf_counter() - start, 1)}
            record.add(cell.key, description, outcomes, origin)
    return record


def summary(record: results.Record) -> str:
    """A plain table of the record: for each cell and outcome the mean over items and layers."""
    names = [name for name in OUTCOMES if name in next(iter(record.cells.values()))["outcomes"]]
    lines = [f"{'cell':26s} " + " ".join(f"{name[:15]:>15s}" for name in names)]
    for key in record.cells:
        lines.append(f"{key:26s} " + " ".join(f"{record.outcome(key, name).mean():15.4f}" for name in names))
    return "\n".join(lines)
