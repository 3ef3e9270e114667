"""Check the ledger of claims, results/claims.yml, and write what the book shows of it.

`python tools/claims.py` writes book/claims.md, the front page's chart and the table of all claims; tests/book hold them
to the ledger. A claim has

- `id`; `kind`: `mechanism` (what some part of the method does, on any model) or `table` (a result on the paper's own
  models and data); `covers`: the items of the abstract that it stands for;
- `title`; `claim` in our words, `where` in the paper, `scope`: the models and data that it is about;
- `reading`: one or two sentences on what was seen, `note`, and `overturn`: what could change the verdict;
- `quoted`: published numbers as printed, the reference first, shown with drop or saving against it or bare (`values`);
- its evidence, of three kinds:
  - `compares`: groups of `arms` (of the experiments), the `rival` that they are compared with, what the outcomes are
    `about`, the `columns` of the protocol and whether the claim `predicts` that the arms are better or worse. *Every*
    comparison of results/comparisons.yml that fits is evidence; the second cell follows from the first and the rival
    (`ledger.evidence.counterpart`). It speaks for or against the claim where its interval excludes zero, and counts in
    the verdict where that survives Holm's correction over all comparisons of the claim, or over its primary ones. A
    comparison whose cells are not on record is shown as not run yet.
  - `counts`: models of timm, counted from their shapes at a keep ratio each, and the share of the work that is
    `at_least` to be saved. `quoted` names the row of published numbers that stands beside the count.
  - `evidence`: what stands in a chapter (theory, figures, exact counts). Each entry says `what` was looked at, on which
    `page` (with the `anchor` of a figure, or the title of a `section`), on what `ground`, in which `setting`, and
    `live: {says: for | against | open, interval: what kind}`.

A ground, listed under `grounds`, is a model, data and a split (`test`; `dev`; `all`: every item at hand, with nothing
chosen on them; `none` for illustrations, which carry no verdict; `not needed` for exact counts and synthetic tokens).
`uncommitted` lists codes of recorded runs (the field `code`) that no commit has, although the runs name a commit.

The verdict is computed (`ledger.evidence.verdict`) and stands nowhere in the ledger.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import yaml
from ledger import evidence
from ledger.chart import primary_chart
from ledger.evidence import RIVALS
from ledger.judge import Judged, judge
from ledger.links import page_file, read_page
from ledger.page import SPLITS, page
from ledger.table import claims_table

from pitome_core.experiments.records.cells import ARMS, Cell
from pitome_core.experiments.records.results import RecordError
from pitome_core.experiments.records.statistics import RESAMPLES

ROOT = Path(__file__).resolve().parents[1]
LEDGER, PAGE, CHART = "results/claims.yml", "book/claims.md", "book/primary_chart.html"
TABLE = "book/claims_table.html"
SAYS = ("for", "against", "open")


# --- what a ledger looks like


def _object(required: dict, **optional) -> dict:
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _list(items: dict, **more) -> dict:
    return {"type": "array", "items": items, "minItems": 1, **more}


TEXT, NAME = {"type": "string", "minLength": 3}, {"type": "string", "minLength": 1}
NAMES = _list({"type": "string", "minLength": 2}, uniqueItems=True)
ARM, SHARE = {"enum": list(ARMS)}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
LIVE = _object(
    {"what": TEXT, "page": TEXT, "ground": TEXT, "live": _object({"says": {"enum": list(SAYS)}, "interval": TEXT})},
    anchor=TEXT, section=TEXT, setting=TEXT,
) | {"oneOf": [{"required": ["anchor"]}, {"required": ["section"]}]}
GROUP = _object({
    "arms": _list(ARM, uniqueItems=True), "rival": {"enum": list(RIVALS)}, "about": NAMES, "columns": NAMES,
    "predicts": {"enum": ["better", "worse"]},
})
COUNTS = _object({
    "data": TEXT, "at_least": SHARE, "models": _list(_object({"name": TEXT, "timm": TEXT, "keep": SHARE}, quoted=TEXT)),
})
QUOTED = _object({
    "from": {"type": "string", "pattern": "Table [0-9]"},
    "what": TEXT,
    "as": {"enum": ["values", "drop", "saving"]},
    "values": {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?$"},  # strings keep the digits as printed
        "minProperties": 2,
    },
})
CLAIM = _object(
    {
        "id": {"type": "string", "pattern": "^[a-z][a-z0-9-]+$"},
        "kind": {"enum": ["mechanism", "table"]},
        "covers": {"type": "array", "items": TEXT, "uniqueItems": True},
        "title": {"type": "string", "pattern": "^[^`<>|]{3,60}$"},
        "claim": TEXT,
        "where": {"type": "string", "pattern": r"Abstract|Tables? \d|Equation \d|equation \d|Theorem \d"},
        "scope": _object({"model": NAMES, "data": NAMES}),
        "evidence": {"type": "array", "items": LIVE},
        "overturn": TEXT,
    },
    reading=TEXT, note=TEXT, quoted=_list(QUOTED), compares=_list(GROUP), counts=COUNTS,
)
GROUND = _object({"model": TEXT, "data": TEXT, "split": {"enum": list(SPLITS)}})
SCHEMA = _object({
    "grounds": {"type": "object", "additionalProperties": GROUND},
    "abstract": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    "claims": _list(CLAIM),
}, uncommitted={"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{12}$"}, "uniqueItems": True})
BLOCK = _object({"column": NAME, "outcomes": NAMES, "arms": _list(ARM), "at": NAMES}, over={"enum": ["trainings"]})
TASK = _object(
    {"record": TEXT, "data": TEXT, "page": TEXT, "cells": _list(BLOCK)},
    split={"enum": ["test", "all", "dev"]}, beside=TEXT, replaces=NAMES, again=NAMES,
    primary=_object({"outcome": NAME, "first": {"oneOf": [NAME, NAMES]}, "rivals": _list({"enum": list(RIVALS)})},
                    title=TEXT),
)
OUTCOME = _object({"about": NAME, "better": {"enum": ["higher", "lower"]}}, digits={"type": "integer", "minimum": 0})
VERSION = {"type": "object", "additionalProperties": TASK}
LISTED = _object({
    "outcomes": {"type": "object", "additionalProperties": OUTCOME},
    "ignored": {"type": "array", "items": NAME},
    "grids": {"type": "object", "additionalProperties": VERSION},
})


# --- what must hold


def resolved(ledger: dict) -> list[dict]:
    """The claims, with model, data and split of its ground written into each live entry."""
    grounds = ledger["grounds"]
    return [claim | {"evidence": [entry | grounds[entry["ground"]] for entry in claim["evidence"]]}
            for claim in ledger["claims"]]


# Results in prose: signed numbers, decimals, percentages. A setting has its own field.
NUMBER = re.compile(r"\d\s*%|\d\.\d|[+−-]\d|\d+ points")


def _form(document: dict, schema: dict) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def problems(ledger: dict, root: Path = ROOT) -> list[str]:
    """Everything that is wrong with a ledger, or with the list of comparisons; an empty list if nothing is."""
    if found := _form(ledger, SCHEMA) + _form(evidence.listed(root), LISTED):
        return found
    if wrong := _wrong_list(root):
        return wrong
    found = evidence.unlisted(root)
    names = [claim["id"] for claim in ledger["claims"]]
    found += [f"two claims are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    covered = {item for claim in ledger["claims"] for item in claim["covers"]}
    found += [f"no claim covers {item!r} of the abstract" for item in ledger["abstract"] if item not in covered]
    found += [f"{item!r} is covered and not in the abstract" for item in sorted(covered - set(ledger["abstract"]))]
    named = {entry["ground"] for claim in ledger["claims"] for entry in claim["evidence"]}
    if missing := sorted(named - set(ledger["grounds"])):
        return [*found, *(f"there is no ground called {name!r}" for name in missing)]
    found += _unused(ledger, root)
    for claim in resolved(ledger):
        wrong = [text for entry in claim["evidence"] for text in _wrong_live(entry, root)]
        wrong += _copied_numbers(claim) + _wrong_groups(claim, root)
        found += [f"{claim['id']}: {text}" for text in wrong or _wrong_judgement(claim, ledger, root)]
    return found


def _wrong_list(root: Path) -> list[str]:
    listed, entries, wrong = evidence.listed(root), dict(evidence.tasks(root)), []
    for task, entry in entries.items():
        for earlier in entry.get("replaces", ()):
            if earlier not in entries or earlier == task:
                wrong.append(f"{task} replaces {earlier!r}, which is no other task of the list")
            elif not set(evidence.scored_by(entry)) & set(evidence.scored_by(entries[earlier])):
                wrong.append(f"{task} replaces {earlier!r}, and scores nothing of it again")
        scored = Counter((outcome, key) for _, outcome, key in evidence.scored_by(entry))
        wrong += [f"{task}: {name} of {key} is listed twice" for (name, key), times in scored.items() if times > 1]
        primary = entry.get("primary", {}).get("outcome")
        wrong += [f"{task}: {primary} of {first} is primary, and not among its cells"
                  for first in evidence.first_cells(entry) if (primary, first) not in scored]
        wrong += [f"{task}: {key} is scored again, and listed as evidence here" for key in entry.get("again", ())
                  if key in {cell for _, cell in scored}]
        trained = [key for block in entry["cells"] if "over" not in block for name in block["outcomes"]
                   for key in block["at"] if key.endswith("/retrained") or name == "rsum_retrained"]
        wrong += [f"{task}: {key} is over items, and its models were trained anew: say over: trainings"
                  for key in dict.fromkeys(trained)]
        if page_file(root, entry["page"]) is None:
            wrong.append(f"{task}: there is no page {entry['page']} in the book")
        asked = {name for block in entry["cells"] for name in block["outcomes"]}
        wrong += [f"{task}: {name!r} is no outcome of the list" for name in sorted(asked - set(listed["outcomes"]))]
        for block in entry["cells"]:
            for key in (f"{arm}@{at}" for arm in block["arms"] for at in block["at"]):
                try:
                    if not 0 < evidence.cell_of(key).keep < 1:
                        wrong.append(f"{task}: {key} keeps no share between 0 and 1")
                except ValueError as error:
                    wrong.append(f"{task}: {error}")
    return wrong


def _unused(ledger: dict, root: Path) -> list[str]:
    """Forms of PiToMe in the list that no claim compares with ToMe in some column: nothing scored is left out."""
    outcomes = evidence.listed(root)["outcomes"]
    there = {(arm, outcomes[name]["about"], block["column"]) for _, entry in evidence.tasks(root)
             for block in entry["cells"] for name in block["outcomes"] for arm in block["arms"]
             if ARMS[arm].kind == "pitome" and not arm.endswith("-shuffled") and Cell(arm, 0.9).beside("tome")}
    asked = {(arm, about, column) for claim in ledger["claims"] for group in claim.get("compares", ())
             if group["rival"] == "tome" for arm, about, column in
             itertools.product(group["arms"], group["about"], group["columns"])}
    return [f"no claim compares {arm} with tome: {about}, {column}" for arm, about, column in sorted(there - asked)]


def _wrong_live(entry: dict, root: Path) -> list[str]:
    file, wrong, says = page_file(root, entry["page"]), [], entry["live"]["says"]
    if file is None:
        wrong.append(f"there is no page {entry['page']} in the book")
    else:
        there, target = read_page(file), entry.get("anchor") or entry["section"]
        if target not in (there.labels if "anchor" in entry else there.sections):
            wrong.append(f"{entry['page']} has no {'label' if 'anchor' in entry else 'section'} {target!r}")
    if says != "open" and re.search(r"\bno(ne)?\b", entry["live"]["interval"]):
        wrong.append(f"it speaks {says} the claim without an interval")
    if entry["split"] == "none" and says != "open":
        wrong.append("an illustration without a split speaks neither for nor against a claim")
    return wrong


def _copied_numbers(claim: dict) -> list[str]:
    texts = [claim.get("reading", ""), claim["overturn"], *(entry["what"] for entry in claim["evidence"])]
    return [f"a result is copied into prose ({match[0]!r}): point to it" for t in texts if (match := NUMBER.search(t))]


def _wrong_groups(claim: dict, root: Path) -> list[str]:
    """Groups that ask for what the list does not have: an arm in no grid, or outcomes about nothing there."""
    wrong, outcomes = [], evidence.listed(root)["outcomes"]
    known = {block["column"] for _, entry in evidence.tasks(root) for block in entry["cells"]}
    for group in claim.get("compares", ()):
        wrong += [f"no grid has a column {name!r}" for name in group["columns"] if name not in known]
        wrong += [f"no outcome is about {name!r}" for name in group["about"]
                  if name not in {outcome["about"] for outcome in outcomes.values()}]
        firsts = {one.first.partition("@")[0] for one in evidence.planned(group, root)}
        wrong += [f"no grid of the protocol has {arm} in {', '.join(group['columns'])} with outcomes about "
                  f"{', '.join(group['about'])}" for arm in group["arms"] if arm not in firsts]
    for row in claim.get("counts", {"models": []})["models"]:
        if "quoted" in row and row["quoted"] not in [quote["from"] for quote in claim.get("quoted", ())]:
            wrong.append(f"nothing is quoted from {row['quoted']}")
    return wrong


def _wrong_judgement(claim: dict, ledger: dict, root: Path) -> list[str]:
    try:
        judged = judge(claim, root, ledger.get("uncommitted", []))
    except (ValueError, KeyError, RecordError) as error:
        return [f"a comparison cannot be computed: {error}"]
    least = 2 / (RESAMPLES + 1)  # the smallest p-value of a bootstrap
    if (number := len(judged.done)) * least > evidence.LEVEL:
        return [f"{number} comparisons are too many for {RESAMPLES} resamples, because none can survive Holm's "
                "correction: divide the claim, or draw more"]
    if judged.verdict != "not run" and "reading" not in claim:
        return [f"{judged.verdict!r} without a reading of what was seen"]
    return []


def load(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / LEDGER).read_text())


def judged(ledger: dict, root: Path = ROOT) -> list[tuple[dict, Judged]]:
    """Every claim with what it is judged to be."""
    return [(claim, judge(claim, root, ledger.get("uncommitted", []))) for claim in resolved(ledger)]


def written(ledger: dict, root: Path = ROOT, verdicts: list[tuple[dict, Judged]] | None = None) -> str:
    """The page for a ledger without problems. `verdicts` are what `judged` gave, if it was asked before."""
    return page(ledger, verdicts or judged(ledger, root), evidence.primaries(ledger.get("uncommitted", []), root), root)


def chart(ledger: dict, root: Path = ROOT) -> str:
    """The front page's chart."""
    return primary_chart(evidence.primaries(ledger.get("uncommitted", []), root), root)


def main() -> int:
    ledger = load()
    if found := problems(ledger):
        print("\n".join(found))
        return 1
    verdicts = judged(ledger)  # takes seconds
    (ROOT / PAGE).write_text(written(ledger, ROOT, verdicts))
    (ROOT / CHART).write_text(chart(ledger))
    (ROOT / TABLE).write_text(claims_table(verdicts))
    print(f"{len(ledger['claims'])} claims; written to {PAGE}, {CHART} and {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
