"""What `list`, `show`, `copy` and `check` know: files (recipes, targets, schemes, tasks) and modules (families)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from mpa_edge.config import library
from mpa_edge.errors import MpaError, did_you_mean

FILE_KINDS: tuple[library.Kind, ...] = ("recipes", "targets", "schemes", "tasks")
FAMILIES = "families"
KINDS = (*FILE_KINDS, FAMILIES)


def families() -> dict[str, Any]:
    """Every family by name."""
    from mpa_edge.families import families

    return dict(families())


def names(kind: str) -> list[str]:
    """Names of everything of one kind."""
    return list(families()) if kind == FAMILIES else library.names(cast(library.Kind, kind))


def title(kind: str, name: str) -> str:
    """One line about something; empty where it has no title."""
    if kind == FAMILIES:
        return str(families()[name].title)
    document = library.load_yaml(library.find(cast(library.Kind, kind), name), name)
    return str(document.get("title", "")) if isinstance(document, dict) else ""


def file_kind(name: str) -> library.Kind:
    """Kind of a name, or of your own file: by its keys, then by the folder that contains it, else a recipe."""
    path = Path(name)
    if not library.is_path(name):
        return next((kind for kind in FILE_KINDS if name in names(kind)), "recipes")
    folder_kind: library.Kind = next((kind for kind in FILE_KINDS if path.resolve().parent.name == kind), "recipes")
    try:
        document = library.load_yaml(path, name) if path.is_file() else None
        keys = set(document) if isinstance(document, dict) else set()
    except MpaError:  # not valid YAML: what its lines begin with
        keys = set(re.findall(r"(?m)^(\w+):", path.read_text(encoding="utf-8", errors="replace")))
    fits = {kind: len(keys & set(library.model_of_kind(kind).model_fields)) for kind in FILE_KINDS}
    return max(FILE_KINDS, key=lambda kind: (fits[kind], kind == folder_kind))


def kinds_of(name: str) -> list[str]:
    """Every kind that has something of this name. Raises MpaError naming the nearest name."""
    found = [kind for kind in KINDS if name in names(kind)]
    if not found:
        tip = did_you_mean(name, [known for kind in KINDS for known in names(kind)], "see mpa-edge list")
        raise MpaError(f"nothing is called '{name}' ({tip})")
    return found
