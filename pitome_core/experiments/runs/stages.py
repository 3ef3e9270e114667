"""Training in stages: a stage that is done is not done again, and none begins when the time is over.

A stage leaves its result in a file, written all or nothing, as the last thing it does. So a training that was killed
loses the stage under way, or less where that stage has a checkpoint of its own, and the same command goes on from
there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Budget:
    """The minutes that a training may take, from the moment this is made. Stages that can stop on their own ask it."""

    def __init__(self, minutes: float = math.inf):
        self.minutes = minutes
        self.begun = time.monotonic()

    def over(self) -> bool:
        """Whether the minutes have passed."""
        return time.monotonic() - self.begun >= 60 * self.minutes


@dataclass(frozen=True)
class Stage:
    """A piece of work.

    Attributes:
        name: what is printed.
        done: whether its result is there.
        run: does the work, and returns how many of its units are left: 0 when it is finished, more where it stopped
            because the budget was over.
        size: its units. Most stages are one; a stage with a checkpoint counts its steps.
    """

    name: str
    done: Callable[[], bool]
    run: Callable[[Budget], int]
    size: int = 1


def run_stages(
    name: str, stages: Sequence[Stage], *, minutes: float = math.inf, again: bool = False, estimate_only: bool = False
) -> int:
    """Run the stages that are not done, one after the other. Returns how many units are left.

    Begins no stage after ``minutes``. ``again`` does every stage, done or not. ``estimate_only`` counts and does
    nothing. ``name`` is the name of the whole training in the printed lines.
    """
    todo = [stage for stage in stages if again or not stage.done()]
    units = sum(stage.size for stage in todo)
    print(f"{name}: {units} of {sum(stage.size for stage in stages)} to do", flush=True)
    if estimate_only:
        return units
    budget = Budget(minutes)
    for stage in todo:
        if budget.over():
            break
        start = time.monotonic()
        units -= stage.size - stage.run(budget)
        print(f"  {stage.name}: {time.monotonic() - start:.0f} s", flush=True)
    if units:
        print(f"  {units} left after {minutes:g} minutes: run it again to go on", flush=True)
    return units
