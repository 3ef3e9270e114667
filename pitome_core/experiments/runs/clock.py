"""How long calls take: one stopwatch for every device, and variants that are timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pitome_core.experiments.records.statistics import quartiles

WARM_UP = 3  # calls of every variant before the clock starts: kernels are chosen and memory is taken in them
MIN_ROUNDS = 5  # however long they take, because quartiles of fewer rounds say nothing
SHORTEST = 0.02  # seconds: hundreds of times the clock's resolution, and short enough not to hide a slow call

Stopwatch = Callable[[Callable[[], Any], int], float]


def stopwatch(device: torch.device) -> Stopwatch:
    """A function `(call, times) -> seconds per call`.

    On CUDA it reads events between two synchronisations. On a CPU it reads the clock of the process.
    """
    if device.type != "cuda":
        def on_processor(call: Callable[[], Any], times: int) -> float:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return (time.perf_counter() - start) / times

        return on_processor

    def on_device(call: Callable[[], Any], times: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / times

    return on_device


def quickest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the quicker of two calls, after one call that warms up. For estimates."""
    timed = stopwatch(device)
    call()
    return min(timed(call, 1) for _ in range(2))


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    timed: Stopwatch,
    *,
    repeats: int,
    seconds: float,
    shortest: float = SHORTEST,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Time variants in turns, so that a machine that gets slower or faster does so for all of them.

    Args:
        calls: one function without arguments per variant; all of them are warmed up.
        timed: `stopwatch(device)`.
        repeats: the largest number of rounds. Every round times every variant once. Each round begins with another
            variant than the round before.
        seconds: the rounds end when they have taken about that long in all, but not before `MIN_ROUNDS` rounds.
        shortest: the least number of seconds that one timing lasts; short calls are repeated within it.

    Returns:
        By variant: seconds per call, one entry per round; and how many calls were timed together.
    """
    once = {name: timed(call, 1) for name, call in calls.items()}
    times = {name: max(1, math.ceil(shortest / max(spent, 1e-7))) for name, spent in once.items()}
    round_seconds = sum(once[name] * times[name] for name in calls)
    rounds = min(repeats, max(MIN_ROUNDS, int(seconds / round_seconds)))
    names, samples = list(calls), {name: [] for name in calls}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(timed(calls[name], times[name]))
    return samples, times


def speedup(base: Sequence[float], variant: Sequence[float]) -> list[float]:
    """Quartiles of the base's seconds over the variant's, divided round by round.

    Example:
        >>> speedup([2.0, 4.0, 2.0], [1.0, 2.0, 1.0])  # a machine that is half as fast in one round changes no ratio
        [2.0, 2.0, 2.0]
    """
    return quartiles([one / other for one, other in zip(base, variant, strict=True)])
