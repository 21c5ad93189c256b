"""Teacher, base and aligned, or any one model, on held-out questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mpa_edge.cli._options import ACCELERATOR, METRIC, is_verbose, print_json
from mpa_edge.cli._stage import run_named_stages, stage_arguments, suppress_library_output
from mpa_edge.config.accelerator import ACCELERATORS, AUTO
from mpa_edge.errors import MpaError
from mpa_edge.metrics import METRICS, cautions

if TYPE_CHECKING:
    from mpa_edge.config.recipe import Recipe
    from mpa_edge.evaluation.predict import EvalSpec

NURSERY = "nursery:"
OUT_HELP = "Run folder; for a MODEL: a .jsonl file that keeps its answers, so that a rerun resumes."


@click.command("evaluate")
@click.option(
    "--benchmark", metavar="NAME", help="textvqa, stvqa, chartqa or okvqa: ask MODEL its published questions."
)
@click.option(
    "--data", metavar="PATH", help="The benchmark's folder, parquet file or hub id; or own questions, .csv/.jsonl."
)
@click.option("--split", metavar="NAME", help="Of the benchmark.  [default: the one that the paper uses]")
@click.option("--metric", type=METRIC, help="For own questions.  [default: of the model's run]")
@click.option("--accelerator", type=ACCELERATOR, metavar="NAME", default="cpu", help="For an export: cuda, auto ...")
@partial(stage_arguments, source="[RECIPE|RUN|MODEL]", out="RUN|FILE.jsonl", out_help=OUT_HELP)
def command(
    source: str | None,
    benchmark: str | None,
    data: str | None,
    split: str | None,
    metric: str | None,
    accelerator: str,
    **arguments: Any,
) -> None:
    """Ask teacher, base and aligned student the same held-out questions.

    With a MODEL instead of a run, only that model is asked: a checkpoint folder, anything that mpa-edge export made, or
    openai:BASE_URL#MODEL. Its questions are those of the run that contains it, else those of the recipe minicharts with
    --set. With --data they are a benchmark's, or your own questions about your own images (a table of image, question,
    answers). --limit is then the number of questions, and --out keeps every answer.

    \b
    Examples:
      $ mpa-edge evaluate runs/mine
      $ mpa-edge evaluate minicharts --dry-run
      $ mpa-edge evaluate nursery:student --limit 20
      $ mpa-edge evaluate runs/mine/merged --benchmark chartqa --data data/chartqa --limit 100 --out chartqa.jsonl
      $ mpa-edge evaluate runs/mine/merged --data photos/questions.csv --metric exact-match
    """
    if not (benchmark or data or split or metric) and (source is None or not is_model(source)):
        if source and source.endswith((".csv", ".jsonl")):
            raise MpaError(f"'{source}' is a file of questions: name a MODEL, and the file with --data")
        if accelerator != "cpu":
            raise MpaError("--accelerator is for an export: name its folder as MODEL")
        return run_named_stages(("evaluate",), source=source, **arguments)
    if source is None:
        raise MpaError("no model to ask: name a MODEL, a checkpoint folder, an export, nursery:student or a hub id")
    if benchmark and data is None:
        raise MpaError(f"--benchmark {benchmark} needs its files: add --data with the folder that holds them")
    if (split or metric) and data is None:
        raise MpaError("--split and --metric need questions: add --data with a benchmark's folder or a questions file")
    if split and not benchmark:
        raise MpaError("--split belongs to a benchmark: name it with --benchmark")
    if metric and benchmark:
        raise MpaError(f"{benchmark} has its own metric: leave --metric out")
    if arguments.pop("images") is not None:
        raise MpaError("--images belongs to a run: leave it out")
    accelerators = ACCELERATORS if accelerator == AUTO else (accelerator,)
    return evaluate_model(source, benchmark, data, split, metric, accelerators, **arguments)


def is_model(source: str) -> bool:
    """Whether a name is a model rather than a run or a recipe."""
    folder = Path(source)
    return source.startswith((NURSERY, "openai:")) or any(
        (folder / name).is_file() for name in ("artifact.json", "config.json")
    )


def evaluate_model(
    model: str,
    benchmark: str | None,
    data: str | None,
    split: str | None,
    metric: str | None,
    accelerators: tuple[str, ...],
    *,
    out: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Ask one model the questions of its recipe, or those in `data`, and print its score."""
    from mpa_edge.config.library import load_recipe
    from mpa_edge.evaluation.predict import recipe_spec, with_silver
    from mpa_edge.evaluation.review import decisions_about
    from mpa_edge.evaluation.score import run_eval
    from mpa_edge.planning.counts import n_questions
    from mpa_edge.runs.manifest import RECIPE_FILE
    from mpa_edge.vlm import fingerprint, load

    if out is not None and not out.endswith(".jsonl"):
        raise MpaError(f"--out '{out}' is a file of answers here: let its name end in .jsonl")
    run = run_of(model)
    recipe = with_silver(load_recipe(str(run / RECIPE_FILE) if run else "minicharts", overrides), run)
    if limit:
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"n": limit})})
    if data is None and dry_run:
        return click.echo(f"ask {model} {n_questions(recipe)} questions of task {recipe.task_name}")
    with TemporaryDirectory(prefix="mpa-edge-") as scratch, suppress_library_output(is_verbose()):
        if data is None:
            spec = recipe_spec(recipe, Path(scratch))
        else:
            known = run or model.startswith(NURSERY) or any(one.startswith("task=") for one in overrides)
            spec = data_spec(recipe, benchmark, data, split, metric, limit, run, use_recipe_task=bool(known))
        if not dry_run:
            load_vlm = partial(
                load,
                model,
                name=Path(model).name,
                device=recipe.device,
                threads=recipe.threads,
                batch_size=recipe.evaluate.batch_size,
                server=recipe.teacher_server,
                accelerators=accelerators,
            )
            path, decisions = Path(out) if out else None, decisions_about(run, spec.questions)
            identity = fingerprint(model) + "".join(one for one in accelerators if one != "cpu")
            result = run_eval(spec, Path(model).name, load_vlm, path, identity, fresh, decisions)
    if dry_run:
        click.echo(f"ask {model} {len(spec.questions.samples)} questions of {spec.questions.name}, {spec.task.metric}")
    elif as_json:
        print_json(result)
    else:
        for line in screen(result):
            click.echo(line)
    return None


