"""Does agreement with the teacher tell whether a student got better, and do reviewed rows tell how much?

    python benchmarks/label_free.py --seeds 0,1,2 --work runs/label-free --out docs/label_free.json
    python benchmarks/report.py

In the built-in world the true answer of every question is known, the teacher's mistakes included. For each seed: one
run on images without labels, whose held-out part becomes the silver set (questions and answers by the teacher), then
ten students from clearly worse to fully aligned: few steps, wrong labels, a share of the weight change, exports with 8
and 4 bits, weights rounded to 3 and 2 bits in blocks. Each answers the silver questions, and is scored twice: by the
teacher's answers and by the true ones. Another student learns from a teacher with a planted mistake, one more in every
count, and is asked about a silver set with the same mistake.

Then 2,000 reviews of 100 rows are simulated: the silver rows of all seeds are the population; a silver set is drawn
from it (whole images, with replacement), then the rows to review from the silver set. The reviewer gives the true
answers.

About eight minutes a seed on one core. What is done is kept in --work: rerun the command to resume.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from ablation import copy_run
from common import DOCS, Document, command, machine, mean, percent, points, read, table, write

Rows = Sequence[Any]
Array = np.ndarray[Any, Any]
IMAGES, STYLE = 1200, "target"
STEPS, FEW, WRONG = 120, (10, 30), 60
REVIEWS, REVIEWED, SILVER_IMAGES = 2000, 100, 200
BLOCK = 32
EXPORTS = ("onnx-int8", "onnx-q4", "3 bits", "2 bits")
TITLE = "True gain against gain in agreement with the teacher"
PLOT = DOCS / "images" / "label-free.svg"
PLANTED = "planted mistake"


def one_more(answer: str) -> str:
    """What the teacher with the planted mistake says: every number is one too high."""
    return str(int(answer) + 1) if answer.isdigit() else answer


def shuffled(rows: Rows) -> list[Any]:
    """The rows with the answers of the gap passed on to the next row that is answered with the same kind of word."""
    changed = list(rows)
    for digits in (True, False):
        at = [i for i, row in enumerate(rows) if row.verdict == "gap" and row.answer.isdigit() == digits]
        for i, j in zip(at, at[1:] + at[:1], strict=True):
            changed[i] = rows[i].model_copy(update={"answer": rows[j].answer})
    return changed


def planted(rows: Rows) -> list[Any]:
    """The rows as the teacher with the planted mistake would have had them judged."""
    changed = []
    for row in rows:
        answer = one_more(row.answer)
        right = row.student_answer is not None and row.student_answer.strip() == answer
        verdict = row.verdict if row.verdict == "unverified" else "parity" if right else "gap"
        changed.append(row.model_copy(update={"answer": answer, "verdict": verdict}))
    return changed


@contextmanager
def labels(change: Callable[[Rows], list[Any]]) -> Iterator[None]:
    """Let level learn from changed rows."""
    from mpa_edge.stages.level import stage

    original: Any = stage.read_parts
    stage.read_parts = lambda folder, record: change(original(folder, record))  # type: ignore[assignment]
    try:
        yield
    finally:
        stage.read_parts = original


def unlabelled_run(seed: int, folder: Path) -> Any:
    """Images of a seed, and a run on them up to identify: the teacher's questions, silver set and verdicts."""
    from mpa_edge.config.library import find, load_yaml
    from mpa_edge.nursery.render import render
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run
    from mpa_edge.stages.silver import run_silver

    images, recipe = folder / "images", folder / "recipe.yaml"
    render(images, IMAGES, 700 + seed, STYLE)
    base, task = load_yaml(find("recipes", "minicharts"), "recipe"), load_yaml(find("tasks", "minicharts"), "task")
    level = base["level"] | {"max_steps": STEPS, "patience": 0, "holdout": 0.0, "precision": "bf16"}
    base |= {"name": "label-free", "task": task | {"name": "user-charts"}, "seed": seed, "level": level, "threads": 1}
    base |= {"images": {"path": str(images.resolve())}, "evaluate": {"holdout": 0.4}}
    recipe.write_text(json.dumps(base))
    run = open_run(str(recipe), out=str(folder / "run"))
    run_stages(run, ("annotate", "identify"))
    run_silver(run)
    return run


def train(source: Path, folder: Path, steps: int, change: Callable[[Rows], list[Any]] = list) -> Path:
    """The checkpoint of a student that learned for some steps from the rows of a run, as `change` leaves them."""
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run

    if not (folder / "run.json").is_file():
        copy_run(source, folder)
    with labels(change):
        run_stages(open_run(str(folder), overrides=[f"level.max_steps={steps}"]), ("level", "merge"))
    return folder / "merged"


