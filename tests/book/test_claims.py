"""The ledger of claims: the page says what it says, links lead somewhere, verdicts have earned their word."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import claims

from pitome_core.experiments.records.cells import ARMS
from pitome_core.experiments.records.results import FORMAT
from pitome_core.experiments.records.statistics import mcnemar, paired_difference
from pitome_core.experiments.retrieval import recall

# What the abstract claims. Named here too, so that no item can leave the ledger unseen.
ABSTRACT = {
    "split", "damage", "energy", "flops", "off-the-shelf", "classification", "retrieval", "vqa", "spectrum",
}


# --- the ledger of this book


def test_the_ledger_is_in_order():
    assert claims.problems(claims.load()) == []


def test_the_page_is_up_to_date():
    written = (claims.ROOT / claims.PAGE).read_text()
    assert written == claims.page(claims.load()), "book/claims.md is stale: run `python tools/claims.py`"


def test_the_abstract_is_complete():
    assert set(claims.load()["abstract"]) == ABSTRACT


def test_what_the_abstract_puts_in_numbers_is_a_table_claim():
    ledger = claims.load()
    for item in ("flops", "classification", "retrieval", "vqa"):
        rows = [claim for claim in ledger["claims"] if item in claim["covers"] and claim["kind"] == "table"]
        assert rows and all(claim.get("quoted") for claim in rows), item


# --- a small ledger with one page, one chapter and one record, to be broken

ITEMS = 12
SMALL = """
grounds:
  test scenes: {model: ViT-S, data: scenes, split: test}
  dev scenes: {model: ViT-S, data: scenes, split: dev}
  photographs: {model: ViT-S, data: photographs, split: none}
  the real thing: {model: ViT-H, data: ImageNet-1k, split: test}
  other data: {model: ViT-H, data: scenes, split: test}
abstract: {better: It is better., split: It does not depend on the split.}
claims:
  - id: better
    title: It is better
    kind: mechanism
    covers: [better]
    claim: At equal tokens it is better.
    where: Abstract
    scope: {model: [any], data: [any]}
    verdict: holds here
    reading: It is better.
    evidence:
      - what: AUC of the map
        page: notebooks/chapter
        anchor: fig-one
        ground: test scenes
        setting: keep 0.9
        difference: {record: results/record.json, outcome: auc, first: a@0.9, second: b@0.9, predicts: higher}
      - what: Right answers
        page: notebooks/chapter
        section: Two outcomes
        ground: test scenes
        difference: {record: results/record.json, outcome: right, first: a@0.9, second: b@0.9, predicts: higher}
    overturn: More scenes.
  - id: split
    title: It does not depend on the split
    kind: mechanism
    covers: [split]
    claim: It does not depend on the split.
    where: Abstract; Theorem 1
    scope: {model: [any], data: [any]}
    verdict: mixed here
    reading: In one way it does, in another it does not.
    evidence:
      - what: Agreement
        page: book/prose
        anchor: a-label
        ground: dev scenes
        live: {says: for, interval: 95 % bootstrap}
      - what: Steadiness
        page: book/prose
        anchor: fig-prose
        ground: dev scenes
        live: {says: against, interval: 95 % bootstrap}
    overturn: More scenes.
  - id: table
    title: Its table
    kind: table
    covers: [better]
    claim: On ImageNet-1k it is better.
    where: Table 5
    scope: {model: [ViT-H], data: [ImageNet-1k]}
    verdict: not run
    quoted:
      - {from: Table 5, what: accuracy, as: drop, values: {whole: "86.90", ours: "86.4"}}
      - {from: Table 5, what: GFLOPs, as: saving, values: {whole: "200", ours: "150"}}
    evidence:
      - what: AUC of the map
        page: notebooks/chapter
        anchor: fig-one
        ground: test scenes
        difference: {record: results/record.json, outcome: auc, first: a@0.9, second: b@0.9, predicts: higher}
    overturn: A run.
