"""Classifiers of sentences: the sentence encoder with low-rank updates of its weights, mean pooling and a linear head.

Fine-tuning changes no weight of the encoder itself: next to each of its linear maps ``W`` two small matrices learn an
update ``W + SCALE * up @ down`` of rank `RANK` (Hu et al., ICLR 2022). They are stored in half precision, and added to
the weights when a classifier is loaded, so that it runs as any BERT does. Three classifiers take 2 MB and are shipped
with the records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pitome_core.experiments import settings
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import results, weight_files
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.text import grid as text_grid

RANK, SCALE = 8, 2.0
SEEDS = (0, 1, 2)
FROZEN = "frozen"  # the file of the logistic head on the encoder as it is


class LowRank(nn.Module):
    """``W -> W + SCALE * up @ down``; ``up`` starts at zero, so training starts at ``W``."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator, rank: int = RANK):
        super().__init__()
        down = torch.randn(rank, linear.in_features, generator=generator) * linear.in_features**-0.5
        self.down = nn.Parameter(down.to(linear.weight))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * (self.up @ self.down)


def linears(encoder: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of all layers, by name."""
    return {name: part for name, part in encoder.encoder.named_modules() if isinstance(part, nn.Linear)}


def adapt(encoder: nn.Module, seed: int, rank: int = RANK) -> list[nn.Parameter]:
    """Freeze the encoder, give every linear map a `LowRank` update, return the new parameters."""
    generator = torch.Generator().manual_seed(seed)
    encoder.requires_grad_(False)
    for linear in linears(encoder).values():
        parametrize.register_parametrization(linear, "weight", LowRank(linear, generator, rank))
    return [p for p in encoder.parameters() if p.requires_grad]


def updates(encoder: nn.Module) -> dict[str, Tensor]:
    """The low-rank matrices of an adapted encoder, by name, in half precision on the CPU."""
    found = {}
    for name, linear in linears(encoder).items():
        update = linear.parametrizations["weight"][0]
        found[f"{name}.up"], found[f"{name}.down"] = update.up, update.down
    return {name: value.detach().half().cpu().contiguous() for name, value in found.items()}


@torch.no_grad()
def add_updates(encoder: nn.Module, stored: dict[str, Tensor]) -> None:
    """Add what `updates` gave to the weights of a bare encoder. `ValueError` if the names are of another encoder."""
    named = linears(encoder)
    wanted = {f"{name}.{part}" for name in named for part in ("up", "down")}
    if wanted != set(stored):
        raise ValueError(f"updates for {len(stored)} matrices, the encoder has room for {len(wanted)} others")
    for name, linear in named.items():
        up, down = (stored[f"{name}.{part}"].to(linear.weight) for part in ("up", "down"))
        linear.weight += SCALE * (up @ down)


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens that are left: states ``(B, T, C)``, mask ``(B, T)`` -> ``(B, C)``.

    Merged tokens are back in all their places, so each counts as often as it stands for tokens; tokens that were
    dropped came back as zeros and do not count.
    """
    left = mask.bool() & (states != 0).any(dim=2)
    return bert.mean_pool(states, left)


def encode(texts: Sequence[str], max_tokens: int = bert.MAX_TOKENS) -> list[list[int]]:
    """Token ids of every text, [CLS] and [SEP] included, cut at ``max_tokens``."""
    tokenizer = bert.sentence_tokenizer()
    how = dict(padding=False, truncation=True, max_length=max_tokens, verbose=False)
    return tokenizer(list(texts), **how)["input_ids"]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, ``(B, T)`` both, padded at the end with id 0."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    real = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), real.long().to(device)


@torch.no_grad()
def over(
    rows: Sequence[Sequence[int]], device: torch.device, read: Callable[[Tensor, Tensor], Tensor], *,
    equal: bool = False, size: int | None = None,
) -> Tensor:
    """``read(ids, mask)`` of all rows in batches of about one length, in the order of the rows, on the CPU.

    ``equal``: batches hold rows of one length only. ``size`` of a batch: 32 on a CPU, 512 elsewhere.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = size or (32 if device.type == "cpu" else 512)
    batches: list[list[int]] = []
    for i in order:
        new = not batches or len(batches[-1]) == size or (equal and len(rows[batches[-1][0]]) != len(rows[i]))
        batches.append([i]) if new else batches[-1].append(i)
    found = torch.cat([read(*padded([rows[i] for i in batch], device)).float().cpu() for batch in batches])
    return found[torch.tensor(order).argsort()]


def features(encoder: nn.Module, rows: Sequence[Sequence[int]], *, equal: bool = False) -> Tensor:
    """Mean-pooled last states ``(N, C)`` of an encoder, merged or not."""
    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return pooled(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    return over(rows, next(encoder.parameters()).device, read, equal=equal)


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

    ``seed=None`` is the logistic head on the frozen encoder.
    """
    if cell is not None and cell.retrained:
        return settings.cache_dir() / "text-weights" / f"{cell.arm}-{cell.keep:g}-seed{seed}.safetensors"
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
        add_updates(encoder, stored)
    return Classifier(encoder, weight, bias, unit=not stored)


def save(path: Path, weight: Tensor, bias: Tensor, stored: dict[str, Tensor] | None = None) -> None:
    """Write a classifier's file: all or nothing."""
    head = {"head.weight": weight.detach().float().cpu().contiguous(), "head.bias": bias.detach().float().cpu()}
    weight_files.save(path, {**(stored or {}), **head})
