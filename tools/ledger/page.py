"""book/claims.md: the claims with their verdicts, counts of comparisons, primary quantities and the rest folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ledger import counts, evidence
from ledger.evidence import LEVEL, Comparison
from ledger.judge import Judged, of_its_own
from ledger.links import page_file, read_page
from pitome_core.experiments.records.cells import LABELS
from pitome_core.experiments.records.tables import markdown

SPLITS = {
    "test": "test split",
    "dev": "dev split, exploratory",
    "all": "all items at hand, nothing chosen on them",
    "none": "illustration, no split",
    "not needed": "no data needed",
}
PLURALS = {"identity": "identities", "id": "items"}
RIVALS = {"shuffled": "the same with shuffled energies", "work": "the control of equal work", "zero": "zero"}
WORDS = {"for": "for", "against": "against", "open": "no difference"}

INTRO = """# The claims, and what was found

What the paper {cite}`tran2024pitome` claims, in our words, and what this book has to say about it. Two kinds of claims
are kept apart, as the [protocol](protocol.md) asks for:

- **Mechanism claims** say what a part of the method does. They can be put to the test with any pretrained model, and a
  verdict holds *here*: for the model and the data that stand beside the evidence.
- **Table claims** are results on particular models and data. Results on other models count neither for nor against
  them, so a table claim is "not run" until it was run on the models and data that it names.

| verdict | |
|---|---|
| ✓ holds here | evidence for it survives, and none against it |
| ✗ does not hold here | evidence against it survives, and none for it |
| ◐ mixed here | both survive |
| = no difference found | nothing survives either way; the sizes that would have been detected stand beside it |
| ○ not run | no evidence yet |

**Which comparisons.** None is chosen. A claim names arms and what they are compared with, and gets every comparison
that the protocol names for them: all tasks, all strengths, proportional attention as the arm has it and off. The list
is `results/comparisons.yml`. The second cell of a comparison is the *counterpart* of the first: it has the same
attention, metric, place, tokens, seeds, towers, order and training, and differs in the method alone. Where it was not
run, the comparison is shown as not run.

**What survives.** A recorded comparison speaks for or against a claim where its 95 % interval excludes zero. It counts
in a verdict where that survives Holm's correction, at 5 %, over all comparisons of the claim, or over its primary ones
by themselves. Where models were trained with merging on, the interval is one over trainings, except for linear heads,
whose fit has no chance in it. Live evidence stands, with its interval, on the page that the link leads to, and is taken
as it is. Where there is evidence from a test split or from all items, dev evidence decides nothing; "(dev)" marks a
verdict that rests on dev alone.

*Detectable* is the smallest true difference that the data would have detected with 80 % power at the 5 % level, taken
by itself. *Holm* is the p-value after the correction over the claim.
"""
OUTRO = """This page is written by `tools/claims.py` from `results/claims.yml` and `results/comparisons.yml`; verdicts
are computed, and stand in neither. Tests follow every link, hold the list of comparisons to the records, and keep
verdicts that were earned on other models away from table claims. † marks runs of an uncommitted state of the code. What
an earlier form of an arm scored is no evidence. Where a later version of the protocol asks the same comparison again,
it is shown in the later one."""


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


# --- links


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
    file = page_file(root, entry["page"])
    there = read_page(file)
    if "section" in entry:
        return f"[{entry['section']}](../{entry['page']}{file.suffix})"
    label = entry["anchor"]
    return f"{{numref}}`{label}`" if label in there.figures else f"{{ref}}`{there.title} <{label}>`"


def _task(one: Comparison, root: Path) -> str:
    file = page_file(root, one.about["page"])
    return f"[{one.task}](../{one.about['page']}{file.suffix})"


# --- recorded comparisons


def tally(some: Iterable[Comparison]) -> str:
    """``12 recorded: 3 for, 4 against, 5 no difference found; after Holm 1 for, 2 against``."""
    some = list(some)
    single, after = (Counter(words) for words in ([one.says for one in some], [one.heard for one in some]))
    return (f"{len(some)} recorded: {single['for']} for, {single['against']} against, {single['open']} no difference "
            f"found; after Holm {after['for']} for, {after['against']} against")


def detectable(some: Iterable[Comparison]) -> str:
    """The smallest and the largest detectable difference of each outcome: ``auc 0.013 to 0.071, ...``."""
    sizes: dict[str, list[float]] = {}
    for one in some:
        sizes.setdefault(one.outcome, []).append(one.found.detectable)
    ends = [(name, _size(min(values)), _size(max(values))) for name, values in sizes.items()]
    return ", ".join(f"`{name}` {low}" if low == high else f"`{name}` {low} to {high}" for name, low, high in ends)


def _size(value: float) -> str:
    """Two significant digits, never an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):.6f}".rstrip("0").rstrip(".")