"""


RUN = {"code": "0123456789ab", "modified": False}


def small_record() -> dict:
    generator = np.random.default_rng(0)
    base = generator.normal(size=ITEMS)
    cells = {
        "a@0.9": {"keep": 0.9, "outcomes": {"auc": base + 0.5, "right": [1] * 10 + [0] * 2, "worse": base - 9}},
        "b@0.9": {"keep": 0.9, "outcomes": {"auc": base, "right": [1, 0] * 3 + [0] * 6, "worse": base}},
        "b@0.8": {"keep": 0.8, "outcomes": {"auc": base}},
        "whole": {"keep": 1.0, "outcomes": {"auc": base}},
        "random-merge@0.9/seed0": {"arm": "random-merge", "seed": 0, "keep": 0.9, "outcomes": {"auc": base + 0.1}},
        "random-merge@0.9/seed1": {"arm": "random-merge", "seed": 1, "keep": 0.9,
                                   "outcomes": {"auc": base + 0.3 * generator.normal(size=ITEMS)}},
        "silent": {"keep": 0.9, "outcomes": {"auc": base}},
        "pool": {"keep": 0.7, "outcomes": {"auc": base - 0.2}},
        "gaps": {"keep": 0.9, "outcomes": {"auc": [None, *base[1:]], "layers": np.zeros((ITEMS, 3))}},
    }
    for cell in cells.values():
        cell["tokens"] = [256, round(256 * cell["keep"])]
        cell["run"] = 0
        cell["gmacs"] = {0.9: 3.4, 0.7: 3.5, 0.8: 2.6, 1.0: 6.1}[cell["keep"]]
        cell["outcomes"] = {name: np.asarray(values).tolist() for name, values in cell["outcomes"].items()}
    items = {
        "id": [f"scene {i}" for i in range(ITEMS)],
        "object": [f"object {i % 4}" for i in range(ITEMS)],
        "photograph": [f"photograph {i // 4}" for i in range(ITEMS)],
    }
    del cells["silent"]["tokens"]
    header = {"model": "ViT-S", "split": "test", "tier": "embedded", "clusters": ["object", "photograph"]}
    return {"format": FORMAT, "header": header, "items": items, "runs": [RUN], "cells": cells}


@pytest.fixture()
def root(tmp_path) -> Path:
    for folder in ("notebooks", "book", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results/record.json").write_text(json.dumps(small_record()))
    toc = {"root": "book/index", "parts": [{"chapters": [{"file": "notebooks/chapter"}, {"file": "book/prose"}]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    figure = {"mystnb": {"figure": {"name": "fig-one", "caption": "one"}}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A chapter\n", "\n", "## Two outcomes\n"]},
        {"cell_type": "code", "metadata": figure, "source": ["(not-a-label)=\n"], "outputs": []},
    ]
    (tmp_path / "notebooks/chapter.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "book/prose.md").write_text(
        "# Prose\n\n(a-label)=\n## A section\n\n```{figure} x.png\n:name: fig-prose\nA figure.\n```\n\n"
        "```python\n(an-example)=\n# no section\n```\n\n## After it\n"
    )
    (tmp_path / "book/unlisted.md").write_text("# Not in the table of contents\n\n(a-label)=\n")
    return tmp_path


def ledger() -> dict:
    return yaml.safe_load(SMALL)


def test_the_small_ledger_is_in_order(root):
    assert claims.problems(ledger(), root) == []


def test_what_can_be_pointed_to(root):
    chapter, prose = (claims.read_page(root / name) for name in ("notebooks/chapter.ipynb", "book/prose.md"))
    assert (chapter.title, chapter.labels, chapter.sections) == ("A chapter", {"fig-one"}, {"Two outcomes"})
    assert (prose.title, prose.labels, prose.sections) == ("Prose", {"a-label", "fig-prose"}, {"A section", "After it"})


def at(document, path: str):
    for key in path.split("/"):
        document = document[int(key) if key.lstrip("-").isdigit() else key]
    return document


def put(path: str, value):
    """A change of the ledger: set the value at a path; None deletes it."""
    def change(document):
        parent, _, key = path.rpartition("/")
        holder = at(document, parent) if parent else document
        key = int(key) if key.isdigit() else key
        if value is None:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(value)
    return change


LIVE = {"what": "Agreement", "page": "book/prose", "anchor": "a-label"}
FOR, AGAINST = ({"live": {"says": word, "interval": "95 % bootstrap"}} for word in ("for", "against"))
OWN = [LIVE | FOR | {"ground": "the real thing"}]
RAN = {"verdict": "holds here", "reading": "It is better."}
BROKEN = {
    # links
    "a page that is not there": (put("claims/0/evidence/0/page", "notebooks/none"), "no page notebooks/none"),
    "a page outside the book": (put("claims/1/evidence/0/page", "book/unlisted"), "no page book/unlisted"),
    "a label that is not there": (put("claims/0/evidence/0/anchor", "fig-two"), "has no label 'fig-two'"),
    "a label of another page": (put("claims/0/evidence/0/anchor", "a-label"), "has no label 'a-label'"),
    "a label inside code": (put("claims/0/evidence/0/anchor", "not-a-label"), "has no label 'not-a-label'"),
    "a label inside an example": (put("claims/1/evidence/0/anchor", "an-example"), "has no label 'an-example'"),
    "a section that is not there": (put("claims/0/evidence/1/section", "Three"), "has no section 'Three'"),
    "the title is no section": (put("claims/0/evidence/1/section", "A chapter"), "has no section 'A chapter'"),
    # the abstract
    "an item left out": (put("claims/1/covers", []), "no claim covers 'split'"),
    "an item that is not in it": (put("claims/1/covers", ["split", "more"]), "'more' is covered and not in"),
    # form
    "an unknown verdict": (put("claims/0/verdict", "probably"), "'probably' is not one of"),
    "an unknown kind": (put("claims/0/kind", "theorem"), "'theorem' is not one of"),
    "an unknown split": (put("grounds/test scenes/split", "train"), "'train' is not one of"),
    "an unknown ground": (put("claims/0/evidence/0/ground", "thin ice"), "no ground called 'thin ice'"),
    "an unknown field": (put("claims/0/mood", "good"), "'mood' was unexpected"),
    "no place in the paper": (put("claims/0/where", "somewhere"), "'somewhere' does not match"),
    "nothing to overturn it": (put("claims/0/overturn", None), "'overturn' is a required property"),
    "no link": (put("claims/0/evidence/0/anchor", None), "is not valid under any of the given schemas"),
    "neither live nor recorded": (put("claims/0/evidence/0/difference", None), "is not valid under any of the given"),
    "live without interval": (put("claims/1/evidence/0/live/interval", None), "'interval' is a required property"),
    "a quoted number without digits": (put("claims/2/quoted/0/values/ours", 86.4), "86.4 is not of type 'string'"),
    "quoted from nowhere": (put("claims/2/quoted/0/from", "a talk"), "'a talk' does not match"),
    "two of one name": (put("claims/1/id", "better"), "two claims are called better"),
    # verdicts
    "a verdict without evidence": (put("claims/0/evidence", []), "'holds here', and no evidence: it is 'not run'"),
    "a verdict without reading": (put("claims/0/reading", None), "without a reading"),
    "speaking without interval": (put("claims/1/evidence/0/live/interval", "none given"), "without an interval"),
    "speaking without a split": (put("claims/1/evidence/0/ground", "photographs"), "an illustration"),
    "holds, something against": (put("claims/1/verdict", "holds here"), "says against, for"),
    "fails, something for": (put("claims/1/verdict", "does not hold here"), "says against, for"),
    "mixed, nothing against": (put("claims/0/verdict", "mixed here"), "says for"),
    "holds, the other way round": (
        put("claims/0/evidence", [at(ledger(), "claims/0/evidence/0") | {
            "difference": at(ledger(), "claims/0/evidence/0/difference") | {"predicts": "lower"}}]),
        "'holds here', and its evidence says against",
    ),
    "holds on dev, test is silent": (
        put("claims/0/evidence", [LIVE | FOR | {"ground": "dev scenes"}, LIVE | {
            "ground": "test scenes", "live": {"says": "open", "interval": "95 % bootstrap"}}]),
        "'holds here', and its evidence says for, open",
    ),
    "dev against is not forgotten": (
        put("claims/0/evidence", [LIVE | AGAINST | {"ground": "dev scenes"}, LIVE | FOR | {"ground": "test scenes"}]),
        "'holds here', and its evidence says against, for",
    ),
    # table claims
    "a table verdict from another model": (put("claims/2/verdict", "holds here"), "no evidence from its own models"),
    "a table refuted by another model": (put("claims/2/verdict", "does not hold here"), "no evidence from its own"),
    "a table verdict from its own model on other data": (
        put("claims/2", at(ledger(), "claims/2") | RAN | {"evidence": [LIVE | FOR | {"ground": "other data"}]}),
        "no evidence from its own models and data",
    ),
    # numbers
    "a number copied": (put("claims/0/reading", "It is better by 0.012."), "copied into prose ('0.0')"),
    "a share copied": (put("claims/0/overturn", "Less than 40 % of it."), "copied into prose ('0 %')"),
    "points copied": (put("claims/0/evidence/0/what", "AUC, 12 points up"), "copied into prose ('12 points')"),
    # records
    "no record": (put("claims/0/evidence/0/difference/record", "results/no.json"), "no record results/no.json"),
    "no cell": (put("claims/0/evidence/0/difference/first", "d@0.9"), "no cell 'd@0.9' in record.json"),
    "no outcome": (put("claims/0/evidence/0/difference/outcome", "nss"), "has no outcome 'nss'; it has auc, right"),
    "other tokens": (put("claims/0/evidence/0/difference/second", "b@0.8"), "different tokens per layer"),
    "another model than the record's": (put("grounds/test scenes/model", "ViT-H"), "model of its record is 'ViT-S'"),
    "another split than the record's": (put("grounds/test scenes/split", "dev"), "split of its record is 'test'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_seen(root, name):
    change, words = BROKEN[name]
    document = ledger()
    change(document)
    found = claims.problems(document, root)
    assert any(words in text for text in found), found


def test_the_real_ledger_can_be_broken():
    """The same checks see a change in the book's own ledger."""
    for claim in claims.load()["claims"]:
        document = claims.load()
        (mine,) = [other for other in document["claims"] if other["id"] == claim["id"]]
        if claim["kind"] == "table":
            mine["verdict"] = "holds here"
        elif claim["evidence"]:
            mine["evidence"][0]["page"] = "notebooks/none"
        else:
            mine["verdict"] = "does not hold here"
        assert claims.problems(document), claim["id"]


