"""The ledger of claims: the page says what it says, links lead somewhere, verdicts follow from the evidence."""

from __future__ import annotations

import copy
import html
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import claims
from ledger import counts, evidence, links
from ledger.judge import judge

from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import ARMS
from pitome_core.experiments.records.results import FORMAT
from pitome_core.experiments.records.statistics import mcnemar, paired_difference
from pitome_core.experiments.vqa import tasks as vqa

# What the abstract claims. Named here too, so that no item can leave the ledger unseen.
ABSTRACT = {
    "split", "damage", "energy", "flops", "off-the-shelf", "classification", "retrieval", "vqa", "spectrum",
}


# --- the ledger of this book


@pytest.fixture(scope="module")
def judged() -> dict:
    """Every claim of the book by its id, with what it was judged to be."""
    return {claim["id"]: (claim, found) for claim, found in claims.judged(claims.load())}


def test_the_ledger_is_in_order():
    assert claims.problems(claims.load()) == []


def test_the_page_is_up_to_date(judged):
    verdicts = list(judged.values())
    there, now = (claims.ROOT / claims.PAGE).read_text(), claims.written(claims.load(), claims.ROOT, verdicts)
    assert there == now, "book/claims.md is stale: run `python tools/claims.py`"
    assert (claims.ROOT / claims.CHART).read_text() == claims.chart(claims.load()), "the chart is stale, too"
    assert (claims.ROOT / claims.TABLE).read_text() == claims.claims_table(verdicts), "the table is stale, too"


def test_the_table_has_every_claim_with_its_verdict(judged):
    """What the filter looks at is what stands in the row; the link leads to the claim's own entry."""
    rows = re.findall(r'<tr role="row" data-verdict="(.+?)" data-kind="(.+?)"><th.+?#claim-(.+?)">(.+?)</a>(.+)</tr>',
                      (claims.ROOT / claims.TABLE).read_text())
    assert [row[2] for row in rows] == list(judged)
    for verdict, kind, name, title, rest in rows:
        claim, found = judged[name]
        assert (kind, title) == (claim["kind"], claim["title"]) and f"{found.shown}<" in rest
        assert found.shown.startswith(verdict) and ("<small>" in rest) == bool(found.done)
        words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", rest.replace("<summary>more</summary>", ""))).split())
        assert " ".join(claim.get("reading", "Needs").split()) in words, name
        assert "`" not in rest and "{" not in rest, "no Markdown: the table is HTML"


def paper_and_code() -> str:
    return " ".join((claims.ROOT / "book" / "paper_and_code.md").read_text().split())


def test_the_page_on_paper_and_code_counts_verdicts(judged):
    said = Counter((claim["kind"], found.verdict) for claim, found in judged.values())
    number = {verdict: said["mechanism", verdict] for verdict in evidence.VERDICTS}
    assert number["not run"] == 0 and said["table", "mixed here"] == 1
    mechanisms, tables = (sum(n for (kind, _), n in said.items() if kind == of) for of in ("mechanism", "table"))
    words = paper_and_code()
    assert (f"Of {mechanisms} claims about mechanisms, tested on models at hand, {number['holds here']} hold here, "
            f"{number['does not hold here']} do not, {number['mixed here']} are mixed, and for "
            f"{number['no difference found']} no difference was found. Of {tables} results") in words
    assert f"the FLOPs were counted and are mixed; {said['table', 'not run']} were **not run**" in words
    verdicts_of = {name: found.verdict for name, (_, found) in judged.items()}
    holding = [name for name, verdict in verdicts_of.items() if verdict == "holds here"]
    assert holding == ["bsm-split", "merging-saves", "order-features", "spectrum-predicts"]
    assert verdicts_of["pitome-over-tome"] == "does not hold here" and verdicts_of["table-flops"] == "mixed here"
    order = judged["order-features"][1].done
    assert sum(one.heard == "for" for one in order) == 1 and f"rests on one comparison of {len(order)}." in words


def test_the_page_on_paper_and_code_says_what_is_on_record():
    digits, movies = results.load("vision-2-digits"), results.load("text-2-movies")
    preset = {name: f"pitome-released-{name}@0.9" for name in ("deit", "mae", "clip")}
    pairs = [("pitome@0.9/off", "pitome@0.9"), ("tome@0.9/off", "tome@0.9"), ("pitome-hidden@0.9", "pitome@0.9"),
             *((name, "pitome@0.9") for name in preset.values()),
             *((preset["deit"], rival) for rival in ("tome@0.9", "tome@0.9/off", "tome-released-deit@0.9"))]
    found = [digits.difference(first, second, "correct") for first, second in pairs]
    found.append(movies.difference("pitome-released-bert@0.8", "pitome@0.8", "correct"))
    asked = results.load("vqa-2-grid")
    rivals = ("tome-hidden@0.9/off", "tome-released-clip@0.9")
    found += [vqa.difference(asked, preset["clip"], rival) for rival in rivals]
    words = paper_and_code()
    assert re.findall(r"[+-]0\.\d+ \[[^]]*\]", words) == [str(one) for one in found]
    quiet = [one for one in found if one.side == 0]
    assert re.findall(r"(0\.\d+) would have been found", words) == [f"{one.detectable:.3f}" for one in quiet]
    sizes = [round(100 * abs(one.mean)) for one in found[:3]]
    assert f"moves accuracy on digits by {min(sizes)} to {max(sizes)} points" in words
    assert f"on {len(digits)} digits" in words and f"on {len(movies):,} sentences" in words


