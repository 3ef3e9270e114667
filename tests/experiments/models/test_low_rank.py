"""Low-rank updates: peft trains them, and added to the weights they compute the same."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import randomize
from torch import Tensor, nn

from pitome_core.experiments.models import low_rank

TARGETS = ("first", "second")
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(7))


class Small(nn.Module):
    """Three linear maps, of which two will have updates."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 20), nn.Linear(20, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(nn.functional.gelu(self.first(x))))


@pytest.fixture
def model():
    return randomize(Small())


def trained(model: nn.Module) -> nn.Module:
    """A copy with updates that are not 0 any more."""
    adapted = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in low_rank.adapt(adapted, TARGETS, seed=0, rank=4):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return adapted


def test_training_starts_at_the_model_and_changes_updates_alone(model):
    before = model(X)
    parameters = low_rank.adapt(model, TARGETS, seed=0, rank=4)
    torch.testing.assert_close(model(X), before)
    assert sorted(tuple(p.shape) for p in parameters) == [(4, 12), (4, 20), (12, 4), (20, 4)]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    stored = low_rank.updates(model)
    assert set(stored) == {f"{name}.{part}" for name in TARGETS for part in ("up", "down")}
    assert all(stored[f"{name}.up"].abs().max() == 0 for name in TARGETS)
    model(X).sum().backward()
    assert all(p.grad is not None for p in parameters) and model.head.weight.grad is None


def test_down_is_drawn_from_the_seed_alone(model):
    """Its variance is 1 / in. The global generator is neither read nor moved."""
    state = torch.get_rng_state()
    drawn = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        one = copy.deepcopy(model)
        low_rank.adapt(one, TARGETS, seed, rank=200)
        drawn.append(low_rank.updates(one)["first.down"])
        assert torch.initial_seed() == other
    torch.set_rng_state(state)
    low_rank.adapt(model, TARGETS, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].var().item() == pytest.approx(1 / 12, rel=0.1)


def test_merged_updates_are_those_beside_the_weights(model):
    """By hand, and as peft itself merges them: W + SCALE up @ down."""
    adapted, weight = trained(model), model.first.weight.clone()
    stored = low_rank.updates(adapted)
    low_rank.merge(model, TARGETS, stored)
    torch.testing.assert_close(model.first.weight, weight + 2 * stored["first.up"] @ stored["first.down"])
    torch.testing.assert_close(model(X), adapted(X))
    adapted.first.merge()
    torch.testing.assert_close(adapted.first.base_layer.weight, model.first.weight, rtol=0, atol=1e-6)


def test_updates_are_the_models_own_tensors(model):
    """So a checkpoint can be copied into them."""
    adapted = trained(model)
    for value in low_rank.updates(adapted).values():
        value.zero_()
    torch.testing.assert_close(adapted(X), model(X))


def test_errors(model):
    adapted = trained(model)
    with pytest.raises(ValueError, match="first has an update already"):
        low_rank.adapt(adapted, TARGETS, seed=0)
    stored, weight = low_rank.updates(adapted), model.second.weight.clone()
    del stored["first.up"]
    with pytest.raises(ValueError, match=r"3 matrices of updates, the model has room for 4; .*: first.up"):
        low_rank.merge(model, TARGETS, stored)
    assert torch.equal(model.second.weight, weight), "an error changes no weight"
    with pytest.raises(ValueError, match="1 matrices of updates, the model has room for 4; .*: a"):
        low_rank.merge(model, TARGETS, {"a": torch.zeros(1)})
