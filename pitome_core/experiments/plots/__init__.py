"""Figures that several notebooks share.

`style` sets colours and fonts, `maps` draws values and tokens over photographs, `live` makes interactive figures, and
`records` draws recorded outcomes. `timings`, which is imported by its name, draws recorded times.
"""

from .live import (
    SHARP,
    cluster_figure,
    energy_figure,
    forest_figure,
    one_merge,
    points_figure,
    reading,
    six_tokens,
    speed,
    switches_figure,
    token_map_figure,
)
from .maps import heat_map, picture, token_map
from .records import against_cost, beside, forest, names_above
from .style import ARMS, COLOURS, HEAT, SIDES, photographs, use_style

__all__ = [
    "ARMS", "COLOURS", "HEAT", "SHARP", "SIDES", "against_cost", "beside", "cluster_figure",
    "energy_figure", "forest", "forest_figure", "heat_map", "names_above", "one_merge", "photographs",
    "picture", "points_figure", "reading", "six_tokens", "speed", "switches_figure", "token_map",
    "token_map_figure", "use_style",
]  # fmt: skip