def test_chart_says_every_primary_difference_to_tome():
    """One row for each task of the newest version, in percent of the whole model, on the side of its interval."""
    ledger = claims.load()
    shown = [one for one in evidence.primaries(ledger["uncommitted"], claims.ROOT)
             if one.found and "title" in one.about["primary"] and one.second.startswith("tome")]
    text = claims.chart(ledger)
    assert len(shown) == 4 and text.count("<tr class=") == len(shown)
    for one in shown:
        row = next(line for line in text.splitlines() if one.about["primary"]["title"] in line)
        assert {0: "same", 1: "better", -1: "worse"}[one.found.side] in row
        low, high = map(float, re.search(r"% \[(\S+), (\S+)\]", row).groups())
        assert low < high and np.sign(low) == np.sign(one.found.low) and np.sign(high) == np.sign(one.found.high)


def test_the_abstract_is_complete():
    assert set(claims.load()["abstract"]) == ABSTRACT


def test_what_the_abstract_puts_in_numbers_is_a_table_claim():
    ledger = claims.load()
    for item in ("flops", "classification", "retrieval", "vqa"):
        rows = [claim for claim in ledger["claims"] if item in claim["covers"] and claim["kind"] == "table"]
        assert rows and all(claim.get("quoted") for claim in rows), item


def test_the_protocol_names_the_list():
    text = (claims.ROOT / "book/protocol.md").read_text()
    assert evidence.LISTED in text
    versions = {task.split()[0] for task, _ in evidence.tasks(claims.ROOT)}
    assert versions and [version for version in versions if f"(`{version}`)" not in text] == []


def attention(cell: dict) -> bool | None:
    """Whether a recorded cell counts sizes in attention, read from its options; None where its layers differ."""
    said = cell.get("proportional")
    if said is not None:
        return said
    settings = ARMS[cell["arm"]].settings["proportional"]
    return settings.pop() if len(settings) == 1 else None


def test_attention_metric_and_place_are_equal_in_every_comparison(judged):
    """Read from the records and from the arms, not by the code that looks for the counterpart."""
    pairs = [(one, evidence.record_of(one.about, claims.ROOT)) for _, found in judged.values() for one in found.done
             if one.second in {name for name in evidence.record_of(one.about, claims.ROOT).groups()} - {"whole"}]
    assert len(pairs) > 300
    for one, record in pairs:
        first, second = record.about(one.first), record.about(one.second)
        assert attention(first) == attention(second) is not None, one
        for what in ("metric", "insertion"):
            assert ARMS[first["arm"]].settings[what] == ARMS[second["arm"]].settings[what], one
        for what in ("tokens", "keep", "towers", "layers", "order", "retrained", "image_tokens"):
            assert first.get(what) == second.get(what), (one, what)


def test_released_presets_stand_beside_tome_without_proportional_attention(judged):
    """Compared with ToMe as published they gained and lost what attention does: digits -.064, and +.008 so."""
    _, found = judged["released-over-tome"]
    assert {one.second.split("/")[1] for one in found.done} == {"off"}
    (digits,) = [one for one in found.done if (one.task, one.first) == ("vision-2 digits", "pitome-released-deit@0.9")]
    assert digits.found.side == 0 and digits.found.mean == pytest.approx(0.008, abs=5e-4)
    assert any(one.pending == "no `tome@0.95/off`" for one in found.comparisons)


def test_shuffled_energies_lose_but_in_two_comparisons(judged):
    """What the front page and the ledger say of scenes, digits and questions about pictures."""
    outcomes = evidence.listed(claims.ROOT)["outcomes"]
    there = [one for one in judged["energy-protects"][1].done
             if "shuffled" in one.second and outcomes[one.outcome]["about"] == "quality"
             and not one.task.startswith(("text", "retrieval")) and "emoji" not in one.task]
    assert len(there) > 30 and sum(one.says != "for" for one in there) == 2
    for page in ("book/index.md", "results/claims.yml"):
        assert "in every comparison there but two." in " ".join((claims.ROOT / page).read_text().split())


