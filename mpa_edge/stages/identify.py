"""Parity Identifier: what the teacher answers the same way twice and the student gets wrong is the gap.

Method: arXiv 2509.16633, section on the Parity Identifier. Agreement is the task's lenient metric, never substring
containment. The student sees only what the teacher verified, and one model is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mpa_edge.engines import Facts, Job, Outcome, Worker, merged
from mpa_edge.engines.local import run_local
from mpa_edge.engines.retries import poisoned
from mpa_edge.errors import MpaError
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import dropped_path, each_row, is_whole, part_path, read_rows, shards_done, write_part
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.stages.shards import (
    Do,
    ModelWorker,
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
    if_there,
    is_spoilt,
    joined,
    nothing_built_on,
    require_answers,
    teacher_options,
    usage_counts,
)
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import VLM, Drop, Dropped, ParityRecord, PseudoAnnotation, Reply, Request, Verdict
from mpa_edge.vlm import load
from mpa_edge.vlm.openai.reference import is_server

if TYPE_CHECKING:
    from PIL.Image import Image

STAGE = "identify"
TEACHER_FOLDER = "teacher"
TEACHER_TITLE = "identify (teacher)"
VERDICTS = ("gap", "parity", "unverified")
UNVERIFIED = "not confirmed by the teacher"
Agrees = Callable[[str, str], bool]


class TeacherAnswers(BaseModel):
    """What the teacher said to one pseudo question."""

    id: str
    """Id of the pseudo annotation."""
    answers: tuple[str, ...]
    """Its own answers, greedy first."""


def run_identify(run: Run, fresh: bool = False) -> None:
    """Write `2-identify/`: one ParityRecord a pseudo annotation."""
    folder = run.stage_folder(STAGE)
    inputs = identify_inputs(run)
    missing = nothing_built_on(run, "level") and poisoned(folder)
    if not fresh and is_done(folder, inputs) and not missing:
        say("identify: done before, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock, source = StageClock(folder), run.stage_folder("annotate")
    shards = sorted(shards_done(source, PseudoAnnotation))
    by = _passes(run, shards, clock)
    found: Counter[str] = Counter(row.verdict for row in each_row(folder, ParityRecord))
    counts = {name: found[name] for name in VERDICTS} | poisoned_counts(folder)
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.identify,
        seed=run.recipe.seed,
        counts=counts | usage_counts(run, STAGE) | memory_counts(by),
        packages=("torch", "transformers", "openai"),
        used=by.used,
    )
    say(f"identify: {counts['gap']} gap, {counts['parity']} parity, {counts['unverified']} unverified")


def _passes(run: Run, shards: Sequence[int], clock: StageClock) -> Facts:
    """The teacher, where annotate took no votes, then the student; a shard that the first sets aside waits for it."""
    with engine_of(run) as do:
        asked = _teacher_pass(run, shards, clock, do) if run.recipe.annotate.votes == 0 else Outcome()
        aside = {one.shard for one in asked.poisoned}
        answered = _student_pass(run, [i for i in shards if i not in aside], clock, do)
    return merged(merged(answered.facts, asked.facts), Facts() if run.engine.name == "ray" else facts(run))


def identify_inputs(run: Run) -> dict[str, str]:
    """Everything that the verdicts depend on."""
    config = {"max_new_tokens": run.recipe.identify.max_new_tokens, "answer": answer_prompt(run.task, "?")}
    made_by = {"annotate": run.outputs_of("annotate"), "student": run.student_fingerprint}
    return made_by | {"config": sha256_json(config)}


def verdict(pseudo: str, teacher: Sequence[str], student: str | None, agrees: Agrees) -> Verdict:
    """gap, parity, or unverified where the teacher's own answers do not confirm its annotation by majority.

    >>> same = lambda a, b: a == b
    >>> verdict("7", ["7"], "9", same), verdict("7", ["7"], "7", same), verdict("7", ["8"], None, same)
    ('gap', 'parity', 'unverified')
    """
    if not confirmed(pseudo, teacher, agrees):
        return "unverified"
    return "parity" if student is not None and agrees(student, pseudo) else "gap"


def confirmed(pseudo: str, teacher: Sequence[str], agrees: Agrees) -> bool:
    """Whether more than half of the teacher's answers agree with its annotation.

    >>> confirmed("7", ["7", "8"], lambda a, b: a == b)
    False
    """
    return 2 * sum(agrees(answer, pseudo) for answer in teacher) > len(teacher)


def _load(run: Run, name: str, patient: bool = True, loader: Callable[..., VLM] | None = None) -> VLM:
    recipe, teaches = run.recipe, name == "teacher"
    reference, options = (recipe.teacher, teacher_options(run, patient)) if teaches else (recipe.student, {})
    return (loader or load)(
        reference,
        name=name,
        device=recipe.device,
        threads=recipe.threads,
        batch_size=recipe.identify.batch_size,
        **options,
    )


def _job(
    run: Run,
    title: str,
    shards: Sequence[int],
    todo: Sequence[int],
    make: Callable[..., Worker],
    written: Callable[[int], object],
) -> Job:
    return Job(
        title=title,
        folder=run.stage_folder(STAGE),
        total=len(shards),
        todo=todo,
        make=make,
        written=written,
        entries=lambda _: None,
        read=partial(_read_ahead, portable(run)),
        needs=partial(_needed, run),
        sees=witness(run) if run.engine.name == "ray" else (),
        config=run.recipe.engine,
    )


def _needed(run: Run, shard: int) -> list[str]:
    """What is read for the verdicts of a shard."""
    folders = (run.stage_folder("annotate"), run.stage_folder(STAGE) / TEACHER_FOLDER)
    names = [name for folder in folders for name in names_of(run, folder, shard)]
    return [name for name in names if (run.folder / name).is_file()]


def _read_ahead(run: Run, shard: int, _entries: None, budget_bytes: int) -> dict[str, Image]:
    """The pictures of a shard by name, for an engine that opens them apart from the model."""
    names = list(dict.fromkeys(row.image for row in _annotations(run, shard)))
    opened = read_ahead(names, lambda name: _open(run, name), budget_bytes)
    return {name: image for name, image in zip(names, opened, strict=True) if image is not None}


def ask(vlm: VLM, run: Run, rows: Sequence[PseudoAnnotation], known: Mapping[str, Image] | None = None) -> list[Reply]:
    """A model's greedy answers to pseudo questions. Pictures that are not `known` by name are opened in time."""
    said: dict[str, Reply] = {}

    def picture(name: str) -> Image:
        return (known or {}).get(name) or _open(run, name)

    for opened in groups(dict.fromkeys(row.image for row in rows), picture):
        images = {name: image for name, image in opened if not isinstance(image, Drop)}
        asked = [row for row in rows if row.image in images]
        replies = vlm.answer([answer_request(images[row.image], row.question, run) for row in asked])
        said |= {row.id: reply for row, reply in zip(asked, replies, strict=True)}
    return [said[row.id] for row in rows]


