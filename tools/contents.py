"""What _toc.yml says of the book: its pages, in their order."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def pages(root: Path = ROOT) -> list[tuple[str, str]]:
    """Caption of the part, and file without its ending; the first page has no part."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    chapters = [(part.get("caption", ""), one["file"]) for part in toc.get("parts", ()) for one in part["chapters"]]
    return [("", toc["root"]), *chapters]
