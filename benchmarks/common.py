"""What the benchmarks share: numbers and tables in Markdown, what a figure was measured on, and where it is kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
Document = dict[str, Any]


def percent(value: float | None) -> str:
    """0.4567 -> 45.7 %; nothing where there is no value."""
    return "" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """0.131 -> +13.1."""
    return f"{100 * value:+.1f}"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def table(columns: Mapping[str, Callable[[Any], str]], rows: Iterable[Any]) -> str:
    """A Markdown table: heading -> what it shows of a row. All columns but the first are right-aligned."""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[show(row) for show in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def marked(text: str, name: str, block: str) -> str:
    """The text with what stands between the two markers of a name replaced."""
    between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.S)
    return between.sub(lambda match: match[1] + block + match[2], text)


def machine() -> Document:
    """What a figure was measured on."""
    from mpa_edge.stages.run import cpu_name

    return {"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name()}


def command(script: str, words: Sequence[str], without: Sequence[str] = ()) -> str:
    """The command that was typed, as the documents show it; options of `without` and their values are left out."""
    before = ["", *words]
    kept = [word for word, last in zip(words, before, strict=False) if word not in without and last not in without]
    return " ".join([f"python benchmarks/{script}", *kept])


def read(path: Path) -> Document:
    """A JSON document; empty where there is no such file."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def write(path: Path, document: Document) -> None:
    """The whole document, or the one before it where this is interrupted."""
    building = path.with_name(f".{path.name}")
    building.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(building, path)


def remember(path: Path, key: str, value: Document) -> None:
    """Put one result beside the others of a document."""
    write(path, read(path) | {key: value})
