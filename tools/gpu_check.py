"""Run everything that needs CUDA: `python tools/gpu_check.py`. Writes environment.json and cost.json to results/gpu/.

It runs the tests marked `gpu`, runs every notebook under nbval with PITOME_DEVICE=cuda, and measures what merging costs
on models with the shapes of the paper's models and random weights. It downloads nothing, so the notebooks' assets must
be in the cache.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "gpu"
RUNS = ("gpu tests", "notebooks", "cost")
COST_MINUTES = 5.0  # no setup starts after this time, so that everything together stays under ten minutes
PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "numpy", "pitome-core")


def output(*command: str) -> str | None:
    """What a command prints; None if the command is not installed or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(torch) -> dict:
    """Device, driver, versions, commit and date of this check."""
    device = torch.cuda.get_device_properties(0)
    named = os.environ.get("PITOME_COMMIT")  # a copy of the tree may have no history, or an older one
    commit = None if named else output("git", "rev-parse", "HEAD")
    changes = output("git", "status", "--porcelain", "--untracked-files=no") if commit else None
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": device.name,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "compute_capability": f"{device.major}.{device.minor}",
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := version(name))},
        "commit": named or commit,
        "modified": None if changes is None else bool(changes),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make gpu",
    }


def surroundings() -> dict[str, str]:
    """Environment variables of a run: CUDA, the smoke tier unless another is named, and no network."""
    profile = os.environ.get("PITOME_PROFILE") or "smoke"
    offline = {"PITOME_DEVICE": "cuda", "PITOME_PROFILE": profile, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | offline | {"PYTHONPATH": path}


def marked_files() -> list[str]:
    """The test files with a test marked `gpu`. The others are not imported, because they need packages of the book."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def side_by_side() -> list[str]:
    """Arguments of pytest that run several files at once; none without pytest-xdist or with few processors."""
    workers = min(6, (os.cpu_count() or 1) // 2)
    possible = workers > 1 and importlib.util.find_spec("xdist")
    return ["-n", str(workers), "--dist", "loadfile"] if possible else []


def pytest(selection: list[str]) -> dict:
    """Run pytest and return its counts, seconds and exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        start = time.monotonic()
        code = subprocess.call([sys.executable, "-m", "pytest", f"--junit-xml={report}", *selection], cwd=ROOT,
                               env=surroundings())
        seconds = round(time.monotonic() - start, 1)
        suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
    count = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    # A run without a test that passed is no success, whatever exit status pytest has.
    return {"passed": passed, **count, "seconds": seconds, "exit": code or int(passed == 0)}


def cost(minutes: float) -> dict:
    """Measure the shapes and return how many cells the record has, and how many of them have numbers."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pitome_core.experiments", "cost", "--minutes", f"{minutes:g}"]
    code = subprocess.call([*command, "--output", str(RECORDS / "cost.json")], cwd=ROOT, env=surroundings())
    cells = []
    if (RECORDS / "cost.json").exists():
        cells = list(json.loads((RECORDS / "cost.json").read_text(encoding="utf-8"))["cells"].values())
    return {
        "measured": (measured := sum(bool(cell.get("rounds")) for cell in cells)),
        "cells": len(cells),
        "out_of_memory": sum("out_of_memory" in cell for cell in cells),
        "failed": sum("error" in cell for cell in cells),
        "seconds": round(time.monotonic() - start, 1),
        "exit": code or int(measured == 0),
    }


def earlier_runs(target: Path, record: dict) -> dict:
    """The runs already in `target`, if they are of this device, these packages and this commit."""
    if not target.exists():
        return {}
    earlier = json.loads(target.read_text(encoding="utf-8"))
    same = all(earlier.get(name) == record[name] for name in ("device", "packages", "commit"))
    return earlier["runs"] if same and record["commit"] else {}


def summary(name: str, run: dict) -> str:
    """One line about a run."""
    if "measured" in run:
        rest = f"{run['out_of_memory']} out of memory, {run['failed']} failed, {run['seconds']} s"
        return f"{name}: {run['measured']} of {run['cells']} cells have numbers, {rest}"
    return f"{name}: {run['passed']} passed of {run['tests']}, {run['skipped']} skipped, {run['seconds']} s"


def main() -> int:
    """Run what was asked for, write environment.json, and return the largest exit status of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kept = "run these only; the others keep their entry of the same commit, or are recorded as not run"
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, help=kept)
    parser.add_argument("--minutes", type=float, default=COST_MINUTES,
                        help="start no cost measurement after this time (default: %(default)g)")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit(f"{sys.executable} has no torch: run `make setup`, or pass VENV= or PYTHON= with one that has")
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} of {sys.executable} sees no CUDA device, and `make gpu` needs one")
    record = environment(torch)
    print("{device}, driver {driver}, CUDA {cuda}, torch {packages[torch]}".format(**record), flush=True)
    todo = {
        "gpu tests": lambda: pytest(["-m", "gpu", *marked_files()]),
        "notebooks": lambda: pytest([*side_by_side(), "notebooks"]),
        "cost": lambda: cost(args.minutes),
    }
    target = RECORDS / "environment.json"
    record["runs"] = {name: "not run" for name in RUNS} | earlier_runs(target, record)
    target.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    for name in RUNS:
        if name in args.only:
            record["runs"][name] = done[name] = todo[name]()
            # Written after each run, so that a run that is killed does not lose those before it.
            target.write_text(json.dumps(record, indent=2) + "\n")
    for name, run in done.items():
        print(summary(name, run))
    print(f"written: {target.relative_to(ROOT)}")
    return max(run["exit"] for run in done.values())


if __name__ == "__main__":
    sys.exit(main())
