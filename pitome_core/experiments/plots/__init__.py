"""Figures that several notebooks share.

`style` sets colours and fonts, `maps` draws values and tokens over photographs, `live` makes interactive figures,
`estimate` makes one of recorded times, `sliders` makes one whose states were computed beforehand, and `records` draws
recorded outcomes.
"""

from .estimate import speed
from .live import SHARP, energy_figure, one_merge, six_tokens
from .maps import heat_map, picture, token_map
from .records import against_cost, beside, forest
from .sliders import SpectrumSliders
from .style import ARMS, COLOURS, HEAT, SIDES, use_style

__all__ = [
    "ARMS", "COLOURS", "HEAT", "SHARP", "SIDES", "SpectrumSliders", "against_cost", "beside", "energy_figure", "forest",
    "heat_map", "one_merge", "picture", "six_tokens", "speed", "token_map", "use_style",
]  # fmt: skip
