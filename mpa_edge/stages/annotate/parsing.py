"""The pure parts of annotate: requests for annotations and votes, and what becomes of the replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL.Image import Image

from mpa_edge.config.recipe import AnnotateConfig, Recipe
from mpa_edge.images.index import ImageEntry
from mpa_edge.stages.run import stable_seed
from mpa_edge.tasks import Task, answer_prompt
from mpa_edge.tasks.parse import in_form, parse_annotation
from mpa_edge.types import Drop, Dropped, PseudoAnnotation, Reply, Request

STAGE = "annotate"


class Slot(NamedTuple):
    """One annotation that is asked for."""

    entry: ImageEntry
    """Of the image."""
    number: int
    """Counts the annotations of the image."""

    @property
    def row_id(self) -> str:
        """Id of the annotation."""
        return f"{self.entry.id}-{self.number:02d}"


def slots(entries: Iterable[ImageEntry], config: AnnotateConfig) -> Iterator[Slot]:
    """All annotations that are asked for, in the order of the rows."""
    return (Slot(entry, number) for entry in entries for number in range(config.samples_per_image))


def annotation_request(
    image: Image, image_id: str, sample: int, task: Task, config: AnnotateConfig, seed: int
) -> Request:
    """The request for annotation number `sample` of an image: prompts take turns, the first round is greedy."""
    prompts = task.annotation_prompts
    return Request(
        image=image,
        prompt=prompts[sample % len(prompts)],
        max_new_tokens=config.max_new_tokens,
        temperature=0.0 if sample < len(prompts) else config.temperature,
        top_p=config.top_p,
        seed=stable_seed(seed, "annotate", image_id, sample),
    )


def vote_requests(row: PseudoAnnotation, image: Image, task: Task, recipe: Recipe) -> list[Request]:
    """The requests that ask the teacher its own question: the first vote is greedy, the others are sampled."""
    return [
        Request(
            image=image,
            prompt=answer_prompt(task, row.question),
            max_new_tokens=recipe.identify.max_new_tokens,
            temperature=recipe.annotate.temperature if number else 0.0,
            top_p=recipe.annotate.top_p,
            seed=stable_seed(recipe.seed, "vote", row.id, number),
        )
        for number in range(recipe.annotate.votes)
    ]


def parsed(reply: Reply, task: Task) -> tuple[str, str] | Drop:
    """(question, answer) of a reply, or why it has none."""
    if reply.drop is not None:
        return reply.drop
    if reply.finish_reason == "filtered":
        return Drop("withheld by the teacher's server")
    if reply.finish_reason == "length":
        return Drop("cut at max_new_tokens", reply.text[:200])
    found = parse_annotation(reply.text, task.max_answer_words, task.answer_form)
    if isinstance(found, Drop):
        return found
    if (found.question, found.answer) in [(asked, in_form(said, task.answer_form)) for asked, said in task.examples]:
        return Drop("copied from the task's examples", found.question)
    return found.question, found.answer


def collect(
    asked: Sequence[Slot],
    replies: Sequence[Reply],
    task: Task,
    teacher: str,
    known: Sequence[PseudoAnnotation] = (),
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """(annotations without votes, dropped rows) of what the teacher wrote.

    A question that was asked about its image before, also in one of the `known` annotations, is dropped; case does not
    matter.
    """
    rows: list[PseudoAnnotation] = []
    dropped: list[Dropped] = []
    questions = {(row.image_id, row.question.casefold()) for row in known}
    for slot, reply in zip(asked, replies, strict=True):
        entry, found = slot.entry, parsed(reply, task)
        if not isinstance(found, Drop) and (entry.id, found[0].casefold()) in questions:
            found = Drop("duplicate question", found[0])
        if isinstance(found, Drop):
            dropped.append(dropped_row(slot.row_id, entry.name, found))
            continue
        question, answer = found
        questions.add((entry.id, question.casefold()))
        row = PseudoAnnotation(
            id=slot.row_id,
            image_id=entry.id,
            image=entry.name,
            question=question,
            answer=answer,
            votes=(),
            teacher=teacher,
        )
        rows.append(row)
    return rows, dropped


def voted(row: PseudoAnnotation, replies: Sequence[Reply]) -> PseudoAnnotation | Drop:
    """The annotation with the teacher's answers to its own question.

    A row that a server left without one of its votes is dropped: a majority of fewer votes would be another measure.
    """
    lost = next((reply.drop for reply in replies if reply.drop is not None), None)
    return lost or row.model_copy(update={"votes": tuple(reply.text for reply in replies)})


def dropped_row(row_id: str, image: str, drop: Drop) -> Dropped:
    """The record of an annotation, or of an image, that is left out."""
    return Dropped(id=row_id, image=image, stage=STAGE, reason=drop.reason, detail=drop.detail)
