"""Write book/figures/token_map.html, the live token map of the front page: `python tools/draw_live.py`.

The front page is not executed, so the figure is a file. A test computes it again and compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pitome_core.experiments.data import photos
from pitome_core.experiments.models import vit
from pitome_core.experiments.plots import live

TARGET = Path(__file__).resolve().parents[1] / "book" / "figures" / "token_map.html"
# What the page calls them; their licences are CC0 or public domain.
PHOTOGRAPHS = {"rocket": "rocket", "astronaut": "astronaut", "cat": "chelsea"}
LABEL = "Which of 256 patches have merged, layer by layer, with PiToMe, ToMe and energy-sorted matching"
# The still picture is a file of the site: inside <noscript> nothing loads it where scripts run.
STILL = (
    '<noscript><img src="../_static/overview.png" width="100%" alt="A rocket at dusk; the energy of its patches; '
    'the 75 tokens that PiToMe leaves of 256; the 75 that ToMe leaves."></noscript>'
)


def data() -> dict[str, Any]:
    """What the figure shows. Layer 7 at keep 0.9 is where the methods differ and the photograph can still be seen."""
    found = photos.photographs(PHOTOGRAPHS.values())
    pictures = {name: found[photograph] for name, photograph in PHOTOGRAPHS.items()}
    return live.token_maps(vit.vit_small(img_size=224), pictures, {"keep": 1, "layer": 7})


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(live.box("token-map", data(), LABEL, STILL))
