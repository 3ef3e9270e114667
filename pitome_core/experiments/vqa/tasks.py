"""The tasks of visual question answering in the embedded tier, and what is made of their records.

All ask generated questions (`questions`): ``headline`` many with few cells, ``grid`` the first of them with all;
``replication`` and ``strengths`` ask later ones, which no cell on hidden states has answered before. Answers are greedy
and right where they are the very text. An accuracy comes in three forms: *micro*, over the questions of the headline's
types (those that beat their blind prior on validation, `vqa_training.sheet`), *macro*, the mean over these types, and
*all*, over all questions.
"""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from pitome_core.experiments.data import questions
from pitome_core.experiments.models import llava
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.statistics import Difference, McNemar, mcnemar, paired_difference
from pitome_core.experiments.runs import clock, grid
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import training as vqa_training

STREAMS = {"dev": "validation", "test": "test"}
MANY, FEW = 5000, 1000  # questions of the headline and of the grid: the first ones of the test stream
LATER = 2000  # questions of the replication; the first half of them at other strengths
START = 5001  # the first of them: that of the first scene about which the headline asks nothing
TIMED = 8  # scenes on a CPU that the estimate rests on


class Vqa:
    """``count`` questions of a stream from number ``start`` on, of all scenes that they are about.

    ``start`` is the first question of its scene: a multiple of `questions.PER_SCENE`.

    Items are questions by their number in the stream. Outcomes per item: ``correct``, 0 or 1, and ``answer``, the
    model's answer (`said` reads it).
    """

    clusters = ("scene",)

    def __init__(self, name: str, split: str, count: int, start: int = 0):
        self.name, self.stream = name, STREAMS[split]
        self.sheet = vqa_training.sheet()
        self.asked = questions.QuestionStream(self.stream, start + count)[start:]
        self.first = self.asked[0].scene
        self.model = llava.llava()
        self.items = {
            "id": list(range(start, start + count)), "scene": [q.scene for q in self.asked],
            "type": [q.type for q in self.asked],
        }

    @property
    def about(self) -> dict[str, Any]:
        """Header entries: among them the hash of the weights, the types of the headline and the blind prior."""
        return {
            "model": llava.NAME, "weights": self.sheet["weights"], "dtype": "float32", "questions": questions.VERSION,
            "stream": self.stream, "headline": self.sheet["headline"], "prior": self.prior,
        }

    @cached_property
    def prior(self) -> dict[str, float]:
        """Accuracy by type of question, of the best guess without the picture (`questions.blind_prior`)."""
        train_questions = questions.QuestionStream(vqa_training.STREAM, vqa_training.KNOWN)
        return {kind: round(share, 4) for kind, share in questions.blind_prior(train_questions, self.asked).items()}

    @cached_property
    def pixels(self) -> torch.Tensor:
        """Pictures of all scenes, uint8 on the CPU; drawn at the first call."""
        return llava.draw([(self.stream, self.first + i) for i in range(self.scenes)], self.model.device)

    @cached_property
    def lengths(self) -> dict[int, int]:
        """How many prompts have each number of tokens, the picture's left out."""
        ahead = len(vqa_training.before())
        return dict(Counter(ahead + len(vqa_training.tokens_of(q.text, q.answer)[0]) for q in self.asked))

    def applied(self, cell: Cell) -> AbstractContextManager[nn.Module]:
        """The LLaVA as the cell runs it; it is patched inside the `with` block only."""
        return vqa_grid.applied(cell, self.model)

    def cost(self, cell: Cell) -> dict[str, Any]:
        """The entries that `grid.cost` returns for the cell and the prompts of all questions."""
        return vqa_grid.cost(cell, self.model, self.lengths)

    @property
    def scenes(self) -> int:
        """How many scenes the questions are about."""
        return self.asked[-1].scene + 1 - self.first

    def work(self, cell: Cell) -> int:
        """How many questions are asked."""
        return len(self.asked)

    def seconds_per_item(self) -> float:
        """Seconds of the whole model per question, on the questions of a few scenes."""
        scenes = min(TIMED * (1 if self.model.device.type == "cpu" else 16), self.scenes)
        part = [q for q in self.asked if q.scene < self.first + scenes]
        pixels = llava.draw([(self.stream, self.first + i) for i in range(scenes)], self.model.device)
        texts, places = [q.text for q in part], [q.scene - self.first for q in part]
        return clock.quickest(lambda: llava.ask(self.model, pixels, texts, places), self.model.device) / len(part)

    def prepare(self) -> None:
        """Do nothing, because scoring needs nothing of the whole model."""

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``correct (questions,)`` and ``answer``, both packed (`results.pack`, `pack_texts`)."""
        places = [q.scene - self.first for q in self.asked]
        answers = llava.ask(running, self.pixels, [q.text for q in self.asked], places,
                            order=vqa_grid.order_of(cell), side=cell.pixels)
        right = [float(text == q.answer) for text, q in zip(answers, self.asked, strict=True)]
        return {"correct": results.pack(right), "answer": pack_texts(answers)}


def pack_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Texts of which many are equal, in about a byte each: the different ones, and compressed places among them."""
    different = sorted(set(texts))
    place = {text: i for i, text in enumerate(different)}
    kind = np.uint8 if len(different) <= 256 else np.uint16 if len(different) <= 65_536 else np.uint32
    packed = zlib.compress(np.array([place[text] for text in texts], dtype=kind).tobytes(), 9)
    return {"length": len(texts), "texts": different, "places": base64.b64encode(packed).decode("ascii")}


