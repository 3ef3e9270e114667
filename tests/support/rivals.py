"""How tests call rivals and controls: their names, the context that a layer gives, a call with what a method reads."""

from __future__ import annotations

import numpy as np
import torch

import pitome_core as pc
import pitome_core.experiments.baselines

# grid_pool and dct have fixed counts or no partition, and tests of their own.
PLANNED = ("tofu", "mctf", "crossget", "diffrate", "atc", "topk_attention", "evit")


def context(batch: int, n: int, seed: int, dtype=torch.float64, prefix: int = 1) -> dict:
    """The context that a layer gives: attention maps that are softmax weights, whole sizes, and positions on a grid."""
    generator = torch.Generator().manual_seed(seed + 77)
    score = 2 * torch.randn(batch, prefix + n, prefix + n, generator=generator, dtype=torch.float64)
    attention = score.softmax(dim=-1)[:, :, prefix:]
    size = torch.randint(1, 5, (batch, n), generator=generator).to(torch.float32)
    return {"attention": attention.to(dtype), "class_attention": attention[:, 0].to(dtype), "size": size,
            "positions": grid(batch, n, 5)}


def grid(batch: int, n: int, columns: int) -> torch.Tensor:
    place = torch.arange(n).expand(batch, n)
    return torch.stack([place // columns, place % columns], dim=-1)


def run(method: str, metric, k, given: dict, mask=None, **options):
    """Call the function of the method with the context that it names."""
    chosen = pc.methods()[method]
    wanted = {name: given[name] for name in chosen.needs if name in given}
    if mask is not None:
        wanted["mask"] = mask
    return chosen.function(metric, k, **wanted, **options)


def most(method: str, n: int) -> int:
    return pc.methods()[method].max_remove(n)


def one_hot_tokens(seed: int, n: int, kinds: int, dtype) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.eye(kinds)[rng.integers(0, kinds, n)])[None].to(dtype)
