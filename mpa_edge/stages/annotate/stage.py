"""Pseudo Annotator: the teacher writes questions and answers about unlabelled images, and answers its own questions.

Method: arXiv 2509.16633, section on the Pseudo Annotator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.config.recipe import Recipe
from mpa_edge.engines.job import Facts, Job
from mpa_edge.engines.retries import poisoned
from mpa_edge.errors import MpaError
from mpa_edge.images.cache import groups
from mpa_edge.images.folder import open_image
from mpa_edge.images.index import HELD_OUT, ImageEntry, Shards
from mpa_edge.metrics import without_tolerance
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json, sha256_list
from mpa_edge.runs.manifest import StageClock, finish, is_done
from mpa_edge.runs.parquet import count_reasons, count_rows, each_dropped, shards_done, write_part
from mpa_edge.stages.annotate.parsing import (
    STAGE,
    annotation_request,
    collect,
    dropped_row,
    slots,
    vote_requests,
    voted,
)
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.stages.shards import ShardWorker, ask_teacher, engine_of, open_ahead, poisoned_counts
from mpa_edge.stages.teacher import failures, image_settings, nothing_built_on, usage_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop, Dropped, PseudoAnnotation
from mpa_edge.vlm import load

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = 3


def run_annotate(run: Run, fresh: bool = False) -> None:
    """Write `1-annotate/`: for each shard of images a part with PseudoAnnotation rows, and what was dropped and why."""
    if run.recipe.silver:
        run.hold_out()
    folder, inputs, annotator = run.stage_folder(STAGE), annotate_inputs(run), Annotator(run, load)
    if not fresh and is_done(folder, inputs) and not (nothing_built_on(run, "identify") and annotator.may_add_rows()):
        say("annotate: already done, nothing changed")
        require_annotations(folder)
        return
    facts = annotate_shards(annotator, inputs, fresh)
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
        counts=counts | usage_counts(run, STAGE) | memory_counts(facts),
        packages=("torch", "transformers", "openai"),
        used=facts.used,
    )
    say(
        f"annotate: {counts['annotated']} question-answer pairs on {counts['images']} images, {counts['dropped']} "
        f"dropped{in_brackets(reasons)}"
    )
    require_annotations(folder)


def annotate_shards(annotator: Annotator, inputs: Mapping[str, str], fresh: bool) -> Facts:
    """Write the parts that are missing in the annotator's folder."""
    run, folder, stage, shards = annotator.run, annotator.folder, annotator.stage, range(len(annotator.shards))
    begin(stage, folder, inputs, fresh)
    run.remember_scan()
    clock, done = StageClock(folder), shards_done(folder, PseudoAnnotation)
    sizes, todo = {i: annotator.shards.size_of(i) for i in shards}, [i for i in shards if i not in done]
    job = Job(stage, annotator, folder, sizes, todo, run.recipe.engine)
    incomplete = annotator.incomplete(i for i in shards if i in done)
    with engine_of(run) as run_job:
        return ask_teacher(run, stage, job, run_job, lambda _shard: clock.tick(), incomplete)


