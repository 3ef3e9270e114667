"""The API page has every public name once, and builds from docstrings alone."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

import pitome_core as pc

BOOK = Path(__file__).resolve().parents[2] / "book"


def test_every_public_name_is_on_the_page_once():
    named = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)", (BOOK / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(pc.__all__)


def test_the_table_at_the_top_names_what_is_there():
    linked = re.findall(r"<pitome_core\.(\w+)>", (BOOK / "api.md").read_text())
    assert linked and set(linked) <= set(pc.__all__)


def test_words_of_the_glossary_are_in_order():
    terms = re.findall(r"^(\w.*)\n  \S", (BOOK / "glossary.md").read_text().split("{glossary}")[1], re.M)
    assert len(terms) > 25 and terms == sorted(terms, key=str.lower)


# --- equations: from the code to the page of notation, and back


def equations_in_docstrings() -> set[tuple[str, str]]:
    """(number, public name) of every `eq. n` in what the API page shows of a name: its docstring and its members'."""
    named = set()
    for name in pc.__all__:
        documented = [getattr(pc, name)]
        if inspect.isclass(documented[0]):
            documented += [member for key, member in vars(documented[0]).items() if not key.startswith("_")]
        text = "\n".join(inspect.getdoc(part) or "" for part in documented)
        named |= {(number, name) for number in re.findall(r"\beq\. (\d)", text)}
    return named


def equations_on_the_page(text: str) -> set[tuple[str, str]]:
    """(number, public name) of every labelled equation and every function that is linked below it."""
    linked: set[tuple[str, str]] = set()
    for labels, below in re.findall(r"^((?:\(eq-\d\)=\n)+)(.*?)(?=^\(eq-|^## )", text, re.M | re.S):
        names = re.findall(r"<pitome_core\.(\w+)>", below)
        assert names, f"no function below {labels}"
        linked |= {(number, name) for number in re.findall(r"\d", labels) for name in names}
    return linked


def test_equations_link_to_the_code_and_back():
    found = equations_on_the_page((BOOK / "notation.md").read_text())
    assert len(found) >= 5 and found == equations_in_docstrings()


def test_a_missing_link_is_noticed():
    page = (BOOK / "notation.md").read_text()
    for change in (("(eq-5)=\n", ""), ("<pitome_core.energy_score>", "<pitome_core.plan>")):
        assert change[0] in page
        assert equations_on_the_page(page.replace(*change)) != equations_in_docstrings()


@pytest.mark.parametrize("page", sorted({*BOOK.glob("*.md")} - {BOOK / "claims.md"}), ids=lambda page: page.stem)
def test_prose_links_its_equations(page):
    """Not on the page of claims, whose text a tool writes."""
    text = page.read_text()
    assert re.findall(r"(?i)(?<!`)\b(?:eq\.|equation) \d", text) == []
    assert {number for number in re.findall(r"<eq-(\w+)>", text)} <= set("12345")


def test_docstrings_get_their_links():
    sys.path.insert(0, str(BOOK / "_ext"))
    import companion

    lines = ["Energy (eq. 4).", "Neither freq. 4 nor this: equation."]
    companion.link_equations(None, "function", "energy_score", None, None, lines)
    assert lines == ["Energy (:ref:`eq. 4 <eq-4>`).", "Neither freq. 4 nor this: equation."]
