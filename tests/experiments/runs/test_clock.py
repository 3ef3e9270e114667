"""The clock: variants take turns, rounds end in time, and ratios are those of one round."""

from __future__ import annotations

import pytest
import torch

from pitome_core.experiments.runs import clock


def stopwatch_of(durations: dict[str, float]):
    """A stopwatch that knows how long calls take and notes their order; a call returns its name."""
    order = []

    def timed(call, times):
        order.append((call(), times))
        return durations[call()]

    return timed, order


def test_variants_take_turns_and_nobody_always_begins():
    durations = {"a": 1.0, "b": 2.0, "c": 3.0}
    timed, order = stopwatch_of(durations)
    calls = {name: (lambda name=name: name) for name in durations}
    samples, times = clock.alternate(calls, timed, repeats=6, seconds=100, shortest=0)
    assert "".join(name for name, _ in order) == "abc" + "abcbcacab" * 2
    assert samples == {name: [spent] * 6 for name, spent in durations.items()} and times == dict.fromkeys("abc", 1)


@pytest.mark.parametrize(("seconds", "rounds"), [(8, 8), (1000, 20), (0, clock.MIN_ROUNDS)])
def test_rounds_end_with_the_time_but_not_too_early(seconds, rounds):
    timed, _ = stopwatch_of({"a": 1.0})
    samples, _ = clock.alternate({"a": lambda: "a"}, timed, repeats=20, seconds=seconds, shortest=0)
    assert len(samples["a"]) == rounds


def test_short_calls_are_timed_together():
    timed, order = stopwatch_of({"a": 0.001, "b": 0.5})
    calls = {"a": lambda: "a", "b": lambda: "b"}
    _, times = clock.alternate(calls, timed, repeats=5, seconds=0, shortest=0.02)
    assert times == {"a": 20, "b": 1} and ("a", 20) in order


def test_the_clock_of_the_processor_divides_by_the_calls():
    calls = []
    assert 0 <= clock.stopwatch(torch.device("cpu"))(lambda: calls.append(1), 7) < 1
    assert len(calls) == 7


def test_the_quicker_of_two_calls_after_a_warm_up(monkeypatch):
    spent = iter([3.0, 2.0])
    calls = []
    monkeypatch.setattr(clock, "stopwatch", lambda device: lambda call, times: call() or next(spent))
    assert clock.quickest(lambda: calls.append(1), torch.device("cpu")) == 2.0 and len(calls) == 3


def test_speed_ups_are_paired_within_rounds():
    """A machine that takes twice as long in some rounds changes no ratio."""
    slow = [1.0, 1.0, 2.0, 2.0, 2.0]
    assert clock.speedup([2 * s for s in slow], [1.25 * s for s in slow]) == [1.6] * 3
