"""Sentences with human ratings of their sentiment, documents made of them, and words with such ratings.

The data are those of Hutto and Gilbert (ICWSM 2014), shipped in the source archive of vaderSentiment 0.5. Raters
marked every sentence with a whole number from -4 (extremely negative) to 4 (extremely positive), "with allowance for
[0] Neutral (or Neither, N/A)". The archive's description says two things that its files do not bear out:

- Every sentence has 20 raters or more. Amazon and news have exactly 20, tweets 20 to 99, but film reviews 15 to 29: of
  those 10,605 sentences 7,275 have fewer than 20. `Sentence.raters` has the number.
- The mean beside a text is that of its raw ratings. For 199 tweets it is not, by up to 1.1 (same sign, same side of the
  neutral band). The mean beside the text is taken, everywhere.

Film reviews are one-sentence excerpts; from which film or review is not in the files. Some tweets are contrived
variants of others: those that differ in case and punctuation alone ("Yay.", "YAY!") have one identity, those with
another word ("had the very best") do not.
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
NEUTRAL = 0.5  # means nearer to 0 have no label: the nearest step of the raters' scale is 0, "Neutral"
SALT = "rated-sentences"
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Sentence:
    """One rated sentence. ``mean`` is its mean rating in -4..4 from ``raters`` people.

    ``label`` is 1 (positive) or 0 (negative) by the sign of the mean, None inside the neutral band ``|mean| < 0.5``:
    its nearest whole number is "Neutral". A mean has a standard error of about 0.2 (0.16 to 0.22 by source), so that
    beyond the band the sign is what the raters think and not chance.
    ``split`` follows from ``identity`` alone: the words of the sentence (see `words`), or the review or article it is
    from where the data tell.
    """

    id: str  # SOURCE/ID, with the id of the data
    text: str
    mean: float
    raters: int
    label: int | None
    identity: str
    split: str


@dataclass(frozen=True)
class Document:
    """Sentences of one source, one label and one split, one after the other. ``tokens`` as counted by `documents`."""

    id: str  # SOURCE/SPLIT/LABEL/NUMBER
    text: str
    label: int
    sentences: tuple[str, ...]  # their ids
    tokens: int


def words(text: str) -> str:
    """What two texts share if they differ in case, punctuation and spaces only; a text without words is its own."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def sentences(source: str, split: str | None = None, *, neutral: bool = False) -> tuple[Sentence, ...]:
    """The labelled sentences of ``source`` in the order of the data; ``split`` keeps one of train, dev, test.

    ``source`` is ``movies``, ``amazon``, ``tweets`` or ``news``. ``neutral=True`` adds those in the neutral band, whose
    label is None. In texts, HTML entities are resolved and runs of spaces are one space. Sentences with the same words
    are in the same split, and so are all sentences of one Amazon review or one article of the news, and of reviews that
    share a sentence. Raises ``ValueError`` for an unknown source or split, ``assets.AssetError`` when the data cannot
    be had.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are {', '.join(SOURCES)}")
    if split is not None and split not in splits.SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(splits.SPLITS)}, or None for all")
    chosen = _read(source, assets.fetch(ASSET))
    return tuple(s for s in chosen if split in (None, s.split) and (neutral or s.label is not None))


def documents(
    source: str, split: str, count: Callable[[Sequence[str]], Sequence[int]], tokens: int = 256
) -> tuple[Document, ...]:
    """Longer inputs: sentences of ``source`` and ``split`` with the same label, joined by spaces.

    Nobody wrote them: neighbours have a label and a source in common and nothing else. Each sentence is in one document
    at most. Sentences go in the order of a hash of their id; a document is closed when the next one would bring it over
    ``tokens`` (special tokens included), and what is left over at the end is dropped, so that documents have about one
    length. Of sentences with the same words the first is taken, and none that is too long for a document of its own.
    ``count`` gives the number of tokens of each text, special tokens included (`text_towers.token_counts` with a
    tokenizer); it must be additive over words, as that of BERT is.

    Raises ``ValueError`` as `sentences` does, and if ``tokens`` has no room beyond the special tokens.
    """
    special = count([""])[0]
    if tokens <= special:
        raise ValueError(f"{tokens} tokens leave no room beside {special} special tokens: ask for more")
    if split not in splits.SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(splits.SPLITS)}: a document never mixes them")
    pool = {words(s.text): s for s in reversed(sentences(source, split))}.values()
    lengths = dict(zip([s.id for s in pool], count([s.text for s in pool]), strict=True))
    made = []
    for label, name in enumerate(LABELS):
        parts: list[Sentence] = []
        number, total = 0, special
        for sentence in sorted((s for s in pool if s.label == label), key=lambda s: splits.unit(f"{SALT}\n{s.id}")):
            length = lengths[sentence.id] - special
            if special + length > tokens:
                continue
            if total + length > tokens:
                ids, text = tuple(s.id for s in parts), " ".join(s.text for s in parts)
                made.append(Document(f"{source}/{split}/{name}/{number}", text, label, ids, total))
                parts, number, total = [], number + 1, special
            parts.append(sentence)
            total += length
    return tuple(made)


@cache
def lexicon() -> dict[str, float]:
    """Mean rating, -4 to 4, of each word that ten people rated by itself (the VADER lexicon, same authors), lower case.

    Entries that are no plain words (emoticons, digits in them) are left out. Raises ``assets.AssetError`` when the file
    cannot be had.
    """
    found = {}
    # Two emoticons with an accented letter make the file Latin-1.
    for line in (assets.fetch(LEXICON) / "lexicon.txt").read_bytes().decode("latin-1").splitlines():
        word, mean, *_ = line.split("\t")
        if word.isalpha():
            found[word.casefold()] = float(mean)
    return found


@cache
def _read(source: str, folder: Path) -> tuple[Sentence, ...]:
    """All sentences of ``source``, neutral ones too, from the files in ``folder``."""

    # UTF-8 with CRLF; one file of ratings starts with a byte order mark.
    def table(part: str) -> list[list[str]]:
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
    while (plain := html.unescape(text)) != text:  # "A.T.&amp;amp;T." is there too
        text = plain
    return " ".join(text.split())


def _identities(rows: Sequence[tuple[str, str]]) -> list[str]:
    """For ids and texts: the words; with ids ``GROUP_NUMBER`` the first group that theirs is tied to by equal words."""
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
