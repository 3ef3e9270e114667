"""Synthetic tokens are what their setting says, and outcomes are those of loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.law import phase, synthetic
from pitome_core.experiments.law.synthetic import Setting

FEW = Setting(0.3, 1.0, isolated=0.25, tokens=40, width=16)


def test_tokens_are_in_the_clusters_that_the_setting_names():
    metric, label = synthetic.draw(FEW, 3)
    assert metric.shape == (3, 40, 16) and label.shape == (3, 40)
    for row in label:
        counts = row.bincount()
        assert (counts[len(synthetic.SHARES) :] == 1).all() and len(counts) == len(synthetic.SHARES) + 10
        assert counts[: len(synthetic.SHARES)].sum() == 30 and counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert torch.equal(metric, synthetic.draw(FEW, 3)[0]) and not torch.equal(metric, synthetic.draw(FEW, 3, seed=1)[0])


@pytest.mark.parametrize("common", [0.0, 0.3, 0.9])
def test_the_common_direction_makes_the_mean_cosine(common):
    """With clusters so loose that they add nothing, the mean cosine is the share of the common direction."""
    metric, _ = synthetic.draw(Setting(common, 30.0), 30)
    assert synthetic.offered(metric)["cosine"].mean() == pytest.approx(common, abs=0.02)


def test_tightness_sees_clusters_and_not_the_common_direction():
    tight = [synthetic.measure(Setting(0.0, spread), ["tome"], 10)["tightness"].mean() for spread in (0.2, 1.0, 3.0)]
    assert tight == sorted(tight, reverse=True) and tight[0] > 0.9
    parallel = synthetic.measure(Setting(0.9, 0.2), ["tome"], 10)["tightness"].mean()
    assert parallel == pytest.approx(float(tight[0]), abs=0.02)


def test_offered_equals_the_loop():
    metric, _ = synthetic.draw(FEW, 2)
    found = synthetic.offered(metric)
    for item, tokens in enumerate(metric.double()):
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        n = len(unit)
        pairs = [float(unit[i] @ unit[j]) for i in range(n) for j in range(n) if i != j]
        assert found["cosine"][item] == pytest.approx(sum(pairs) / len(pairs))
        centred = unit - unit.mean(dim=0)
        centred = centred / centred.norm(dim=1, keepdim=True)
        nearest = sorted(max(float(centred[i] @ centred[j]) for j in range(n) if j != i) for i in range(n))
        assert found["tightness"][item] == pytest.approx(nearest[(n - 1) // 2])  # the lower of the two in the middle


@pytest.mark.parametrize("arm", phase.ARMS)
def test_outcomes_equal_the_loop(arm):
    metric, label = synthetic.draw(FEW, 2, seed=4)
    plan = synthetic.plan_of(arm, metric, FEW)
    found = synthetic.outcomes(plan, metric, label)
    assert plan.num_tokens == 36
    for item in range(2):
        slots, clusters = plan.assignment[item].tolist(), label[item].tolist()
        anchors = plan.anchor[item].tolist()
        alone = [i for i in range(40) if clusters[i] >= len(synthetic.SHARES)]
        stay = sum(slots.count(slots[i]) == 1 for i in alone)
        wrong = sum(clusters[i] != clusters[anchors[slots[i]]] for i in range(40))
        losses = []
        for i in range(40):
            mean = metric[item, [j for j in range(40) if slots[j] == slots[i]]].mean(dim=0)
            losses.append(1 - torch.nn.functional.cosine_similarity(mean, metric[item, i], dim=0))
        assert found["alone"][item] == pytest.approx(stay / len(alone))
        assert found["wrong"][item] == pytest.approx(wrong / 4)
        assert found["loss"][item] == pytest.approx(float(sum(losses)) / 40, abs=1e-6)


def test_the_mechanism_of_the_law():
    """Loose clusters, no common direction: energy, a mean over many, knows clusters better than a single cosine does.

    With a common direction it knows how far a token points along it. In tight clusters ToMe is right all the time.
    """
    def gap(setting, arm="pitome"):
        values = synthetic.measure(setting, [arm, "tome"], 40)
        return float((values[f"alone/{arm}"] - values["alone/tome"]).mean())

    loose = Setting(0.0, 3.0, isolated=0.3)
    assert gap(loose) > 0.03 > 0.02 > gap(replace(loose, common=0.6))
    assert gap(replace(loose, common=0.6), "pitome-centred") > 0.03
    assert gap(loose, "pitome-shuffled") < 0 and gap(Setting(0.5, 0.5)) <= 0


def test_energy_is_the_cosine_to_the_mean_token_where_all_cosines_lie_above_the_margin():
    metric, _ = synthetic.draw(Setting(0.9, 1.0), 2)
    unit = torch.nn.functional.normalize(metric, dim=-1)
    energy = pc.energy_score(metric, margin=0.1)
    torch.testing.assert_close(energy, (unit @ unit.mean(dim=1, keepdim=True).transpose(1, 2))[..., 0])
