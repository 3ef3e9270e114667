"""Laws of compilation, autocast and low precision in a patched model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines

pytest.importorskip("timm")
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture
def small(build_vit, images):
    """small(method, **options) -> (patched two-block ViT, images)."""

    def make(method="pitome", keep=0.7, **options):
        return pc.apply(build_vit(depth=2), method, keep=keep, **options), images(2)

    return make


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("method", "options"),
    [("pitome", {}), ("tome", {}), ("pitome", {"restore": False, "proportional": False}), ("random_prune", {})],
    ids=["pitome", "tome", "not restored", "random_prune"],
)
def test_compiles_as_one_graph(small, fresh_compiler, method, options):
    """A patched model compiles without a graph break and computes what it computes eagerly."""
    model, x = small(method, **options)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(compiled(x.flip(0)), expected.flip(0), rtol=1e-4, atol=1e-5)


@pytest.fixture
def eager_backend(monkeypatch):
    """torch.compile without a C++ compiler: everything but the code generation. Counts what was compiled."""
    compiled, functions = torch.compile, []

    def counted(function, **options):
        functions.append(function)
        return compiled(function, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", counted)
    return functions


@pytest.mark.parametrize(("method", "options"), [("pitome", {}), ("tome", {"metric": "hidden"}), ("random_prune", {}),
                                                 ("pitome", {"score": "attention"}), ("mctf", {})])
def test_compiled_steps_change_nothing(small, fresh_compiler, eager_backend, method, options):
    """Outputs, plans and gradients; other shapes and copies too; a code object for each layer."""
    model, x = small(method, **options)
    twin, _ = small(method, compile_step=True, **options)
    assert "compile_step=True" in repr(twin)
    for images in (x, x[:1], pickle.loads(pickle.dumps(x))):
        expected, got = model(images), twin(images)
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(y.square().sum(), m.blocks[0].attn.qkv.weight)[0]
                     for y, m in ((expected, model), (got, twin))]
        torch.testing.assert_close(*gradients)
    assert len({id(function.__code__) for function in eager_backend}) == len(eager_backend) == 2
    for copied in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        with torch.no_grad(), pc.record(copied) as trace, pc.record(model) as plain:
            torch.testing.assert_close(copied(x), model(x))
        assert torch.equal(trace.assignment, plain.assignment)


def test_compiled_steps_inside_a_compiled_model(small, fresh_compiler):
    """The step is a part of the model's graph then."""
    model, x = small(compile_step=True)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), pc.apply(model, keep=0.7)(x), rtol=1e-5, atol=1e-6)


def test_compiled_steps_in_low_precision_and_checkpoints(small, fresh_compiler, eager_backend):
    for method in ("dct", "pitome"):
        model, x = small(method)
        twin, _ = small(method, compile_step=True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(twin(x), model(x))
    for one in (model, twin):
        one.set_grad_checkpointing(True)
    gradients = [torch.autograd.grad(m(x).square().sum(), m.blocks[0].attn.qkv.weight)[0] for m in (model, twin)]
    torch.testing.assert_close(*gradients)


def test_a_model_with_compiled_steps_can_be_traced(small, fresh_compiler, eager_backend):
    model, x = small(keep=0.8, compile_step=True)
    with torch.no_grad():
        traced = torch.jit.trace(model, x, check_trace=False)
        torch.testing.assert_close(traced(x), model(x))


def test_compiled_training_step(small, fresh_compiler):
    """Gradients through the compiled model are the eager ones."""
    model, x = small()
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad(set_to_none=True)
        run(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_compiled_model_is_neither_patched_nor_recorded(small, fresh_compiler):
    """apply and record on a compiled model raise and say what to do instead."""
    model, x = small()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises((ValueError, RuntimeError), match="compile"), pc.record(compiled):
        pass
    with pytest.raises(pc.UnsupportedModelError, match="compile"):
        pc.apply(compiled, keep=0.9)
    with torch.no_grad(), pc.record(model) as trace:  # the model underneath is still there
        model(x)
    assert len(trace.layers) == 2


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_plans_under_autocast_are_those_of_float32(method, dtype):
    """Autocast changes no plan and no energy: similarity and scores stay in float32."""
    metric = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = pc.plan(metric, 20, method, margin=0.2)
    with torch.autocast("cpu", dtype):
        got = pc.plan(metric, 20, method, margin=0.2)
        energy = pc.energy_score(metric, 0.2)
        x, size = got.merge(metric.to(dtype))
    assert torch.equal(got.assignment, expected.assignment)
    assert energy.dtype == torch.float32 and torch.equal(energy, pc.energy_score(metric, 0.2))
    assert x.dtype == dtype and size.dtype == torch.float32
    torch.testing.assert_close(x, expected.merge(metric.to(dtype))[0])


@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune"])
@pytest.mark.parametrize("dtype", LOW)
def test_models_run_under_autocast(small, method, dtype):
    """A patched float32 model runs under autocast; energies and sizes stay float32, the plan fits its own metric."""
    model, x = small(method)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype), pc.record(model) as trace:
            out = model(x)
    assert torch.isfinite(out).all() and out.shape == exact.shape
    for layer in trace.layers:
        assert layer.size.dtype == torch.float32 and (layer.energy is None or layer.energy.dtype == torch.float32)


@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune"])
@pytest.mark.parametrize("dtype", LOW)
def test_models_run_in_low_precision(build_vit, images, method, dtype):
    """A model in half precision keeps its dtype through merges; at keep=1 it equals the unpatched one."""
    model, x = build_vit("vit_small_patch14_reg4_dinov2", depth=2).to(dtype), images(2, 56, dtype=dtype)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(pc.apply(model, method, keep=1.0)(x), expected)
        pc.apply(model, method, keep=0.7)
        with pc.record(model) as trace:
            features = model.forward_features(x)
    assert features.dtype == dtype and torch.isfinite(features).all()
    assert all(layer.size.dtype == torch.float32 for layer in trace.layers)


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision_is_close_when_plans_agree(build_vit, images, dtype):
    """With a method whose choice ignores the values, low precision only rounds: outputs stay close to float32."""
    model, x = build_vit(depth=2), images(2)
    pc.apply(model, "random_merge", keep=0.7)
    with torch.no_grad():
        exact = model(x)
        low = model.to(dtype)(x.to(dtype)).float()
    assert (low - exact).abs().max() < 64 * torch.finfo(dtype).eps * exact.abs().max()


def test_inference_mode_leaves_training_possible(small):
    """A forward in inference mode leaves nothing behind that a later training step would trip over."""
    model, x = small()
    with torch.inference_mode():
        inferred = model(x)
    trained = model(x)
    trained.sum().backward()
    torch.testing.assert_close(inferred.clone(), trained.detach())


def test_fused_and_spelled_out_attention_agree(small):
    """The size bias acts alike in the fused kernel and on the unfused path."""
    model, x = small()
    with torch.no_grad():
        fused = model(x)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(model(x), fused, rtol=1e-5, atol=1e-5)


def test_the_fused_kernel_stays_in_use(small, monkeypatch):
    """Merged blocks call scaled_dot_product_attention, with the sizes as an additive mask of one row per item."""
    model, x = small()
    masks, fused = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **options):
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model(x)
    assert masks[0] is None and len(masks) == 2
    assert masks[1][0] in (1, 2) and masks[1][1:] in ((1, 1, 13), (3, 1, 13), (1, 13, 13), (3, 13, 13))
