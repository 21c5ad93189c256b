"""The half of mpa_edge that a device needs: what the runner imports, and what that imports, as the code says it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import mpa_edge
from mpa_edge.vlm import RUNTIMES

PACKAGE = "mpa_edge"
ROOT = Path(mpa_edge.__file__).parent.parent
HEAVY = {"torch", "transformers", "click", "rich"}
"""What no device has: a module that imports one of them at once stays at home, and whatever only that one needs."""
# the worker and the runtimes are named in texts, or imported by a process of its own
STARTS = (f"{PACKAGE}.bench.runner", f"{PACKAGE}.bench.worker", *(module for module, _ in RUNTIMES.values()))


def light_files() -> dict[str, Path]:
    """Path inside lib/ -> source file, sorted."""
    found: dict[str, Path] = {}
    waiting = list(STARTS)
    while waiting:
        path = _file_of(waiting.pop())
        name = path.relative_to(ROOT).as_posix() if path else ""
        if path is None or name in found:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if _is_heavy(tree):
            continue
        found[name] = path
        # a package that imports inside a function offers a choice: what a device takes of it is named above
        waiting += imported(tree.body if path.stem == "__init__" else _run_nodes(tree))
    return dict(sorted(found.items()))


def _file_of(module: str) -> Path | None:
    """The file of a module or a package of ours."""
    base = ROOT.joinpath(*module.split("."))
    choice = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in choice if path.is_file()), None)


def _is_heavy(tree: ast.Module) -> bool:
    at_once = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return any(name.partition(".")[0] in HEAVY for node in at_once for name in _names(node))


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules of ours that some nodes import, with the packages that they lie in.

    >>> list(imported(ast.parse("import os, mpa_edge.errors").body))
    ['mpa_edge', 'mpa_edge.errors']
    """
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in _names(node):
                parts = name.split(".")
                if parts[0] == PACKAGE:
                    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _run_nodes(node)
