"""Recall: ranks against a naive loop, a case done by hand, ties, intervals on rsum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.statistics import paired_difference
from pitome_core.experiments.retrieval import recall


def naive_rank(row: list[float], right: list[bool]) -> int:
    """The place of the first right answer in the sorted gallery; wrong answers come first in a tie."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], right[i]))
    return 1 + next(place for place, i in enumerate(order) if right[i])


def random_answers(images: int, texts: int, seed: int) -> list[list[int]]:
    """Random answers: every image has a text, and every text has one or two images."""
    draw = np.random.default_rng(seed)
    first = list(range(images)) + draw.integers(images, size=texts - images).tolist()
    return [sorted({i, int(draw.integers(images))} if draw.random() < 0.3 else {i}) for i in first]


@given(st.integers(1, 7), st.integers(0, 9), st.integers(0, 10_000), st.sampled_from([1, 2, 100]))
def test_ranks_equal_a_naive_loop(images, more, seed, block):
    """In both directions, for all counts, with many ties, and for all sizes of block."""
    answers = random_answers(images, images + more, seed)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (images, 2), generator=draw).float()
    y = torch.randint(-2, 3, (images + more, 2), generator=draw).float()
    similarity = (x @ y.T).tolist()
    right = [[i in row for row in answers] for i in range(images)]
    of_images, of_texts = recall.both_ways(x, y, answers, block)
    assert of_images.tolist() == [naive_rank(similarity[i], right[i]) for i in range(images)]
    columns = [([row[t] for row in similarity], [row[t] for row in right]) for t in range(images + more)]
    assert of_texts.tolist() == [naive_rank(*column) for column in columns]


def test_a_case_done_by_hand():
    """Three images, five texts; image 0 has two texts, text 4 describes images 1 and 2."""
    similarity = torch.tensor([
        [0.9, 0.2, 0.9, 0.1, 0.3],  # best right: text 0 with .9, but text 2 is as similar: rank 2
        [0.1, 0.5, 0.8, 0.7, 0.2],  # right are 2 and 4: rank 1
        [0.4, 0.6, 0.1, 0.3, 0.5],  # right are 3 and 4: 4 has .5, behind .6: rank 2
    ])
    answers = [[0], [0], [1], [2], [1, 2]]
    right = torch.zeros(3, 5, dtype=torch.bool)
    for text, row in enumerate(answers):
        right[row, text] = True
    assert recall.ranks(similarity, right).tolist() == [2, 1, 2]
    # text 0: rank 1; 1: .2 behind .6 and .5; 2: .8 behind .9; 3: .3 behind .7; 4: best is .5, alone on top
    assert recall.ranks(similarity.T, right.T).tolist() == [1, 3, 2, 2, 1]
    values = recall.summary([2, 1, 2], [1, 3, 2, 2, 1])
    assert values["image_r1"] == pytest.approx(100 / 3) and values["text_r1"] == pytest.approx(40)
    assert values["image_r5"] == values["text_r5"] == values["text_r10"] == 100
    assert values["rsum"] == pytest.approx(100 / 3 + 40 + 400)
    assert (values["image_median"], values["text_median"]) == (2, 2)


def test_a_model_that_cannot_tell_finds_nothing():
    """Equal similarities, and NaN, give the worst rank."""
    answers = [[i] for i in range(20)]
    for value in (0.0, 1.0, torch.nan):
        of_images, of_texts = recall.both_ways(torch.full((20, 3), value), torch.ones(20, 3), answers)
        assert (of_images == 20).all() and (of_texts == 20).all()


