"""What the chapters show, as data, and whether two states of the code show the same.

    python tools/compare_books.py take FOLDER [--root CLONE] [NAME ...]
    python tools/compare_books.py compare BEFORE AFTER

`take` runs the notebooks of a clone in the tier of PITOME_PROFILE and writes one JSON file for each. A file has what
every cell printed (text, tables, HTML) and the data of every figure: lines, points, bars, bands, images, texts and
axes. `compare` names each cell that differs. Numbers may differ by a relative 1e-6, because a processor rounds sums in
the order of its threads. Cells that measure time differ in every run: the list has to be read by a person.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-6
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")

# Runs in the kernel before the notebook: every figure that is shown also hands out its data, as application/json.
WATCH = '''
def _watch():
    import numpy as np
    from IPython import get_ipython
    from matplotlib import collections, figure, image, lines, patches, text

    def plain(values):
        values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
        if values.size > 4000:  # an image: its shape and its sums by row say enough
            rows = np.nansum(values.reshape(values.shape[0], -1), axis=1)
            return {"shape": list(values.shape), "rows": [float(f"{v:.9g}") for v in rows]}
        return [None if v != v else float(f"{v:.9g}") for v in values.ravel()]

    def one(artist):
        kind = type(artist).__name__
        if isinstance(artist, lines.Line2D):
            return [kind, plain(artist.get_xdata()), plain(artist.get_ydata()), str(artist.get_color())]
        if isinstance(artist, image.AxesImage):
            return [kind, plain(artist.get_array())]
        if isinstance(artist, collections.Collection):
            paths = [plain(path.vertices) for path in artist.get_paths()]
            values = artist.get_array()
            return [kind, plain(artist.get_offsets()), paths, None if values is None else plain(values)]
        if isinstance(artist, patches.Patch):
            box = [*artist.get_xy(), artist.get_width(), artist.get_height()] \
                if isinstance(artist, patches.Rectangle) else artist.get_path().vertices
            return [kind, plain(box), str(np.round(artist.get_facecolor(), 3).tolist())]
        if isinstance(artist, text.Text):
            return [kind, artist.get_text()] if artist.get_text() else None
        return None

    def data(shown):
        axes = []
        for ax in shown.axes:
            artists = [found for artist in ax.get_children() if (found := one(artist)) is not None]
            axes.append({"limits": plain([*ax.get_xlim(), *ax.get_ylim()]), "artists": artists,
                         "labels": [ax.get_title(loc="left"), ax.get_title(), ax.get_xlabel(), ax.get_ylabel()],
                         "ticks": [label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())],
                         "legend": [label.get_text() for label in (ax.get_legend().get_texts() if ax.get_legend()
                                                                   else ())]})
        return {"figure": axes}

    formatter = get_ipython().display_formatter.formatters["application/json"]
    formatter.for_type(figure.Figure, data)
    formatter.pop = lambda *arguments: None  # choosing a figure's format would take ours away

_watch()
del _watch
'''


def run(script: Path, root: Path) -> list[dict]:
    """The outputs of every code cell of a notebook, figures as data."""
    from nbclient import NotebookClient

    notebook = nbformat.read(script, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WATCH))
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True,
                   resources={"metadata": {"path": str(script.parent)}}).execute(env=os.environ | {"PYTHONPATH": path})
    cells = []
    for number, cell in enumerate(cell for cell in notebook.cells[1:] if cell.cell_type == "code"):
        outputs = []
        for output in cell.outputs:
            data = output.get("data", {})
            if "application/json" in data:
                outputs.append({"figure": data["application/json"]["figure"]})
            elif output.output_type == "stream" and output.name == "stderr":
                continue
            else:
                shown = {kind: text for kind, text in data.items() if kind.startswith("text/")}
                outputs.append({"text": shown or output.get("text", "")})
        cells.append({"cell": number, "starts": cell.source.strip().splitlines()[0][:90] if cell.source.strip() else "",
                      "outputs": outputs})
    return cells


def differences(before: object, after: object, where: str = "") -> list[str]:
    """Where two outputs differ, in words; at most one entry per leaf."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.keys() != after.keys():
            return [f"{where}: {sorted(before)} and {sorted(after)}"]
        return [text for key in before for text in differences(before[key], after[key], f"{where}/{key}")]
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return [f"{where}: {len(before)} and {len(after)} entries"]
        pairs = enumerate(zip(before, after, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{where}/{i}")]
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        same = math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return [] if same else [f"{where}: {before} and {after}"]
    if isinstance(before, str) and isinstance(after, str) and before != after:
        if NUMBER.sub("#", before) != NUMBER.sub("#", after):
            return [f"{where}: other words: {_first_difference(before, after)}"]
        pairs = list(zip(NUMBER.findall(before), NUMBER.findall(after), strict=True))
        changed = [f"{a} and {b}" for a, b in pairs if a != b]
        return [f"{where}: {len(changed)} of {len(pairs)} numbers, such as {', '.join(changed[:5])}"]
    return [] if before == after else [f"{where}: {before!r} and {after!r}"]


def _first_difference(before: str, after: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"{before[max(at - 30, 0): at + 50]!r} and {after[max(at - 30, 0): at + 50]!r}"


def take(folder: Path, root: Path, names: list[str]) -> int:
    """Write a file for every notebook."""
    folder.mkdir(parents=True, exist_ok=True)
    for script in sorted((root / "notebooks").glob("*.ipynb")):
        if not names or any(script.name.startswith(name) for name in names):
            cells = run(script, root)
            (folder / f"{script.stem}.json").write_text(json.dumps(cells, indent=1) + "\n")
            figures = sum("figure" in output for cell in cells for output in cell["outputs"])
            print(f"{script.stem}: {len(cells)} cells, {figures} figures", flush=True)
    return 0


def compare(before: Path, after: Path) -> int:
    """Print every cell that differs; 1 if there is one."""
    found = 0
    for old in sorted(before.glob("*.json")):
        new = after / old.name
        if not new.is_file():
            print(f"{old.stem}: not in {after.name}")
            found += 1
            continue
        first, second = (json.loads(path.read_text()) for path in (old, new))
        lines = [f"{len(first)} and {len(second)} cells"] if len(first) != len(second) else []
        for a, b in zip(first, second, strict=False):
            lines += [f"cell {a['cell']} ({b['starts']}){text}" for text in differences(a["outputs"], b["outputs"])]
        print(f"{old.stem}: {len(lines) or 'no'} difference{'' if len(lines) == 1 else 's'}")
        print("".join(f"  {line}\n" for line in lines[:40]), end="")
        found += len(lines)
    return int(found > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("take", help="run the notebooks and keep what they show")
    taking.add_argument("folder", type=Path)
    taking.add_argument("names", nargs="*", metavar="NAME", help="such as 01 (default: all)")
    taking.add_argument("--root", type=Path, default=ROOT, help="the clone whose notebooks and package run")
    comparing = commands.add_parser("compare", help="name every cell that differs; exit status 1 if one does")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "take":
        return take(args.folder, args.root.resolve(), args.names)
    return compare(args.before, args.after)


if __name__ == "__main__":
    sys.exit(main())
