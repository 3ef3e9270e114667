"""Official files of VQAv2, GQA and TextVQA: tiny ones in the real formats, and each kind of error in them."""

from __future__ import annotations

import json

import pytest
from official_files import IMAGES, gqa, textvqa, vqav2_annotations, vqav2_questions

from pitome_core.experiments.vqa import files as vqa_files
from pitome_core.experiments.vqa import metrics as vqa_metrics
from pitome_core.experiments.vqa.files import MalformedError


@pytest.fixture
def folder(tmp_path):
    names = [f"COCO_val2014_{image:012d}.jpg" for image in IMAGES] + [f"{image}.jpg" for image in IMAGES]
    for name in [*names, *(f"003a8ae2ef43b90{n}.jpg" for n in range(3))]:
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def load(folder):
    """``load(benchmark, *contents, **options)`` writes the contents to files and reads them."""

    def through(benchmark, *contents, **options):
        files = []
        for name, content in zip(("questions.json", "annotations.json"), contents, strict=False):
            files.append(folder / name)
            files[-1].write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return vqa_files.load(benchmark, files[0], folder, *files[1:], **options)

    return through


def test_vqav2(load, folder):
    read = load("vqav2", vqav2_questions(), vqav2_annotations())
    assert len(read) == 4 and read.problems == ()
    assert [item.id for item in read.items] == ["262144000", "262144001", "393225000", "393225001"]
    item = read.items[0]
    assert item.image == folder / "COCO_val2014_000000262144.jpg" and item.question == "What is in 262144?"
    assert item.answers == ("net",) * 7 + ("",) * 3
    assert vqa_metrics.metric(read.benchmark)("a net", item.answers) == 1


def test_gqa(load, folder):
    read = load("gqa", gqa())
    assert [(item.id, item.image.name, item.answers) for item in read.items] == [
        ("00930152", "262144.jpg", ("yes",)), ("01930152", "393225.jpg", ("yes",))]  # fmt: skip
    assert vqa_metrics.metric(read.benchmark)("Yes", read.items[0].answers) == 1


def test_textvqa(load):
    read = load("textvqa", textvqa())
    assert [item.id for item in read.items] == ["34602", "34603", "34604"]
    assert read.items[2].image.name == "003a8ae2ef43b902.jpg" and len(read.items[2].answers) == 10
    assert vqa_metrics.metric(read.benchmark)("Dakota Digital", read.items[0].answers) == pytest.approx(0.3)


def set_to(content, path, value):
    *way, last = path
    for step in way:
        content = content[step]
    if value is KeyError:
        del content[last]
    else:
        content[last] = value


TEXT, GQA = "textvqa", "gqa"
WRONG = [
    (TEXT, ("data", 1), 7, "questions.json, entry 1: a int where a record should be"),
    (TEXT, ("data", 1, "question"), KeyError, "questions.json, entry 1: no question"),
    (TEXT, ("data", 1, "question"), " ", "questions.json, entry 1: question is ' '"),
    (TEXT, ("data", 1, "question_id"), "34603", "questions.json, entry 1: question_id is '34603'"),
    (TEXT, ("data", 1, "question_id"), True, "questions.json, entry 1: question_id is True"),
    (TEXT, ("data", 1, "question_id"), 34602, "questions.json, entry 1: question 34602 stands here a second time"),
    (TEXT, ("data", 1, "answers"), ["dakota"] * 9, "questions.json, entry 1: 9 answers, not 10"),
    (TEXT, ("data", 1, "answers"), [None] * 10, "questions.json, entry 1: answers holds something that is no text"),
    (TEXT, ("data", 1, "image_id"), "lost", r"questions.json, entry 1: no picture .*lost.jpg"),
    (TEXT, ("data", 1, "image_id"), "../1", r"questions.json, entry 1: '../1' is no name of a picture"),
    (GQA, ("01930152", "answer"), KeyError, "questions.json, entry 01930152: no answer"),
    (GQA, ("01930152", "imageId"), 393225, "questions.json, entry 01930152: imageId is 393225"),
    (GQA, ("01930152", "imageId"), "9", r"questions.json, entry 01930152: no picture .*9.jpg"),
]  # fmt: skip


@pytest.mark.parametrize("benchmark, path, value, words", WRONG)
def test_malformed_records_are_named_and_counted(load, benchmark, path, value, words):
    content = {"textvqa": textvqa, "gqa": gqa}[benchmark]()
    total = len(content.get("data", content))
    set_to(content, path, value)
    with pytest.raises(MalformedError, match=f"^1 of {total} records of {benchmark} cannot be used: {words}"):
        load(benchmark, content)
    read = load(benchmark, content, skip=True)
    assert len(read) == total - 1 and len(read.problems) == 1
    assert path[1] not in range(3) or "34603" not in {item.id for item in read.items}


