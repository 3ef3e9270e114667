"""Check the ledger of claims, results/claims.yml, and write book/claims.md from it.

`python tools/claims.py` does both; tests/book/test_claims.py holds the page to the ledger. A claim has

- `id`; `kind`: `mechanism` (what some part of the method does, on any model) or `table` (a result on the paper's own
  models and data); `covers`: the items of the abstract that it stands for;
- `title`; `claim` in our words, `where` in the paper, `scope`: the models and data that it is about;
- `verdict`; `reading`: one or two sentences on what was seen, `note`, and `overturn`: what could change the verdict;
- `quoted`: published numbers as printed, the reference first, shown with drop or saving against it or bare (`values`);
- `evidence`: a list. Each entry says `what` was compared, on which `page` (with the `anchor` of a figure, or the title
  of a `section`), on what `ground` and in which `setting`, and has one of
  - `live: {says: for | against | open, interval: what kind}`: the numbers stand on that page, which computes them;
  - `difference: {record, outcome, first, second, predicts: higher | lower}`: computed here from a recorded run, with
    interval, smallest detectable difference and, for right-or-wrong outcomes, McNemar's test. `first` and `second` are
    keys of the record's cells (`random-merge@0.9` is the mean over its seeds). `predicts` is what the claim says about
    first minus second; whether the evidence speaks for it follows from the interval. Optional: `equal: work` where not
    the tokens but the multiply-accumulates are equal, `skip_missing: true` where items lack a value, `digits`.

A ground, listed under `grounds`, is a model, data and a split (`test`; `dev`; `all`: every item at hand, with nothing
chosen on them; `none` for illustrations, which carry no verdict; `not needed` for exact counts and synthetic tokens).
Model and split of a recorded difference must be those of its record.

`uncommitted` lists codes of recorded runs (the field `code`) that no commit has, although the runs name a commit. Of
such runs, and of runs with `modified: true`, the page says that they are of an uncommitted state of the code. Of a
cell made with other options than its arm has today it says that it is of an earlier form of the arm.

A verdict has to fit its evidence. "Holds here": something is for the claim and nothing against it. "Mixed here":
something is for it and something is not. "Does not hold here": nothing is for it. Where there is evidence from a test
split or from all items, dev evidence alone makes nothing hold. For a table claim only evidence from its own models and
data counts.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import yaml

from pitome_core.experiments.records.results import Record, RecordError
from pitome_core.experiments.records.statistics import Difference, McNemar, mcnemar
from pitome_core.experiments.records.tables import markdown
from pitome_core.experiments.retrieval import recall

ROOT = Path(__file__).resolve().parents[1]
LEDGER, PAGE = "results/claims.yml", "book/claims.md"
RSUM = {"rsum": "rank", "rsum_retrained": "rank_retrained"}  # what a ledger may ask for, and the ranks it comes from
VERDICTS = {"holds here": "✓", "does not hold here": "✗", "mixed here": "◐", "not run": "○"}
SAYS = ("for", "against", "open")
SCORED = ("test", "all")
PLURALS = {"identity": "identities", "id": "items"}
SPLITS = {
    "test": "test split",
    "dev": "dev split, exploratory",
    "all": "all items at hand, nothing chosen on them",
    "none": "illustration, no split",
    "not needed": "no data needed",
}


# --- what a ledger looks like


def _object(required: dict, **optional) -> dict:
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


TEXT, NAME = {"type": "string", "minLength": 3}, {"type": "string", "minLength": 1}
NAMES = {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 1, "uniqueItems": True}
EVIDENCE = _object(
    {"what": TEXT, "page": TEXT, "ground": TEXT},
    anchor=TEXT,
    section=TEXT,
    setting=TEXT,
    live=_object({"says": {"enum": list(SAYS)}, "interval": TEXT}),
    difference=_object(
        {"record": TEXT, "outcome": NAME, "first": TEXT, "second": TEXT, "predicts": {"enum": ["higher", "lower"]}},
        equal={"enum": ["tokens", "work"]},
        skip_missing={"type": "boolean"},
        digits={"type": "integer", "minimum": 0},
    ),
)
EVIDENCE["allOf"] = [
    {"oneOf": [{"required": ["live"]}, {"required": ["difference"]}]},
    {"oneOf": [{"required": ["anchor"]}, {"required": ["section"]}]},
]
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
        "verdict": {"enum": list(VERDICTS)},
        "evidence": {"type": "array", "items": EVIDENCE},
        "overturn": TEXT,
    },
    reading=TEXT,
    note=TEXT,
    quoted={"type": "array", "items": QUOTED, "minItems": 1},
)
GROUND = _object({"model": TEXT, "data": TEXT, "split": {"enum": list(SPLITS)}})
SCHEMA = _object({
    "grounds": {"type": "object", "additionalProperties": GROUND},
    "abstract": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    "claims": {"type": "array", "items": CLAIM, "minItems": 1},
}, uncommitted={"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{12}$"}, "uniqueItems": True})


# --- where evidence points


def page_file(root: Path, page: str) -> Path | None:
    """The source of a page that is in the table of contents."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    listed = {toc["root"], *(chapter["file"] for part in toc.get("parts", []) for chapter in part["chapters"])}
    files = [root / f"{page}{suffix}" for suffix in (".ipynb", ".md")]
    return next((path for path in files if page in listed and path.is_file()), None)


