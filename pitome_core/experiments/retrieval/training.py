"""Training the heads of the dual encoder: off the shelf without merging, retrained with merging on.

Towers stay as they are, so their features are computed once, view by view, and cached; heads then take a minute. A
stage (`stages`) is one pair of heads. The first stage of a kind of merging computes the features, and what it computed
stays in the cache if it stops. Heads learn with the contrastive loss of CLIP. The text head does not start at random:
it starts where it gives the sentence encoder's own similarities (its principal components), so that words which no
training picture has are not lost. HeadRecipe and epoch are the best on dev; ``retrieval-training.jsonl`` lists what was
tried.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor, nn

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import pairs, photos
from pitome_core.experiments.models import dual_encoder
from pitome_core.experiments.models.dual_encoder import Heads
from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.cells import Cell, seeds_of
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.retrieval import recall
from pitome_core.experiments.retrieval.features import View, compute_view, image_features, text_features
from pitome_core.experiments.retrieval.grid import RETRAINED
from pitome_core.experiments.runs import grid
from pitome_core.experiments.runs.stages import Budget, Stage, run_stages

LOG = "retrieval-training"
SEEDS = (0, 1, 2)
WHOLE = Cell(grid.WHOLE)


@dataclass(frozen=True)
class HeadRecipe:
    """How heads are trained.

    ``views`` are the pictures of every object; ``text_rate`` 0 leaves the text head as it starts. ``drop`` is the share
    of features that dropout sets to zero, on both sides. Rates rise from 0 for a share ``warm_up`` of the steps, then
    fall to 0 as a cosine does.
    """

    # The shipped heads were trained with a schedule of our own. Its rate rose from 1 / (number of warm-up steps) in
    # place of 0, and its cosine began at the first step in place of the end of the warm-up.
    views: tuple[View, ...] = (("white", 0), ("photographs", 0), ("collection", 0), ("collection", 1))
    pool: str = "token"
    width: int = dual_encoder.WIDTH
    rate: float = 1e-3  # of the image head and the temperature
    text_rate: float = 1e-4
    epochs: int = 200
    batch: int = 256
    decay: float = 0.05
    drop: float = 0.1
    warm_up: float = 0.05

    @property
    def dev_views(self) -> tuple[View, ...]:
        """The views that dev is scored on: the same backgrounds, once each."""
        return tuple((background, 0) for background in dict.fromkeys(b for b, _ in self.views))


INSTALLED = (("white", 0), ("photographs", 0), ("photographs", 1), ("photographs", 2))  # no optional asset
# What is tried on dev for the recipe: seed 0, without merging.
CANDIDATES = {
    "token": HeadRecipe(),
    "avg": HeadRecipe(pool="avg"),
    "token-frozen-text": HeadRecipe(text_rate=0.0),
    "token-slow": HeadRecipe(rate=3e-4),
    "token-drop-0.3": HeadRecipe(drop=0.3),
    "avg-drop-0.3": HeadRecipe(pool="avg", drop=0.3),
    "token-fast-text": HeadRecipe(text_rate=1e-3),
    "token-fast-text-long": HeadRecipe(text_rate=1e-3, epochs=400),
    "token-fast-text-drop-0.3": HeadRecipe(text_rate=1e-3, drop=0.3),
    "token-fast-text-drop-0.5": HeadRecipe(text_rate=1e-3, drop=0.5),
    "token-fast-text-decay-0.5": HeadRecipe(text_rate=1e-3, decay=0.5),
    "decay-1": HeadRecipe(text_rate=1e-3, decay=1.0),
    "decay-2": HeadRecipe(text_rate=1e-3, decay=2.0),
    "decay-5": HeadRecipe(text_rate=1e-3, decay=5.0),
    "decay-2-no-drop": HeadRecipe(text_rate=1e-3, decay=2.0, drop=0.0),
    "decay-2-text-3e-3": HeadRecipe(text_rate=3e-3, decay=2.0),
    "decay-2-slow": HeadRecipe(rate=3e-4, text_rate=1e-3, decay=2.0),
    "decay-2-batch-985": HeadRecipe(text_rate=1e-3, decay=2.0, batch=985),
    "decay-2-short": HeadRecipe(text_rate=1e-3, decay=2.0, epochs=100),
    "decay-2-avg": HeadRecipe(text_rate=1e-3, decay=2.0, pool="avg"),
    "decay-1-long": HeadRecipe(text_rate=1e-3, decay=1.0, epochs=400),
    "decay-2-long": HeadRecipe(text_rate=1e-3, decay=2.0, epochs=400),
    "decay-2-batch-128": HeadRecipe(text_rate=1e-3, decay=2.0, batch=128),
    "decay-2-fast": HeadRecipe(rate=3e-3, text_rate=1e-3, decay=2.0),
    "decay-2-installed": HeadRecipe(text_rate=1e-3, decay=2.0, views=INSTALLED),
}
CHOSEN = "decay-2"
# Kernel ridge: width of the kernel (times 1 / number of features) and strength of the penalty; the best on dev.
GAMMAS, PENALTIES = (0.03, 0.1, 0.3, 1.0), (1e-3, 0.01, 0.1)


def obtainable(recipe: HeadRecipe) -> HeadRecipe:
    """The recipe, with views on installed photographs alone where the collection is not in the cache."""
    if assets.state(photos.GCOMPRIS) == "ready" or all(background != "collection" for background, _ in recipe.views):
        return recipe
    return replace(recipe, views=INSTALLED)


@dataclass
class Examples:
    """Features of one split: ``images (V, n, 2, 384)`` in V views, ``texts (T, 384)``, and which texts describe what.
    """

    images: Tensor
    texts: Tensor
    pairs: pairs.Pairs

    @classmethod
    def read(cls, split: str, views: Sequence[View], cell: Cell = WHOLE, count: int | None = None) -> Examples:
        """Features of a split in these views, merged as the cell says. Arguments and errors as `image_features`."""
        images = torch.stack([image_features(cell, split, view, count) for view in views])
        return cls(images, text_features(cell, split, count), pairs.pairs(split, count=count))


# --- heads


@torch.no_grad()
def begin(heads: Heads, texts: Tensor) -> None:
    """Set the text head to the first principal directions of the features ``texts (T, 384)``, inner products kept.

    Hidden units come in pairs of opposite sign. Because GELU(z) - GELU(-z) = z, a pair passes one direction unchanged:
    192 hidden units pass 96 directions.
    """
    first, _, last = heads.text
    rank = min(first.out_features // 2, last.out_features)
    directions = torch.linalg.svd(texts.double(), full_matrices=True).Vh[:rank].float()  # (rank, 384)
    first.weight[: 2 * rank] = torch.cat([directions, -directions])
    last.weight.zero_()
    last.weight[:rank, : 2 * rank] = torch.cat([torch.eye(rank), -torch.eye(rank)], dim=1)


def train(
    examples: Examples, dev: Examples, seed: int, recipe: HeadRecipe, evaluate_every: int = 5
) -> tuple[Heads, list[float]]:
    """Heads of the best epoch, and rsum on dev (mean over its views) at every ``evaluate_every``-th epoch.

    In a batch every picture comes once, in a random view and with a random one of its texts. Where that text also
    describes another picture of the batch, the two are neither right nor wrong for each other. Every random choice
    follows from ``seed``.
    """
    from transformers import get_cosine_schedule_with_warmup

    heads = Heads(recipe.width, recipe.pool, seed)
    begin(heads, examples.texts)
    generator = torch.Generator().manual_seed(seed)
    groups = [
        {"params": [*heads.image.parameters(), heads.logit_scale], "lr": recipe.rate},
        {"params": list(heads.text.parameters()), "lr": recipe.text_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.decay)
    count = len(examples.pairs)
    steps = recipe.epochs * math.ceil(count / recipe.batch)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warm_up * steps), steps)
    scores: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(recipe.epochs):
        heads.train()
        for chosen in torch.randperm(count, generator=generator).split(recipe.batch):
            loss = contrastive_loss(heads, examples, chosen, generator, recipe.drop)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                heads.logit_scale.clamp_(0, math.log(100))  # as CLIP was trained
        if (epoch + 1) % evaluate_every == 0 or epoch + 1 == recipe.epochs:
            scores.append(score(heads.eval(), dev))
            if scores[-1] >= max(scores):
                best = {name: value.detach().clone() for name, value in heads.state_dict().items()}
    heads.load_state_dict(best)
    return heads.eval().requires_grad_(False), scores


def contrastive_loss(
    heads: Heads, examples: Examples, chosen: Tensor, generator: torch.Generator, drop: float
) -> Tensor:
    """CLIP's symmetric cross-entropy on the pictures ``chosen (B,)``, one view and one text of each drawn."""
    views = torch.randint(len(examples.images), (len(chosen),), generator=generator)
    texts = torch.tensor([
        row[int(torch.randint(len(row), (), generator=generator))]
        for row in (examples.pairs.captions[i] for i in chosen.tolist())
    ])

    def dropped(features: Tensor) -> Tensor:
        keep = torch.rand(features.shape, generator=generator) >= drop
        return features * keep / (1 - drop)

    x = heads.images(dropped(examples.images[views, chosen]))  # (B, C)
    y = heads.texts(dropped(examples.texts[texts]))
    logits = heads.logit_scale.exp() * x @ y.T  # (B, B)
    place = {int(picture): i for i, picture in enumerate(chosen)}
    shared = [(place[picture], column) for column, text in enumerate(texts.tolist())
              for picture in examples.pairs.answers[text] if picture in place and place[picture] != column]
    if shared:  # the text describes this picture, too: neither right nor wrong
        logits = logits.index_put(tuple(torch.tensor(shared).T), logits.new_tensor(-torch.inf))
    right = torch.arange(len(chosen))
    return (nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)) / 2


