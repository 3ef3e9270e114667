"""AOTInductor: a merged model as a library that runs without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

needs_packages = pytest.mark.skipif(
    not hasattr(torch._inductor, "aoti_load_package"), reason="an older PyTorch has no packages"
)


def packaged(model: nn.Module, images: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    """The model, exported for any batch size, compiled ahead of time and loaded. Call it without gradients."""
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "merged.pt2"))
    return torch._inductor.aoti_load_package(file)


def other_batches(images: Tensor) -> tuple[Tensor, Tensor]:
    """One image, and twice as many as the package was made with."""
    return images[:1], torch.cat([images, images.flip(0)])
