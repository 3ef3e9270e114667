"""The cells of `vision-2`: nothing is scored twice, and whatever is compared has its counterpart and its control."""

from __future__ import annotations

import pytest

from pitome_core.experiments.law import grid as law
from pitome_core.experiments.records.cells import ARMS, WHOLE, Cell
from pitome_core.experiments.vision import grid, tasks

LAW = law.when()


def listed(task: str) -> list[Cell]:
    """What records of a task hold: its own list, and on the scenes also that of `law-1`."""
    return grid.cells(task) + (LAW if task == "scenes" else [])


each = pytest.mark.parametrize("task", tasks.TASKS)


@each
def test_every_cell_is_there_once_and_the_whole_model_first(task):
    keys = [cell.key for cell in grid.task_cells(task)]
    assert keys[0] == WHOLE and len({*keys}) == len(keys)
    assert {"pitome@0.9", "tome@0.9", "tome@0.9/off", "pitome@0.9/off"} <= {*keys}
    assert {cell.arm for cell in grid.task_cells(task)} <= {*grid.NAMES, WHOLE}


def test_what_the_law_scores_is_not_scored_again():
    """Of all cells of the scenes, the list has those that the law lacks, and the whole model, which both have."""
    every = grid.task_cells("scenes")
    assert {cell for cell in every if grid.in_law(cell)} == {*every} & {*LAW} - {Cell(WHOLE)}
    assert {*grid.cells("scenes")} == {*every} - {*LAW} | {Cell(WHOLE)}
    assert {*every} <= {*listed("scenes")} and len(grid.cells("scenes")) < len(every)


@each
def test_every_cell_with_energy_has_its_counterpart_of_equal_attention(task):
    keys = {cell.key for cell in listed(task)}
    ours = [cell for cell in grid.task_cells(task) if cell.arm in ARMS and ARMS[cell.arm].kind == "pitome"]
    assert {cell.arm for cell in ours} == {"pitome", "energy-sorted", "pitome-hidden", "energy-sorted-hidden",
                                           *grid.RELEASED}
    for cell in ours:
        rival = cell.beside("tome")
        assert rival is not None and rival.key in keys, cell.key
    assert {"pitome-released-deit@0.9", "tome@0.9/off", "pitome-released-clip@0.9", "tome-hidden@0.9/off"} <= keys


@each
def test_arms_with_energy_have_shuffled_energies_beside_them(task):
    """Five seeds at keep .9, where labels are and the arm is as it is; at .8 two, beside PiToMe."""
    cells = {*listed(task)}
    for cell in grid.task_cells(task):
        name = f"{cell.arm}-shuffled"
        if name not in ARMS or not cell.is_plain:
            continue
        if cell.keep == 0.8 and cell.arm not in ("pitome", "pitome-hidden"):
            continue
        beside = {other.seed for other in cells if other.without_seed == Cell(name, cell.keep)}
        if task == "collection" or (task not in ("scenes", "digits") and cell.arm in grid.RELEASED):
            assert not beside
        else:
            assert beside >= {*range(grid.SEEDS[cell.keep])}, cell.key


def test_every_arm_is_on_the_longest_lists_and_the_compared_ones_at_both_strengths():
    for task in ("scenes", "digits"):
        keys = {cell.without_seed.key for cell in listed(task)}
        assert {f"{name}@0.9" for name in {*grid.NAMES} - {"grid-pool", "lower-resolution"}} <= keys
        for arm in (*grid.COMPARED, *grid.HIDDEN):
            assert {f"{arm}@{keep}{off}" for keep in ("0.9", "0.8") for off in ("", "/off")} <= keys
        assert "dct@0.8" not in keys and "dct@0.9/off" not in keys


def test_who_names_arms_gets_them_from_all_cells_of_the_task():
    found = [cell.key for cell in grid.cells("scenes", ["tome", "lower-resolution"], [0.9])]
    assert found == ["whole", "tome@0.9", "tome@0.9/off", "lower-resolution@168px"]
    assert [cell.key for cell in grid.cells("stamps", ["pitome"], [0.8])] == ["whole"]
