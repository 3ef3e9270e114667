"""Fine-tuning the sentence classifiers: off the shelf without merging, retrained with merging on.

One stage (`stages`) is one classifier, five to ten minutes on one core. The recipe was chosen on dev
(`book/protocol.md`), and so is the epoch that is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from pitome_core.experiments import settings
from pitome_core.experiments.data import sentences
from pitome_core.experiments.models import bert, low_rank
from pitome_core.experiments.records import provenance
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.runs import grid
from pitome_core.experiments.runs.stages import Budget, Stage, run_stages
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid

SOURCE = "movies"


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a classifier is fine-tuned. Rates rise from 0 for a share ``warm_up`` of the steps, then fall to 0 on a line.

    ``rank`` 0 trains all weights of the layers: for comparison, never shipped.
    """

    # The shipped classifiers were trained with a schedule of our own and updates inside the weights. It rose from
    # 1 / (number of warm-up steps) in place of 0, one step ahead of transformers' schedule; its fall was the same.
    rank: int = low_rank.RANK
    rate: float = 1e-3  # of the low-rank matrices (all weights, with rank 0)
    head_rate: float = 1e-3
    epochs: int = 3
    batch: int = 32
    decay: float = 0.01
    clip: float = 1.0
    warm_up: float = 0.06


# What is tried on dev for the recipe: seed 0, without merging.
CANDIDATES = {
    "all-5e-5": ClassifierRecipe(rank=0, rate=5e-5),
    "rank8-5e-4": ClassifierRecipe(rate=5e-4),
    "rank8-1e-3": ClassifierRecipe(),
    "rank8-2e-3": ClassifierRecipe(rate=2e-3),
    "rank8-1e-3-5-epochs": ClassifierRecipe(epochs=5),
    "rank8-2e-3-5-epochs": ClassifierRecipe(rate=2e-3, epochs=5),
}
CHOSEN = "rank8-1e-3"
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of the frozen head's L2 penalty; the best on dev is taken


@dataclass
class Labelled:
    """Token rows and labels of one split."""

    rows: list[list[int]]
    labels: np.ndarray

    @classmethod
    def read(cls, split: str, count: int | None = None) -> Labelled:
        """The sentences of a split of `SOURCE`, or its first ``count``. Errors as `sentences.sentences`."""
        chosen = sentences.sentences(SOURCE, split)[:count]
        return cls(bert.encode([s.text for s in chosen]), np.array([s.label for s in chosen]))


def batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Every item once, as numbers, in batches of about one length.

    Items are shuffled and cut into pools of 16 batches. A pool is sorted by length, cut into batches, and these come in
    random order.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    for start in range(0, len(order), 16 * size):
        pool = sorted(order[start : start + 16 * size], key=lambda i: lengths[i])
        cut = [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(cut), generator=generator).tolist():
            yield cut[i]


