"""Fine-tuning the sentence classifiers: off the shelf without merging, retrained with merging on.

One stage is one classifier, five to ten minutes on one core; a stage that is done is not done again. The recipe was
chosen on dev (`book/protocol.md`), and so is the epoch that is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from pitome_core.experiments import settings
from pitome_core.experiments.data import sentences
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid
from pitome_core.experiments.text.grid import RETRAINED

SOURCE = "movies"


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fine-tuned. ``rank`` 0 trains all weights of the layers: for comparison, never shipped."""

    rank: int = classifiers.RANK
    rate: float = 1e-3  # of the low-rank matrices (all weights, with rank 0)
    head_rate: float = 1e-3
    epochs: int = 3
    batch: int = 32
    decay: float = 0.01
    clip: float = 1.0
    warm_up: float = 0.06


# What is tried on dev for the recipe: seed 0, without merging.
CANDIDATES = {
    "all-5e-5": Recipe(rank=0, rate=5e-5),
    "rank8-5e-4": Recipe(rate=5e-4),
    "rank8-1e-3": Recipe(),
    "rank8-2e-3": Recipe(rate=2e-3),
    "rank8-1e-3-5-epochs": Recipe(epochs=5),
    "rank8-2e-3-5-epochs": Recipe(rate=2e-3, epochs=5),
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
        chosen = sentences.sentences(SOURCE, split)[:count]
        return cls(classifiers.encode([s.text for s in chosen]), np.array([s.label for s in chosen]))


def batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Every item once, in batches of about one length: pools of 16 batches of random items, sorted, dealt at random."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    for start in range(0, len(order), 16 * size):
        pool = sorted(order[start : start + 16 * size], key=lambda i: lengths[i])
        parts = [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[i]


def fine_tune(
    train: Labelled, dev: Labelled, seed: int, cell: Cell | None = None, recipe: Recipe = CANDIDATES[CHOSEN]
) -> tuple[dict[str, Tensor], Tensor, Tensor, list[float]]:
    """Low-rank updates (empty with rank 0), head weight and bias of the best epoch, and dev accuracy per epoch.

    Merges as ``cell`` says in training and on dev alike; None: not at all. Every random choice follows from ``seed``.
    """
    device = settings.device()
    encoder = bert.sentence_encoder()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout
        if recipe.rank:
            small = classifiers.adapt(encoder, seed, recipe.rank)
        else:
            small = list(encoder.encoder.parameters())
        head = nn.Linear(encoder.config.hidden_size, 2)
        nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(head.bias)
        head.to(device)
        groups = [{"params": small, "lr": recipe.rate}, {"params": head.parameters(), "lr": recipe.head_rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.decay)
        steps = recipe.epochs * math.ceil(len(train.rows) / recipe.batch)
        warm = max(1, round(recipe.warm_up * steps))
        plan = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
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
                    ids, mask = classifiers.padded([train.rows[i] for i in chosen], device)
                    states = running(input_ids=ids, attention_mask=mask).last_hidden_state
                    loss = nn.functional.cross_entropy(head(classifiers.pooled(states, mask)), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_([*small, *head.parameters()], recipe.clip)
                    optimizer.step()
                    plan.step()
                encoder.eval()
                found = classifiers.Classifier(encoder, head.weight.detach().cpu(), head.bias.detach().cpu())
                scores.append(accuracy(found.read(classifiers.features(running, dev.rows)), dev.labels))
                if scores[-1] >= max(scores):
                    kept = classifiers.updates(encoder) if recipe.rank else {}
                    best = (kept, found.weight.clone(), found.bias.clone())
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
    seen = classifiers.features(encoder, dev.rows)
    heads, scores = {}, {}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=2000).fit(states, train.labels)
        weight = torch.from_numpy(fitted.coef_[0]).float()
        bias = torch.from_numpy(fitted.intercept_).float()
        heads[penalty] = torch.stack([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        scores[penalty] = accuracy(classifiers.Classifier(encoder, *heads[penalty], unit=True).read(seen), dev.labels)
    return *heads[max(scores, key=scores.__getitem__)], scores


def stages(methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None) -> list[tuple]:
    """(seed, cell) of every classifier: the frozen head, those without merging, those with, by seed."""
    found: list[tuple[int | None, Cell | None]] = []
    if methods is None or grid.WHOLE in methods:
        found += [(None, None), *((seed, None) for seed in classifiers.SEEDS)]
    for seed in classifiers.SEEDS:
        for arm, ratios in RETRAINED.items():
            if methods is None or arm in methods:
                found += [(seed, Cell(arm, r, retrained=True)) for r in ratios if keeps is None or r in keeps]
    return found


def run(
    methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None, *, recipe: Recipe = CANDIDATES[CHOSEN],
    minutes: float = math.inf, again: bool = False, estimate_only: bool = False, log: Path | None = None,
) -> int:
    """Train what is missing, a stage after the other; begin none after ``minutes``. Returns how many are still missing.

    What each stage scored on dev is noted in ``text-training.jsonl`` beside the records that are not committed.
    """
    todo = [s for s in stages(methods, keeps) if again or not classifiers.weights_path(*s).is_file()]
    print(f"text-weights: {len(todo)} of {len(stages(methods, keeps))} classifiers to train", flush=True)
    if not todo or estimate_only:
        return len(todo)
    train, dev = Labelled.read("train"), Labelled.read("dev")
    begun = time.monotonic()
    for done, (seed, cell) in enumerate(todo):
        if time.monotonic() - begun > 60 * minutes:
            print(f"  {len(todo) - done} left after {minutes:g} minutes: run it again to go on")
            return len(todo) - done
        start, path = time.monotonic(), classifiers.weights_path(seed, cell)
        if seed is None:
            weight, bias, by_penalty = frozen_head(train, dev)
            classifiers.save(path, weight, bias)
            scores = list(by_penalty.values())
        else:
            stored, weight, bias, scores = fine_tune(train, dev, seed, cell, recipe)
            classifiers.save(path, weight, bias, stored)
        # What will be used: as stored, in half precision.
        score = accuracy(classifiers.load(seed, cell).logits(dev.rows, cell), dev.labels)
        note(path, scores, score, recipe, log)
        spent = time.monotonic() - start
        dev_scores = " ".join(f"{s:.4f}" for s in scores)
        print(f"  {path.name}: dev {dev_scores}, stored {score:.4f}; {spent:.0f} s", flush=True)
    return 0


def note(path: Path, scores: Sequence[float], stored: float | None, recipe: Recipe, log: Path | None = None) -> None:
    """Add a line about a classifier to ``text-training.jsonl`` (`results.note`)."""
    about = {"weights": path.name, "dev": [round(s, 5) for s in scores], "stored": stored, "recipe": asdict(recipe)}
    results.note("text-training", about, log)


def explore(names: Sequence[str] = tuple(CANDIDATES)) -> None:
    """Dev accuracy of candidate recipes, epoch by epoch (seed 0, no merging); keeps no weights."""
    train, dev = Labelled.read("train"), Labelled.read("dev")
    for name in names:
        start = time.monotonic()
        *_, scores = fine_tune(train, dev, 0, recipe=CANDIDATES[name])
        note(Path(f"explore-{name}"), scores, None, CANDIDATES[name])
        spent = time.monotonic() - start
        print(f"{name}: dev {' '.join(f'{s:.4f}' for s in scores)}; {spent:.0f} s", flush=True)
