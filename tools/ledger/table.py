"""All claims as one table in HTML, for the page on the paper and its code; book/_static/claims_filter.js filters it."""

from __future__ import annotations

import functools
import html
import re

from ledger import evidence
from ledger.judge import Judged

PAGE = "claims.html"  # beside the page that includes the table
escaped = functools.partial(html.escape, quote=False)  # for text between tags
HEAD = ("claim", "kind", "of the abstract", "verdict", "what was seen")


def claims_table(claims: list[tuple[dict, Judged]]) -> str:
    """One row for each claim, in the order of the ledger: title, kind, items of the abstract, verdict, reading.

    Of a reading the first sentence is shown, and the rest is behind a click. Rows carry what the filter looks at.
    """
    head = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in HEAD)
    return "\n".join([
        '<table class="claims-table" role="table">',
        "<caption>A claim leads to all of its evidence. Verdicts are computed. Comparisons speak where they survive "
        "the correction for their number.</caption>",
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>',
        '<tbody role="rowgroup">', *(_row(claim, judged) for claim, judged in claims), "</tbody>", "</table>", "",
    ])


def _row(claim: dict, judged: Judged) -> str:
    title = f'<a href="{PAGE}#claim-{claim["id"]}">{escaped(claim["title"])}</a>'
    covers = ", ".join(item.replace("-", " ") for item in claim["covers"]) or "–"
    cells = [claim["kind"], escaped(covers), f"{judged.shown}{_counts(judged)}", _reading(claim)]
    return (f'<tr role="row" data-verdict="{evidence.VERDICTS[judged.verdict]} {judged.verdict}" '
            f'data-kind="{claim["kind"]}"><th scope="row" role="rowheader">{title}</th>'
            + "".join(f'<td role="cell">{cell}</td>' for cell in cells) + "</tr>")


def _counts(judged: Judged) -> str:
    """How many recorded comparisons speak for and against, in small print; nothing where there are none."""
    heard = [one.heard for one in judged.done]
    if not heard:
        return ""
    return f"<small>{heard.count('for')} for, {heard.count('against')} against, of {len(heard)}</small>"


def _reading(claim: dict) -> str:
    """The first sentence of the reading, and the rest in a fold; what a run needs where nothing was seen."""
    if "reading" not in claim:
        scope = claim["scope"]
        return escaped(f"Needs {', '.join(scope['model'])} and {', '.join(scope['data'])}.")
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", " ".join(claim["reading"].split()), maxsplit=1)
    if not rest:
        return escaped(first)
    return f"{escaped(first)} <details><summary>more</summary>{escaped(rest[0])}</details>"
