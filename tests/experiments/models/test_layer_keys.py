"""Keys by layer: what is read is what a merge in that layer reads."""

from __future__ import annotations

import pytest
import torch
from small_models import randomize
from torch import nn

import pitome_core as pc
from pitome_core.experiments.models.layer_keys import layer_keys

transformers = pytest.importorskip("transformers")
TEXT = torch.tensor([[2, *range(10, 22), 3], [2, *range(30, 42), 3]])


def bert():
    config = transformers.BertConfig(vocab_size=60, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
                                     intermediate_size=64)
    return randomize(transformers.BertModel(config, add_pooling_layer=False)).eval()


@pytest.fixture(params=["vit", "bert"])
def case(request, build_vit):
    """Model, inputs, and the function that runs one on the other."""
    if request.param == "bert":
        model = bert()
        return model, TEXT, lambda: model(input_ids=TEXT).last_hidden_state
    model = build_vit()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return model, images, lambda: model.forward_features(images)


@torch.no_grad()
@pytest.mark.parametrize("metric", ["keys", "hidden"])
def test_energies_are_those_that_a_merge_in_the_layer_records(case, metric):
    model, inputs, run = case
    read = layer_keys(model, inputs)
    assert torch.equal(read.last, run())
    ends = 1 if hasattr(model, "blocks") else 2  # class token; [CLS] and [SEP]
    options = {"metric": "hidden"} if metric == "hidden" else {}
    for layer, margin in enumerate(pc.margin_schedule(3)):
        values = getattr(read, metric)[layer]
        assert values.shape == (2, read.last.shape[1] - ends, 16 if metric == "keys" else 48)
        keep = [1.0] * 3
        keep[layer] = 0.8
        with pc.patched(model, "pitome", keep, **options) as running, pc.record(running) as trace:
            run()
        energy = trace.layers[layer].energy
        inner = energy[:, -values.shape[1] :] if ends == 1 else energy[:, 1:-1]
        torch.testing.assert_close(inner, pc.energy_score(values, margin), rtol=0, atol=1e-5)


def test_no_hook_stays_and_a_merged_model_gives_its_own_tokens(case):
    model, inputs, _ = case
    whole = layer_keys(model, inputs)
    with pc.patched(model, "tome", 0.8, restore=False):
        merged = layer_keys(model, inputs)
    counts = [key.shape[1] for key in merged.keys]
    assert counts[0] == whole.keys[0].shape[1] > counts[1] > counts[2]
    assert torch.equal(merged.keys[0], whole.keys[0])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
        layer_keys(model, inputs.flatten()[:1])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="ViTs of timm and bare BERTs, this is a Linear"):
        layer_keys(nn.Linear(2, 2), torch.zeros(1, 2))
