"""The API page has every public name once, and builds from docstrings alone."""

from __future__ import annotations

import re
from pathlib import Path

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
