"""What merging costs and what it gains, in seconds: `python -m pitome_core.experiments cost`.

A setup is one model at one batch size, dtype and keep ratio. Its variants are measured in one process and take turns:

- the whole model;
- the same model with a *free merge*, which drops as many tokens in every layer by a slice, without a choice and
  without sizes: no method can be faster;
- the methods.

Three numbers answer "how much faster": what the multiply-accumulates imply, what the free merge reaches, and what the
method reaches. The weights are random, which does not change the time, so nothing is downloaded.

The prefill of a language model is a setup with two variants: the prompt with all image tokens, and the prompt with
those that leave a merged LLaVA-1.5 tower.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pitome_core.experiments import settings
from pitome_core.experiments.cost.measure import estimate, measure
from pitome_core.experiments.cost.setups import (
    DTYPES,
    EVEN,
    MODES,
    PROPORTIONAL,
    SHAPES,
    STEPS,
    Setup,
    cpu_setups,
    gpu_setups,
)
from pitome_core.experiments.cost.variants import METHODS, Workshop
from pitome_core.experiments.records import locking, results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.formats import percent
from pitome_core.experiments.runs.clock import MIN_ROUNDS
from pitome_core.experiments.runs.command_line import refusing
from pitome_core.experiments.runs.timings import Timings

UNITS = "seconds per call of the whole batch; macs per image or prompt"
EXAMPLES = """examples:
  python -m pitome_core.experiments cost
      on CUDA: the shapes of DeiT-S, ViT-L and ViT-H (MAE), CLIP-L/14@336, LLaVA-1.5's tower and prefill (`make gpu`);
      on a CPU: the setups of `make bench`, half an hour on two cores
  python -m pitome_core.experiments cost --estimate
  python -m pitome_core.experiments cost --models vit_tiny_patch16_224 --batch 1 8 --keep 0.9 --dtype float32
  python -m pitome_core.experiments cost --models vit_small_patch16_224 --size 384 --batch 4 --threads 2
  python -m pitome_core.experiments cost --models clip_l_336 --batch 1 16 --mode eager graph
  python -m pitome_core.experiments cost --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("setups", "Every combination of these values is a setup.")
    group.add_argument("--models", nargs="+", metavar="NAME",
                       help=f"{', '.join([*SHAPES, *EVEN])}; {next(iter(STEPS))} and the like, a merge step alone; or "
                       "architectures of timm; weights are random")
    group.add_argument("--batch", nargs="+", type=int, metavar="B", help="batch sizes (default: 1 16)")
    group.add_argument("--keep", nargs="+", type=float, metavar="R",
                       help="share of tokens that every layer keeps (default: 0.9)")
    group.add_argument("--dtype", nargs="+", choices=DTYPES,
                       help="types of weights and images (default: bfloat16 on CUDA, else float32); with "
                       "bfloat16-autocast weights stay in float32 and every forward casts them")
    group.add_argument("--size", nargs="+", type=int, metavar="PX", help="image sides (default: the model's own)")
    group.add_argument("--multiple", nargs="+", type=int, default=[1], metavar="M",
                       help="round token counts behind a merge up to multiples of M (default: 1)")
    group.add_argument("--every", nargs="+", type=int, default=[1], metavar="N",
                       help="merge in one layer of N, as many tokens as N layers would (default: 1)")
    group.add_argument("--mode", nargs="+", choices=MODES, default=["eager"],
                       help="eager: the model as it is (default); graph: as a captured CUDA graph; step: with compiled "
                       "merge steps; compile: the whole model through torch.compile")
    group.add_argument("--proportional", nargs="+", choices=PROPORTIONAL, default=["preset"],
                       help="whether attention counts a token as often as its size says (default: as the preset does)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD",
                        help=f"methods beside the whole model and the free merge (default: {' '.join(METHODS)})")
    parser.add_argument("--repeats", type=int, default=25, help="largest number of rounds per setup (default: 25)")
    parser.add_argument("--seconds", type=float, default=None,
                        help="end the rounds of a setup after this time (default: 0.5 on CUDA, 6 on a CPU); there are "
                        f"at least {MIN_ROUNDS} rounds")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="start no setup after this time (default: no limit); the same command measures the rest")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's own number)")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in float32 products (default: exact float32)")
    parser.add_argument("--list", action="store_true",
                        help="list the setups, measured ones with an x, the others with a -; measure nothing")
    parser.add_argument("--estimate", action="store_true",
                        help="print the seconds that each setup will take; measure nothing")
    parser.add_argument("--operators", action="store_true",
                        help="also record the operators of the merge steps (on a CPU, in eager mode)")
    parser.add_argument("--note", default="", help="text that the record keeps beside the command")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="the record (default: results/gpu/cost.json on CUDA, _build/results/cost.json on a CPU)")


