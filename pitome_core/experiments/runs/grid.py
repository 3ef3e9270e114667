"""What is compared: arms (a method with its options), and cells (an arm at one strength) as the protocol lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines  # registers rivals and controls
from pitome_core.experiments.baselines.lower_resolution import lower_resolution

KEEPS = (0.95, 0.9, 0.85, 0.8)  # share of the patch tokens that every layer keeps
OFF_AT = 0.9  # where proportional attention is switched off as well
RESOLUTIONS = (15 / 16, 14 / 16, 13 / 16, 12 / 16, 11 / 16, 10 / 16)  # of the image's side, for the control
SEEDS = 5


@dataclass(frozen=True)
class Arm:
    """One way to make tokens fewer.

    ``kind`` is ``pitome`` (its presets and switches), ``merge``, ``prune``, ``transform`` or ``control``; ``also_off``
    says whether the grid runs it with proportional attention switched off as well (where tokens carry sizes and it is
    on otherwise); ``seeds`` is how many it is run with.
    """

    name: str
    label: str
    method: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    also_off: bool = True
    seeds: int = 1


SORTED = {"protection": False, "edges": "best"}
# fmt: off
ARMS: dict[str, Arm] = {arm.name: arm for arm in (
    Arm("pitome", "PiToMe (paper)", "pitome", "pitome"),
    Arm("pitome-released-deit", "PiToMe (released, DeiT)", "pitome", "pitome", {"preset": "released-deit"},
        also_off=False),
    Arm("pitome-released-mae", "PiToMe (released, MAE)", "pitome", "pitome", {"preset": "released-mae"},
        also_off=False),
    Arm("energy-sorted", "energy-sorted BSM", "pitome", "pitome", SORTED),
    Arm("tome", "ToMe", "tome", "merge"),
    Arm("tofu", "ToFu", "tofu", "merge"),
    Arm("crossget", "CrossGET", "crossget", "merge"),
    Arm("mctf", "MCTF", "mctf", "merge"),
    Arm("atc", "ATC", "atc", "merge", {"linkage": "average"}),
    Arm("diffrate", "DiffRate", "diffrate", "merge"),
    Arm("dct", "DCT", "dct", "transform", also_off=False),
    Arm("evit", "EViT", "evit", "prune"),  # its fused token stands for many
    Arm("topk-attention", "top-k attention", "topk_attention", "prune", also_off=False),
    Arm("random-merge", "random merging", "random_merge", "control", seeds=SEEDS),
    Arm("random-prune", "random pruning", "random_prune", "control", also_off=False, seeds=SEEDS),
    # Secondary: the tokens themselves are compared, not their keys.
    Arm("pitome-hidden", "PiToMe on hidden states", "pitome", "pitome", {"metric": "hidden"}, also_off=False),
    Arm("energy-sorted-hidden", "energy-sorted on hidden states", "pitome", "pitome", {**SORTED, "metric": "hidden"},
        also_off=False),
    Arm("tome-hidden", "ToMe on hidden states", "tome", "merge", {"metric": "hidden"}, also_off=False),
)}
# fmt: on
GRID_POOL, LOWER, WHOLE = "grid-pool", "lower-resolution", "whole"
LABELS = {WHOLE: "whole model", GRID_POOL: "2 x 2 pooling", LOWER: "lower resolution"} | {
    name: arm.label for name, arm in ARMS.items()
}


@dataclass(frozen=True)
class Cell:
    """An arm at one strength: a keep ratio, or pixels for the control at lower resolution."""

    arm: str
    keep: float | None = None
    proportional: bool | None = None
    seed: int | None = None
    pixels: int | None = None

    @property
    def key(self) -> str:
        """How records call it: ``tome@0.9``, ``tome@0.9/off``, ``random-prune@0.9/seed3``, ``lower-resolution@98px``.
        """
        if self.arm in (WHOLE, GRID_POOL):
            return self.arm
        if self.arm == LOWER:
            return f"{self.arm}@{self.pixels}px"
        tail = "/off" if self.proportional is False else ""
        return f"{self.arm}@{self.keep:g}{tail}" + ("" if self.seed is None else f"/seed{self.seed}")

    def describe(self) -> dict[str, Any]:
        """What a record says about it."""
        arm = ARMS.get(self.arm)
        known = {"arm": self.arm, "label": LABELS[self.arm], "keep": self.keep, "pixels": self.pixels}
        known |= {"seed": self.seed, "method": arm.method if arm else None, "options": dict(arm.options) if arm else {}}
        known |= {"proportional": self.proportional}
        return {name: value for name, value in known.items() if value is not None}

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as this cell runs it; patched inside the block only. A lower resolution gives a copy."""
        if self.arm == WHOLE:
            yield model
        elif self.arm == LOWER:
            yield lower_resolution(model, self.pixels)
        elif self.arm == GRID_POOL:
            with pc.patched(model, "grid_pool", _once(model), insertion="before"):
                yield model
        else:
            arm = ARMS[self.arm]
            options = dict(arm.options) | ({} if self.seed is None else {"seed": self.seed})
            with pc.patched(model, arm.method, self.keep, proportional=self.proportional, **options):
                yield model


