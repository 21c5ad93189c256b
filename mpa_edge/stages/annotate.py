"""Pseudo Annotator: the teacher writes questions and answers about unlabelled images, and answers its own questions.

Method: arXiv 2509.16633, section on the Pseudo Annotator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from mpa_edge.images import ImageEntry, open_image
from mpa_edge.pictures import groups
from mpa_edge.progress import progress, say
from mpa_edge.recipe import AnnotateConfig
from mpa_edge.rows import count_reasons, read_dropped, read_parts, shards_done, write_part
from mpa_edge.runs import StageClock, finish, is_done, sha256_json
from mpa_edge.stages.run import Run, begin, memory_counts, stable_seed
from mpa_edge.tasks import Task, answer_prompt
from mpa_edge.tasks.parse import parse_annotation
from mpa_edge.types import VLM, Drop, Dropped, PseudoAnnotation, Reply, Request
from mpa_edge.vlm import load

STAGE = "annotate"


@dataclass(frozen=True)
class Draft:
    """One annotation that was asked for: which image, which of its samples, and what came back."""

    entry: ImageEntry
    image: Image
    sample: int
    reply: Reply


def run_annotate(run: Run, fresh: bool = False) -> None:
    """Write `1-annotate/`: one part of PseudoAnnotation rows a shard of images, with what was dropped and why."""
    folder, config = run.stage_folder(STAGE), run.recipe.annotate
    inputs = annotate_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("annotate: done before, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock, done = StageClock(folder), shards_done(folder, PseudoAnnotation)
    todo = [i for i in range(len(run.shards)) if i not in done]
    if todo:
        recipe = run.recipe
        teacher = load(
            recipe.teacher, name="teacher", device=recipe.device, threads=recipe.threads, batch_size=config.batch_size
        )
        finished = sum(len(run.shards[i]) for i in done)
        with progress("annotate", len(run.entries), finished) as advance:
            for i in todo:
                rows, dropped = annotate_shard(teacher, run, run.shards[i])
                write_part(folder, i, rows, dropped, PseudoAnnotation)
                clock.tick()
                advance(len(run.shards[i]))
        teacher.close()
    _finish(run, inputs)


def annotate_inputs(run: Run) -> dict[str, str]:
    """Everything that the annotations depend on."""
    images = sha256_json([[entry.id, entry.name, entry.drop is None] for entry in run.entries])
    return {"images": images} | annotate_settings(run)


def annotate_settings(run: Run) -> dict[str, str]:
    """What they depend on but the images. The batch size is not part of it: it may change after a crash."""
    return {
        "teacher": run.teacher_fingerprint,
        "config": sha256_json(
            {
                "annotate": run.recipe.annotate.model_dump(exclude={"batch_size"}),
                "prompts": run.task.annotation_prompts,
                "answer": answer_prompt(run.task, "?"),
                "max_answer_words": run.task.max_answer_words,
                "vote_tokens": run.recipe.identify.max_new_tokens if run.recipe.annotate.votes else 0,
                "seed": run.recipe.seed,
                "max_pixels": run.recipe.images.max_pixels,
            }
        ),
    }


def _finish(run: Run, inputs: dict[str, str]) -> None:
    folder = run.stage_folder(STAGE)
    rows, dropped = read_parts(folder, PseudoAnnotation), read_dropped(folder)
    broken = {row.image for row in dropped if row.id == row.image}
    counts = {"images": len(run.entries) - len(broken), "annotated": len(rows), "dropped": len(dropped)}
    finish(
        folder, STAGE, inputs=inputs, config=run.recipe.annotate, seed=run.recipe.seed,
        counts=counts | memory_counts(), packages=("torch", "transformers"),
    )  # fmt: skip
    say(f"annotate: {counts['annotated']} question-answer pairs on {counts['images']} images, {_dropped_line(dropped)}")


def _dropped_line(dropped: Sequence[Dropped]) -> str:
    reasons = ", ".join(f"{reason}: {n}" for reason, n in count_reasons(dropped).items())
    return f"{len(dropped)} dropped" + (f" ({reasons})" if reasons else "")


def annotate_shard(
    teacher: VLM, run: Run, entries: Sequence[ImageEntry]
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """Annotations of one shard, and what was left out."""
    rows: list[PseudoAnnotation] = []
    dropped: list[Dropped] = []
    for opened in groups(entries, lambda entry: entry.drop or open_image(entry.path, run.recipe.images.max_pixels)):
        more, refused = annotate_pictures(teacher, run, opened)
        rows += more
        dropped += refused
    return rows, dropped


def annotate_pictures(
    teacher: VLM, run: Run, opened: Sequence[tuple[ImageEntry, Image | Drop]]
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """Annotations of the pictures that are in memory together."""
    config, task, seed = run.recipe.annotate, run.task, run.recipe.seed
    dropped = [_dropped(entry.name, entry.name, image) for entry, image in opened if isinstance(image, Drop)]
    asked = [
        (entry, image, sample, annotation_request(image, entry.id, sample, task, config, seed))
        for entry, image in opened
        if not isinstance(image, Drop)
        for sample in range(config.samples_per_image)
    ]
    replies = teacher.answer([request for *_, request in asked])
    drafts = [Draft(entry, image, n, reply) for (entry, image, n, _), reply in zip(asked, replies, strict=True)]
    kept, refused = collect(drafts, task, teacher.name)
    votes = vote(teacher, kept, run)
    rows = [row.model_copy(update={"votes": said}) for (row, _), said in zip(kept, votes, strict=True)]
    return rows, dropped + refused


def annotation_request(
    image: Image, image_id: str, sample: int, task: Task, config: AnnotateConfig, seed: int
) -> Request:
    """The request for sample number `sample` of an image: prompts take turns, the first round is greedy."""
    prompts = task.annotation_prompts
    return Request(
        image=image,
        prompt=prompts[sample % len(prompts)],
        max_new_tokens=config.max_new_tokens,
        temperature=0.0 if sample < len(prompts) else config.temperature,
        top_p=config.top_p,
        seed=stable_seed(seed, "annotate", image_id, sample),
    )


def collect(
    drafts: Sequence[Draft], task: Task, teacher: str
) -> tuple[list[tuple[PseudoAnnotation, Image]], list[Dropped]]:
    """Parse what the teacher wrote; cut, unreadable and repeated annotations are dropped with their reason."""
    kept: list[tuple[PseudoAnnotation, Image]] = []
    dropped: list[Dropped] = []
    seen: set[tuple[str, str]] = set()
    for draft in drafts:
        row_id, name = f"{draft.entry.id}-{draft.sample:02d}", draft.entry.name
        parsed = _parsed(draft.reply, task)
        if isinstance(parsed, Drop):
            dropped.append(_dropped(row_id, name, parsed))
            continue
        question, answer = parsed
        key = (draft.entry.id, question.casefold())
        if key in seen:
            dropped.append(_dropped(row_id, name, Drop("duplicate question", question)))
            continue
        seen.add(key)
        row = PseudoAnnotation(
            id=row_id, image_id=draft.entry.id, image=name, question=question, answer=answer, votes=(), teacher=teacher
        )
        kept.append((row, draft.image))
    return kept, dropped


def _parsed(reply: Reply, task: Task) -> tuple[str, str] | Drop:
    """(question, answer) of a reply, or why there is none."""
    if reply.finish_reason == "filtered":
        return Drop("withheld by the teacher's server")
    parsed = parse_annotation(reply.text, task.max_answer_words)
    if isinstance(parsed, Drop):
        return parsed
    if reply.finish_reason == "length":
        return Drop("cut at max_new_tokens", reply.text[:200])
    return parsed.question, parsed.answer


def vote(teacher: VLM, kept: Sequence[tuple[PseudoAnnotation, Image]], run: Run) -> list[tuple[str, ...]]:
    """What the teacher says when it is asked its own questions again: the first vote greedy, the others sampled."""
    config, seed = run.recipe.annotate, run.recipe.seed
    requests = [
        Request(
            image=image,
            prompt=answer_prompt(run.task, row.question),
            max_new_tokens=run.recipe.identify.max_new_tokens,
            temperature=config.temperature if number else 0.0,
            top_p=config.top_p,
            seed=stable_seed(seed, "vote", row.id, number),
        )
        for row, image in kept
        for number in range(config.votes)
    ]
    texts = [reply.text for reply in teacher.answer(requests)]
    return [tuple(texts[i * config.votes : (i + 1) * config.votes]) for i in range(len(kept))]


def _dropped(row_id: str, name: str, drop: Drop) -> Dropped:
    return Dropped(id=row_id, image=name, stage=STAGE, reason=drop.reason, detail=drop.detail)
