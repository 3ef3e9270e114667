"""Metrics of visual question answering: VQA accuracy (VQAv2, TextVQA) and exact match (GQA).

They are written from the public definitions of the tasks: Antol et al., "VQA: Visual Question Answering" (ICCV 2015),
with the processing of answers that its evaluation page lists; Singh et al., "Towards VQA models that can read" (CVPR
2019), which uses the same metric; and Hudson and Manning, "GQA" (CVPR 2019).

A metric first normalises the prediction and the answers and then compares them. `register_metric` adds another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ANSWERS = 10  # people who answer each question of VQAv2 and TextVQA
AGREE = 3  # how many of them must give an answer for it to be fully right


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: what `metric` calls it.
        normalise: maps an answer to the text that is compared.
        score: ``score(prediction, answers)`` of normalised texts, from 0 to 1.
    """

    name: str
    normalise: Callable[[str], str]
    score: Callable[[str, Sequence[str]], float]

    def __call__(self, prediction: str, answers: Sequence[str]) -> float:
        """Score of a prediction, 0 to 1. ``answers`` are the answers of all people. Raises as ``score`` does."""
        return self.score(self.normalise(prediction), [self.normalise(answer) for answer in answers])


_METRICS: dict[str, Metric] = {}


def metric(name: str) -> Metric:
    """The metric with this name. Raises ``KeyError`` for a name that is not registered."""
    if name not in _METRICS:
        raise KeyError(f"no metric {name!r}; there are {', '.join(_METRICS)}, and register_metric adds others")
    return _METRICS[name]


def register_metric(
    name: str, normalise: Callable[[str], str], score: Callable[[str, Sequence[str]], float]
) -> Metric:
    """Add a metric and return it. Raises ``ValueError`` for a name that is taken."""
    if name in _METRICS:
        raise ValueError(f"there is a metric {name!r} already; choose another name")
    _METRICS[name] = Metric(name, normalise, score)
    return _METRICS[name]


def scores(name: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Score of every question, ``(Q,)`` float64 from 0 to 1; their mean is the accuracy on the benchmark.

    ``answers`` has a list for each of the Q predictions. Raises ``ValueError`` if the two have different lengths, and
    as the metric does, with the index of the question.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions: give one for each")
    score = metric(name)
    values = np.empty(len(predictions))
    for i, (prediction, row) in enumerate(zip(predictions, answers, strict=True)):
        try:
            values[i] = score(prediction, row)
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from None
    return values


# --- scores


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy: the mean of ``min(matches / 3, 1)`` over the ten subsets of nine answers.

    If m of the ten answers equal the prediction, then m subsets have m - 1 matches and 10 - m subsets have m. For
    m = 0, 1, 2, 3 the accuracy is 0, 0.3, 0.6, 0.9, and from four on it is 1. For example, m = 1 gives one subset
    without a match and nine with 1/3, so 0.3. Raises ``ValueError`` if there are not ten answers.
    """
    if len(answers) != ANSWERS:
        raise ValueError(f"{len(answers)} answers: VQA accuracy is defined on {ANSWERS}, give all of them")
    m = sum(answer == prediction for answer in answers)
    return (m * min(max(m - 1, 0), AGREE) + (ANSWERS - m) * min(m, AGREE)) / (AGREE * ANSWERS)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers (GQA has one), else 0. Raises ``ValueError`` without an answer."""
    if not answers:
        raise ValueError("no answer to compare with: give at least 1")
    return float(prediction in answers)


# --- normalisation

ARTICLES = {"a", "an", "the"}
_WORDS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
# Without apostrophe and colon, because "girl's" is no plural and "2:50" is a time.
PUNCTUATION = set(';/[]"{}()=+\\_-><@`,?!')
_PERIOD = re.compile(r"\.(?!\d)")  # not before a digit, where it is a decimal point
_COMMA = re.compile(r"(?<=\d),(?=\d)")  # between digits, where it separates thousands


def _contractions() -> dict[str, str]:
    """``{without apostrophe: with apostrophe}``, as in ``{"dont": "don't"}``.

    Contractions that are another word without their apostrophe are left out: "its", "were", "well", "hell", "shell",
    "ill", "wed", "shed", "id" and "lets".
    """
    negated = "ai are ca could did does do had has have is might must need sha should was were wo would".split()
    table = {f"{verb}nt": f"{verb}n't" for verb in negated}
    words_by_ending = {
        "d": "he how it something that there they what who you",
        "ll": "it something that there they what who you",
        "re": "they what you",
        "s": "he here how it she somebody someone something that there what when where who",
        "ve": "could i might must should they we what who would you",
    }
    for ending, words in words_by_ending.items():
        table |= {f"{word}{ending}": f"{word}'{ending}" for word in words.split()}
    table |= {word.replace("'", ""): word for word in ("i'm", "o'clock", "ma'am", "y'all")}
    del table["its"]
    return table


CONTRACTIONS = _contractions()


def normalise_vqa(answer: str) -> str:
    """An answer in the form in which VQA accuracy compares it.

    1. Letters become lower case.
    2. Commas between digits are removed. Other punctuation becomes a space; apostrophes and colons stay.
    3. Periods are removed, unless they are decimal points.
    4. Number words become digits, articles are removed, and contractions get their apostrophe.
    5. Runs of white space become one space.

    For example, ``normalise_vqa("The two cats, 1,000.")`` is ``"2 cats 1000"``.
    """
    text = _COMMA.sub("", answer.lower())
    text = "".join(" " if letter in PUNCTUATION else letter for letter in text)
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_gqa(answer: str) -> str:
    """An answer in the form in which GQA compares it: lower case, single spaces, and no period at its end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


register_metric("vqav2", normalise_vqa, vqa_accuracy)
register_metric("gqa", normalise_gqa, exact_match)
register_metric("textvqa", normalise_vqa, vqa_accuracy)
