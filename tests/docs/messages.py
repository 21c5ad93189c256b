"""Every text of the source as a template: what is filled in at run time is one `…`."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import ROOT

PACKAGE = ROOT / "mpa_edge"
HOLE = "…"
# what ends up as a user's line on stderr
RAISED = ("MpaError", "VerificationError", "ClickException")
# texts that no command reaches: they are for callers of the functions
FOR_PROGRAMMERS = ("answers is one string", "no answers to score against", "a row of …")


def template(node: ast.expr) -> str | None:
    """The text of an expression: a constant, an f-string, or a sum that contains one."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(HOLE if isinstance(part, ast.FormattedValue) else part.value for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [template(node.left), template(node.right)]
        return "".join(side or HOLE for side in sides) if any(sides) else None
    return None


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def texts() -> set[str]:
    """Every template of the package."""
    nodes = (node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.expr))
    return {text for node in nodes if (text := template(node))}


@functools.cache
def raised() -> dict[str, str]:
    """Template -> file and line, for every error that a user can meet."""
    found = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in RAISED and node.args:
                text = template(node.args[0])
                if text and not text.startswith(FOR_PROGRAMMERS) and text.strip(f"{HOLE}: ()"):
                    found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def name_of(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def covers(quoted: str, text: str) -> bool:
    """Whether a template holds what a document quotes; a hole of the quotation stands for anything.

    >>> covers("no folder '…': name", "no folder '…': name an existing folder")
    True
    """
    at = 0
    for part in filter(None, quoted.split(HOLE)):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True