def _open(run: Run, name: str) -> Image:
    image = open_image(run.images_folder / name, run.recipe.images.max_pixels)
    if isinstance(image, Drop):
        raise MpaError(
            f"{run.images_folder / name} was readable before and is not now ({image.reason}): put it back, "
            f"or annotate again with --fresh"
        )
    return image


def answer_request(image: Image, question: str, run: Run) -> Request:
    """The one way in which a short answer is asked for: here, in evaluation and in every export."""
    prompt = answer_prompt(run.task, question)
    return Request(image=image, prompt=prompt, max_new_tokens=run.recipe.identify.max_new_tokens)


def _teacher_pass(run: Run, shards: Sequence[int], clock: StageClock, do: Do) -> Outcome:
    """Where annotate took no votes the teacher answers now, for all shards, before the student is loaded."""
    folder = make_folder(run.stage_folder(STAGE) / TEACHER_FOLDER)
    judged = shards_done(run.stage_folder(STAGE), ParityRecord)
    todo = [i for i in shards if i not in judged and (not part_path(folder, i).is_file() or _lost(folder, i))]
    if not todo:
        return Outcome()
    if stays_here(run, STAGE, asks_server=is_server(run.recipe.teacher)):
        return _teacher_here(run, shards, todo, clock)
    make = partial(_teacher_worker, portable(run), load)
    return do(_job(run, TEACHER_TITLE, shards, todo, make, lambda _: clock.tick()))


def _teacher_here(run: Run, shards: Sequence[int], todo: Sequence[int], clock: StageClock) -> Outcome:
    """The shards that are not done, then once more what a server left without an answer."""
    folder = run.stage_folder(STAGE) / TEACHER_FOLDER
    spoilt = (is_spoilt(run, _lost(folder, i), len(_annotations(run, i))) for i in todo)
    needed = any(not part_path(folder, i).is_file() for i in todo) or any(spoilt)
    teacher = if_there(lambda: _load(run, "teacher", patient=needed), needed)
    if teacher is None:
        return Outcome()
    worker = TeacherWorker(run, teacher)
    check_card(run, teacher, write=False)
    with account(run, STAGE, teacher) as save:

        def written(shard: int, again: bool = False) -> None:
            clock.tick()
            save()
            require_answers(run, _lost(folder, shard), len(_annotations(run, shard)), again)

        outcome = run_local(_job(run, TEACHER_TITLE, shards, todo, lambda: worker, written), worker)
        for i in todo:
            if _lost(folder, i):
                worker.do(i)
                written(i, again=True)
    teacher.close()
    return outcome


def _teacher_worker(run: Run, loader: Callable[..., VLM], folder: Path | None = None) -> TeacherWorker:
    run = replace(run, folder=folder or run.folder)
    return TeacherWorker(run, _load(run, "teacher", loader=loader))


