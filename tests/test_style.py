"""The rules of the code that a linter does not know."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mpa_edge"
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def faults(source: str) -> list[str]:
    """Every broken rule of one file, with its line."""
    tree = ast.parse(source)
    found = [] if source.count("\n") <= 450 else [f"{source.count(chr(10))} lines in one file"]
    found += [f"line {n}: fmt: skip" for n, line in enumerate(source.split("\n"), 1) if "# fmt: " in line]
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and node.end_lineno - node.lineno + 1 > 60:
            found.append(f"line {node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert (raise MpaError, users run without a debugger)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_keeps_the_rules(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_rules_bite() -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    assert len(faults(long)) == 1
    assert len(faults("try:\n    pass\nexcept:\n    assert 1\n")) == 2
    assert len(faults("x = 1\n" * 451)) == 1
    assert len(faults("x = 1  # fmt: skip\n")) == 1
    assert faults("def f():\n" + "    x = 1\n" * 59) == []


def test_there_are_files() -> None:
    assert len(FILES) > 10
