"""The same code: a hash of the modules that a computation imports, and of the tables and assets that they name.

Two computations ran the same code if their hashes are equal. The hash follows from what the sources say and not from
where they are:

- It is taken from the syntax trees. Comments, docstrings, layout and the names of files do not change it.
- Modules are found from the import statements, inside functions too. Statements under ``if TYPE_CHECKING`` do not
  count. As in Python, importing ``a.b.c`` also runs ``a/__init__.py`` and ``a/b/__init__.py``, so these count.
- A module that calls ``import_module`` with a name that it computes may import any module beside it, so all modules of
  its folder count.
- A file of the package that is not Python counts if a string in these modules is its name, such as ``collection.csv``.
  Of a TOML table of assets only those entries count whose name is such a string, with their hash and with which files
  are taken out of the package. So a new version of the drawings is other code for what reads drawings, and for nothing
  else.

Two edits are not seen: the same import statements in another order, and another module behind a name that an
``__init__`` hands on.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2]
RECORDED = "recorded"  # folder of an installed package that holds records: outcomes, which are no code
NOT_CODE = {"__all__", "__version__"}  # assignments that no computation reads
# Fields of a table's entry that change no byte that a computation reads: what stands beside a hash of the package.
REMARKS = {"purpose", "licence", "package", "version", "filename", "size", "optional", "manifest"}

Computation = str | ModuleType | type | Callable[..., Any]


def code_of(*computations: Computation, package: Path = PACKAGE) -> str:
    """12 hexadecimal digits: a hash of all sources and data that the computations may use.

    Args:
        computations: modules (or their dotted names), or classes and functions, which stand for their modules.
        package: the folder of the package whose modules count. What other packages provide is known by their versions.

    Raises:
        ValueError: a computation has no source file.
    """
    sources = {path: _read(path, package.name) for path in _closure(computations, package)}
    lines = [line for path, source in sources.items() if (line := _line(path, source, package))]
    strings = frozenset().union(*(source.strings for source in sources.values()))
    lines += [line for path in _data_files(package, strings) for line in _data_lines(path, strings)]
    return _hash("\n".join(sorted(lines)))[:12]


def modules_of(*computations: Computation, package: Path = PACKAGE) -> set[str]:
    """Dotted names of the modules of the package that `code_of` reads."""
    names = set()
    for path in _closure(computations, package):
        if path.is_relative_to(package):
            parts = path.relative_to(package).with_suffix("").parts
            names.add(".".join((package.name, *(parts[:-1] if parts[-1] == "__init__" else parts))))
    return names


@dataclass(frozen=True)
class _Import:
    """One name of an import statement. ``level`` counts leading dots; ``name`` is None for ``import module``."""

    level: int
    module: str
    name: str | None
    alias: str | None


@dataclass(frozen=True)
class _Source:
    """What counts of a source file.

    ``content`` is the hash of its syntax tree less what `_Reader` takes out, empty if nothing is left. ``by_name``
    says whether it imports modules by names that it computes.
    """

    content: str
    imports: tuple[_Import, ...]
    strings: frozenset[str]
    by_name: bool


def _read(path: Path, package: str) -> _Source:
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size, package)


@functools.cache
def _parsed(path: Path, changed: int, size: int, package: str) -> _Source:
    reader = _Reader(package)
    tree = reader.visit(ast.parse(path.read_text(encoding="utf-8")))
    content = _hash(_dump(tree)) if tree.body else ""
    return _Source(content, tuple(reader.imports), frozenset(reader.strings), reader.by_name)


class _Reader(ast.NodeTransformer):
    """Takes out of a syntax tree what is no code (strings that stand alone, such as docstrings) and what `_Source`
    has in another form: imports from the package."""

    def __init__(self, package: str):
        self.package = package
        self.imports: list[_Import] = []
        self.strings: set[str] = set()
        self.by_name = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        if any(isinstance(target, ast.Name) and target.id in NOT_CODE for target in node.targets):
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        if getattr(node.test, "id", getattr(node.test, "attr", None)) == "TYPE_CHECKING":
            node.body = []
            self.generic_visit(node)
            return node.orelse
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        ours = [alias for alias in node.names if self._is_ours(alias.name)]
        self.imports += [_Import(0, alias.name, None, alias.asname) for alias in ours]
        node.names = [alias for alias in node.names if alias not in ours]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        if not node.level and not self._is_ours(node.module or ""):
            return node
        self.imports += [_Import(node.level, node.module or "", alias.name, alias.asname) for alias in node.names]
        return None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if getattr(node.func, "id", getattr(node.func, "attr", None)) == "import_module" and node.args:
            name = getattr(node.args[0], "value", None)
            if not isinstance(name, str):
                self.by_name = True
            elif self._is_ours(name):
                self.imports.append(_Import(0, name, None, None))
                node.args = node.args[1:]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            self.strings.add(node.value)
        return node

    def _is_ours(self, module: str) -> bool:
        return module.split(".")[0] == self.package


def _dump(node: Any) -> str:
    """A syntax tree as text that does not depend on the version of Python: fields that are empty are left out."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, ast.JoinedStr):  # older versions of Python split the text of an f-string in other places
        parts = [part.value if isinstance(part, ast.Constant) else _dump(part) for part in node.values]
        return f"JoinedStr({''.join(parts)!r})"
    if isinstance(node, ast.AST):
        fields = {name: getattr(node, name, None) for name in node._fields if name not in ("ctx", "type_comment")}
        inside = (f"{name}={_dump(value)}" for name, value in fields.items() if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(inside)})"
    return f"[{', '.join(map(_dump, node))}]" if isinstance(node, list) else repr(node)


