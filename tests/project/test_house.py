"""The structure that CONTRIBUTING.md promises: small, one-way, nothing shadowed, torch alone in the core."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import pitome_core as pc

PACKAGE = Path(__file__).resolve().parents[2] / "pitome_core"
CORE = [path for path in sorted(PACKAGE.rglob("*.py")) if "experiments" not in path.parts]
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_code_lines_counts_code_only():
    source = '"""Doc\nstring."""\n\n# comment\nx = (1,\n     2)\n\n\ndef f():\n    """Doc."""\n    return 1\n'
    assert code_lines(source) == 4


def test_core_can_be_read_in_an_evening():
    assert sum(code_lines(path.read_text()) for path in CORE if "families" not in path.parts) < 1500


def test_a_family_is_a_file_of_moderate_length():
    assert [p.name for p in (PACKAGE / "families").glob("*.py") if code_lines(p.read_text()) >= 250] == []


METHODS = [PACKAGE / "mergers" / f"{name}.py" for name in ("pitome", "pitome_variants", "tome")]
METHODS += sorted((PACKAGE / "experiments" / "baselines").glob("*.py"))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_short(path):
    assert code_lines(path.read_text()) < 60


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, relative ones made absolute."""
    package = ("pitome_core", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join([*base, *([node.module] if node.module else [])]))
    return names


def test_the_core_never_imports_experiments():
    assert [p.name for p in CORE if any(name.startswith("pitome_core.experiments") for name in imported(p))] == []


def test_data_flows_one_way():
    """energy -> mergers -> patching -> tracing: nobody imports what comes after him."""
    order = ["energy", "merge_plan", "mergers", "patching", "tracing"]
    for rank, name in enumerate(order):
        files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else (PACKAGE / name).glob("*.py")
        seen = set().union(*(imported(path) for path in files))
        later = {other for other in order[rank + 1 :] for found in seen if found.startswith(f"pitome_core.{other}")}
        assert not later, f"{name} imports {later}"


def test_no_module_has_the_name_of_a_public_function():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not modules & set(pc.__all__)


def test_public_names_exist_and_have_docstrings():
    for name in pc.__all__:
        assert getattr(pc, name).__doc__, name


def test_importing_the_core_needs_torch_alone():
    heavy = ["timm", "transformers", "open_clip", "numpy.random", "matplotlib", "sklearn", "pitome_core.experiments"]
    code = (
        "import sys, torch; before = set(sys.modules); import pitome_core;"
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
