"""Pseudo Annotator: the teacher writes questions and answers about unlabelled images, and answers its own questions.

Method: arXiv 2509.16633, section on the Pseudo Annotator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from PIL.Image import Image

from mpa_edge.images import ImageEntry, open_image
from mpa_edge.metrics import get_metric
from mpa_edge.pictures import groups
from mpa_edge.progress import progress, say
from mpa_edge.recipe import AnnotateConfig
from mpa_edge.rows import (
    count_reasons,
    count_rows,
    dropped_path,
    each_dropped,
    part_path,
    read_rows,
    shards_done,
    write_part,
)
from mpa_edge.runs import StageClock, finish, is_done, sha256_json, sha256_list
from mpa_edge.stages.filters import blind, guessed, repeats, voted
from mpa_edge.stages.run import Run, begin, device_used, memory_counts, stable_seed
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
from mpa_edge.tasks.parse import parse_annotation
from mpa_edge.types import VLM, Drop, Dropped, PseudoAnnotation, Reply, Request
from mpa_edge.vlm import load
from mpa_edge.vlm.server_reference import is_server

STAGE = "annotate"
Noted = tuple[PseudoAnnotation, Image]


@dataclass(frozen=True)
class Again:
    """What is asked once more of a shard that has rows already."""

    rows: frozenset[str]
    """Ids of the annotations that are missing."""
    kept: tuple[PseudoAnnotation, ...]
    """Those that are there."""


@dataclass(frozen=True)
class Draft:
    """One annotation that was asked for: which image, which of its samples, and what came back."""

    entry: ImageEntry
    image: Image
    sample: int
    reply: Reply


def run_annotate(run: Run, fresh: bool = False) -> None:
    """Write `1-annotate/`: one part of PseudoAnnotation rows a shard of images, with what was dropped and why."""
    folder = run.stage_folder(STAGE)
    inputs = annotate_inputs(run)
    if not fresh and is_done(folder, inputs) and not (_lossy(run) and nothing_built_on(run, "identify")):
        say("annotate: done before, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    run.remember_entries()
    clock, done = StageClock(folder), shards_done(folder, PseudoAnnotation)
    todo = [i for i in range(len(run.shards)) if i not in done]
    lossy = _lossy(run)
    needed = bool(todo) or any(is_spoilt(run, *_shard(run, i)) for i in lossy)
    teacher = if_there(lambda: _load(run, needed), needed) if todo or lossy else None
    if teacher is not None:
        check_card(run, teacher, write=True)
        with account(run, STAGE, teacher) as save:
            _ask_shards(teacher, run, todo, lambda: (clock.tick(), save()))
        teacher.close()
    _finish(run, inputs)


def _load(run: Run, needed: bool) -> VLM:
    recipe = run.recipe
    return load(
        recipe.teacher, name="teacher", device=recipe.device, threads=recipe.threads,
        batch_size=recipe.annotate.batch_size, **teacher_options(run, patient=needed),
    )  # fmt: skip


def _ask_shards(teacher: VLM, run: Run, todo: Sequence[int], written: Callable[[], object]) -> None:
    """The shards that are not done, then once more what a server left without an answer."""
    with progress("annotate", len(run.entries), len(run.entries) - sum(len(run.shards[i]) for i in todo)) as advance:
        for i in todo:
            _write(run, i, annotate_shard(teacher, run, run.shards[i]), written)
            advance(len(run.shards[i]))
    for i in _lossy(run):
        _write(run, i, retry_shard(teacher, run, i), written, again=True)


def _write(
    run: Run, shard: int, made: tuple[list[PseudoAnnotation], list[Dropped]], written: Callable[[], object],
    again: bool = False,
) -> None:  # fmt: skip
    """Write a shard, also one that a server spoilt: only what is missing is asked again."""
    write_part(run.stage_folder(STAGE), shard, *made, PseudoAnnotation)
    written()
    require_answers(run, *_shard(run, shard), again)


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
                "annotate": run.recipe.annotate.settings({"batch_size"}),
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


def _finish(run: Run, inputs: dict[str, str]) -> None:
    folder = run.stage_folder(STAGE)
    reasons = count_reasons(each_dropped(folder))
    broken = {row.image for row in each_dropped(folder) if row.id == row.image}
    counts = {"images": len(run.entries) - len(broken), "annotated": count_rows(folder)}
    counts |= {"dropped": sum(reasons.values())}
    finish(
        folder, STAGE, inputs=inputs, config=run.recipe.annotate, seed=run.recipe.seed,
        counts=counts | usage_counts(run, STAGE) | memory_counts(), packages=("torch", "transformers", "openai"),
        used=device_used(run.recipe.device),
    )  # fmt: skip
    say(f"annotate: {counts['annotated']} question-answer pairs on {counts['images']} images, {_dropped_line(reasons)}")


def _dropped_line(reasons: dict[str, int]) -> str:
    listed = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
    return f"{sum(reasons.values())} dropped" + (f" ({listed})" if listed else "")


def annotate_shard(
    teacher: VLM, run: Run, entries: Sequence[ImageEntry], again: Again | None = None
) -> tuple[list[PseudoAnnotation], list[Dropped]]:
    """Annotations of one shard, and what was left out."""
    rows: list[PseudoAnnotation] = []
    dropped: list[Dropped] = []
    for opened in groups(entries, lambda entry: entry.drop or open_image(entry.path, run.recipe.images.max_pixels)):
        more, refused = annotate_pictures(teacher, run, opened, again)
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


def row_id(entry: ImageEntry, sample: int) -> str:
    """Id of one annotation of an image."""
    return f"{entry.id}-{sample:02d}"


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
    dropped = [_dropped(entry.name, entry.name, image) for entry, image in opened if isinstance(image, Drop)]
    asked = [
        (entry, image, sample, annotation_request(image, entry.id, sample, task, config, seed))
        for entry, image in opened
        if not isinstance(image, Drop)
        for sample in range(config.samples_per_image)
        if again is None or row_id(entry, sample) in again.rows
    ]
    replies = teacher.answer([request for *_, request in asked])
    drafts = [Draft(entry, image, n, reply) for (entry, image, n, _), reply in zip(asked, replies, strict=True)]
    kept, refused = collect(drafts, task, teacher.name, again.kept if again else (), config.near_duplicates)
    kept, unsure = sift(kept, vote(teacher, kept, run))
    kept, unseen = sift(kept, look(teacher, kept, run) if config.blind_filter else [row for row, _ in kept])
    return [row for row, _ in kept], dropped + unsure + unseen + refused


def sift(kept: Sequence[Noted], judged: Sequence[PseudoAnnotation | Drop]) -> tuple[list[Noted], list[Dropped]]:
    """Annotations with their pictures, less those of which a judgement says why they are left out."""
    pairs = list(zip(kept, judged, strict=True))
    dropped = [_dropped(row.id, row.image, said) for (row, _), said in pairs if isinstance(said, Drop)]
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


def collect(
    drafts: Sequence[Draft], task: Task, teacher: str, known: Sequence[PseudoAnnotation] = (), alike: float = 1.0
) -> tuple[list[Noted], list[Dropped]]:
    """Parse what the teacher wrote; cut, unreadable and repeated annotations are dropped with their reason.

    `known` are there already; `alike` says from where on two questions about a picture are one.
    """
    kept: list[Noted] = []
    dropped: list[Dropped] = []
    seen: dict[str, list[tuple[str, str]]] = {}
    for one in known:
        seen.setdefault(one.image_id, []).append((one.question, one.answer))
    for draft in drafts:
        this, name = row_id(draft.entry, draft.sample), draft.entry.name
        parsed = _parsed(draft.reply, task)
        if isinstance(parsed, Drop):
            dropped.append(_dropped(this, name, parsed))
            continue
        question, answer = parsed
        earlier = seen.setdefault(draft.entry.id, [])
        if repeats(question, answer, earlier, alike):
            dropped.append(_dropped(this, name, Drop("duplicate question", question)))
            continue
        earlier.append((question, answer))
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
            confidence=not number and config.min_confidence > 0,
        )
        for row, image in kept
        for number in range(config.votes)
    ]
    replies, n = teacher.answer(requests), config.votes
    return [voted(row, replies[i * n : (i + 1) * n], config) for i, (row, _) in enumerate(kept)]


def look(teacher: VLM, kept: Sequence[Noted], run: Run) -> list[PseudoAnnotation | Drop]:
    """The annotations that the teacher cannot answer about a grey picture."""
    agrees, limit = get_metric(run.task.metric).agrees, run.recipe.identify.max_new_tokens
    grey = {image.size: blind(image) for _, image in kept}
    replies = teacher.answer(
        [Request(grey[image.size], answer_prompt(run.task, row.question), limit) for row, image in kept]
    )
    return [guessed(row, reply, agrees) or row for (row, _), reply in zip(kept, replies, strict=True)]


def _dropped(this: str, name: str, drop: Drop) -> Dropped:
    return Dropped(id=this, image=name, stage=STAGE, reason=drop.reason, detail=drop.detail)
