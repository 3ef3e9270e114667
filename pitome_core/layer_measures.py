"""What the layers of a model offer to merging: how parallel their keys are, how tight their clusters, how they rank.

The two axes of the phase diagram in the chapter *When energy helps* are `mean_cosine` and `tightness`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .energy import energy_score
from .merge_plan import MergePlan
from .merge_step import layer_metric
from .patch import LayerStep, Merged
from .patching import patched, use_merge

_ENTRIES = 2**24  # of matrices of cosines that are held at once


@dataclass(frozen=True)
class LayerMeasures:
    """One layer of the whole model, each number a mean over items.

    Attributes:
        layer: its number, from 0.
        margin: the margin of the energy there, as in the paper.
        cosine: mean cosine of the keys of two tokens.
        tightness: see `tightness`.
        chance: the tightness that random directions reach, `sqrt(2 ln N / C)`. On the synthetic tokens of the phase
            diagram with at least this tightness, at most about three in a hundred of ToMe's merges join clusters.
        spread: standard deviation of the energies over the tokens of an item.
        isolated: share of tokens with no other token at a cosine of the margin or more. The energy of such a token has
            no term above the margin but its own.
    """

    layer: int
    margin: float
    cosine: float
    tightness: float
    chance: float
    spread: float
    isolated: float

    @property
    def parallel(self) -> bool:
        """Whether the mean cosine reaches the margin, so that a typical pair of tokens counts as alike."""
        return self.cosine >= self.margin

    @property
    def tight(self) -> bool:
        """Whether neighbours are nearer than chance."""
        return self.tightness >= self.chance


def _unit(x: Tensor) -> Tensor:
    """Tokens of length 1, in float32 or, for float64, in that."""
    return normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _nearest(unit: Tensor) -> Tensor:
    """The largest cosine of each token to another one, `(B, N, C)` -> `(B, N)`."""
    cosines = unit @ unit.transpose(1, 2)  # (B, N, N)
    cosines.diagonal(dim1=1, dim2=2).fill_(-2)  # no token is its own neighbour
    return cosines.amax(dim=-1)


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine of the pairs of different tokens, `(B, N, C)` -> `(B,)`, in float32 or, for float64, in that."""
    unit, n = _unit(x), x.shape[1]
    return (unit.sum(1).square().sum(-1) - n) / (n * (n - 1))


def tightness(x: Tensor) -> Tensor:
    """Median over tokens of the largest cosine to another token, both less the mean direction: `(B, N, C)` -> `(B,)`.

    It is what is left of clusters when the direction that all tokens share is taken away.
    """
    unit = _unit(x)
    return _nearest(normalize(unit - unit.mean(dim=1, keepdim=True), dim=-1)).median(dim=-1).values


def _measures(keys: Tensor, margin: float) -> Tensor:
    """Keys `(B, N, D)` -> `(B, 5)`: mean cosine, tightness, chance, spread of energies, share of isolated tokens."""
    isolated = (_nearest(_unit(keys.float())) < margin).float().mean(dim=1)
    chance = isolated.new_full((len(keys),), math.sqrt(2 * math.log(keys.shape[1]) / keys.shape[2]))
    spread = energy_score(keys, margin).float().std(dim=1, correction=0)
    return torch.stack([mean_cosine(keys), tightness(keys), chance, spread, isolated], dim=1)


def measure_layers(model: nn.Module, calls: list[Callable[[], object]], margins: list[float]) -> list[LayerMeasures]:
    """Run `calls`, which call the unpatched model, and measure the keys that each of its layers would merge by.

    Tokens that never merge (class tokens, padding) do not count. Items with fewer than two others are left out.
    """
    found: list[list[Tensor]] = [[] for _ in margins]

    def read(step: LayerStep, x: Tensor, keys: Tensor, size: Tensor | None, attention_map: Tensor | None) -> Merged:
        metric = layer_metric("keys", x, keys, step.prefix)
        real, items = step.mergeable, metric.split(max(1, _ENTRIES // metric.shape[1] ** 2))
        if real is not None:
            items = [one[here][None] for one, here in zip(metric, real, strict=True)]
        found[step.layer] += [_measures(part, margins[step.layer]).cpu() for part in items if part.shape[1] > 1]
        if size is not None:
            return x, size, None
        # Blocks call a merge where tokens go or have sizes. With sizes of 1, all blocks behind the first one call it.
        size = x.new_ones(x.shape[:2], dtype=torch.float32)
        return x, size, MergePlan.identity(len(x), x.shape[1] - step.prefix, x.device)

    with patched(model, "tome", 0.5, proportional=False), torch.no_grad():
        use_merge(model, read)
        for call in calls:
            call()
    return [LayerMeasures(layer, margin, *torch.cat(parts).mean(dim=0).tolist())
            for layer, (margin, parts) in enumerate(zip(margins, found, strict=True)) if parts]
