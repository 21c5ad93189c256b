"""Parity Identifier: what the teacher answers the same way twice and the student gets wrong is the gap.

Method: arXiv 2509.16633, section on the Parity Identifier. Agreement is the task's lenient metric on canonical
answers, never substring containment. The student is asked only what the teacher confirmed, and one model is in memory
at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mpa_edge.engines.job import Facts, Job, merged
from mpa_edge.engines.retries import poisoned
from mpa_edge.errors import MpaError
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import open_image
from mpa_edge.metrics import get_metric
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import each_row, part_path, read_rows, shards_done, write_part
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.stages.shards import ShardWorker, ask_teacher, engine_of, files_of, open_ahead, poisoned_counts
from mpa_edge.stages.teacher import nothing_built_on, usage_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.tasks.parse import in_form
from mpa_edge.types import VLM, Drop, Dropped, ParityRecord, PseudoAnnotation, Reply, Request, Verdict
from mpa_edge.vlm import load

if TYPE_CHECKING:
    from PIL.Image import Image

STAGE = "identify"
VERDICTS = ("gap", "parity", "unverified")
UNVERIFIED = "not confirmed by the teacher"
EXAMPLES = 3
Agrees = Callable[[str, str], bool]


class TeacherAnswers(BaseModel):
    """The teacher's answers to one pseudo question."""

    id: str
    """Id of the pseudo annotation."""
    answers: tuple[str, ...]
    """Greedy first."""


def run_identify(run: Run, fresh: bool = False) -> None:
    """Write `2-identify/`: one ParityRecord for each pseudo annotation.

    The student answers each question that the teacher confirmed. Where annotate took no votes, the teacher first
    answers all of them; the student waits for a shard that this leaves out.
    """
    folder, inputs = run.stage_folder(STAGE), identify_inputs(run)
    if not fresh and is_done(folder, inputs) and not (nothing_built_on(run, "level") and poisoned(folder)):
        say("identify: already done, nothing changed")
        require_verified(folder)
        return
    begin(STAGE, folder, inputs, fresh)
    clock, facts = StageClock(folder), Facts()
    shards = sorted(shards_done(run.stage_folder("annotate"), PseudoAnnotation))
    judged = shards_done(folder, ParityRecord)
    todo = [i for i in shards if i not in judged]
    with engine_of(run) as run_job:

        def job(title: str, worker: ShardWorker, todo: Sequence[int]) -> Job:
            return Job(title, worker, folder, dict.fromkeys(shards, 1), todo, run.recipe.engine)

        if run.recipe.annotate.votes == 0:
            confirmer = Confirmer(run, load)
            answered = shards_done(make_folder(confirmer.folder), TeacherAnswers)
            first = job("identify (teacher)", confirmer, [i for i in todo if i not in answered])
            incomplete = confirmer.incomplete(i for i in todo if i in answered)
            facts = ask_teacher(run, STAGE, first, run_job, lambda _shard: clock.tick(), incomplete)
            todo = [i for i in todo if confirmer.is_done(i)]
        facts = merged(run_job(job(STAGE, Judge(run, load), todo), lambda _shard: clock.tick()), facts)
    found: Counter[str] = Counter(row.verdict for row in each_row(folder, ParityRecord))
    counts = {name: found[name] for name in VERDICTS} | poisoned_counts(folder)
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.identify,
        seed=run.recipe.seed,
        counts=counts | usage_counts(run, STAGE) | memory_counts(facts),
        packages=("torch", "transformers", "openai"),
        used=facts.used,
    )
    say(f"identify: {counts['gap']} gap, {counts['parity']} parity, {counts['unverified']} unverified")
    require_verified(folder)


def require_verified(folder: Path) -> None:
    """Raise MpaError, after three examples, where the teacher confirmed none of its annotations."""
    if all(row.verdict == "unverified" for row in each_row(folder, ParityRecord)):
        rows = list(islice(each_row(folder, ParityRecord), EXAMPLES))
        for row in rows:
            say(f"  {row.image}: {row.question!r}, first {row.answer!r}, then {row.teacher_answer!r}")
        raise MpaError(
            "identify: the teacher confirmed none of its own answers, so nothing is left to train on: see that it gets "
            "the images and answers in a few words, or use a larger one, then rerun annotate with --fresh"
        )


class AnnotationWorker(ShardWorker):
    """Asks a model about the annotations of a shard."""

    def annotations(self, shard: int) -> list[PseudoAnnotation]:
        """What annotate wrote for a shard."""
        return read_rows(part_path(self.run.stage_folder("annotate"), shard), PseudoAnnotation)

    def inputs(self, shard: int) -> list[str]:
        """The part of annotate, and the teacher's answers where there are some."""
        folders = (self.run.stage_folder("annotate"), teacher_folder(self.run))
        names = [name for folder in folders for name in files_of(self.run, folder, shard)]
        return [name for name in names if (self.run.folder / name).is_file()]

    def read_ahead(self, shard: int, _item: None, budget_bytes: int) -> dict[str, Image]:
        """Decoded images of a shard by name, as many as fit."""
        names = dict.fromkeys(row.image for row in self.annotations(shard))
        return open_ahead(names, lambda name: open_again(self.run, name), budget_bytes)