def unpack_texts(packed: Mapping[str, Any]) -> list[str]:
    """What `pack_texts` was given."""
    stored, different = zlib.decompress(base64.b64decode(packed["places"])), packed["texts"]
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[len(stored) // packed["length"]] if stored else np.uint8
    return [different[i] for i in np.frombuffer(stored, dtype=kind)]


def said(record: results.Record, key: str) -> list[str]:
    """The answers of a cell, item by item. `KeyError` names the cells there are."""
    if key not in record:
        raise KeyError(f"no cell {key!r} in {record.path.name}; there are {', '.join(record.cells)}")
    return unpack_texts(record.cells[key]["outcomes"]["answer"])


def of_types(record: results.Record, kinds: Sequence[str] | None = None) -> np.ndarray:
    """``(items,)`` bool: the questions of these types, by default of the headline's."""
    return np.isin(record.items["type"], list(record.header["headline"] if kinds is None else kinds))


def by_type(record: results.Record, key: str) -> dict[str, float]:
    """Accuracy of a cell (mean over its seeds) by type."""
    right, kinds = record.mean_over_seeds(key, "correct"), np.array(record.items["type"])
    return {kind: float(right[kinds == kind].mean()) for kind in questions.TYPES if (kinds == kind).any()}


def accuracy(record: results.Record, key: str) -> dict[str, float]:
    """``micro``, ``macro`` and ``all`` of a cell, mean over its seeds; the first two NaN without a headline."""
    right, types = record.mean_over_seeds(key, "correct"), by_type(record, key)
    shares = [types[kind] for kind in record.header["headline"] if kind in types]
    return {
        "micro": float(right[of_types(record)].mean()) if shares else float("nan"),
        "macro": float(np.mean(shares)) if shares else float("nan"),
        "all": float(right.mean()),
    }


def difference(
    record: results.Record, first: str, second: str, kinds: Sequence[str] | None = None
) -> Difference:
    """Accuracy of one cell minus that of another, paired by question.

    ``kinds`` are the types of the questions (default: the headline's). The interval is over scenes.
    """
    is_chosen = of_types(record, kinds)
    pair = [record.mean_over_seeds(key, "correct")[is_chosen] for key in (first, second)]
    return paired_difference(*pair, np.array(record.items["scene"])[is_chosen])


def only_one_right(
    record: results.Record, first: str, second: str, kinds: Sequence[str] | None = None
) -> McNemar:
    """McNemar's exact test on the questions of these types; a cell of its own for each seed."""
    is_chosen = of_types(record, kinds)
    return mcnemar(*(record.outcome(key, "correct")[is_chosen] for key in (first, second)))


TASKS: dict[str, Callable[..., Vqa]] = {
    "headline": lambda split, count=None: Vqa("headline", split, count or MANY),
    "grid": lambda split, count=None: Vqa("grid", split, count or FEW),
    "replication": lambda split, count=None: Vqa("replication", split, count or LATER, START),
    "strengths": lambda split, count=None: Vqa("strengths", split, count or LATER // 2, START),
}
PROTOCOLS = {"headline": "vqa-2", "grid": "vqa-2", "replication": "vqa-3", "strengths": "vqa-3"}
# What the protocol lists for each task.
GRIDS: dict[str, dict[str, Any]] = {
    "headline": dict(arms=("pitome", "tome"), keeps=(vqa_grid.PRIMARY,)),
    "grid": dict(arms=(*vqa_grid.LISTED, grid.LOWER), keeps=(vqa_grid.PRIMARY,), sides=vqa_grid.SIDES,
                 seeds={"pitome-shuffled": 5}),
    "replication": dict(arms=("pitome-hidden", "tome-hidden", "pitome-released-clip", "tome"),
                        keeps=(vqa_grid.PRIMARY,)),
    "strengths": dict(arms=("pitome-hidden", "tome-hidden", "tome"), keeps=(0.95, 0.85)),
}
