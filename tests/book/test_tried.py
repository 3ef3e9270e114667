"""The page on what was tried: its tables, and every number in its text, are what the records say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import tried  # noqa: E402

from pitome_core.experiments.plots import timings  # noqa: E402

PAGE = tried.PAGE.read_text()
# What the text says; {name} is a number of `tried.numbers`.
SAYS = [
    "Test sets were scored in {test} cells, as {tasks} tasks of {versions} versions",
    "The cells are of {arms} arms: {forms} forms of PiToMe",
    "{controls} controls and references",
    "Another {dev} cells are on record on dev, with {arms more} arms that no test set was scored with",
    "For training, {recipes} recipes were explored",
    "announces {stopped} cells more than are on record",
    "They are of `law-1` ({stopped law-1}), `vision-2` ({stopped vision-2}) and `vqa-2` ({stopped vqa-2})",
    "On dev digits {digits above} of {digits} settings are above ToMe and {digits below} below",
    "Of the {digits above}, {digits hidden off} compare hidden states with attention that does not count sizes",
    "On scenes none of {scenes} is above ToMe",
    "On dev {beat both} settings fulfil it, both on digits",
    "A diagram of {diagram} synthetic settings",
    "the {layers} layers of real models",
    "{recipes text} recipes. Taken: low-rank updates, with {taken} right on dev. Training all weights had "
    "{all weights}",
    "{text trained} fits for the records have a line",
    "{recipes retrieval} recipes, with a sum of recalls on dev from {worst} to {decay-1}. Taken: `decay-2`, "
    "with {decay-2}",
    "One of the {recipes retrieval} was run after test had been scored",
    "{heads} pairs of heads were trained, {heads plain} of them without merging",
    "After {align} steps for the projector, {steps} steps of tuning were run",
    "{timed} cells on a CPU, {timed plain} of them without options, {timed before} cells of the step before "
    "it was reworked, and {timed gpu} on a GPU",
    "Both were faster, or as fast within noise, in their {options} cells",
]
# What other pages say, which this one repeats: words here, the page, words there.
QUOTED = [
    ("2,600 were planned", "book/protocol.md", "Planned were 2,600 steps of tuning; 600 were run"),
    ("Eight variants were looked at in them", "notebooks/record_vision.py",
     "feasibility runs, in which eight variants had been looked at"),
    ("were made by code that no commit has", "book/protocol.md", "those of dev were made by code that no commit has"),
    ("Eight cells of retrieval were looked at on dev", "notebooks/record_retrieval.py",
     "eight cells were looked at on dev (not recorded)"),
    ("the same ranking of the three orders", "notebooks/10_llava.py",
     "had shown the same ranking of the three orders"),
    ("on four scenes of dev and on twelve sentences", "book/protocol.md",
     "The four dev scenes on which the code was tried had shown the direction of both; for sentences, the "
     "first twelve"),
    ("on four photographs and twelve sentences", "book/protocol.md", "the code was tried on four and twelve of them"),
    ("keep .95 and .85, most refitted heads, rivals other than DCT", "book/protocol.md",
     "keep .95 and .85, most refitted heads, rivals other than DCT"),
    ("keep .9, .7 and .5", "book/protocol.md", "keep .9, .7 and .5"),
    ("three of five seeds on documents and other sources", "book/protocol.md",
     "three of five seeds on documents and other sources"),
    ("keep .95, .85 and .8; the text tower", "book/protocol.md",
     "keep .95, .85 and .8, both towers and the text tower alone"),
    ("half of the questions, keep .95 and .85", "book/protocol.md",
     "keep .95 and .85, `tofu`, three of five sizes of smaller pictures, the other orders"),
    ("most cells at .8, both tasks with cut-out photographs", "book/protocol.md",
     "most cells at .8 are left to `vision-1`"),
    ("keep .95, and most of .8 on test scenes", "book/protocol.md",
     "on test those at .95 and most at .8, are not scored yet"),
    ("six of nine scenes for each photograph of dev", "book/protocol.md",
     "dev was to have nine scenes for each photograph, and emoji attention off as well"),
]


def flat(text: str) -> str:
    """On one line, without the marks of comments."""
    return " ".join(re.sub(r"^# ?", "", text, flags=re.MULTILINE).split())


@pytest.fixture(scope="module")
def numbers() -> dict[str, str]:
    versions = tried.cells_by_version()
    stopped = {name: counted["announced"] - counted["test"] for name, counted in versions.items()}
    recorded = timings.load("embedded/cost.json")
    more = {"versions": sum(counted["test"] > 0 for counted in versions.values()), "stopped": sum(stopped.values()),
            "scenes": len(tried.settings("law-scenes-dev")),
            "beat both": sum(row.beats_both for name in tried.DEV for row in tried.settings(name)),
            "options": sum(cell["mode"] == "step" or cell["every"] > 1 for cell in recorded)}
    more |= {f"stopped {name}": number for name, number in stopped.items()}
    return tried.numbers() | {name: f"{number:,}" for name, number in more.items()}


@pytest.fixture(scope="module")
def text() -> str:
    """The page without its tables, on one line."""
    return " ".join(tried.TABLE.sub("", PAGE).split())


def test_tables_are_those_of_the_records():
    assert set(re.findall(r"^% table (\w+)$", PAGE, re.MULTILINE)) == set(tried.tables())
    assert tried.with_tables(PAGE) == PAGE, "run `python tools/tried.py`"


def test_every_number_of_the_text_is_counted(text, numbers):
    left = re.sub(r"\{cite\}`[^`]*`|\]\([^)]*\)", "", text)
    for words in [*(said.format_map(numbers) for said in SAYS), *(here for here, _, _ in QUOTED)]:
        bare = re.sub(r"\{cite\}`[^`]*`", "", words)
        assert bare in left, words
        left = left.replace(bare, "")
    left = re.sub(r"`[^`]*`", "", left)  # names
    for words in ("equation 4", "95 % intervals", "PiToMe with seed 0 has none"):  # the last: another test
        left = left.replace(words, "")
    assert re.findall(r"[^ ]*\d[^ ]*", left) == []


def test_a_number_that_nothing_counts_is_noticed(text, numbers):
    wrong = text.replace(numbers["test"], "1,900")
    with pytest.raises(AssertionError):
        test_every_number_of_the_text_is_counted(wrong, numbers)
    with pytest.raises(AssertionError):
        test_every_number_of_the_text_is_counted(f"{text} And 12 more.", numbers)


@pytest.mark.parametrize(("here", "page", "there"), QUOTED, ids=[here[:30] for here, _, _ in QUOTED])
def test_other_pages_say_the_same(text, here, page, there):
    assert here in text and there in flat((ROOT / page).read_text())


def test_what_the_text_says_without_numbers():
    assert all(line["again"] == 0 for line in tried.log()), "no line replaces a cell"
    assert {name for name in tried.DEV if any(row.beats_both for row in tried.settings(name))} == {"law-digits-dev"}
    chosen = max((row for row in tried.settings("law-digits-dev") if row.beats_both), key=lambda row: row.to_tome.mean)
    above = {row.key for row in tried.settings("law-digits-dev") if row.to_tome.side == 1}
    assert chosen.key == "gate-2-hidden@0.9/off"
    assert {key for key in above if not (key.endswith("/off") and "hidden" in key)} == {"energy-sorted@0.9"}
    others = {row.key for name in ("text-movies-dev", "law-emoji-dev") for row in tried.settings(name)
              if row.to_tome.side == 1}
    assert others == {"energy-sorted@0.8/all", "energy-sorted-hidden@0.9"}
    recipes = tried.recipes("text")
    assert max((name for name in recipes if name != "all-5e-5"), key=recipes.get) == "rank8-1e-3"
    assert max(tried.recipes("retrieval"), key=tried.recipes("retrieval").get) == "decay-1"
    trained = {line["weights"] for line in tried.trainings("text")}
    assert {f"pitome-0.8-seed{seed}.safetensors" in trained for seed in (1, 2)} == {True}
    assert "pitome-0.8-seed0.safetensors" not in trained
    assert "seed0" in tried.records()["text-movies"].cells["pitome@0.8/retrained"]["outcomes"]


def test_options_of_the_step_were_faster_in_every_cell():
    recorded = timings.load("embedded/cost.json")
    shape = ("model", "batch", "dtype", "keep", "size")
    for cell in timings.whole_models(recorded):
        if cell["mode"] == "step" or cell["every"] > 1:
            (usual,) = timings.pick(timings.as_usual(recorded), **{name: cell[name] for name in shape})
            assert cell["variants"]["pitome"]["speedup"][1] > usual["variants"]["pitome"]["speedup"][1]


def test_the_answer_on_variants_has_these_numbers(numbers):
    answer = " ".join((ROOT / "book" / "questions.md").read_text().split())
    for said in ("Test sets were scored in {test} cells of {arms} arms", "{dev} cells are on record on dev",
                 "with {arms more} arms that never met"):
        assert said.format_map(numbers) in answer