@dataclass(frozen=True)
class Page:
    """What of a page can be pointed to. `figures` are those labels that carry a number in the book."""

    title: str
    figures: frozenset[str]
    labels: frozenset[str]
    sections: frozenset[str]


def _without_code(text: str) -> str:
    """Markdown less its blocks of code; what stands in directives stays."""
    kept, open_fences = [], []  # (fence, whether it is a directive)
    for line in text.splitlines():
        fence = re.match(r"(`{3,}|~{3,})(.*)", line)
        if fence and open_fences and line.strip() == open_fences[-1][0]:
            open_fences.pop()
        elif fence and all(directive for _, directive in open_fences):
            open_fences.append((fence[1], fence[2].startswith("{")))
        elif all(directive for _, directive in open_fences):
            kept.append(line)
    return "\n".join(kept)


def read_page(path: Path) -> Page:
    text, figures = path.read_text(), set()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        figures = {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells} - {None}
    text = _without_code(text)
    labels = set(re.findall(r"^\(([\w-]+)\)=\s*$|^:(?:name|label):\s*([\w-]+)\s*$", text, re.M))
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.M)
    named = {name for pair in labels for name in pair if name}
    title = headings[0] if headings else path.stem
    return Page(title, frozenset(figures), frozenset(named | figures), frozenset(headings[1:]))


# --- what recorded evidence says


def _cells(record: Record, key: str) -> list[dict]:
    """A cell, or those of its seeds."""
    return [record.cells[name] for name in record.seeds_of(key)]


def _same_strength(record: Record, pointer: dict) -> None:
    """Methods are compared at equal tokens per layer, or, where a pointer asks for it, at equal work."""
    pair = [pointer["first"], pointer["second"]]
    if "whole" in pair:
        return
    work = pointer.get("equal") == "work"
    # Where one layer merges at a time, a record has no tokens per layer: equal keep ratios are equal tokens.
    what = "gmacs" if work else "tokens" if any("tokens" in cell for cell in record.cells.values()) else "keep"
    first, second = ([cell.get(what) for cell in _cells(record, key)] for key in pair)
    if None in first + second:
        raise ValueError(f"the record does not say how many {'gmacs' if work else 'tokens'} {' and '.join(pair)} have")
    if work and max(first + second) > 1.05 * min(first + second):
        raise ValueError(f"{' and '.join(pair)} differ in work by more than a twentieth")
    if not work and any(tokens != first[0] for tokens in first + second):
        raise ValueError(f"{' and '.join(pair)} have different tokens per layer: ask for equal ones, or `equal: work`")