def rewritten(source: Path, folder: Path, change: Callable[[str, Any, Any], Any]) -> Path:
    """A copy of a checkpoint, with every weight as `change(name, weight before training, weight)` returns it."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mpa_edge.vlm import resolve

    if not (folder / "config.json").is_file():
        model = AutoModelForImageTextToText.from_pretrained(source)
        before = dict(AutoModelForImageTextToText.from_pretrained(resolve("nursery:student")).named_parameters())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(change(name, before[name].float(), weight.float()))
        model.save_pretrained(folder)
        AutoProcessor.from_pretrained(source).save_pretrained(folder)
    return folder


def share(of: float) -> Callable[[str, Any, Any], Any]:
    """Keep a share of what training changed."""
    return lambda _name, before, after: before + of * (after - before)


def rounded(bits: int) -> Callable[[str, Any, Any], Any]:
    """Round the matrices of the language model's layers to so many bits, with a scale for each block of a row."""

    def change(name: str, _before: Any, weight: Any) -> Any:
        if weight.ndim != 2 or "text_model.layers" not in name:
            return weight
        blocks, most = weight.reshape(-1, BLOCK), 2 ** (bits - 1) - 1
        scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12) / most
        return ((blocks / scale).round().clamp(-most - 1, most) * scale).reshape(weight.shape)

    return change


def students(seed: int, work: Path) -> dict[str, Path | str]:
    """Every student of a seed by name, made where it is not there yet."""
    run = unlabelled_run(seed, work)
    aligned = train(run.folder, work / "aligned", STEPS)
    found: dict[str, Path | str] = {"base": "nursery:student", "aligned": aligned}
    found |= {f"{steps} steps": train(run.folder, work / f"steps-{steps}", steps) for steps in FEW}
    found["wrong labels"] = train(run.folder, work / "wrong", WRONG, shuffled)
    found[PLANTED] = train(run.folder, work / "planted", STEPS, planted)
    for part in (0.25, 0.5):
        found[f"{part:.0%} of the change"] = rewritten(aligned, work / f"share-{part}", share(part))
    for bits in (3, 2):
        found[f"{bits} bits"] = rewritten(aligned, work / f"bits-{bits}", rounded(bits))
    names = ("onnx-int8", "onnx-q4")
    schemes = [word for name in names for word in ("--as", name)]
    subprocess.run([sys.executable, "-m", "mpa_edge", "export", str(work / "aligned"), *schemes], check=True)
    return found | {name: work / "aligned" / "exports" / name for name in names}


def ask(seed: int, work: Path) -> Document:
    """The silver rows of a seed with their true answers, and what each student said; kept in `work`."""
    kept = work / "answers.json"
    if kept.is_file():
        return read(kept)
    from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
    from mpa_edge.evaluation.predict import recipe_spec, with_silver
    from mpa_edge.nursery.render import pictures
    from mpa_edge.nursery.world import truth
    from mpa_edge.stages.run import open_run
    from mpa_edge.vlm import load

    asked = students(seed, work)
    run = open_run(str(work / "run"))
    spec = recipe_spec(with_silver(run.recipe, run.folder), work)
    scenes = {picture.name: picture.scene for picture in pictures(IMAGES, 700 + seed, STYLE)}
    samples = spec.questions.samples
    found: Document = {
        "clusters": [f"{seed}-{Path(sample.image).name}" for sample in samples],
        "teacher": [sample.answers[0] for sample in samples],
        "true": [truth(scenes[Path(sample.image).name], sample.question) for sample in samples],
        "said": {},
    }
    for name, reference in asked.items():
        log = AnswerLog(spec)
        with closing(load(str(reference), name=name, threads=1, batch_size=128)) as vlm:
            answer_all(vlm, log, title=name)
        found["said"][name] = [row.text for row in log.predictions(name)]
    write(kept, found)
    return found


def scores(said: Sequence[str], accepted: Sequence[str | None]) -> Array:
    """Exact match of each answer; not a number where nobody knows the answer."""
    from mpa_edge.metrics import get_metric

    score = get_metric("exact-match").score
    pairs = zip(said, accepted, strict=True)
    return np.asarray([np.nan if right is None else score(text, [right]) for text, right in pairs])


def compare(seed: int, made: Document) -> list[Document]:
    """True and silver gain of each student of a seed."""
    true, rows = made["true"], []
    for name, said in made["said"].items():
        if name == "base":
            continue
        teacher = [one_more(text) for text in made["teacher"]] if name == PLANTED else made["teacher"]
        gains = {
            by: float(np.nanmean(scores(said, answers) - scores(made["said"]["base"], answers)))
            for by, answers in (("silver", teacher), ("true", true))
        }
        rows.append({"seed": seed, "student": name, **gains})
    return rows