def test_a_table_claim_can_be_run(root):
    document = ledger()
    document["claims"][2] |= RAN | {"evidence": OWN}
    assert claims.problems(document, root) == []
    document["claims"][2]["scope"]["model"].append("ViT-L")  # named, and not run
    (found,) = claims.problems(document, root)
    assert found == "table: 'holds here', and no evidence on its model ViT-L: it is 'not run'"


def test_an_empty_difference_is_not_for_a_claim(root):
    """An interval that contains zero leaves a claim open: it cannot hold, and it can fail."""
    document = ledger()
    document["claims"][0]["evidence"] = document["claims"][0]["evidence"][:1]
    document["claims"][0]["evidence"][0]["difference"] |= {"first": "whole"}
    assert claims.problems(document, root) == ["better: 'holds here', and its evidence says open"]
    document["claims"][0]["verdict"] = "does not hold here"
    assert claims.problems(document, root) == []


@pytest.mark.parametrize(
    "clusters, words", [(["page"], "cannot be computed: 'page'"), (["lone"], "a single cluster gives no interval")]
)
def test_broken_clusters_are_seen(root, clusters, words):
    record = small_record()
    record["header"]["clusters"], record["items"]["lone"] = clusters, ["one"] * ITEMS
    (root / "results/record.json").write_text(json.dumps(record))
    assert any(words in text for text in claims.problems(ledger(), root))