@functools.lru_cache(maxsize=256)
def _computed(path: str, changed: int, asked: str) -> tuple[Difference, McNemar | None, Record]:
    record, pointer = Record.load(path), json.loads(asked)
    pair, outcome, skip = (pointer["first"], pointer["second"]), pointer["outcome"], pointer.get("skip_missing", False)
    if outcome in RSUM:  # not a mean of ranks: a sum of recalls
        found = recall.difference(record, *pair, RSUM[outcome])
        _same_strength(record, pointer)
        return found, None, record
    columns = [record.per_item(key, outcome) for key in pair]
    _same_strength(record, pointer)
    found, here = record.difference(*pair, outcome, skip_missing=skip), ~np.isnan(columns).any(axis=0)
    binary = np.isin(np.array(columns)[:, here], (0, 1)).all()
    return found, mcnemar(*(column[here] for column in columns)) if binary else None, record


def computed(pointer: dict, root: Path) -> tuple[Difference, McNemar | None, Record]:
    """The paired difference that a pointer asks for, McNemar's test if it applies, and the record."""
    path = root / pointer["record"]
    if not path.is_file():
        raise ValueError(f"there is no record {pointer['record']}")
    return _computed(str(path), path.stat().st_mtime_ns, json.dumps(pointer, sort_keys=True))


def says(entry: dict, root: Path) -> str:
    """Whether an entry speaks for the claim, against it, or leaves it open."""
    if "live" in entry:
        return entry["live"]["says"]
    side = computed(entry["difference"], root)[0].side
    return "open" if side == 0 else "for" if (side > 0) == (entry["difference"]["predicts"] == "higher") else "against"


def of_its_own(claim: dict, entry: dict) -> bool:
    """Whether evidence counts for this claim: for a table claim, only from the models and data that it names."""
    scope = claim["scope"]
    return claim["kind"] == "mechanism" or (entry["model"] in scope["model"] and entry["data"] in scope["data"])


# --- what must hold


def resolved(ledger: dict) -> list[dict]:
    """The claims. Model, data, split and the codes that no commit has are written into each piece of evidence."""
    grounds, codes = ledger["grounds"], {"uncommitted": ledger.get("uncommitted", [])}
    return [
        claim | {"evidence": [entry | grounds[entry["ground"]] | codes for entry in claim["evidence"]]}
        for claim in ledger["claims"]
    ]


# Results in prose: signed numbers, decimals, percentages. A setting has its own field.
NUMBER = re.compile(r"\d\s*%|\d\.\d|[+−-]\d|\d+ points")


