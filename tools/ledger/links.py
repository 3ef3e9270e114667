"""Where evidence can be seen: pages of the book, and the figures, labels and sections that they have."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from contents import pages


def page_file(root: Path, page: str) -> Path | None:
    """The source of a page that is in the table of contents."""
    listed = {listed_page for _, listed_page in pages(root)}
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
