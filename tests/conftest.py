"""Shared fixtures: small random ViTs, images, the `gpu` marker and a reproducible hypothesis profile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))  # `import oracle`, whatever the import mode

from small_models import randomize

# 70 examples for each of the 30 property tests: over 2,000 in every run. `make fuzz` asks for more, and for new ones.
EXAMPLES = int(os.environ.get("PITOME_EXAMPLES", "70"))
hypothesis.settings.register_profile(
    "laws",
    deadline=None,
    derandomize="PITOME_EXAMPLES" not in os.environ,
    max_examples=EXAMPLES,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("laws")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def on_the_processor():
    """Models run on the CPU; a module asks for it with `usefixtures`, before any model of its own is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        yield


@pytest.fixture(scope="session")
def build_vit():
    """build_vit(name="vit_tiny_patch16_224", **overrides) -> a small timm ViT in eval mode with random weights."""
    timm = pytest.importorskip("timm")

    def build(name: str = "vit_tiny_patch16_224", seed: int = 0, **overrides) -> torch.nn.Module:
        patch14 = "patch14" in name
        small = dict(img_size=56 if patch14 else 64, embed_dim=48, num_heads=3, depth=3, num_classes=7)
        return randomize(timm.create_model(name, pretrained=False, **{**small, **overrides}), seed).eval()

    return build


@pytest.fixture(scope="session")
def images():
    """images(batch=2, side=64, seed=0) -> (B, 3, side, side), with smooth regions, so that some tokens look alike."""

    def make(batch: int = 2, side: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(batch, 3, 3, 3, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="nearest")
        return (smooth + 0.3 * torch.randn(batch, 3, side, side, generator=generator)).to(dtype)

    return make


@pytest.fixture
def registry(monkeypatch):
    """A registry of the test's own: what it registers is gone afterwards."""
    from pitome_core.mergers import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    return registry