def fine_tune(
    train: Labelled, dev: Labelled, seed: int, cell: Cell | None = None, recipe: ClassifierRecipe = CANDIDATES[CHOSEN]
) -> tuple[dict[str, Tensor], Tensor, Tensor, list[float]]:
    """Low-rank updates (empty with rank 0), head weight and bias of the best epoch, and dev accuracy per epoch.

    Merges as ``cell`` says in training and on dev alike; None: not at all. Every random choice follows from ``seed``.
    """
    from transformers import get_linear_schedule_with_warmup

    device = settings.device()
    encoder = bert.sentence_encoder()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout
        if recipe.rank:
            encoder.requires_grad_(False)
            trained = low_rank.adapt(encoder.encoder, classifiers.linears(encoder), seed, recipe.rank)
        else:
            trained = list(encoder.encoder.parameters())
        head = nn.Linear(encoder.config.hidden_size, 2)
        nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(head.bias)
        head.to(device)
        groups = [{"params": trained, "lr": recipe.rate}, {"params": head.parameters(), "lr": recipe.head_rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.decay)
        steps = recipe.epochs * math.ceil(len(train.rows) / recipe.batch)
        schedule = get_linear_schedule_with_warmup(optimizer, round(recipe.warm_up * steps), steps)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.from_numpy(train.labels).to(device)
        lengths = [len(row) for row in train.rows]
        scores: list[float] = []
        best: tuple = ()
        merging = text_grid.applied(cell, encoder) if cell is not None else nullcontext(encoder)
        with merging as running:
            for _ in range(recipe.epochs):
                encoder.train()
                for chosen in batches(lengths, recipe.batch, generator):
                    ids, mask = bert.pad([train.rows[i] for i in chosen], device)
                    states = running(input_ids=ids, attention_mask=mask).last_hidden_state
                    loss = nn.functional.cross_entropy(head(classifiers.pooled(states, mask)), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_([*trained, *head.parameters()], recipe.clip)
                    optimizer.step()
                    schedule.step()
                encoder.eval()
                current = classifiers.Classifier(encoder, head.weight.detach().cpu(), head.bias.detach().cpu())
                scores.append(accuracy(current.read(classifiers.features(running, dev.rows)), dev.labels))
                if scores[-1] >= max(scores):
                    updates = low_rank.updates(encoder.encoder) if recipe.rank else {}
                    updates = {name: value.clone() for name, value in updates.items()}
                    best = (updates, current.weight.clone(), current.bias.clone())
    return *best, scores


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose larger logit is that of the label."""
    return float((logits.argmax(1) == labels).mean())


def frozen_head(train: Labelled, dev: Labelled) -> tuple[Tensor, Tensor, dict[float, float]]:
    """Head ``(2, C)``, ``(2,)`` of a logistic regression on unit-length embeddings of the encoder as it is.

    With the penalty of `PENALTIES` that does best on dev; also the dev accuracy of each.
    """
    encoder = bert.sentence_encoder()
    states = nn.functional.normalize(classifiers.features(encoder, train.rows), dim=1).numpy()
    dev_states = classifiers.features(encoder, dev.rows)
    heads, scores = {}, {}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=2000).fit(states, train.labels)
        weight = torch.from_numpy(fitted.coef_[0]).float()
        bias = torch.from_numpy(fitted.intercept_).float()
        heads[penalty] = torch.stack([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        classifier = classifiers.Classifier(encoder, *heads[penalty], unit=True)
        scores[penalty] = accuracy(classifier.read(dev_states), dev.labels)
    return *heads[max(scores, key=scores.__getitem__)], scores


def to_train(
    methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None
) -> list[tuple[int | None, Cell | None]]:
    """(seed, cell) of every classifier: the frozen head, those without merging, those with merging, by seed."""
    wanted: list[tuple[int | None, Cell | None]] = []
    if methods is None or grid.WHOLE in methods:
        wanted += [(None, None), *((seed, None) for seed in classifiers.SEEDS)]
    chosen = [cell for cell in text_grid.retrained_cells()
              if (methods is None or cell.arm in methods) and (keeps is None or cell.keep in keeps)]
    return wanted + [(seed, cell) for seed in classifiers.SEEDS for cell in chosen]


def run(
    methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None, *,
    recipe: ClassifierRecipe = CANDIDATES[CHOSEN],
    minutes: float = math.inf, again: bool = False, estimate_only: bool = False, log: Path | None = None,
) -> int:
    """Train the classifiers that are missing. Returns how many still are; ``minutes`` and the rest as `run_stages`.

    What each scored on dev is noted in ``text-training.jsonl`` beside the records that are not committed.
    """
    stages = []
    for seed, cell in to_train(methods, keeps):
        path = classifiers.weights_path(seed, cell)
        stages.append(Stage(path.name, path.is_file, partial(_train, seed, cell, path, recipe, log)))
    return run_stages("text-weights", stages, minutes=minutes, again=again, estimate_only=estimate_only)


def _train(
    seed: int | None, cell: Cell | None, path: Path, recipe: ClassifierRecipe, log: Path | None, budget: Budget
) -> int:
    """The stage of one classifier."""
    train, dev = Labelled.read("train"), Labelled.read("dev")
    if seed is None:
        weight, bias, by_penalty = frozen_head(train, dev)
        updates, scores = {}, list(by_penalty.values())
    else:
        updates, weight, bias, scores = fine_tune(train, dev, seed, cell, recipe)
    classifiers.save(path, weight, bias, updates)
    # Scored as it will be used: as stored, in half precision.
    stored = accuracy(classifiers.load(seed, cell).logits(dev.rows, cell), dev.labels)
    note(path, scores, stored, recipe, log)
    print(f"  {path.name}: dev {' '.join(f'{s:.4f}' for s in scores)}, stored {stored:.4f}", flush=True)
    return 0


def note(
    path: Path, scores: Sequence[float], stored: float | None, recipe: ClassifierRecipe, log: Path | None = None
) -> None:
    """Add a line about a classifier to ``text-training.jsonl`` (`provenance.note`)."""
    about = {"weights": path.name, "dev": [round(s, 5) for s in scores], "stored": stored, "recipe": asdict(recipe)}
    provenance.note("text-training", about, code_of(fine_tune), log)


def explore(names: Sequence[str] = tuple(CANDIDATES)) -> None:
    """Dev accuracy of candidate recipes, epoch by epoch (seed 0, no merging); keeps no weights."""
    train, dev = Labelled.read("train"), Labelled.read("dev")
    for name in names:
        start = time.monotonic()
        *_, scores = fine_tune(train, dev, 0, recipe=CANDIDATES[name])
        note(Path(f"explore-{name}"), scores, None, CANDIDATES[name])
        spent = time.monotonic() - start
        print(f"{name}: dev {' '.join(f'{s:.4f}' for s in scores)}; {spent:.0f} s", flush=True)
