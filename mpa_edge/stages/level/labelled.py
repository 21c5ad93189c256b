"""Rows of your own with known answers: they join the gap in training, and never what evaluation asks about."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.images.folder import content_id
from mpa_edge.progress import say
from mpa_edge.questions import left_out
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.files import sha256_json
from mpa_edge.runs.parquet import read_rows
from mpa_edge.stages.run import Run
from mpa_edge.tasks.parse import in_form
from mpa_edge.types import ParityRecord

NAMED = 10
KEPT = "labelled.parquet"


class LabelledRow(ParityRecord):
    """A row of a file of one's own."""

    image: str
    """Absolute path: it need not be in the folder of the unlabelled images."""


def labelled_rows(run: Run) -> list[LabelledRow]:
    """The rows of `level.labelled`, each with its most frequent answer in the form of the task's answers.

    A run that learned from them knows them without the file. MpaError where the file, an image or an answer is wrong,
    or evaluation asks about one of the images.
    """
    if run.recipe.level.labelled is None:
        return []
    path = Path(run.recipe.level.labelled).expanduser()
    if not path.is_file() and (kept := run.stage_folder("level") / KEPT).is_file():
        return read_rows(kept, LabelledRow)
    if not path.is_file():
        raise MpaError(f"no file '{path}': give level.labelled a .csv or .jsonl file of image, question, answers")
    found = read_questions(path)
    if found.dropped:
        say(f"{path}: {left_out(found.dropped)}")
    ids = {name: content_id(path.parent / name) for name in dict.fromkeys(sample.image for sample in found.samples)}
    if missing := [name for name, found_id in ids.items() if found_id is None]:
        raise MpaError(f"{path}: no image {_some(missing)}: give paths relative to the file")
    if refused := [name for name, found_id in ids.items() if found_id in run.held_out]:
        raise MpaError(f"{path}: evaluation asks about {_some(refused)}: remove the rows of these images")
    rows = []
    for sample in found.samples:
        answer = in_form(most_frequent(sample.answers), run.task.answer_form)
        if not answer:
            form = run.task.answer_form
            what = form.fault if form else "empty"
            raise MpaError(f"{path}: the answer to {sample.question!r:.80} ({sample.image}) is {what}: correct it")
        rows.append(
            LabelledRow(
                id=f"labelled-{sample.id}",
                image_id=ids[sample.image] or "",
                image=str((path.parent / sample.image).absolute()),
                question=sample.question,
                answer=answer,
                teacher_answer=answer,
                student_answer=None,
                verdict="gap",
            )
        )
    return rows


def labelled_sha256(rows: list[LabelledRow]) -> str:
    """Of what is learned from the rows, wherever their files are."""
    return sha256_json([[row.image_id, row.question, row.answer] for row in rows])


def most_frequent(answers: tuple[str, ...]) -> str:
    """The answer that most people gave, the first of several.

    >>> most_frequent(("stop", "halt", "halt")), most_frequent(("a", "b"))
    ('halt', 'a')
    """
    return Counter(answers).most_common(1)[0][0]


def _some(names: list[str]) -> str:
    """The first names, and how many there are.

    >>> _some(["a", "b"]), _some(list("abcdefghijkl"))
    ('a, b', 'a, b, c, d, e, f, g, h, i, j and 2 others')
    """
    more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
