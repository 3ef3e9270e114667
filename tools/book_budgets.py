"""How long the pages of the built book are: `python tools/book_budgets.py [HTML] [--only PAGE]` (`make budgets`).

A report beside the budgets, not a gate: words of the main text, tables and bracketed intervals in it, cells that are
open, height in pixels in a window 1,280 wide, weight in kB with its pictures. What is folded away is not main text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup
from chrome import open_page, running
from contents import pages

ROOT = Path(__file__).resolve().parents[1]
# Words of the main text of each chapter; no chapter above `PIXELS`, no page above `KILOBYTES`.
WORDS = {
    "notebooks/01_why_merge": 900, "notebooks/02_energy_score": 1200, "notebooks/03_one_merge": 1200,
    "notebooks/04_gate_or_edges": 1200, "notebooks/05_spectral_distance": 1300, "notebooks/06_theorem": 1500,
    "notebooks/07_real_tokens": 800, "notebooks/08_quality": 2000, "notebooks/09_when_energy_helps": 1200,
    "notebooks/10_llava": 900, "notebooks/11_speed": 1200, "notebooks/12_use_it": 1500, "book/paper_and_code": 1000,
}
PIXELS, KILOBYTES = 7000, 1500
FOLDED = "details, script, style, noscript, .cell_input, .headerlink, .exercise, .solution, [data-live] svg"


def measure(html: Path, page: str) -> dict[str, int]:
    """The numbers of a page that need no browser."""
    file = html / f"{page}.html"
    article = BeautifulSoup(file.read_text(), "html.parser").select_one("article")
    pictures = [(file.parent / unquote(tag["src"])).resolve() for tag in article.select("img[src]")
                if not tag["src"].startswith("data:")]
    weight = file.stat().st_size + sum(picture.stat().st_size for picture in set(pictures))
    for tag in article.select(FOLDED):
        tag.decompose()
    cells = len(article.select(".cell"))
    tables = article.select("table")
    brackets = article.get_text(" ").count(" [")
    for tag in tables:
        tag.decompose()
    return {"words": len(article.get_text(" ").split()), "tables": len(tables), "intervals": brackets,
            "cells": cells, "kB": round(weight / 1000)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("html", nargs="?", type=Path, default=ROOT / "_build" / "html", help="folder of built pages")
    options.add_argument("--only", metavar="PAGE", help="one page, as _toc.yml names it")
    args = options.parse_args()
    every = [args.only] if args.only else [page for _, page in pages()]
    print(f"{'page':32}{'words':>7}{'budget':>8}{'tables':>8}{'[..]':>6}{'cells':>7}{'pixels':>8}{'kB':>7}")
    total = 0
    with running() as browser:
        for page in every:
            found = measure(args.html, page)
            open_page(browser, (args.html / f"{page}.html").resolve().as_uri())
            pixels = browser.execute_script("return document.querySelector('article').offsetHeight")
            budget = WORDS.get(page)
            total += found["words"] if budget else 0
            over = budget and (found["words"] > budget or pixels > PIXELS) or found["kB"] > KILOBYTES
            print(f"{page:32}{found['words']:7,}{budget or '':>8}{found['tables']:8}{found['intervals']:6}"
                  f"{found['cells']:7}{round(pixels):8,}{found['kB']:7,}{'  above' if over else ''}")
    print(f"main text together: {total:,} words of {sum(WORDS.values()):,}; a chapter has at most {PIXELS:,} pixels")


if __name__ == "__main__":
    main()