def _interval(one: Comparison) -> str:
    """Mean and interval, with a digit more where an end that is not zero would be shown as zero."""
    near = one.found.side and min(abs(one.found.low), abs(one.found.high)) < 0.5 * 10**-one.digits
    return one.found.format(one.digits + bool(near))


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else "< .001"


def _row(one: Comparison, root: Path, *, primary: bool) -> list[str]:
    second = f" − `{one.second}`" if one.second != evidence.ZERO else ""
    verdict = f"**{WORDS[one.says]}**" if one.survives else WORDS[one.says]
    row = [_task(one, root), f"`{one.outcome}`", f"`{one.first}`{second}", _interval(one),
           _size(one.found.detectable), _p(one.holm)]
    if primary:
        exact = one.test
        row += [_p(one.holm_primary),
                f"{exact.only_first} : {exact.only_second}, p {_p(exact.p)}" if exact else "–"]
    return [*row, f"{verdict}{' ' if one.marks else ''}{one.marks}"]


HEAD = ["task", "outcome", "cells", "difference", "detectable", "Holm"]


def _folded(judged: Judged, root: Path) -> list[str]:
    """The comparisons that are not primary, and those that were not run, behind a click."""
    rest = [one for one in judged.done if not one.primary]
    pending: dict[str, list[Comparison]] = {}
    for one in judged.comparisons:
        if one.pending:
            pending.setdefault(one.pending, []).append(one)
    if not rest and not pending:
        return []
    waiting = sum(map(len, pending.values()))
    counted = [(len(rest), "secondary comparisons"), (waiting, "not run yet")]
    title = " and ".join(f"{number} {what}" for number, what in counted if number)
    lines = [f":::{{dropdown}} {title}", ""]
    if rest:
        lines += [markdown([*HEAD, "says"], [_row(one, root, primary=False) for one in rest]), ""]
    for why, some in pending.items():
        firsts = ", ".join(f"`{first}`" for first in dict.fromkeys(one.first for one in some))
        where: dict[str, list[str]] = {}
        for version, task in dict.fromkeys(tuple(one.task.split()) for one in some):
            where.setdefault(version, []).append(task)
        tasks = "; ".join(f"{version}: {', '.join(names)}" for version, names in where.items())
        lines.append(f"- *Not run yet*, {why}: {firsts} ({tasks}).")
    return [*lines, *([""] if pending else []), ":::", ""]


def _grounds(claims: list[tuple[dict, Judged]], root: Path) -> str:
    """What recorded comparisons rest on: for every task its model, data, split, items and interval."""
    rows: dict[tuple, tuple] = {}
    for one in (one for _, judged in claims for one in judged.done):
        record, found = evidence.record_of(one.about, root), one.found
        kinds = ["training"] if one.about["over"] == "trainings" else record.header.get("clusters") or ["item"]
        kinds = ["item" if kind == "id" else kind for kind in kinds]
        sizes = " × ".join(f"{n} {PLURALS.get(kind, f'{kind}s')}"
                           for n, kind in zip(found.clusters, kinds, strict=True))
        rows.setdefault((one.task, found.items, sizes, found.kind), (
            _task(one, root), record.header["model"], one.about["data"], SPLITS[one.about.get("split", "test")],
            f"{found.items}", f"{found.kind} over {sizes}"))
    return markdown(["task", "model", "data", "split", "items", "interval"], [rows[key] for key in sorted(rows)])


