"""What is compared on images: the cells that the protocol lists, how a model runs one of them, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines  # registers rivals and controls
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.records import cells as records_cells
from pitome_core.experiments.records.cells import GRID_POOL, LOWER, WHOLE, Arm, Cell, checked, seeds_of

KEEPS = (0.95, 0.9, 0.85, 0.8)  # share of the patch tokens that every layer keeps
OFF_AT = 0.9  # the keep ratio at which proportional attention is switched off as well
RESOLUTIONS = (15 / 16, 14 / 16, 13 / 16, 12 / 16, 11 / 16, 10 / 16)  # of the image's side, for the control
ARMS: dict[str, Arm] = {name: records_cells.ARMS[name] for name in (
    "pitome", "pitome-released-deit", "pitome-released-mae", "energy-sorted", "tome", "tofu", "crossget", "mctf", "atc",
    "diffrate", "dct", "evit", "topk-attention", "random-merge", "random-prune", "pitome-hidden",
    "energy-sorted-hidden", "tome-hidden",
)}  # fmt: skip
LABELS = {name: records_cells.LABELS[name] for name in (WHOLE, GRID_POOL, LOWER, *ARMS)}


def cells(
    arms: Sequence[str] | None = None, keeps: Sequence[float] = KEEPS, *, img_size: int | None = None, patch: int = 14
) -> list[Cell]:
    """The grid of the protocol, or the part of it with these arms and keep ratios. The whole model comes first.

    ``img_size`` (pixels) gives the control at lower resolution its sizes, which are multiples of ``patch``. None leaves
    that control out.

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is not between 0 and 1.
    """
    every = (*ARMS, GRID_POOL, LOWER)
    chosen = [Cell(WHOLE)]
    for name in checked(every if arms is None else list(arms), keeps, every):
        if name == GRID_POOL:
            chosen.append(Cell(GRID_POOL))
        elif name == LOWER:
            sizes = [round(img_size * share / patch) * patch for share in RESOLUTIONS] if img_size else []
            chosen += [Cell(LOWER, pixels=size) for size in dict.fromkeys(sizes) if size < img_size]
        else:
            seeds = seeds_of(name)
            chosen += [Cell(name, keep, seed=seed) for keep in keeps for seed in seeds]
            if ARMS[name].also_off and OFF_AT in keeps:
                chosen.append(Cell(name, OFF_AT, proportional=False, seed=seeds[0]))
    return list(dict.fromkeys(chosen))


@contextmanager
def applied(
    cell: Cell, model: nn.Module, keep: float | Sequence[float] | None = None, **arguments: Any
) -> Iterator[nn.Module]:
    """The model as the cell runs it; it is patched inside the block only.

    A lower resolution gives a copy. ``keep`` takes the place of the cell's keep ratio where layers have ratios of their
    own (ratios and no schedule, if the cell has `every`), and ``arguments`` are further ones of `pc.apply`.
    """
    if cell.arm == WHOLE:
        yield model
    elif cell.arm == LOWER:
        yield lower_resolution(model, cell.pixels)
    elif cell.arm == GRID_POOL:
        with pc.patched(model, "grid_pool", _once(model), insertion="before"):
            yield model
    else:
        method, ratios = records_cells.ARMS[cell.arm].method, cell.keep if keep is None else keep
        switched = {} if cell.proportional is None else {"proportional": cell.proportional}
        switched |= {"every": cell.every} if cell.every > 1 else {}
        with pc.patched(model, method, ratios, **cell.options | switched, **arguments):
            yield model


def method_of(cell: Cell) -> pc.Method | None:
    """The registered method that the cell runs; None where no token merges or is dropped."""
    if cell.arm in (WHOLE, LOWER):
        return None
    return pc.methods()["grid_pool" if cell.arm == GRID_POOL else records_cells.ARMS[cell.arm].method]


def cost(cell: Cell, model: nn.Module) -> dict[str, Any]:
    """Multiply-accumulates of one image (``gmacs``, in 10^9), their share of the whole model's, patch tokens per layer.

    ``model`` is the bare model. Merging is included in the count.
    """
    whole = pc.flops(model).total
    keep = _once(model) if cell.arm == GRID_POOL else cell.keep or 1.0
    with applied(cell, model) as running:
        total = pc.flops(running).total
        schedule = pc.schedule(running, keep=keep, every=cell.every)
    return {
        "gmacs": round(total / 1e9, 6),
        "share": round(total / whole, 6),
        "tokens": [n - schedule.prefix for n in schedule.tokens],
    }


def _once(model: nn.Module) -> list[float]:
    """Keep ratios of grid pooling: windows of 2 x 2 leave a quarter before the first block, and all of these stay."""
    return [0.25] + [1.0] * (len(pc.schedule(model, keep=1.0).remove) - 1)
