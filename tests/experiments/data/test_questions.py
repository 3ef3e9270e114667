"""The generated question set: every answer follows from the layout, nothing is ambiguous, streams stay apart."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from pitome_core.experiments import assets
from pitome_core.experiments.data import pairs, questions, scenes, splits
from pitome_core.experiments.data.questions import Question, QuestionStream

FIRST = 720  # scenes of each stream on which the laws are checked: 20 rounds of kinds and backgrounds
FINGERPRINTS = {  # of the first 360 questions
    "train": "a0d9f0ee876a36d93021c107df720385af80d6afe09db45a6c1c5b2bd90d96cb",
    "validation": "4052768aa461cff09078187eaa7f360e804cf515232144497f48c259bcf18d44",
    "test": "e0207a3e6dd2ddba59708a0e7bf05535dc51e2578260d5c5921a2b7de4255f1a",
}
HELD_OUT_PAIRS = 196  # of 2,016 pairs of classes

# Fills of OpenMoji's palette, and the words for them. Amber (F1B31C, F4AA41), greys and white have no word, because
# amber is yellow to some and orange to others, and light greys look white on a photograph.
PALETTE = {
    "D22F27": "red", "EA5A47": "red", "FCEA2B": "yellow", "5C9E31": "green", "B1CC33": "green", "61B2E4": "blue",
    "92D3F5": "blue", "1E50A0": "blue", "A57939": "brown", "6A462F": "brown", "FFA7C0": "pink", "E67A94": "pink",
    "8967AA": "purple", "B399C8": "purple",
}  # fmt: skip


def measured_colour(drawing: np.ndarray) -> str:
    """The word whose fills cover 85 % of the filled pixels of a drawing ``(H, W, 4)``, or an empty string.

    Filled pixels are opaque and not black (outlines are black), and their colour covers at least a hundredth of the
    opaque pixels: the blends at edges do not.
    """
    opaque = drawing[drawing[..., 3] == 255][:, :3]
    pixels = Counter(map(bytes, opaque))
    filled = {fill: n for fill, n in pixels.items() if n >= 0.01 * len(opaque) and any(fill)}
    words: Counter[str] = Counter()
    for fill, n in filled.items():
        words[PALETTE.get(fill.hex().upper(), "")] += n
    word, n = words.most_common(1)[0]
    return word if n >= 0.85 * sum(filled.values()) else ""


def fingerprint(stream: str, count: int) -> str:
    """SHA-256 of the first ``count`` questions with the layouts of their scenes, in hexadecimal."""
    digest = hashlib.sha256(questions.VERSION.encode())
    for question in QuestionStream(stream, count):
        layout = dataclasses.asdict(questions.scene(stream, question.scene))
        del layout["questions"]
        digest.update(json.dumps([dataclasses.asdict(question), layout], sort_keys=True).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def laid_out():
    return {stream: [questions.scene(stream, i) for i in range(FIRST)] for stream in questions.STREAMS}


@pytest.fixture(scope="module")
def every(laid_out):
    return [scene for row in laid_out.values() for scene in row]


def oracle(text: str, placed) -> str:
    """The answer, from the text and the layout alone. Raises ``AssertionError`` if it is ambiguous."""

    def the(name):
        drawings = [thing for thing in placed if thing.name == name]
        assert len(drawings) == 1, f"{len(drawings)} of {name}"
        return drawings[0]

    def biggest():
        by_side = sorted(placed, key=lambda thing: -thing.side)
        assert len(placed) == 1 or by_side[0].side >= 1.49 * by_side[1].side
        return by_side[0]

    def order(first, second, axis):
        distance = getattr(first, axis) - getattr(second, axis)
        assert abs(distance) > 0.1499
        return distance > 0

    names = [thing.name for thing in placed]
    if parts := re.fullmatch(r"Is there (an?) (.+) drawing\?", text):
        assert (parts[1] == "an") == (parts[2][0] in "aeiou")
        return "yes" if parts[2] in names else "no"
    if parts := re.fullmatch(r"How many (.+) drawings are there\?", text):
        return str(sum(name == parts[1] for name in names))
    if text == "How many objects are there?":
        return str(len(placed))
    if parts := re.fullmatch(r"Where is the (.+)\?", text):
        thing = the(parts[1])
        assert min(abs(thing.x - 0.5), abs(thing.y - 0.5)) > 0.0799
        return f"{'top' if thing.y < 0.5 else 'bottom'} {'left' if thing.x < 0.5 else 'right'}"
    if parts := re.fullmatch(r"Is the (.+) left or right of the (.+)\?", text):
        return "right" if order(the(parts[1]), the(parts[2]), "x") else "left"
    if parts := re.fullmatch(r"Is the (.+) above or below the (.+)\?", text):
        return "below" if order(the(parts[1]), the(parts[2]), "y") else "above"
    if text == "What is the biggest object?":
        return biggest().name
    if text == "What is the object?":
        return the(names[0]).name if len(placed) == 1 else "ambiguous"
    if text == "What colour is the object?":
        return questions.CLASSES[names[0]].colour if len(placed) == 1 else "ambiguous"
    if text == "What colour is the biggest object?":
        return questions.CLASSES[biggest().name].colour
    assert text == "Which objects are there, from left to right?"
    row = sorted(placed, key=lambda thing: thing.x)
    assert len(set(names)) == len(names) and not any(order(a, b, "x") for a, b in itertools.pairwise(row))
    return ", ".join(thing.name for thing in row)


def test_every_answer_follows_from_the_layout(every):
    for scene in every:
        for question in scene.questions:
            assert question.answer and oracle(question.text, scene.placed) == question.answer, question.id


def test_the_oracle_can_disagree():
    one = questions.PlacedDrawing("fish", 0.3, 0.3, 0.3)
    other = questions.PlacedDrawing("owl", 0.7, 0.7, 0.3)
    assert oracle("Where is the fish?", [one, other]) == "top left"
    assert oracle("Is the owl left or right of the fish?", [one, other]) == "right"
    with pytest.raises(AssertionError, match="2 of fish"):
        oracle("Where is the fish?", [one, one])
    with pytest.raises(AssertionError):  # two objects of one size
        oracle("What is the biggest object?", [one, other])


def test_objects_lie_inside_and_do_not_touch(every):
    for scene in every:
        for thing in scene.placed:
            assert min(thing.x, thing.y) >= thing.side / 2 - 1e-4 and max(thing.x, thing.y) <= 1 - thing.side / 2 + 1e-4
        for a, b in itertools.combinations(scene.placed, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y)) - (a.side + b.side) / 2
            assert apart >= questions.GAP - 1e-9, (scene.stream, scene.number)


def test_types_are_balanced():
    """Types are exactly balanced in each round of twelve scenes; 10,000 questions end within a round."""
    assert Counter(kind for _, types in questions.CYCLE for kind in types) == dict.fromkeys(questions.TYPES, 4)
    assert {len(types) for _, types in questions.CYCLE} == {questions.PER_SCENE}
    assert Counter(q.type for q in QuestionStream("train", 360)) == dict.fromkeys(questions.TYPES, 40)
    of_test = QuestionStream("test")
    types = Counter(questions.CYCLE[i // 3 % 12][1][i % 3] for i in range(len(of_test)))
    assert len(of_test) == 10_000 and max(types.values()) - min(types.values()) <= 4
    for i in (0, 1, 35, 36, 9_999):
        assert of_test[i].type == questions.CYCLE[i // 3 % 12][1][i % 3]


def test_backgrounds_take_turns_with_kinds_of_scene(laid_out):
    for row in laid_out.values():
        met = Counter((scene.number % 12, scene.background) for scene in row)
        assert set(met.values()) == {FIRST // 36} and len(met) == 36


def test_answers_are_balanced(laid_out):
    """The shares of answers are within five standard errors of those intended."""

    def check(kind, expected):
        answers = [q.answer for row in laid_out.values() for scene in row for q in scene.questions if q.type == kind]
        counts = Counter(answers)
        assert set(counts) == set(expected)
        for answer, share in expected.items():
            error = (share * (1 - share) / len(answers)) ** 0.5
            assert abs(counts[answer] / len(answers) - share) < 5 * error, (kind, answer)

    check("exist", dict.fromkeys(("yes", "no"), 1 / 2))
    check("count", dict.fromkeys("123", 1 / 3))
    check("total", dict.fromkeys("1234", 1 / 4))
    check("position", dict.fromkeys(("top left", "top right", "bottom left", "bottom right"), 1 / 4))
    check("relation", dict.fromkeys(("left", "right", "above", "below"), 1 / 4))
    named = [questions.CLASSES[name].colour for name in questions.COLOURED]
    check("colour", {colour: n / len(named) for colour, n in Counter(named).items()})


def test_every_class_is_shown_and_asked(laid_out, every):
    for stream in questions.STREAMS:
        assert {thing.name for scene in laid_out[stream] for thing in scene.placed} == set(questions.CLASSES)
    for kind in ("single", "biggest"):
        assert {q.answer for scene in every for q in scene.questions if q.type == kind} == set(questions.CLASSES)


def test_a_counted_class_may_be_the_rare_one(laid_out):
    """A count of 1 occurs beside one, two and three drawings of another class."""
    rows = [scene for row in laid_out.values() for scene in row if scene.questions[0].type == "count"]
    ones = [scene for scene in rows if scene.questions[0].answer == "1"]
    most = [max(Counter(thing.name for thing in scene.placed).values()) for scene in ones]
    assert set(most) == {1, 2, 3}


def test_train_never_shows_a_held_out_pair(laid_out):
    couples = list(itertools.combinations(questions.CLASSES, 2))
    apart = [(a, b) for a, b in couples if questions.held_out(a, b)]
    assert len(couples) == 2016 and len(apart) == HELD_OUT_PAIRS
    assert all(questions.held_out(b, a) for a, b in apart) and not questions.held_out("fish", "fish")

    def together(row):
        return sum(any(questions.held_out(a.name, b.name) for a, b in itertools.combinations(scene.placed, 2))
                   for scene in row)  # fmt: skip

    shown = {stream: together(row) for stream, row in laid_out.items()}
    assert shown["train"] == shown["validation"] == 0 and shown["test"] > 50
    assert shown["test"] == sum(scene.held_out for scene in laid_out["test"])


def test_streams_share_no_picture(laid_out):
    layouts = [{scene.placed for scene in row} for row in laid_out.values()]
    photographs = [{scene.photograph for scene in row} - {""} for row in laid_out.values()]
    for kept in (layouts, photographs):
        assert not (kept[0] & kept[1] or kept[0] & kept[2] or kept[1] & kept[2])
    assert [len(row) for row in layouts] == [FIRST] * 3
    assert [sorted(row) for row in photographs] == [sorted(pairs.backgrounds(split)) for split in splits.SPLITS]


def test_a_scene_is_laid_out_when_it_is_asked_for():
    questions.scene.cache_clear()
    many = QuestionStream("test", 10**9)
    assert many[299_999_999].id == "test-99999999-2" and many[-10**9].id == "test-000000-0"
    assert [q.id for q in many[4:7]] == ["test-000001-1", "test-000001-2", "test-000002-0"]
    assert questions.scene.cache_info().currsize == 4
    with pytest.raises(IndexError):
        QuestionStream("test", 5)[5]


def test_nothing_is_fetched_for_layouts(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an asset was asked for")

    monkeypatch.setattr(assets, "fetch", refuse)
    questions.scene.cache_clear()
    state = np.random.get_state()[1].copy()
    assert len(list(QuestionStream("validation", 72))) == 72
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("stream", questions.STREAMS)
def test_fingerprint(stream):
    """Layouts and texts are those of this version. If they change, the version needs another name."""
    assert questions.VERSION == "questions-1"
    assert fingerprint(stream, 360) == FINGERPRINTS[stream]
    assert fingerprint(stream, 359) != FINGERPRINTS[stream]


# Pictures.


def test_the_table_says_what_is_drawn():
    """The colours in the table are those measured on the drawings."""
    assert len(questions.CLASSES) == len({thing.code for thing in questions.CLASSES.values()}) == 64
    for thing in questions.CLASSES.values():
        drawing = scenes.render(questions._emoji()[thing.code], 192)
        assert measured_colour(drawing) == thing.colour, thing.name


def test_the_biggest_is_largest_in_area_too():
    """The emptiest drawing, at `RATIO` times the side of the fullest, covers more pixels."""
    full = [scenes.render(questions._emoji()[thing.code], 96)[..., 3].mean() for thing in questions.CLASSES.values()]
    assert questions.RATIO**2 * min(full) > max(full)


def test_a_colour_is_measured_by_hand():
    red, grey, black = (0xD2, 0x2F, 0x27, 255), (0x9B, 0x9B, 0x9A, 255), (0, 0, 0, 255)
    drawing = np.zeros((20, 20, 4), np.uint8)  # 300 pixels are opaque
    drawing[:15] = red
    assert measured_colour(drawing) == "red"
    drawing[:5] = black  # outlines do not count: red is all of the 200 other pixels
    assert measured_colour(drawing) == "red"
    drawing[5:7] = grey  # 40 of 200 are another fill
    assert measured_colour(drawing) == ""
    drawing[6] = red  # 20 of 200
    assert measured_colour(drawing) == "red"
    drawing[5:15] = grey
    assert measured_colour(drawing) == ""  # a fill without a word


def test_a_picture_shows_its_layout():
    """Outside the squares is the background, and inside each square its drawing, at two sizes."""
    for number in (4, 8, 9, 10, 11, 21):
        scene = questions.scene("test", number)
        for size in (questions.SIZE, 112):
            shown = questions.picture(scene, size)
            assert shown.shape == (size, size, 3) and shown.dtype == np.uint8
            rest = questions._background(scene, size)
            changed = (shown != rest).any(axis=2)
            covered = np.zeros((size, size), int)
            for thing in scene.placed:
                low = [round((at - thing.side / 2) * size) - 1 for at in (thing.y, thing.x)]
                window = tuple(slice(max(start, 0), start + round(thing.side * size) + 2) for start in low)
                covered[window] += 1
                alpha = scenes.render(questions._emoji()[questions.CLASSES[thing.name].code], round(thing.side * size))
                assert changed[window].sum() >= 0.9 * (alpha[..., 3] == 255).sum()
            assert not changed[covered == 0].any() and covered.max() == 1


def test_pictures_depend_on_stream_and_number_alone():
    first = questions.picture(questions.scene("validation", 8))
    questions.picture(questions.scene("train", 3))
    questions.scene.cache_clear()
    assert np.array_equal(first, questions.picture(questions.scene("validation", 8)))
    assert not np.array_equal(first, questions.picture(questions.scene("validation", 9)))


def test_backgrounds_are_of_three_kinds():
    """A plain one has one colour, a texture several, a photograph many."""
    for number in range(3):
        scene = questions.scene("train", number)
        back = questions._background(scene, 64)
        colours = len(np.unique(back.reshape(-1, 3), axis=0))
        low, high = {"plain": (1, 1), "texture": (8, 4096), "photograph": (100, 4096)}[scene.background]
        assert low <= colours <= high and bool(scene.photograph) == (scene.background == "photograph")


# The best guess without a picture.


def ask(kind, text, answer):
    return Question("", 0, kind, text, answer)


def test_blind_prior_by_hand():
    fish, owl, whale, count = "Is there a fish drawing?", "Is there an owl drawing?", "Is there a whale drawing?", "n?"
    known = [ask("exist", fish, "yes"), ask("exist", fish, "yes"), ask("exist", fish, "no"), ask("exist", owl, "no"),
             ask("exist", owl, "no"), ask("exist", owl, "no"), ask("total", count, "2"), ask("total", count, "1")]
    asked = [ask("exist", fish, "yes"),  # yes, 2 of 3: right
             ask("exist", fish, "no"),  # wrong
             ask("exist", owl, "no"),  # right
             ask("exist", whale, "no"),  # not seen: the usual answer whatever the class, no, 4 of 6: right
             ask("total", count, "1"),  # a tie: the first in the alphabet, 1: right
             ask("list", "l?", "x")]  # nothing like it seen: wrong
    assert questions.blind_prior(known, asked) == {"exist": 0.75, "total": 1.0, "list": 0.0}
    assert questions.blind_prior(iter(known), iter(asked)) == questions.blind_prior(known, asked)


def test_a_text_without_its_classes():
    """Names of several words and articles are replaced; words that only begin like a class are not."""
    for text, bare in (
        ("Is the crystal ball left or right of the tree?", "Is the * left or right of the *?"),
        ("Is there an apple drawing?", "Is there * drawing?"),
        ("Is there a bear drawing?", "Is there * drawing?"),
        ("Are there bearings?", "Are there bearings?"),
    ):
        assert questions._without_classes(text) == bare


def test_a_blind_prior_is_low():
    prior = questions.blind_prior(QuestionStream("train", 3600), QuestionStream("test", 720))
    assert set(prior) == set(questions.TYPES)
    limits = {"exist": 0.65, "relation": 0.65, "count": 0.5, "total": 0.4, "position": 0.4, "colour": 0.4}
    assert all(share <= limits.get(kind, 0.1) for kind, share in prior.items()), prior
    assert prior["relation"] > 0.35  # one of two words, though most texts are new


def test_errors():
    with pytest.raises(ValueError, match="stream is 'dev'; choose one of train, validation, test"):
        questions.scene("dev", 0)
    with pytest.raises(ValueError, match="number -1 must be 0 or more"):
        questions.scene("test", -1)
    with pytest.raises(ValueError, match="stream is 'dev'"):
        QuestionStream("dev")
    with pytest.raises(ValueError, match="size 63 must be at least 64 pixels"):
        questions.picture(questions.scene("test", 0), 63)
