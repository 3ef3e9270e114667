"""Features of the two towers, computed once for every kind of merging and kept in the cache.

The towers are never trained here, so the features of a picture or a text depend on the kind of merging alone. This file
imports only what features need, because the cache is keyed on the code of its imports (`fingerprint.code_of`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import pairs
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import dual_encoder
from pitome_core.experiments.models.dual_encoder import Heads
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.retrieval import grid as retrieval_grid

View = tuple[str, int]  # background and seed, as `pairs.views` takes them


def image_features(cell: Cell, split: str, view: View, count: int | None = None) -> Tensor:
    """`dual_encoder.image_features` of the pictures of a split in one view, merged as the cell says: `(n, 2, 384)`.

    From the cache, computed first where they are not in it. ``count`` as in `pairs.pairs`. Raises
    ``assets.AssetError`` where the background needs an asset that cannot be had.
    """
    cell = retrieval_grid.side(cell, "vision")
    return _cached(_about(cell, split, view, count), lambda: _encoded([cell], split, view, count)[cell])


def compute_view(cells: Sequence[Cell], split: str, view: View, count: int | None = None) -> None:
    """Put the `image_features` that the cache lacks into it.

    All cells are computed at once, because drawing the pictures takes a third of the time.
    """
    every = dict.fromkeys(retrieval_grid.side(cell, "vision") for cell in cells)
    missing = [cell for cell in every if not _place(_about(cell, split, view, count))[0].is_dir()]
    for cell, features in _encoded(missing, split, view, count).items():
        _cached(_about(cell, split, view, count), lambda features=features: features)


def _encoded(cells: Sequence[Cell], split: str, view: View, count: int | None) -> dict[Cell, Tensor]:
    if not cells:
        return {}
    batches: dict[Cell, list[Tensor]] = {cell: [] for cell in cells}
    things = pairs.pairs(split, count=count).things
    for batch in _batches(pairs.views(things, view[0], split, view[1])):
        batch = batch.to(settings.device())
        for cell in cells:
            with retrieval_grid.applied(cell, _model()[0]) as running, torch.no_grad():
                batches[cell].append(dual_encoder.image_features(running.visual.trunk, batch).cpu())
    return {cell: torch.cat(parts) for cell, parts in batches.items()}


def _about(cell: Cell, split: str, view: View, count: int | None) -> list[Any]:
    return ["image", cell.key, split, *view, count]


def text_features(cell: Cell, split: str, count: int | None = None) -> Tensor:
    """`dual_encoder.text_features` of the texts of a split, merged as the cell says: `(T, 384)`.

    From the cache, computed first where they are not in it.
    """
    cell = retrieval_grid.side(cell, "text")

    def compute() -> Tensor:
        model, tokenizer = _model()
        ids = tokenizer(list(pairs.pairs(split, count=count).texts))
        with retrieval_grid.applied(cell, model) as running, torch.no_grad():
            parts = [dual_encoder.text_features(running.text, part.to(settings.device())) for part in ids.split(64)]
        return torch.cat(parts).cpu()

    return _cached(["text", cell.key, split, count], compute)


@functools.lru_cache(maxsize=1)
def _model() -> tuple[nn.Module, Callable]:
    """The dual encoder with heads that nothing here reads, and its tokenizer."""
    model, _, tokenizer = dual_encoder.dual_encoder(Heads())
    return model, tokenizer


def _batches(pictures: Iterator[np.ndarray], size: int = 16) -> Iterator[Tensor]:
    held: list[np.ndarray] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == size:
            yield preprocess(held)
            held = []
    if held:
        yield preprocess(held)


def _cached(words: Sequence[Any], compute: Callable[[], Tensor]) -> Tensor:
    """A tensor in a verified folder of the cache. It is computed anew where towers, views or merging have changed."""
    from safetensors.torch import load_file, save_file

    folder, source = _place(words)
    assets.cached(folder, source, lambda to: save_file({"features": compute().contiguous()}, to / "it.safetensors"))
    return load_file(folder / "it.safetensors")["features"]


def _place(words: Sequence[Any]) -> tuple[Path, str]:
    """The folder of the features that ``words`` describe, and a hash of the words and of the code that computes them.
    """
    source = hashlib.sha256(json.dumps([*words, code_of(__name__)]).encode()).hexdigest()
    return features_folder() / source[:16], source


def features_folder() -> Path:
    """The folder of the cache that holds all features."""
    return settings.cache_dir() / "retrieval-features"
