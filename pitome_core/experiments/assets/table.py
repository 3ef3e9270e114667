"""The table of assets: `table.toml`, read once and checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pitome_core.experiments.settings import cache_dir

KINDS = ("wheel", "sdist", "debian", "npm", "installed")


class AssetError(RuntimeError):
    """An asset is not in the cache and cannot be fetched; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One entry of `table.toml`, which explains the fields. ``size`` is in bytes.

    Raises ``ValueError`` with the name of the entry and of the field where a value is missing, has the wrong type or
    cannot be right.
    """

    name: str
    package: str
    kind: str
    licence: str
    purpose: str
    version: str = ""
    filename: str = ""
    sha256: str = ""
    size: int = 0
    members: Mapping[str, str] = field(default_factory=dict)
    inner: str = ""
    folder: str = ""
    optional: bool = False
    manifest: str = ""

    def __post_init__(self) -> None:
        for name, annotation in Asset.__annotations__.items():
            value, expected = getattr(self, name), {"str": str, "int": int, "bool": bool}.get(annotation, Mapping)
            if type(value) is not expected and not (expected is Mapping and isinstance(value, Mapping)):
                raise self._wrong(name, f"is {value!r} of type {type(value).__name__}; {annotation} is needed")
        if self.kind not in KINDS:
            raise self._wrong("kind", f"is {self.kind!r}; choose one of {', '.join(KINDS)}")
        needed = ["package", "licence", "purpose"]
        needed += ["folder"] if self.kind == "installed" else ["version", "filename", "sha256", "size"]
        needed += {"debian": ["folder"], "sdist": ["members"], "npm": ["members"]}.get(self.kind, [])
        for name in needed:
            if not getattr(self, name):
                raise self._wrong(name, f"is missing; an asset of kind {self.kind!r} needs it")
        for name in ("sha256", "manifest"):
            if (value := getattr(self, name)) and not re.fullmatch("[0-9a-f]{64}", value):
                raise self._wrong(name, f"is {value!r}; 64 digits of 0-9 and a-f are needed")

    @property
    def cache_folder(self) -> Path:
        """Where the files of a fetched asset belong; it may not exist."""
        return cache_dir() / "assets" / f"{self.name}-{self.version}"

    def _wrong(self, name: str, reason: str) -> ValueError:
        return ValueError(f"asset {self.name!r}: field {name!r} {reason}")


def read(text: str) -> dict[str, Asset]:
    """``{name: asset}`` of a table in TOML, in its order. Raises ``ValueError`` that names the entry and the field."""
    table = {}
    for name, entry in tomllib.loads(text).items():
        if not isinstance(entry, dict):
            raise ValueError(f"asset {name!r} is {entry!r}; write it as a table: [{name}]")
        if unknown := sorted(entry.keys() - (Asset.__annotations__.keys() - {"name"})):
            raise ValueError(f"asset {name!r}: no field is called {unknown[0]!r}")
        table[name] = Asset(name, **{"package": "", "kind": "", "licence": "", "purpose": ""} | entry)
    return table


ASSETS = read(Path(__file__).with_name("table.toml").read_text(encoding="utf-8"))
