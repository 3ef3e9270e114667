"""Interactive figures of the book: their data and their still pictures, a file for each script in book/_static/live/.

A figure is a box of HTML with a still picture and its data as JSON. In the book a script draws the figure into the box
and takes the picture away; where that script is not loaded (Colab, Jupyter) the picture stays. Page and tests have the
same data: the scripts compute with them what `pitome_core` computes, and the tests compare.
"""

from .clusters import cluster_figure, clustered
from .energy import directions, energy_figure
from .figure import SHARP, LiveFigure, box, packed
from .forest import forest_figure
from .one_merge import one_merge
from .points import points_figure
from .reading import reading
from .six_tokens import six_tokens
from .speed import speed
from .switches import switches_figure
from .token_map import ARMS, KEEP, token_map_figure, token_maps

__all__ = [
    "ARMS", "KEEP", "LiveFigure", "SHARP", "box", "cluster_figure", "clustered", "directions", "energy_figure",
    "forest_figure", "one_merge", "packed", "points_figure", "reading", "six_tokens", "speed", "switches_figure",
    "token_map_figure", "token_maps",
]  # fmt: skip