@torch.no_grad()
def score(heads: Heads, examples: Examples) -> float:
    """rsum of heads on examples, mean over the views."""
    texts = heads.texts(examples.texts)
    return float(np.mean([rsum(heads.images(view), texts, examples.pairs) for view in examples.images]))


def rsum(images: Tensor, texts: Tensor, of: pairs.Pairs) -> float:
    """rsum of embeddings of unit length `(n, C)`, `(T, C)`."""
    return recall.summary(*recall.both_ways(images, texts, of.answers))["rsum"]


class Ridge:
    """The reference that heads should beat: kernel ridge regression from image features to the sentence encoder's
    space; texts are embedded by the sentence encoder as it is.

    Features are class token and mean patch, standardised; the target of a picture is the mean of its texts, each of
    unit length. Width of the Gaussian kernel and penalty are the best on dev of `GAMMAS` and `PENALTIES`; ``scores``
    has all.
    """

    def __init__(self, examples: Examples, dev: Examples):
        stacked = examples.images.flatten(2).flatten(0, 1).double().numpy()  # (V n, 768)
        self.mean, self.spread = stacked.mean(0), stacked.std(0)
        unit = nn.functional.normalize(examples.texts, dim=1)
        target = torch.stack([unit[list(row)].mean(0) for row in examples.pairs.captions])  # (n, 384)
        target = target.repeat(len(examples.images), 1)
        self.scores: dict[tuple[float, float], float] = {}
        best = -math.inf
        for gamma, penalty in itertools.product(GAMMAS, PENALTIES):
            fitted = KernelRidge(kernel="rbf", gamma=gamma / stacked.shape[1], alpha=penalty)
            fitted.fit((stacked - self.mean) / self.spread, target.numpy())
            texts = self.texts(dev.texts)
            by_view = [rsum(self.images(view, fitted), texts, dev.pairs) for view in dev.images]
            self.scores[gamma, penalty] = float(np.mean(by_view))
            if self.scores[gamma, penalty] > best:
                best, self.fitted = self.scores[gamma, penalty], fitted

    def images(self, features: Tensor, fitted: KernelRidge | None = None) -> Tensor:
        """`(n, 2, 384)` -> `(n, 384)` of unit length."""
        rows = (features.flatten(1).double().numpy() - self.mean) / self.spread
        return nn.functional.normalize(torch.from_numpy((fitted or self.fitted).predict(rows)).float(), dim=1)

    def texts(self, features: Tensor) -> Tensor:
        """`(T, 384)` -> the same of unit length."""
        return nn.functional.normalize(features, dim=1)


