"""What must hold on a CUDA device: the same plans as on the CPU, fused attention with sizes, bf16 and fp16."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import oracle
import pytest
import torch
from oracle import gaussian_tokens
from packages import needs_packages, other_batches, packaged

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.attention import attention, size_bias

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
LOW = (torch.float16, torch.bfloat16)
METHODS = ("pitome", "tome", "random_prune", "random_merge")


def one_hot_tokens(n: int, kinds: int, seed: int) -> torch.Tensor:
    """Plus and minus one-hot tokens: every cosine is exactly -1, 0 or 1, on every device."""
    rng = np.random.default_rng(seed)
    rows = np.eye(kinds)[rng.integers(0, kinds, n)] * rng.choice([-1.0, 1.0], (n, 1))
    return torch.from_numpy(rows)[None].float()


def sign_tokens(n: int, width: int, seed: int) -> torch.Tensor:
    """Tokens of plus and minus ones; with 4 or 16 channels the norm is 2 or 4 and every cosine a binary fraction."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.choice([-1.0, 1.0], (1, n, width))).float()


def same_plan(a, b) -> bool:
    return torch.equal(a.assignment.cpu(), b.assignment.cpu()) and torch.equal(a.anchor.cpu(), b.anchor.cpu())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "c"), [(5, 4), (16, 8), (197, 64), (577, 64)])
