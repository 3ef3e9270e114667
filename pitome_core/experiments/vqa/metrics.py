"""Metrics of visual question answering: VQA accuracy (VQAv2, TextVQA) and exact match (GQA).

Written from the tasks' public definitions: Antol et al., "VQA: Visual Question Answering" (ICCV 2015) with the answer
processing that its evaluation page lists, Singh et al., "Towards VQA models that can read" (CVPR 2019), which takes the
same metric, and Hudson and Manning, "GQA" (CVPR 2019). A metric is a normalisation of answers and a score of normalised
ones; another benchmark joins with `register_metric`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ANSWERS = 10  # people who answer each question of VQAv2 and TextVQA
AGREE = 3  # of them who have to agree with an answer for it to be right


@dataclass(frozen=True)
class Metric:
    """``normalise`` maps an answer to what is compared; ``score(prediction, answers)`` of normalised ones is 0 to 1."""

    name: str
    normalise: Callable[[str], str]
    score: Callable[[str, Sequence[str]], float]

    def __call__(self, prediction: str, answers: Sequence[str]) -> float:
        """Score of a prediction, 0 to 1. ``answers`` are all that people gave. Raises as ``score`` does."""
        return self.score(self.normalise(prediction), [self.normalise(answer) for answer in answers])


_METRICS: dict[str, Metric] = {}


def metrics() -> tuple[str, ...]:
    """Names of the metrics there are."""
    return tuple(_METRICS)


def metric(name: str) -> Metric:
    """The metric of a benchmark. Raises ``KeyError`` for one that is not registered."""
    if name not in _METRICS:
        raise KeyError(f"no metric {name!r}; there are {', '.join(_METRICS)}, and register_metric adds others")
    return _METRICS[name]


def register_metric(
    name: str, normalise: Callable[[str], str], score: Callable[[str, Sequence[str]], float]
) -> Metric:
    """Add a metric under a name of its own; raises ``ValueError`` for a name that is taken."""
    if name in _METRICS:
        raise ValueError(f"there is a metric {name!r} already; choose another name")
    _METRICS[name] = Metric(name, normalise, score)
    return _METRICS[name]


def scores(name: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Score of every question, ``(Q,)`` float64 in 0 to 1; their mean is the benchmark's accuracy.

    Raises ``ValueError`` for numbers that differ, and as the metric does, naming the question's place.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions: give one for each")
    of = metric(name)
    found = np.empty(len(predictions))
    for i, (prediction, row) in enumerate(zip(predictions, answers, strict=True)):
        try:
            found[i] = of(prediction, row)
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from None
    return found


# --- scores


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the ten subsets of nine answers of min(matches / 3, 1).

    With m of the ten answers equal to the prediction, a subset that leaves out one of those m has m - 1 matches, any
    other has m: 0, .3, .6, .9, and 1 from four on. Raises ``ValueError`` where there are not ten answers.
    """
    if len(answers) != ANSWERS:
        raise ValueError(f"{len(answers)} answers: VQA accuracy is defined on {ANSWERS}, give all of them")
    m = sum(answer == prediction for answer in answers)
    return (m * min(max(m - 1, 0), AGREE) + (ANSWERS - m) * min(m, AGREE)) / (AGREE * ANSWERS)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers (GQA has one), else 0. `ValueError` without an answer."""
    if not answers:
        raise ValueError("no answer to compare with: give at least 1")
    return float(prediction in answers)


# --- normalisation

ARTICLES = {"a", "an", "the"}
_WORDS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
# Apostrophe and colon stay: "girl's" is no plural, 2:50 is a time.
PUNCTUATION = set(';/[]"{}()=+\\_-><@`,?!')
_PERIOD = re.compile(r"\.(?!\d)")  # before a digit it is a decimal point
_COMMA = re.compile(r"(?<=\d),(?=\d)")  # of thousands


def _contractions() -> dict[str, str]:
    """Contractions by what they are without an apostrophe, those alone that are no other word that way.

    So "its", "were", "well", "hell", "shell", "ill", "wed", "shed", "id" and "lets" stay as they are.
    """
    negated = "ai are ca could did does do had has have is might must need sha should was were wo would".split()
    found = {f"{verb}nt": f"{verb}n't" for verb in negated}
    parts = {
        "d": "he how it something that there they what who you",
        "ll": "it something that there they what who you",
        "re": "they what you",
        "s": "he here how it she somebody someone something that there what when where who",
        "ve": "could i might must should they we what who would you",
    }
    for ending, words in parts.items():
        found |= {f"{word}{ending}": f"{word}'{ending}" for word in words.split()}
    found |= {word.replace("'", ""): word for word in ("i'm", "o'clock", "ma'am", "y'all")}
    del found["its"]
    return found


CONTRACTIONS = _contractions()


def normalise_vqa(answer: str) -> str:
    """An answer as VQA accuracy compares it.

    Lower case; commas between digits go and other punctuation becomes a space, but apostrophes and colons stay; periods
    go unless they are decimal points; number words become digits; articles go; contractions get their apostrophe;
    white space becomes single spaces.
    """
    text = _COMMA.sub("", answer.lower())
    text = "".join(" " if letter in PUNCTUATION else letter for letter in text)
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_gqa(answer: str) -> str:
    """An answer as GQA compares it: lower case, single spaces, without a period at its end."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()


register_metric("vqav2", normalise_vqa, vqa_accuracy)
register_metric("gqa", normalise_gqa, exact_match)
register_metric("textvqa", normalise_vqa, vqa_accuracy)
