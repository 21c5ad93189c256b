"""The two ways of annotating and identifying that benchmarks/throughput.py compares, over the same requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL.Image import Image

from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.tasks.parse import ParsedAnnotation, parse_annotation
from mpa_edge.types import Drop, Request
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint, decoding, model
from mpa_edge.vlm.transformers.model import TransformersVLM

TASK = get_task("minicharts")
PUBLISHED_BATCH = 8
SHARD = 100
# for models whose weights are random: they write no question, so these are asked, and every one counts as confirmed
GIVEN = (
    "How many bars are there?",
    "What is the highest value?",
    "Which colour is the first bar?",
    "What is the word?",
)


@dataclass(frozen=True)
class Work:
    """What both ways have to do."""

    pictures: tuple[Path, ...]
    """Files."""
    questions: int
    """Annotations of each picture."""
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
    def samples(self) -> list[tuple[Path, int]]:
        """(picture, number of its annotation), in the order of the pictures."""
        return [(picture, number) for picture in self.pictures for number in range(self.questions)]

    def prompt(self, number: int) -> str:
        """What the teacher is told for an annotation."""
        return TASK.annotation_prompts[number % len(TASK.annotation_prompts)]

    def read(self, number: int, text: str) -> tuple[str, str] | None:
        """(question, answer) of what the teacher wrote; None where nothing can be read."""
        if not self.trained:
            return GIVEN[number % len(GIVEN)], ""
        parsed = parse_annotation(text, TASK.max_answer_words)
        return (parsed.question, parsed.answer) if isinstance(parsed, ParsedAnnotation) else None

    def confirmed(self, answer: str, said: str) -> bool:
        """Whether the teacher's own answer agrees with its annotation."""
        return not self.trained or get_metric(TASK.metric).agrees(said, answer)


@dataclass
class Said:
    """Everything that was said, by (picture, number)."""

    annotations: dict[Any, str] = field(default_factory=dict)
    teacher: dict[Any, str] = field(default_factory=dict)
    student: dict[Any, str] = field(default_factory=dict)

    def differences(self, other: Said) -> int:
        """How many of our texts are not those of the published loop, which asks more."""
        pairs = ((self.annotations, other.annotations), (self.teacher, other.teacher), (self.student, other.student))
        return sum(text != theirs.get(key) for ours, theirs in pairs for key, text in ours.items())


def opened(path: Path) -> Image:
    """A picture."""
    image = open_image(path)
    if isinstance(image, Drop):
        raise SystemExit(f"{path}: {image.reason}")
    return image