# The annotations lie in reverse order: entry 3 belongs to the first question.
WRONG_ANNOTATIONS = [
    (("annotations", 3, "answers"), [{"answer": "net"}] * 3, "questions.json, entry 0: annotations.json, entry 3: "
     "3 answers, not 10"),
    (("annotations", 3, "answers", 4, "answer"), None, "questions.json, entry 0: annotations.json, entry 3: answer is "
     "None"),
    (("annotations", 3, "image_id"), 393225, "questions.json, entry 0: annotations.json, entry 3: image_id 393225 is "
     "not the question's 262144"),
]  # fmt: skip


@pytest.mark.parametrize("path, value, words", WRONG_ANNOTATIONS)
def test_malformed_annotations(load, path, value, words):
    content = vqav2_annotations()
    set_to(content, path, value)
    with pytest.raises(MalformedError, match=f"^1 of 4 records of vqav2 cannot be used: {words}"):
        load("vqav2", vqav2_questions(), content)
    assert [item.id for item in load("vqav2", vqav2_questions(), content, skip=True).items][0] == "262144001"


def test_questions_and_annotations_have_to_fit(load):
    """An annotation without a question, and a question with no or two annotations, are errors."""
    lost, twice, strange = vqav2_annotations(), vqav2_annotations(), vqav2_annotations()
    lost["annotations"].pop(3)
    with pytest.raises(MalformedError, match="entry 0: no annotation of question 262144000 in annotations.json"):
        load("vqav2", vqav2_questions(), lost)
    twice["annotations"].append(twice["annotations"][3])
    with pytest.raises(MalformedError, match="entry 0: .*question 262144000 has more than one annotation"):
        load("vqav2", vqav2_questions(), twice)
    strange["annotations"].append({"question_id": 5})
    with pytest.raises(MalformedError, match=r"annotations.json, entry 4: no question 5 in questions.json"):
        load("vqav2", vqav2_questions(), strange)
    strange["annotations"][4] = {}
    with pytest.raises(MalformedError, match=r"annotations.json, entry 4: no question_id"):
        load("vqav2", vqav2_questions(), strange)


def test_all_are_counted_and_the_first_are_named(load):
    content = textvqa()
    content["data"] += [{}] * 7
    with pytest.raises(MalformedError, match=r"^7 of 10 records.*entry 3: no question_id.*entry 7: .*; and 2 more"
                       ) as raised:  # fmt: skip
        load("textvqa", content)
    assert len(raised.value.problems) == 7 and "entry 8" not in str(raised.value)
    assert len(load("textvqa", content, skip=True).problems) == 7
    with pytest.raises(MalformedError, match="2 of 2 records.*needs at least 1 good one"):
        load("textvqa", {"data": [{}, {}]}, skip=True)


@pytest.mark.parametrize(
    "benchmark, content, words",
    [
        ("textvqa", "{", "is no JSON"),
        ("textvqa", [], "holds a list where the official file has a dict"),
        ("textvqa", gqa(), "has no list 'data', only '00930152'.*another benchmark's file"),
        ("textvqa", {"data": []}, "has no question"),
        ("gqa", {}, "has no question"),
    ],
)
def test_files_in_another_format(load, benchmark, content, words):
    with pytest.raises(MalformedError, match=words):
        load(benchmark, content)


def test_a_split_has_to_be_named(load):
    content = vqav2_questions()
    del content["data_subtype"]
    with pytest.raises(MalformedError, match="None where data_subtype should name the split"):
        load("vqav2", content, vqav2_annotations())


def test_wrong_calls(load, folder):
    with pytest.raises(ValueError, match="benchmark is 'mme'; choose one of vqav2, gqa, textvqa"):
        load("mme", {})
    with pytest.raises(ValueError, match="vqav2 has its answers in a second file"):
        load("vqav2", vqav2_questions())
    with pytest.raises(ValueError, match="gqa has questions and answers in one file"):
        load("gqa", gqa(), {})
    with pytest.raises(FileNotFoundError, match="no file .*lost.json"):
        vqa_files.load("gqa", folder / "lost.json", folder)
    with pytest.raises(FileNotFoundError, match="no folder .*lost"):
        vqa_files.load("gqa", folder / "questions.json", folder / "lost")
