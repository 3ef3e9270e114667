"""What the tasks on images share: a model on its device, images, and going over them in batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pitome_core.experiments.models.vit import MODEL
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import clock, grid


class ImageTask:
    """The part of `sweep.Task` that is the same for all tasks on images ``(n, 3, s, s)``.

    A task adds its name, items, clusters, images and model, and says how it scores.
    """

    name: str
    clusters: tuple[str, ...]
    items: dict[str, list]
    images: Tensor
    model: nn.Module

    @property
    def about(self) -> dict[str, Any]:
        """Entries of the record's header."""
        return {"model": MODEL, "input": list(self.images.shape[1:]), "dtype": "float32"}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def run_once(self, images: Tensor) -> Tensor:
        """The forward of the whole model whose time the estimate rests on."""
        return self.model.forward_features(images)

    def seconds_per_item(self) -> float:
        """Seconds of the whole model per image."""
        sample = self.images[: 8 if self.device.type == "cpu" else 64].to(self.device)
        with torch.no_grad():
            return clock.quickest(lambda: self.run_once(sample), self.device) / len(sample)

    def applied(self, cell: Cell) -> AbstractContextManager[nn.Module]:
        """The model as the cell runs it; it is patched inside the `with` block only."""
        return grid.applied(cell, self.model)

    def cost(self, cell: Cell) -> dict[str, Any]:
        """The entries that `grid.cost` returns for the cell and the unpatched model."""
        return grid.cost(cell, self.model)

    def work(self, cell: Cell) -> int:
        """How many images the cell sends through its model."""
        return len(self.images)

    def prepare(self) -> None:
        """Called once before the first cell. A task computes here what it needs of the whole model."""

    def over(self, running: nn.Module, images: Tensor, read: Callable[[Tensor], Any]) -> list:
        """`read` of every batch of the images, resized to what `running` takes: 16 on a CPU, 128 elsewhere."""
        side = running.patch_embed.img_size[0]
        values = []
        for batch in images.split(16 if self.device.type == "cpu" else 128):
            batch = batch.to(self.device)
            if side != batch.shape[-1]:
                batch = interpolate(batch, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
            with torch.no_grad():
                values.append(read(batch))
        return values
