"""The built pages, read as files: links lead somewhere, pictures speak, nothing comes from another host."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from book_pages import ROOT, html_folder, pages
from bs4 import BeautifulSoup

sys.path.insert(0, str(ROOT / "tools"))

import contents
from book_budgets import KILOBYTES, measure


@pytest.fixture(scope="module")
def book() -> dict[Path, BeautifulSoup]:
    folder = html_folder()
    return {page.relative_to(folder): BeautifulSoup(page.read_text(), "html.parser") for page in pages(folder)}


def targets(soup: BeautifulSoup, *attributes: str):
    for attribute in attributes:
        for tag in soup.find_all(attrs={attribute: True}):
            yield tag, tag[attribute]


def external(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def anchors(soup: BeautifulSoup) -> set[str]:
    names = {tag["name"] for tag in soup.find_all("a", attrs={"name": True})}
    return names | {tag["id"] for tag in soup.find_all(id=True)}


def test_every_chapter_was_built(book):
    assert sorted(page for _, page in contents.pages()) == sorted(page.with_suffix("").as_posix() for page in book)
    assert "book/index.html" in (html_folder() / "index.html").read_text()


def test_links_and_sources_exist(book):
    folder, broken = html_folder(), []
    for page, soup in book.items():
        for _, url in targets(soup, "href", "src"):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (folder / page.parent / unquote(parts.path)).resolve() if parts.path else folder / page
            if not target.exists():
                broken.append((str(page), url))
            elif parts.fragment and target.suffix == ".html":
                there = book.get(target.relative_to(folder.resolve())) if parts.path else soup
                there = there or BeautifulSoup(target.read_text(), "html.parser")
                if unquote(parts.fragment) not in anchors(there):
                    broken.append((str(page), url))
    assert not broken


def test_nothing_is_loaded_from_another_host(book):
    for page, soup in book.items():
        loaded = [url for tag, url in targets(soup, "src", "srcset", "poster", "data") if external(url)]
        loaded += [tag["href"] for tag in soup.find_all("link", href=True)
                   if external(tag["href"]) and "canonical" not in tag.get("rel", [])]
        styles = [*(tag.text for tag in soup.find_all("style")), *(style for _, style in targets(soup, "style"))]
        loaded += [url for style in styles for url in re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*", style)]
        assert not loaded, page


def test_stylesheets_import_nothing_from_another_host():
    for sheet in (html_folder() / "_static").rglob("*.css"):
        found = re.findall(r"(?:@import|url\()\s*['\"]?(?:url\()?(?:https?:)?//[^)\"']*", sheet.read_text())
        assert not found, sheet


def test_every_picture_has_alt_text(book):
    for page, soup in book.items():
        for picture in soup.find_all("img"):
            alt = picture.get("alt", "")
            assert alt.strip() and not re.search(r"\.(png|svg|jpe?g)$|^_", alt), (page, picture)


def test_every_figure_of_a_notebook_has_number_and_caption(book):
    for page, soup in book.items():
        for picture in soup.select(".cell_output img, .cell_output .text_html svg[role=img]"):
            figure = picture.find_parent("figure")
            assert figure and figure.get("id"), (page, str(picture)[:120])
            for part in ("text", "number"):
                assert figure.select_one(f"figcaption .caption-{part}"), (page, figure["id"])


def test_drawings_in_html_outputs_say_what_they_show(book):
    for page, soup in book.items():
        for drawing in soup.select(".cell_output .text_html svg"):
            named = drawing.get("aria-label") or drawing.find("title")
            assert (drawing.get("role") == "img" and named) or drawing.get("aria-hidden") == "true", page


def test_repository_links_name_files_that_exist(book):
    on_branch = re.compile(r"github(?:\.com)?/[^/]+/[^/]+/(?:blob|edit)/[^/]+/([^#?]+)")
    for page, soup in book.items():
        source = {url: found[1] for _, url in targets(soup, "href") if (found := on_branch.search(url))}
        for url, file in source.items():
            assert (ROOT / unquote(file)).is_file(), (page, url)
        colab = any("colab" in url for url in source)
        assert colab == (page.parts[0] == "notebooks"), f"{page}: a Colab button on notebooks, and only there"
        assert all(("colab" in url) == ("/blob/colab/" in url) for url in source), page
        assert any("/edit/" in url for url in source), page


def test_every_page_has_title_and_description(book):
    titles = [soup.title.text.strip() for soup in book.values()]
    assert all(titles) and len(set(titles)) == len(titles)
    for page, soup in book.items():
        for key, wanted in (("name", "description"), ("property", "og:title"), ("property", "og:image")):
            tag = soup.find("meta", attrs={key: wanted})
            assert tag and tag["content"].strip(), (page, wanted)
        assert soup.html.get("lang") == "en" and len(soup.select(".bd-article h1")) == 1, page


def test_the_preview_picture_exists(book):
    soup = next(iter(book.values()))
    url = soup.find("meta", attrs={"property": "og:image"})["content"]
    assert url.endswith("_static/social.png") and (html_folder() / "_static" / "social.png").is_file()


def test_no_page_is_heavy(book):
    """With its pictures, which a phone has to load."""
    weights = {page.as_posix(): measure(html_folder(), page.with_suffix("").as_posix())["kB"] for page in book}
    assert {page: weight for page, weight in weights.items() if weight > KILOBYTES} == {}