class Confirmer(AnnotationWorker):
    """Writes the teacher's own answers, where annotate took no votes."""

    record = TeacherAnswers

    @property
    def folder(self) -> Path:
        """Where the answers are."""
        return teacher_folder(self.run)

    def do(self, shard: int, _item: None = None, images: Mapping[str, Image] | None = None) -> None:
        """Answer one shard. Answers that are there already stay; what a server does not answer is a dropped row."""
        rows, known = self.annotations(shard), {row.id: row for row in self.rows(shard)}
        missing = [row for row in rows if row.id not in known]
        dropped = []
        for row, reply in zip(missing, ask(self.vlm, self.run, missing, images), strict=True):
            if reply.drop is None:
                known[row.id] = TeacherAnswers(id=row.id, answers=(reply.text,))
            else:
                dropped.append(dropped_row(row, reply.drop))
        answers = [known[row.id] for row in rows if row.id in known]
        write_part(self.folder, shard, answers, dropped, TeacherAnswers)


class Judge(AnnotationWorker):
    """Asks the student, and writes the verdicts."""

    model = "student"
    record = ParityRecord

    @property
    def folder(self) -> Path:
        """Where the verdicts are."""
        return self.run.stage_folder(STAGE)

    def do(self, shard: int, _item: None = None, images: Mapping[str, Image] | None = None) -> None:
        """Judge one shard. An unverified row is kept among the verdicts, and counted as dropped."""
        rows, teacher = self.annotations(shard), Confirmer(self.run, self.loader)
        if teacher.is_done(shard):
            said = {row.id: row.answers for row in teacher.rows(shard)}
        else:
            said = {row.id: row.votes for row in rows}
        answered = [row for row in rows if row.id in said]
        judged = judge(self.vlm, self.run, answered, [said[row.id] for row in answered], images)
        dropped = [
            dropped_row(row, Drop(UNVERIFIED, f"wrote {row.answer!r}, answered {row.teacher_answer!r}"))
            for row in judged
            if row.verdict == "unverified"
        ]
        write_part(self.folder, shard, judged, dropped + teacher.dropped(shard), ParityRecord)


def judge(
    student: VLM,
    run: Run,
    rows: Sequence[PseudoAnnotation],
    teacher: Sequence[tuple[str, ...]],
    images: Mapping[str, Image] | None = None,
) -> list[ParityRecord]:
    """Verdicts on annotations; `teacher` has the teacher's answers to each. The student is asked what they confirm."""
    agrees = agreement(run)
    asked = [row for row, said in zip(rows, teacher, strict=True) if confirmed(row.answer, said, agrees)]
    answers = {row.id: reply.text for row, reply in zip(asked, ask(student, run, asked, images), strict=True)}
    return [
        ParityRecord(
            **row.model_dump(include={"id", "image_id", "image", "question", "answer"}),
            teacher_answer=said[0],
            student_answer=answers.get(row.id),
            verdict=verdict(row.answer, said, answers.get(row.id), agrees),
        )
        for row, said in zip(rows, teacher, strict=True)
    ]


def ask(vlm: VLM, run: Run, rows: Sequence[PseudoAnnotation], images: Mapping[str, Image] | None = None) -> list[Reply]:
    """A model's greedy answers to pseudo questions. Images that are not in `images` by name are opened in time."""
    replies: dict[str, Reply] = {}
    known, names = images or {}, dict.fromkeys(row.image for row in rows)
    for group in groups(names, lambda name: known.get(name) or open_again(run, name)):
        opened = {name: image for name, image in group if not isinstance(image, Drop)}
        asked = [row for row in rows if row.image in opened]
        requests = [
            Request(opened[row.image], answer_prompt(run.task, row.question), run.recipe.identify.max_new_tokens)
            for row in asked
        ]
        replies |= zip((row.id for row in asked), vlm.answer(requests), strict=True)
    return [replies[row.id] for row in rows]


def open_again(run: Run, name: str) -> Image:
    """An image that annotate has opened before. Raises MpaError where that is not possible any more."""
    image = open_image(run.images_folder / name, run.recipe.images.max_pixels)
    if isinstance(image, Drop):
        raise MpaError(
            f"{run.images_folder / name} was readable before and is not now ({image.reason}): put it back, or rerun "
            f"annotate with --fresh"
        )
    return image


def teacher_folder(run: Run) -> Path:
    """Where the teacher's own answers are, if annotate took no votes."""
    return run.stage_folder(STAGE) / "teacher"


def dropped_row(row: PseudoAnnotation | ParityRecord, drop: Drop) -> Dropped:
    """The record of a row that is left out."""
    return Dropped(id=row.id, image=row.image, stage=STAGE, reason=drop.reason, detail=drop.detail)


def agreement(run: Run) -> Agrees:
    """Whether two answers say the same, whoever gave them: the task's lenient metric on their canonical forms."""
    agrees, form = get_metric(run.task.metric).agrees, run.task.answer_form
    return lambda one, other: agrees(in_form(one, form), in_form(other, form))


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


def identify_inputs(run: Run) -> dict[str, str]:
    """Hashes of everything that the verdicts depend on."""
    config = {"max_new_tokens": run.recipe.identify.max_new_tokens, "answer": answer_prompt(run.task, "?")}
    if not isinstance(run.recipe.task, str):  # the metric of a name is always the same
        config["metric"] = run.task.metric
    made_by = {"annotate": run.outputs_of("annotate"), "student": run.student_fingerprint}
    return made_by | {"config": sha256_json(config)}
