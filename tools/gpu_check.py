"""Everything that needs CUDA: `python tools/gpu_check.py`. Writes results/gpu/environment.json.

Runs every notebook under nbval with PITOME_DEVICE=cuda and the tests marked `gpu`. Downloads nothing: assets must be
in the cache already.
"""

from __future__ import annotations

import importlib.metadata
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
RUNS = {"notebooks": ["notebooks"], "gpu tests": ["-m", "gpu", "tests"]}
PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "numpy", "pitome-core")


def output(*command: str) -> str | None:
    """What a command prints, or None where it is not there or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(torch) -> dict:
    device = torch.cuda.get_device_properties(0)
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": device.name,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "compute_capability": f"{device.major}.{device.minor}",
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "commit": output("git", "rev-parse", "HEAD"),
        "modified": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make gpu",
    }


def pytest(name: str, selection: list[str]) -> dict:
    """One run of pytest; its counts."""
    profile = os.environ.get("PITOME_PROFILE") or "smoke"
    offline = {"PITOME_DEVICE": "cuda", "PITOME_PROFILE": profile, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        start = time.monotonic()
        code = subprocess.call([sys.executable, "-m", "pytest", f"--junit-xml={report}", *selection], cwd=ROOT,
                               env=os.environ | offline | {"PYTHONPATH": path})
        seconds = round(time.monotonic() - start, 1)
        suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
    count = {key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    # A run in which nothing ran to its end is no success, whatever pytest's exit status says.
    return {"passed": passed, **count, "seconds": seconds, "exit": code or int(passed == 0)}


def main() -> int:
    try:
        import torch
    except ImportError:
        sys.exit(f"{sys.executable} has no torch: run `make setup`, or pass VENV= or PYTHON= with one that has")
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} of {sys.executable} sees no CUDA device, and `make gpu` needs one")
    record = environment(torch)
    print("{device}, driver {driver}, CUDA {cuda}, torch {packages[torch]}".format(**record), flush=True)
    record["runs"] = {name: pytest(name, selection) for name, selection in RUNS.items()}
    target = ROOT / "results" / "gpu" / "environment.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    for name, run in record["runs"].items():
        print(f"{name}: {run['passed']} passed of {run['tests']}, {run['skipped']} skipped, {run['seconds']} s")
    print(f"written: {target.relative_to(ROOT)}")
    return max(run["exit"] for run in record["runs"].values())


if __name__ == "__main__":
    sys.exit(main())
