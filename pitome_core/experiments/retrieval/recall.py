"""Recall of image-text retrieval in both directions, with any number of texts per image and images per text.

A query sorts the whole gallery by similarity. Its rank is the place of its first right answer, counted from 1. In a tie
the wrong answer comes first, so that a model which gives the same similarity to everything has the worst ranks. R@k is
the share of queries with a rank of at most k, in per cent. rsum is the sum of R@1, R@5 and R@10 of both directions, at
most 600, as papers on retrieval report it.

A cell may have been scored several times: in each draw of noise, or with each seed of an arm that draws at random. Its
rsum is the mean over these *repeats*, and their scatter is part of the interval (`difference`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from pitome_core.experiments.records.results import Record
from pitome_core.experiments.records.statistics import Difference, paired_difference

AT = (1, 5, 10)
IMAGE, TEXT = "image", "text"  # the two kinds of query
LEAST = 3  # repeats that say something about their scatter: the t quantile of two is 12.7
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
    """`summary` of a cell, averaged over its repeats and over the models whose ranks are in one outcome."""
    is_image = np.asarray(record.items["query"]) == IMAGE
    of_seeds = [values.reshape(len(values), -1).T for values in _outcomes(record, key, column)]  # (models, Q) each
    summaries = [summary(row[is_image], row[~is_image]) for row in np.concatenate(of_seeds)]
    return {name: float(np.mean([values[name] for values in summaries])) for name in summaries[0]}


def rsum(record: Record, key: str, column: str = "rank") -> tuple[float, float, float]:
    """rsum of a cell with its 95 % interval over the record's clusters and the cell's repeats, as (rsum, low, high)."""
    queries = per_query(record, key, column)
    found = _with_scatter(queries, np.zeros_like(queries), record, [(key, column)])
    return found.mean, found.low, found.high


def difference(
    record: Record, first: str, second: str, column: str = "rank", other_column: str | None = None
) -> Difference:
    """rsum of cell `first` minus that of `second`, paired by query, over the record's clusters and the cells' repeats.

    ``column`` is the outcome that is read (`rank` or `rank_retrained`). ``other_column`` is that of `second`, if it is
    another one.

    The interval is that of `paired_difference` over the clusters, widened by the scatter of repeats. The mean of R
    repeats with standard deviation s has a half width of t(R - 1) s / sqrt(R). It is added to each half width of the
    interval in quadrature, for both cells: the sum of independent errors of which each has an interval of its own (Zou,
    Donner 2008, Statistics in Medicine 27(10), 1693-1702). Noise that is another in every picture is in the interval
    over clusters already, so that intervals are rather too wide than too narrow. What all pictures have in common, as
    the seed of an arm, is not. Fewer than `LEAST` repeats say next to nothing of their scatter, and none enters.
    """
    cells = [(first, column), (second, other_column or column)]
    return _with_scatter(*(per_query(record, *cell) for cell in cells), record, cells)


def per_query(record: Record, key: str, column: str) -> np.ndarray:
    """`contributions` of a cell, ``(Q,)``, averaged over its repeats.

    Contributions are averaged and not ranks, because the recall of a mean rank is not the mean recall.
    """
    queries = record.items["query"]
    return np.mean([contributions(values, queries) for values in _outcomes(record, key, column)], axis=0)


def repeats(record: Record, key: str, column: str = "rank") -> np.ndarray:
    """rsum of a cell in each of its repeats, ``(R,)``: with each of its seeds, or in each draw of noise."""
    outcomes = _repeated(record, key, column)
    return np.array([contributions(values, record.items["query"]).mean() for values in outcomes])


def live_range(record: Record, key: str, queries: Sequence[int], column: str = "rank") -> tuple[float, float]:
    """Where R@1 + R@5 + R@10 of these queries, all of one kind, lies if they are scored anew: (low, high).

    Another machine rounds otherwise, and for a plan that hangs on the last digit that is one more draw of noise. So
    the range holds one more repeat in 99 of 100 cases: mean -/+ t(R - 1) s sqrt(1 + 1 / R) of the recorded repeats. It
    is wider by what the protocol allows to differ anywhere: one query in a hundred, or one, that crosses one of the
    three thresholds. That is all the width of a cell without enough repeats.

    Raises ``ValueError`` if queries of both kinds are among them: each kind has a gallery of its own.
    """
    kinds = {record.items["query"][query] for query in queries}
    if len(kinds) != 1:
        raise ValueError(f"{len(queries)} queries of {len(kinds)} kinds ({', '.join(sorted(kinds))}): pass one kind")
    found = [recalls(values[list(queries)]) for values in _repeated(record, key, column)]
    allowed = 100 * max(1, len(queries) // 100) / len(queries)
    if len(found) >= LEAST:
        allowed += student.ppf(0.995, len(found) - 1) * np.std(found, ddof=1) * math.sqrt(1 + 1 / len(found))
    return float(np.mean(found) - allowed), float(np.mean(found) + allowed)


def recalls(values: np.ndarray) -> float:
    """R@1 + R@5 + R@10 of ranks ``(Q, ...)`` of one kind of query, averaged over whatever else the ranks are of."""
    return float(sum(100 * (np.asarray(values) <= k).mean() for k in AT))


def _outcomes(record: Record, key: str, column: str) -> list[np.ndarray]:
    """The outcome of a cell, or of each of its seeds that has it."""
    return [record.outcome(cell_key, column) for cell_key in record.having(key, column)]


def _repeated(record: Record, key: str, column: str) -> list[np.ndarray]:
    """Ranks ``(Q, ...)`` of each repeat of a cell: of its seeds if it has several, else of its draws of noise."""
    outcomes = _outcomes(record, key, column)
    if len(outcomes) == 1 and outcomes[0].ndim == 3:
        return list(np.moveaxis(outcomes[0], 2, 0))
    return outcomes


def _with_scatter(
    first: np.ndarray, second: np.ndarray, record: Record, cells: Sequence[tuple[str, str]]
) -> Difference:
    """`paired_difference` of contributions, widened by the scatter of the cells' repeats."""
    found = paired_difference(first, second, record.clusters)
    scatter = [values for cell in cells if len(values := repeats(record, *cell)) >= LEAST]
    if math.isnan(found.low) or not any(values.std() > 0 for values in scatter):
        return found

    def wider(width: float, *levels: float) -> float:
        """The width together with that of the mean repeat of each cell; ``levels`` of the quantiles in it."""
        return math.hypot(width, *(
            sum(student.ppf(level, len(values) - 1) for level in levels) * values.std(ddof=1) / math.sqrt(len(values))
            for values in scatter
        ))

    below, above = found.mean - found.low, found.high - found.mean
    low, high = found.mean - wider(below, 0.975), found.mean + wider(above, 0.975)
    # In the narrower interval this value is where zero is in the wider one, in half widths: so p inverts the interval.
    shrunk = below / (found.mean - low) if found.mean > 0 else above / (high - found.mean)
    null = found.mean * (1 - shrunk)
    p = paired_difference(first - null, second, record.clusters).p
    return replace(found, low=low, high=high, p=p, detectable=wider(found.detectable, 0.975, 0.8))