def test_random_merging_is_no_evidence_for_energy(judged):
    claim, found = judged["energy-protects"]
    assert not [entry for entry in claim["evidence"] if "random" in entry["what"].lower()]
    assert {group["rival"] for group in claim["compares"]} == {"shuffled", "energy-sorted"}


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
    reading: It is better.
    compares:
      - {arms: [pitome], rival: tome, about: [quality], columns: [off-the-shelf], predicts: better}
    evidence: []
    overturn: More scenes.
  - id: split
    title: It does not depend on the split
    kind: mechanism
    covers: [split]
    claim: It does not depend on the split.
    where: Abstract; Theorem 1
    scope: {model: [any], data: [any]}
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
    quoted:
      - {from: Table 5, what: accuracy, as: drop, values: {whole: "86.90", ours: "86.4"}}
      - {from: "Table 5, work", what: GFLOPs, as: saving, values: {whole: "200", ours: "150"}}
    compares:
      - {arms: [pitome], rival: tome, about: [quality], columns: [off-the-shelf], predicts: better}
    evidence:
      - what: Something else
        page: notebooks/chapter
        section: Two outcomes
        ground: test scenes
        live: {says: for, interval: 95 % bootstrap}
    overturn: A run.
"""
LIST = """
outcomes:
  auc: {about: quality, better: higher}
  right: {about: quality, better: higher}
ignored: [noise]
grids:
  toy-1:
    scenes:
      record: results/toy/record.json
      data: scenes
      page: notebooks/chapter
      primary: {outcome: right, first: pitome@0.9, rivals: [tome]}
      cells:
        - {column: off-the-shelf, outcomes: [auc, right], arms: [pitome, tome], at: ["0.9", "0.8"]}
