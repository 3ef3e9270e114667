"""Sentences with human ratings of their sentiment, documents made of them, and single words with such ratings.

The data are those of Hutto and Gilbert (ICWSM 2014), in the source archive of vaderSentiment 0.5. Raters gave every
sentence a whole number from -4 (extremely negative) to 4 (extremely positive), "with allowance for [0] Neutral (or
Neither, N/A)". Two statements in the archive's description do not agree with its files:

- "Every sentence has 20 raters or more." Amazon and news have exactly 20 and tweets 20 to 99, but film reviews have 15
  to 29: 7,275 of the 10,605 sentences have fewer than 20. `Sentence.raters` has the number.
- "The mean in the file of texts is that of the raw ratings." For 199 tweets the two differ by up to 1.1, with the same
  sign and on the same side of the neutral band. This module always uses the mean in the file of texts.

Film reviews are excerpts of one sentence; the files do not say from which film or review. Some tweets are variants of
others. Variants that differ in case and punctuation alone ("Yay.", "YAY!") have one identity; variants with another
word ("had the very best") have identities of their own.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pitome_core.experiments import assets
from pitome_core.experiments.data import splits

ASSET, LEXICON = "rated-sentences", "sentiment-lexicon"
SOURCES = {
    "movies": "movieReviewSnippets",  # Rotten Tomatoes
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "news": "nytEditorialSnippets",  # opinion pages of the New York Times
}
NEUTRAL = 0.5  # means nearer to 0 have no label, because the nearest step of the raters' scale is 0, "Neutral"
SALT = "rated-sentences"
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Sentence:
    """One rated sentence.

    Attributes:
        id: ``SOURCE/ID``, with the ID of the data.
        text: the sentence.
        mean: its mean rating, from -4 to 4.
        raters: how many people rated it.
        label: 1 (positive) or 0 (negative) by the sign of the mean, or None in the neutral band ``|mean| < 0.5``, where
            the nearest whole number is "Neutral". The standard error of a mean is about 0.2 (0.16 to 0.22 by source).
            Beyond the band the sign is therefore the raters' opinion and not chance.
        identity: the words of the sentence (see `words`), or the review or article that it is from where the data say
            so.
        split: ``train``, ``dev`` or ``test``, from the identity alone.
    """

    id: str
    text: str
    mean: float
    raters: int
    label: int | None
    identity: str
    split: str


@dataclass(frozen=True)
class Document:
    """Several sentences of one source, one label and one split, joined to one text.

    ``id`` is ``SOURCE/SPLIT/LABEL/NUMBER``, ``sentences`` the ids of the sentences, and ``tokens`` the length of the
    text, as `documents` counted it.
    """

    id: str
    text: str
    label: int
    sentences: tuple[str, ...]
    tokens: int


def words(text: str) -> str:
    """The words of a text in lower case, joined by spaces; the text itself if it has no words.

    Two texts that differ in case, punctuation and spaces alone have the same words: ``words("Yay!") == "yay"``.
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def sentences(source: str, split: str | None = None, *, neutral: bool = False) -> tuple[Sentence, ...]:
    """The labelled sentences of ``source`` in the order of the data; ``split`` keeps one of train, dev and test.

    ``source`` is ``movies``, ``amazon``, ``tweets`` or ``news``. ``neutral=True`` adds the sentences in the neutral
    band, whose label is None. In texts, HTML entities are resolved and runs of spaces are one space.

    Sentences with the same words are in the same split. So are all sentences of one Amazon review or one news article,
    and all sentences of reviews or articles that have a sentence in common.

    Raises ``ValueError`` for an unknown source or split, ``assets.AssetError`` if the data cannot be fetched.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    if split is not None and split not in splits.SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(splits.SPLITS)}, or None for all")
    return tuple(s for s in _read(source, assets.fetch(ASSET)) if split in (None, s.split) and (neutral or s.label is
    not None))


def documents(
    source: str, split: str, count: Callable[[Sequence[str]], Sequence[int]], tokens: int = 256
) -> tuple[Document, ...]:
    """Longer inputs: sentences of ``source`` and ``split`` with the same label, joined by spaces.

    No person wrote these documents: neighbouring sentences have nothing in common but their label and source. The
    sentences are taken in the order of a hash of their id. A document ends when the next sentence would make it longer
    than ``tokens`` (special tokens included), and the unfinished document at the end is dropped, so that all have about
    the same length. Each sentence is in at most one document. Of sentences with the same words only the first is used,
    and sentences that are too long for a document are not used.

    ``count`` returns the number of tokens of each text, special tokens included (`bert.token_counts` with a tokenizer).
    The count must be additive over words, as that of BERT is.

    Raises ``ValueError`` as `sentences` does, and if ``tokens`` has no room beyond the special tokens.
    """
    special = count([""])[0]
    if tokens <= special:
        raise ValueError(f"{tokens} tokens leave no room beside {special} special tokens: ask for more")
    if split not in splits.SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(splits.SPLITS)}: a document never mixes them")
    pool = {words(s.text): s for s in reversed(sentences(source, split))}.values()
    lengths = dict(zip([s.id for s in pool], count([s.text for s in pool]), strict=True))
    closed: list[Document] = []
    for label, name in enumerate(LABELS):
        parts: list[Sentence] = []
        number, total = 0, special
        for sentence in sorted((s for s in pool if s.label == label), key=lambda s: splits.unit(SALT, s.id)):
            length = lengths[sentence.id] - special
            if special + length > tokens:
                continue
            if total + length > tokens:
                ids, text = tuple(s.id for s in parts), " ".join(s.text for s in parts)
                closed.append(Document(f"{source}/{split}/{name}/{number}", text, label, ids, total))
                parts, number, total = [], number + 1, special
            parts.append(sentence)
            total += length
    return tuple(closed)


@cache
def lexicon() -> dict[str, float]:
    """``{word: mean rating}``: single words, in lower case, that ten people rated from -4 to 4.

    It is the VADER lexicon of the same authors, without the entries that are no plain words (emoticons, entries with
    digits). Raises ``assets.AssetError`` if the file cannot be fetched.
    """
    ratings = {}
    # The file is Latin-1, because two emoticons have an accented letter.
    for line in (assets.fetch(LEXICON) / "lexicon.txt").read_bytes().decode("latin-1").splitlines():
        word, mean, *_ = line.split("\t")
        if word.isalpha():
            ratings[word.casefold()] = float(mean)
    return ratings


@cache
def _read(source: str, folder: Path) -> tuple[Sentence, ...]:
    """All sentences of ``source``, neutral ones too, from the files in ``folder``."""

    def table(part: str) -> list[list[str]]:  # UTF-8 with CRLF; one file of ratings has a byte order mark
        content = (folder / f"{SOURCES[source]}_{part}.txt").read_bytes().decode("utf-8-sig")
        return [line.split("\t") for line in content.split("\r\n") if line]

    texts, ratings = table("GroundTruth"), table("anonDataRatings")
    raters = {key: len(ast.literal_eval(raw)) for key, _, _, raw in ratings}
    rows = [(key, float(mean), _clean(text)) for key, mean, text in texts]
    identities = _identities([(key, text) for key, _, text in rows])
    return tuple(
        Sentence(
            id=f"{source}/{key}",
            text=text,
            mean=mean,
            raters=raters[key],
            label=None if abs(mean) < NEUTRAL else int(mean > 0),
            identity=identity,
            split=splits.split_of(identity, f"{SALT}-{source}"),
        )
        for (key, mean, text), identity in zip(rows, identities, strict=True)
    )


def _clean(text: str) -> str:
    while (plain := html.unescape(text)) != text:  # more than once, because of texts like "A.T.&amp;amp;T."
        text = plain
    return " ".join(text.split())


def _identities(rows: Sequence[tuple[str, str]]) -> list[str]:
    """The identity of each row (id, text).

    It is the words of the text. If the ids have the form ``GROUP_NUMBER``, it is the group; groups that have a sentence
    with equal words in common are one identity, named after the first of them.
    """
    if not all("_" in key for key, _ in rows):
        return [words(text) for _, text in rows]
    groups = [key.partition("_")[0] for key, _ in rows]
    root = {group: group for group in groups}

    def find(group: str) -> str:
        while root[group] != group:
            group = root[group]
        return group

    first: dict[str, str] = {}
    for group, (_, text) in zip(groups, rows, strict=True):
        ends = sorted((find(group), find(first.setdefault(words(text), group))), key=int)
        root[ends[1]] = ends[0]
    return [f"group {find(group)}" for group in groups]
