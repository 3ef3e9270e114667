"""Where the built pages are, for the tests that read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def missing(what: str) -> None:
    """On CI a check that cannot run has failed; elsewhere it is skipped, visibly."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


def html_folder() -> Path:
    """PITOME_BOOK_HTML, else what `make test-book` builds, else the reader's own pages."""
    named = os.environ.get("PITOME_BOOK_HTML")
    folders = [named] if named else ["_build/test/_build/html", "_build/html"]
    for folder in (ROOT / name for name in folders):
        if (folder / "index.html").is_file():
            return folder
    missing(f"no built pages in {' or '.join(folders)}: run `make test-book` first")


def pages(folder: Path) -> list[Path]:
    """The pages that somebody wrote."""
    return sorted([*(folder / "book").glob("*.html"), *(folder / "notebooks").glob("*.html")])
