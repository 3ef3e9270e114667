"""Full compilation of a merged model. Slow, and it needs a C++ compiler: `make test-all` runs it."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from packages import needs_packages, other_batches, packaged

import pitome_core as pc

pytestmark = [
    pytest.mark.skipif("PITOME_INDUCTOR" not in os.environ, reason="run by `make test-all`"),
    pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler"),
]


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_inductor_gives_the_same_numbers(method, build_vit, images):
    model = pc.apply(build_vit(depth=2), method, keep=0.8)
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    with torch.no_grad():
        assert torch.allclose(compiled(images()), model(images()), atol=1e-5)


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_compiled_steps_give_the_same_numbers(method, build_vit, images):
    model = pc.apply(build_vit(depth=2), method, keep=0.8)
    with torch.no_grad():
        expected = model(images())
        assert torch.allclose(pc.apply(model, method, keep=0.8, compile_step=True)(images()), expected, atol=1e-5)


@needs_packages
@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_an_ahead_of_time_package_gives_the_same_numbers(method, build_vit, images, tmp_path):
    """AOTInductor: exported, compiled into a library, loaded without the model; right for any batch size."""
    model = pc.apply(build_vit(depth=2), method, keep=0.8)
    x = images(2)
    with torch.no_grad():
        package = packaged(model, x, tmp_path)
        for other in other_batches(x):
            assert torch.allclose(package(other), model(other), atol=1e-5)