def test_a_smoke_run_is_no_evidence(root):
    record = small_record()
    record["header"]["tier"] = "smoke"
    (root / "results/record.json").write_text(json.dumps(record))
    assert any("smoke tier" in text for text in claims.problems(ledger(), root))


# --- what the page computes


def test_differences_are_those_of_the_record(root):
    record = small_record()
    labels = (record["items"]["object"], record["items"]["photograph"])
    a, b = (record["cells"][key]["outcomes"] for key in ("a@0.9", "b@0.9"))
    page = claims.page(ledger(), root)
    auc = paired_difference(a["auc"], b["auc"], labels)
    assert f"`auc`, `a@0.9` minus `b@0.9`: **{auc}**, 12 items, resampled over 4 objects × 3 photographs" in page
    right, test = paired_difference(a["right"], b["right"], labels), mcnemar(a["right"], b["right"])
    assert f"**{right}**" in page and f"smallest detectable difference {right.detectable:.3f}" in page
    assert f"right with one alone: {test.only_first} and {test.only_second}" in page
    assert f"McNemar's exact p = {test.p:.2g}, as if items were independent" in page
    assert f"| ✓ holds here | {{numref}}`fig-one`: {auc}, [Two outcomes](../notebooks/chapter.ipynb): {right} |" in page
    assert page.count("McNemar") == 1  # not for outcomes that are no right or wrong


@pytest.mark.parametrize(
    "clusters, words", [([], "over 12 items;"), (["id"], "over 12 items;"), (["object"], "over 4 objects;")]
)
def test_other_clusters(root, clusters, words):
    record = small_record()
    record["header"]["clusters"] = clusters
    (root / "results/record.json").write_text(json.dumps(record))
    assert words in claims.page(ledger(), root)


def test_seeds_are_averaged_item_by_item(root):
    pointer = {"record": "results/record.json", "outcome": "auc", "first": "random-merge@0.9", "second": "b@0.9"}
    cells = small_record()["cells"]
    mean = np.mean([cells[f"random-merge@0.9/seed{i}"]["outcomes"]["auc"] for i in range(2)], axis=0)
    found, exact, _ = claims.computed(pointer, root)
    assert found.mean == pytest.approx(np.mean(mean - cells["b@0.9"]["outcomes"]["auc"])) and exact is None


