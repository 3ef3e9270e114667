"""Metrics of question answering: cases done by hand, and the definition as a slow oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitome_core.experiments.vqa import metrics as vqa_metrics


def leave_one_out(prediction: str, answers: list[str]) -> float:
    """The definition in loops: for each subset of nine answers the matches over three, at most one; then their mean."""
    values = []
    for subset in itertools.combinations(range(len(answers)), len(answers) - 1):
        matches = 0
        for i in subset:
            if answers[i] == prediction:
                matches += 1
        values.append(min(matches / 3, 1))
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "matches, expected",
    [
        (0, 0.0),
        (1, 0.3),  # nine subsets keep the match: 1/3 each; one leaves it out: (9 x 1/3 + 0) / 10
        (2, 0.6),  # eight keep both: 2/3; two keep one: (8 x 2/3 + 2 x 1/3) / 10
        (3, 0.9),  # seven keep three: 1; three keep two: (7 + 3 x 2/3) / 10
        (4, 1.0),  # every subset has three or four
        (10, 1.0),
    ],
)
def test_accuracy_by_hand(matches, expected):
    answers = ["yes"] * matches + ["no"] * (10 - matches)
    assert vqa_metrics.vqa_accuracy("yes", answers) == pytest.approx(expected)
    assert leave_one_out("yes", answers) == pytest.approx(expected)


@given(st.sampled_from("abcd"), st.lists(st.sampled_from("abcd"), min_size=10, max_size=10))
def test_accuracy_equals_the_definition(prediction, answers):
    assert vqa_metrics.vqa_accuracy(prediction, answers) == pytest.approx(leave_one_out(prediction, answers))


@pytest.mark.parametrize(
    "answer, normalised",
    [
        ("Yes", "yes"),
        ("  Dark\tBlue \n", "dark blue"),
        ("the Cat", "cat"),
        ("a an the", ""),
        ("theatre", "theatre"),  # an article is a word, not a part of one
        ("Two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("someone", "someone"),
        ("100,978", "100978"),  # a comma between digits goes
        ("red, white", "red white"),  # any other becomes a space
        ("red,white", "red white"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("(left)", "left"),
        ("yes!", "yes"),
        ("3.5", "3.5"),  # a decimal point stays
        (".5", ".5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        ("girl's", "girl's"),
        ("2:50 p.m.", "2:50 pm"),
        ("dont", "don't"),
        ("Its", "its"),  # a word of its own
        ("isn't".replace("'", ""), "isn't"),
        ("12 o'clock".replace("'", ""), "12 o'clock"),
        ("it's a dog.", "it's dog"),
    ],
)
def test_normalisation_of_vqa(answer, normalised):
    assert vqa_metrics.normalise_vqa(answer) == normalised
    assert vqa_metrics.normalise_vqa(normalised) == normalised  # normalising twice changes nothing


@given(st.text(alphabet="aAnthe two.,'-/:!1 0\t", max_size=20))
def test_normalisation_leaves_single_spaces_and_nothing_to_replace(answer):
    text = vqa_metrics.normalise_vqa(answer)
    assert text == " ".join(text.split()) == text.lower()
    assert not set(text) & vqa_metrics.PUNCTUATION
    assert not set(text.split()) & ({"a", "an", "the"} | {"two", "one", "none"})


def test_contractions_are_what_they_abbreviate():
    assert len(vqa_metrics.CONTRACTIONS) > 60
    for bare, written in vqa_metrics.CONTRACTIONS.items():
        assert written.count("'") == 1 and written.replace("'", "") == bare
    ambiguous = {"its", "were", "well", "hell", "shell", "ill", "wed", "shed", "id", "lets", "whore"}
    assert not ambiguous & set(vqa_metrics.CONTRACTIONS)


@pytest.mark.parametrize(
    "prediction, answers, expected",
    [("Yes.", ["yes"], 1), ("yes it is", ["yes"], 0), ("the left", ["left"], 0), ("T-Shirt", ["t-shirt"], 1)],
)
def test_gqa_is_exact(prediction, answers, expected):
    """Articles and hyphens count in GQA."""
    assert vqa_metrics.metric("gqa")(prediction, answers) == expected


def test_both_sides_are_normalised():
    """Three people write one answer in three ways: 7 subsets have three of them, 3 have two, so 0.9."""
    answers = ["The Stop sign", "stop-sign", "a stop sign!"] + ["yield"] * 7
    for name in ("vqav2", "textvqa"):
        assert vqa_metrics.metric(name)("Stop sign.", answers) == pytest.approx(0.9)


def test_scores_of_a_benchmark():
    values = vqa_metrics.scores("vqav2", ["2", "red"], [["two"] * 10, ["red"] + ["blue"] * 9])
    assert values.dtype == np.float64 and values.tolist() == pytest.approx([1.0, 0.3])


def test_another_benchmark_plugs_in(monkeypatch):
    monkeypatch.setattr(vqa_metrics, "_METRICS", dict(vqa_metrics._METRICS))
    vqa_metrics.register_metric("letters", str.upper, vqa_metrics.exact_match)
    assert vqa_metrics.scores("letters", ["b"], [["B"]]).tolist() == [1.0]
    with pytest.raises(ValueError, match="metric 'letters' already"):
        vqa_metrics.register_metric("letters", str.lower, vqa_metrics.exact_match)


def test_errors():
    with pytest.raises(KeyError, match="no metric 'mme'; there are vqav2, gqa, textvqa"):
        vqa_metrics.metric("mme")
    with pytest.raises(ValueError, match="9 answers: VQA accuracy is defined on 10"):
        vqa_metrics.vqa_accuracy("a", ["a"] * 9)
    with pytest.raises(ValueError, match="question 1: no answer to compare with"):
        vqa_metrics.scores("gqa", ["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 predictions for 1 questions"):
        vqa_metrics.scores("gqa", ["a", "b"], [["a"]])
