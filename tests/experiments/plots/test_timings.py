"""Recorded timings in notebooks: which cells are plain, and the parts of a bar."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from pitome_core.experiments.cost.setups import EVEN, STEPS
from pitome_core.experiments.plots import timings

RECORDED = timings.load("embedded/cost.json")


def test_plain_cells_have_no_option_and_an_architecture_of_timm():
    plain = timings.as_usual(RECORDED)
    fields = {"mode": "eager", "proportional": "preset", "multiple": 1, "every": 1}
    wanted = [cell for cell in RECORDED if cell["model"] not in {*EVEN, *STEPS}
              and all(cell[field] == value for field, value in fields.items())]
    assert plain == wanted and len(plain) > 20


def test_a_record_that_is_not_there_has_no_cells():
    assert timings.load("embedded/no-such.json") == []


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_parts_add_up_to_the_time_of_the_method(method):
    for cell in timings.as_usual(RECORDED):
        found = timings.parts(cell, method)
        assert len(found) == len(timings.PARTS)
        assert found.sum() == pytest.approx(1 / cell["variants"][method]["speedup"][1])


def test_cells_have_names_of_their_own():
    plain = timings.pick(timings.as_usual(RECORDED), keep=0.9)
    for name in (timings.name, timings.brief):
        assert len({name(cell) for cell in plain}) == len(plain)
    assert " " not in timings.brief(plain[0])


def test_bars_of_parts_are_never_negative():
    _, ax = plt.subplots()
    timings.stack(ax, 0, (0.5, -0.1, 0.25), ("0.1", "0.2", "0.3"), ("a", "b", "c"))
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 0.5), (0.5, 0), (0.5, 0.25)]
    plt.close()


def test_no_cells_are_shown_as_not_run():
    timings.three_numbers([], [], quartiles=False)
    assert "not run" in plt.gca().get_title(loc="left") + plt.gca().get_title()
    plt.close()