def verdicts(seed: int, made: Document) -> list[Document]:
    """What bench would say of each export, by the teacher's answers and by the true ones."""
    from mpa_edge.metrics.gain import judge

    known = np.asarray([answer is not None for answer in made["true"]])
    rows = []
    for name in EXPORTS:
        row: Document = {"seed": seed, "student": name}
        for by, answers, use in (
            ("silver", made["teacher"], np.ones(len(known), bool)),
            ("true", made["true"], known),
        ):
            three = (scores(made["said"][one], answers)[use] for one in ("base", "aligned", name))
            row[by] = judge(*three, np.asarray(made["clusters"])[use].tolist()).verdict
        rows.append(row)
    return rows


def population(made: Mapping[int, Document]) -> Document:
    """All rows of all seeds: cluster, scores of base by teacher and truth, and of each student that all seeds have."""
    names = [name for name in next(iter(made.values()))["said"] if name not in ("base", PLANTED)]
    by = {"silver": "teacher", "true": "true"}

    def column(student: str, answers: str) -> Array:
        return np.concatenate([scores(one["said"][student], one[answers]) for one in made.values()])

    return {
        "clusters": np.concatenate([np.asarray(one["clusters"]) for one in made.values()]),
        "students": names,
        **{how: {name: column(name, answers) for name in ("base", *names)} for how, answers in by.items()},
    }


def review(rows: Document, student: str, rng: np.random.Generator) -> Document:
    """One silver set and one review of it, drawn from the population: the interval of the gain, against the truth."""
    from mpa_edge.metrics.interval import mean_bounds
    from mpa_edge.metrics.prediction_powered import estimate

    images, at = np.unique(rows["clusters"], return_inverse=True)
    members = np.split(np.argsort(at, kind="stable"), np.cumsum(np.bincount(at))[:-1])
    drawn = rng.integers(len(images), size=SILVER_IMAGES)
    index = np.concatenate([members[i] for i in drawn])
    clusters = np.repeat(np.arange(SILVER_IMAGES).astype(str), [len(members[i]) for i in drawn])
    chosen = rng.choice(len(index), size=REVIEWED, replace=False)
    silver, true = (rows[by][student] - rows[by]["base"] for by in ("silver", "true"))
    target = float(np.nanmean(true))
    reviewed = {int(i): None if np.isnan(true[index[i]]) else float(true[index[i]]) for i in chosen}
    found = estimate(silver[index], reviewed, clusters.tolist(), low=-1.0)
    known = [i for i, score in reviewed.items() if score is not None]
    alone = mean_bounds([reviewed[i] for i in known], clusters[known].tolist(), level=0.025, low=-1.0, high=1.0)
    (low, high), width = found.ci95, alone[1] - alone[0]
    return {
        "covers": low <= target <= high,
        "covers_alone": alone[0] <= target <= alone[1],
        "width": (high - low) / width,
    }


def reviews(made: Mapping[int, Document]) -> Document:
    """Coverage and relative width of the interval, over reviews of all students in turn."""
    rows, rng = population(made), np.random.default_rng(0)
    found = [review(rows, rows["students"][i % len(rows["students"])], rng) for i in range(REVIEWS)]
    return {key: mean([float(one[key]) for one in found]) for key in found[0]}


def fooled(seed: int, made: Document) -> Document:
    """The student of the teacher with the planted mistake: by that teacher, by the truth, and as one review has it."""
    from mpa_edge.metrics.prediction_powered import estimate

    said, wrong = made["said"], [one_more(answer) for answer in made["teacher"]]
    silver, true = (scores(said[PLANTED], answers) - scores(said["base"], answers) for answers in (wrong, made["true"]))
    chosen = np.random.default_rng(seed).choice(len(silver), size=REVIEWED, replace=False)
    reviewed = {int(i): None if np.isnan(true[i]) else float(true[i]) for i in chosen}
    found = estimate(silver, reviewed, made["clusters"], low=-1.0)
    gains = {"silver": float(silver.mean()), "true": float(np.nanmean(true))}
    return {"seed": seed, **gains, "reviewed": found.value, "reviewed_ci95": list(found.ci95), "method": found.method}


# --- the document and the page ----------------------------------------------------------------------------------------


