"""The structure that CONTRIBUTING.md promises: small, nothing shadowed, torch alone in the core.

`python tests/project/test_house.py` prints the statements of every file of the core. Which part may import which is
checked by `lint-imports` (`make lint`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pitome_core as pc

PACKAGE = Path(__file__).resolve().parents[2] / "pitome_core"
FAMILIES = sorted((PACKAGE / "families").glob("*.py"))
COMMAND = sorted((PACKAGE / "cli").glob("*.py"))
# The method needs none of these.
USE = [PACKAGE / f"{name}.py" for name in ("diagnosis", "drawing", "intervals", "layer_measures")]
FUSED = sorted((PACKAGE / "fused").glob("*.py"))
APART = {"cli", "experiments", "families", "fused"}
CORE = [path for path in sorted(PACKAGE.rglob("*.py")) if not APART & set(path.parts) and path not in USE]
METHODS = [PACKAGE / "mergers" / f"{name}.py" for name in ("pitome", "pitome_variants", "tome")]
METHODS += sorted((PACKAGE / "experiments" / "baselines").glob("*.py"))
# The most statements: of the core without families, of what looks at models that merge, of the command, of all families
# together, of one family, of one method, of the kernels for GPUs and what launches them. A family may
# cost what its encoder loop needs.
MOST = {"core": 1905, "use": 460, "command": 260, "families": 1440, "family": 190, "method": 55,
        "fused": 450}


def statements(source: str) -> int:
    """Statements in a Python source, without docstrings. How they are spread over lines does not matter."""
    nodes = list(ast.walk(ast.parse(source)))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = sum(isinstance(node, documented) and ast.get_docstring(node) is not None for node in nodes)
    return sum(isinstance(node, ast.stmt) for node in nodes) - docstrings


def table(paths: list[Path]) -> str:
    """The statements of each file and their sum, one a line."""
    counts = {str(path.relative_to(PACKAGE.parent)): statements(path.read_text()) for path in paths}
    return "\n".join(f"{count:5} {name}" for name, count in [*counts.items(), ("together", sum(counts.values()))])


def total(paths: list[Path]) -> int:
    return sum(statements(path.read_text()) for path in paths)


def test_statements_do_not_depend_on_lines():
    source = '"""Doc\nstring."""\n# comment\nx = (1,\n     2)\n\n\ndef f():\n    """Doc."""\n    return 1\n'
    assert statements(source) == 3
    assert statements("x = 1; y = 2\nif x: y = x\n") == statements("x = 1\ny = 2\nif x:\n    y = x\n") == 4


def test_core_can_be_read_in_an_evening():
    assert total(CORE) <= MOST["core"], f"\n{table(CORE)}"


def test_what_looks_at_models_is_short():
    assert total(USE) <= MOST["use"], f"\n{table(USE)}"
    assert total(COMMAND) <= MOST["command"], f"\n{table(COMMAND)}"


def test_the_method_needs_nothing_that_looks_at_models():
    """Without the public names and `Trace.plot`, no file of the core imports them."""
    hidden = {path.stem for path in USE}
    for path in CORE:
        if path.name not in ("__init__.py", "tracing.py"):
            names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
            assert not hidden & names, path


def test_kernels_are_few():
    assert total(FUSED) <= MOST["fused"], f"\n{table(FUSED)}"


def test_no_file_is_longer_than_500_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > 500} == {}


def test_families_are_files_of_moderate_length():
    assert total(FAMILIES) <= MOST["families"], f"\n{table(FAMILIES)}"
    assert [p.name for p in FAMILIES if statements(p.read_text()) > MOST["family"]] == [], f"\n{table(FAMILIES)}"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_short(path):
    assert statements(path.read_text()) <= MOST["method"]


def test_no_module_has_the_name_of_a_public_function():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not modules & set(pc.__all__)


def test_public_names_exist_and_have_docstrings():
    for name in pc.__all__:
        assert getattr(pc, name).__doc__, name


def test_importing_the_core_needs_torch_alone():
    heavy = ["timm", "transformers", "open_clip", "numpy.random", "matplotlib", "sklearn", "pitome_core.experiments",
             "triton", "pitome_core.fused"]
    code = (
        "import sys, torch; before = set(sys.modules); import pitome_core;"
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


if __name__ == "__main__":
    print(*map(table, (CORE, USE, COMMAND, FAMILIES, FUSED)), sep="\n\n")