def _groups(claim: dict, judged: Judged, root: Path) -> tuple[list[str], list[str]]:
    """One line for each group; and the primary table with the rest folded."""
    lines = []
    for number, group in enumerate(claim.get("compares", ())):
        some = [one for one in judged.comparisons if one.group == number]
        done = [one for one in some if one.found]
        names = ", ".join(LABELS[arm] for arm in group["arms"])
        rival = RIVALS.get(group["rival"], LABELS.get(group["rival"], group["rival"]))
        text = f"{names} minus {rival}" if group["rival"] != evidence.ZERO else f"{names}, by itself"
        text += f"; {' and '.join(group['about'])}; {', '.join(group['columns'])}"
        waiting = len(some) - len(done)
        state = [tally(done)] * bool(done) + [f"{waiting} not run yet"] * bool(waiting)
        lines.append(f"- *Recorded:* {text}; the claim says {group['predicts']}. {'. '.join(state)}.")
    quiet = [one for one in judged.done if not one.survives]
    if quiet:
        lines.append(f"- *Where no difference survives, it would have been detected from:* {detectable(quiet)}.")
    tables = []
    if primary := [one for one in judged.done if one.primary]:
        head = [*HEAD, "Holm, primary", "McNemar", "says"]
        tables += [f"Primary quantities (bold: below {LEVEL:g} after the correction):", "",
                  markdown(head, [_row(one, root, primary=True) for one in primary]), ""]
    return lines, [*tables, *_folded(judged, root)]


def _counted(claim: dict, judged: Judged) -> list[str]:
    """The table of counts from shapes."""
    if not judged.counted:
        return []
    rows = []
    for row, count, says in judged.counted:
        published = counts.quoted(claim, row)
        shares = [published, count.released, count.counted]
        rows.append([row["name"], f"`{row['timm']}`", f"{row['keep']:g}",
                     *(f"{100 * share:.1f} %" if share is not None else "–" for share in shares), WORDS[says]])
    head = ["model", "counted as", "keep", "saved, quoted", "as the released code counts", "counted here", "says"]
    text = ("Multiply-accumulates that PiToMe (paper) saves, counted from shapes; for the claim where both counts save "
            f"{100 * claim['counts']['at_least']:.0f} % or more, against it where neither does:")
    return [text, "", markdown(head, rows), ""]


# --- the page


def _to(claim: dict) -> str:
    return f"{{ref}}`{claim['title']} <claim-{claim['id']}>`"


def _abstract(ledger: dict, claims: list[tuple[dict, Judged]]) -> str:
    def verdicts(item: str, kind: str) -> str:
        those = [(claim, judged) for claim, judged in claims if item in claim["covers"] and claim["kind"] == kind]
        return "; ".join(f"{judged.shown}: {_to(claim)}" for claim, judged in those) or "–"

    return markdown(
        ["the abstract says", "as a mechanism", "in its tables"],
        [(_tidy(words), verdicts(item, "mechanism"), verdicts(item, "table"))
         for item, words in ledger["abstract"].items()],
    )


def _short(judged: Judged, root: Path) -> str:
    """The evidence of a claim in a table's cell."""
    parts = [tally(judged.done)] if judged.done else []
    waiting = len(judged.comparisons) - len(judged.done)
    parts += [f"{waiting} not run yet"] if waiting else []
    parts += [f"{len(judged.counted)} counts"] if judged.counted else []
    return "; ".join([*parts, *dict.fromkeys(_brief(entry, root) for entry in judged.live)]) or "none"


