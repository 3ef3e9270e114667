"""Classifiers of sentences: the mean that they read, and files of their weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import pitome_core as pc
from pitome_core.experiments.models import bert, low_rank
from pitome_core.experiments.records import results
from pitome_core.experiments.text import classifiers

pytestmark = pytest.mark.usefixtures("on_the_processor")
TEXT = "Visually imaginative, thematically instructive and thoroughly delightful, it takes us on a roller coaster ride."


@pytest.fixture(scope="module")
def encoder():
    return bert.sentence_encoder("cpu")


def test_dropped_tokens_do_not_count_in_the_mean(encoder):
    """Against survivors alone: restore=False keeps no zeros."""
    rows = bert.encode([TEXT])
    with pc.patched(encoder, "random_prune", [0.6] * 3 + [1.0] * 3):
        mean = classifiers.features(encoder, rows)
    with pc.patched(encoder, "random_prune", [0.6] * 3 + [1.0] * 3, restore=False), torch.no_grad():
        left = encoder(input_ids=torch.tensor(rows)).last_hidden_state[0]
    assert len(left) < len(rows[0]) and (left.mean(0) - mean[0]).abs().max() < 1e-5


def test_a_classifier_survives_storage(encoder, tmp_path):
    """Trained updates beside the weights and stored ones added to them give the same states, in half precision."""
    adapted = bert.sentence_encoder("cpu")
    parameters = low_rank.adapt(adapted.encoder, classifiers.linears(adapted), seed=0)
    assert len(parameters) == 2 * 36 and sum(p.numel() for p in parameters) == 6 * 8 * (4 * 768 + 2 * 1920)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw))
    path, weight = tmp_path / "weights" / "one.safetensors", torch.randn(2, 384, generator=draw)
    classifiers.save(path, weight, torch.tensor([0.5, -0.5]), low_rank.updates(adapted.encoder))
    stored = load_file(path)
    assert len(stored) == 2 + 72 and stored["layer.0.attention.self.query.up"].dtype == torch.float16
    assert path.stat().st_size < 2**20  # four files are shipped
    loaded = classifiers.load(0, path=path)
    assert torch.equal(loaded.weight, weight) and not loaded.unit
    rows = bert.encode([TEXT, "good"])
    expected, states = classifiers.features(adapted, rows), classifiers.features(loaded.encoder, rows)
    assert (states - classifiers.features(encoder, rows)).abs().max() > 1e-3
    assert (states - expected).abs().max() < 5e-3  # half precision
    assert not any("lora" in name for name, _ in loaded.encoder.named_modules())


@pytest.mark.parametrize("seed", classifiers.SEEDS)
def test_shipped_classifiers_are_the_encoder_and_twice_the_products(encoder, seed):
    """Shipped files are older than `low_rank`: their updates mean W + 2 up @ down, whoever adds them."""
    stored = load_file(classifiers.weights_path(seed))
    loaded, bare = classifiers.linears(classifiers.load(seed).encoder), classifiers.linears(encoder)
    for name, linear in loaded.items():
        up, down = (stored[f"{name}.{part}"].float() for part in ("up", "down"))
        torch.testing.assert_close(linear.weight, bare[name].weight + 2 * up @ down, rtol=0, atol=1e-6)
        assert torch.equal(linear.bias, bare[name].bias)


def test_without_weights_the_error_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(classifiers, "weights_path", lambda seed, cell=None: tmp_path / "none.safetensors")
    with pytest.raises(results.RecordError, match="no weights none.safetensors in .*make text-weights"):
        classifiers.load(0)