def summary(made: Mapping[int, Document]) -> Document:
    """Everything that the page shows."""
    every = [row for seed, one in made.items() for row in compare(seed, one)]
    gains = [row for row in every if row["student"] != PLANTED]
    silver, true = (np.asarray([row[by] for row in gains]) for by in ("silver", "true"))
    teacher = [scores(one["teacher"], one["true"]) for one in made.values()]
    return {
        "machine": machine(),
        "questions": [len(one["true"]) for one in made.values()],
        "images": [len(set(one["clusters"])) for one in made.values()],
        "teacher_right": float(np.nanmean(np.concatenate(teacher))),
        "correlation": float(np.corrcoef(silver, true)[0, 1]),
        "mean_absolute_difference": float(np.abs(silver - true).mean()),
        "gains": gains,
        "verdicts": [row for seed, one in made.items() for row in verdicts(seed, one)],
        "reviews": reviews(made),
        "planted": [fooled(seed, one) for seed, one in made.items()],
    }


def plot(found: Document) -> None:
    """True gain against silver gain, a point a student."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "label-free"
    figure, axes = pyplot.subplots(figsize=(5, 4.5))
    axes.axline((0, 0), slope=1, color="0.7", linewidth=1)
    for rows, marker, label in ((found["gains"], "o", "students"), (found["planted"], "x", PLANTED)):
        axes.scatter(
            [100 * row["silver"] for row in rows], [100 * row["true"] for row in rows], marker=marker, label=label
        )
    axes.set(xlabel="gain in agreement with the teacher (points)", ylabel="true gain (points)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None, "Title": TITLE})
    described = f"</title>\n <desc>{len(found['gains'])} students lie near the diagonal, {PLANTED} far below it.</desc>"
    PLOT.write_text(PLOT.read_text().replace("</title>", described, 1))


def parts(found: Document) -> list[str]:
    """The section of docs/results.md."""
    reviewed, students = found["reviews"], list(dict.fromkeys(row["student"] for row in found["gains"]))
    seeds = sorted({row["seed"] for row in found["gains"]})
    by = {(row["student"], row["seed"]): row for row in found["gains"]}
    others = [row for row in found["verdicts"] if row["silver"] != row["true"]]
    same = f"{len(found['verdicts']) - len(others)} of {len(found['verdicts'])} the same"
    listed = "".join(f"; {row['student']}, seed {row['seed']}: {row['silver']} / {row['true']}" for row in others)
    columns: dict[str, Callable[[Any], str]] = {"Student": str}
    for seed in seeds:
        columns[f"Seed {seed}: teacher"] = lambda name, seed=seed: points(by[name, seed]["silver"])
        columns[f"Seed {seed}: truth"] = lambda name, seed=seed: points(by[name, seed]["true"])
    planted_columns = {
        "Planted mistake": lambda row: f"seed {row['seed']}",
        "By the teacher": lambda row: points(row["silver"]),
        "Truth": lambda row: points(row["true"]),
        f"{REVIEWED} reviewed": lambda row: points(row["reviewed"]),
        "95 % interval": lambda row: " to ".join(points(end) for end in row["reviewed_ci95"]),
    }
    n, images = (" / ".join(map(str, found[key])) for key in ("questions", "images"))
    gains = (
        f"Gain in agreement with the teacher against true gain (points), on {n} questions that the teacher wrote about "
        f"{images} held-out images; it is right in {percent(found['teacher_right'])} of those that can be answered. "
        f"Correlation {found['correlation']:.3f}, mean absolute difference "
        f"{100 * found['mean_absolute_difference']:.1f} points.\n"
    )
    intervals = (
        f"{REVIEWS:,} simulated reviews of {REVIEWED} questions: {percent(reviewed['covers'])} of the 95 % intervals "
        f"of the gain contain the truth, and they are {reviewed['width']:.2f} times as wide as those of the reviewed "
        f"questions alone ({percent(reviewed['covers_alone'])} of which contain it).\n"
    )
    mistaken = (
        "A teacher that counts one too many, in training and in the held-out questions, is believed by its own answers "
        "and found out by a review:\n"
    )
    return [
        "## Without labels\n",
        gains,
        f"![true gain against gain in agreement with the teacher](images/{PLOT.name})\n",
        table(columns, students),
        f"Verdict on exports by the teacher's answers and by the true ones: {same}{listed}.\n",
        intervals,
        mistaken,
        table(planted_columns, found["planted"]),
        f"`{found['command']}`\n",
    ]


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/label-free"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the JSON document here.")
def main(seeds: str, work: Path, out: Path) -> None:
    """Compare silver, true and reviewed gains over students of several seeds."""
    made = {}
    for seed in map(int, seeds.split(",")):
        folder = work / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        made[seed] = ask(seed, folder)
    found = {"command": command("label_free.py", sys.argv[1:])} | summary(made)
    write(out, found)
    plot(found)


if __name__ == "__main__":
    main()
