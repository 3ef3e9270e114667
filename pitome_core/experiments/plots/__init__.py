"""Figures that several notebooks share.

`style` sets colours and fonts, `maps` draws values and tokens over photographs, `live` makes interactive figures,
`sliders` makes one whose states were computed beforehand, and `records` draws recorded outcomes.
"""

from .live import SHARP, energy_figure, forest_figure, one_merge, points_figure, six_tokens
from .maps import heat_map, picture, token_map
from .records import against_cost, beside, forest
from .sliders import SpectrumSliders
from .style import ARMS, COLOURS, HEAT, SIDES, photographs, use_style

__all__ = [
    "ARMS", "COLOURS", "HEAT", "SHARP", "SIDES", "SpectrumSliders", "against_cost", "beside", "energy_figure", "forest",
    "forest_figure", "heat_map", "one_merge", "photographs", "picture", "points_figure", "six_tokens", "token_map",
    "use_style",
]  # fmt: skip
