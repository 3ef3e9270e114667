"""The data of each task, and the cells that are compared on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, scenes, sentences
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import bert, vit
from pitome_core.experiments.records.cells import Cell, seeds_of

from .layers import Layers, TextLayers

METHODS = ("pitome", "tome", "energy-sorted", "atc", "random-merge")  # arms of the grid
SEEDS = 2  # of random merging
KEEP, TEXT_KEEP = 0.9, 0.8  # share of the tokens kept in the one layer that merges; less for the short sentences
SCENES = 36
SENTENCES = 300
FEWEST = 24  # tokens of a sentence, [CLS] and [SEP] included, so that at least four tokens merge
TASKS = ("photographs", "collection", "scenes", "sentences")
OPTIONAL = {"collection": photos.GCOMPRIS}  # tasks with an asset that is fetched by its name only


class TaskData(NamedTuple):
    """What a task measures on.

    Attributes:
        items: columns of the record, one entry per item.
        clusters: names of the columns that say which items belong together in an interval.
        make_layers: loads the model and computes what all cells share.
    """

    items: dict[str, list]
    clusters: tuple[str, ...]
    make_layers: Callable[[], Layers]


def available(task: str) -> bool:
    """Whether the optional asset that ``task`` needs, if any, is in the cache. Nothing is fetched."""
    return task not in OPTIONAL or assets.state(OPTIONAL[task]) == "ready"


def cells(keep: float = KEEP) -> Iterator[Cell]:
    """The cells of the grid. All methods remove the same number of tokens."""
    for name in METHODS:
        for seed in seeds_of(name, SEEDS):
            yield Cell(name, keep, proportional=True, seed=seed)


def load(task: str, count: int | None = None) -> TaskData:
    """The data of a task, or of its first ``count`` items. Raises ``assets.AssetError`` if they cannot be fetched."""
    if task == "sentences":
        return _sentences(count or SENTENCES)
    if task == "scenes":
        batch = scenes.scenes(count or SCENES, split="dev")
        items = {
            "id": [f"{i:04d}" for i in range(len(batch))],
            "object": [cutout.identity for cutout in batch.objects],
            "photograph": list(batch.photographs),
        }
        images, clusters = batch.images, ("object", "photograph")
    else:
        names = list(photos.COLLECTION if task == "collection" else photos.NATURAL)[:count]
        items, clusters = {"id": names}, ("id",)
        images = preprocess(list(photos.photographs(names).values()))  # (n, 3, 224, 224)
    return TaskData(items, clusters, lambda: Layers(vit.vit_small(img_size=224), images))


def _sentences(count: int) -> TaskData:
    tokenizer = bert.sentence_tokenizer()
    pool = sentences.sentences("movies", "dev", neutral=True)
    lengths = bert.token_counts(tokenizer, [sentence.text for sentence in pool])
    rows = [(sentence, n) for sentence, n in zip(pool, lengths, strict=True) if n >= FEWEST][:count]
    items = {
        "id": [sentence.id for sentence, _ in rows],
        "identity": [sentence.identity for sentence, _ in rows],
        "tokens": [n for _, n in rows],
    }

    def make_layers() -> Layers:
        model = bert.sentence_encoder()
        ids = [tokenizer(sentence.text, padding=False, return_tensors="pt")["input_ids"] for sentence, _ in rows]
        return TextLayers(model, [row.to(model.device) for row in ids])

    return TaskData(items, ("identity",), make_layers)
