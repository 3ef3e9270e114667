"""Keep notebooks/*.ipynb equal to notebooks/*.py: `python tools/pair.py [--check] [--execute] [NAME...]`.

The .py (jupytext's percent format) is the source. The .ipynb is written from it with cell ids that follow from
the cells' text, so that a diff shows what was edited and nothing else. Outputs are kept only in cells tagged
`nbval-check-output`: those are what nbval compares, and it compares nothing where the execution count is null,
hence execution count 1. A notebook is executed when its code or its checked outputs are not the stored ones
(`--execute`: always).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
CHECKED = "nbval-check-output"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT = ("tags", "mystnb")  # the cell metadata that both files carry


def is_checked(cell) -> bool:
    return cell.cell_type == "code" and CHECKED in cell.metadata.get("tags", [])


def signature(notebook) -> list[tuple]:
    """What the two files of a pair must agree on."""
    return [
        (cell.cell_type, cell.source, {key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)})
        for cell in notebook.cells
    ]


def from_script(script: Path):
    """The notebook a script stands for: clean metadata, ids from the text, no outputs."""
    notebook = jupytext.read(script)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)})
    notebook.metadata = nbformat.from_dict({"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": KERNEL})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook, folder: Path):
    """Run all cells where the reader would run them: in the notebook's own folder."""
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True, record_timing=False,
                            resources={"metadata": {"path": str(folder)}})
    return client.execute()


def checked_output(cell) -> list:
    """The outputs of a checked cell, in the form that is stored."""
    for output in cell.outputs:
        if set(output.get("data", {})) - {"text/plain"} or output.get("name") == "stderr":
            raise SystemExit(f"a checked cell may only print plain text: {cell.source[:80]!r}")
        if "execution_count" in output:
            output["execution_count"] = 1
        output.get("metadata", {}).clear()
    return cell.outputs


def problems(script: Path) -> list[str]:
    """Every way in which a pair is out of step, in words. Empty: nothing to do."""
    stored = script.with_suffix(".ipynb")
    if not stored.exists():
        return [f"{stored.name} is missing"]
    notebook, wanted = nbformat.read(stored, as_version=4), from_script(script)
    found = []
    if signature(notebook) != signature(wanted):
        found.append(f"{stored.name} and {script.name} differ in their cells")
    elif [cell.id for cell in notebook.cells] != [cell.id for cell in wanted.cells]:
        found.append(f"{stored.name} has cell ids of its own")
    if notebook.metadata != wanted.metadata:
        found.append(f"{stored.name} has other notebook metadata: {dict(notebook.metadata)}")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        where = f"{stored.name}, cell {number}"
        if is_checked(cell):
            if cell.execution_count != 1 or not cell.outputs:
                found.append(f"{where}: a checked cell needs stored output and execution count 1")
        elif cell.execution_count is not None or cell.outputs:
            found.append(f"{where}: only checked cells keep outputs")
    return found


def write(script: Path, force: bool) -> str:
    """Bring one .ipynb up to date; says what was done."""
    stored = script.with_suffix(".ipynb")
    notebook = from_script(script)
    previous = nbformat.read(stored, as_version=4) if stored.exists() else None

    def code(which):
        return [cell.source for cell in which.cells if cell.cell_type == "code"]

    outputs = None
    if previous is not None and not force and code(previous) == code(notebook):
        kept = [cell.outputs for cell in previous.cells if cell.cell_type == "code"]
        wanted = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if all(out for out, cell in zip(kept, wanted, strict=True) if is_checked(cell)):
            outputs, done = kept, "kept its outputs"
    if outputs is None:
        start = time.monotonic()
        executed = execute(from_script(script), script.parent)
        outputs = [checked_output(c) if is_checked(c) else [] for c in executed.cells if c.cell_type == "code"]
        done = f"executed in {time.monotonic() - start:.0f} s"
    for cell, output in zip((c for c in notebook.cells if c.cell_type == "code"), outputs, strict=True):
        cell.outputs = output if is_checked(cell) else []
        cell.execution_count = 1 if is_checked(cell) else None
    text = nbformat.writes(notebook) + "\n"
    if stored.exists() and stored.read_text() == text:
        return f"{done}, unchanged"
    stored.write_text(text)
    return f"{done}, written"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help="notebooks to treat, e.g. 01 (default: all)")
    options.add_argument("--check", action="store_true", help="write nothing, exit 1 if something would change")
    options.add_argument("--execute", action="store_true", help="execute even where the code did not change")
    args = options.parse_args()
    os.environ.setdefault("PITOME_PROFILE", "smoke")
    scripts = sorted(p for p in (ROOT / "notebooks").glob("*.py")
                     if not args.names or any(p.name.startswith(name) for name in args.names))
    if not scripts:
        sys.exit("no notebook of that name")
    found = []
    for script in scripts:
        if args.check:
            found += problems(script)
        else:
            print(f"{script.stem}: {write(script, args.execute)}", flush=True)
            found += problems(script)
    print("\n".join(found or [f"{len(scripts)} notebooks in step"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
