"""What prose refers to: literature, credits, other chapters; and exercises, each with its solution."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from pybtex.database import parse_string

from pitome_core.experiments import assets
from pitome_core.experiments.data.photos import PHOTOGRAPHS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from contents import pages  # noqa: E402

PAGES = [page for _, page in pages()]
each_page = pytest.mark.parametrize("page", PAGES)


def prose(page: str) -> str:
    """The Markdown of a page or of the text cells of a notebook."""
    file = ROOT / f"{page}.md"
    if file.exists():
        return file.read_text()
    cells = nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


# --- literature


def bibliography():
    return parse_string((ROOT / "book" / "references.bib").read_text(), "bibtex").entries


def cited(text: str) -> set[str]:
    return {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}


def test_every_citation_has_an_entry_and_every_entry_is_cited():
    named = set().union(*(cited(prose(page)) for page in PAGES))
    assert named == set(bibliography())


def test_every_entry_has_author_title_and_year():
    entries = bibliography()
    incomplete = [key for key, entry in entries.items()
                  if not (entry.persons.get("author") and entry.fields.get("title")
                          and re.fullmatch(r"(19|20)\d\d", entry.fields.get("year", "")))]
    assert len(entries) > 50 and incomplete == []


def test_no_paper_stands_twice():
    titles = Counter(re.sub(r"\W", "", entry.fields["title"]).lower() for entry in bibliography().values())
    assert [title for title, count in titles.items() if count > 1] == []


def test_every_rival_of_the_protocol_is_cited_where_its_arms_are_listed():
    text = prose("book/protocol")
    first = text[text.index("**Arms.**"):].partition("controls:")[0]
    for arm in ("tofu", "crossget", "mctf", "atc", "diffrate", "dct", "evit"):
        assert re.search(rf"`{arm}`[^`]*\{{cite\}}`", first), arm


# --- other chapters

BARE = re.compile(r"\bchapters? \d|\bchapters? (?:one|two|three|four|five|six|seven|eight|nine|ten)\b"
                  r"|\b(?:next|previous|last|first|following) (?:chapter|page)s?\b|\bchapters? before this",
                  re.IGNORECASE)


@each_page
def test_chapters_are_named_by_their_titles(page):
    """Numbers and order of chapters may change; a link with the title stays right."""
    assert BARE.findall(" ".join(prose(page).split())) == []


def test_the_search_finds_bare_names_of_chapters():
    for words in ("see chapter 5", "the [next chapter](x.ipynb)", "on the previous page", "Chapters three and four"):
        assert BARE.search(words)
    assert not BARE.search("This chapter, and [the next one](x.ipynb), have 20 pages.")


# --- exercises


def exercises(text: str) -> tuple[list[str], list[str]]:
    """Labels of exercises, and of what solutions answer, in the order of the text."""
    posed = re.findall(r"```\{exercise\}[^\n]*\n:label: (\S+)\n", text)
    solved = re.findall(r"```\{solution(?:-start)?\} (\S+)\n:class: dropdown\n", text)
    return posed, solved


@each_page
def test_every_exercise_has_a_folded_solution(page):
    text = prose(page)
    posed, solved = exercises(text)
    assert posed == solved, "a solution with :class: dropdown follows each exercise"
    assert len(posed) == text.count("{exercise}"), "each exercise has a :label: in its first line"
    assert len(solved) == len(re.findall(r"\{solution(?:-start)?\}", text))
    assert text.count("{solution-start}") == text.count("{solution-end}")
    section = text.partition("## Exercises")[2]
    assert bool(section) == bool(posed) and not re.search(r"^\*\*\d\.\*\*", section, re.MULTILINE)


def test_labels_of_exercises_are_unique():
    labels = Counter(label for page in PAGES for label in exercises(prose(page))[0])
    assert len(labels) >= 27 and max(labels.values()) == 1


# --- credits


def test_credits_name_every_asset_with_its_licence_and_every_photograph_with_its_author():
    rows = [line for line in prose("book/credits").splitlines() if line.startswith("| ")]
    for asset in assets.ASSETS.values():
        assert f"| {asset.purpose}: `{asset.name}`, from `{asset.package}` | {asset.licence} |" in rows
    for photograph in PHOTOGRAPHS.values():
        assert f"| {photograph.name} | {photograph.shows} | {photograph.credit} |" in rows


@each_page
def test_figures_with_emoji_lead_to_the_credits(page):
    file = ROOT / f"{page}.ipynb"
    if file.exists():
        for cell in nbformat.read(file, as_version=4).cells:
            caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
            assert "OpenMoji" not in caption or "](../book/credits.md)" in caption, caption[:60]


def headings(page: str) -> list[str]:
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return [re.sub(r"[`*]|\{cite\}\S+", "", line).strip() for line in found]


@each_page
def test_a_link_that_reads_like_a_title_is_one(page):
    """Chapters change their titles: a link's text that begins with a capital letter begins a heading of its page."""
    wrong = []
    for words, target in re.findall(r"\[([A-Z][^\]]+)\]\((?:\.\./)?(?:notebooks/)?([a-z0-9_]+)\.ipynb\)", prose(page)):
        if not any(heading.startswith(words) for heading in headings(f"notebooks/{target}")):
            wrong.append((words, target))
    assert wrong == [] or page == "book/claims"  # whose links name tasks of records
