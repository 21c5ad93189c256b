"""Recipes, targets, schemes and tasks by name (those that come with mpa-edge) or by path (your own)."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpa_edge.errors import MpaError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mpa_edge.config.recipe import Recipe
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.target import Target

Kind = Literal["recipes", "targets", "schemes", "tasks"]
FOLDERS: dict[Kind, str] = {"recipes": "recipes", "targets": "targets", "schemes": "export/schemes"}
SINGULAR: dict[Kind, str] = {"recipes": "recipe", "targets": "target", "schemes": "scheme", "tasks": "task"}
TASKS = Path(__file__).parents[1] / "tasks"
MAX_DOCUMENT_BYTES, MAX_DEPTH = 64_000, 50


def root() -> Path:
    """Folder that holds recipes/, targets/ and export/: inside the installed wheel, else the checkout."""
    installed = Path(__file__).parents[1] / "_assets"
    return installed if installed.is_dir() else Path(__file__).parents[2]


def folder_of(kind: Kind) -> Path:
    """Folder of the documents of a kind that come with mpa-edge."""
    return TASKS if kind == "tasks" else root() / FOLDERS[kind]


def names(kind: Kind) -> list[str]:
    """Names of all documents of a kind that come with mpa-edge, sorted."""
    return sorted(path.stem for path in folder_of(kind).glob("*.yaml"))


def is_path(name_or_path: str) -> bool:
    """Whether this is the path of a document, and not a name.

    >>> is_path("minicharts"), is_path("mine.yaml"), is_path("my/task")
    (False, True, True)
    """
    own = Path(name_or_path)
    return own.suffix in (".yaml", ".yml") or len(own.parts) > 1


def find(kind: Kind, name_or_path: str) -> Path:
    """The file of a name, or of a path. Raises MpaError naming the nearest known name."""
    if is_path(name_or_path):
        if (own := Path(name_or_path)).is_file():
            return own
        raise MpaError(f"no file '{name_or_path}': give a path that exists, or a name ({', '.join(names(kind))})")
    if name_or_path in names(kind):
        return folder_of(kind) / f"{name_or_path}.yaml"
    tip = did_you_mean(name_or_path, names(kind), f"see mpa-edge list {kind}")
    raise MpaError(f"no {SINGULAR[kind]} '{name_or_path}' ({tip})")


def load_yaml(path: Path, label: str) -> Any:
    """Read a file of one YAML 1.2 document of plain values; `label` begins each MpaError."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise MpaError(f"{label}: {path} is larger than 64 kB, so it is no {label.split()[0]}: give another file")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MpaError(f"{label}: {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise MpaError(f"{label}: cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return parse_yaml(text, label)


def parse_yaml(text: str, label: str) -> Any:
    """Plain values of a YAML 1.2 text without aliases. Raises MpaError with line and column."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    if len(text) > MAX_DOCUMENT_BYTES:
        raise MpaError(f"{label}: more than 64 kB of YAML: give another file")
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            where = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"
            # nine levels of aliases, a few hundred bytes, make a billion values
            if isinstance(event, AliasEvent):
                raise MpaError(f"{label}: {where}: *{event.anchor} is a YAML alias: write its value out there")
            # the time grows with the square of the depth: 10 kB of brackets took half a minute
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise MpaError(f"{label}: {where}: nested more than {MAX_DEPTH} deep: fix the YAML there")
        document = YAML(typ="safe", pure=True).load(text)
        # raises for integers too long to be shown, halves of a surrogate pair, and keys that are no plain values
        json.dumps(document, default=str, ensure_ascii=False).encode()
        return document
    except MpaError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise MpaError(f"{label}: {where}{problem} (fix the YAML there)") from error
    except Exception as error:  # ruamel's own constructors raise KeyError, TypeError, IndexError ... for a wrong tag
        raise MpaError(f"{label}: not a YAML document ({' '.join(str(error).split())}): fix the file") from error


def yaml_of(document: BaseModel) -> bytes:
    """A document as a YAML file."""
    from io import StringIO

    from ruamel.yaml import YAML

    text = StringIO()
    YAML(typ="safe", pure=True).dump(document.model_dump(mode="json"), text)
    return text.getvalue().encode()


def apply_overrides(raw: Any, overrides: Sequence[str]) -> Any:
    """A copy of a raw document with each `a.b=value` applied; values are YAML. MpaError where one is malformed.

    >>> apply_overrides({"level": {"rank": 8}}, ["level.rank=16", "images.render.n=5"])
    {'level': {'rank': 16}, 'images': {'render': {'n': 5}}}
    """
    document = copy.deepcopy(raw)
    for override in overrides:
        key, mark, text = override.partition("=")
        path = key.strip().split(".")
        if not mark or not all(path):
            raise MpaError(f"--set '{override}': write it as key=value, for example --set level.rank=16")
        place = document
        for step, name in enumerate(path[:-1]):
            if isinstance(place, dict) and place.get(name) is None:
                place[name] = {}
            if not isinstance(place, dict) or not isinstance(place[name], dict):
                raise MpaError(f"--set '{override}': {'.'.join(path[: step + 1])} is a value, not a section: set that")
            place = place[name]
        if not isinstance(place, dict):
            raise MpaError(f"--set '{override}': the document has no sections: fix it first")
        place[path[-1]] = parse_yaml(text, f"--set '{override}'")
    return document


def model_of_kind(kind: Kind) -> type[BaseModel]:
    """The schema of one kind of document."""
    if kind == "recipes":
        from mpa_edge.config.recipe import Recipe

        return Recipe
    if kind == "targets":
        from mpa_edge.config.target import Target

        return Target
    if kind == "tasks":
        from mpa_edge.config.task import TaskConfig

        return TaskConfig
    from mpa_edge.config.scheme import Scheme

    return Scheme


def problems(kind: Kind, name_or_path: str, overrides: Sequence[str] = ()) -> list[str]:
    """Every mistake of a document, one line each; empty where it is valid."""
    from mpa_edge.config.validation import mistakes

    try:
        label, raw = _read(kind, name_or_path, overrides)
    except MpaError as error:
        return [str(error)]
    return [f"{label}: {line}" for line in mistakes(raw, model_of_kind(kind))]


def load(kind: Kind, name_or_path: str, overrides: Sequence[str] = ()) -> Any:
    """The validated document of a name or path with `--set` applied. Raises MpaError with the first mistake."""
    from mpa_edge.config.validation import mistakes

    label, raw = _read(kind, name_or_path, overrides)
    model = model_of_kind(kind)
    lines = mistakes(raw, model)
    if lines:
        more = f" (and {len(lines) - 1} more: mpa-edge check {name_or_path})" if len(lines) > 1 else ""
        raise MpaError(f"{label}: {lines[0]}{more}")
    document = model.model_validate(raw)
    return document.with_room_for_answers() if kind == "recipes" else document  # type: ignore[attr-defined]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or path, as `load`."""
    recipe: Recipe = load("recipes", name_or_path, overrides)
    return recipe


def load_target(name_or_path: str, overrides: Sequence[str] = ()) -> Target:
    """The target of a name or path, as `load`."""
    target: Target = load("targets", name_or_path, overrides)
    return target


def load_scheme(name_or_path: str, overrides: Sequence[str] = ()) -> Scheme:
    """The scheme of a name or path, as `load`."""
    scheme: Scheme = load("schemes", name_or_path, overrides)
    return scheme


def _read(kind: Kind, name_or_path: str, overrides: Sequence[str]) -> tuple[str, Any]:
    path = find(kind, name_or_path)
    label = f"{SINGULAR[kind]} '{path.stem}'"
    raw = load_yaml(path, label)
    if kind == "recipes":
        if isinstance(raw, dict) and "kinds" in raw and "teacher" not in raw:
            raise MpaError(f"'{name_or_path}' is a task and no recipe: name it in one, task: {name_or_path}")
        return label, _with_task(apply_overrides(_with_task(raw), overrides))
    return label, apply_overrides(raw, overrides)


def _with_task(raw: Any) -> Any:
    """A raw recipe, with the content of the file in the place of a task's path."""
    task = raw.get("task") if isinstance(raw, dict) else None
    if not isinstance(task, str) or not is_path(task):
        return raw
    path = find("tasks", task)
    return raw | {"task": load_yaml(path, f"task '{path.stem}'")}