def problems(ledger: dict, root: Path = ROOT) -> list[str]:
    """Everything that is wrong with a ledger; an empty list if nothing is."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    if found := [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(ledger)]:
        return found
    names = [claim["id"] for claim in ledger["claims"]]
    found += [f"two claims are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    covered = {item for claim in ledger["claims"] for item in claim["covers"]}
    found += [f"no claim covers {item!r} of the abstract" for item in ledger["abstract"] if item not in covered]
    found += [f"{item!r} is covered and not in the abstract" for item in sorted(covered - set(ledger["abstract"]))]
    named = {entry["ground"] for claim in ledger["claims"] for entry in claim["evidence"]}
    if missing := sorted(named - set(ledger["grounds"])):
        return [*found, *(f"there is no ground called {name!r}" for name in missing)]
    for claim in resolved(ledger):
        wrong = [text for entry in claim["evidence"] for text in _wrong_evidence(entry, root)]
        wrong += _copied_numbers(claim)
        found += [f"{claim['id']}: {text}" for text in wrong or _wrong_verdict(claim, root)]
    return found


def _wrong_evidence(entry: dict, root: Path) -> list[str]:
    file, wrong = page_file(root, entry["page"]), []
    if file is None:
        wrong.append(f"there is no page {entry['page']} in the book")
    else:
        there, target = read_page(file), entry.get("anchor") or entry["section"]
        if target not in (there.labels if "anchor" in entry else there.sections):
            wrong.append(f"{entry['page']} has no {'label' if 'anchor' in entry else 'section'} {target!r}")
    try:
        said = says(entry, root)
    except (ValueError, KeyError, RecordError) as error:
        return [*wrong, f"its difference cannot be computed: {error}"]
    if "difference" in entry:
        found, _, record = computed(entry["difference"], root)
        if not np.isfinite(found.detectable):
            wrong.append("a single cluster gives no interval")
        for what in ("model", "split"):
            if record.header.get(what) != entry[what]:
                wrong.append(f"the {what} of its record is {record.header.get(what)!r}, of its ground {entry[what]!r}")
        if record.header.get("tier") == "smoke":
            wrong.append("its record is of the smoke tier, which only shows that the code runs")
    elif said != "open" and re.search(r"\bno(ne)?\b", entry["live"]["interval"]):
        wrong.append(f"it speaks {said} the claim without an interval")
    if entry["split"] == "none" and said != "open":
        wrong.append("an illustration without a split speaks neither for nor against a claim")
    return wrong


def _copied_numbers(claim: dict) -> list[str]:
    texts = [claim.get("reading", ""), claim["overturn"], *(entry["what"] for entry in claim["evidence"])]
    return [f"a result is copied into prose ({match[0]!r}): point to it" for t in texts if (match := NUMBER.search(t))]


def _wrong_verdict(claim: dict, root: Path) -> list[str]:
    verdict, own = claim["verdict"], [entry for entry in claim["evidence"] if of_its_own(claim, entry)]
    if verdict == "not run":
        return []
    if not own:
        why = "no evidence from its own models and data" if claim["evidence"] else "no evidence"
        return [f"{verdict!r}, and {why}: it is 'not run'"]
    if claim["kind"] == "table":
        for what in ("model", "data"):
            if missing := [name for name in claim["scope"][what] if name not in {entry[what] for entry in own}]:
                return [f"{verdict!r}, and no evidence on its {what} {', '.join(missing)}: it is 'not run'"]
    heard = [(entry["split"], says(entry, root)) for entry in own if entry["split"] != "none"]
    said = {word for _, word in heard}
    decisive = {word for split, word in heard if split != "dev"} if any(s in SCORED for s, _ in heard) else said
    fits = {
        "holds here": "for" in decisive and "against" not in said,
        "mixed here": "for" in said and len(said) > 1,
        "does not hold here": bool(decisive) and "for" not in decisive,
    }
    if not fits[verdict]:
        return [f"{verdict!r}, and its evidence says {', '.join(sorted(said)) or 'nothing'}"]
    return [] if claim.get("reading") else [f"{verdict!r} without a reading of what was seen"]


# --- the page

INTRO = """# The claims, and what was found

What the paper {cite}`tran2024pitome` claims, in our words, and what this book has to say about it. Two kinds of claims
are kept apart, as the [protocol](protocol.md) asks for:

- **Mechanism claims** say what a part of the method does. They can be put to the test with any pretrained model, and a
  verdict holds *here*: for the model and the data that stand beside the evidence.
- **Table claims** are results on particular models and data. Results on other models count neither for nor against
  them, so a table claim is "not run" until it was run on the models and data that it names.

| verdict | |
|---|---|
| ✓ holds here | there is evidence for it, with an interval, and none against it |
| ✗ does not hold here | there is evidence, with an interval, and none of it is for the claim |
| ◐ mixed here | some evidence is for it; some is against it or leaves it open |
| ○ not run | no verdict |

