"""What a teacher wrote, made into annotations: parsed, cut ones and repeated ones left out with their reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from mpa_edge.images.folder import ImageEntry
from mpa_edge.tasks import Task
from mpa_edge.tasks.parse import parse_annotation
from mpa_edge.types import Drop, Dropped, PseudoAnnotation, Reply

STAGE = "annotate"
Noted = tuple[PseudoAnnotation, Image]


@dataclass(frozen=True)
class Draft:
    """One annotation that was asked for: which image, which of its samples, and what came back."""

    entry: ImageEntry
    image: Image
    sample: int
    reply: Reply


def row_id(entry: ImageEntry, sample: int) -> str:
    """Id of one annotation of an image."""
    return f"{entry.id}-{sample:02d}"


def collect(
    drafts: Sequence[Draft], task: Task, teacher: str, known: Sequence[PseudoAnnotation] = ()
) -> tuple[list[Noted], list[Dropped]]:
    """Parse what the teacher wrote; cut, unreadable and repeated annotations are dropped with their reason.

    `known` are there already. Two questions about an image are one where they differ in nothing but case.
    """
    kept: list[Noted] = []
    dropped: list[Dropped] = []
    seen = {(row.image_id, row.question.casefold()) for row in known}
    for draft in drafts:
        this, name = row_id(draft.entry, draft.sample), draft.entry.name
        parsed = _parsed(draft.reply, task)
        if isinstance(parsed, Drop):
            dropped.append(left_out(this, name, parsed))
            continue
        question, answer = parsed
        if (draft.entry.id, question.casefold()) in seen:
            dropped.append(left_out(this, name, Drop("duplicate question", question)))
            continue
        seen.add((draft.entry.id, question.casefold()))
        row = PseudoAnnotation(
            id=this, image_id=draft.entry.id, image=name, question=question, answer=answer, votes=(), teacher=teacher
        )
        kept.append((row, draft.image))
    return kept, dropped


def _parsed(reply: Reply, task: Task) -> tuple[str, str] | Drop:
    """(question, answer) of a reply, or why there is none."""
    if reply.drop is not None:
        return reply.drop
    if reply.finish_reason == "filtered":
        return Drop("withheld by the teacher's server")
    parsed = parse_annotation(reply.text, task.max_answer_words)
    if isinstance(parsed, Drop):
        return parsed
    if reply.finish_reason == "length":
        return Drop("cut at max_new_tokens", reply.text[:200])
    return parsed.question, parsed.answer


def left_out(this: str, name: str, drop: Drop) -> Dropped:
    """The dropped row of one annotation, or of one image."""
    return Dropped(id=this, image=name, stage=STAGE, reason=drop.reason, detail=drop.detail)