def test_equal_work_can_stand_for_equal_tokens(root):
    pointer = {"record": "results/record.json", "outcome": "auc", "first": "pool", "second": "b@0.9"}
    with pytest.raises(ValueError, match="different tokens"):
        claims.computed(pointer, root)
    assert claims.computed(pointer | {"equal": "work"}, root)[0].mean == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="does not say how many tokens"):
        claims.computed(pointer | {"second": "silent"}, root)
    with pytest.raises(ValueError, match="differ in work"):
        claims.computed(pointer | {"equal": "work", "second": "b@0.8"}, root)
    assert claims.computed(pointer | {"second": "whole"}, root)[0].mean == pytest.approx(-0.2)


def test_missing_values_are_left_out_on_request_only(root):
    pointer = {"record": "results/record.json", "outcome": "auc", "first": "gaps", "second": "b@0.9"}
    with pytest.raises(ValueError, match="1 of 12 outcomes in first are no finite numbers"):
        claims.computed(pointer, root)
    assert claims.computed(pointer | {"skip_missing": True}, root)[0].items == 11


def test_another_record_gives_another_page(root):
    before, record = claims.page(ledger(), root), small_record()
    record["cells"]["a@0.9"]["outcomes"]["auc"][0] += 1
    (root / "results/record.json").write_text(json.dumps(record, indent=1))
    assert claims.page(ledger(), root) != before


def test_what_no_commit_has_is_said(root):
    """Of runs from a modified tree, and of codes that the ledger lists, although their runs name a commit."""
    words, record, listed = "; recorded, of an uncommitted state of the code)", small_record(), ledger()
    assert words not in claims.page(ledger(), root) and "; recorded)" in claims.page(ledger(), root)
    listed["uncommitted"] = ["ffffffffffff"]
    assert claims.problems(listed, root) == [] and words not in claims.page(listed, root)
    listed["uncommitted"].append(RUN["code"])
    assert claims.page(listed, root).count(words) == 2
    for modified in (None, True):  # None: unknown, and not said
        record["runs"][0]["modified"] = modified
        (root / "results/record.json").write_text(json.dumps(record, indent=modified))
        assert claims.page(ledger(), root).count(words) == (2 if modified else 0)
    listed["uncommitted"] = ["no code"]
    assert any("'no code' does not match" in text for text in claims.problems(listed, root))


def test_an_earlier_form_of_an_arm_is_said(root):
    """Of a cell whose options are not those that its arm has today."""
    words, record = ", with an earlier form of the arm, to be made again)", small_record()
    for options, times in ((dict(ARMS["pitome-released-bert"].options), 0), ({"preset": "released-bert"}, 2)):
        record["cells"]["a@0.9"] |= {"arm": "pitome-released-bert", "options": options}
        (root / "results/record.json").write_text(json.dumps(record, indent=1))
        assert claims.page(ledger(), root).count(words) == times


def test_published_numbers_keep_their_digits(root):
    page = claims.page(ledger(), root)
    assert "Table 5, accuracy: whole 86.90, ours 86.4 (0.50 below)." in page
    assert "Table 5, GFLOPs: whole 200, ours 150 (25 % saved)." in page


def test_the_page_says_what_counts(root):
    page = claims.page(ledger(), root)
    assert "**✓ holds here.**" in page and "**◐ mixed here (dev).**" in page and "**○ not run.**" in page
    assert "- *Not counted, another model or other data:* AUC of the map" in page
    row = next(line for line in page.splitlines() if line.startswith("| {ref}`Its table <claim-table>`"))
    assert row.endswith("| ○ not run | none |")  # evidence from another model stays out of the table
    assert "{numref}`fig-one` in [A chapter](../notebooks/chapter.ipynb)" in page
    assert "{ref}`this place <a-label>` in [Prose](../book/prose.md)" in page
    assert "section *Two outcomes* of [A chapter](../notebooks/chapter.ipynb)" in page


def test_ranks_speak_through_recall():
    """Of ranks a ledger asks for rsum, off the shelf or retrained, and gets no test of right or wrong."""
    path = "results/embedded/retrieval-white.json"
    for outcome, column in (("rsum", "rank"), ("rsum_retrained", "rank_retrained")):
        cells = {"first": "pitome@0.9", "second": "tome@0.9"}
        pointer = {"record": path, "outcome": outcome, "predicts": "higher", **cells}
        found, test, record = claims.computed(pointer, claims.ROOT)
        assert test is None and found == recall.difference(record, "pitome@0.9", "tome@0.9", column)
        assert found.mean == pytest.approx(
            recall.table(record, "pitome@0.9", column)["rsum"] - recall.table(record, "tome@0.9", column)["rsum"])
