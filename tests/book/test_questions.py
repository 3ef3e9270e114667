"""The page of questions answers each with a link that leads somewhere, and the front page leads to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
QUESTIONS = re.findall(r"^\*\*([^*]+)\*\*(.*?)(?=^\*\*|\Z)", (BOOK / "questions.md").read_text(), re.M | re.S)


def labels() -> set[str]:
    """What `{ref}` may name: targets in pages, and figures of notebooks."""
    named = {label for page in BOOK.glob("*.md") for label in re.findall(r"^\(([\w-]+)\)=$", page.read_text(), re.M)}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        named |= {cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells}
    return named


def sections(page: Path) -> set[str]:
    """The headings of a page or notebook."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(re.findall(r"^#+ (.*)$", text, re.M))


def test_there_are_a_dozen_and_the_front_page_leads_to_them():
    assert len(QUESTIONS) >= 12
    assert "](questions.md)" in (BOOK / "index.md").read_text()


@pytest.mark.parametrize("question, answer", QUESTIONS, ids=[question[:30] for question, _ in QUESTIONS])
def test_every_answer_leads_somewhere(question, answer):
    answer = " ".join(answer.split())
    pages = [BOOK / target for target in re.findall(r"\]\(([^)#]+)\)", answer)]
    named = set(re.findall(r"\{ref\}`[^`<]+<([\w-]+)>`", answer))
    assert (pages or named) and all(page.is_file() for page in pages)
    assert named <= labels()
    for section in re.findall(r"under \*([^*]+)\*", answer):  # the last page before it has that section
        before = answer[: answer.index(f"*{section}*")]
        page = BOOK / re.findall(r"\]\(([^)#]+)\)", before)[-1]
        assert any(heading.startswith(section) for heading in sections(page)), (section, page.name)


def test_a_label_that_is_missing_is_noticed():
    assert "fig-energy-margin" in labels() and "fig-no-such" not in labels()
