"""Validate recipes, targets and schemes: every mistake in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import json_option, print_json, set_option, verbose_option
from mpa_edge.config import library
from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.config.target import SchemeChoice, Target

RUNS_ON = {"onnx": ("onnxruntime", "tensorrt"), "gguf": ("llama.cpp",)}
NEEDS = {"onnx": ("onnx",), "gguf": ("gguf",), "hybrid": ("onnx", "gguf")}


def problems(name: str, overrides: tuple[str, ...]) -> list[str]:
    """Every mistake of one document; what it names must exist, too."""
    kind = _registry.file_kind(name)
    found = library.kind_problems(kind, name, overrides)
    if found or kind == "schemes":
        return found
    label = f"{library.SINGULAR[kind]} '{library.find(kind, name).stem}'"
    wrong = _task(name, overrides) if kind == "recipes" else _schemes(library.load_target(name, overrides))
    return [f"{label}: {line}" for line in wrong]


def _task(name: str, overrides: tuple[str, ...]) -> Iterator[str]:
    from mpa_edge.vlm.openai.reference import is_server, parse

    recipe, tasks = library.load_recipe(name, overrides), _registry.names("tasks")
    if tasks and recipe.task not in tasks:
        yield f"no task '{recipe.task}' (known: {', '.join(tasks)})"
    try:
        if is_server(recipe.teacher):
            parse(recipe.teacher)
    except MpaError as error:
        yield str(error)


def _schemes(target: Target) -> Iterator[str]:
    for choice in target.schemes:
        try:
            yield from _scheme(target, choice)
        except MpaError as error:
            yield str(error)


def _scheme(target: Target, choice: SchemeChoice) -> Iterator[str]:
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.validation import problems as problems_of

    scheme = library.load_scheme(choice.name)
    resolved = scheme.model_dump() | {"components": choice.components}
    yield from (f"scheme '{choice.name}': {line}" for line in problems_of(resolved, Scheme))
    if scheme.control:
        yield f"scheme '{choice.name}' is a negative control: prefer another"
    for part in NEEDS[scheme.format]:
        if not set(RUNS_ON[part]) & set(target.runtimes):
            yield f"scheme '{choice.name}' needs {' or '.join(RUNS_ON[part])}: add it to runtimes, or leave it out"


@click.command("check")
@click.argument("names", metavar="FILE_OR_NAME...", nargs=-1, required=True)
@set_option
@json_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check recipes, targets and schemes: unknown keys, wrong types, values out of range. Exit 1 where one is wrong.

    What a file is, its keys tell.

    \b
    Examples:
      $ mpa-edge check minicharts
      $ mpa-edge check cpu jetson onnx-int8
      $ mpa-edge check minicharts --set level.rank=8 --json
    """
    found = {name: problems(name, overrides) for name in names}
    if as_json:
        print_json({"ok": not any(found.values()), "problems": found})
    for name, lines in () if as_json else found.items():
        for line in lines:
            click.echo(line, err=True)
        if not lines:
            click.echo(f"{name}: ok")
    if any(found.values()):
        ctx.exit(1)
