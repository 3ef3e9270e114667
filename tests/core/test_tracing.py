"""Laws of recording: what a trace says about a forward call."""

from __future__ import annotations

import copy
import threading

import numpy as np
import oracle
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines

pytest.importorskip("timm")
METHODS = ("pitome", "tome", "random_prune", "random_merge")
REMOVED = oracle.keep_removals(16, 0.7, 3)


@pytest.fixture
def merged(build_vit, images):
    """merged(method, keep=0.7, **options) -> (patched model with a class token and 4 registers, images)."""

    def make(method="pitome", keep=0.7, **options):
        model = build_vit("vit_small_patch14_reg4_dinov2")
        return pc.apply(model, method, keep=keep, **options), images(2, 56)

    return make


def traced(model, x):
    with torch.no_grad(), pc.record(model) as trace:
        out = model(x)
    return trace, out


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_has_its_plan_sizes_and_energy(merged, method):
    """One entry per block, prefix excluded: plan, sizes after the merge that account for every token, energies."""
    trace, _ = traced(*merged(method))
    assert len(trace.forwards) == 1 and len(trace.layers) == 3
    left = 16
    for layer, removed in zip(trace.layers, REMOVED, strict=True):
        assert layer.plan.assignment.shape == (2, left) and layer.plan.num_tokens == left - removed
        assert layer.size.shape == (2, left - removed) and layer.size.dtype == torch.float32
        if method == "random_prune":
            assert layer.size.eq(1).all()
        else:
            oracle.check_partition(layer.plan, left, left - removed)
            assert layer.size.sum(1).tolist() == [16, 16]
        if method == "pitome":
            assert layer.energy.shape == (2, left)
            merging = layer.energy.argsort(dim=1, descending=True, stable=True)[:, : 2 * removed]
            grouped = layer.plan.sizes.gather(1, layer.plan.assignment) > 1
            assert all(
                set(g.nonzero().flatten().tolist()) <= set(m.tolist()) for g, m in zip(grouped, merging, strict=True)
            )
        elif method == "tome":
            assert layer.energy is None
        left -= removed


@pytest.mark.parametrize("method", METHODS)
def test_the_final_assignment_is_the_composition(merged, method):
    """trace.assignment follows every patch through all layers; -1 where it was dropped on the way."""
    trace, _ = traced(*merged(method))
    assert trace.assignment.shape == (2, 16)
    for item in range(2):
        total = list(range(16))
        for layer in trace.layers:
            total = oracle.compose(total, oracle.plan_roots(layer.plan)[item])
        assert trace.assignment[item].tolist() == oracle.assignment(total)
        final = trace.layers[-1].size[item].tolist()
        assert [total.count(anchor) for anchor in oracle.anchors(total)] == final
    assert (trace.assignment < 0).any() == (method == "random_prune")


@pytest.mark.parametrize("method", (*METHODS, "dct"))
def test_after_no_layer_the_plan_is_the_identity(merged, method):
    """Whatever the first layer does: the plans after 0, 1, 2 layers are those before the merges of layers 0, 1, 2."""
    model, x = merged(method)
    trace, _ = traced(model, x)
    tokens = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    before, expected = trace.last.plan(0), tokens
    assert before.shape == (2, 16) and torch.equal(before.merge(tokens)[0], tokens)
    assert torch.equal(before.unmerge(tokens), tokens)
    size = None
    for count, layer in enumerate(trace.layers):
        assert trace.last.plan(count).num_tokens == layer.plan.shape[1]
        assert torch.allclose(trace.last.plan(count).merge(tokens)[0], expected, atol=1e-5)
        expected, size = layer.plan.merge(expected, size)


def test_a_transform_has_no_assignment_and_is_drawn_by_its_numbers(merged):
    """What a trace cannot say of a transform is refused with what can be read instead; the rest works."""
    trace, _ = traced(*merged("dct"))
    with pytest.raises(ValueError, match=r"plan\(\).matrix\(\)"):
        _ = trace.assignment
    with pytest.raises(ValueError, match=r"trace.plot\(\)"):
        pc.token_map(trace, torch.rand(3, 56, 56), layer=0)
    assert trace.last.plan().matrix().shape == (16 - sum(REMOVED), 16)
    assert [layer.energy for layer in trace.layers] == [None] * 3
    pytest.importorskip("matplotlib").use("agg")
    (stairs,) = trace.plot()[0].patches
    assert list(stairs.get_data().values) == [16, *(layer.plan.num_tokens for layer in trace.layers)]