@functools.lru_cache(maxsize=1)
def reference() -> Ridge:
    """The kernel ridge, fitted on features from the cache, or computed now (minutes)."""
    recipe = obtainable(CANDIDATES[CHOSEN])
    return Ridge(Examples.read("train", recipe.views), Examples.read("dev", recipe.dev_views))


# --- stages


def heads_path(seed: int, cell: Cell | None = None) -> Path:
    """Where heads are: shipped with the records, or, for heads trained with merging on, in the cache."""
    if cell is not None and cell.arm != grid.WHOLE:
        return settings.cache_dir() / "retrieval-weights" / f"{cell.key.replace('/', '-')}-head{seed}.safetensors"
    name = f"head{seed}.safetensors"
    shipped = results.folder() / "retrieval-weights" / name
    return shipped if shipped.is_file() else results.writable(committed=True) / "retrieval-weights" / name


def trained_heads(cell: Cell | None = None) -> list[Heads]:
    """The heads of every seed (None: trained without merging). ``results.RecordError`` where some are missing."""
    paths = [heads_path(seed, cell) for seed in SEEDS]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise results.RecordError(f"no heads {', '.join(missing)}: run `make retrieval-weights`")
    return [dual_encoder.load(path) for path in paths]


def retrained_cells(methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None) -> list[Cell]:
    """The cells whose heads are trained with merging on, or those of them with these arms and ratios."""
    return [
        Cell(arm, keep, seed=seeds_of(arm)[0], towers=towers_)
        for towers_, arms in RETRAINED.items() for arm, ratios in arms.items() for keep in ratios
        if (methods is None or arm in methods) and (keeps is None or keep in keeps)
    ]


