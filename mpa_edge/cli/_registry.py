"""What there is to look at: files (recipes, targets, schemes) and modules (tasks, families)."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from mpa_edge.config import library
from mpa_edge.errors import MpaError

FILE_KINDS: tuple[library.Kind, ...] = ("recipes", "targets", "schemes")
MODULE_KINDS = {"tasks": "TASK", "families": "FAMILY"}
KINDS = (*FILE_KINDS, *MODULE_KINDS)


def modules(kind: str) -> dict[str, Any]:
    """Name -> object of every module in mpa_edge/KIND that defines one; the folder is the registry."""
    try:
        package = importlib.import_module(f"mpa_edge.{kind}")
    except ModuleNotFoundError:
        return {}
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            item = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), MODULE_KINDS[kind], None)
            if item is not None:
                found[str(getattr(item, "name", info.name))] = item
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Everything of one kind."""
    return list(modules(kind)) if kind in MODULE_KINDS else library.names(as_file_kind(kind))


def as_file_kind(kind: str) -> library.Kind:
    """Narrow a kind to one that is stored in files."""
    return next(known for known in FILE_KINDS if known == kind)


def file_kind(name: str) -> library.Kind:
    """Kind of a name, or of somebody's own file: by its keys, then by the folder that it lies in, else a recipe."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        return next((kind for kind in FILE_KINDS if name in names(kind)), "recipes")
    near = next((kind for kind in FILE_KINDS if path.resolve().parent.name == kind), FILE_KINDS[0])
    try:
        document = library.load_yaml(path, name) if path.is_file() else None
    except MpaError:
        return near
    keys = set(document) if isinstance(document, dict) else set()
    fits = {kind: len(keys & set(library.model_of_kind(kind).model_fields)) for kind in FILE_KINDS}
    return max(FILE_KINDS, key=lambda kind: (fits[kind], kind == near))


def title(kind: str, name: str) -> str:
    """One line about something: its title, or the first comment of its file."""
    if kind in MODULE_KINDS:
        return str(getattr(modules(kind)[name], "title", ""))
    document = library.load_yaml(library.find(as_file_kind(kind), name), name)
    return str(document.get("title", "")) if isinstance(document, dict) else ""


def fields(item: Any) -> dict[str, Any]:
    """The plain values of a task or a family; what JSON cannot say is shown as text."""
    if hasattr(item, "model_dump"):
        return dict(item.model_dump())
    if dataclasses.is_dataclass(item):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {key: value for key, value in vars(item).items() if not key.startswith("_")}


def kinds_of(name: str) -> list[str]:
    """Every kind that has something of this name. Raises MpaError naming the nearest name."""
    found = [kind for kind in KINDS if name in names(kind)]
    if found:
        return found
    near = difflib.get_close_matches(name, [known for kind in KINDS for known in names(kind)], 1)
    tip = f"did you mean '{near[0]}'?" if near else "see mpa-edge list"
    raise MpaError(f"nothing is called '{name}' ({tip})")
