"""The phase diagram and its layers, on small models."""

from __future__ import annotations

import json

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.law import phase, synthetic


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(phase, "COMMON", (0.0, 0.5, 0.9))
    monkeypatch.setattr(phase, "SPREAD", (0.3, 1.0, 3.0))
    monkeypatch.setattr(phase, "ISOLATED", (0.2,))
    monkeypatch.setattr(phase, "MARGINS", (0.45,))


def test_advantage():
    assert phase.advantage(0.1, 0.1) == 0 and phase.advantage(0.0, 0.2) == 2 and phase.advantage(0.2, 0.0) == -2
    assert phase.advantage(0.1, 0.3) == -phase.advantage(0.3, 0.1) == pytest.approx(1.0)


def test_a_prediction_at_a_setting_is_that_of_the_setting(small):
    like = synthetic.Setting(0, 0, margin=0.45, tokens=60, width=16)
    there = synthetic.measure(synthetic.Setting(0.5, 1.0, margin=0.45, tokens=60, width=16), phase.PAIR, 20)
    expected = phase.advantage(*(float(there[f"loss/{arm}"].mean()) for arm in phase.PAIR))
    place = [float(there[name].mean()) for name in ("cosine", "tightness")]
    assert phase.predicted(*place, like) == pytest.approx(expected, abs=1e-6)
    corners = [synthetic.Setting(c, s, margin=0.45, tokens=60, width=16) for c in (0.0, 0.9) for s in (0.3, 3.0)]
    losses = [synthetic.measure(corner, phase.PAIR, 20) for corner in corners]
    known = [phase.advantage(*(float(of[f"loss/{arm}"].mean()) for arm in phase.PAIR)) for of in losses]
    assert phase.predicted(-0.9, 2.0, like) == pytest.approx(known[0], abs=1e-6)  # the nearest: no common part, tight


def test_a_layer_is_placed_by_its_tightness():
    spreads = phase.SPREAD[1:-1:3]
    settings = [synthetic.Setting(0.6, spread, tokens=80, width=24) for spread in spreads]
    tightness = [float(synthetic.measure(setting, ["tome"], 20)["tightness"].mean()) for setting in settings]
    assert phase.noise_of(tightness, 80, 24) == pytest.approx(spreads, rel=0.15)
    assert phase.noise_of([1.0], 80, 24) == pytest.approx(phase.SPREAD[:1])


def test_layers_of_a_model(build_vit, small):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = build_vit()
    layers = phase.RealLayers("small", model, list(images.split(2)), 0.75)
    rows = list(layers.rows())
    assert [row["layer"] for row in rows] == list(range(len(model.blocks)))
    with pc.patched(model, "tome", [1.0] * (len(rows) - 1) + [0.75]), torch.no_grad():
        merged = model.forward_features(images)
    whole = model.forward_features(images)
    loss = 1 - torch.nn.functional.cosine_similarity(merged.double(), whole.double(), dim=-1)[:, 1:].mean(dim=1)
    assert rows[-1]["loss"]["tome"] == pytest.approx(loss.tolist(), abs=2e-7)
    for row in rows:
        means = [sum(row["loss"][arm]) / 3 for arm in phase.PAIR]
        assert row["advantage"] == pytest.approx(phase.advantage(*means), abs=1e-3)
    reverse = [row | {"predicted": -row["advantage"]} for row in rows]
    assert phase.agreement(reverse) == pytest.approx(-1) and phase.agreement(rows) <= 1
    assert not hasattr(model, "_pitome")


def test_the_file_says_what_was_run(tmp_path, small, monkeypatch, build_vit):
    images = torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(phase, "real_layers", lambda: [phase.RealLayers("small", build_vit(), [images], 0.75)])
    monkeypatch.setattr(phase, "TRIALS", 3)
    content = json.loads(phase.run(tmp_path).read_text())
    assert len(content["diagram"]) == 9 and content["protocol"] == "law-1" and content["run"]["code"]
    row = content["diagram"][0]
    assert {f"{name}/{arm}" for name in ("alone", "wrong", "loss") for arm in phase.ARMS} < set(row)
    assert content["layers"][0]["model"] == "small"
