"""What the merge steps of a forward take, on a CPU: their share of the time, and their operators.

On a CPU a call returns when its work is done, so a clock around the step measures the step. On CUDA it would not.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from pitome_core.experiments.runs.clock import MIN_ROUNDS
from pitome_core.patch import LayerStep
from pitome_core.patching import find_patch, use_merge

STEP = "merge step"  # its name in a profile


@contextmanager
def around_steps(model: nn.Module, around: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Run every merge step of `model` as `around(step)` for the length of a `with` block.

    `around` has to call the step and to return what the step returns. `model` has one tower. If it does not merge,
    there are no steps.
    """
    before = find_patch(model)
    if before is None:
        yield
        return

    def merge_tokens(step: LayerStep, *inputs: Any) -> Any:
        # Compiled steps are kept by patch, so a step of another patch would be compiled again, and that would be timed.
        return around(partial(replace(step, patch=before).merge, *inputs))

    use_merge(model, merge_tokens)
    try:
        yield
    finally:
        use_merge(model, before.merge_tokens)


def step_share(model: nn.Module, call: Callable[[], Any], repeats: int = MIN_ROUNDS) -> float:
    """Share of the time of `call` that the merge steps of `model` take: the median of `repeats` calls."""
    step_seconds, shares = [], []

    def timed(step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        step_seconds.append(time.perf_counter() - start)
        return result

    with around_steps(model, timed):
        for _ in range(repeats):
            step_seconds.clear()
            start = time.perf_counter()
            call()
            shares.append(sum(step_seconds) / (time.perf_counter() - start))
    return round(statistics.median(shares), 4)


def step_operators(
    model: nn.Module, call: Callable[[], Any], repeats: int = 5, most: int = 16
) -> dict[str, list[float]]:
    """The operators in the merge steps of one forward: own milliseconds and calls by name, most time first.

    Operators after the first `most` are added up as `others`.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    def named(step: Callable[[], Any]) -> Any:
        with record_function(STEP):
            return step()

    operators: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add_children(event: Any) -> None:
        for child in event.cpu_children:
            entry = operators[child.name.removeprefix("aten::")]
            entry[0] += child.self_cpu_time_total / 1e3 / repeats
            entry[1] += 1 / repeats
            add_children(child)

    with around_steps(model, named), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
    for event in profiler.events():
        if event.name == STEP:
            add_children(event)
    ranked = sorted(operators.items(), key=lambda item: -item[1][0])
    others = [sum(column) for column in zip(*(entry for _, entry in ranked[most:]), strict=True)]
    ranked = ranked[:most] + ([("others", others)] if others else [])
    return {name: [round(milliseconds, 4), round(calls)] for name, (milliseconds, calls) in ranked}