"""


RUN = {"code": "0123456789ab", "modified": False}


def small_record() -> dict:
    generator = np.random.default_rng(0)
    base = generator.normal(size=ITEMS)
    better = base + 0.5 + 0.1 * generator.normal(size=ITEMS)
    cells = {
        "pitome@0.9": {"auc": better, "right": [1] * 10 + [0] * 2},
        "tome@0.9": {"auc": base, "right": [1, 0] * 3 + [0] * 6},
        "pitome@0.8": {"auc": base + 0.2 * generator.normal(size=ITEMS), "right": [1, 0] * 6},
        "whole": {"auc": base, "right": [1] * ITEMS},
    }
    table = {}
    for key, outcomes in cells.items():
        arm, _, keep = key.partition("@")
        about = {"keep": float(keep), "tokens": [256, round(256 * float(keep))]} if keep else {}
        table[key] = {"arm": arm, **about, "run": 0, "options": {},
                      "outcomes": {name: np.asarray(values).tolist() for name, values in outcomes.items()}}
    items = {
        "id": [f"scene {i}" for i in range(ITEMS)],
        "object": [f"object {i % 4}" for i in range(ITEMS)],
        "photograph": [f"photograph {i // 4}" for i in range(ITEMS)],
    }
    header = {"model": "ViT-S", "split": "test", "tier": "embedded", "clusters": ["object", "photograph"],
              "protocol": "toy-1", "task": "scenes"}
    return {"format": FORMAT, "header": header, "items": items, "runs": [RUN], "cells": table}


def write_record(root: Path, record: dict) -> None:
    (root / "results/toy/record.json").write_text(json.dumps(record))


@pytest.fixture()
def root(tmp_path) -> Path:
    for folder in ("notebooks", "book", "results/toy"):
        (tmp_path / folder).mkdir(parents=True)
    write_record(tmp_path, small_record())
    (tmp_path / evidence.LISTED).write_text(LIST)
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


def verdicts(document: dict, root: Path) -> dict[str, str]:
    return {claim["id"]: judge(claim, root).shown for claim in claims.resolved(document)}


def test_the_small_ledger_is_in_order(root):
    assert claims.problems(ledger(), root) == []
    assert verdicts(ledger(), root) == {
        "better": "✓ holds here", "split": "◐ mixed here (dev)", "table": "○ not run"}


def test_what_can_be_pointed_to(root):
    chapter, prose = (links.read_page(root / name) for name in ("notebooks/chapter.ipynb", "book/prose.md"))
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
FOR, AGAINST, OPEN = ({"live": {"says": word, "interval": "95 % bootstrap"}} for word in ("for", "against", "open"))
BROKEN = {
    # links
    "a page that is not there": (put("claims/1/evidence/0/page", "notebooks/none"), "no page notebooks/none"),
    "a page outside the book": (put("claims/1/evidence/0/page", "book/unlisted"), "no page book/unlisted"),
    "a label that is not there": (put("claims/1/evidence/0/anchor", "fig-two"), "has no label 'fig-two'"),
    "a label of another page": (put("claims/1/evidence/0/anchor", "fig-one"), "has no label 'fig-one'"),
    "a label inside an example": (put("claims/1/evidence/0/anchor", "an-example"), "has no label 'an-example'"),
    "a label inside code": (
        put("claims/1/evidence/0", {"what": "It", "page": "notebooks/chapter", "anchor": "not-a-label",
                                    "ground": "dev scenes"} | FOR | {"what": "Agreement"}),
        "has no label 'not-a-label'",
    ),
    "a section that is not there": (put("claims/2/evidence/0/section", "Three"), "has no section 'Three'"),
    "the title is no section": (put("claims/2/evidence/0/section", "A chapter"), "has no section 'A chapter'"),
    # the abstract
    "an item left out": (put("claims/1/covers", []), "no claim covers 'split'"),
    "an item that is not in it": (put("claims/1/covers", ["split", "more"]), "'more' is covered and not in"),
    # form
    "a verdict of one's own": (put("claims/0/verdict", "holds here"), "'verdict' was unexpected"),
    "an unknown kind": (put("claims/0/kind", "theorem"), "'theorem' is not one of"),
    "an unknown split": (put("grounds/test scenes/split", "train"), "'train' is not one of"),
    "an unknown ground": (put("claims/1/evidence/0/ground", "thin ice"), "no ground called 'thin ice'"),
    "no place in the paper": (put("claims/0/where", "somewhere"), "'somewhere' does not match"),
    "nothing to overturn it": (put("claims/0/overturn", None), "'overturn' is a required property"),
    "no link": (put("claims/1/evidence/0/anchor", None), "is not valid under any of the given schemas"),
    "not live": (put("claims/1/evidence/0/live", None), "'live' is a required property"),
    "live without interval": (put("claims/1/evidence/0/live/interval", None), "'interval' is a required property"),
    "a quoted number without digits": (put("claims/2/quoted/0/values/ours", 86.4), "86.4 is not of type 'string'"),
    "quoted from nowhere": (put("claims/2/quoted/0/from", "a talk"), "'a talk' does not match"),
    "two of one name": (put("claims/1/id", "better"), "two claims are called better"),
    # live evidence
    "a verdict without reading": (put("claims/0/reading", None), "'holds here' without a reading"),
    "speaking without interval": (put("claims/1/evidence/0/live/interval", "none given"), "without an interval"),
    "speaking without a split": (put("claims/1/evidence/0/ground", "photographs"), "an illustration"),
    # comparisons
    "a cell of one's own": (put("claims/0/compares/0/second", "tome@0.8"), "'second' was unexpected"),
    "a strength of one's own": (put("claims/0/compares/0/at", ["0.9"]), "'at' was unexpected"),
    "an unknown arm": (put("claims/0/compares/0/arms", ["a"]), "'a' is not one of"),
    "an arm that the protocol did not name": (
        put("claims/0/compares/0/arms", ["pitome", "pitome-hidden"]), "no grid of the protocol has pitome-hidden"),
    "a rival that is none": (put("claims/0/compares/0/rival", "pitome"), "no arm is to pitome@0.9 as pitome"),
    "nothing about that": (put("claims/0/compares/0/about", ["speed"]), "with outcomes about speed"),
    "scored and asked for by no claim": (
        put("claims", [ledger()["claims"][1] | {"covers": ["split", "better"]}]),
        "no claim compares pitome with tome: quality, off-the-shelf",
    ),
    "counted beside nothing": (
        put("claims/2/counts", {"data": "shapes", "at_least": 0.4, "models": [
            {"name": "ViT-T", "timm": "vit_tiny_patch16_224", "keep": 0.9, "quoted": "Table 9"}]}),
        "nothing is quoted from Table 9",
    ),
    "a column that is none": (
        put("claims/0/compares/0/columns", ["off-the-shelf", "on-the-shelf"]), "no grid has a column 'on-the-shelf'"),
    # numbers
    "a number copied": (put("claims/0/reading", "It is better by 0.012."), "copied into prose ('0.0')"),
    "a share copied": (put("claims/0/overturn", "Less than 40 % of it."), "copied into prose ('0 %')"),
    "points copied": (put("claims/1/evidence/0/what", "AUC, 12 points up"), "copied into prose ('12 points')"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_seen(root, name):
    change, words = BROKEN[name]
    document = ledger()
    change(document)
    found = claims.problems(document, root)
    assert any(words in text for text in found), found


BROKEN_LISTS = {
    "replacing nothing": (put("grids/law-1/digits/replaces", ["text-9 news"]), "'text-9 news', which is no other task"),
    "replacing another task": (put("grids/law-1/digits/replaces", ["text-1 news"]), "scores nothing of it again"),
    "a primary cell that is none": (put("grids/vision-1/scenes/primary/first", "pitome@0.99"), "not among its cells"),
    "a primary outcome that is none": (put("grids/vision-1/scenes/primary/outcome", "acu"), "not among its cells"),
    "a strength beyond one": (put("grids/vision-1/scenes/cells/0/at", ["1.7"]), "keeps no share between 0 and 1"),
    "a cell listed twice": (put("grids/vision-1/scenes/cells/0/at", ["0.9", "0.9"]), "is listed twice"),
    "a second primary cell that is none": (put("grids/vqa-3/replication/primary/first", ["tome@0.9", "tome@0.7"]),
                                           "correct of tome@0.7 is primary, and not among its cells"),
    "a cell scored again and listed": (put("grids/steps-1/emoji/again", ["tome@0.88"]), "and listed as evidence here"),
}


@pytest.mark.parametrize("name", BROKEN_LISTS)
def test_what_is_broken_in_the_list_is_seen(tmp_path, name):
    """In a copy of the book's own list of comparisons."""
    change, words = BROKEN_LISTS[name]
    for part in ("book", "notebooks", "results", "_toc.yml"):
        (tmp_path / part).symlink_to(claims.ROOT / part)
    (tmp_path / "results").unlink()
    (tmp_path / "results").mkdir()
    for part in (claims.ROOT / "results").iterdir():
        if part.name != Path(evidence.LISTED).name:
            (tmp_path / "results" / part.name).symlink_to(part)
    document = yaml.safe_load((claims.ROOT / evidence.LISTED).read_text())
    change(document)
    (tmp_path / evidence.LISTED).write_text(yaml.safe_dump(document))
    found = claims._wrong_list(tmp_path)
    assert any(words in text for text in found), found


