"""Samples a second of annotate and identify, against the loop that the method was published with.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --teacher smolvlm-256m --student smolvlm-256m --images 4 --longest-edge 512

A sample is one question about one image: written by the teacher, answered by the teacher, answered by the student.

- published: both models in memory, three passes over all samples in the files' order, batches of 8, 128 new tokens at
  most, greedy (the loop of vl2g/MPA at 22c739e, written anew from a description, its mistakes left out: the left-over
  `break`, the cut prompts, the substring comparison)
- ours: what the stages do with their models. The student is asked only what the teacher confirmed, so that some of the
  published loop's answers have no counterpart; all others must be the same texts
- steps: ours put together piece by piece, each piece over what was there before it
- all of them run in turn, round after round, every other round backwards, so that a busy machine slows all of them; the
  speedup is the median of the rounds' ratios, once of wall time and once of processor time. Not timed: loading, and
  the files that the stages write
- smolvlm-256m, smolvlm-500m: the published sizes with random weights. They never end and write no questions: both ways
  get the same given questions, count every one as confirmed (the worst case for us), and make the same number of tokens
  (--new-tokens). --longest-edge limits the images' size: 512 is one tile, 2048 the published 13 to 17
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from common import Document, machine
from PIL.Image import Image
from shapes import TEXT, build

from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.nursery.render import render
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.tasks.parse import ParsedAnnotation, parse_annotation
from mpa_edge.types import Drop, Request
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint, decoding, model
from mpa_edge.vlm.transformers.model import TransformersVLM

TASK = get_task("minicharts")
PUBLISHED_BATCH, SHARD = 8, 100
# models with random weights write no question: these are asked, and every one counts as confirmed
GIVEN = (
    "How many bars are there?",
    "What is the highest value?",
    "Which colour is the first bar?",
    "What is the word?",
)
Sample = tuple[Path, int]
"""An image and the number of its annotation."""
Texts = dict[Sample, str]


@dataclass(frozen=True)
class Work:
    """What both ways have to do."""

    images: tuple[Path, ...]
    """Files."""
    questions: int
    """Annotations of each image."""
    teacher: str
    """Reference of a model."""
    student: str
    """Reference of a model."""
    annotation_tokens: int
    """Upper bound of an annotation."""
    answer_tokens: int
    """Upper bound of an answer."""
    trained: bool
    """Whether the teacher writes questions of its own; else questions are given."""

    @property
    def samples(self) -> list[Sample]:
        """In the order of the images."""
        return [(image, number) for image in self.images for number in range(self.questions)]

    def pairs(self, written: Texts) -> dict[Sample, tuple[str, str]]:
        """(question, answer) of what the teacher wrote, where it can be read."""
        if not self.trained:
            return {sample: (GIVEN[sample[1] % len(GIVEN)], "") for sample in written}
        parsed = {sample: parse_annotation(text, TASK.max_answer_words) for sample, text in written.items()}
        return {s: (one.question, one.answer) for s, one in parsed.items() if isinstance(one, ParsedAnnotation)}

    def confirmed(self, pairs: Mapping[Sample, tuple[str, str]], said: Texts) -> list[Sample]:
        """Where the teacher's own answer agrees with its annotation."""
        agrees = get_metric(TASK.metric).agrees
        return [sample for sample, text in said.items() if not self.trained or agrees(text, pairs[sample][1])]


@dataclass
class Said:
    """Everything that was said."""

    annotations: Texts = field(default_factory=dict)
    teacher: Texts = field(default_factory=dict)
    student: Texts = field(default_factory=dict)


Arm = Callable[[Work], Callable[[], Said]]
"""Loads the models; what it returns does the work."""


def opened(path: Path) -> Image:
    """An image."""
    image = open_image(path)
    if isinstance(image, Drop):
        raise click.ClickException(f"{path}: {image.reason}")
    return image


def annotation_prompts(samples: Sequence[Sample]) -> Texts:
    """What the teacher is asked for an annotation."""
    return {sample: TASK.annotation_prompts[sample[1] % len(TASK.annotation_prompts)] for sample in samples}


# --- the published way ------------------------------------------------------------------------------------------------