class TeacherWorker(ModelWorker):
    """Writes the teacher's answers, for the student pass."""

    def do(self, shard: int, entries: None = None, given: Mapping[str, Image] | None = None) -> None:
        """The teacher's answers to one shard; what is there stays, what a server did not answer is a dropped row."""
        run, rows = self.run, _annotations(self.run, shard)
        folder = run.stage_folder(STAGE) / TEACHER_FOLDER
        path = part_path(folder, shard)
        known = read_rows(path, TeacherAnswers) if path.is_file() else []
        missing = [row for row in rows if row.id not in {said.id for said in known}]
        replies = list(zip(missing, ask(self.vlm, run, missing, given), strict=True))
        said = [TeacherAnswers(id=row.id, answers=(reply.text,)) for row, reply in replies if reply.drop is None]
        dropped = [
            Dropped(id=row.id, image=row.image, stage=STAGE, reason=reply.drop.reason, detail=reply.drop.detail)
            for row, reply in replies
            if reply.drop is not None
        ]
        order = {row.id: i for i, row in enumerate(rows)}
        write_part(folder, shard, joined(known, said, order), dropped, TeacherAnswers)

    def is_done(self, shard: int) -> bool:
        """Whether the answers are there and whole."""
        return is_whole(self.run.stage_folder(STAGE) / TEACHER_FOLDER, shard, TeacherAnswers)

    def files(self, shard: int) -> list[str]:
        """What `do` writes."""
        return names_of(self.run, self.run.stage_folder(STAGE) / TEACHER_FOLDER, shard)


def _lost(folder: Path, shard: int) -> list[Dropped]:
    """What the teacher's server left without an answer."""
    path = dropped_path(folder, shard)
    return read_rows(path, Dropped) if path.is_file() else []


def _annotations(run: Run, shard: int) -> list[PseudoAnnotation]:
    return read_rows(part_path(run.stage_folder("annotate"), shard), PseudoAnnotation)


def _teacher_answers(folder: Path, shard: int, rows: Sequence[PseudoAnnotation]) -> dict[str, tuple[str, ...]]:
    """Id -> the votes of annotate, or what the teacher pass wrote."""
    path = part_path(folder / TEACHER_FOLDER, shard)
    if not path.is_file():
        return {row.id: row.votes for row in rows}
    return {answers.id: answers.answers for answers in read_rows(path, TeacherAnswers)}


def _student_pass(run: Run, shards: Sequence[int], clock: StageClock, do: Do) -> Outcome:
    done = shards_done(run.stage_folder(STAGE), ParityRecord)
    todo = [i for i in shards if i not in done]
    make = partial(_student_worker, portable(run) if run.engine.name == "ray" else run, load)
    return do(_job(run, STAGE, shards, todo, make, lambda _: clock.tick()))


def _student_worker(run: Run, loader: Callable[..., VLM], folder: Path | None = None) -> StudentWorker:
    run = replace(run, folder=folder or run.folder)
    return StudentWorker(run, _load(run, "student", loader=loader))


class StudentWorker(ModelWorker):
    """Writes the verdicts."""

    def do(self, shard: int, entries: None = None, given: Mapping[str, Image] | None = None) -> None:
        """What the student says to one shard, judged."""
        run, rows = self.run, _annotations(self.run, shard)
        folder = run.stage_folder(STAGE)
        said = _teacher_answers(folder, shard, rows)
        answered = [row for row in rows if row.id in said]
        judged = judge(self.vlm, run, answered, [said[row.id] for row in answered], given)
        dropped = [d for row in judged for d in unconfirmed(row)] + _lost(folder / TEACHER_FOLDER, shard)
        write_part(folder, shard, judged, dropped, ParityRecord)

    def is_done(self, shard: int) -> bool:
        """Whether the verdicts are there and whole."""
        return is_whole(self.run.stage_folder(STAGE), shard, ParityRecord)

    def files(self, shard: int) -> list[str]:
        """What `do` writes."""
        return names_of(self.run, self.run.stage_folder(STAGE), shard)


def unconfirmed(row: ParityRecord) -> list[Dropped]:
    """The dropped row of an unverified record: it is kept among the verdicts, and counted as left out."""
    if row.verdict != "unverified":
        return []
    detail = f"wrote {row.answer!r}, answered {row.teacher_answer!r}"
    return [Dropped(id=row.id, image=row.image, stage=STAGE, reason=UNVERIFIED, detail=detail)]


def judge(
    student: VLM,
    run: Run,
    rows: Sequence[PseudoAnnotation],
    teacher: Sequence[tuple[str, ...]],
    known: Mapping[str, Image] | None = None,
) -> list[ParityRecord]:
    """Verdicts of one shard; the student is asked only what the teacher confirmed."""
    agrees = get_metric(run.task.metric).agrees
    asked = [row for row, said in zip(rows, teacher, strict=True) if confirmed(row.answer, said, agrees)]
    answers = {row.id: reply.text for row, reply in zip(asked, ask(student, run, asked, known), strict=True)}
    return [
        ParityRecord(
            **row.model_dump(include={"id", "image_id", "image", "question", "answer"}),
            teacher_answer=said[0],
            student_answer=answers.get(row.id),
            verdict=verdict(row.answer, said, answers.get(row.id), agrees),
        )
        for row, said in zip(rows, teacher, strict=True)
    ]
