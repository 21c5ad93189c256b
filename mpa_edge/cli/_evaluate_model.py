"""What `mpa-edge evaluate MODEL --data ...` does: one model on a benchmark, or on somebody's own questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.cli._options import is_verbose, print_json
from mpa_edge.cli._stage import suppress_library_output
from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from mpa_edge.config.recipe import Recipe
    from mpa_edge.evaluation.answer_log import EvalSpec
    from mpa_edge.questions import QuestionSet
    from mpa_edge.tasks import Task

NURSERY = "nursery:"


@dataclass(frozen=True)
class Asked:
    """The command line of one model on questions."""

    model: str | None
    """Anything that answers."""
    benchmark: str | None
    """Name of a benchmark; None: own questions."""
    data: str | None
    """Where the questions are."""
    split: str | None
    """Of the benchmark."""
    metric: str | None
    """Of own questions."""
    images: str | None
    """Belongs to runs; refused here."""
    out: str | None
    """File for the answers."""
    overrides: tuple[str, ...]
    """Of the recipe."""
    limit: int | None
    """Number of questions."""
    dry_run: bool
    """Read and count only."""
    fresh: bool
    """Forget what the file for the answers holds."""
    as_json: bool
    """One document on stdout."""


def evaluate_questions(asked: Asked) -> None:
    """Read the questions, ask the model, print its score."""
    from mpa_edge.evaluation.answer_log import run_eval
    from mpa_edge.questions import left_out

    model = _checked(asked)
    recipe = recipe_for(model, asked.overrides, None)
    quiz = _quiz(asked, model, recipe)
    questions = quiz.questions
    for line in filter(None, (questions.note, left_out(questions.dropped))):
        click.echo(f"{questions.name}: {line}", err=True)
    if asked.dry_run:
        return click.echo(f"ask {model} {len(questions.samples)} questions of {questions.name}, {quiz.task.metric}")
    from mpa_edge.vlm import fingerprint, load

    with suppress_library_output(is_verbose()):
        mark = fingerprint(model)
        batch = recipe.evaluate.batch_size
        vlm = load(
            model,
            name=Path(model).name,
            device=recipe.device,
            threads=recipe.threads,
            batch_size=batch,
            server=recipe.teacher_server,
        )
        result = run_eval(vlm, quiz, Path(asked.out) if asked.out else None, mark, asked.fresh)
        vlm.close()
    if asked.as_json:
        return print_json(result)
    for line in _screen(result):
        click.echo(line)
    return None


def _checked(asked: Asked) -> str:
    """The model's name. Raises MpaError for what does not belong together."""
    if asked.model is None:
        raise MpaError("no model to ask: name a MODEL, a checkpoint folder, an export, nursery:student or a hub id")
    if asked.data is None:
        raise MpaError(f"--benchmark {asked.benchmark} needs its files: add --data with the folder that holds them")
    if asked.benchmark is None and asked.split:
        raise MpaError("--split belongs to a benchmark: name it with --benchmark")
    if asked.benchmark is not None and asked.metric:
        raise MpaError(f"{asked.benchmark} has its own metric: leave --metric out")
    if asked.images is not None:
        raise MpaError("--images belongs to a run: with --data leave it out")
    if asked.out is not None and not asked.out.endswith(".jsonl"):
        raise MpaError(f"--out '{asked.out}' is a file of answers here: let its name end in .jsonl")
    return asked.model


def _quiz(asked: Asked, model: str, recipe: Recipe) -> EvalSpec:
    """Questions and how they are asked."""
    from mpa_edge.evaluation.answer_log import EvalSpec
    from mpa_edge.questions.published import read_benchmark
    from mpa_edge.tasks import get_benchmark, get_task

    data = str(asked.data)
    if asked.benchmark:
        benchmark = get_benchmark(asked.benchmark)
        task, questions = get_task(benchmark.name), read_benchmark(benchmark, data, asked.split, asked.limit)
    else:
        task, questions = _own_task(asked, model, recipe), _own_questions(data, asked.limit)
    return EvalSpec(
        questions,
        task,
        recipe.identify.max_new_tokens,
        recipe.images.max_pixels,
        recipe.evaluate.bootstrap,
        recipe.seed,
    )


def _own_questions(data: str, limit: int | None) -> QuestionSet:
    from mpa_edge.questions.own import SUFFIXES, read_own

    path = Path(data).expanduser()
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise MpaError(f"'{data}' is no .csv or .jsonl file: name one, or say with --benchmark whose folder it is")
    return read_own(path, limit)


def _own_task(asked: Asked, model: str, recipe: Recipe) -> Task:
    """How own questions are put: as in the model's run or in `--set task=NAME`, else as for a short answer."""
    from mpa_edge.tasks import Task, get_task

    if model.startswith(NURSERY) or _run_of(model) or any(one.startswith("task=") for one in asked.overrides):
        task = get_task(recipe.task)
        return dataclasses.replace(task, metric=asked.metric) if asked.metric else task
    if asked.metric is None:
        raise MpaError("own questions need a metric: add --metric exact-match, anls, relaxed-accuracy or vqa-accuracy")
    return Task(name="own", title="Own questions", metric=asked.metric, annotation_prompts=())


def _run_of(model: str) -> Path | None:
    """The run that a model's folder lies in."""
    from mpa_edge.runs.manifest import RUN_FILE

    folders = Path(model).resolve().parents
    return next((folder for folder in folders[:3] if (folder / RUN_FILE).is_file()), None)


def recipe_for(model: str, overrides: tuple[str, ...], limit: int | None) -> Recipe:
    """The recipe of the run that a model lies in, else the built-in one; --limit is the number of questions."""
    from mpa_edge.config.library import load_recipe
    from mpa_edge.runs.manifest import RECIPE_FILE

    run = _run_of(model)
    recipe = load_recipe(str(run / RECIPE_FILE) if run else "minicharts", overrides)
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"n": limit})}) if limit else recipe


def _screen(result: dict[str, Any]) -> Iterator[str]:
    """The strict scores as a table; the lenient ones below it, by their own name."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']} on {result['questions']}, {result['images']} pictures")
    for heading in ("", "questions", result["metric"], "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    whole = "mean of the kinds" if result["mean_of_kinds"] else "all"
    for name, row in {**result["kinds"], whole: result}.items():
        interval = "{:.1%} – {:.1%}".format(*row["ci95"])
        table.add_row(name, str(row["n"]), f"{row['accuracy']:.1%}", interval, style="bold" if name == whole else None)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    parts = [f"{name} {row['lenient']['accuracy']:.1%}" for name, row in result["kinds"].items()]
    named = f" ({', '.join(parts)})" if result["mean_of_kinds"] else ""
    yield f"{result['lenient']['metric']}, not the reference: {result['lenient']['accuracy']:.1%}{named}"
