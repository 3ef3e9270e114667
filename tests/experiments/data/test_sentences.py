"""The rated sentences: fixed counts, peculiarities of the files, splits and documents."""

import collections
import re

import pytest

from pitome_core.experiments import assets
from pitome_core.experiments.data import sentences, splits
from pitome_core.experiments.data.sentences import Sentence
from pitome_core.experiments.models import bert

# All, labelled, positive; identities; (labelled, positive) of train, dev, test. Recorded numbers depend on these.
COUNTS = {
    "movies": (10605, 10072, 4996, 10603, {"train": (6066, 3016), "dev": (2058, 1025), "test": (1948, 955)}),
    "amazon": (3708, 2985, 1750, 285, {"train": (1681, 979), "dev": (530, 285), "test": (774, 486)}),
    "tweets": (4200, 3432, 2345, 4045, {"train": (2080, 1407), "dev": (681, 465), "test": (671, 473)}),
    "news": (5190, 2970, 1187, 498, {"train": (1772, 719), "dev": (536, 221), "test": (662, 247)}),
}


@pytest.mark.parametrize("source", COUNTS)
def test_counts(source):
    total, labelled, positive, identities, parts = COUNTS[source]
    every = sentences.sentences(source, neutral=True)
    some = sentences.sentences(source)
    assert (len(every), len(some), sum(s.label for s in some)) == (total, labelled, positive)
    assert len({s.id for s in every}) == total and len({s.identity for s in every}) == identities
    for split in splits.SPLITS:
        part = sentences.sentences(source, split)
        assert (len(part), sum(s.label for s in part)) == parts[split]
        assert part == tuple(s for s in some if s.split == split)


def test_what_the_files_say_and_the_description_does_not():
    movies = [s.raters for s in sentences.sentences("movies", neutral=True)]
    assert (min(movies), max(movies), sum(n < 20 for n in movies)) == (15, 29, 7275)
    for source in ("amazon", "news"):
        assert {s.raters for s in sentences.sentences(source, neutral=True)} == {20}
    tweets = [s.raters for s in sentences.sentences("tweets", neutral=True)]
    assert (min(tweets), max(tweets), tweets.count(20)) == (20, 99, 3200)


@pytest.mark.parametrize("source", COUNTS)
def test_every_record_is_whole(source):
    for s in sentences.sentences(source, neutral=True):
        assert s.id.startswith(f"{source}/") and s.text and s.text == " ".join(s.text.split())
        assert not re.search(r"&(amp|lt|gt|quot|#\d+);|\ufeff|\ufffd|[\x00-\x1f\x80-\x9f]", s.text)
        assert -4 <= s.mean <= 4
        assert s.label == (None if abs(s.mean) < 0.5 else 1 if s.mean > 0 else 0)
        assert s.split == splits.split_of(s.identity, f"rated-sentences-{source}")


def test_known_sentences():
    third = sentences.sentences("movies")[2]
    assert third == Sentence(
        "movies/3", "Effective but too tepid biopic", -0.6, 15, 0, "effective but too tepid biopic", third.split
    )
    texts = {s.id: s.text for source in COUNTS for s in sentences.sentences(source, neutral=True)}
    assert texts["tweets/3"].startswith("We were 17 deep last night & the love was so strong")
    assert texts["news/416_2"].startswith("A.T.&T. handled roughly 120 million")  # the file has &amp;amp;
    assert sum("é" in text for text in texts.values()) > 50
    first = sentences.sentences("amazon", neutral=True)[0]  # its line of ratings starts with a byte order mark
    assert (first.id, first.mean, first.raters) == ("amazon/1_1", -0.9, 20)


@pytest.mark.parametrize("source", COUNTS)
def test_the_same_words_are_never_in_two_splits(source):
    where = collections.defaultdict(set)
    groups = collections.defaultdict(set)
    for s in sentences.sentences(source, neutral=True):
        where[" ".join(re.findall(r"\w+", s.text.casefold())) or s.text].add(s.split)
        if "_" in s.id:
            groups[s.id.partition("_")[0]].add(s.split)
    assert all(len(splits) == 1 for splits in where.values())
    assert all(len(splits) == 1 for splits in groups.values())
    assert len(groups) == {"amazon": 300, "news": 498}.get(source, 0)


def test_words():
    assert sentences.words("Yay.  ANOTHER good-phone interview!") == "yay another good phone interview"
    assert sentences.words("...") == "..." and sentences.words("!") == "!"
    assert sentences.words("É") == sentences.words("é") != sentences.words("e")


