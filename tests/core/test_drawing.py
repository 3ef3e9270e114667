"""Pictures of what merged: colours, outlines and hatching follow from the plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pitome_core as pc
from pitome_core.drawing import token_colours
from pitome_core.merge_plan import LinearPlan, MergePlan
from pitome_core.tracing import Trace

GREY = 128


def traced(*plans):
    trace = Trace()
    trace.add([(plan, plan.sizes if isinstance(plan, MergePlan) else torch.ones(1, plan.num_tokens)) for plan in plans])
    return trace


def blocks(values, side=20):
    """A picture of 2 x 2 patches of one colour each."""
    grid = np.array(values, dtype=np.uint8).reshape(2, 2, 1)
    return np.kron(grid, np.ones((side, side, 3), dtype=np.uint8))


def inside(picture, row, column, side=20):
    """The middle of a patch, away from lines."""
    return picture[row * side + 5 : (row + 1) * side - 5, column * side + 5 : (column + 1) * side - 5]


def test_patches_have_the_colour_of_their_token():
    image = blocks([10, 50, 100, 200])
    trace = traced(MergePlan.from_roots(torch.tensor([[0, 0, 2, 3]])))
    before = image.copy()
    drawn = pc.token_map(trace, image)
    assert drawn.shape == (40, 40, 3) and drawn.dtype == np.uint8 and (image == before).all()
    for place, value in {(0, 0): 30, (0, 1): 30, (1, 0): 100, (1, 1): 200}.items():
        assert (inside(drawn, *place) == value).all()
    assert (drawn[20, 5:15] == 255).all() and (drawn[25:35, 20] == 255).all()  # between tokens
    assert (drawn[5:15, 20] == 30).all()  # inside one


def test_all_forms_of_a_picture_give_the_same():
    image = blocks([10, 50, 100, 200])
    trace = traced(MergePlan.from_roots(torch.tensor([[0, 1, 1, 3]])))
    expected = pc.token_map(trace, image)
    channels_first = torch.from_numpy(image / 255).permute(2, 0, 1)
    for form in (channels_first, channels_first.numpy(), torch.from_numpy(image), image / 255):
        assert (pc.token_map(trace, form) == expected).all()
    pillow = pytest.importorskip("PIL.Image")
    assert (pc.token_map(trace, pillow.fromarray(image)) == expected).all()


def test_the_layer_is_the_one_asked_for():
    first, second = (MergePlan.from_roots(torch.tensor([root])) for root in ([0, 0, 2, 3], [0, 1, 1]))
    image = blocks([0, 100, 40, 80])
    trace = traced(first, second)
    assert (inside(pc.token_map(trace, image, layer=0), 1, 0) == 40).all()
    assert (inside(pc.token_map(trace, image), 1, 0) == 60).all()
    assert (pc.token_map(trace, image, layer=1) == pc.token_map(trace.forwards[0], image, layer=-1)).all()


def test_dropped_patches_are_grey_and_items_have_their_own():
    root = torch.tensor([[-1, 1, 2, 3], [0, 1, 2, -1]])
    trace = traced(MergePlan.from_roots(root, 3, drops=True))
    image = blocks([10, 50, 100, 200])
    assert (inside(pc.token_map(trace, image), 0, 0) == GREY).all()
    assert (inside(pc.token_map(trace, image, item=1), 1, 1) == GREY).all()
    assert (inside(pc.token_map(trace, image, item=1), 0, 0) == 10).all()


def test_what_the_energy_kept_out_is_hatched():
    """Token 0 and 1 merge; 2 has more energy than 1 and could have; 3 has less."""
    energy = torch.tensor([[0.9, 0.5, 0.7, 0.1]])
    trace = traced(MergePlan.from_roots(torch.tensor([[0, 0, 2, 3]]), energy=energy))
    drawn = pc.token_map(trace, blocks([10, 50, 100, 200]))
    hatched = [[len(np.unique(inside(drawn, row, column))) > 1 for column in (0, 1)] for row in (0, 1)]
    assert hatched == [[False, False], [False, True]]


def test_hatching_is_pitomes_protection(build_vit, images):
    """Of a real model: all tokens that are not among the 2k of highest energy, and at most a few besides."""
    model, x = build_vit(), images(2)
    with torch.no_grad(), pc.record(pc.apply(model, "pitome", keep=0.8)) as trace:
        model(x)
    from pitome_core.drawing import _kept_out

    for layer in trace.layers:
        removed = layer.plan.shape[1] - layer.plan.num_tokens
        rank = layer.energy.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept_out, merged = _kept_out(layer.plan), layer.plan.sizes.gather(1, layer.plan.assignment) > 1
        assert kept_out[rank >= 2 * removed].all() and not kept_out[merged].any()
    with torch.no_grad(), pc.record(pc.apply(model, "tome", keep=0.8)) as trace:
        model(x)
    assert not any(_kept_out(layer.plan).any() for layer in trace.layers)


def test_what_cannot_be_drawn_is_refused():
    image = blocks([10, 50, 100, 200])
    trace = traced(MergePlan.from_roots(torch.tensor([[0, 0, 2, 3]])))
    with pytest.raises(ValueError, match="no layer 1"):
        pc.token_map(trace, image, layer=1)
    with pytest.raises(ValueError, match="no item 1"):
        pc.token_map(trace, image, item=1)
    with pytest.raises(ValueError, match="undo the normalisation"):
        pc.token_map(trace, torch.randn(3, 40, 40))
    with pytest.raises(ValueError, match="got \\(40, 40\\)"):
        pc.token_map(trace, image[..., 0])
    with pytest.raises(ValueError, match="give grid"):
        pc.token_map(trace, image[:30])
    assert pc.token_map(trace, image[:30], grid=(2, 2)).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="not 3 x 2"):
        pc.token_map(trace, image, grid=(3, 2))
    with pytest.raises(ValueError, match="transform"):
        pc.token_map(traced(LinearPlan(torch.eye(4)[:3], torch.eye(4)[:, :3])), image)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        pc.token_map(Trace(), image)


def test_colours_against_loops():
    random = np.random.default_rng(0)
    picture, token = random.integers(0, 256, (6, 5, 3)).astype(np.uint8), random.integers(-1, 4, (6, 5))
    drawn = token_colours(picture, token)
    for place in np.ndindex(6, 5):
        group = picture[token == token[place]].astype(float)
        assert np.allclose(drawn[place], GREY if token[place] < 0 else group.mean(axis=0))


def test_a_trace_is_drawn(build_vit, images):
    pytest.importorskip("matplotlib").use("agg")
    model = build_vit()
    with torch.no_grad(), pc.record(pc.apply(model, "tome", keep=0.7)) as trace:
        model(images(2))
    left, right = trace.plot()
    (stairs,) = left.patches
    heights = [16, *(layer.plan.num_tokens for layer in trace.layers)]
    assert list(stairs.get_data().values) == heights
    assert sum(bar.get_height() for bar in right.patches) == 2 * heights[-1]


def test_without_matplotlib_the_error_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        traced(MergePlan.identity(1, 4)).plot()
