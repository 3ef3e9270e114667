"""Write the notebooks for Colab: `python tools/colab.py [FOLDER]`, by default _build/colab.

Colab shows Markdown alone. Roles and directives of Sphinx become citations with authors and year, headings, and
details to open; links lead to the published book; a figure's caption, which stands in the metadata, follows the cell.
Code is not changed. The workflow `publish` puts the folder on the branch `colab`, where the launch buttons lead.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
from contents import pages
from ledger.links import page_file, read_page
from pybtex.database import Entry, parse_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from companion import pages_url, repository_url  # noqa: E402

CITATION = re.compile(r"\{cite\}`([^`]+)`")
REFERENCE = re.compile(r"\{(?:ref|numref|prf:ref)\}`([^`<]*?)\s*(?:<([^`>]+)>|)`")
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+?)\.(?:ipynb|md)(#[^)\s]*)?\)")
# What labels begin with. Sphinx numbers what they name; a link without its number says its name.
KINDS = {"thm": "theorem", "lem": "lemma", "prop": "proposition", "def": "definition", "ex": "example",
         "eq": "equation", "fig": "figure"}
OPTIONS = r"\n(?::[^\n]*\n)*"  # behind the name of a directive
EXERCISE = re.compile(rf"^```\{{exercise\}} ?([^\n]*){OPTIONS}(.*?)^```$", re.MULTILINE | re.DOTALL)
SOLUTION = re.compile(rf"^```\{{solution\}} [^\n]*{OPTIONS}(.*?)^```$", re.MULTILINE | re.DOTALL)
SOLUTION_START = re.compile(rf"^```\{{solution-start\}} [^\n]*{OPTIONS}```$", re.MULTILINE)
SOLUTION_END = re.compile(r"^```\{solution-end\}\n```$", re.MULTILINE)
DROPDOWN = re.compile(rf"^:::\{{dropdown\}} ?([^\n]*){OPTIONS}(.*?)^:::$", re.MULTILINE | re.DOTALL)


@functools.cache
def book_url() -> str:
    """Where the published book is."""
    return pages_url(repository_url(ROOT))


@functools.cache
def entries() -> dict[str, Entry]:
    return parse_file(ROOT / "book" / "references.bib").entries


def author_year(key: str) -> str:
    """A work as text names it: `Tran et al., 2024`. KeyError for a key that the bibliography lacks."""
    entry = entries()[key]
    people = [" ".join(person.prelast_names + person.last_names) for person in entry.persons.get("author", ())]
    names = people or [entry.fields.get("title", key)]
    who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    return f"{who}, {entry.fields['year']}".replace("{", "").replace("}", "")


@functools.cache
def labels() -> dict[str, str]:
    """Every label of the book, and the page that has it (a path from the root, without its ending)."""
    return {label: page for _, page in pages() for label in read_page(page_file(ROOT, page)).labels}


def plain(text: str, page: str) -> str:
    """The Markdown of a cell of `page` (a path from the root, without its ending) as any Markdown reader shows it."""
    def cited(match: re.Match) -> str:
        works = "; ".join(author_year(key.strip()) for key in match[1].split(","))
        return f"([{works}]({book_url()}book/bibliography.html))"

    def linked(match: re.Match) -> str:
        target = (ROOT / page).parent.joinpath(match[1]).resolve().relative_to(ROOT)
        return f"]({book_url()}{target.as_posix()}.html{match[2] or ''})"

    def referred(match: re.Match) -> str:
        kind, _, name = match[1].partition("-")
        words, label = (match[1], match[2]) if match[2] else (f"{KINDS.get(kind, kind)} *{name}*", match[1])
        return f"[{words}]({book_url()}{labels()[label]}.html#{label})"

    text = LINK.sub(linked, text)
    text = EXERCISE.sub(lambda match: f"#### Exercise: {match[1]}\n\n{match[2].strip()}", text)
    text = SOLUTION.sub(lambda match: f"#### Solution\n\n{match[1].strip()}", text)
    text = SOLUTION_END.sub("", SOLUTION_START.sub("#### Solution", text))
    text = DROPDOWN.sub(
        lambda match: f"<details><summary>{match[1]}</summary>\n\n{match[2].strip()}\n\n</details>", text)
    return CITATION.sub(cited, REFERENCE.sub(referred, text)).strip()


def converted(file: Path) -> nbformat.NotebookNode:
    """A notebook of the book as Colab gets it."""
    notebook = nbformat.read(file, as_version=4)
    page, cells = file.relative_to(ROOT).with_suffix("").as_posix(), []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            cells.append(cell)
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if caption := figure.get("caption"):
                words = f"*Figure.* {plain(caption, page)}"
                cells.append(nbformat.v4.new_markdown_cell(words, id=f"{cell.id}-caption"))
        elif text := plain(cell.source, page):
            cell.source = text
            cells.append(cell)
    notebook.cells = cells
    nbformat.validate(notebook)
    return notebook


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "colab")
    folder = options.parse_args().folder / "notebooks"
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    if stated != repository_url(ROOT):
        raise SystemExit(f"first cells install from {stated}, and this is {repository_url(ROOT)}: mend Repository in "
                         "pyproject.toml, and first cells with it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(converted(file), folder / file.name)
    print(f"{len(list(folder.glob('*.ipynb')))} notebooks in {folder}")


if __name__ == "__main__":
    main()
