"""The text tasks of the embedded tier: which sentences or documents are classified, and what is recorded of each.

One kind of classifier, fine-tuned on single sentences from film reviews, reads them all: other sentences of that
source, documents made of them, and sentences of other sources. All run all-MiniLM-L6-v2 (BERT, 6 layers) in float32.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pitome_core.experiments.data import sentences
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import RANDOM, Cell
from pitome_core.experiments.runs import clock
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid

MODEL = "all-MiniLM-L6-v2 (BERT, 6 layers, width 384), low-rank updates fine-tuned on film reviews"


class Texts:
    """Classification of texts, right or wrong.

    Outcomes per item: ``correct``, the share of the classifiers (fine-tuned with seeds 0 to 2) that are right, and
    ``seed0`` to ``seed2``, each of them; ``frozen``, the logistic head on the encoder as it is, where `has_frozen` says
    so. A retrained cell has classifiers of its own and no ``frozen``.
    """

    clusters = ("identity",)

    def __init__(self, name: str, texts: list[str], items: dict[str, list], tokens: int = bert.MAX_TOKENS):
        self.name, self.texts = name, texts
        self.rows = bert.encode(texts, tokens)
        self.labels = np.array(items["label"])
        self.items = items | {"tokens": [len(row) for row in self.rows]}
        self.model = bert.sentence_encoder()

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.model.parameters()).device

    @cached_property
    def tuned(self) -> list[classifiers.Classifier]:
        """The classifiers fine-tuned without merging, one per seed."""
        return [classifiers.load(seed) for seed in classifiers.SEEDS]

    @cached_property
    def frozen(self) -> classifiers.Classifier:
        """The logistic head on the encoder as it is."""
        return classifiers.load(None)

    @property
    def about(self) -> dict[str, Any]:
        """Header entries: among them which weights, so that a record never mixes two sets of them."""
        paths = [classifiers.weights_path(seed) for seed in (None, *classifiers.SEEDS)]
        used = {path.stem: files.digest(path) for path in paths if path.is_file()}
        return {"model": MODEL, "dtype": "float32", "weights": used}

    def seconds_per_item(self) -> float:
        """Seconds of the whole model per item, on items spread over all lengths."""
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i]))
        count = min(len(order), 64 if self.device.type == "cpu" else 512)
        sample = [self.rows[order[i * len(order) // count]] for i in range(count)]
        return clock.quickest(lambda: classifiers.features(self.model, sample), self.device) / len(sample)

    def has_frozen(self, cell: Cell) -> bool:
        """Whether the cell has ``frozen``: the whole model, and cells at keep .8 that differ in nothing but arm and
        attention; not on shifted sources."""
        if self.name in SHIFTED or cell.every_layer or cell.retrained:
            return False
        return cell.keep in (None, text_grid.PRIMARY)

    def applied(self, cell: Cell) -> AbstractContextManager[torch.nn.Module]:
        """The encoder as the cell runs it; it is patched inside the `with` block only."""
        return text_grid.applied(cell, self.model)

    def work(self, cell: Cell) -> int:
        """How many texts the cell sends through its encoders: each text once for every classifier."""
        return len(self.rows) * (len(classifiers.SEEDS) + self.has_frozen(cell))

    def prepare(self) -> None:
        """Load the classifiers that were trained without merging."""
        self.tuned, self.frozen  # noqa: B018  (loaded before anything is scored)

    def cost(self, cell: Cell) -> dict[str, Any]:
        """As `text.grid.cost`, and which weights a retrained cell reads."""
        return text_grid.cost(cell, self.model, Counter(self.items["tokens"])) | self._retrained_weights(cell)

    def _retrained_weights(self, cell: Cell) -> dict[str, Any]:
        paths = [classifiers.weights_path(seed, cell) for seed in classifiers.SEEDS] if cell.retrained else []
        return {"weights": {path.stem: files.digest(path) for path in paths}} if paths else {}

    def score(self, running: torch.nn.Module, cell: Cell) -> dict[str, Any]:
        """``correct (N,)`` from 0 to 1, and packed 0 or 1 of every classifier (`results.pack`)."""
        chosen = [classifiers.load(s, cell) for s in classifiers.SEEDS] if cell.retrained else self.tuned
        right = [one.logits(self.rows, cell).argmax(1) == self.labels for one in chosen]
        outcomes: dict[str, Any] = {"correct": np.mean(right, axis=0)}
        outcomes |= {f"seed{s}": results.pack(r) for s, r in zip(classifiers.SEEDS, right, strict=True)}
        if self.has_frozen(cell):
            states = classifiers.features(running, self.rows, equal=text_grid.needs_equal_lengths(cell))
            outcomes["frozen"] = results.pack(self.frozen.read(states).argmax(1) == self.labels)
        return outcomes


def single(source: str, split: str, count: int | None = None) -> Texts:
    """Single sentences of a source; the record is ``text-SOURCE``."""
    chosen = _spread(sentences.sentences(source, split), count)
    return Texts(source, [s.text for s in chosen], {
        "id": [s.id for s in chosen], "label": [s.label for s in chosen],
        "identity": [_short(s.identity) for s in chosen],
    })


def documents(split: str, tokens: int, count: int | None = None) -> Texts:
    """Film-review sentences of one label in documents of up to ``tokens`` tokens; record ``text-documents-TOKENS``."""
    tokenizer = bert.sentence_tokenizer()
    made = sentences.documents(
        "movies", split, lambda texts: bert.token_counts(tokenizer, texts), tokens=tokens
    )
    made = _spread(made, count)
    return Texts(f"documents-{tokens}", [d.text for d in made], {
        "id": [d.id for d in made], "label": [d.label for d in made], "identity": [d.id for d in made],
    })


def _spread(items: Sequence, count: int | None) -> Sequence:
    """``count`` of the items, evenly spread: the data have long runs of one label. None: all."""
    return items if count is None else items[:: max(1, len(items) // count)][:count]


def _short(identity: str) -> str:
    """A name for an identity that does not repeat the text."""
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


SHIFTED = ("amazon", "tweets", "news")
TASKS: dict[str, Callable[..., Texts]] = {
    "movies": lambda split, count=None: single("movies", split, count),
    "documents-256": lambda split, count=None: documents(split, 256, count),
    "amazon": lambda split, count=None: single("amazon", split, count),
    "tweets": lambda split, count=None: single("tweets", split, count),
    "news": lambda split, count=None: single("news", split, count),
}
COMPARED = ("pitome", text_grid.RELEASED, "energy-sorted", "tome")
LISTED = (*COMPARED, *RANDOM, *text_grid.SHUFFLED)
ALL_LAYERS = ("pitome", "pitome-shuffled", "energy-sorted", "tome")
# What the protocol lists for each task: keep ratios in the first three layers, and what is run beside them at .8.
GRIDS: dict[str, dict[str, Any]] = {
    "movies": dict(arms=LISTED, keeps=(0.8, 0.6), sparse={name: (0.8,) for name in RANDOM}, every_layer=ALL_LAYERS,
                   switched=("pitome", "energy-sorted", "tome"), retrained=True),
    "documents-256": dict(arms=LISTED, keeps=(0.8,), seeds=text_grid.FEW, retrained=True),
    **{name: dict(arms=(*COMPARED, *text_grid.SHUFFLED), keeps=(0.8,), seeds=text_grid.FEW) for name in SHIFTED},
}
