"""Print the built book into one PDF: `python tools/print_book.py [HTML] [--output FILE]` (`make pdf`).

Chromium prints each page as it stands, folds closed: what is folded is in the HTML pages. The contents of the PDF are
its bookmarks, and a first page that lists the chapters with their pages.
"""

from __future__ import annotations

import argparse
import base64
import html as text
import io
import tempfile
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from chrome import open_page, running
from contents import pages
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parents[1]
PAPER = {"paperWidth": 8.27, "paperHeight": 11.69, "marginTop": 0.6, "marginBottom": 0.6, "marginLeft": 0.6,
         "marginRight": 0.6, "printBackground": True, "scale": 0.8}

def printed(browser) -> bytes:
    return base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", PAPER)["data"])


def contents(chapters: list[tuple[str, str, int]], title: str) -> str:
    """The first page, as HTML: parts, titles, page numbers."""
    rows, part = [], None
    for caption, name, page in chapters:
        if caption != part:
            rows.append(f"<h2>{text.escape(caption)}</h2>")
            part = caption
        rows.append(f"<p><span>{text.escape(name)}</span><span>{page}</span></p>")
    return (f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{text.escape(title)}</title><style>"
            "body{font:15px/1.5 sans-serif;margin:3rem}h2{font-size:1rem;margin:1.2rem 0 .2rem}"
            "p{display:flex;justify-content:space-between;margin:0}</style>"
            f"<h1>{text.escape(title)}</h1>{''.join(rows)}</html>")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("html", nargs="?", type=Path, default=ROOT / "_build" / "html", help="folder of built pages")
    options.add_argument("--output", type=Path, default=ROOT / "_build" / "pitome-companion.pdf")
    args = options.parse_args()
    title = yaml.safe_load((ROOT / "_config.yml").read_text())["title"]
    parts: list[tuple[str, str, PdfReader]] = []
    with running() as browser, tempfile.TemporaryDirectory() as folder:
        for caption, page in pages():
            file = args.html / f"{page}.html"
            heading = BeautifulSoup(file.read_text(), "html.parser").select_one("article h1")
            heading.select_one(".headerlink").decompose()
            open_page(browser, file.resolve().as_uri())
            parts.append((caption, heading.get_text().strip(), PdfReader(io.BytesIO(printed(browser)))))
        first, starts = 2, []
        for caption, name, pdf in parts:
            starts.append((caption, name, first))
            first += len(pdf.pages)
        front = Path(folder) / "contents.html"
        front.write_text(contents(starts, title))
        open_page(browser, front.as_uri())
        front_page = PdfReader(io.BytesIO(printed(browser)))
    if len(front_page.pages) != 1:
        raise SystemExit(f"the contents fill {len(front_page.pages)} pages, and the numbers count on one page")
    writer = PdfWriter()
    writer.append(front_page, outline_item="Contents", import_outline=False)
    parents: dict[str, object] = {}
    for (caption, name, pdf), (_, _, number) in zip(parts, starts, strict=True):
        writer.append(pdf, import_outline=False)
        if caption and caption not in parents:
            parents[caption] = writer.add_outline_item(caption, page_number=number - 1)
        writer.add_outline_item(name, page_number=number - 1, parent=parents.get(caption))
    writer.add_metadata({"/Title": title})
    writer.compress_identical_objects()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    writer.write(args.output)
    print(f"{args.output}: {len(writer.pages)} pages, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