def test_trained_models_need_intervals_over_trainings(tmp_path):
    document = yaml.safe_load((claims.ROOT / evidence.LISTED).read_text())
    for entries in document["grids"].values():
        for entry in entries.values():
            for block in entry["cells"]:
                block.pop("over", None)
    (tmp_path / "results").mkdir()
    (tmp_path / evidence.LISTED).write_text(yaml.safe_dump(document))
    for part in ("book", "notebooks", "_toc.yml"):
        (tmp_path / part).symlink_to(claims.ROOT / part)
    assert any("say over: trainings" in text for text in claims._wrong_list(tmp_path))


def test_the_real_ledger_can_be_broken():
    """The same checks see a change in the book's own ledger."""
    document = claims.load()
    for claim in document["claims"]:
        claim["verdict"] = "holds here"
    assert len(claims.problems(document)) == len(document["claims"])


@pytest.mark.parametrize("entries, verdict", {
    "dev alone": ([("dev", FOR)], "✓ holds here (dev)"),
    "test is silent, dev is for": ([("dev", FOR), ("test", OPEN)], "= no difference found"),
    "test is silent, dev is against": ([("dev", AGAINST), ("test", OPEN)], "= no difference found"),
    "test is for, dev against": ([("dev", AGAINST), ("test", FOR)], "✓ holds here"),
    "test is against": ([("test", AGAINST), ("test", OPEN)], "✗ does not hold here"),
    "both on test": ([("test", AGAINST), ("test", FOR)], "◐ mixed here"),
    "nothing": ([], "○ not run"),
}.values())
def test_verdicts_follow_from_live_evidence(root, entries, verdict):
    document = ledger()
    document["claims"][1]["evidence"] = [LIVE | word | {"ground": f"{split} scenes"} for split, word in entries]
    assert verdicts(document, root)["split"] == verdict


def test_a_table_claim_needs_its_own_models_and_data(root):
    document, table = ledger(), ledger()["claims"][2]
    own = LIVE | FOR
    for ground, verdict in (("test scenes", "○ not run"), ("other data", "○ not run"),
                            ("the real thing", "✓ holds here")):
        document["claims"][2] = table | {"reading": "It is.", "evidence": [own | {"ground": ground}]}
        assert verdicts(document, root)["table"] == verdict
    document["claims"][2]["scope"] = {"model": ["ViT-H", "ViT-L"], "data": ["ImageNet-1k"]}  # named, and not run
    assert verdicts(document, root)["table"] == "○ not run"


# --- the list of comparisons


def listed() -> dict:
    return yaml.safe_load(LIST)