def published(work: Work, only_confirmed: bool = False) -> Callable[[], Said]:
    """Every sample brings its own image through processor and vision tower, and a batch ends with its last row."""
    device, models = checkpoint.pick_device("auto"), {}
    for name in {work.teacher, work.student}:
        path = resolve(name)
        models[name] = (checkpoint.load_processor(path), checkpoint.load_model(path, device))

    @torch.inference_mode()
    def batch(name: str, asked: Sequence[tuple[Sample, str]], limit: int) -> list[str]:
        processor, one = models[name]
        inputs = processor(
            text=[checkpoint.chat_prompt(processor, prompt) for _, prompt in asked],
            images=[[opened(path)] for (path, _), _ in asked],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(device, dtype=one.dtype)
        output = one.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]

    def ask(name: str, prompts: Texts, limit: int) -> Texts:
        said: Texts = {}
        for start in range(0, len(prompts), PUBLISHED_BATCH):
            asked = list(prompts.items())[start : start + PUBLISHED_BATCH]
            said |= zip((sample for sample, _ in asked), batch(name, asked, limit), strict=True)
        return said

    def run() -> Said:
        said = Said(ask(work.teacher, annotation_prompts(work.samples), work.annotation_tokens))
        pairs = work.pairs(said.annotations)
        asked = {sample: answer_prompt(TASK, question) for sample, (question, _) in pairs.items()}
        said.teacher = ask(work.teacher, asked, work.answer_tokens)
        if only_confirmed:
            asked = {sample: asked[sample] for sample in work.confirmed(pairs, said.teacher)}
        said.student = ask(work.student, asked, work.answer_tokens)
        return said

    return run


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(work: Work, without: Sequence[str] = ()) -> Callable[[], Said]:
    """What annotate with one vote and identify do with their models, shard by shard, without their files.

    `without` switches parts off, by putting the plain thing in their place: share (an image's keys and values are
    computed once), shrink (ended rows drop out), sort (batches of one length), prefetch (a second thread prepares
    images).
    """
    models = {}
    for name in {work.teacher, work.student}:
        models[name] = TransformersVLM(resolve(name), name=name, threads=torch.get_num_threads())
        models[name].shares = models[name].shares and "share" not in without
        if "prefetch" in without:
            models[name].second_processor = None
    shards = [work.samples[i : i + SHARD * work.questions] for i in range(0, len(work.samples), SHARD * work.questions)]

    def ask(name: str, prompts: Texts, limit: int, images: Mapping[Path, Image]) -> Texts:
        requests = [Request(images[path], prompt, limit) for (path, _), prompt in prompts.items()]
        return dict(zip(prompts, (reply.text for reply in models[name].answer(requests)), strict=True))

    def run() -> Said:
        said, pairs = Said(), {}
        with ExitStack() as stack:
            if "sort" in without:
                stack.enter_context(mock.patch.object(model, "in_order", lambda asked, *_: list(asked)))
            if "shrink" in without:
                stack.enter_context(mock.patch.object(decoding, "SHRINK_AT", 0.0))
            for shard in shards:
                images = {path: opened(path) for path in dict.fromkeys(path for path, _ in shard)}
                written = ask(work.teacher, annotation_prompts(shard), work.annotation_tokens, images)
                read = work.pairs(written)
                asked = {sample: answer_prompt(TASK, question) for sample, (question, _) in read.items()}
                said.annotations |= written
                said.teacher |= ask(work.teacher, asked, work.answer_tokens, images)
                pairs |= read
            kept = set(work.confirmed(pairs, said.teacher))
            for shard in shards:
                asked = {sample: answer_prompt(TASK, pairs[sample][0]) for sample in shard if sample in kept}
                images = {path: opened(path) for path in dict.fromkeys(path for path, _ in asked)}
                said.student |= ask(work.student, asked, work.answer_tokens, images)
        return said

    return run


# every arm is the one before it with one piece more
LADDER: dict[str, Arm] = {
    "published": published,
    "student asked only what is confirmed": lambda work: published(work, only_confirmed=True),
    "batches as large as memory allows": lambda work: ours(work, ("share", "shrink", "sort", "prefetch")),
    "an image's prefix computed once": lambda work: ours(work, ("shrink", "sort", "prefetch")),
    "ended rows drop out": lambda work: ours(work, ("sort", "prefetch")),
    "batches of one length": lambda work: ours(work, ("prefetch",)),
    "images prepared by a second thread": ours,
}
PUBLISHED, OURS = next(iter(LADDER)), list(LADDER)[-1]


# --- the measurement --------------------------------------------------------------------------------------------------


