"""Show one recipe, target, scheme, task or family."""

from __future__ import annotations

import dataclasses
import json
from typing import cast

import click

from mpa_edge.cli import _registry
from mpa_edge.cli._options import echo, json_option, print_json, set_option, verbose_option
from mpa_edge.config import library
from mpa_edge.errors import MpaError


@click.command("show")
@click.argument("name")
@click.option("--kind", type=click.Choice(_registry.KINDS), help="Where several things have the same name.")
@click.option("--prompts", is_flag=True, help="What teacher and student are told, word for word; of a task or recipe.")
@set_option
@json_option
@verbose_option
def command(name: str, kind: str | None, prompts: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what NAME is: the file with its comments, or with --json all values, defaults filled in.

    NAME may be the path of your own file; its kind is recognized by its keys.

    \b
    Examples:
      $ mpa-edge show minicharts
      $ mpa-edge show jetson
      $ mpa-edge show minicharts --json --set level.rank=8
      $ mpa-edge show minicharts --kind tasks
      $ mpa-edge show chartqa --prompts
    """
    kinds = [_registry.file_kind(name)] if library.is_path(name) else _registry.kinds_of(name)
    chosen = kind or kinds[0]
    if chosen not in kinds:
        raise MpaError(f"'{name}' is not in {chosen}: it is in {', '.join(kinds)}, use --kind {kinds[0]}")
    if overrides and chosen == _registry.FAMILIES:
        raise MpaError(f"--set changes files only, and '{name}' is in {chosen}: leave --set out")
    if len(kinds) > 1 and not kind:
        echo(f"(this is from {chosen}; --kind {kinds[1]} shows the other '{name}')", err=True)
    if chosen == _registry.FAMILIES:
        item = _registry.families()[name]
        values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        plain = json.loads(json.dumps(values, default=lambda value: getattr(value, "__name__", str(value))))
        if as_json:
            return print_json(plain)
        for key, value in plain.items():
            echo(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        return None
    file_kind = cast(library.Kind, chosen)
    if prompts:
        return show_prompts(file_kind, name, overrides, as_json)
    if as_json or overrides:
        return print_json(library.load(file_kind, name, overrides))
    return echo(library.find(file_kind, name).read_text(encoding="utf-8"), nl=False)


def show_prompts(kind: library.Kind, name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the prompts of a task, or of a recipe's; MpaError for another kind of document."""
    from mpa_edge.tasks import answer_prompt, get_task

    if kind not in ("recipes", "tasks"):
        raise MpaError(f"--prompts is for tasks and recipes, and '{name}' is in {kind}: leave --prompts out")
    document = library.load(kind, name, overrides)
    task = get_task(document.task if kind == "recipes" else document)
    question = task.examples[0][0] if task.examples else "What is shown?"
    if as_json:
        told = zip(task.prompt_kinds, task.annotation_prompts, strict=True)
        annotation = [{"kind": asked, "prompt": prompt} for asked, prompt in told]
        return print_json({"annotation": annotation, "question": question, "answer": answer_prompt(task, question)})
    for i, (asked, prompt) in enumerate(zip(task.prompt_kinds, task.annotation_prompts, strict=True), start=1):
        echo(f"--- annotation {i} of an image, to the teacher: {asked or 'any kind'}\n{prompt}\n")
    echo(f"--- the question {question!r}, to teacher and student\n{answer_prompt(task, question)}")
    return None
