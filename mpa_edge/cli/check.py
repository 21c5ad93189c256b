"""Validate recipes, targets, schemes and tasks: one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import echo, json_option, print_json, set_option, verbose_option
from mpa_edge.config import library
from mpa_edge.errors import MpaError
from mpa_edge.metrics import cautions

RUNS_ON = {"onnx": ("onnxruntime",), "gguf": ("llama.cpp",)}
NEEDS = {"onnx": ("onnx",), "gguf": ("gguf",), "hybrid": ("onnx", "gguf")}


def problems(name: str, overrides: tuple[str, ...]) -> list[str]:
    """Every mistake of one document; the task or the schemes that it names must exist, too."""
    kind = _registry.file_kind(name)
    found = library.problems(kind, name, overrides)
    if found or kind in ("schemes", "tasks"):
        return found
    wrong = recipe_problems(name, overrides) if kind == "recipes" else target_problems(name, overrides)
    return [f"{library.SINGULAR[kind]} '{library.find(kind, name).stem}': {line}" for line in wrong]


def recipe_problems(name: str, overrides: tuple[str, ...]) -> list[str]:
    """An unknown task, or a malformed address of the teacher's server."""
    from mpa_edge.tasks import get_task
    from mpa_edge.vlm.openai.reference import is_server, parse

    recipe, found = library.load_recipe(name, overrides), list[str]()
    metric = None
    try:
        metric = get_task(recipe.task).metric
    except MpaError as error:
        found.append(str(error))
    try:
        if is_server(recipe.teacher):
            parse(recipe.teacher)
    except MpaError as error:
        found.append(str(error))
    questions = recipe.evaluate.questions
    if questions and Path(questions).expanduser().exists():
        from mpa_edge.evaluation.predict import question_set

        try:
            asked = question_set(recipe.evaluate, Path()).samples
        except MpaError as error:
            return [*found, str(error)]
        if metric:
            for line in cautions(metric, [sample.answers for sample in asked]):
                echo(f"{questions}: {line}", err=True)
    return found


def target_problems(name: str, overrides: tuple[str, ...]) -> list[str]:
    """Schemes that do not exist, that the target changes wrongly, or that nothing on the target can run."""
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.validation import mistakes

    target, found = library.load_target(name, overrides), []
    for choice in target.schemes:
        try:
            scheme = library.load_scheme(choice.name)
        except MpaError as error:
            found.append(str(error))
            continue
        resolved = scheme.model_dump() | {"components": choice.components}
        found += [f"scheme '{choice.name}': {line}" for line in mistakes(resolved, Scheme)]
        if scheme.control:
            found.append(f"scheme '{choice.name}' is a negative control: prefer another")
        for part in NEEDS[scheme.format]:
            if not set(RUNS_ON[part]) & set(target.runtimes):
                runtimes = " or ".join(RUNS_ON[part])
                found.append(f"scheme '{choice.name}' needs {runtimes}: add it to runtimes, or leave it out")
    return found


@click.command("check")
@click.argument("names", metavar="FILE_OR_NAME...", nargs=-1, required=True)
@set_option
@json_option
@verbose_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check documents for unknown keys, wrong types and values out of range. Exit 1 on a mistake.

    Whether a file is a recipe, a target, a scheme or a task is recognized by its keys.

    \b
    Examples:
      $ mpa-edge check minicharts
      $ mpa-edge check cpu jetson onnx-int8 chartqa
      $ mpa-edge check minicharts --set level.rank=8 --json
    """
    found = {name: problems(name, overrides) for name in names}
    if as_json:
        print_json({"ok": not any(found.values()), "problems": found})
    else:
        for name, lines in found.items():
            for line in lines:
                echo(line, err=True)
            if not lines:
                echo(f"{name}: ok")
    if any(found.values()):
        ctx.exit(1)
