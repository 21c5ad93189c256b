"""The tables of docs/recipes.md, made from the code: `python -m tests.docs.recipe_table` writes them."""

from __future__ import annotations

import ast
import inspect
import itertools
import re

from pydantic import BaseModel

from mpa_edge.config.recipe import Recipe
from mpa_edge.config.validation import model_of, must_be, shown
from tests.docs.markdown import ROOT

DOCUMENT = ROOT / "docs" / "recipes.md"
BLOCK = re.compile(r"(<!-- keys:begin -->\n).*?(<!-- keys:end -->)", re.DOTALL)
HEAD = "| Key | Default | Allowed | Meaning |\n|---|---|---|---|\n"


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The line under each field."""
    body = ast.parse(inspect.getsource(model)).body[0].body  # type: ignore[attr-defined]
    pairs = itertools.pairwise(body)
    return {
        field.target.id: text.value.value
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def default_of(value: object) -> str:
    if value == ():
        return "`[]`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{value!r}`" if isinstance(value, float) else f"`{shown(value)}`"


def row(name: str, model: type[BaseModel]) -> str:
    field = model.model_fields[name]
    default = "required" if field.is_required() else default_of(field.default)
    allowed = re.sub(r"(?<=matches )(\S+?)(?=\)?,?(?:\s|$))", r"`\1`", must_be(field)).replace("|", "\\|")
    allowed = re.sub(r" with keys .*", "", allowed)
    return f"| `{name}` | {default} | {allowed} | {docstrings(model)[name].replace('|', chr(92) + '|')} |\n"


def section(model: type[BaseModel], path: str) -> str:
    """One table, and the tables of the sections below it."""
    inner = {name: model_of(field.annotation) for name, field in model.model_fields.items()}
    plain = [name for name, below in inner.items() if below is None or name == "task"]  # a name, or a section
    title = f"### {path}\n\n{inspect.getdoc(model)}\n\n" if path else "### At the top\n\n"
    out = title + HEAD + "".join(row(name, model) for name in plain) + "\n"
    return out + "".join(
        section(below, f"{path}.{name}".removeprefix(".")) for name, below in inner.items() if below is not None
    )


def filled(text: str) -> str:
    """The document with the tables of today's model."""
    return BLOCK.sub(lambda match: match[1] + "\n" + section(Recipe, "") + match[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
