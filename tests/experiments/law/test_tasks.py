"""Scenes of the law: photographs apart, predictors that are those of loops; and the cells of its protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pitome_core as pc
from pitome_core.experiments import assets
from pitome_core.experiments.data import photos
from pitome_core.experiments.law import grid, tasks
from pitome_core.experiments.records.cells import ARMS, WHOLE, Cell


def test_dev_and_test_share_no_photograph():
    dev, test = (photos.photographs_of(split) for split in ("dev", "test"))
    assert sorted([*dev, *test]) == sorted(photos.COLLECTION) and not set(dev) & set(test)
    of = {name: photo.identity for name, photo in photos.COLLECTION.items()}
    assert not {of[name] for name in dev} & {of[name] for name in test}
    assert min(len(dev), len(test)) >= 30  # as many clusters as a bootstrap needs


def test_low_energy_auc_equals_counting_pairs():
    generator = torch.Generator().manual_seed(0)
    metric = torch.randn(3, 30, 8, generator=generator)
    cover = torch.rand(3, 30, generator=generator)
    cover[0, :10] = 0.0
    cover[2] = 1.0
    found = tasks.low_energy_auc(metric, 0.4, cover)
    energy = pc.energy_score(metric, 0.4)
    for item in range(2):
        inside = [i for i in range(30) if cover[item, i] > 0.5]
        outside = [i for i in range(30) if cover[item, i] < 0.05]
        if not outside:
            assert np.isnan(found[item])
            continue
        wins = [float(energy[item, i] < energy[item, j]) for i in inside for j in outside]
        assert found[item] == pytest.approx(np.mean(wins))
    assert np.isnan(found[2])


def test_every_comparison_of_the_law_has_its_counterpart_and_its_control():
    for listed in (grid.when(), grid.parts()):
        keys = {cell.without_seed.key for cell in listed}
        assert len({cell.key for cell in listed}) == len(listed) and listed[0] == Cell(WHOLE)
        for cell in listed[1:]:
            rival = cell.without_seed.beside("tome")
            assert rival.key in keys, cell.key
        for cell in listed:
            if cell.arm.removesuffix("-hidden") in ("pitome", "energy-sorted", "gate-2") and listed == grid.parts():
                assert cell.shuffled.key in keys
    assert all(ARMS[name].method in ("pitome", "tome") for name in grid.ALL)


def test_a_part_of_the_cells_can_be_asked_for():
    chosen = grid.cells(grid.when(), ["pitome", "tome-hidden"], [0.8])
    assert [cell.key for cell in chosen] == [
        "whole", "pitome@0.8", "tome-hidden@0.8", "pitome@0.8/off", "tome-hidden@0.8/off"
    ]
    with pytest.raises(ValueError, match="no method 'best'"):
        grid.cells(grid.when(), ["best"], None)
    with pytest.raises(ValueError, match="has no gate-2 for this task"):
        grid.cells(grid.when(), ["gate-2"], None)
    with pytest.raises(ValueError, match="has no keep 0.85 for these arms"):
        grid.cells(grid.when(), None, [0.85, 0.9])


@pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the optional photographs are not in the cache")
def test_what_the_whole_model_knows_beforehand():
    task = tasks.LawScenes("dev", count=2)
    task.prepare()
    with task.applied(Cell(WHOLE)) as running:
        outcomes = task.score(running, Cell(WHOLE))
    depth = len(task.model.blocks)
    for name in tasks.METRICS:
        assert outcomes[f"low_energy_{name}"].shape == outcomes[f"cosine_{name}"].shape == (2, depth)
        assert ((outcomes[f"low_energy_{name}"] >= 0) & (outcomes[f"low_energy_{name}"] <= 1)).all()
    assert np.abs(outcomes["cosine_keys-centred"]).mean() < outcomes["cosine_keys"].mean()
    assert set(task.items["photograph"]) <= set(photos.photographs_of("dev"))
    with task.applied(Cell("pitome", 0.9)) as running:
        assert set(task.score(running, Cell("pitome", 0.9))) == {"auc", "nss", "likeness", "mixed"}


def test_heads_are_fitted_once():
    task = tasks.TASKS["digits"]("dev", 1)
    assert not task.refits(Cell("pitome", 0.9)) and not task.refits(Cell(WHOLE)) and task.work(Cell(WHOLE)) == 1