class PublishedLoop:
    """The published way: both models in memory, three passes over all samples, batches of eight in the files' order.

    Every sample brings its own picture through processor and vision tower, and a batch goes on until its last row ends.
    Left out is what the published code does wrong: the left-over `break`, the cut prompts, the substring comparison.
    """

    def __init__(self, work: Work, only_confirmed: bool = False) -> None:
        self.work, self.only_confirmed = work, only_confirmed
        self.models: dict[str, tuple[Any, Any]] = {}
        for name in {work.teacher, work.student}:
            path = resolve(name)
            self.models[name] = (checkpoint.load_processor(path), checkpoint.load_model(path, _device()))

    def run(self) -> Said:
        """All three passes."""
        work, said = self.work, Said()
        prompts = {sample: work.prompt(sample[1]) for sample in work.samples}
        said.annotations = self._pass(work.teacher, prompts, work.annotation_tokens)
        read = {sample: work.read(sample[1], text) for sample, text in said.annotations.items()}
        asked = {sample: answer_prompt(TASK, pair[0]) for sample, pair in read.items() if pair}
        said.teacher = self._pass(work.teacher, asked, work.answer_tokens)
        if self.only_confirmed:
            kept = {s for s, text in said.teacher.items() if work.confirmed((read[s] or ("", ""))[1], text)}
            asked = {sample: prompt for sample, prompt in asked.items() if sample in kept}
        said.student = self._pass(work.student, asked, work.answer_tokens)
        return said

    def _pass(self, name: str, prompts: dict[Any, str], limit: int) -> dict[Any, str]:
        processor, model = self.models[name]
        samples, said = list(prompts), {}
        for start in range(0, len(samples), PUBLISHED_BATCH):
            batch = samples[start : start + PUBLISHED_BATCH]
            texts = self._batch(processor, model, [(opened(path), prompts[path, n]) for path, n in batch], limit)
            said.update(zip(batch, texts, strict=True))
        return said

    @torch.inference_mode()
    def _batch(self, processor: Any, model: Any, asked: Sequence[tuple[Image, str]], limit: int) -> list[str]:
        inputs = processor(
            text=[checkpoint.chat_prompt(processor, prompt) for _, prompt in asked],
            images=[[image] for image, _ in asked],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(_device(), dtype=model.dtype)
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@dataclass(frozen=True)
class Steps:
    """What of ours is switched on."""

    share: bool = True
    """A picture's keys and values are computed once."""
    sort: bool = True
    """Batches of one length."""
    shrink: bool = True
    """Ended rows drop out."""
    ahead: bool = True
    """Pictures are prepared by a second thread."""


class Ours:
    """What annotate with one vote and identify do with their models, shard by shard, without their files."""

    def __init__(self, work: Work, steps: Steps | None = None) -> None:
        self.work, self.steps = work, steps or Steps()
        self.models = {name: self._load(name) for name in (work.teacher, work.student)}

    def _load(self, name: str) -> TransformersVLM:
        vlm = TransformersVLM(
            resolve(name), name=name, threads=torch.get_num_threads(), share_prefixes=self.steps.share
        )
        if not self.steps.ahead:
            vlm.second_processor = None
        return vlm

    def run(self) -> Said:
        """The teacher over all shards, then the student over what it confirmed."""
        said, read = Said(), {}
        with _switched(self.steps):
            for shard in self._shards():
                read |= self._teach(shard, said)
            kept = {sample for sample, text in said.teacher.items() if self.work.confirmed(read[sample][1], text)}
            for shard in self._shards():
                asked = {sample: answer_prompt(TASK, read[sample][0]) for sample in shard if sample in kept}
                said.student |= self._ask(self.work.student, asked, self.work.answer_tokens, self._open(asked))
        return said

    def _teach(self, shard: Sequence[Any], said: Said) -> dict[Any, tuple[str, str]]:
        work, images = self.work, self._open(shard)
        prompts = {sample: work.prompt(sample[1]) for sample in shard}
        written = self._ask(work.teacher, prompts, work.annotation_tokens, images)
        pairs = {sample: work.read(sample[1], text) for sample, text in written.items()}
        read = {sample: pair for sample, pair in pairs.items() if pair}
        asked = {sample: answer_prompt(TASK, pair[0]) for sample, pair in read.items()}
        said.annotations |= written
        said.teacher |= self._ask(work.teacher, asked, work.answer_tokens, images)
        return read

    def _shards(self) -> Iterator[list[Any]]:
        samples, size = self.work.samples, SHARD * self.work.questions
        return (samples[i : i + size] for i in range(0, len(samples), size))

    def _open(self, samples: Sequence[Any] | dict[Any, str]) -> dict[Path, Image]:
        return {path: opened(path) for path in dict.fromkeys(path for path, _ in samples)}

    def _ask(self, name: str, prompts: dict[Any, str], limit: int, images: dict[Path, Image]) -> dict[Any, str]:
        requests = [Request(images[path], prompt, limit) for (path, _), prompt in prompts.items()]
        replies = self.models[name].answer(requests)
        return dict(zip(prompts, (reply.text for reply in replies), strict=True))


@contextmanager
def _switched(steps: Steps) -> Iterator[None]:
    """Parts of ours switched off by putting the plain thing in their place."""
    order: Callable[..., Any] = model.in_order if steps.sort else lambda asked, *_: list(asked)
    with (
        mock.patch.object(model, "in_order", order),
        mock.patch.object(decoding, "SHRINK_AT", decoding.SHRINK_AT if steps.shrink else 0.0),
    ):
        yield


def _device() -> str:
    return checkpoint.pick_device("auto")
