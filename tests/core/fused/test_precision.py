"""Why the cosines of the kernels are products of IEEE float32: what TF32 and TF32x3 would do to energies."""

from __future__ import annotations

import torch
from oracle import gaussian_tokens

import pitome_core as pc


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Float32 numbers rounded to the 11 significant bits of TF32."""
    return (((x.view(torch.int32) + 0x1000) >> 13) << 13).view(torch.float32)


def energies(unit: torch.Tensor, form: str, margin: float) -> torch.Tensor:
    """Energies (elu kernel, which has no jump) of unit tokens `(N, C)`, with cosines in one of three forms."""
    if form == "ieee":
        cos = unit @ unit.T
    else:
        large = to_tf32(unit)
        cos = large @ large.T
        if form == "tf32x3":
            small = to_tf32(unit - large)
            cos = small @ large.T + large @ small.T + cos
    return torch.nn.functional.elu(cos - margin).double().mean(dim=1)


def test_errors_of_three_forms():
    """IEEE and TF32x3 keep energies within 1e-6, so ranks beyond near-ties; TF32 does not."""
    x = gaussian_tokens(1, 197, 64, 0, torch.float32)
    exact = pc.energy_score(x.double(), 0.3, kernel="elu")[0]
    unit = torch.nn.functional.normalize(x[0].double(), dim=1).float()
    error = {form: float((energies(unit, form, 0.3) - exact).abs().max()) for form in ("ieee", "tf32x3", "tf32")}
    assert error["ieee"] < 1e-6 and error["tf32x3"] < 1e-6 < error["tf32"], error

    def moved(form: str) -> int:
        """How many tokens have another rank than in float64."""
        ranks = energies(unit, form, 0.3).argsort(descending=True, stable=True)
        return int((ranks != exact.argsort(descending=True, stable=True)).sum())

    assert moved("ieee") == moved("tf32x3") == 0 < moved("tf32")
