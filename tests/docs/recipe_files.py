"""The recipes of the paper's table, made from one short table: `python -m tests.docs.recipe_files` writes them.

Five students by four benchmarks are twenty commands, one a file; the files differ in what stands here and nowhere else.
Memory, hours and cost in their headers are what `mpa-edge plan` says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from mpa_edge.config.library import parse_yaml
from mpa_edge.config.recipe import Recipe
from mpa_edge.planning.estimate import machines, make_plan
from tests.docs.markdown import ROOT

TEACHER = "Qwen/Qwen2-VL-7B-Instruct"
OTHER_TEACHER = "OpenGVLab/InternVL2-8B"
GPUS = ("rtx-4090", "a100", "h100")


@dataclass(frozen=True)
class Student:
    model: str
    licence: str
    note: str = ""
    batch_size: int = 16


@dataclass(frozen=True)
class Bench:
    title: str
    images: int
    """Training images, as the benchmark's authors count them."""
    questions: int
    licence: str
    warning: str = ""
    count: str = ""
    """What a reader must know of `questions`."""


OWN_FORMAT = "in its authors' own format, of which a copy in transformers' is made; no program code of theirs is run"
STUDENTS = {
    "smolvlm-500m": Student("HuggingFaceTB/SmolVLM-500M-Instruct", "Apache-2.0"),
    "tinyllava": Student(
        "bczhou/tiny-llava-v1-hf",
        "Apache-2.0",
        "the paper's is TinyLLaVA-2.0B, --set student=DIR (docs/recipes.md says of what); this one needs nothing else",
    ),
    "internvl2-2b": Student("OpenGVLab/InternVL2-2B", "MIT", OWN_FORMAT),
    "internvl2-4b": Student("OpenGVLab/InternVL2-4B", "MIT", OWN_FORMAT),
    "qwen2-vl-2b": Student("Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0"),
}
BENCHES = {
    "chartqa": Bench(
        "ChartQA", 18_317, 2_500, "GPL-3.0 as published; the charts are Statista's, Pew's, OECD's, Our World in Data's"
    ),
    "okvqa": Bench("OK-VQA", 8_998, 5_046, "CC BY 4.0 for the questions; COCO's images have their owners' terms"),
    "stvqa": Bench(
        "ST-VQA",
        16_173,
        5_000,
        "each of its sources has terms of its own",
        "some of the images are ImageNet's, whose terms allow research and teaching",
        "more than the split has: all of them",
    ),
    "textvqa": Bench("TextVQA", 21_953, 5_000, "CC BY 4.0 for the questions; Open Images' images are CC BY 2.0"),
}


def names() -> list[str]:
    """Every recipe of the table."""
    return [f"{student}-{bench}" for student in STUDENTS for bench in BENCHES]


def document(name: str) -> str:
    """The whole file."""
    student_name, _, bench_name = name.rpartition("-")
    body = body_of(name, STUDENTS[student_name], bench_name, BENCHES[bench_name])
    return header(name, body, STUDENTS[student_name], bench_name, BENCHES[bench_name]) + body


def body_of(name: str, student: Student, task: str, bench: Bench) -> str:
    note = f"   # {bench.count}" if bench.count else ""
    return f"""schema_version: 1
name: {name}
title: {bench.title}, {student.model.partition("/")[2]} taught by {TEACHER.partition("/")[2]}
task: {task}
teacher: {TEACHER}
student: {student.model}
images: {{path: data/{task}, split: train}}
annotate: {{samples_per_image: 1, votes: 1}}
level: {{rank: 16, learning_rate: 1.0e-4, batch_size: {student.batch_size}, replay: 0.0}}
evaluate:
  benchmark: {task}
  data: data/{task}
  n: {bench.questions}{note}
"""


def header(name: str, body: str, student: Student, task: str, bench: Bench) -> str:
    lines = [
        f"mpa-edge align {name}",
        f"Files: {bench.title} as it is downloaded, in data/{task} (docs/benchmarks.md says from where).",
        f"Cost of {bench.images:,} images, planned (mpa-edge plan {name} --images {bench.images}), not measured:",
        f"  {costs(body, bench.images)}",
        "Result: not measured, it needs a GPU and models from a hub.",
        *([f"Student: {student.note}."] if student.note else []),
        f"The other teacher of the paper: --set teacher={OTHER_TEACHER} (docs/recipes.md)",
        f"Licences, as their cards say: student {student.licence}, teacher Apache-2.0.",
        f"Images: {bench.licence}.",
        *([f"WARNING, research only: {bench.warning}."] if bench.warning else []),
    ]
    return "".join(f"# {line}\n" for line in lines)


def costs(body: str, images: int) -> str:
    """Memory, hours and cost on the GPUs of the header."""
    plan = make_plan(recipe_of(body), str(images), gpus)
    return "; ".join(cost(machine) for machine in plan.machines)


def recipe_of(body: str) -> Recipe:
    return Recipe.model_validate(parse_yaml(body, "a recipe"))


@functools.cache
def gpus() -> list[Any]:
    return machines(GPUS, None, None)


def cost(machine: Any) -> str:
    if machine.usd is None:
        return f"{machine.machine.name} too small"
    hours = machine.seconds / 3600
    return f"{machine.machine.name} {machine.memory_bytes / 1e9:.0f} GB, {hours:.1f} h, {machine.usd:.2g} USD"


def write() -> None:
    for name in names():
        (ROOT / "recipes" / f"{name}.yaml").write_text(document(name), encoding="utf-8")


if __name__ == "__main__":
    write()