"(dev)" marks a verdict that rests on dev scenes alone: they are for exploring, and few. Evidence is *recorded* or
*live*. Recorded differences are computed for this page from a recorded run, item by item, with their 95 % bootstrap
interval and the smallest true difference that the data would have detected with 80 % power at the 5 % level. Live ones
stand, with their interval, on the page that the link leads to.
"""
OUTRO = """This page is written by `tools/claims.py` from `results/claims.yml`. Tests follow every link, hold each
verdict to its evidence, and keep verdicts that were earned on other models away from table claims."""


def _tidy(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _quote(row: dict) -> str:
    """A published row: its values, and what the others lose or save against the first."""
    (name, reference), *others = row["values"].items()
    parts = [f"{name} {reference}"]
    for name, value in others:
        digits = max(len(number.partition(".")[2]) for number in (reference, value))
        below, saved = float(reference) - float(value), 1 - float(value) / float(reference)
        change = {"drop": f" ({below:.{digits}f} below)", "saving": f" ({100 * saved:.0f} % saved)", "values": ""}
        parts.append(f"{name} {value}{change[row['as']]}")
    return f"{_tidy(row['from'])}, {_tidy(row['what'])}: {', '.join(parts)}"


def _link(entry: dict, root: Path) -> str:
    """Where an entry can be seen: figure or section, and page."""
    file = page_file(root, entry["page"])
    there = read_page(file)
    path = f"../{entry['page']}{file.suffix}"
    if "section" in entry:
        return f"section *{entry['section']}* of [{there.title}]({path})"
    label = entry["anchor"]
    role = f"{{numref}}`{label}`" if label in there.figures else f"{{ref}}`this place <{label}>`"
    return f"{role} in [{there.title}]({path})"


def _brief(entry: dict, root: Path) -> str:
    """An entry in a table's cell: where it can be seen, and its number if it is recorded."""
    file = page_file(root, entry["page"])
    there = read_page(file)
    if "section" in entry:
        link = f"[{entry['section']}](../{entry['page']}{file.suffix})"
    else:
        label = entry["anchor"]
        link = f"{{numref}}`{label}`" if label in there.figures else f"{{ref}}`{there.title} <{label}>`"
    if "live" in entry:
        return link
    return f"{link}: {computed(entry['difference'], root)[0].format(entry['difference'].get('digits', 3))}"


def _result(entry: dict, root: Path) -> str:
    """Number and interval of an entry, or where they stand."""
    if "live" in entry:
        return f"live; {entry['live']['interval']}"
    pointer = entry["difference"]
    found, exact, record = computed(pointer, root)
    digits, kinds = pointer.get("digits", 3), record.header.get("clusters") or ["item"]
    kinds = ["item" if kind == "id" else kind for kind in kinds]
    clusters = " × ".join(f"{n} {PLURALS.get(kind, f'{kind}s')}" for n, kind in zip(found.clusters, kinds, strict=True))
    text = (
        f"`{pointer['outcome']}`, `{pointer['first']}` minus `{pointer['second']}`: **{found.format(digits)}**, "
        f"{found.items} items, resampled over {clusters}; smallest detectable difference {found.detectable:.{digits}f}"
    )
    if exact:
        text += f"; right with one alone: {exact.only_first} and {exact.only_second}, McNemar's exact p = {exact.p:.2g}"
        text += "" if kinds == ["item"] else ", as if items were independent"
    runs = [record.runs[cell["run"]] for key in (pointer["first"], pointer["second"]) for cell in _cells(record, key)]
    uncommitted = any(run["modified"] or run["code"] in entry["uncommitted"] for run in runs)
    text += f"; recorded{', of an uncommitted state of the code' if uncommitted else ''}"
    earlier = any(record.is_outdated(pointer[name]) for name in ("first", "second"))
    return f"{text}{', with an earlier form of the arm, to be made again' if earlier else ''}"