def test_plans_are_those_of_the_cpu(method, n, c):
    """In float64, where no two scores of random tokens are near a tie, both devices make the same plan."""
    metric = gaussian_tokens(3, n, c, n, torch.float64)
    for k in (0, 1, n // 3, n // 2):
        plan = pc.plan(metric.to(DEVICE), k, method, margin=0.1)
        assert plan.assignment.device.type == DEVICE and same_plan(plan, pc.plan(metric, k, method, margin=0.1))


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize(
    "metric",
    [
        torch.ones(1, 50, 4),
        one_hot_tokens(64, 4, 0),
        one_hot_tokens(197, 8, 1),
        sign_tokens(64, 4, 2),
        sign_tokens(99, 16, 3),
    ],
    ids=["equal", "one-hot 64", "one-hot 197", "signs 4", "signs 16"],
)
def test_exact_ties_break_alike(method, dtype, metric):
    """Exactly tied energies and cosines keep raster order on both devices (margin -1: energies are exact sums)."""
    n = metric.shape[1]
    for k in (1, n // 4, n // 2):
        plan = pc.plan(metric.to(DEVICE, dtype), k, method, margin=-1.0)
        assert same_plan(plan, pc.plan(metric, k, method, margin=-1.0))
        assert oracle.plan_roots(plan)[0] == oracle.roots_of(method, metric[0], k, -1.0)


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_ties_together(method):
    """Items of different lengths with exact ties plan alike on both devices."""
    metric = one_hot_tokens(40, 5, 4).expand(3, -1, -1).clone()
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) > 0.3
    remove = mask.sum(1) // 3
    here = pc.plan(metric, remove, method, margin=-1.0, mask=mask)
    there = pc.plan(metric.to(DEVICE), remove.to(DEVICE), method, margin=-1.0, mask=mask.to(DEVICE))
    assert same_plan(here, there) and torch.equal(here.valid, there.valid.cpu())


@pytest.mark.parametrize("kernel", ["paper", "elu", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_energies_agree_with_the_loop(kernel, dtype):
    """Energies on the device are float32 and those of the reference, TF32 or not, under autocast or not."""
    metric = gaussian_tokens(2, 65, 64, 0, dtype)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        for torch.backends.cuda.matmul.allow_tf32 in (False, True):
            for enabled in (False, True):
                with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
                    energy = pc.energy_score(metric.to(DEVICE), 0.3, kernel=kernel)
                assert energy.dtype == torch.float32
                if torch.backends.cuda.matmul.allow_tf32 and dtype == torch.float32:
                    continue  # whoever allows TF32 for float32 has asked for its rounding
                for item in range(2):
                    np.testing.assert_allclose(
                        energy[item].cpu().numpy(),
                        oracle.energies(metric[item], 0.3, kernel=kernel),
                        rtol=1e-4,
                        atol=1e-5,
                    )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW])
def test_merges_agree_with_the_loop(dtype):
    """Means and sizes on the device are the reference's to the dtype's accuracy; lone tokens pass bit for bit."""
    x = gaussian_tokens(1, 197, 32, 0, dtype)
    plan = pc.plan(gaussian_tokens(1, 197, 16, 1, torch.float64).to(DEVICE), 60, margin=0.1)
    size = torch.randint(1, 9, (1, 197), generator=torch.Generator().manual_seed(0)).float()
    merged, sizes = plan.merge(x.to(DEVICE), size.to(DEVICE))
    roots = oracle.plan_roots(plan)[0]
    expected, expected_sizes = oracle.merge(x[0], roots, size[0])
    eps = max(torch.finfo(dtype).eps, 1e-7)
    np.testing.assert_allclose(merged[0].double().cpu().numpy(), expected, rtol=4 * eps, atol=4 * eps)
    assert sizes[0].tolist() == expected_sizes.tolist()
    alone = (plan.sizes[0] == 1).cpu()
    assert torch.equal(merged[0].cpu()[alone], x[0, plan.anchor[0].cpu()[alone]])


def test_merging_half_precision_accumulates_in_float32():
    """The mean of 4,000 half-precision tokens is the rounded exact mean on the device too."""
    for dtype in LOW:
        x = (gaussian_tokens(1, 4000, 3, 0) + 1).to(dtype)
        plan = pc.MergePlan.from_roots(torch.zeros(1, 4000, dtype=torch.long, device=DEVICE))
        merged, size = plan.merge(x.to(DEVICE))
        torch.testing.assert_close(
            merged[:, 0].double().cpu(), x.double().mean(1), rtol=2 * torch.finfo(dtype).eps, atol=0
        )
        assert size.item() == 4000


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("num_tokens", [13, 64, 197])
def test_fused_attention_takes_the_size_bias(dtype, num_tokens):
    """The fused kernel with the size mask equals attention spelled out in float64, in every dtype."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, num_tokens, 64, generator=generator).to(dtype) for _ in range(3))
    size = torch.randint(1, 40, (2, num_tokens), generator=generator).float()
    exact = attention(q.double(), k.double(), v.double(), size_bias(size, torch.float64), fused=False)
    on_device = [value.to(DEVICE) for value in (q, k, v)]
    for fused in (True, False):
        out = attention(*on_device, size_bias(size.to(DEVICE), dtype), fused=fused)
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double().cpu(),
            exact,
            rtol=0,
            atol=max(4 * torch.finfo(dtype).eps, 1e-3 if torch.backends.cuda.matmul.allow_tf32 else 1e-5),
        )


def test_fused_attention_with_sizes_is_differentiable():
    """Gradients through the fused kernel with the mask equal those of the spelled-out one."""
    gradients = []
    for fused in (True, False):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 3, 33, 32, generator=generator).to(DEVICE).requires_grad_() for _ in range(3))
        size = torch.randint(1, 40, (2, 33), generator=generator).float().to(DEVICE)
        attention(q, k, v, size_bias(size, torch.float32), fused=fused).square().sum().backward()
        gradients.append([value.grad for value in (q, k, v)])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_models_agree_with_the_cpu(build_vit, images, method):
    """A float64 patched model has the same plans and outputs on both devices."""
    model = pc.apply(build_vit("vit_small_patch14_reg4_dinov2").double(), method, keep=0.7)
    x = images(2, 56, dtype=torch.float64)
    with torch.no_grad(), pc.record(model) as here:
        expected = model(x)
    twin = copy.deepcopy(model).to(DEVICE)
    with torch.no_grad(), pc.record(twin) as there:
        got = twin(x.to(DEVICE))
    assert torch.equal(here.assignment, there.assignment.cpu())
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ["deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("autocast", [True, False])
def test_models_run_in_low_precision(build_vit, images, architecture, dtype, autocast):
    """bf16 and fp16, by autocast or by weights: finite, right dtype, float32 sizes, keep=1 equals the unpatched."""
    model, x = build_vit(architecture).to(DEVICE), images(2).to(DEVICE)
    if not autocast:
        model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad(), torch.autocast(DEVICE, dtype, enabled=autocast):
        whole = model(x)
        torch.testing.assert_close(pc.apply(model, keep=1.0)(x), whole)
        pc.apply(model, keep=0.7)
        with pc.record(model) as trace:
            merged = model(x)
    assert merged.dtype == whole.dtype and torch.isfinite(merged).all()
    assert all(layer.size.dtype == torch.float32 and layer.energy.dtype == torch.float32 for layer in trace.layers)


def test_training_step_on_the_device(build_vit, images):
    """A training step under autocast with gradient checkpointing gives finite gradients everywhere."""
    model = pc.apply(build_vit().to(DEVICE), keep=0.7).train()
    model.set_grad_checkpointing(True)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = model(images(2).to(DEVICE)).float().square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_many_tokens_go_in_blocks():
    """Beyond 2,048 tokens the device plans in bounded memory, like the CPU (exact ties included)."""
    metric = one_hot_tokens(4200, 16, 0)
    assert same_plan(pc.plan(metric.to(DEVICE), 500, margin=-1.0), pc.plan(metric, 500, margin=-1.0))


def test_compiled_on_the_device(build_vit, images):
    """A patched model compiles without a graph break on the device."""
    torch._dynamo.reset()
    model, x = pc.apply(build_vit(depth=2).to(DEVICE), keep=0.7), images(2).to(DEVICE)
    with torch.no_grad():
        expected = model(x)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
@needs_packages
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_an_ahead_of_time_package_of_the_fused_step(method, build_vit, images, tmp_path):
    """AOTInductor finds the kernels of `fused=True` in the exported program."""
    model, x = pc.apply(build_vit(depth=2).to(DEVICE), method, keep=0.7, fused=True), images(2).to(DEVICE)
    with torch.no_grad():
        package = packaged(model, x, tmp_path)
        for other in other_batches(x):
            torch.testing.assert_close(package(other), model(other), rtol=1e-3, atol=1e-4)