@dataclass
class Took:
    """Times of one arm, one a round."""

    wall_s: list[float] = field(default_factory=list)
    """As a clock on the wall sees it."""
    cpu_s: list[float] = field(default_factory=list)
    """Of the processor, all threads together: what others do on the machine hardly matters to it."""


def in_turn(names: Sequence[str], work: Work, rounds: int) -> tuple[dict[str, Took], dict[str, Said]]:
    """Times of every arm, and what each said in the last round. Models are loaded before the clock starts."""
    took, said = {name: Took() for name in names}, {}
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            run = LADDER[name](work)
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            said[name] = run()
            took[name].wall_s.append(round(time.perf_counter() - wall_s, 3))
            took[name].cpu_s.append(round(time.process_time() - cpu_s, 3))
            del run
            gc.collect()
            click.echo(f"  {name}: {took[name].wall_s[-1]} s, {took[name].cpu_s[-1]} s of the processor", err=True)
    return took, said


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the rounds' ratios.

    >>> ratio([4, 6, 9], [2, 2, 3])
    3.0
    """
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def document(work: Work, took: Mapping[str, Took], said: Mapping[str, Said]) -> Document:
    """What is printed."""
    stages = [(getattr(said[OURS], part), getattr(said[PUBLISHED], part)) for part in vars(said[OURS])]
    differing = sum(text != theirs.get(sample) for mine, theirs in stages for sample, text in mine.items())
    steps = list(itertools.pairwise(took))
    rates = {name: round(len(work.samples) / statistics.median(took[name].wall_s), 3) for name in (PUBLISHED, OURS)}
    return {
        "images": len(work.images),
        "questions": work.questions,
        "new_tokens": [work.annotation_tokens, work.answer_tokens],
        "published_samples_per_s": rates[PUBLISHED],
        "ours_samples_per_s": rates[OURS],
        "speedup": ratio(took[PUBLISHED].wall_s, took[OURS].wall_s),
        "speedup_cpu": ratio(took[PUBLISHED].cpu_s, took[OURS].cpu_s),
        "answers": sum(len(mine) for mine, _ in stages),
        "differing_answers": differing,
        "steps": {after: ratio(took[before].wall_s, took[after].wall_s) for before, after in steps},
        "steps_cpu": {after: ratio(took[before].cpu_s, took[after].cpu_s) for before, after in steps},
        "seconds": {name: vars(one) for name, one in took.items()},
        "machine": machine() | {"threads": torch.get_num_threads(), "device": checkpoint.pick_device("auto")},
    }


def checkpoint_of(name: str, folder: Path, longest_edge: int, seed: int) -> str:
    """A reference that can be loaded; checkpoints of published sizes are made first."""
    if name not in TEXT:
        return name
    made = build(name, folder / f"{name}-{seed}", seed)
    processor: Any = checkpoint.load_processor(str(made))
    processor.image_processor.size = {"longest_edge": longest_edge}
    processor.save_pretrained(made)
    return str(made)


@click.command()
@click.option("--teacher", default="nursery:teacher", show_default=True, help="A model, smolvlm-256m or smolvlm-500m.")
@click.option("--student", default="nursery:student", show_default=True, help="A model, smolvlm-256m or smolvlm-500m.")
@click.option("--images", default=100, show_default=True, help="Drawn by the built-in generator.")
@click.option("--questions", default=5, show_default=True, help="Annotations of each image.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--new-tokens", type=(int, int), help="Of an annotation and of an answer; 128 each, 16 and 3 for random weights."
)
@click.option("--longest-edge", default=2048, show_default=True, help="Pixels; for random weights only.")
@click.option("--threads", default=1, show_default=True)
def main(
    teacher: str,
    student: str,
    images: int,
    questions: int,
    rounds: int,
    new_tokens: tuple[int, int] | None,
    longest_edge: int,
    threads: int,
) -> None:
    """Run the benchmark; print one JSON document."""
    checkpoint.set_threads(threads)
    trained = teacher not in TEXT
    limits = new_tokens or ((128, 128) if trained else (16, 3))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = tuple(sorted(render(folder / "images", images, 99, "target").glob("*.png")))
        models = [checkpoint_of(name, folder, longest_edge, seed) for seed, name in enumerate((teacher, student))]
        work = Work(drawn, questions, *models, *limits, trained)
        result = document(work, *in_turn(list(LADDER), work, rounds))
    click.echo(json.dumps({"teacher": teacher, "student": student} | result, indent=1))


if __name__ == "__main__":
    main()
