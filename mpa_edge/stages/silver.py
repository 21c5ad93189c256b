"""Held-out questions where nobody knows the answers: the teacher writes them, and is asked again several times.

What it does not say every time is left out. The rest is the silver set: with it, the agreement of other models with the
teacher can be measured, and never their accuracy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.review import place
from mpa_edge.images.index import ImageIndex, Shards
from mpa_edge.planning.counts import n_asked_about
from mpa_edge.progress import say
from mpa_edge.questions.own import TEACHER
from mpa_edge.runs.files import sha256_json, write_bytes
from mpa_edge.runs.manifest import SILVER_QUESTIONS, finish, is_done
from mpa_edge.runs.parquet import count_reasons, each_dropped, each_row
from mpa_edge.stages.annotate.parsing import dropped_row
from mpa_edge.stages.annotate.stage import Annotator, annotate_settings, annotate_shards, in_brackets
from mpa_edge.stages.identify import agreement
from mpa_edge.stages.run import Run, memory_counts
from mpa_edge.stages.shards import poisoned_counts
from mpa_edge.stages.teacher import nothing_built_on, usage_counts
from mpa_edge.types import Drop, Dropped, PseudoAnnotation
from mpa_edge.vlm import load

if TYPE_CHECKING:
    from collections.abc import Collection

    from PIL.Image import Image

    from mpa_edge.images.index import ImageEntry

STAGE = "silver"
PEOPLE = 10
UNSURE = "the teacher does not say it every time"


def run_silver(run: Run, fresh: bool = False) -> None:
    """Write `silver/`: parts as annotate writes them, and `questions.jsonl`, which is read like any file of questions.

    MpaError where no question is left.
    """
    writer = SilverAnnotator(run, load)
    folder, inputs = writer.folder, silver_inputs(run)
    if not fresh and is_done(folder, inputs) and not (nothing_built_on(run, "evaluate") and writer.may_add_rows()):
        say("silver: already done, nothing changed")
        return
    facts = annotate_shards(writer, inputs, fresh)
    rows, reasons = list(each_row(folder, PseudoAnnotation)), count_reasons(each_dropped(folder))
    n_images = len(asked_about(run))
    if not rows:
        raise MpaError(
            f"silver: of its answers about {n_images} held-out images, the teacher confirmed none{in_brackets(reasons)}"
            ": use a larger teacher or fewer --set evaluate.votes, or name questions with evaluate.questions=FILE.jsonl"
        )
    # the order of a review: the first questions are a random sample, and those that are reviewed
    listed = sorted(question_rows(run, rows), key=lambda line: place(run.recipe.seed, str(line["id"])))
    lines = (json.dumps(line) + "\n" for line in listed)
    write_bytes(folder / SILVER_QUESTIONS, "".join(lines).encode())
    counts = {"images": n_images, "questions": len(rows), "dropped": sum(reasons.values())} | poisoned_counts(folder)
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=run.recipe.evaluate,
        seed=run.recipe.seed,
        counts=counts | usage_counts(run, STAGE) | memory_counts(facts),
        packages=("torch", "transformers", "openai"),
        used=facts.used,
    )
    say(
        f"silver: {counts['questions']} questions on {n_images} held-out images, {counts['dropped']} left "
        f"out{in_brackets(reasons)}"
    )


def asked_about(run: Run) -> list[str]:
    """Ids of the images that the questions are about."""
    held_out = list(run.held_out_groups)
    return held_out[: n_asked_about(len(held_out), run.recipe)]


def question_rows(run: Run, rows: Sequence[PseudoAnnotation]) -> Iterator[dict[str, object]]:
    """Lines of the file of questions. An id stays the same only where question and answer do."""
    kinds = run.task.prompt_kinds
    for row in rows:
        number = int(row.id.rpartition("-")[2])
        yield {
            "id": f"{row.id}-{sha256_json([row.question, row.answer])[:8]}",
            "image": row.image,
            "question": row.question,
            "answers": accepted(row, run.task.metric),
            "kind": kinds[number % len(kinds)],
            "group": run.held_out_groups[row.image_id],
            "truth": TEACHER,
        }


def accepted(row: PseudoAnnotation, metric: str) -> list[str]:
    """The teacher's answer; VQA accuracy counts ten people, and gets what the teacher wrote and answered in turn."""
    return ([row.answer, *row.votes] * PEOPLE)[:PEOPLE] if metric == "vqa-accuracy" else [row.answer]


def asking(recipe: Recipe) -> Recipe:
    """How the teacher is asked: with more votes, which are sampled, for it says the same each time otherwise."""
    changed = {"votes": recipe.evaluate.votes, "temperature": recipe.annotate.temperature or 1.0}
    return recipe.model_copy(update={"annotate": recipe.annotate.model_copy(update=changed)})


def silver_inputs(run: Run) -> dict[str, str]:
    """Hashes of everything that the questions depend on."""
    groups = run.held_out_groups
    images = sha256_json([[name, groups[name]] for name in asked_about(run)])
    how = {"images": images} | annotate_settings(run, asking(run.recipe))
    return how if isinstance(run.recipe.task, str) else how | {"metric": run.task.metric}


class SilverAnnotator(Annotator):
    """Writes the parts: annotations of held-out images that the teacher confirms every time."""

    stage = STAGE

    @cached_property
    def recipe(self) -> Recipe:
        """How the teacher is asked."""
        return asking(self.run.recipe)

    @cached_property
    def shards(self) -> Shards:
        """The images that the questions are about, sorted by name."""
        wanted = set(asked_about(self.run))
        entries = (entry for entry in self.run.candidates if entry.id in wanted and entry.drop is None)
        return Shards(ImageIndex(self.run.images_folder, entries), self.recipe.annotate.shard_size)

    def annotate(
        self,
        opened: Sequence[tuple[ImageEntry, Image | Drop]],
        wanted: Collection[str] | None = None,
        known: Sequence[PseudoAnnotation] = (),
    ) -> tuple[list[PseudoAnnotation], list[Dropped]]:
        """As in annotate, without what the teacher does not say every time."""
        rows, dropped = super().annotate(opened, wanted, known)
        agrees = agreement(self.run)
        sure = []
        for row in rows:
            said = next((vote for vote in row.votes if not agrees(vote, row.answer)), None)
            if said is None:
                sure.append(row)
            else:
                drop = Drop(UNSURE, f"{row.question} wrote {row.answer!r}, answered {said!r}")
                dropped.append(dropped_row(row.id, row.image, drop))
        return sure, dropped