def run(
    methods: Sequence[str] | None = None, keeps: Sequence[float] | None = None, *,
    recipe: HeadRecipe = CANDIDATES[CHOSEN],
    minutes: float = math.inf, again: bool = False, estimate_only: bool = False, log: Path | None = None,
) -> int:
    """Train the heads that are missing. Returns how many still are; ``minutes`` and the rest as `run_stages`.

    What each scored on dev is noted in ``retrieval-training.jsonl`` beside the records that are not committed. Raises
    ``assets.AssetError`` where the recipe has backgrounds that cannot be had; it names the recipe without them.
    """
    whole = [WHOLE] if methods is None or grid.WHOLE in methods else []
    stages = []
    for cells in (whole, retrained_cells(methods, keeps)):
        paths = {(seed, cell): heads_path(seed, cell) for cell in cells for seed in SEEDS}
        wanted = list(dict.fromkeys(cell for (_, cell), path in paths.items() if again or not path.is_file()))
        stages += [Stage(path.name, path.is_file, functools.partial(_train, seed, cell, wanted, recipe, log))
                   for (seed, cell), path in paths.items()]
    unobtainable = obtainable(recipe) != recipe
    if unobtainable and not estimate_only and (again or not all(stage.done() for stage in stages)):
        raise assets.AssetError(
            f"the recipe has views on the collection, which is not in the cache: fetch {photos.GCOMPRIS!r} "
            "(python -m pitome_core.experiments.assets fetch photos-gcompris), or pass --recipe decay-2-installed"
        )
    return run_stages("retrieval-weights", stages, minutes=minutes, again=again, estimate_only=estimate_only)


def _train(
    seed: int, cell: Cell, wanted: Sequence[Cell], recipe: HeadRecipe, log: Path | None, budget: Budget
) -> int:
    """The stage of one pair of heads; first it computes the features that the cache lacks, of all ``wanted`` cells.

    With the first pair without merging, the reference is noted.
    """
    for split, views in (("train", recipe.views), ("dev", recipe.dev_views)):
        for view in views:
            if budget.over():
                return 1
            compute_view(wanted, split, view)
    path = heads_path(seed, cell)
    if cell == WHOLE and seed == SEEDS[0]:
        best, views = max(reference().scores.values()), obtainable(CANDIDATES[CHOSEN]).views
        provenance.note(LOG, {"heads": "ridge", "dev": round(best, 2), "views": views}, code_of(train), log)
        print(f"  kernel ridge: dev {best:.1f}", flush=True)
    dev = Examples.read("dev", recipe.dev_views, cell)
    heads, scores = train(Examples.read("train", recipe.views, cell), dev, seed, recipe)
    dual_encoder.save(heads, path)
    stored = score(dual_encoder.load(path), dev)  # scored as it will be used: as stored, in half precision
    note(path.name, scores, stored, recipe, log)
    print(f"  {path.name}: dev {max(scores):.1f}, stored {stored:.1f}", flush=True)
    return 0


def note(name: str, scores: Sequence[float], stored: float | None, recipe: HeadRecipe, log: Path | None = None) -> None:
    """Add a line about heads to ``retrieval-training.jsonl`` (`provenance.note`)."""
    about = {"heads": name, "dev": [round(s, 2) for s in scores], "stored": stored, "recipe": asdict(recipe)}
    provenance.note(LOG, about, code_of(train), log)


def explore(names: Sequence[str] = tuple(CANDIDATES)) -> None:
    """rsum on dev of candidate recipes (seed 0, no merging), all on the same views of dev; keeps no heads."""
    dev = Examples.read("dev", obtainable(HeadRecipe()).dev_views)
    for name in names:
        start, recipe = time.monotonic(), obtainable(CANDIDATES[name])
        _, scores = train(Examples.read("train", recipe.views), dev, 0, recipe)
        note(f"explore-{name}", scores, None, recipe)
        place = 1 + int(np.argmax(scores))
        print(f"{name}: dev {max(scores):.1f} at {place} of {len(scores)}, {scores[-1]:.1f} at the end; "
              f"{time.monotonic() - start:.0f} s", flush=True)