def _verdict(claim: dict) -> str:
    verdict = claim["verdict"]
    shown = f"{VERDICTS[verdict]} {verdict}"
    splits = {entry["split"] for entry in claim["evidence"] if of_its_own(claim, entry)}
    return f"{shown} (dev)" if verdict != "not run" and "dev" in splits and not splits & set(SCORED) else shown


def _to(claim: dict) -> str:
    return f"{{ref}}`{claim['title']} <claim-{claim['id']}>`"


def _abstract(ledger: dict, claims: list[dict]) -> str:
    def verdicts(item: str, kind: str) -> str:
        those = [claim for claim in claims if item in claim["covers"] and claim["kind"] == kind]
        return "; ".join(f"{_verdict(claim)}: {_to(claim)}" for claim in those) or "–"

    return markdown(
        ["the abstract says", "as a mechanism", "in its tables"],
        [(_tidy(words), verdicts(item, "mechanism"), verdicts(item, "table"))
         for item, words in ledger["abstract"].items()],
    )


def _table(claims: list[dict], root: Path) -> str:
    rows = []
    for claim in claims:
        own = [entry for entry in claim["evidence"] if of_its_own(claim, entry)]
        links = dict.fromkeys(_brief(entry, root) for entry in own)
        rows.append((f"{_to(claim)}: {_tidy(claim['claim'])}", _verdict(claim), ", ".join(links) or "none"))
    return markdown(["claim", "verdict", "evidence"], rows)


def _ground(entry: dict) -> str:
    return f"{entry['model']}; {entry['data']}; {SPLITS[entry['split']]}"


def _details(claim: dict, root: Path) -> list[str]:
    lines = [f"(claim-{claim['id']})=", f"### {claim['title']}", ""]
    lines += [f"**{_verdict(claim)}.** {_tidy(claim['claim'])}", ""]
    about = "; ".join(", ".join(claim["scope"][what]) for what in ("model", "data"))
    lines.append(f"- *In the paper:* {_tidy(claim['where'])}. *About:* {about}.")
    lines += [f"- *Quoted:* {_quote(row)}." for row in claim.get("quoted", ())]
    lines += [f"- *{word}:* {_tidy(claim[key])}" for word, key in (("Note", "note"), ("Seen here", "reading"))
              if key in claim]
    for entry in claim["evidence"]:
        word = {"for": "For", "against": "Against", "open": "Open"}[says(entry, root)]
        word = word if of_its_own(claim, entry) else "Not counted, another model or other data"
        setting = f"; {entry['setting']}" if "setting" in entry else ""
        lines.append(f"- *{word}:* {_tidy(entry['what'])}: {_link(entry, root)} ({_result(entry, root)}{setting}).")
    if grounds := list(dict.fromkeys(_ground(entry) for entry in claim["evidence"])):
        lines.append(f"- *Rests on:* {'. '.join(grounds)}.")
    else:
        lines.append("- *Evidence:* none yet.")
    return [*lines, f"- *What could overturn it:* {_tidy(claim['overturn'])}", ""]


def page(ledger: dict, root: Path = ROOT) -> str:
    """The page for a ledger without problems."""
    claims = resolved(ledger)
    lines = [INTRO, "## The abstract, item by item", "", _abstract(ledger, claims), ""]
    for kind, title in (("mechanism", "Mechanism claims"), ("table", "Table claims")):
        if some := [claim for claim in claims if claim["kind"] == kind]:
            lines += [f"## {title}", "", _table(some, root), ""]
    lines += ["## Claim by claim", "", OUTRO, ""]
    for claim in claims:
        lines += _details(claim, root)
    return "\n".join(lines).rstrip() + "\n"


def load(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / LEDGER).read_text())


def main() -> int:
    ledger = load()
    if found := problems(ledger):
        print("\n".join(found))
        return 1
    (ROOT / PAGE).write_text(page(ledger))
    print(f"{len(ledger['claims'])} claims; written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
