"""Figures that several notebooks share.

`style` sets colours and fonts, `maps` draws values and tokens over photographs, `sliders` makes figures with sliders
that work in a page, and `records` draws recorded outcomes.
"""

from .maps import heat_map, picture, token_map
from .records import against_cost, beside, forest
from .sliders import MarginSlider, SpectrumSliders
from .style import ARMS, COLOURS, HEAT, SIDES, use_style

__all__ = [
    "ARMS", "COLOURS", "HEAT", "SIDES", "MarginSlider", "SpectrumSliders", "against_cost", "beside", "forest",
    "heat_map", "picture", "token_map", "use_style",
]  # fmt: skip