TASK = "grids/toy-1/scenes"
WRONG_LISTS = {
    "a cell that is not listed": (put(f"{TASK}/cells/0/at", ["0.9"]), "the outcome auc of pitome@0.8 is not listed"),
    "an arm that is not listed": (put(f"{TASK}/cells/0/arms", ["pitome"]), "the outcome auc of tome@0.9 is not listed"),
    "an outcome that is not listed": (put(f"{TASK}/cells/0/outcomes", ["auc"]), "right of pitome@0.9 is primary, and"),
    "a record that is not listed": (put(f"{TASK}/record", "results/toy/other.json"), "is scored and not listed"),
    "another version": (put("grids", {"toy-2": at(listed(), "grids/toy-1")}), "is of toy-1 scenes, and listed under"),
    "another split": (put(f"{TASK}/split", "dev"), "is of the split 'test', its list says 'dev'"),
    "a key that is no cell": (put(f"{TASK}/cells/0/at", ["0.9", "0.8/of"]), "'pitome@0.8/of' is no cell"),
    "an unknown outcome": (put("outcomes/auc", None), "'auc' is no outcome of the list"),
    "a page that is not there": (put(f"{TASK}/page", "notebooks/none"), "there is no page notebooks/none"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_list_that_does_not_fit_the_records_is_seen(root, name):
    change, words = WRONG_LISTS[name]
    document = listed()
    change(document)
    (root / evidence.LISTED).write_text(yaml.safe_dump(document))
    found = claims.problems(ledger(), root)
    assert any(words in text for text in found), found


def test_what_is_scored_again_is_evidence_elsewhere(root):
    """A cell that a list calls repeated has to be listed by another task, which has it of the same items."""
    document, record = listed(), small_record()
    repeated = {"record": "results/toy/later.json", "again": ["pitome@0.9", "tome@0.9"]}
    later = copy.deepcopy(at(document, TASK)) | repeated
    later["cells"][0]["at"] = ["0.8"]
    later.pop("primary", None)
    document["grids"]["toy-2"] = {"scenes": later}
    record["header"]["protocol"] = "toy-2"

    def found(items: dict) -> list[str]:
        (root / evidence.LISTED).write_text(yaml.safe_dump(document))
        (root / "results/toy/later.json").write_text(json.dumps(record | {"items": items}))
        return [text for text in evidence.unlisted(root) if "said to be scored again" in text]

    assert found(record["items"]) == []
    assert len(found(record["items"] | {"id": [f"other {i}" for i in range(ITEMS)]})) == 2
    at(document, TASK)["cells"][0]["at"] = ["0.8"]
    assert len(found(record["items"])) == 2


def test_of_each_comparison_the_latest_is_evidence(root):
    """What a later task scores again is no evidence in the earlier one; the rest of the earlier one is."""
    document, group = listed(), ledger()["claims"][0]["compares"][0]
    later = copy.deepcopy(at(document, TASK)) | {"record": "results/toy/later.json", "replaces": ["toy-1 scenes"]}
    later["cells"][0]["at"] = ["0.9"]
    document["grids"]["toy-2"] = {"scenes": later}
    (root / evidence.LISTED).write_text(yaml.safe_dump(document))

    def planned():
        return {(one.task, one.first) for one in evidence.planned(group, root)}

    early = {("toy-1 scenes", "pitome@0.9"), ("toy-1 scenes", "pitome@0.8")}
    assert planned() == early | {("toy-2 scenes", "pitome@0.9")}  # not scored yet
    again = small_record()
    again["header"]["protocol"] = "toy-2"
    (root / "results/toy/later.json").write_text(json.dumps(again))
    assert planned() == {("toy-2 scenes", "pitome@0.9"), ("toy-1 scenes", "pitome@0.8")}


def test_two_records_of_the_same_items_are_read_as_one(root):
    record, document = small_record(), listed()
    beside = copy.deepcopy(record)
    record["cells"].pop("tome@0.9")
    write_record(root, record)
    (root / "results/toy/beside.json").write_text(json.dumps(beside | {"header": beside["header"] | {"split": "dev"}}))
    at(document, TASK)["beside"] = "results/toy/beside.json"
    (root / evidence.LISTED).write_text(yaml.safe_dump(document))
    entry = at(document, TASK)
    with pytest.raises(results.RecordError, match="split differ"):
        evidence.record_of(entry, root)
    (root / "results/toy/beside.json").write_text(json.dumps(beside))
    assert evidence.record_of(entry, root).has("tome@0.9", "auc")


@pytest.mark.parametrize(
    "clusters, words", [(["page"], "cannot be computed: 'page'"), (["lone"], "a single cluster gives no interval")]
)
def test_broken_clusters_are_seen(root, clusters, words):
    record = small_record()
    record["header"]["clusters"], record["items"]["lone"] = clusters, ["one"] * ITEMS
    write_record(root, record)
    assert any(words in text for text in claims.problems(ledger(), root))


def test_a_smoke_run_is_no_evidence(root):
    record = small_record()
    record["header"]["tier"] = "smoke"
    write_record(root, record)
    assert any("smoke tier" in text for text in claims.problems(ledger(), root))


# --- what the page says


def breakable(page: str) -> str:
    """The page with spaces in place of no-break spaces in its intervals."""
    return page.replace("\u00a0", " ")


def test_differences_are_those_of_the_record(root):
    record = small_record()
    labels = (record["items"]["object"], record["items"]["photograph"])
    a, b = (record["cells"][key]["outcomes"] for key in ("pitome@0.9", "tome@0.9"))
    page = breakable(claims.written(ledger(), root))
    auc, right = (paired_difference(a[name], b[name], labels) for name in ("auc", "right"))
    test = mcnemar(a["right"], b["right"])
    task = "[toy-1 scenes](../notebooks/chapter.ipynb)"
    assert f"| {task} | `auc` | `pitome@0.9` − `tome@0.9` | {auc} | " in page
    assert f"| {task} | `right` | `pitome@0.9` − `tome@0.9` | {right} | " in page
    assert f"{test.only_first} : {test.only_second}, p {test.p:.2g}" in page  # primary
    assert page.index(f"{test.only_first} : {test.only_second}") < page.index(":::{dropdown} 1 secondary comparisons")
    assert f"{auc.kind} over 4 objects × 3 photographs" in page
    assert "2 recorded: 2 for, 0 against, 0 no difference found; after Holm" in page


def test_what_was_not_run_is_said(root):
    page = claims.written(ledger(), root)
    assert ":::{dropdown} 1 secondary comparisons and 2 not run yet" in page
    assert "- *Not run yet*, no `tome@0.8`: `pitome@0.8` (toy-1: scenes)." in page
    (root / "results/toy/record.json").unlink()
    assert claims.problems(ledger(), root) == []
    assert verdicts(ledger(), root)["better"] == "○ not run" and "4 not run yet" in claims.written(ledger(), root)


def test_no_difference_has_its_detectable_size(root):
    record = small_record()
    cells = record["cells"]
    cells["pitome@0.9"]["outcomes"] = cells["pitome@0.8"]["outcomes"]
    write_record(root, record)
    found = judge(claims.resolved(ledger())[0], root)
    assert found.shown == "= no difference found"
    size = next(one.found.detectable for one in found.done if one.outcome == "auc")
    assert f"it would have been detected from:* `auc` {size:.2g}, `right`" in claims.written(ledger(), root)


def test_primary_quantities_stand_by_themselves(root):
    """Also those that no claim asks for, such as the difference to the whole model."""
    document = listed()
    document["grids"]["toy-1"]["scenes"]["primary"]["rivals"] = ["tome", "whole"]
    (root / evidence.LISTED).write_text(yaml.safe_dump(document))
    record = small_record()
    page = breakable(claims.written(ledger(), root))
    rows = [line for line in page.split("## Mechanism claims")[0].splitlines() if "| `right` | `pitome@0.9` −" in line]
    pitome, whole = (record["cells"][key]["outcomes"]["right"] for key in ("pitome@0.9", "whole"))
    found = paired_difference(pitome, whole, (record["items"]["object"], record["items"]["photograph"]))
    assert len(rows) == 2 and f"− `whole` | {found} |" in rows[1]
    (root / "results/toy/record.json").unlink()
    assert claims.written(ledger(), root).count("not run yet: no record of `pitome@0.9`") == 2


def test_an_end_that_is_not_zero_is_not_shown_as_zero(root):
    record = small_record()
    values = np.random.default_rng(3).normal(size=ITEMS)
    for key, shift in (("pitome@0.9", 1), ("tome@0.9", 0)):
        record["cells"][key]["outcomes"]["auc"] = (shift * (1e-3 + 3e-4 * values)).tolist()
    write_record(root, record)
    one = next(one for one in judge(claims.resolved(ledger())[0], root).done if one.outcome == "auc")
    assert one.says == "for" and one.found.format(3) == "+0.001 [+0.000, +0.001]"
    page = breakable(claims.written(ledger(), root))
    assert "+0.0010 [+0.0005, +0.0015]" in page and "[+0.000," not in page


def test_more_comparisons_than_resamples_allow_are_refused(root, monkeypatch):
    """With few resamples the smallest p-value is so large that nothing survives Holm's correction."""
    monkeypatch.setattr(claims, "RESAMPLES", 78)
    assert claims.problems(ledger(), root) == ["better: 2 comparisons are too many for 78 resamples, because none can "
                                               "survive Holm's correction: divide the claim, or draw more"]


def test_another_record_gives_another_page(root):
    before, record = claims.written(ledger(), root), small_record()
    record["cells"]["pitome@0.9"]["outcomes"]["auc"][0] += 1
    (root / "results/toy/record.json").write_text(json.dumps(record, indent=1))
    assert claims.written(ledger(), root) != before


def test_what_no_commit_has_is_said(root):
    """Of runs from a modified tree, and of codes that the ledger lists, although their runs name a commit."""
    record, document = small_record(), ledger()
    plain = claims.written(document, root).count("†")  # the legend
    document["uncommitted"] = ["ffffffffffff"]
    assert claims.written(document, root).count("†") == plain
    document["uncommitted"].append(RUN["code"])
    assert claims.written(document, root).count("†") == plain + 3
    for modified in (None, True):  # None: unknown, and not said
        record["runs"][0]["modified"] = modified
        (root / "results/toy/record.json").write_text(json.dumps(record, indent=modified))
        assert claims.written(ledger(), root).count("†") == plain + (3 if modified else 0)


def test_an_earlier_form_of_an_arm_is_no_evidence(root):
    record = small_record()
    record["cells"]["pitome@0.9"]["options"] = {"preset": "paper"}
    write_record(root, record)
    found = judge(claims.resolved(ledger())[0], root)
    assert not any("pitome@0.9" in (one.first, one.second) for one in found.done)
    assert "no `pitome@0.9` but of an earlier form of the arm" in claims.written(ledger(), root)


def test_published_numbers_keep_their_digits(root):
    page = claims.written(ledger(), root)
    assert "Table 5, accuracy: whole 86.90, ours 86.4 (0.50 below)." in page
    assert "Table 5, work, GFLOPs: whole 200, ours 150 (25 % saved)." in page


def test_the_page_says_what_counts(root):
    page = claims.written(ledger(), root)
    assert "**✓ holds here.**" in page and "**◐ mixed here (dev).**" in page and "**○ not run.**" in page
    assert "- *Not counted, another model or other data:* Something else" in page
    row = next(line for line in page.splitlines() if line.startswith("| {ref}`Its table <claim-table>`"))
    assert row.endswith("| ○ not run | none |")  # evidence from another model stays out of the table
    assert "{ref}`this place <a-label>` in [Prose](../book/prose.md)" in page
    assert "section *Two outcomes* of [A chapter](../notebooks/chapter.ipynb)" in page


# --- counts


def test_counts_are_those_of_the_paper_s_convention():
    """DeiT-S at the keep ratios for which the sums of 12 N C^2 + 2 N^2 C are known, and the honest count beside it."""
    whole, at_925, at_900, honest = 4.540695552, 3.068923392, 2.698195200, 2.536583424
    assert counts.saved("deit_small_patch16_224", 0.925).released == pytest.approx(1 - at_925 / whole, abs=1e-9)
    found = counts.saved("deit_small_patch16_224", 0.9)
    assert found.released == pytest.approx(1 - at_900 / whole, abs=1e-9)
    assert found.counted == pytest.approx(1 - honest / whole, abs=0.01)  # embedding, head and the merge itself


@pytest.mark.parametrize("released, counted, says", [(0.5, 0.4, "for"), (0.39, 0.41, "open"), (0.3, 0.39, "against")])
def test_a_count_speaks_where_both_ways_of_counting_agree(released, counted, says):
    assert counts.Count(released, counted).says(0.4) == says


def test_keep_ratios_of_table_5_are_the_nearest():
    claim = next(claim for claim in claims.load()["claims"] if claim["id"] == "table-flops")
    rows = [row for row in claim["counts"]["models"] if row["quoted"].startswith("Table 5")]
    assert len(rows) == 4
    for row in rows:
        published = counts.quoted(claim, row)
        misses = {keep: abs(counts.saved(row["timm"], keep).released - published)
                  for keep in (row["keep"] - 1 / 80, row["keep"], row["keep"] + 1 / 80)}
        assert min(misses, key=misses.get) == row["keep"] and 80 * row["keep"] == pytest.approx(round(80 * row["keep"]))


def test_the_claim_on_flops_has_a_verdict(judged):
    claim, found = judged["table-flops"]
    said = {row["name"]: says for row, _, says in found.counted}
    assert said == {"DeiT-T": "against", "DeiT-S": "against", "BLIP": "against", "CLIP": "for", "ViT-MAE-L": "for",
                    "ViT-MAE-H": "for"}
    assert found.verdict == "mixed here"
    for row, count, _ in found.counted:  # a count that was far from the paper's would be of another model
        assert count.released == pytest.approx(counts.quoted(claim, row), abs=0.04), row["name"]


def test_the_sentence_on_the_front_page_says_what_is_on_record():
    """Its numbers are computed here, so that a new record cannot leave it behind."""
    digits, scenes = results.load("law-digits"), results.load("law-scenes")
    asked, once_more = results.load("vqa-2-grid"), results.load("vqa-3-replication")
    on = "gate-2-hidden@0.9"
    numbers = [
        digits.difference("pitome@0.9", "tome@0.9", "correct"),
        scenes.difference("pitome@0.9", "tome@0.9", "auc"),
        digits.difference(on, "tome-hidden@0.9", "correct"),
        digits.difference(f"{on}/off", "tome-hidden@0.9/off", "correct"),
        vqa.difference(asked, "pitome-hidden@0.9", "tome-hidden@0.9"),
        vqa.difference(asked, "pitome-hidden@0.9", "tome@0.9"),
        vqa.difference(once_more, "pitome-hidden@0.9", "tome-hidden@0.9"),
        vqa.difference(once_more, "pitome-hidden@0.9", "tome@0.9"),
    ]
    words = " ".join((claims.ROOT / "book" / "index.md").read_text().split())
    sentence = words[words.index("**One sentence to act on.**") :].partition("*Why*")[0]
    assert re.findall(r"[+-]\d\.\d+ \[[^]]*\]", sentence) == [str(number) for number in numbers]


def test_counting_sizes_gains_what_the_front_page_says():
    digits, scenes = results.load("vision-2-digits"), results.load("law-scenes")
    forms = [f"{arm}{metric}" for arm in ("pitome", "energy-sorted", "tome") for metric in ("", "-hidden")]
    gains = {form: [100 * record.difference(f"{form}@0.9", f"{form}@0.9/off", outcome).mean
                    for record, outcome in ((digits, "correct"), (scenes, "auc"))] for form in forms}
    assert all(4 <= round(points) <= 8 for points, _ in gains.values())
    assert round(gains.pop("pitome")[1]) == 1 and all(-1 <= auc < 0 for _, auc in gains.values())
    words = " ".join((claims.ROOT / "book" / "index.md").read_text().split())
    assert "gains four to eight points on digits" in words
    assert "gains one point of AUC with PiToMe, and costs up to one with the other forms" in words


def test_the_front_page_saves_what_it_says():
    words = " ".join((claims.ROOT / "book" / "index.md").read_text().split())
    assert "merge with ToMe {cite}`bolya2023tome` at keep 0.9, which saves over two fifths of the work" in words
    assert counts.saved("vit_small_patch16_224", 0.9).counted > 0.4  # PiToMe; ToMe's merge is cheaper