def test_layers_that_remove_nothing_have_the_identity(merged):
    """Where k = 0 the plan is the identity and the sizes stay."""
    trace, _ = traced(*merged(keep=[1.0, 0.5, 1.0]))
    assert [layer.plan.num_tokens for layer in trace.layers] == [16, 8, 8]
    assert trace.layers[0].plan.assignment.tolist() == [list(range(16))] * 2
    assert trace.layers[0].size.eq(1).all()
    assert torch.equal(trace.layers[2].size, trace.layers[1].size)
    nothing, _ = traced(*merged(keep=1.0))
    assert len(nothing.layers) == 3 and nothing.assignment.tolist() == [list(range(16))] * 2


def test_recording_changes_nothing(merged):
    """Outputs are equal to the bit with and without a recording."""
    model, x = merged()
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(traced(model, x)[1], expected)


def test_every_call_inside_is_one_entry(merged):
    """forwards has one entry per call inside, whichever entry point; layers and assignment are the last one's."""
    model, x = merged()
    with torch.no_grad(), pc.record(model) as trace:
        model(x)
        model.forward_features(x[:1])
        model.forward_intermediates(x)
    model(x)
    assert [call.layers[0].plan.assignment.shape[0] for call in trace.forwards] == [2, 1, 2]
    assert trace.layers is trace.forwards[-1].layers or len(trace.layers) == len(trace.forwards[-1].layers)
    np.testing.assert_array_equal(trace.assignment.numpy(), trace.forwards[-1].assignment.numpy())


def test_recordings_nest(merged):
    """An inner recording sees its own calls, the outer one sees all."""
    model, x = merged()
    with torch.no_grad(), pc.record(model) as outer:
        model(x)
        with pc.record(model) as inner:
            model(x)
        model(x)
    assert len(outer.forwards) == 3 and len(inner.forwards) == 1


def test_other_threads_are_not_recorded(merged):
    """A recording holds the calls of the thread that made it."""
    model, x = merged()
    with pc.record(model) as trace:
        worker = threading.Thread(target=lambda: model(x[:1]))
        worker.start()
        worker.join()
        model(x)
    assert len(trace.forwards) == 1 and trace.layers[0].size.shape[0] == 2


def test_copies_are_not_recorded(merged):
    """A recording belongs to its model: a copy made meanwhile is another model."""
    model, x = merged()
    with pc.record(model) as trace:
        twin = copy.deepcopy(model)
        twin(x)
    assert len(trace.forwards) == 0


def test_a_recording_ends_with_its_block_even_by_exception(merged):
    """After an exception in the block, nothing more is recorded and the calls before it are kept."""
    model, x = merged()
    with pytest.raises(RuntimeError, match="stop"), pc.record(model) as trace:
        model(x)
        raise RuntimeError("stop")
    model(x)
    assert len(trace.forwards) == 1


def test_a_call_that_raises_leaves_no_half_entry(merged):
    """A forward that dies in the middle adds no entry, and later calls record as ever."""
    model, x = merged()

    def explode(*_):
        raise RuntimeError("in the middle")

    with pc.record(model) as trace:
        handle = model.blocks[1].mlp.register_forward_pre_hook(explode)
        with pytest.raises(RuntimeError, match="in the middle"):
            model(x)
        handle.remove()
        model(x)
    assert len(trace.forwards) == 1 and len(trace.layers) == 3


def test_traces_hold_no_graph(merged):
    """Recorded tensors carry no gradient history, also when recorded in training."""
    model, x = merged()
    with pc.record(model) as trace:
        model(x).sum().backward()
    for layer in trace.layers:
        assert not layer.size.requires_grad and (layer.energy is None or not layer.energy.requires_grad)


def test_recomputation_is_not_recorded_again(merged):
    """With gradient checkpointing, the recomputed blocks of the backward pass add no layers and no calls."""
    model, x = merged()
    model.train()
    model.set_grad_checkpointing(True)
    with pc.record(model) as trace:
        model(x).sum().backward()
    assert len(trace.forwards) == 1 and len(trace.layers) == 3


def test_stopping_early_records_what_ran(merged):
    """forward_intermediates(stop_early=True) records the layers that ran, and their composition."""
    model, x = merged()
    with torch.no_grad(), pc.record(model) as trace:
        model.forward_intermediates(x, indices=[1], stop_early=True)
    assert len(trace.layers) == 2 and trace.assignment.max() + 1 == 16 - sum(REMOVED[:2])


def test_recording_needs_a_patched_model(merged):
    """Recording an unpatched model raises and names the remedy."""
    model, _ = merged()
    pc.remove(model)
    with pytest.raises((ValueError, RuntimeError), match="apply"), pc.record(model):
        pass


def test_an_empty_recording_says_so(merged):
    """Reading a trace before any forward call raises, not an empty answer."""
    model, _ = merged()
    with pc.record(model) as trace:
        pass
    assert len(trace.forwards) == 0
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        _ = trace.layers
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        _ = trace.assignment
