"""Models that are small or cut short, so that a test takes a second."""

from __future__ import annotations

import pytest
import torch


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights that leave nothing near its start: no zero bias, no unit norm, LayerScale 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                value = torch.full_like(noise, 0.3)
            elif name.endswith("bias"):
                value = 0.1 * noise
            elif name.endswith("weight") and noise.ndim == 1:
                value = 1 + 0.1 * noise
            elif name.endswith("weight"):
                value = noise * (noise[0].numel() ** -0.5)
            else:  # class, register and distillation tokens, position embeddings, latents
                value = 0.5 * noise
            parameter.copy_(value)
    return model


def shorten_language_model(patch: pytest.MonkeyPatch) -> None:
    """`llava.assemble` gives the real parts, but of the language model the first two layers alone."""
    from pitome_core.experiments.models import llava

    whole = llava.assemble

    def assemble(seed=0, device=None):
        model = whole(seed, device)
        language = model.model.language_model
        language.layers = language.layers[:2]
        language.config.num_hidden_layers = 2
        return model

    patch.setattr(llava, "assemble", assemble)


def pictures(batch: int, size: tuple[int, int], dtype=torch.float32) -> torch.Tensor:
    """Images with smooth regions, so that some tokens look alike."""
    generator = torch.Generator().manual_seed(2)
    smooth = torch.nn.functional.interpolate(torch.randn(batch, 3, 3, 3, generator=generator), size=tuple(size))
    return (smooth + 0.3 * torch.randn(smooth.shape, generator=generator)).to(dtype)