def test_identities_tie_groups_together():
    rows = [("3_1", "Wow!"), ("3_2", "a"), ("10_1", "b"), ("2_1", "wow."), ("10_2", "A"), ("4_1", "c"), ("4_2", "!")]
    assert sentences._identities(rows) == [f"group {g}" for g in (2, 2, 2, 2, 2, 4, 4)]
    assert sentences._identities([("1", "Wow!"), ("2", "wow"), ("3", "oh")]) == ["wow", "wow", "oh"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A tiny source in the format of the data."""
    rows = [
        ("1", "0.5", "Just over &lt;3", [0, 1]),
        ("2", "-0.49999", "Just under", [0, -1, 0]),
        ("3", "-0.5", " a   b ", [-1, 0]),
        ("4", "2", "A, B!", [2]),
    ]
    texts = "\r\n".join(f"{key}\t{mean}\t{text}" for key, mean, text, _ in rows)
    ratings = "\ufeff" + "".join(f"{key}\t{mean}\t0\t{raw}\r\n" for key, mean, _, raw in rows)
    (tmp_path / "tweets_GroundTruth.txt").write_bytes(texts.encode())
    (tmp_path / "tweets_anonDataRatings.txt").write_bytes(ratings.encode())
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)


def test_a_tiny_source(files):
    every = sentences.sentences("tweets", neutral=True)
    assert [(s.id, s.text, s.label, s.raters) for s in every] == [
        ("tweets/1", "Just over <3", 1, 2),
        ("tweets/2", "Just under", None, 3),
        ("tweets/3", "a b", 0, 2),
        ("tweets/4", "A, B!", 1, 1),
    ]
    assert [s.id for s in sentences.sentences("tweets")] == ["tweets/1", "tweets/3", "tweets/4"]
    assert every[2].identity == every[3].identity == "a b" and every[2].split == every[3].split


def word_counts(texts):
    return [2 + len(text.split()) for text in texts]


@pytest.mark.parametrize("split", splits.SPLITS)
@pytest.mark.parametrize("tokens", [64, 256])
def test_documents_keep_source_split_and_label_apart(split, tokens):
    known = {s.id: s for s in sentences.sentences("movies")}
    documents = sentences.documents("movies", split, word_counts, tokens)
    used = [id for document in documents for id in document.sentences]
    assert len(used) == len(set(used)) and len({d.id for d in documents}) == len(documents)
    for d in documents:
        parts = [known[id] for id in d.sentences]
        assert {(s.split, s.label) for s in parts} == {(split, d.label)}
        assert d.text == " ".join(s.text for s in parts)
        assert d.tokens == word_counts([d.text])[0] <= tokens
        assert d.id.startswith(f"movies/{split}/{sentences.LABELS[d.label]}/")
    # A document ends only at a sentence for which it has no room, and the longest sentence has 51 words.
    assert min(d.tokens for d in documents) > tokens - 51
    labelled = sentences.sentences("movies", split)
    for label in (0, 1):  # all sentences are used, except those of one unfinished document
        words = sum(len(s.text.split()) for s in labelled if s.label == label)
        assert words - sum(d.tokens - 2 for d in documents if d.label == label) <= tokens + 20


def test_documents_are_in_tokens_of_the_encoder_and_always_the_same():
    tokenizer = bert.sentence_tokenizer()

    def count(texts):
        return bert.token_counts(tokenizer, texts)

    documents = sentences.documents("movies", "dev", count)
    assert (len(documents), sum(d.label for d in documents)) == (213, 106)  # recorded numbers depend on these
    assert documents[0].id == "movies/dev/negative/0" and documents[0].sentences[:2] == ("movies/5932", "movies/9827")
    assert [d.tokens for d in documents] == count([d.text for d in documents])
    assert max(d.tokens for d in documents) <= 256 and min(d.tokens for d in documents) > 200
    assert documents == sentences.documents("movies", "dev", count)


def test_documents_take_words_once_and_nothing_that_does_not_fit(monkeypatch):
    def sentence(number, text, label):
        return Sentence(f"x/{number}", text, 2.0 * label - 1, 20, label, text, "dev")

    pool = [sentence(0, "a b", 1), sentence(1, "A, b!", 0), sentence(2, "c d", 1), sentence(3, "e " * 9, 1)]
    pool += [sentence(4, "f", 1), sentence(5, "g h i", 1), sentence(6, "j", 0)]
    monkeypatch.setattr(sentences, "sentences", lambda source, split: tuple(pool))
    documents = sentences.documents("movies", "dev", word_counts, tokens=5)
    used = {id for d in documents for id in d.sentences}
    assert "x/3" not in used and "x/1" not in used  # too long; the words of x/0
    assert all(d.tokens <= 5 and d.label == 1 for d in documents)  # one negative sentence is left: unfinished


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: sentences.sentences("films"), "no source 'films'; there are movies, amazon, tweets, news"),
        (lambda: sentences.sentences("movies", "validation"), "no split 'validation'; there are train, dev, test"),
        (lambda: sentences.documents("movies", None, word_counts), "a document never mixes them"),
        (lambda: sentences.documents("films", "dev", word_counts), "no source 'films'"),
        (
            lambda: sentences.documents("movies", "dev", word_counts, 2),
            "2 tokens leave no room beside 2 special tokens",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_lexicon_rates_words():
    lexicon = sentences.lexicon()
    assert len(lexicon) == 7206 and all(word.isalpha() and word == word.casefold() for word in lexicon)
    assert (lexicon["good"], lexicon["dull"], lexicon["great"]) == (1.9, -1.7, 3.1) and "movie" not in lexicon
    assert all(-4 <= mean <= 4 and mean != 0 for mean in lexicon.values())
