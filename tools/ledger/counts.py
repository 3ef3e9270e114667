"""Multiply-accumulates that merging saves on the paper's architectures, from shapes: no weights are needed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import timm
import torch

import pitome_core as pc


@dataclass(frozen=True)
class Count:
    """Shares of the whole model's multiply-accumulates that a merged model saves.

    released: as the released code counts: blocks alone, the MLP with the tokens before the merge, no merge.
    counted: the whole model, the MLP with the tokens after the merge, and the merge with its matrix of cosines.
    """

    released: float
    counted: float

    def says(self, at_least: float) -> str:
        """Whether the claim that this share is saved holds by both counts (``for``), by none (``against``), or open."""
        enough = [share >= at_least for share in (self.released, self.counted)]
        return "for" if all(enough) else "open" if any(enough) else "against"


@functools.lru_cache
def saved(name: str, keep: float) -> Count:
    """What PiToMe with the paper's row saves of a timm model, every layer keeping the share `keep` of its tokens."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    whole = pc.flops(model)
    merged = pc.flops(pc.apply(model, "pitome", keep=keep))
    return Count(1 - merged.blocks_released / whole.blocks_released, 1 - merged.total / whole.total)


def quoted(claim: dict, row: dict) -> float | None:
    """The share that the paper's tables say is saved, from the quoted row that a count names; None where it has none.

    A row shown as `saving` has the whole model first and the merged one second; one of bare values has the factor by
    which the work falls, under the name of the model.
    """
    if "quoted" not in row:
        return None
    values, shown = next((q["values"], q["as"]) for q in claim["quoted"] if q["from"] == row["quoted"])
    if shown == "saving":
        whole, merged = (float(value) for value in list(values.values())[:2])
        return 1 - merged / whole
    return 1 - 1 / float(values[row["name"]])
