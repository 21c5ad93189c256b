"""Pseudo Annotator: the teacher writes questions and answers about unlabelled images, and answers its own questions.

Method: arXiv 2509.16633, section on the Pseudo Annotator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mpa_edge.config.recipe import AnnotateConfig
from mpa_edge.engines import Facts, Job, Outcome
from mpa_edge.engines.local import run_local
from mpa_edge.engines.retries import poisoned
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import ImageEntry, open_image
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json, sha256_list
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import (
    count_reasons,
    count_rows,
    dropped_path,
    each_dropped,
    is_whole,
    part_path,
    read_rows,
    shards_done,
    write_part,
)
from mpa_edge.stages.annotate.parsing import STAGE, Draft, Noted, collect, left_out, row_id
from mpa_edge.stages.run import Run, begin, memory_counts, stable_seed
from mpa_edge.stages.shards import (
    ModelWorker,
    anywhere,
    engine_of,
    facts,
    names_of,
    poisoned_counts,
    portable,
    read_ahead,
    stays_here,
    witness,
)
from mpa_edge.stages.teacher import (
    account,
    check_card,
    failures,
    if_there,
    is_spoilt,
    joined,
    nothing_built_on,
    picture_settings,
    require_answers,
    teacher_options,
    usage_counts,
)
from mpa_edge.tasks import Task, answer_prompt
from mpa_edge.types import VLM, Drop, Dropped, PseudoAnnotation, Reply, Request
from mpa_edge.vlm import load
from mpa_edge.vlm.openai.reference import is_server


@dataclass(frozen=True)
class Again:
    """What is asked once more of a shard that has rows already."""

    rows: frozenset[str]
    """Ids of the annotations that are missing."""
    kept: tuple[PseudoAnnotation, ...]
    """Those that are there."""


def run_annotate(run: Run, fresh: bool = False) -> None:
    """Write `1-annotate/`: one part of PseudoAnnotation rows a shard of images, with what was dropped and why."""
    folder = run.stage_folder(STAGE)
    inputs = annotate_inputs(run)
    missing = nothing_built_on(run, "identify") and (poisoned(folder) or _lossy(run))
    if not fresh and is_done(folder, inputs) and not missing:
        say("annotate: done before, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    run.remember_entries()
    clock, done = StageClock(folder), shards_done(folder, PseudoAnnotation)
    todo = [i for i in range(len(run.shards)) if i not in done]
    if stays_here(run, STAGE, asks_server=is_server(run.recipe.teacher)):
        outcome = _here(run, todo, clock)
    else:
        outcome = _on_engine(run, todo, clock)
    _finish(run, inputs, outcome.facts)


def _on_engine(run: Run, todo: Sequence[int], clock: StageClock) -> Outcome:
    """Where many processes share the work, each loads the teacher itself."""
    make = partial(_annotator, portable(run), load)
    with engine_of(run) as do:
        return do(_job(run, todo, make, lambda _: clock.tick()))


def _here(run: Run, todo: Sequence[int], clock: StageClock) -> Outcome:
    """The shards that are not done, then once more what a server left without an answer."""
    lossy = _lossy(run)
    needed = bool(todo) or any(is_spoilt(run, *_shard(run, i)) for i in lossy)
    teacher = if_there(lambda: _load(run, needed), needed) if todo or lossy else None
    if teacher is None:
        return Outcome(facts=facts(run))
    worker = Annotator(run, teacher)
    check_card(run, teacher, write=True)
    with account(run, STAGE, teacher) as save:

        def written(shard: int, again: bool = False) -> None:
            clock.tick()
            save()
            require_answers(run, *_shard(run, shard), again)

        outcome = run_local(_job(run, todo, lambda: worker, written), worker)
        for i in _lossy(run):
            # also a shard that a server spoilt is written: only what is missing is asked again
            write_part(run.stage_folder(STAGE), i, *retry_shard(teacher, run, i), PseudoAnnotation)
            written(i, again=True)
    teacher.close()
    return replace(outcome, facts=facts(run))


def _annotator(run: Run, loader: Callable[..., VLM], folder: Path | None = None) -> Annotator:
    run = replace(run, folder=folder or run.folder)
    return Annotator(run, _load(run, True, loader))


def _load(run: Run, needed: bool, loader: Callable[..., VLM] | None = None) -> VLM:
    recipe = run.recipe
    return (loader or load)(
        recipe.teacher,
        name="teacher",
        device=recipe.device,
        threads=recipe.threads,
        batch_size=recipe.annotate.batch_size,
        **teacher_options(run, patient=needed),
    )


def _job(run: Run, todo: Sequence[int], make: Callable[..., Annotator], written: Callable[[int], object]) -> Job:
    return Job(
        title=STAGE,
        folder=run.stage_folder(STAGE),
        total=len(run.shards),
        todo=todo,
        make=make,
        written=written,
        entries=lambda i: anywhere(run.shards[i]),
        read=partial(_read_ahead, run.recipe.images.max_pixels),
        weigh=run.shards.size_of,
        units=len(run.entries),
        config=run.recipe.engine,
        sees=witness(run) if run.engine.name == "ray" else (),
    )


def _read_ahead(max_pixels: int, _shard: int, entries: Sequence[ImageEntry], budget_bytes: int) -> list[Any]:
    """The pictures of a shard, for an engine that opens them apart from the model."""
    return read_ahead(entries, lambda entry: entry.drop or open_image(entry.path, max_pixels), budget_bytes)


class Annotator(ModelWorker):
    """Writes the parts of annotate."""

    def do(self, shard: int, entries: Sequence[ImageEntry], given: Sequence[Image | Drop | None] | None) -> None:
        """Annotations of one shard, and what was left out, into the run folder."""
        opened = dict(zip((entry.name for entry in entries), given or (), strict=False))
        made = annotate_shard(self.vlm, self.run, entries, opened=opened)
        write_part(self.run.stage_folder(STAGE), shard, *made, PseudoAnnotation)

    def is_done(self, shard: int) -> bool:
        """Whether the part is there and whole."""
        return is_whole(self.run.stage_folder(STAGE), shard, PseudoAnnotation)

    def files(self, shard: int) -> list[str]:
        """What `do` writes."""
        return names_of(self.run, self.run.stage_folder(STAGE), shard)


def _shard(run: Run, shard: int) -> tuple[list[Dropped], int]:
    """(dropped rows, rows that were asked for) of a shard that is written; a broken picture was not asked for."""
    folder = run.stage_folder(STAGE)
    dropped = [row for row in read_rows(dropped_path(folder, shard), Dropped) if row.id != row.image]
    return dropped, len(dropped) + len(read_rows(part_path(folder, shard), PseudoAnnotation))


def _lossy(run: Run) -> list[int]:
    """Shards with rows that a server left without an answer."""
    folder = run.stage_folder(STAGE)
    if not is_server(run.recipe.teacher):
        return []
    done = sorted(shards_done(folder, PseudoAnnotation))
    return [i for i in done if i < len(run.shards) and failures(read_rows(dropped_path(folder, i), Dropped))]


def annotate_inputs(run: Run) -> dict[str, str]:
    """Everything that the annotations depend on."""
    images = sha256_list([entry.id, entry.name, entry.drop is None] for entry in run.entries)
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
            | picture_settings(run)
        ),
    }


def _finish(run: Run, inputs: dict[str, str], by: Facts) -> None:
    folder = run.stage_folder(STAGE)
    reasons = count_reasons(each_dropped(folder))
    broken = {row.image for row in each_dropped(folder) if row.id == row.image}
    counts = {"images": len(run.entries) - len(broken), "annotated": count_rows(folder)}
    counts |= {"dropped": sum(reasons.values())} | poisoned_counts(folder)
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.annotate,
        seed=run.recipe.seed,
        counts=counts | usage_counts(run, STAGE) | memory_counts(by),
        packages=("torch", "transformers", "openai"),
        used=by.used,
    )
    say(f"annotate: {counts['annotated']} question-answer pairs on {counts['images']} images, {_dropped_line(reasons)}")


def _dropped_line(reasons: dict[str, int]) -> str:
    listed = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
    return f"{sum(reasons.values())} dropped" + (f" ({listed})" if listed else "")


def annotate_shard(
    teacher: VLM,
    run: Run,
    entries: Sequence[ImageEntry],
    again: Again | None = None,
    opened: Mapping[str, Image | Drop | None] | None = None,
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """Annotations of one shard, and what was left out. Pictures that are not `opened` before are opened in time."""
    rows: list[PseudoAnnotation] = []
    dropped: list[Dropped] = []

    def picture(entry: ImageEntry) -> Image | Drop:
        known = opened.get(entry.name) if opened else None
        return known or entry.drop or open_image(entry.path, run.recipe.images.max_pixels)

    for some in groups(entries, picture):
        more, refused = annotate_pictures(teacher, run, some, again)
        rows += more
        dropped += refused
    return rows, dropped


def retry_shard(teacher: VLM, run: Run, shard: int) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """The whole shard, after what a server left without an answer was asked once more; the rest stays as it is."""
    folder = run.stage_folder(STAGE)
    rows = read_rows(part_path(folder, shard), PseudoAnnotation)
    dropped = read_rows(dropped_path(folder, shard), Dropped)
    lost = failures(dropped)
    again = Again(
        rows=frozenset(row.id for row in lost),
        kept=tuple(rows),
    )
    images = {row.image for row in lost}
    entries = [entry for entry in run.shards[shard] if entry.name in images]
    more, refused = annotate_shard(teacher, run, entries, again)
    order = {row_id(entry, n): i for i, (entry, n) in enumerate(_samples(run, run.shards[shard]))}
    return joined(rows, more, order), joined([row for row in dropped if row not in lost], refused, order)


def _samples(run: Run, entries: Sequence[ImageEntry]) -> Iterator[tuple[ImageEntry, int]]:
    return product(entries, range(run.recipe.annotate.samples_per_image))


def kind_of(annotation: str, kinds: int) -> int:
    """Which of the task's prompts an annotation answered, by its id: prompts take turns.

    >>> kind_of("0123456789abcdef-07", 5)
    2
    """
    return int(annotation.rpartition("-")[2]) % kinds


def annotate_pictures(
    teacher: VLM, run: Run, opened: Sequence[tuple[ImageEntry, Image | Drop]], again: Again | None = None
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """Annotations of the pictures that are in memory together."""
    config, task, seed = run.recipe.annotate, run.task, run.recipe.seed
    dropped = [left_out(entry.name, entry.name, image) for entry, image in opened if isinstance(image, Drop)]
    asked = [
        (entry, image, sample, annotation_request(image, entry.id, sample, task, config, seed))
        for entry, image in opened
        if not isinstance(image, Drop)
        for sample in range(config.samples_per_image)
        if again is None or row_id(entry, sample) in again.rows
    ]
    replies = teacher.answer([request for *_, request in asked])
    drafts = [Draft(entry, image, n, reply) for (entry, image, n, _), reply in zip(asked, replies, strict=True)]
    kept, refused = collect(drafts, task, teacher.name, again.kept if again else ())
    kept, unsure = sift(kept, vote(teacher, kept, run))
    return [row for row, _ in kept], dropped + unsure + refused


def sift(kept: Sequence[Noted], judged: Sequence[PseudoAnnotation | Drop]) -> tuple[list[Noted], list[Dropped]]:
    """Annotations with their pictures, less those of which a judgement says why they are left out."""
    pairs = list(zip(kept, judged, strict=True))
    dropped = [left_out(row.id, row.image, said) for (row, _), said in pairs if isinstance(said, Drop)]
    return [(said, image) for (_, image), said in pairs if not isinstance(said, Drop)], dropped


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


def vote(teacher: VLM, kept: Sequence[Noted], run: Run) -> list[PseudoAnnotation | Drop]:
    """The annotations with what the teacher says to its own questions: the first vote greedy, the others sampled."""
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
    replies, n = teacher.answer(requests), config.votes
    return [voted(row, replies[i * n : (i + 1) * n]) for i, (row, _) in enumerate(kept)]


def voted(row: PseudoAnnotation, replies: Sequence[Reply]) -> PseudoAnnotation | Drop:
    """The annotation with what the teacher said to its own question, or why it is left out.

    A row that a server left without one of its votes is dropped: a majority of fewer is another measure.
    """
    lost = next((reply.drop for reply in replies if reply.drop is not None), None)
    return lost or row.model_copy(update={"votes": tuple(reply.text for reply in replies)})
