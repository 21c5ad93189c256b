"""From a raw document to a validated record, or to one line for each mistake that says what is allowed."""

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
WHOLE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind an annotation, None for a value: `RenderConfig | None` -> RenderConfig."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def section_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """The section that a path of keys leads to."""
    for key in path:
        field = model.model_fields.get(str(key))
        inner = model_of(field.annotation) if field else None
        if inner is None:
            return model
        model = inner
    return model


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a document."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = model_of(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def nearest_key(key: str, model: type[BaseModel], root: type[BaseModel]) -> str | None:
    """The key that was probably meant: in this section by spelling or initials, else of that name elsewhere.

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


def metadata(field: FieldInfo) -> list[Any]:
    """Constraints of a field, those inside `Annotated[...] | None` included."""
    inner = [item for part in typing.get_args(field.annotation) for item in getattr(part, "__metadata__", ())]
    flat: list[Any] = []
    for item in [*field.metadata, *inner]:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return flat


def bounds(items: list[Any]) -> str:
    """`from 1 to 64`, `above 0 up to 1`, `at least 1`, or nothing."""
    found = {name: getattr(item, name) for item in items for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
    low = f"from {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"to {found['le']}" if "le" in found else f"to below {found['lt']}" if "lt" in found else ""
    return f" {low} {high}".rstrip() if low or high else ""


def allowed(annotation: Any, items: list[Any]) -> str:
    """What a value may be, in words."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return args[0].__repr__() if len(args) == 1 else f"one of {', '.join(map(str, args))}"
    if origin is typing.Annotated:
        return allowed(args[0], items)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else allowed(part, items) for part in args)
    if origin is dict:
        return f"names ({allowed(args[0], [])}), each with {allowed(args[1], [])}"
    if origin is tuple:
        return f"a list of {allowed(args[0], []).removeprefix('one of ')}"
    pattern = next((item.pattern for item in items if getattr(item, "pattern", None)), None)
    if pattern:
        return f"a text that matches {pattern}"
    if any(getattr(item, "min_length", None) for item in items):
        return "a text that is not empty"
    return WHOLE.get(annotation, "another kind of value") + bounds(items)


def must_be(field: FieldInfo | None) -> str:
    """What the value of a field may be, in words."""
    return allowed(field.annotation, metadata(field)) if field else "a value"


def hint(value: Any) -> str:
    """For numbers that arrived as text: how to write them."""
    if not isinstance(value, str) or not NUMBER.fullmatch(value.strip()):
        return ""
    text = value.strip()
    head, mark, exponent = text.lower().partition("e")
    if mark and "." not in head:
        text = f"{head}.0e{exponent}"
    return f"; it is a text here: write {text} without quotes"


def shown(value: Any) -> str:
    """A value as it stands in YAML, cut."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def field_at(root: type[BaseModel], path: tuple[str | int, ...]) -> FieldInfo | None:
    """The field of a path; an index into a list belongs to the list."""
    names = tuple(key for key in path if isinstance(key, str))
    section = section_at(root, names[:-1])
    return section.model_fields.get(names[-1]) if names else None


def explain(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One pydantic error in one line."""
    path: tuple[str | int, ...] = error["loc"]
    dotted = ".".join(str(key) for key in path)
    section = ".".join(str(key) for key in path[:-1])
    if error["type"] == "extra_forbidden":
        near = nearest_key(str(path[-1]), section_at(root, path[:-1]), root)
        known = ", ".join(section_at(root, path[:-1]).model_fields)
        tip = f"did you mean '{near}'?" if near else f"known: {known}"
        return f"unknown key '{path[-1]}'{f' in {section}' if section else ''} ({tip})"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    field = field_at(root, path)
    if error["type"] == "missing":
        return f"key '{dotted}' is missing: add '{path[-1]}: ...', {must_be(field)}"
    if field is None or model_of(field.annotation) is not None:
        known = ", ".join(section_at(root, path).model_fields)
        return f"{dotted or 'the document'} is {shown(error['input'])}: must be a section with keys {known}"
    return f"{dotted} is {shown(error['input'])}: must be {must_be(field)}{hint(error['input'])}"


def problems(raw: Any, model: type[BaseModel]) -> list[str]:
    """Every mistake of a document in one line each; empty where it is valid."""
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return explain_all(error, model)
    return []


def explain_all(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every mistake once: what pydantic says of a list because of its items is left out."""
    items = error.errors()
    paths = [item["loc"] for item in items]
    inner = {path[: len(path) - 1] for path in paths if path and isinstance(path[-1], int)}
    return list(dict.fromkeys(explain(dict(item), model) for item in items if item["loc"] not in inner))
