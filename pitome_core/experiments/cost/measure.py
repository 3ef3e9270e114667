"""Measure a setup: seconds of its variants in turns, their speed-ups, memory; and estimates of the time it takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from pitome_core.experiments.cost.setups import DTYPES, Setup
from pitome_core.experiments.cost.steps import step_operators, step_share
from pitome_core.experiments.cost.variants import Variants, Workshop
from pitome_core.experiments.records.statistics import quartiles
from pitome_core.experiments.runs.clock import MIN_ROUNDS, SHORTEST, WARM_UP, alternate, quickest, speedup, stopwatch

# How much slower a model is on a CPU than its matrix products alone. For estimates only.
_SLOWER = {"float32": 1.4, "bfloat16": 2.0, "float16": 2.0, "bfloat16-autocast": 2.2}
_COMPILING = 60.0  # seconds per variant, because inductor compiles another shape in every layer


def summarize(samples: Mapping[str, Sequence[float]], macs: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What the record says of each variant, from seconds per round and multiply-accumulates per image.

    All ratios divide seconds of the same round:

    - `speedup`: the whole model's seconds over the variant's, as quartiles;
    - `implied`: the same ratio of multiply-accumulates;
    - `efficiency`: the median speed-up over the implied one;
    - `of_free`: the free merge's seconds over the variant's, the median;
    - `over_free`: the share of the variant's seconds that the free merge does not need, the median.
    """
    variants: dict[str, dict[str, Any]] = {}
    for name, seconds in samples.items():
        variants[name] = {"seconds": quartiles(seconds), "macs": macs[name]}
        if name == "whole" or "whole" not in samples:
            continue
        ratio, implied = speedup(samples["whole"], seconds), macs["whole"] / macs[name]
        variants[name] |= {"speedup": ratio, "implied": round(implied, 4), "efficiency": round(ratio[1] / implied, 4)}
        if "free" in samples and name != "free":
            shares = [free / own for free, own in zip(samples["free"], seconds, strict=True)]
            variants[name]["of_free"] = round(statistics.median(shares), 4)
            variants[name]["over_free"] = round(statistics.median(1 - share for share in shares), 4)
    return variants


def measure(
    setup: Setup, workshop: Workshop, *, repeats: int, seconds: float, profiled: bool = False
) -> dict[str, Any]:
    """The cell of a setup: its fields, the model's, `rounds`, and the variants as `summarize` describes them.

    A variant that does not fit into the device's memory is listed in `out_of_memory` and has no numbers. If that is
    the whole model, the others have seconds and no speed-ups.

    Args:
        setup: what is measured.
        workshop: builds the variants.
        repeats, seconds: as `clock.alternate` takes them.
        profiled: also list the operators of the merge steps, on a CPU in eager mode.
    """
    device, variants = workshop.device, workshop.variants(setup)
    cast = torch.autocast(device.type, torch.bfloat16) if setup.dtype.endswith("autocast") else nullcontext()
    with torch.inference_mode(), cast:
        calls, memory = _fitting(variants, setup, device)
        samples, times = {}, {}
        if calls:
            samples, times = alternate(calls, stopwatch(device), repeats=repeats, seconds=seconds)
        steps: dict[str, dict[str, Any]] = {name: {} for name in variants.merging if name in calls}
        for name, entries in steps.items():
            if device.type == "cpu" and setup.mode in ("eager", "step"):
                entries["step_share"] = step_share(variants.merging[name], calls[name])
            if device.type == "cpu" and setup.mode == "eager" and profiled:
                entries["operators"] = step_operators(variants.merging[name], calls[name])
    summary = summarize(samples, variants.macs)
    for name, entries in summary.items():
        entries |= {**steps.get(name, {}), "calls": times[name], **(memory[name] if setup.mode == "eager" else {})}
    rounds = max(map(len, samples.values()), default=0)
    cell = {**setup.describe(), **variants.about, "rounds": rounds, "variants": summary}
    missing = [name for name in variants.calls if name not in calls]
    return {**cell, "out_of_memory": missing} if missing else cell


def _fitting(
    variants: Variants, setup: Setup, device: torch.device
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, int]]]:
    """The variants that fit into memory, warmed up and in the setup's mode; and the memory that each of them takes."""
    calls, memory = {}, {}
    for name, call in variants.calls.items():
        try:
            call = _in_mode(call, setup.mode, device)
            for _ in range(WARM_UP):
                call()
            memory[name] = _peak(call, device)
            calls[name] = call
        except torch.cuda.OutOfMemoryError:
            pass
        if name not in calls:  # after `except`, because the error keeps the memory of the frames that it left
            torch.cuda.empty_cache()
    return calls, memory


def _in_mode(call: Callable[[], Any], mode: str, device: torch.device) -> Callable[[], Any]:
    if mode == "graph":
        return _graphed(call, device)
    if mode == "compile" and isinstance(call, partial):
        return partial(torch.compile(call.func, dynamic=False), *call.args)
    return call


def _graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call as a captured CUDA graph: its kernels without the processor that launches them one by one."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _peak(call: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Bytes in use on the device before a call, and the most in use during it; empty on a CPU, which has no counter."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return {"bytes_before": before, "bytes_peak": torch.cuda.max_memory_allocated(device)}


def estimate(setups: Sequence[Setup], device: torch.device, *, seconds: float, repeats: int) -> list[float]:
    """Seconds that each setup will take, roughly: exact counts over the speed of a matrix product, and compiling."""
    rates = {dtype: _rate(dtype, device) / _SLOWER[dtype] for dtype in {setup.dtype for setup in setups}}
    workshop, spans = Workshop(torch.device("meta")), []
    for setup in setups:
        once = [max(SHORTEST, setup.batch * macs / rates[setup.dtype]) for macs in workshop.macs(setup).values()]
        rounds = WARM_UP + 1 + min(repeats, max(MIN_ROUNDS, int(seconds / sum(once))))
        start = 1.0 + len(once) * {"compile": _COMPILING, "step": _COMPILING / 4}.get(setup.mode, 0.0)
        spans.append(start + rounds * sum(once) + MIN_ROUNDS * sum(once[2:]))
    return spans


def _rate(dtype: str, device: torch.device) -> float:
    """Multiply-accumulates per second of a product of two matrices (1024, 1024) in that type."""
    kind = torch.bfloat16 if dtype.endswith("autocast") else DTYPES[dtype]
    matrix = torch.ones(1024, 1024, dtype=kind, device=device)
    return 1024**3 / quickest(lambda: matrix @ matrix, device)
