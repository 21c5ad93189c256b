"""How good the built-in teacher and student are, by the generator's own ground truth.

    python benchmarks/nursery.py --out docs/nursery.json

1,000 fresh questions in each style (one an image, kinds spread evenly), and the teacher's own annotations of target
images under all five focuses, greedy and sampled. Images come from seeds that no training uses. Also rewrites the
model cards beside the weights and the marked table in docs/nursery.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from common import DOCS, Document, marked, table, write

from mpa_edge.config.recipe import AnnotateConfig
from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
from mpa_edge.evaluation.predict import EvalSpec
from mpa_edge.evaluation.score import accuracy_by_kind
from mpa_edge.nursery import world
from mpa_edge.nursery.render import ANSWERS, pictures, render
from mpa_edge.questions.own import read_questions
from mpa_edge.stages.annotate.parsing import annotation_request
from mpa_edge.tasks import get_task
from mpa_edge.tasks.parse import parse_annotation
from mpa_edge.types import VLM, Drop
from mpa_edge.vlm import WEIGHTS, load

SEED = 424_242


def answers(vlm: VLM, style: Any, n: int) -> Document:
    """Strict accuracy on n fresh questions, in all and by kind."""
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), n, SEED, style, answers_per_image=1)
        log = AnswerLog(EvalSpec(read_questions(Path(folder) / ANSWERS), get_task("minicharts"), 16, 10**7))
        answer_all(vlm, log)
        rows = log.predictions("base")
    kinds = {kind: {"n": row["n"], "accuracy": row["base"]} for kind, row in accuracy_by_kind({"base": rows}).items()}
    return {"accuracy": sum(row.score for row in rows) / n, "n": n, "kinds": kinds}


def annotations(vlm: VLM, n: int, samples_per_image: int) -> dict[str, float]:
    """Of what the teacher writes: the share that parses, and the share of those that is true for the image."""
    task, config = get_task("minicharts"), AnnotateConfig(samples_per_image=samples_per_image, max_new_tokens=48)
    asked = [
        (picture.scene, annotation_request(picture.image, picture.name, sample, task, config, SEED))
        for picture in pictures(n, SEED + 1, "target")
        for sample in range(samples_per_image)
    ]
    replies = vlm.answer([request for _, request in asked])
    parsed = [(scene, parse_annotation(r.text, 3)) for (scene, _), r in zip(asked, replies, strict=True)]
    good = [(scene, one) for scene, one in parsed if not isinstance(one, Drop)]
    true = sum(world.truth(scene, one.question) == one.answer for scene, one in good)
    return {"n": len(asked), "parsed": len(good) / len(asked), "true": true / max(1, len(good))}


def card(name: str, result: Document, command: str) -> str:
    """Model card of one of the pair."""
    target, plain = result[name]["target"], result[name]["plain"]
    lines = [
        "---\nlicense: apache-2.0\npipeline_tag: image-text-to-text\n---\n",
        f"# mpa-edge nursery: {name}\n",
        (
            f"A tiny vision-language model ({result[name]['parameters'] / 1e6:.2f} M parameters, Idefics3, "
            f"fp16), the built-in {name} of mpa-edge. It knows images of 128 x 64 pixels that its own generator "
            "draws (bar charts, signs, shapes) and nothing else. It is for demonstrations and tests.\n"
        ),
        f"Trained from nothing by `python -m tools.nursery_training.train {name}`: {result[name]['training']}\n",
        "| Fresh questions | Accuracy |\n| --- | ---: |",
        f"| {target['n']} in the target style | {100 * target['accuracy']:.1f} % |",
        f"| {plain['n']} in the plain style | {100 * plain['accuracy']:.1f} % |",
    ]
    if "annotations" in result[name]:
        greedy = result[name]["annotations"]
        lines.append(
            f"\nOf {greedy['n']} annotations that it wrote, {100 * greedy['parsed']:.1f} % parse and "
            f"{100 * greedy['true']:.1f} % of those are true.\n"
        )
    return "\n".join([*lines, f"\nMeasured by `{command}`.\n"])


def training_line(name: str) -> str:
    """What the plan of a training says, in words."""
    from tools.nursery_training.train import PLANS

    plan = PLANS[name]
    share = f"{100 * plan.mix.target_share:g} % of them in the target style"
    later = "".join(f", then {phase.steps} steps with {100 * phase.target_share:g} %" for phase in plan.after)
    questions = plan.mix.questions + plan.mix.lookups
    return f"{plan.steps:,} steps of {plan.batch_size} images, {share}{later}; up to {questions} questions an image."


def kinds_table(result: Document) -> str:
    """Accuracy by question kind, both models, both styles."""

    def column(name: str, style: str) -> Any:
        one = result[name][style]
        rows = {kind: f"{100 * row['accuracy']:.0f} %" for kind, row in one["kinds"].items()}
        rows["**all**"] = f"**{100 * one['accuracy']:.1f} %**"
        return lambda kind: rows.get(kind, "")

    pairs = [(name, style) for name in ("teacher", "student") for style in ("target", "plain")]
    columns = {f"{name.title()}, {style}": column(name, style) for name, style in pairs}
    return table({"Question kind": str, **columns}, ["**all**", *sorted(result["teacher"]["target"]["kinds"])])


@click.command()
@click.option("--n", default=1000, show_default=True, help="Questions a style.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document and rewrite cards and docs.")
def main(n: int, out: Path | None) -> None:
    """Score the built-in pair."""
    command = "python benchmarks/nursery.py " + " ".join(sys.argv[1:])
    result: Document = {"command": command.strip()}
    for name in ("teacher", "student"):
        vlm: Any = load(f"nursery:{name}", name=name, batch_size=128)
        parameters = sum(p.numel() for p in vlm.model.parameters())
        one: Document = {"parameters": parameters, "training": training_line(name)}
        one |= {"target": answers(vlm, "target", n), "plain": answers(vlm, "plain", n)}
        if name == "teacher":
            one |= {"annotations": annotations(vlm, 300, 5), "annotations_with_sampled": annotations(vlm, 100, 10)}
        vlm.close()
        result[name] = one
    if not out:
        click.echo(json.dumps(result, indent=1))
        return
    write(out, result)
    for name in ("teacher", "student"):
        (WEIGHTS / name / "README.md").write_text(card(name, result, command))
    page = DOCS / "nursery.md"
    page.write_text(marked(page.read_text(), "results", f"{kinds_table(result)}\nMeasured by `{command}`.\n"))


if __name__ == "__main__":
    main()