def run_of(model: str) -> Path | None:
    """The run that contains a model's folder."""
    from mpa_edge.runs.manifest import RUN_FILE

    folders = Path(model).resolve().parents
    return next((folder for folder in folders[:3] if (folder / RUN_FILE).is_file()), None)


def data_spec(
    recipe: Recipe,
    benchmark: str | None,
    data: str,
    split: str | None,
    metric: str | None,
    limit: int | None,
    run: Path | None,
    *,
    use_recipe_task: bool,
) -> EvalSpec:
    """The questions of a benchmark, or a file of own questions, asked with the limits of a recipe.

    Those about images that the model's `run` was trained on are left out, and counted.
    `use_recipe_task`: own questions are put as the recipe's task puts them, and by default scored so.
    """
    from mpa_edge.evaluation.predict import EvalSpec
    from mpa_edge.questions import left_out
    from mpa_edge.questions.own import SUFFIXES, read_own
    from mpa_edge.questions.published import read_benchmark
    from mpa_edge.tasks import Task, get_benchmark, get_task

    if benchmark:
        questions = read_benchmark(get_benchmark(benchmark), data, split, limit)
        task = get_task(benchmark)
    else:
        path = Path(data).expanduser()
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise MpaError(f"'{data}' is no .csv or .jsonl file: name one, or say with --benchmark whose folder it is")
        if not use_recipe_task and metric is None:
            raise MpaError(f"own questions need a metric: add --metric {', '.join(METRICS)}")
        questions = read_own(path, limit)
        task = Task(name="own", metric=metric or "")
        if use_recipe_task:
            task = get_task(recipe.task)
            task = dataclasses.replace(task, metric=metric or task.metric)
    if run:
        from mpa_edge.stages.evaluate import unseen
        from mpa_edge.stages.run import open_run

        questions = unseen(questions, open_run(str(run)))
    notes = cautions(task.metric, [sample.answers for sample in questions.samples])
    for line in filter(None, (questions.note, left_out(questions.dropped), *notes)):
        click.echo(f"{questions.name}: {line}", err=True)
    return EvalSpec(
        questions,
        task,
        max_new_tokens=recipe.identify.max_new_tokens,
        max_pixels=recipe.images.max_pixels,
        bootstrap=recipe.evaluate.bootstrap,
        seed=recipe.seed,
    )


def screen(result: dict[str, Any]) -> Iterator[str]:
    """The strict scores as a table; the lenient ones below it, by their own name."""
    from rich.console import Console
    from rich.table import Table

    from mpa_edge.questions import measure_of

    title = f"{result['model']} on {result['questions']}, {result['images']} images"
    table = Table(title=title if result["truth"] == "labels" else f"{title}: {measure_of(result['truth'])}")
    for heading in ("", "questions", result["metric"].partition(":")[0], "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    whole = "mean of the kinds" if result["mean_of_kinds"] else "all"
    for name, row in {**result["kinds"], whole: result}.items():
        interval = "{:.1%} – {:.1%}".format(*row["ci95"])
        table.add_row(name, str(row["n"]), f"{row['accuracy']:.1%}", interval, style="bold" if name == whole else None)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    yield captured.get().rstrip("\n")
    if result["truth"] == "teacher":
        yield result["note"]
    if result["truth"] == "reviewed":
        yield (
            f"agreement with the teacher {result['agreement']:.1%}; {result['n_reviewed']} reviewed questions, "
            f"{result['method']}"
        )
    if wrong := result.get("unparsable"):
        yield f"in another form, which scores 0: {wrong}"
    parts = [f"{name} {row['lenient']['accuracy']:.1%}" for name, row in result["kinds"].items()]
    named = f" ({', '.join(parts)})" if result["mean_of_kinds"] else ""
    lenient = result["metric"].partition(":")[0] + "-lenient"
    yield f"{lenient}, not the reference: {result['lenient']['accuracy']:.1%}{named}"
