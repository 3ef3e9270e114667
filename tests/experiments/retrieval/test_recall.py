"""Recall: ranks against a naive loop, a case done by hand, ties, intervals on rsum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
