"""Random tokens in known clusters, from which the chapters on the spectral theory draw."""

from __future__ import annotations

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.data.clusters import ORDERS, clusters, wrong_merges


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_lie_around_the_centre_of_their_label(order):
    tokens, labels = clusters((5, 3, 2), 1e-6, 4, order=order, width=8)
    assert tokens.shape == (4, 10, 8) and tokens.dtype == torch.float64
    assert torch.equal(tokens.argmax(dim=-1), labels)
    assert [(row == c).sum().item() for row in labels for c in range(3)] == [5, 3, 2] * 4


def test_orders():
    """Blocks are sorted, adversarial has the first cluster on even places, shuffled differs by trial."""
    assert torch.equal(clusters((5, 3, 2), 0.1)[1][0], torch.tensor([0] * 5 + [1] * 3 + [2] * 2))
    label = clusters((5, 3, 2), 0.1, order="adversarial")[1][0]
    assert (label[0::2] == 0).all() and (label[1::2] != 0).all()
    first, second = (clusters((5, 3, 2), 0.1, 20, order="shuffled") for _ in range(2))
    assert torch.equal(first[0], second[0]) and len({tuple(row.tolist()) for row in first[1]}) > 10


def test_noise_has_the_length_it_is_called():
    tokens, labels = clusters((40, 40), 0.3, 20, width=64)
    lengths = (tokens - torch.eye(64, dtype=torch.float64)[labels]).norm(dim=-1)
    assert lengths.mean().item() == pytest.approx(0.3, rel=0.05)


def test_wrong_merges_are_counted_by_hand():
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]])
    for roots, wrong in (([0, 0, 2, 2, 4, 5], 0), ([0, 0, 0, 3, 4, 5], 1), ([0, 0, 0, 0, 0, 0], 4)):
        assert wrong_merges(pc.MergePlan.from_roots(torch.tensor([roots])), labels).item() == wrong


def test_errors():
    with pytest.raises(ValueError, match="unknown order"):
        clusters((2, 2), 0.1, order="sorted")
    with pytest.raises(ValueError, match="6 of 8 tokens"):
        clusters((6, 2), 0.1, order="adversarial")
