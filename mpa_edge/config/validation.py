"""Validate a raw document against its schema: one line for each mistake, which says what is allowed."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
NO_KEYS = ("<name>", "<section>", "[key]")
"""What pydantic puts into a path where a value may be a name or a section, and where a name is wrong."""
Path = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


def mistakes(raw: Any, model: type[BaseModel]) -> list[str]:
    """Every mistake of a document in one line each; empty where it is valid."""
    try:
        model.model_validate(raw)
    except ValidationError as error:
        items: list[dict[str, Any]] = [
            {**item, "loc": tuple(key for key in item["loc"] if key not in NO_KEYS)} for item in error.errors()
        ]
        # what pydantic says of a list because of its items would be said twice
        lists = {item["loc"][:i] for item in items for i, key in enumerate(item["loc"]) if isinstance(key, int)}
        return list(dict.fromkeys(explain(dict(item), model) for item in items if item["loc"] not in lists))
    return []


def explain(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One pydantic error in one line."""
    path: Path = error["loc"]
    dotted = ".".join(str(key) for key in path)
    if error["type"] == "extra_forbidden":
        model, section = section_at(root, path[:-1]), ".".join(str(key) for key in path[:-1])
        near = nearest_key(str(path[-1]), model, root)
        tip = f"did you mean '{near}'?" if near else f"known: {', '.join(model.model_fields)}"
        return f"unknown key '{path[-1]}'{f' in {section}' if section else ''} ({tip})"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    field, value = field_at(root, path), error["input"]
    if error["type"] == "missing":
        return f"key '{dotted}' is missing: add '{path[-1]}: ...', {must_be(field)}"
    if (
        field is None
        and path
        and (names := field_at(root, path[:-1])) is not None
        and model_of(names.annotation) is None
    ):
        return f"{dotted} is {shown(value)}: {'.'.join(map(str, path[:-1]))} must be {must_be(names)}"
    if field is None or model_of(field.annotation) is not None:
        wanted = allowed(field.annotation if field else root, [])
        return f"{dotted or 'the document'} is {shown(value)}: must be {wanted}"
    hint = ""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        head, mark, exponent = value.strip().lower().partition("e")
        number = f"{head}.0e{exponent}" if mark and "." not in head else value.strip()
        hint = f"; it is a string here: write {number} without quotes"
    return f"{dotted} is {shown(value)}: must be {must_be(field)}{hint}"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind an annotation, None for a value: `RenderConfig | None` -> RenderConfig."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_of, typing.get_args(annotation))), None)


def section_at(model: type[BaseModel], path: Path) -> type[BaseModel]:
    """The section that a path leads to."""
    for key in path:
        field = model.model_fields.get(str(key))
        inner = model_of(field.annotation) if field else None
        if inner is None:
            return model
        model = inner
    return model


def field_at(root: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field that a path leads to; for a position in a list, the field of the list."""
    names = tuple(key for key in path if isinstance(key, str))
    return section_at(root, names[:-1]).model_fields.get(names[-1]) if names else None


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a document."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = model_of(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def nearest_key(key: str, model: type[BaseModel], root: type[BaseModel]) -> str | None:
    """The key that was probably meant: in this section by initials or spelling, else of that name elsewhere.

    >>> from mpa_edge.config.recipe import LevelConfig, Recipe
    >>> nearest_key("lr", LevelConfig, Recipe), nearest_key("ranks", LevelConfig, Recipe)
    ('learning_rate', 'rank')
    >>> nearest_key("votes", LevelConfig, Recipe)
    'annotate.votes'
    """
    here = list(model.model_fields)
    initials = [name for name in here if "".join(word[0] for word in name.split("_")) == key.lower()]
    elsewhere = [path for path in keys(root) if path.split(".")[-1] == key]
    matches = initials or elsewhere or difflib.get_close_matches(key.lower(), here, 1, 0.55)
    return matches[0] if matches else None


def must_be(field: FieldInfo | None) -> str:
    """What the value of a field may be, in words."""
    if field is None:
        return "a value"
    # constraints of the field, and those inside `Annotated[...] | None`
    inner = [item for part in typing.get_args(field.annotation) for item in getattr(part, "__metadata__", ())]
    constraints: list[Any] = []
    for item in [*field.metadata, *inner]:
        constraints.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return allowed(field.annotation, constraints)


def allowed(annotation: Any, constraints: list[Any]) -> str:
    """What a value of a type may be, in words."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with keys {', '.join(annotation.model_fields)}"
    if origin is typing.Literal:
        return repr(args[0]) if len(args) == 1 else f"one of {', '.join(map(str, args))}"
    if origin is typing.Annotated:
        inner = [one for item in args[1:] if isinstance(item, FieldInfo) for one in item.metadata]
        return allowed(args[0], [*constraints, *inner])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else allowed(part, constraints) for part in args)
    if origin is dict:
        return f"names ({allowed(args[0], [])}), each with {allowed(args[1], [])}"
    if origin is tuple:
        one = allowed(args[0], []).replace("a section", "sections").replace("a string", "strings")
        one = one.replace(" that is ", " that are ").replace(" that matches ", " that match ")
        return f"a list of {one.removeprefix('one of ')}"
    pattern = next((item.pattern for item in constraints if getattr(item, "pattern", None)), None)
    if pattern:
        return f"a string that matches {pattern}"
    if any(getattr(item, "min_length", None) for item in constraints):
        return "a string that is not empty"
    return WORDS.get(annotation, "another kind of value") + bounds(constraints)


def bounds(constraints: list[Any]) -> str:
    """` from 1 to 64`, ` above 0 to 1`, ` from 1`, or nothing."""
    limits = {key: getattr(c, key) for c in constraints for key in ("ge", "gt", "le", "lt") if hasattr(c, key)}
    low = f" from {limits['ge']}" if "ge" in limits else f" above {limits['gt']}" if "gt" in limits else ""
    high = f" to {limits['le']}" if "le" in limits else f" to below {limits['lt']}" if "lt" in limits else ""
    return low + high


def shown(value: Any) -> str:
    """A value as it stands in YAML, cut to 40 characters."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
