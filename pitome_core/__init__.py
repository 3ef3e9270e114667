"""PiToMe: energy-based, spectrum-preserving token merging for Vision Transformers."""

from .counting import Counts, flops, schedule
from .diagnosis import Diagnosis, diagnose
from .drawing import token_map
from .energy import energy_score, margin_schedule
from .families import register_family
from .family import Family, UnsupportedModelError
from .linear_plan import LinearPlan
from .merge_plan import MergePlan
from .mergers import Method, methods, plan, register_method
from .mergers.preset_table import Preset, presets
from .patching import apply, patched, remove, settings, unmerged
from .schedules import Schedule
from .spectral import spectral_distance
from .tracing import Trace, record

__version__ = "0.1.0"

__all__ = [
    "Counts",
    "Diagnosis",
    "Family",
    "LinearPlan",
    "MergePlan",
    "Method",
    "Preset",
    "Schedule",
    "Trace",
    "UnsupportedModelError",
    "apply",
    "diagnose",
    "energy_score",
    "flops",
    "margin_schedule",
    "methods",
    "patched",
    "plan",
    "presets",
    "record",
    "register_family",
    "register_method",
    "remove",
    "schedule",
    "settings",
    "spectral_distance",
    "token_map",
    "unmerged",
]
