"""Reads what a Python file imports, wherever in the file it does so, without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("server", "processing", "engine", "compressors", "training", "demo", "benchmarks", "selftest"),
    "tests",
)


@dataclass(frozen=True, slots=True)
class Import:
    """``module`` as written in full (``from engine import config`` gives ``engine.config``)."""

    path: Path
    line: int
    module: str
    lazy: bool  # inside a function, so that it costs and couples only when called

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}{' (lazily)' if self.lazy else ''}"


def python_files(package: str, root: Path = ROOT) -> list[Path]:
    """Paths relative to ``root``; build results and foreign folders such as node_modules left out."""
    found = (path.relative_to(root) for path in (root / package).rglob("*.py"))
    return sorted(path for path in found if "node_modules" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path = ROOT) -> list[Import]:
    tree = ast.parse((root / path).read_text(), filename=str(path))
    return [
        Import(path, getattr(node, "lineno", 0), module, lazy)
        for node, lazy in nodes_with_laziness(tree)
        for module in _modules(node, path, root)
    ]


def nodes_with_laziness(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node under ``tree``, with whether it stands inside a function."""
    for child in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from nodes_with_laziness(child, inside)


def _modules(node: ast.AST, path: Path, root: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node, path)
        # `from engine import config` names a module; `from engine.config import EngineConfig` does not.
        return [f"{base}.{a.name}" if _is_module(f"{base}.{a.name}", root) else base for a in node.names]
    if isinstance(node, ast.Call) and _called_name(node) in ("import_module", "__import__") and node.args:
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return []


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    parent = list(path.parts[: len(path.parts) - node.level])
    return ".".join(parent + ([node.module] if node.module else []))


def _is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _called_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
