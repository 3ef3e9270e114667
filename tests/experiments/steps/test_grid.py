"""Fewer, larger steps: the cells of the protocol, and that a cell merges where it says."""

from __future__ import annotations

import pytest

import pitome_core as pc
from pitome_core.experiments.models import vit
from pitome_core.experiments.records.cells import WHOLE, Cell
from pitome_core.experiments.runs import grid as runs
from pitome_core.experiments.steps import grid


def test_every_cell_has_what_it_is_compared_with():
    """The same arm that merges in every layer, and ToMe in as many steps."""
    listed = grid.of_protocol()
    assert len(set(listed)) == len(listed) and listed[0] == Cell(WHOLE)
    for cell in listed[1:]:
        assert Cell(cell.arm, cell.keep, seed=cell.seed) in listed or cell.arm == grid.SHUFFLED
        if cell.arm in grid.COMPARED:
            assert cell.beside("tome") in listed
    shuffled = [cell for cell in listed if cell.arm == grid.SHUFFLED]
    assert {cell.every for cell in shuffled} == {grid.LEAST} and Cell("pitome", 0.9, every=grid.LEAST) in listed


@pytest.mark.parametrize("side", [224, 112])
def test_cells_merge_as_often_as_they_say(side):
    """As many tokens in the end; what one of three layers saves, a smaller keep ratio saves in every layer."""
    model = vit.vit_small(side)
    each, second, third, equal = (runs.cost(cell, model) for cell in (
        Cell("pitome", 0.9), Cell("pitome", 0.9, every=2), Cell("pitome", 0.9, every=3),
        Cell("pitome", grid.EQUAL_WORK)))
    assert each["tokens"][-1] == second["tokens"][-1] == third["tokens"][-1]
    assert [len(set(cost["tokens"])) for cost in (each, second, third)] == [13, 7, 5]
    assert each["share"] > second["share"] > third["share"]
    assert abs(third["share"] - equal["share"]) < 0.003
    with runs.applied(Cell("pitome", 0.9, every=3), model) as running:
        assert pc.settings(running)["every"] == 3


def test_a_part_of_the_cells_can_be_asked_for():
    keys = [cell.key for cell in grid.cells(["tome"], [0.8])]
    assert keys == ["whole", "tome@0.8", "tome@0.8/every3"]
    with pytest.raises(ValueError, match="no keep 0.7; it has 0.9, 0.88, 0.8"):
        grid.cells(None, [0.7])
    with pytest.raises(ValueError, match="no method 'best'"):
        grid.cells(["best"])
