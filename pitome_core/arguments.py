"""What `pc.apply` was given, and what follows for every layer: its row, and how many tokens it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import checks
from .merge_step import METRICS
from .mergers import Method
from .mergers.preset_table import PRESETS, PresetRow
from .patch import INSERTIONS, LayerRow
from .schedules import Schedule, check_keep

DEFAULT_KEEP = 0.925


@dataclass(frozen=True)
class Arguments:
    """What `apply` was given for the patch of each tower; its docstring says what the fields mean."""

    method: Method
    keep: float | Sequence[float] | Schedule | None
    remove: int | Sequence[int] | None
    every: int
    preset: str | None
    proportional: bool | None
    margin: float | Sequence[float] | None
    metric: str | None
    insertion: str | None
    protect: str | None
    restore: bool
    compile_step: bool
    fused: bool | str
    options: dict[str, Any]


def make_rows(arguments: Arguments, num_layers: int) -> tuple[str | None, tuple[LayerRow, ...]]:
    """The preset's name and the row of every layer: the preset's row, with the arguments given in its place."""
    method = arguments.method
    preset = "paper" if arguments.preset is None and method.name == "pitome" else arguments.preset
    if preset is not None and PRESETS[checks.word(preset, "preset", PRESETS)].method != method.name:
        raise ValueError(f"preset {preset!r} is for method {PRESETS[preset].method!r}, not {method.name!r}")
    explicit = {
        name: getattr(arguments, name)
        for name in ("metric", "insertion", "proportional")
        if getattr(arguments, name) is not None
    }
    for name, allowed in (("metric", METRICS), ("insertion", INSERTIONS)):
        checks.word(explicit.get(name, allowed[0]), name, allowed)
    margins = None if arguments.margin is None else checks.per_layer(arguments.margin, num_layers, "margin")
    if margins is not None and "margin" not in method.needs:
        raise TypeError(f"method {method.name!r} has no margin")
    rows: list[LayerRow] = []
    for layer, row in enumerate([PresetRow()] * num_layers if preset is None else PRESETS[preset].rows(num_layers)):
        base, slope = row.margin
        margin = base - slope * layer / num_layers if margins is None else margins[layer]
        fields = {"metric": row.metric, "insertion": row.insertion, "proportional": row.proportional, **explicit}
        options = {**row.options, **arguments.options}
        rows.append(LayerRow(margin=margin, sized=row.sized, options=options, merges=row.merges, **fields))
    return preset, tuple(rows)


def checked_schedule(given: Schedule | Mapping[str, Any]) -> Schedule:
    """The schedule, or the one of these fields. ValueError unless its tokens follow from what it removes."""
    given = given if isinstance(given, Schedule) else Schedule(**given)
    entering = (tuple(given.tokens) or (0,))[0] - given.prefix
    made = Schedule.from_removals(entering, given.remove, given.prefix, checks.flag(given.clamped, "clamped"))
    if made.tokens != tuple(given.tokens):
        raise ValueError(f"a schedule that removes {list(made.remove)} of {entering} tokens has the tokens "
                         f"{list(made.tokens)}, got {list(given.tokens)}: make one with pc.schedule")
    return made


def make_keep(keep: float | Sequence[float] | Schedule, rows: tuple[LayerRow, ...]) -> tuple[float, ...] | Schedule:
    """One keep ratio per layer, 1 where the preset does not merge; or the schedule, checked."""
    if not isinstance(keep, Schedule):
        ratios = checks.per_layer(keep, len(rows), "keep", check_keep)
        return tuple(ratio if row.merges else 1.0 for ratio, row in zip(ratios, rows, strict=True))
    if len(keep.remove) != len(rows):
        raise ValueError(f"the schedule has {len(keep.remove)} layers, the model {len(rows)}")
    idle = [layer for layer, (k, row) in enumerate(zip(keep.remove, rows, strict=True)) if k and not row.merges]
    if idle:
        raise ValueError(f"the schedule removes tokens in layers {idle}, where the preset does not merge")
    return keep