def setups_of(args: argparse.Namespace, device: torch.device) -> list[Setup]:
    """The setups that the arguments ask for; without any such argument those of `make gpu` or `make bench`."""
    on_gpu = device.type == "cuda"
    named = (args.models, args.batch, args.keep, args.dtype, args.size)
    plain = (args.mode, args.proportional, args.multiple, args.every) == (["eager"], ["preset"], [1], [1])
    if named == (None,) * 5 and plain:
        return gpu_setups() if on_gpu else cpu_setups()
    axes = (
        args.models or ["vit_l_mae" if on_gpu else "vit_small_patch16_224"],
        args.dtype or ["bfloat16" if on_gpu else "float32"],
        args.size or [None], args.batch or [1, 16], args.keep or [0.9], args.mode, args.proportional, args.multiple,
        args.every,
    )
    return [
        Setup(model, batch, dtype, keep, mode, proportional, size, multiple, every)
        for model, dtype, size, batch, keep, mode, proportional, multiple, every in itertools.product(*axes)
    ]


@refusing
def main(args: argparse.Namespace) -> int:
    """Measure what the record lacks. Exit status 1 if a setup failed other than for memory, or if none has a number."""
    device = settings.device()
    on_gpu = device.type == "cuda"
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings.exact_float32()
    if args.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    setups = setups_of(args, device)
    if not on_gpu and any(setup.mode == "graph" for setup in setups):
        reason = f"--mode graph captures CUDA graphs, the device is {device}: choose eager, step or compile"
        raise results.RecordError(reason)
    default = results.writable(on_gpu) / ("gpu" if on_gpu else "") / "cost.json"
    record = Timings(args.output or default, "cost", UNITS, code_of(measure, Workshop), args.note)
    todo = [setup for setup in setups if setup.key not in record]
    now = record.now
    where = f"torch {now['packages'].get('torch')}, {now['threads']} threads, TF32 {'on' if now['tf32'] else 'off'}"
    print(f"{now['device']}, {where}", flush=True)
    print(f"{len(todo)} setups to measure, {len(setups) - len(todo)} measured before", flush=True)
    seconds = args.seconds or (0.5 if on_gpu else 6.0)
    if args.estimate:
        spans = estimate(todo, device, seconds=seconds, repeats=args.repeats)
        for setup, span in zip(todo, spans, strict=True):
            print(f"{span:6.0f} s  {setup.key}")
        print(f"about {sum(spans) / 60:.0f} minutes in all, if nothing else runs")
        return 0
    if args.list:
        print("\n".join(("- " if setup in todo else "x ") + setup.key for setup in setups))
        return 0
    with locking.alone(record.path):
        return _measure(args, record, setups, todo, seconds)


def _measure(
    args: argparse.Namespace, record: Timings, setups: list[Setup], todo: list[Setup], seconds: float
) -> int:
    """Measure ``todo``, those of the ``setups`` that the record lacks; the exit status, as `main` returns it."""
    workshop, start, failed = Workshop(settings.device(), args.methods), time.monotonic(), 0
    for number, setup in enumerate(todo):
        if time.monotonic() - start > 60 * args.minutes:
            print(f"{len(todo) - number} setups not measured within {args.minutes:g} minutes; run it again to go on")
            break
        try:
            cell = measure(setup, workshop, repeats=args.repeats, seconds=seconds, profiled=args.operators)
        except torch.cuda.OutOfMemoryError:
            cell = {"model": setup.model, "out_of_memory": ["all"]}
        except Exception as error:  # a setup that cannot run must not stop the others
            failed += 1
            reason = [type(error).__name__, *str(error).splitlines()[:1]]
            cell = {"model": setup.model, "error": ": ".join(reason)[:300]}
        if "variants" not in cell:
            workshop.forget()
        record.add(setup.key, cell)
        print("\n".join(lines(setup.key, cell)), flush=True)
    workshop.forget()
    measured = [setup for setup in setups if setup.key in record and record.cells[setup.key].get("rounds")]
    print(f"{len(measured)} of {len(setups)} setups have numbers, {failed} failed; {time.monotonic() - start:.0f} s")
    return int(failed > 0 or not measured)


def lines(key: str, cell: Mapping[str, Any]) -> Iterator[str]:
    """A cell of the record as text: one line about it, and one per variant."""
    if "error" in cell:
        yield f"{key}: failed: {cell['error']}"
        return
    tokens = cell.get("tokens", ["?"])
    yield f"{key}: {tokens[0]} -> {tokens[-1]} tokens, {cell.get('rounds', 0)} rounds"
    for name, variant in cell.get("variants", {}).items():
        low, middle, high = (1e3 * value for value in variant["seconds"])
        line = f"  {name:8s} {middle:9.3f} ms [{low:.3f}, {high:.3f}]"
        if "speedup" in variant:
            line += f"  speed-up {variant['speedup'][1]:.3f}, implied {variant['implied']:.3f}"
            line += f", efficiency {variant['efficiency']:.3f}"
        if "of_free" in variant:
            line += f", of free {variant['of_free']:.3f}"
        if "step_share" in variant:
            line += f", steps {percent(variant['step_share'], 1)}"
        if "bytes_peak" in variant:
            line += f", peak {variant['bytes_peak'] / 2**30:.2f} GiB"
        yield line
    if "out_of_memory" in cell:
        yield f"  out of memory: {', '.join(cell['out_of_memory'])}"
