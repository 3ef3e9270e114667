"""Draw book/_static/overview.png, the picture of README and front page: `python tools/draw_picture.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import pitome_core as pc
from pitome_core.experiments import plots
from pitome_core.experiments.data import photos
from pitome_core.experiments.data.pictures import preprocess, to_display
from pitome_core.experiments.models import vit

TARGET = Path(__file__).resolve().parents[1] / "book" / "_static" / "overview.png"


def main() -> None:
    plots.use_style()
    model = vit.vit_small(img_size=224)
    photo = preprocess(photos.photographs(["rocket"])["rocket"]).to(next(model.parameters()).device)
    shown, traces = to_display(photo)[0], {}
    for method in ("pitome", "tome"):
        with pc.patched(model, method, keep=0.9), pc.record(model) as trace, torch.no_grad():
            model.forward_features(photo)
        traces[method] = trace
    figure, axes = plt.subplots(1, 4, figsize=(11, 3))
    plots.picture(axes[0], shown, "256 patches")
    # Energies of layer 7 are those of the tokens that are left there; show each patch its token's.
    seventh = traces["pitome"].forwards[0]
    energy = seventh.plan(7).unmerge(seventh.layers[7].energy[..., None])[0, :, 0]
    plots.heat_map(axes[1], shown, energy.view(16, 16).cpu().numpy(), "energy: bright = redundant")
    for ax, (method, label) in zip(axes[2:], [("pitome", "PiToMe"), ("tome", "ToMe")], strict=True):
        final = traces[method].forwards[0].plan()
        plots.token_map(ax, shown, final.assignment.view(16, 16).cpu().numpy(), f"{label}: {final.num_tokens} tokens")
    figure.savefig(TARGET, dpi=110)


if __name__ == "__main__":
    main()