def cells(
    arms: Sequence[str] | None = None, keeps: Sequence[float] = KEEPS, *, img_size: int | None = None, patch: int = 14
) -> list[Cell]:
    """The grid of the protocol, or the part of it with these arms and keep ratios; the whole model comes first.

    ``img_size`` (pixels) gives the control at lower resolution its sizes, multiples of ``patch``; None leaves it out.
    `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    every = [*ARMS, GRID_POOL, LOWER]
    chosen = every if arms is None else list(arms)
    if unknown := [name for name in chosen if name not in (*every, WHOLE)]:
        raise ValueError(f"no method {unknown[0]!r} in the grid; there are {', '.join(every)}")
    if wrong := [keep for keep in keeps if not 0 < keep < 1]:
        raise ValueError(f"keep {wrong[0]} must lie between 0 and 1; the whole model (keep 1) is always run")
    found = [Cell(WHOLE)]
    for name in chosen:
        if name == GRID_POOL:
            found.append(Cell(GRID_POOL))
        elif name == LOWER:
            sizes = [round(img_size * share / patch) * patch for share in RESOLUTIONS] if img_size else []
            found += [Cell(LOWER, pixels=size) for size in dict.fromkeys(sizes) if size < img_size]
        elif name != WHOLE:
            arm = ARMS[name]
            seeds = range(arm.seeds) if arm.seeds > 1 else (None,)
            found += [Cell(name, keep, seed=seed) for keep in keeps for seed in seeds]
            if arm.also_off and OFF_AT in keeps:
                found.append(Cell(name, OFF_AT, proportional=False, seed=seeds[0]))
    return list(dict.fromkeys(found))


def cost(cell: Cell, model: nn.Module) -> dict[str, Any]:
    """Multiply-accumulates of one image (``gmacs``, in 10^9), their share of the whole model's, patch tokens per layer.

    ``model`` is the bare model; merging is included in the count.
    """
    whole = pc.flops(model).total
    keep = cell.keep or 1.0
    if cell.arm == GRID_POOL:
        keep = _once(model)
    with cell.applied(model) as running:
        total = pc.flops(running).total
        schedule = pc.schedule(running, keep=keep)
    return {
        "gmacs": round(total / 1e9, 6),
        "share": round(total / whole, 6),
        "tokens": [n - schedule.prefix for n in schedule.tokens],
    }


def _once(model: nn.Module) -> list[float]:
    """Keep ratios of grid pooling: windows of 2 x 2 leave a quarter before the first block, and all of these stay."""
    return [0.25] + [1.0] * (len(pc.schedule(model, keep=1.0).remove) - 1)