def in_brackets(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts for the screen.

    >>> in_brackets({"duplicate question": 2, "no answer": 1}), in_brackets({})
    (' (duplicate question: 2, no answer: 1)', '')
    """
    listed = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
    return f" ({listed})" if listed else ""


def require_annotations(folder: Path) -> None:
    """Raise MpaError, after three examples, where the teacher wrote no annotation that can be used."""
    if count_rows(folder):
        return
    for row in islice((row for row in each_dropped(folder) if row.id != row.image), EXAMPLES):
        say(f"  {row.image}: {row.reason}, {row.detail!r}")
    reasons = ", ".join(count_reasons(each_dropped(folder)))
    raise MpaError(
        f"annotate: not one question with an answer ({reasons}): use images that can be read and a teacher that "
        f"follows the prompts, then rerun with --fresh"
    )


class Annotator(ShardWorker):
    """Writes the parts of annotate."""

    record = PseudoAnnotation
    stage = STAGE

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.run.stage_folder(self.stage)

    @property
    def recipe(self) -> Recipe:
        """How the teacher is asked."""
        return self.run.recipe

    @property
    def shards(self) -> Shards:
        """The images."""
        return self.run.shards

    def may_add_rows(self) -> bool:
        """Whether rows are missing in a finished folder that another attempt may get."""
        return bool(poisoned(self.folder) or self.incomplete(range(len(self.shards))))

    @property
    def batch_size(self) -> int:
        """Largest batch of the teacher."""
        return self.run.recipe.annotate.batch_size

    def item(self, shard: int) -> list[ImageEntry]:
        """The images of a shard, with whole paths."""
        return [replace(entry, root=entry.root.absolute()) for entry in self.shards[shard]]

    def read_ahead(self, _shard: int, item: Sequence[ImageEntry], budget_bytes: int) -> dict[str, Image]:
        """Decoded images of a shard by name, as many as fit."""
        opened = open_ahead(item, self._open, budget_bytes)
        return {entry.name: image for entry, image in opened.items()}

    def _open(self, entry: ImageEntry) -> Image | Drop:
        return entry.drop or open_image(entry.path, self.run.recipe.images.max_pixels)

    def do(self, shard: int, item: Sequence[ImageEntry], images: Mapping[str, Image] | None = None) -> None:
        """Annotate the images of a shard and write its part.

        A part that is there already is completed: only rows that the teacher's server left without an answer are
        asked for again.
        """
        images, rows, dropped, wanted = images or {}, self.rows(shard), self.dropped(shard), None
        entries = list(item)
        if completes := self.is_done(shard):
            lost = failures(dropped)
            wanted, names = {row.id for row in lost}, {row.image for row in lost}
            entries = [entry for entry in entries if entry.name in names]
            dropped = [row for row in dropped if row.id not in wanted]
        known = tuple(rows)
        for opened in groups(entries, lambda entry: images.get(entry.name) or self._open(entry)):
            more, refused = self.annotate(opened, wanted, known)
            rows += more
            dropped += refused
        if completes:  # in the order in which one attempt would have written them
            order = {one.row_id: i for i, one in enumerate(slots(item, self.recipe.annotate))}
            rows.sort(key=lambda row: order[row.id])
            dropped.sort(key=lambda row: order.get(row.id, len(order)))
        write_part(self.folder, shard, rows, dropped, PseudoAnnotation)

    def annotate(
        self,
        opened: Sequence[tuple[ImageEntry, Image | Drop]],
        wanted: Collection[str] | None = None,
        known: Sequence[PseudoAnnotation] = (),
    ) -> tuple[list[PseudoAnnotation], list[Dropped]]:
        """(annotations, dropped rows) of images that are in memory together.

        `wanted` are the ids of the rows to ask for, None for all; `known` are annotations of these images from before.
        """
        config, task, seed = self.recipe.annotate, self.run.task, self.recipe.seed
        broken = [dropped_row(entry.name, entry.name, image) for entry, image in opened if isinstance(image, Drop)]
        images = {entry.id: image for entry, image in opened if not isinstance(image, Drop)}
        asked = [
            slot
            for slot in slots([entry for entry, image in opened if not isinstance(image, Drop)], config)
            if wanted is None or slot.row_id in wanted
        ]
        requests = [
            annotation_request(images[one.entry.id], one.entry.id, one.number, task, config, seed) for one in asked
        ]
        rows, refused = collect(asked, self.vlm.answer(requests), task, self.vlm.name, known)
        requests = [one for row in rows for one in vote_requests(row, images[row.image_id], task, self.recipe)]
        votes, n = self.vlm.answer(requests), config.votes
        judged = [voted(row, votes[i * n : (i + 1) * n]) for i, row in enumerate(rows)]
        kept = [row for row in judged if not isinstance(row, Drop)]
        unsure = [
            dropped_row(row.id, row.image, drop)
            for row, drop in zip(rows, judged, strict=True)
            if isinstance(drop, Drop)
        ]
        return kept, broken + unsure + refused


def annotate_inputs(run: Run) -> dict[str, str]:
    """Hashes of everything that the annotations depend on."""
    # which images evaluation asks about may change: what was annotated is kept, and level learns nothing from it
    images = sha256_list(
        [entry.id, entry.name, entry.drop is None or entry.drop.reason == HELD_OUT] for entry in run.entries
    )
    return {"images": images} | annotate_settings(run)


def annotate_settings(run: Run, recipe: Recipe | None = None) -> dict[str, str]:
    """The same without the images; `recipe` says how the teacher is asked, None: the run's.

    The batch size is not part of it: it may change after a crash.
    """
    asked = (recipe or run.recipe).annotate
    config = {
        "annotate": asked.model_dump(exclude={"batch_size"}),
        "prompts": run.task.annotation_prompts,
        "answer": answer_prompt(run.task, "?"),
        "max_answer_words": run.task.max_answer_words,
        "vote_tokens": run.recipe.identify.max_new_tokens if asked.votes else 0,
        "seed": run.recipe.seed,
        "max_pixels": run.recipe.images.max_pixels,
    }
    if form := run.task.answer_form:
        config["form"] = without_tolerance(form)
    return {"teacher": run.teacher_fingerprint, "config": sha256_json(config | image_settings(run))}
