"""What one merge in one layer changes, on small random models: outcomes equal those of single plans."""

from __future__ import annotations

import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines  # registers random merging
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.experiments.spectra.layers import OUTCOMES, Layers, TextLayers, drops, resumed


@pytest.fixture(scope="module")
def layers(build_vit):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Layers(build_vit(), images, batch=2)


@pytest.mark.parametrize("name", ["pitome", "tome", "random-merge"])
def test_outcomes_are_those_of_single_plans(layers, name):
    """Distances are those of plans on the whole model's keys; the last layer's merge does not move the class token."""
    seed = 0 if grid.ARMS[name].seeds > 1 else None
    outcomes = layers.score(Cell(name, 0.75, proportional=True, seed=seed))
    assert set(outcomes) == set(OUTCOMES)
    assert all(value.shape == ((3,) if key.endswith("_all") else (3, 3)) for key, value in outcomes.items())
    margins = pc.margin_schedule(3)
    for layer in range(3):
        for item in range(3):
            metric = layers.metrics[item // 2][layer][item % 2 : item % 2 + 1]
            if name == "random-merge":
                continue
            plan = pc.plan(metric, 4, name, **({"margin": margins[layer]} if name == "pitome" else {}))
            for key, kind in (("sd", "normalized"), ("sd_combinatorial", "combinatorial")):
                expected = pc.spectral_distance(metric, plan, laplacian=kind).item()
                assert outcomes[key][item, layer].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
            unit = torch.nn.functional.normalize(metric.double(), dim=-1)[0]
            groups = [unit[plan.assignment[0] == slot] for slot in range(plan.num_tokens)]
            spread = sum((group - group.mean(0)).square().sum() for group in groups)
            assert outcomes["scatter"][item, layer].item() == pytest.approx(spread.item(), abs=1e-6)
    assert outcomes["class_drop"][:, :2].min() > 0 and outcomes["patch_drop"].min() > 0
    assert outcomes["class_drop"][:, 2].abs().max() < 1e-6


def test_blocks_before_the_one_that_merges_do_not_run_again(build_vit, monkeypatch):
    """Outcomes are bit for bit those of whole runs; only half of the blocks are computed."""
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model, ran, outcomes, counts = build_vit(), [], [], []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda *_: ran.append(1))
    for resumes in (True, False):
        if not resumes:
            monkeypatch.setattr(Layers, "_blocks", lambda self: ())
        layers = Layers(model, images, batch=2)
        ran.clear()
        outcomes.append(layers.score(Cell("pitome", 0.75, proportional=True)))
        counts.append(len(ran))
        assert all("forward" not in vars(block) for block in model.blocks)
    assert counts == [2 * (3 + 2 + 1 + 3), 2 * 4 * 3]  # two batches; one merge in layers 0, 1 and 2, then in all
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_blocks_are_as_they_were_after_an_error(build_vit):
    blocks = list(build_vit().blocks)
    with pytest.raises(ZeroDivisionError), resumed(blocks[:2], torch.zeros(1, 17, 48)):
        assert blocks[1](torch.ones(1))[0].shape == (1, 17, 48)
        raise ZeroDivisionError
    assert all("forward" not in vars(block) for block in blocks)


def test_drops_are_in_thousandths():
    first, second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    values = drops(first, second)
    assert [value.item() for value in values] == pytest.approx([1000, 0])


def test_words_merge_with_words_alone():
    """In a BERT, [CLS] and [SEP] are left out of graphs and plans."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    rows = [torch.randint(5, 50, (1, length)) for length in (12, 17)]
    layers = TextLayers(model, rows)
    assert [metric.shape for metrics in layers.metrics for metric in metrics] == [(1, 10, 12)] * 2 + [(1, 15, 12)] * 2
    outcomes = layers.score(Cell("tome", 0.8, proportional=True))
    for item, removed in enumerate((2, 3)):
        for layer in range(2):
            metric = layers.metrics[item][layer]
            expected = pc.spectral_distance(metric, pc.plan(metric, removed, "tome")).item()
            assert outcomes["sd"][item, layer].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)
