"""Recall of image-text retrieval, both ways, with any number of texts for an image and images for a text.

A query ranks the whole gallery by similarity. Its rank is the place of its best right answer, counted from 1, and a tie
counts against it: a wrong answer that is as similar stands before the right one. So a model that gives everything the
same similarity finds nothing. R@k is the share of queries with a rank of k or less, in per cent, and rsum the sum of
R@1, R@5 and R@10 of both directions (at most 600), as papers on retrieval have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pitome_core.experiments.records.results import Record
from pitome_core.experiments.records.statistics import Difference, bootstrap_mean, paired_difference

AT = (1, 5, 10)
IMAGE, TEXT = "image", "text"  # what a query is
BLOCK = 4096  # queries that are compared with the gallery at a time


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """Rank of the best right answer of every query, `(Q,)` long, from 1.

    `similarity (Q, G)`, `right (Q, G)` bool. A similarity that is NaN is the worst there is. Raises ``ValueError`` for
    shapes that differ, and for a query without a right answer.
    """
    if similarity.shape != right.shape or similarity.ndim != 2:
        raise ValueError(f"similarities of shape {tuple(similarity.shape)} and answers of {tuple(right.shape)}: "
                         "both are (queries, gallery)")
    lacking = (~right.any(dim=1)).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(f"{len(lacking)} of {len(right)} queries have no right answer, the first is {lacking[0]}")
    seen = similarity.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = seen.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    return 1 + ((seen >= best) & ~right).sum(dim=1)


def both_ways(
    images: Tensor, texts: Tensor, answers: Sequence[Sequence[int]], block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the image queries among the texts `(I,)`, and of the text queries among the images `(T,)`, int64.

    `images (I, C)` and `texts (T, C)` are compared by their inner product, in float32; ``answers`` lists, for every
    text, the images that it describes. Raises ``ValueError`` for numbers that do not fit, an index out of range, an
    image without a text, or a text without an image.
    """
    if len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts and answers to {len(answers)} of them: give one list per text")
    pairs = torch.tensor([(text, image) for text, row in enumerate(answers) for image in row]).view(-1, 2)
    if pairs.numel() and not 0 <= int(pairs[:, 1].min()) <= int(pairs[:, 1].max()) < len(images):
        raise ValueError(f"an answer is image {int(pairs[:, 1].max())} or {int(pairs[:, 1].min())} "
                         f"of {len(images)}: count from 0")

    def one_way(queries: Tensor, gallery: Tensor, pairs: Tensor) -> np.ndarray:
        found = []
        for start in range(0, len(queries), block):
            rows = queries[start : start + block].float()
            right = torch.zeros(len(rows), len(gallery), dtype=torch.bool, device=rows.device)
            here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(rows))].to(rows.device)
            right[here[:, 0] - start, here[:, 1]] = True
            found.append(ranks(rows @ gallery.float().T, right).cpu())
        return torch.cat(found).numpy()

    return one_way(images, texts, pairs.flip(1)), one_way(texts, images, pairs)


def summary(image_ranks: Sequence[float], text_ranks: Sequence[float]) -> dict[str, float]:
    """R@1, R@5, R@10 of image queries (``image_r1`` ...) and of text queries, their ``rsum``, and median ranks."""
    found: dict[str, float] = {}
    for name, values in ((IMAGE, np.asarray(image_ranks)), (TEXT, np.asarray(text_ranks))):
        found |= {f"{name}_r{k}": 100 * float((values <= k).mean()) for k in AT}
        found[f"{name}_median"] = float(np.median(values))
    found["rsum"] = sum(value for name, value in found.items() if "_r" in name)
    return found


def contributions(values: Sequence, queries: Sequence[str]) -> np.ndarray:
    """What each query adds to rsum, scaled so that the mean over all queries of both directions *is* rsum.

    ``values`` are ranks `(Q,)`, or `(Q, S)` of S models whose rsums are averaged; ``queries`` says of each query
    whether it is an `IMAGE` or a `TEXT`. Intervals on rsum are then intervals on a mean. Raises ``ValueError`` where a
    direction has no query.
    """
    values, queries = np.asarray(values, dtype=float), np.asarray(queries)
    values = values.reshape(len(queries), -1)
    hits = 100 * sum((values <= k).astype(float) for k in AT).mean(axis=1)
    for name in (IMAGE, TEXT):
        here = queries == name
        if not here.any():
            raise ValueError(f"no {name} query among {len(queries)}: rsum has both directions")
        hits[here] *= len(queries) / here.sum()
    return hits


def table(record: Record, key: str, column: str = "rank") -> dict[str, float]:
    """`summary` of a cell, averaged over its seeds and over the ranks that a query has in one outcome."""
    is_image = np.asarray(record.items["query"]) == IMAGE
    of_seeds = [values.reshape(len(values), -1).T for values in _outcomes(record, key, column)]
    found = [summary(ranks_[is_image], ranks_[~is_image]) for ranks_ in np.concatenate(of_seeds)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def rsum(record: Record, key: str, column: str = "rank") -> tuple[float, float, float]:
    """rsum of a cell with its 95 % interval, resampling the record's clusters: (rsum, low, high).

    Of an arm with seeds: the mean of its seeds' rsums.
    """
    return bootstrap_mean(per_query(record, key, column), record.clusters)


def difference(
    record: Record, first: str, second: str, column: str = "rank", other_column: str | None = None
) -> Difference:
    """rsum of cell `first` minus that of `second`, paired by query, resampling the record's clusters.

    ``column`` is the outcome that is read (`rank` or `rank_retrained`); ``other_column`` that of `second`, where it
    is another one.
    """
    parts = [per_query(record, key, name) for key, name in ((first, column), (second, other_column or column))]
    return paired_difference(*parts, record.clusters)


def per_query(record: Record, key: str, column: str) -> np.ndarray:
    """`contributions` of a cell, ``(Q,)``, averaged over its seeds: a mean of ranks would have another recall."""
    queries = record.items["query"]
    return np.mean([contributions(values, queries) for values in _outcomes(record, key, column)], axis=0)


def _outcomes(record: Record, key: str, column: str) -> list[np.ndarray]:
    """The outcome of a cell, or of each of its seeds that has it."""
    return [record.outcome(one, column) for one in record.having(key, column)]
