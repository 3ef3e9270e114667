"""Compile every fused kernel for compute capabilities 8.0, 9.0 and 10.0; write results/gpu/fused_compiled.json.

No GPU and no driver is needed. The numbers are computed, not measured: shared memory, registers and spills as the
assembler reports them; bytes and flops from the contracts in `pitome_core/fused/kernels.py`. The time at the roofline
is the larger of bytes over bandwidth and flops over the rate of float32, for DeiT-S at batch 64 (keep 0.9, layer 1).

`python tools/fused_compiled.py` compiles for all targets, `--kernel NAME --target 90` one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "gpu" / "fused_compiled.json"
sys.path.insert(0, str(ROOT))
os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

# Shared memory that a block may have (bytes), by compute capability. 75 (T4) is below what Triton compiles for.
LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bandwidth (bytes/s) and rate of float32 without tensor cores (flop/s), from the vendor's data sheets.
DEVICES = {"A100": (1.555e12, 19.5e12), "H100": (3.35e12, 67e12), "T4": (0.32e12, 8.1e12), "L4": (0.3e12, 30.3e12)}
# DeiT-S: items, tokens that may merge, prefix, heads, channels of a head, width, pairs.
B, N, P, H, D, C, K = 64, 196, 1, 6, 64, 384, 19


def table() -> dict[str, dict]:
    """Kernel -> types of its arguments, its constants, bytes and flops of a launch for DeiT-S."""
    from pitome_core.fused import kernels, launch

    tile, count, merge = launch.TILE, launch.COUNT, launch.MERGE
    shape = {name: "i32" for name in ("N", "C", "D", "stride_b", "stride_t", "stride_h", "stride_d")}
    block = launch.power_of_two(D)
    wide = launch.power_of_two(C)
    a = K
    return {
        "centre": dict(
            kernel=kernels.centre_kernel, types={"x": "*fp16", "mean": "*fp32", **shape},
            constants=dict(HEADS=H, ROUND=False, ROWS=16, BLOCK_C=64), bytes=2 * B * N * H * D + 4 * B * D,
            flops=B * N * H * D),
        "metric": dict(
            kernel=kernels.metric_kernel, types={"x": "*fp16", "mean": "*fp32", "unit": "*fp32", **shape},
            constants=dict(HEADS=H, CENTRED=False, ROUND=False, ROWS=launch.rows_of_metric(block), BLOCK_C=block),
            bytes=2 * B * N * H * D + 4 * B * N * D, flops=B * N * (H + 4) * D),
        "metric of hidden states": dict(
            kernel=kernels.metric_kernel, types={"x": "*fp16", "mean": "*fp32", "unit": "*fp32", **shape},
            constants=dict(HEADS=1, CENTRED=True, ROUND=True, ROWS=launch.rows_of_metric(wide), BLOCK_C=wide),
            bytes=2 * B * N * C + 4 * B * N * C, flops=5 * B * N * C),
        **{f"energy, {name}": dict(
            kernel=kernels.energy_kernel,
            types={"unit": "*fp32", "mask": "*fp32", "energy": "*fp32", "N": "i32", "C": "i32", "margin": "fp32",
                   "below": "fp32", "alpha": "fp32", "sigma": "fp32", "height": "fp32"},
            constants=dict(KERNEL=name, MASKED=False, **tile), bytes=4 * B * N * D + 4 * B * N,
            flops=2 * B * N * N * D + 4 * B * N * N) for name in ("paper", "elu", "gaussian")},
        "rank": dict(
            kernel=kernels.rank_kernel, types={"value": "*fp32", "order": "*i32", "N": "i32"}, constants=count,
            bytes=8 * B * N, flops=3 * B * N * N),
        "match": dict(
            kernel=kernels.match_kernel, types=_match(),
            constants=dict(ORDERED=True, BEST=False, ZERO_BROKEN=True, **tile),
            bytes=8 * B * a * D + 16 * B * a, flops=2 * B * a * a * D),
        "match of places": dict(
            kernel=kernels.match_kernel, types=_match(),
            constants=dict(ORDERED=False, BEST=True, ZERO_BROKEN=False, **tile),
            bytes=4 * B * N * D + 20 * B * (N // 2), flops=2 * B * (N // 2) ** 2 * D),
        "choose": dict(
            kernel=kernels.choose_kernel,
            types={"best": "*fp32", **{name: "*i64" for name in ("a", "b", "source", "target")}, "number": "i32",
                   "k": "i32"},
            constants=count, bytes=20 * B * (N // 2) + 16 * B * K, flops=3 * B * (N // 2) ** 2),
        "merge": dict(
            kernel=kernels.merge_kernel,
            types={"x": "*fp16", "size": "*fp32", "source": "*i64", "target": "*i64", "out": "*fp16",
                   "out_size": "*fp32",
                   **{name: "i32" for name in ("T", "C", "P", "k", "stride_b", "stride_t", "stride_c")}},
            constants=dict(SIZED=True, WEIGHTED=True, **merge),
            bytes=2 * B * (2 * (N + P) - K) * C + 8 * B * (N + P) + 16 * B * K, flops=2 * B * (N + P) * C),
        "bias": dict(
            kernel=kernels.bias_kernel, types={"size": "*fp32", "bias": "*fp16", "number": "i32"},
            constants=dict(BLOCK=1024), bytes=6 * B * (N + P), flops=B * (N + P)),
    }


def _match() -> dict[str, str]:
    return {"unit": "*fp32", "order": "*i32", "source": "*i64", "target": "*i64", "best": "*fp32",
            **{name: "i32" for name in ("N", "C", "a_first", "a_step", "number_a", "b_first", "b_step", "number_b")}}


def compiled(entry: dict, target: int) -> dict:
    """Shared memory (bytes), registers and spilled bytes of one kernel, compiled for one compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pitome_core.fused import launch

    kernel, constants = entry["kernel"], entry["constants"]
    signature = {name: entry["types"].get(name, "constexpr") for name in kernel.arg_names}
    attributes = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names)
                  if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", target, 32),
                            options={"num_warps": launch.WARPS, "num_stages": launch.STAGES})
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "kernel.ptx")
        code.write_text(result.asm["ptx"])
        assembler = "ptxas" if target < 100 else "ptxas-blackwell"
        name = re.search(r"\.target (\w+)", result.asm["ptx"]).group(1)
        command = [tools / assembler, "-v", f"--gpu-name={name}", code, "-o", Path(folder, "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    stored, loaded = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    # Blocks of 4 warps that one multiprocessor holds: 65,536 registers, dealt out in units of 8 for each thread.
    blocks = min(65536 // (-(-registers // 8) * 8 * 32 * launch.WARPS), 64 // launch.WARPS,
                 LIMITS[target] // max(result.metadata.shared + 1024, 1))
    return {"shared": result.metadata.shared, "registers": registers, "spilled": int(stored) + int(loaded),
            "occupancy": round(blocks * launch.WARPS / 64, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", help="compile this one and print it; nothing is written")
    parser.add_argument("--target", type=int, choices=list(LIMITS), help="compile for this one")
    arguments = parser.parse_args()
    targets = [arguments.target] if arguments.target else list(LIMITS)
    from pitome_core.fused import launch

    launches = {"tile": launch.TILE, "count": launch.COUNT, "merge": launch.MERGE, "warps": launch.WARPS,
                "stages": launch.STAGES}
    record = {
        "what": __doc__.split("\n\n")[1].replace("\n", " "), "launches": launches,
        "shape": dict(B=B, N=N, P=P, H=H, D=D, C=C, k=K), "limits": LIMITS, "kernels": {},
    }
    for name, entry in table().items():
        if arguments.kernel in (None, name):
            record["kernels"][name] = {
                "bytes": entry["bytes"], "flops": entry["flops"],
                "roofline_us": {device: round(1e6 * max(entry["bytes"] / bandwidth, entry["flops"] / rate), 2)
                                for device, (bandwidth, rate) in DEVICES.items()},
                "compiled": {str(target): compiled(entry, target) for target in targets},
            }
            print(name, json.dumps(record["kernels"][name]["compiled"]), flush=True)
    if arguments.kernel is None and arguments.target is None:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
