"""Recall of image-text retrieval in both directions, with any number of texts per image and images per text.

A query sorts the whole gallery by similarity. Its rank is the place of its first right answer, counted from 1. In a tie
the wrong answer comes first, so that a model which gives the same similarity to everything has the worst ranks. R@k is
the share of queries with a rank of at most k, in per cent. rsum is the sum of R@1, R@5 and R@10 of both directions, at
most 600, as papers on retrieval report it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pitome_core.experiments.records.results import Record
from pitome_core.experiments.records.statistics import Difference, mean_interval, paired_difference

AT = (1, 5, 10)
IMAGE, TEXT = "image", "text"  # the two kinds of query
BLOCK = 4096  # how many queries are compared with the gallery at a time


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """Rank of the first right answer of every query, `(Q,)` long, counted from 1.

    `similarity (Q, G)` of Q queries and a gallery of G, and `right (Q, G)` bool. NaN counts as the lowest similarity.
    Raises ``ValueError`` for shapes that differ, and for a query without a right answer.
    """
    if similarity.shape != right.shape or similarity.ndim != 2:
        raise ValueError(f"similarities of shape {tuple(similarity.shape)} and answers of {tuple(right.shape)}: "
                         "both are (queries, gallery)")
    unanswered = (~right.any(dim=1)).nonzero().flatten().tolist()
    if unanswered:
        raise ValueError(
            f"{len(unanswered)} of {len(right)} queries have no right answer, the first is {unanswered[0]}"
        )
    similarity = similarity.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    return 1 + ((similarity >= best) & ~right).sum(dim=1)


def both_ways(
    images: Tensor, texts: Tensor, answers: Sequence[Sequence[int]], block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the image queries among the texts `(I,)`, and of the text queries among the images `(T,)`, int64.

    `images (I, C)` and `texts (T, C)` are compared by their inner product, in float32, ``block`` queries at a time.
    ``answers`` has a list for every text: the indices of the images that it describes.

    Raises ``ValueError`` if ``answers`` and ``texts`` have different lengths, for an index out of range, and for an
    image without a text or a text without an image.
    """
    if len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts and answers to {len(answers)} of them: give one list per text")
    pairs = torch.tensor([(text, image) for text, row in enumerate(answers) for image in row]).view(-1, 2)
    if pairs.numel() and not 0 <= int(pairs[:, 1].min()) <= int(pairs[:, 1].max()) < len(images):
        raise ValueError(f"an answer is image {int(pairs[:, 1].max())} or {int(pairs[:, 1].min())} "
                         f"of {len(images)}: count from 0")

    def one_way(queries: Tensor, gallery: Tensor, pairs: Tensor) -> np.ndarray:
        blocks = []
        for start in range(0, len(queries), block):
            rows = queries[start : start + block].float()
            right = torch.zeros(len(rows), len(gallery), dtype=torch.bool, device=rows.device)
            in_block = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(rows))].to(rows.device)
            right[in_block[:, 0] - start, in_block[:, 1]] = True
            blocks.append(ranks(rows @ gallery.float().T, right).cpu())
        return torch.cat(blocks).numpy()

    return one_way(images, texts, pairs.flip(1)), one_way(texts, images, pairs)


def summary(image_ranks: Sequence[float], text_ranks: Sequence[float]) -> dict[str, float]:
    """R@1, R@5 and R@10 of both kinds of query (``image_r1``, ``text_r1`` ...), median ranks, and ``rsum``."""
    values: dict[str, float] = {}
    for name, of_queries in ((IMAGE, np.asarray(image_ranks)), (TEXT, np.asarray(text_ranks))):
        values |= {f"{name}_r{k}": 100 * float((of_queries <= k).mean()) for k in AT}
        values[f"{name}_median"] = float(np.median(of_queries))
    values["rsum"] = sum(value for name, value in values.items() if "_r" in name)
    return values


def contributions(values: Sequence, queries: Sequence[str]) -> np.ndarray:
    """The contribution of each query to rsum, `(Q,)`: their mean over all queries of both kinds equals rsum.

    An interval on rsum is then an interval on a mean. ``values`` are ranks `(Q,)`, or `(Q, S)` of S models whose rsums
    are averaged. ``queries`` says of each query whether it is an `IMAGE` or a `TEXT`. Raises ``ValueError`` if one kind
    has no query.
    """
    values, queries = np.asarray(values, dtype=float), np.asarray(queries)
    values = values.reshape(len(queries), -1)
    hits = 100 * sum((values <= k).astype(float) for k in AT).mean(axis=1)
    for name in (IMAGE, TEXT):
        of_kind = queries == name
        if not of_kind.any():
            raise ValueError(f"no {name} query among {len(queries)}: rsum needs queries of both kinds")
        hits[of_kind] *= len(queries) / of_kind.sum()
    return hits


def table(record: Record, key: str, column: str = "rank") -> dict[str, float]:
    """`summary` of a cell, averaged over its seeds and over the models whose ranks are in one outcome."""
    is_image = np.asarray(record.items["query"]) == IMAGE
    of_seeds = [values.reshape(len(values), -1).T for values in _outcomes(record, key, column)]  # (S, Q) each
    summaries = [summary(row[is_image], row[~is_image]) for row in np.concatenate(of_seeds)]
    return {name: float(np.mean([values[name] for values in summaries])) for name in summaries[0]}


def rsum(record: Record, key: str, column: str = "rank") -> tuple[float, float, float]:
    """rsum of a cell with its 95 % interval over the record's clusters, as (rsum, low, high).

    The rsum of an arm with seeds is the mean over its seeds.
    """
    return mean_interval(per_query(record, key, column), record.clusters)


def difference(
    record: Record, first: str, second: str, column: str = "rank", other_column: str | None = None
) -> Difference:
    """rsum of cell `first` minus that of `second`, paired by query, over the record's clusters.

    ``column`` is the outcome that is read (`rank` or `rank_retrained`). ``other_column`` is that of `second`, if it is
    another one.
    """
    parts = [per_query(record, key, name) for key, name in ((first, column), (second, other_column or column))]
    return paired_difference(*parts, record.clusters)


def per_query(record: Record, key: str, column: str) -> np.ndarray:
    """`contributions` of a cell, ``(Q,)``, averaged over its seeds.

    Contributions are averaged and not ranks, because the recall of a mean rank is not the mean recall.
    """
    queries = record.items["query"]
    return np.mean([contributions(values, queries) for values in _outcomes(record, key, column)], axis=0)


def _outcomes(record: Record, key: str, column: str) -> list[np.ndarray]:
    """The outcome of a cell, or of each of its seeds that has it."""
    return [record.outcome(cell_key, column) for cell_key in record.having(key, column)]