def _closure(computations: tuple[Computation, ...], package: Path) -> set[Path]:
    """The files of the computations and of all modules of the package that these import, directly or not."""
    waiting, closure = [_file_of(computation, package) for computation in computations], set()
    while waiting:
        path = waiting.pop()
        if path in closure:
            continue
        closure.add(path)
        source = _read(path, package.name)
        waiting += [target for one in source.imports if (target := _target(path, one, package)[0])]
        if path.is_relative_to(package):
            folders = [folder for folder in path.parents if folder.is_relative_to(package)]
            waiting += [init for folder in folders if (init := folder / "__init__.py").is_file()]
        if source.by_name:
            waiting += path.parent.glob("*.py")
    return closure


def _file_of(computation: Computation, package: Path) -> Path:
    if isinstance(computation, str):
        first, *parts = computation.split(".")
        file = _module_file(package, parts) if first == package.name else None
    else:
        name = computation.__name__ if isinstance(computation, ModuleType) else computation.__module__
        file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        raise ValueError(f"{computation!r} has no source file: pass a module of {package.name}, or what one defines")
    return Path(file).resolve()


def _module_file(package: Path, parts: list[str] | tuple[str, ...]) -> Path | None:
    """The file of the module ``package.parts``; None if there is none."""
    folder = package.joinpath(*parts)
    candidates = [folder / "__init__.py", *([folder.with_suffix(".py")] if parts else [])]
    return next((path for path in candidates if path.is_file()), None)


def _target(path: Path, one: _Import, package: Path) -> tuple[Path | None, str]:
    """The file that an import of the file ``path`` reads, and the name that it takes from it (none: the module)."""
    named = one.module.split(".") if one.module else []
    if one.level:
        folder = path.parents[one.level - 1]
        if not folder.is_relative_to(package):
            return None, ""
        parts = [*folder.relative_to(package).parts, *named]
    else:
        parts = named[1:]
    if one.name is not None and (submodule := _module_file(package, [*parts, one.name])):
        return submodule, ""
    return _module_file(package, parts), one.name or ""


def _line(path: Path, source: _Source, package: Path) -> str:
    """What one source adds: its content, and the content of what it imports under which name. Empty: nothing."""
    edges = []
    for one in source.imports:
        target, name = _target(path, one, package)
        if target is not None:
            edges.append((_read(target, package.name).content, name, one.alias or one.name or ""))
    return _hash(json.dumps([source.content, *sorted(edges)])) if source.content or edges else ""


def _data_files(package: Path, strings: frozenset[str]) -> Iterator[Path]:
    """The files of the package that are not Python and whose name (or end of path) is one of the strings."""
    for path in package.rglob("*"):
        parts = path.relative_to(package).parts
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        if not path.name.endswith((".py", ".pyc")) and RECORDED not in parts and ends & strings and path.is_file():
            yield path


def _data_lines(path: Path, strings: frozenset[str]) -> list[str]:
    """What a data file adds: the hash of its bytes, or the entries of a TOML table that are named."""
    if path.suffix != ".toml":
        return [f"data {hashlib.sha256(path.read_bytes()).hexdigest()}"]
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [f"{name} {_entry(entry)}" for name, entry in table.items() if name in strings]


def _entry(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = {name: value for name, value in entry.items() if name not in REMARKS}
    return _hash(json.dumps(entry, sort_keys=True, default=str))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
