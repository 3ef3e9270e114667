"""Every kernel compiles for three GPUs without a GPU: `results/gpu/fused_compiled.json`, and one kernel of it again."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "fused_compiled.py"
RECORD = json.loads((ROOT / "results" / "gpu" / "fused_compiled.json").read_text())
FUZZ = "PITOME_EXAMPLES" in os.environ  # `make fuzz`


def test_the_table_has_every_kernel():
    """All kernels of the file, with the launch settings that are in use now."""
    from pitome_core.fused import launch

    source = (ROOT / "pitome_core" / "fused" / "kernels.py").read_text()
    kernels = {line.split()[1].split("(")[0] for line in source.splitlines() if line.startswith("def ")}
    named = {f"{name.partition(',')[0].partition(' of ')[0]}_kernel" for name in RECORD["kernels"]}
    assert named == kernels - {"cosines", "count_before"}
    launches = {"tile": launch.TILE, "count": launch.COUNT, "merge": launch.MERGE, "warps": launch.WARPS,
                "stages": launch.STAGES}
    assert RECORD["launches"] == launches, "block sizes changed: run `python tools/fused_compiled.py`"


@pytest.mark.parametrize("name", list(RECORD["kernels"]))
def test_nothing_is_spilled_and_shared_memory_suffices(name):
    compiled = RECORD["kernels"][name]["compiled"]
    assert set(compiled) == {"80", "90", "100"}
    for target, usage in compiled.items():
        assert usage["spilled"] == 0 and usage["shared"] <= RECORD["limits"][target] and usage["registers"] <= 255


def again(name: str, target: str, folder: Path) -> dict:
    """What the tool prints for one kernel and one target, compiled anew."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, TOOL, "--kernel", name, "--target", target], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().removeprefix(name))[target]


ALL = [(name, target) for name in RECORD["kernels"] for target in ("80", "90", "100")]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("name", "target"), [("rank", "90")])
def test_a_kernel_compiles_as_recorded(name, target, tmp_path):
    assert again(name, target, tmp_path) == RECORD["kernels"][name]["compiled"][target]


@pytest.mark.skipif(not FUZZ, reason="a minute or two of compiling: run by `make fuzz`")
@pytest.mark.hypothesis
@pytest.mark.parametrize(("name", "target"), ALL)
def test_all_kernels_compile_as_recorded(name, target, tmp_path):
    assert again(name, target, tmp_path) == RECORD["kernels"][name]["compiled"][target]
