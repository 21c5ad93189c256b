"""The tables of docs/export.md and docs/targets.md, made from the YAML files: `python -m tests.docs.export_table`."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from mpa_edge.config import library
from mpa_edge.config.scheme import Scheme
from mpa_edge.config.target import Target
from mpa_edge.exporters.sizes import forecast_bytes, fp32_bytes
from mpa_edge.exporters.source import Source
from mpa_edge.vlm import WEIGHTS
from tests.docs.markdown import ROOT
from tests.docs.recipe_table import section

EXPORT, TARGETS = ROOT / "docs" / "export.md", ROOT / "docs" / "targets.md"


def put(text: str, name: str, table: str) -> str:
    """The document with a table between its two marks."""
    block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", text)


def schemes() -> str:
    """Name, what it is, bits of each component, and the size for the built-in student."""
    source = Source("student", WEIGHTS / "student", Path("never-written"))
    rows = ["| Scheme | What it is | Bits | Size |", "|---|---|---|---:|"]
    for scheme in map(library.load_scheme, library.names("schemes")):
        sizes = forecast_bytes(source, scheme)
        share = sum(sizes.values()) / sum(fp32_bytes(source, part) for part in sizes)
        bits = ", ".join(f"{part} {precision}" for part, precision in scheme.components.items())
        control = " (control)" if scheme.control and "control" not in scheme.title else ""
        rows.append(f"| `{scheme.name}` | {scheme.title}{control} | {bits} | {share:.0%} |")
    return "\n".join(rows) + "\n"


def targets() -> str:
    """What a user compares before choosing one."""
    rows = [
        "| Target | What it is | Schemes, best first | Tiles | Context | Memory | TTFT | tok/s |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    found = [library.load_target(name) for name in library.names("targets")]
    for target in sorted(found, key=lambda one: (one.kind != "class", one.name)):
        chosen = ", ".join(f"`{choice.name}`" for choice in target.schemes)
        budgets = target.budgets
        rows.append(
            f"| `{target.name}` | {target.title} | {chosen} | {target.image.max_tiles} | {target.context_tokens:,} | "
            f"{budgets.memory_bytes / 1e9:.1f} GB | {budgets.ttft_s:g} s | {budgets.tokens_per_s:g} |"
        )
    return "\n".join(rows) + "\n"


def keys(model: type[BaseModel]) -> str:
    """Every key of a document, one level deeper than the heading above it."""
    return section(model, "").rstrip("\n") + "\n"


def filled(name: str, text: str) -> str:
    """A document with the tables of today's files."""
    if name == "export.md":
        return put(put(text, "schemes", schemes()), "keys", keys(Scheme).replace("### ", "#### "))
    return put(put(text, "targets", targets()), "keys", keys(Target))


if __name__ == "__main__":
    for path in (EXPORT, TARGETS):
        path.write_text(filled(path.name, path.read_text(encoding="utf-8")), encoding="utf-8")