def _table(claims: list[tuple[dict, Judged]], root: Path) -> str:
    rows = [(f"{_to(claim)}: {_tidy(claim['claim'])}", judged.shown, _short(judged, root)) for claim, judged in claims]
    return markdown(["claim", "verdict", "evidence"], rows)


def _details(claim: dict, judged: Judged, root: Path) -> list[str]:
    lines = [f"(claim-{claim['id']})=", f"### {claim['title']}", ""]
    lines += [f"**{judged.shown}.** {_tidy(claim['claim'])}", ""]
    about = "; ".join(", ".join(claim["scope"][what]) for what in ("model", "data"))
    lines.append(f"- *In the paper:* {_tidy(claim['where'])}. *About:* {about}.")
    lines += [f"- *Quoted:* {_quote(row)}." for row in claim.get("quoted", ())]
    lines += [f"- *{word}:* {_tidy(claim[key])}" for word, key in (("Note", "note"), ("Seen here", "reading"))
              if key in claim]
    recorded, tables = _groups(claim, judged, root)
    lines += recorded
    for entry in claim["evidence"]:
        word = {"for": "For", "against": "Against", "open": "Open"}[entry["live"]["says"]]
        own = of_its_own(claim, entry["model"], entry["data"])
        setting = f"; {entry['setting']}" if "setting" in entry else ""
        lines.append(f"- *{word if own else 'Not counted, another model or other data'}:* {_tidy(entry['what'])}: "
                     f"{_link(entry, root)} (live; {entry['live']['interval']}{setting}).")
    grounds = [f"{entry['model']}; {entry['data']}; {SPLITS[entry['split']]}" for entry in claim["evidence"]]
    if grounds:
        lines.append(f"- *Live evidence rests on:* {'. '.join(dict.fromkeys(grounds))}.")
    if not (grounds or judged.comparisons or judged.counted):
        lines.append("- *Evidence:* none yet.")
    lines.append(f"- *What could overturn it:* {_tidy(claim['overturn'])}")
    return [*lines, "", *tables, *_counted(claim, judged)]


def _primary(primaries: list[Comparison], root: Path) -> list[str]:
    """The primary quantities one by one, whether a claim rests on them or not."""
    rows = []
    for one in primaries:
        where = [_task(one, root), f"`{one.outcome}`", f"`{one.first}` − `{one.second}`"]
        if not one.found:
            rows.append([*where, "–", "–", "–", f"not run yet: {one.pending}"])
            continue
        side = ("no difference found", "above", "below")[one.found.side]
        side += "; survives" if one.survives else ""
        rows.append([*where, _interval(one), _size(one.found.detectable), _p(one.holm), f"{side} {one.marks}".strip()])
    if not rows:
        return []
    text = (
        "What the protocol names as primary, with Holm's correction over these alone. Those of `law-1` are a slope and "
        "means over some of the scenes: they stand in "
        "[When energy helps](../notebooks/09_when_energy_helps.ipynb)."
    )
    return ["## The primary quantities", "", text, "", markdown([*HEAD, "first is"], rows), ""]


def page(ledger: dict, claims: list[tuple[dict, Judged]], primaries: list[Comparison], root: Path) -> str:
    """The page for a ledger without problems: what its claims were judged to be, and the primary quantities."""
    lines = [INTRO, "## The abstract, item by item", "", _abstract(ledger, claims), "", *_primary(primaries, root)]
    for kind, title in (("mechanism", "Mechanism claims"), ("table", "Table claims")):
        if some := [pair for pair in claims if pair[0]["kind"] == kind]:
            lines += [f"## {title}", "", _table(some, root), ""]
    lines += ["## Claim by claim", "", OUTRO, ""]
    for claim, judged in claims:
        lines += _details(claim, judged, root)
    if any(judged.done for _, judged in claims):
        lines += ["## What recorded comparisons rest on", "", _grounds(claims, root)]
    return "\n".join(lines).rstrip() + "\n"
