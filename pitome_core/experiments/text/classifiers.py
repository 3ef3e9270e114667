"""Classifiers of sentences: the sentence encoder with low-rank updates of its weights, mean pooling and a linear head.

Fine-tuning changes no weight of the encoder itself. Low-rank updates (`low_rank`) of all linear maps of its layers are
trained in its place, stored in half precision, and added to the weights when a classifier is loaded, so that it runs as
any BERT does. Three classifiers take 2 MB and are shipped with the records.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pitome_core.experiments import settings
from pitome_core.experiments.models import bert, low_rank
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.text import grid as text_grid

SEEDS = (0, 1, 2)
FROZEN = "frozen"  # the file of the logistic head on the encoder as it is


def linears(encoder: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of all layers, by their names in ``encoder.encoder``: those that have updates."""
    return {name: part for name, part in encoder.encoder.named_modules() if isinstance(part, nn.Linear)}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens that are left: states ``(B, T, C)``, mask ``(B, T)`` -> ``(B, C)``.

    Merged tokens are back in all their places, so each counts as often as it stands for tokens. Tokens that were
    dropped came back as zeros and do not count.
    """
    is_kept = mask.bool() & (states != 0).any(dim=2)  # (B, T)
    return bert.mean_pool(states, is_kept)


def features(encoder: nn.Module, rows: Sequence[Sequence[int]], *, equal: bool = False) -> Tensor:
    """Mean-pooled last states ``(N, C)`` of an encoder, merged or not. ``equal`` as in `bert.in_batches`."""
    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return pooled(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    return bert.in_batches(rows, next(encoder.parameters()).device, read, equal=equal)


@dataclass
class Classifier:
    """An encoder in eval mode and a linear head ``(2, C)``, ``(2,)`` on its mean-pooled last states."""

    encoder: nn.Module
    weight: Tensor
    bias: Tensor
    unit: bool = False  # whether the head reads embeddings of unit length

    def logits(self, rows: Sequence[Sequence[int]], cell: Cell | None = None) -> np.ndarray:
        """``(N, 2)`` of token rows, merged as the cell says (None: as the encoder is now)."""
        if cell is None:
            return self.read(features(self.encoder, rows))
        with text_grid.applied(cell, self.encoder) as running:
            return self.read(features(running, rows, equal=text_grid.needs_equal_lengths(cell)))

    def read(self, pooled_states: Tensor) -> np.ndarray:
        """``(N, 2)`` logits of pooled states ``(N, C)``."""
        states = nn.functional.normalize(pooled_states, dim=1) if self.unit else pooled_states
        return (states @ self.weight.float().T + self.bias.float()).numpy()


def weights_path(seed: int | None, cell: Cell | None = None) -> Path:
    """Where the weights of a classifier are: shipped with the records, or, for retrained ones, in the cache.

    ``seed=None`` is the logistic head on the frozen encoder. The name of a retrained one holds the cell and a hash of
    protocol and options of its arm: what an earlier form of the arm was trained with is another file.
    """
    if cell is not None and cell.retrained:
        form = json.dumps([text_grid.PROTOCOL, cell.options], sort_keys=True).encode()
        name = f"{replace(cell, retrained=False).key}-{hashlib.sha256(form).hexdigest()[:6]}-seed{seed}.safetensors"
        return settings.cache_dir() / "text-weights" / re.sub("[@/]", "-", name)
    name = f"{FROZEN if seed is None else f'seed{seed}'}.safetensors"
    shipped = results.folder() / "text-weights" / name
    return shipped if shipped.is_file() else results.writable(committed=True) / "text-weights" / name


def load(seed: int | None, cell: Cell | None = None, *, path: Path | None = None) -> Classifier:
    """The classifier of that seed (None: frozen encoder with a logistic head), on `settings.device`.

    Raises ``results.RecordError`` where it has not been trained.
    """
    from safetensors.torch import load_file

    path = path or weights_path(seed, cell)
    if not path.is_file():
        raise results.RecordError(f"no weights {path.name} in {path.parent.name}: run `make text-weights`")
    stored = load_file(path)
    weight, bias = stored.pop("head.weight"), stored.pop("head.bias")
    encoder = bert.sentence_encoder()
    if stored:
        low_rank.merge(encoder.encoder, linears(encoder), stored)
    return Classifier(encoder, weight, bias, unit=not stored)


def save(path: Path, weight: Tensor, bias: Tensor, updates: Mapping[str, Tensor] | None = None) -> None:
    """Write a classifier's file, all or nothing: the head in float32, updates in half precision."""
    small = {name: value.detach().half().cpu().contiguous() for name, value in (updates or {}).items()}
    head = {"head.weight": weight.detach().float().cpu().contiguous(), "head.bias": bias.detach().float().cpu()}
    files.save_tensors(path, small | head)
