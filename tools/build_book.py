"""Build the book: `python tools/build_book.py [--fresh] [--output FOLDER]`.

Pages land in FOLDER/_build/html (default: _build/html). The notebooks run in the tier that PITOME_PROFILE names.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


# Said once for every notebook or build, of no use to a reader.
NOISE = re.compile(r"Kernel is running over TCP without encryption|(?:Md|Nb)ParserConfig\(")


def call(command: list[str], **options) -> int:
    """Run a command and hand its lines on as they come, less the noise."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process:
        for line in process.stdout:
            if not NOISE.search(line):
                print(line, end="", flush=True)
    return process.returncode


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fresh", action="store_true", help="start from nothing: no pages, no cached outputs")
    options.add_argument("--output", default=".", help="folder that gets the _build folder")
    options.add_argument("--source", type=Path, default=ROOT, help="the book's root (tests build a small one)")
    args = options.parse_args()

    output = (args.source / args.output).resolve()
    build = output / "_build"
    if args.fresh:
        shutil.rmtree(build, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    print(f"notebooks run in the {os.environ.get('PITOME_PROFILE') or 'embedded'} tier", flush=True)
    # With PYTHON=... the package may not be installed; kernels find it all the same.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(
        [str(args.source), *filter(None, [os.environ.get("PYTHONPATH")])])}
    book = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"  # it has no `python -m`
    command = [sys.executable, "-c", book, "build", ".", "-n", "-W", "--keep-going"]
    if output != args.source.resolve():
        command += ["--path-output", str(output)]
    code = call(command, cwd=args.source, env=environment | {"PYTHONUNBUFFERED": "1"})
    if code:
        # Sphinx does not repeat the warnings of pages that it has read: without this the next run would pass.
        # The outputs of notebooks that ran well stay in their cache.
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
        print(f"the book did not build (exit {code})", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