def test_what_does_not_fit_is_refused():
    """The message has the numbers."""
    x, y = torch.eye(3), torch.eye(3)
    with pytest.raises(ValueError, match="3 texts and answers to 2"):
        recall.both_ways(x, y, [[0], [1]])
    with pytest.raises(ValueError, match="of 3: count from 0"):
        recall.both_ways(x, y, [[0], [1], [3]])
    with pytest.raises(ValueError, match="1 of 3 queries have no right answer, the first is 2"):
        recall.both_ways(x, y, [[0], [1], [1]])
    with pytest.raises(ValueError, match="1 of 3 queries have no right answer, the first is 0"):
        recall.both_ways(x, y, [[], [1], [0, 1, 2]])
    with pytest.raises(ValueError, match=r"\(2, 3\) and answers of \(3, 2\)"):
        recall.ranks(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no text query among 2"):
        recall.contributions([1, 2], ["image", "image"])


@pytest.fixture
def record(tmp_path):
    """Four images with nine texts; a cell with two seeds."""
    draw = np.random.default_rng(0)
    queries = ["image"] * 4 + ["text"] * 9
    items = {"id": list(map(str, range(13))), "query": queries, "identity": [*"abcc", *"aabbcccca"]}
    record = results.Record.open(tmp_path / "r.json", {"clusters": ["identity"]}, items)
    random = [Cell("random-prune", 0.9, seed=seed) for seed in (0, 1)]
    for cell in (Cell("whole"), Cell("tome", 0.9), *random):
        record.add(cell.key, cell.describe(), {"rank": draw.integers(1, 15, 13)}, {})
    return record


def test_intervals_are_on_rsum_itself(record):
    """The mean of the contributions is rsum, and differences pair them by query, cluster by cluster."""
    by_cell = {key: recall.summary(record.outcome(key, "rank")[:4], record.outcome(key, "rank")[4:])["rsum"]
               for key in record.cells}
    mean, low, high = recall.rsum(record, "whole")
    assert mean == pytest.approx(by_cell["whole"]) and low < mean < high
    assert recall.rsum(record, "random-prune@0.9")[0] == pytest.approx(
        (by_cell["random-prune@0.9/seed0"] + by_cell["random-prune@0.9/seed1"]) / 2)
    difference = recall.difference(record, "tome@0.9", "whole")
    assert difference.mean == pytest.approx(by_cell["tome@0.9"] - by_cell["whole"]) and difference.clusters == (3,)
    parts = [recall.contributions(record.outcome(k, "rank"), record.items["query"]) for k in ("tome@0.9", "whole")]
    assert difference == paired_difference(*parts, record.items["identity"])
    assert recall.table(record, "whole") == recall.summary(
        record.outcome("whole", "rank")[:4], record.outcome("whole", "rank")[4:])
    three = np.stack([record.outcome(key, "rank") for key in list(record.cells)[:3]], axis=1)  # (queries, models)
    record.add("three", {"arm": "three"}, {"rank": three}, {})
    expected = np.mean([by_cell[key] for key in list(by_cell)[:3]])
    assert recall.rsum(record, "three")[0] == pytest.approx(expected) == recall.table(record, "three")["rsum"]
    with pytest.raises(KeyError, match="no outcome 'rank_retrained'"):
        recall.rsum(record, "whole", "rank_retrained")
    with pytest.raises(KeyError, match="no cell 'tofu@0.9'"):
        recall.rsum(record, "tofu@0.9")


# --- repeats: draws of noise, seeds


def recorded(clusters, **cells) -> results.Record:
    """A record in memory: the first half of the queries are images; ranks ``(Q, ...)`` of every cell."""
    count = len(clusters)
    queries = [recall.IMAGE] * (count // 2) + [recall.TEXT] * (count - count // 2)
    items = {"id": list(range(count)), "query": queries, "identity": list(clusters)}
    stored = {
        key: {"run": 0, "outcomes": {"rank": ranks.tolist()}} | (
            {"arm": key.partition("@")[0], "keep": 0.9, "seed": int(key[-1])} if "/seed" in key else {})
        for key, ranks in cells.items()
    }
    return results.Record("nowhere.json", {"clusters": ["identity"]}, items, [{}], stored)


def scored(rng, labels, draws: int, own: float, shared: float) -> np.ndarray:
    """Ranks ``(Q, 3, draws)``: queries of a cluster have a level in common; noise is a query's own, or a draw's."""
    level = rng.normal(size=labels.max() + 1)[labels][:, None, None]
    noise = own * rng.normal(size=(len(labels), 3, draws)) + shared * rng.normal(size=draws)
    return np.ceil(np.exp(1.2 + level + noise))


def of_seeds(key: str, ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{key}/seed{seed}": ranks[..., seed] for seed in range(ranks.shape[-1])}


def test_repeats_are_seeds_or_draws():
    """rsum of each; a cell that was scored once has one. Where a cell has both, its seeds are the repeats."""
    rng, labels = np.random.default_rng(1), np.arange(40) % 10
    drawn, once = scored(rng, labels, 4, 1.0, 1.0), scored(rng, labels, 1, 1.0, 1.0)
    both = scored(rng, labels, 6, 1.0, 1.0).reshape(40, 3, 2, 3)
    record = recorded(labels, drawn=drawn, once=once, flat=once[..., 0], **of_seeds("random-prune@0.9", drawn),
                      **of_seeds("random-merge@0.9", both))
    by_hand = [recall.summary(drawn[:20, :, d].ravel(), drawn[20:, :, d].ravel())["rsum"] for d in range(4)]
    assert recall.repeats(record, "drawn") == pytest.approx(by_hand)
    assert recall.repeats(record, "random-prune@0.9") == pytest.approx(by_hand)
    assert recall.repeats(record, "once") == pytest.approx(recall.repeats(record, "flat"))
    counts = {key: len(recall.repeats(record, key)) for key in ("once", "random-merge@0.9", "random-merge@0.9/seed0")}
    assert list(counts.values()) == [1, 3, 2]
    for key in ("drawn", "random-merge@0.9"):
        mean = recall.repeats(record, key).mean()
        assert recall.rsum(record, key)[0] == pytest.approx(mean) == recall.table(record, key)["rsum"]


@pytest.mark.parametrize("kind, clusters", [("t", 12), ("bootstrap", 40)])
def test_the_scatter_is_added_in_quadrature(kind, clusters):
    """As a loop says; p is below .05 exactly where zero is outside; nothing changes without scatter or with two draws.
    """
    rng, labels = np.random.default_rng(2), np.arange(3 * clusters) % clusters
    a, b = scored(rng, labels, 5, 0.5, 0.6), scored(rng, labels, 3, 0.5, 0.4)
    record = recorded(labels, a=a, b=b, two=a[..., :2], once=b[..., 0], still=np.repeat(b[..., :1], 5, axis=2))
    parts = [recall.per_query(record, key, "rank") for key in ("a", "b")]
    plain = paired_difference(*parts, record.clusters)
    found = recall.difference(record, "a", "b")
    halves = []
    for key in ("a", "b"):
        of = recall.repeats(record, key)
        halves.append(stats.t.ppf(0.975, len(of) - 1) * stats.sem(of))
    assert (found.mean, found.items, found.clusters, found.kind) == (plain.mean, len(labels), (clusters,), kind)
    assert found.low == pytest.approx(plain.mean - math.hypot(plain.mean - plain.low, *halves))
    assert found.low < plain.low - 1
    assert found.high == pytest.approx(plain.mean + math.hypot(plain.high - plain.mean, *halves))
    assert found.detectable > plain.detectable and found.p > plain.p
    for first, second in (("two", "once"), ("once", "still"), ("once", "once")):
        parts = [recall.per_query(record, key, "rank") for key in (first, second)]
        assert recall.difference(record, first, second) == paired_difference(*parts, record.clusters)
    assert recall.rsum(record, "a")[2] - recall.rsum(record, "a")[0] > recall.rsum(record, "two")[2] - recall.rsum(
        record, "two")[0]


@pytest.mark.parametrize("clusters", [10, 30])
def test_p_inverts_the_wider_interval(clusters):
    """For differences from far below zero to far above; both sides are seen."""
    rng, labels, sides = np.random.default_rng(3), np.arange(3 * clusters) % clusters, []
    once = scored(rng, labels, 1, 0.2, 0.0)
    for shift in np.linspace(-1.5, 1.5, 25):
        moved = np.ceil(once * np.exp(shift) * np.exp(0.2 * rng.normal(size=(len(labels), 3, 5))))
        found = recall.difference(recorded(labels, once=once, moved=moved), "moved", "once")
        assert (found.p < 0.05) == (found.side != 0), found
        sides.append(found.side)
    assert {1, 0, -1} == set(sides)


def coverage(times: int, clusters: int, own: float, shared: float, draws: int = 5, seeds: bool = False) -> list[float]:
    """How often the interval of two cells of the same kind holds zero: with the scatter of repeats, and without it."""
    rng, held = np.random.default_rng(4), np.zeros(2)
    labels = np.arange(3 * clusters) % clusters
    for _ in range(times):
        level = rng.normal(size=clusters)
        cells = {}
        for key in ("random-prune@0.9", "random-merge@0.9"):
            noise = own * rng.normal(size=(len(labels), 3, draws)) + shared * rng.normal(size=draws)
            ranks = np.ceil(np.exp(1.2 + level[labels][:, None, None] + 0.5 * rng.normal(size=clusters)[labels][
                :, None, None] + noise))
            cells |= of_seeds(key, ranks) if seeds else {key: ranks}
        record = recorded(labels, **cells)
        keys = ("random-prune@0.9", "random-merge@0.9")
        parts = [recall.per_query(record, key, "rank") for key in keys]
        pair = recall.difference(record, *keys), paired_difference(*parts, record.clusters)
        held += [found.side == 0 for found in pair]
    return (held / times).tolist()


@pytest.mark.parametrize("times, clusters", [(400, 20), (80, 60)])
def test_intervals_cover_with_noise_of_every_picture(times, clusters):
    """As the draws of noise are: the interval over clusters holds it already, the wider one is a little too wide."""
    wider, plain = coverage(times, clusters, own=1.5, shared=0.0)
    assert 0.93 <= plain <= wider


@pytest.mark.parametrize("times, clusters, seeds", [(400, 20, True), (400, 20, False), (80, 60, True)])
def test_intervals_cover_with_noise_that_pictures_share(times, clusters, seeds):
    """As the seeds of an arm are: without their scatter the interval is too narrow."""
    wider, plain = coverage(times, clusters, own=0.3, shared=0.5, seeds=seeds)
    assert plain < 0.9 and 0.93 <= wider


def test_a_live_run_lies_in_the_recorded_scatter():
    """In about 99 of 100 runs of the same kind, and not where the model is another one."""
    rng, labels = np.random.default_rng(5), np.arange(80)
    inside, other = 0, 0
    for _ in range(300):
        ranks = scored(rng, labels, 6, 1.5, 0.0)
        record, queries = recorded(labels, a=ranks[..., :5]), range(24)
        low, high = recall.live_range(record, "a", queries)
        inside += low <= recall.recalls(ranks[:24, :, 5]) <= high
        other += low <= recall.recalls(6 * ranks[:24, :, 5]) <= high
    assert inside >= 294 and other <= 30


def test_a_live_run_without_scatter_may_differ_in_one_query():
    """Across one threshold, in all heads; so it is with one draw. Queries of both kinds have no range together."""
    ranks = scored(np.random.default_rng(6), np.arange(40), 1, 1.0, 0.0)
    ranks[:3] = 1
    still = recorded(np.arange(40), still=np.repeat(ranks, 5, axis=2), once=ranks[..., 0])
    for key in ("still", "once"):
        low, high = recall.live_range(still, key, range(12))
        moved, far = ranks[:12].copy(), ranks[:12].copy()
        moved[0], far[:2] = 2, 6
        assert low <= recall.recalls(ranks[:12]) <= high and low <= recall.recalls(moved) + 1e-9
        assert recall.recalls(far) < low
    with pytest.raises(ValueError, match="40 queries of 2 kinds .image, text.: pass one kind"):
        recall.live_range(still, "once", range(40))
