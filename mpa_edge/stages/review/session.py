"""Which questions are reviewed, and what the page asks next: the same for each tab, as the file of decisions has it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.review import (
    Decision,
    DecisionLog,
    Decisions,
    Ruling,
    accepted,
    in_random_order,
    open_decisions,
    read_decisions,
    teacher_quality,
)
from mpa_edge.metrics import get_metric
from mpa_edge.questions import QuestionSet
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.manifest import RUN_FILE
from mpa_edge.stages.evaluate import questions
from mpa_edge.stages.run import Run, open_run
from mpa_edge.types import Sample

DEFAULT_N = 100
A_DECISION_S = 6.0
"""Until there are some: what one usually takes."""
A_BREAK_S = 120.0
LAST = 20


def run_to_review(folder: str) -> Run:
    """The run of a folder. MpaError where it is none."""
    if not (Path(folder) / RUN_FILE).is_file():
        raise MpaError(f"'{folder}' is no run folder: name one that mpa-edge align made")
    return open_run(folder)


def silver_set(run: Run) -> QuestionSet:
    """The questions of a run that its teacher wrote. MpaError where there are none."""
    if not run.recipe.silver:
        raise MpaError(f"{run.folder} has labelled questions, so there is nothing to review: run mpa-edge evaluate")
    if not run.finished("silver"):
        raise MpaError(f"{run.folder} has no silver set to review: run mpa-edge evaluate {run.folder} first")
    return questions(run)


class Session:
    """A review while its page is open. Safe to use from several threads."""

    def __init__(self, asked: QuestionSet, log: DecisionLog, chosen: Sequence[Sample], metric: str) -> None:
        self.asked, self.log, self.metric = asked, log, metric
        self.chosen = {sample.id: sample for sample in chosen}
        self.lock = Lock()

    @property
    def decided(self) -> dict[str, Decision]:
        """Decisions about the chosen questions, the last one last."""
        return {key: made for key, made in self.log.decisions.by_id.items() if key in self.chosen}

    def state(self) -> dict[str, Any]:
        """What the page shows: progress, and the first question that is not decided."""
        with self.lock:
            return self._state()

    def _state(self, note: str = "") -> dict[str, Any]:
        decided = self.decided
        following = next((sample for key, sample in self.chosen.items() if key not in decided), None)
        left = len(self.chosen) - len(decided)
        return {
            "done": len(decided),
            "n": len(self.chosen),
            "left_s": round(left * self.seconds_each()),
            "last": next(reversed(decided), None),
            "note": note,
            "question": following
            and {"id": following.id, "question": following.question, "answer": following.answers[0]},
        }

    def seconds_each(self) -> float:
        """What a decision takes: the median of the last ones, without breaks."""
        times = [made.at for made in list(self.decided.values())[-LAST:]]
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
        return statistics.median([gap for gap in gaps if 0 <= gap < A_BREAK_S] or [A_DECISION_S])

    def fault(self, typed: str) -> str:
        """What is wrong with a right answer that a person typed; empty where nothing is."""
        form, answers = get_metric(self.metric).form, accepted(typed, self.metric)
        if not answers:
            return "type the right answer, or choose that it cannot be answered"
        wrong = next((answer for answer in answers if form and form.canonical(answer) is None), None)
        return f"'{wrong}' is {form.fault}: type another answer" if form and wrong else ""

    def decide(self, key: str, verdict: Ruling, answer: str) -> dict[str, Any]:
        """Write a decision about a chosen question, unless another tab has made one; the new state."""
        with self.lock:
            if key in self.decided:
                return self._state("This question was decided in another tab.")
            self.log.add(self.chosen[key], verdict, answer)
            return self._state()

    def undo(self, key: str) -> dict[str, Any]:
        """Take the last decision back, where it is still the one about this question; the new state."""
        with self.lock:
            if key != next(reversed(self.decided), None):
                return self._state("Another tab has decided since.")
            self.log.add(self.chosen[key], "undone")
            return self._state()


def choose(run: Run, n: int | None) -> tuple[QuestionSet, list[Sample]]:
    """The silver set of a run, and `n` random questions of it, None: DEFAULT_N or all.

    MpaError where there is no silver set, or it has fewer questions.
    """
    asked = silver_set(run)
    total = len(asked.samples)
    if n is not None and n > total:
        raise MpaError(f"the silver set of {run.folder} has only {total} questions: use --n {total}")
    return asked, in_random_order(asked.samples, run.recipe.seed)[: min(n or DEFAULT_N, total)]


@contextmanager
def open_session(run: Run, n: int | None) -> Iterator[Session]:
    """A review of the questions that `choose` gives. MpaError also where another process reviews the run."""
    asked, chosen = choose(run, n)
    with open_decisions(run.folder, asked.samples) as log:
        yield Session(asked, log, chosen, run.task.metric)


def summary(decisions: Decisions) -> str:
    """One line: how many are reviewed, and how often the teacher was right.

    >>> summary(Decisions([]))
    '0 questions reviewed'
    """
    if not decisions.by_id:
        return "0 questions reviewed"
    found = teacher_quality(decisions)
    right = "" if found.accuracy is None else f", teacher right {found.accuracy:.0%}"
    if found.ci95:
        right += " (95 % interval {:.0%} – {:.0%})".format(*found.ci95)
    old = f", {decisions.outdated} earlier decisions no longer count" if decisions.outdated else ""
    return f"{found.n} questions reviewed{right}, {found.unanswerable} cannot be answered{old}"


def export_reviewed(run: Run, path: Path) -> int:
    """Write the reviewed questions that can be answered as labelled ones; returns how many. MpaError without any."""
    asked = silver_set(run)
    if path.suffix.lower() != ".csv":
        raise MpaError(f"'{path}' is no .csv file: let its name end in .csv")
    known, text = read_decisions(run.folder, asked.samples).by_id, StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "image", "question", "answers", "kind", "group"))
    n = 0
    for sample in asked.samples:
        decision = known.get(sample.id)
        if decision is None or decision.verdict == "unanswerable":
            continue
        answers = sample.answers if decision.verdict == "right" else accepted(decision.answer, run.task.metric)
        image = os.path.relpath((asked.folder / sample.image).resolve(), path.parent.resolve())
        table.writerow(
            (sample.id, image, sample.question, answers_cell(answers), sample.kind or "", sample.group or sample.image)
        )
        n += 1
    if not n:
        raise MpaError(f"no reviewed question of {run.folder} can be answered: run mpa-edge review {run.folder} first")
    try:
        write_bytes(path, text.getvalue().encode())
    except UnicodeEncodeError as error:
        raise MpaError(f"{asked.folder} has a name that is not UTF-8, which no table can hold: rename it") from error
    except OSError as error:
        raise MpaError(f"cannot write {path} ({error.strerror}): choose another --export") from error
    return n


def answers_cell(answers: Sequence[str]) -> str:
    """Accepted answers as a cell of a table of questions: between bars, or as JSON where that would be misread.

    >>> answers_cell(["stop", "halt"]), answers_cell(["a|b"]), answers_cell(["[5]"])
    ('stop|halt', '["a|b"]', '["[5]"]')
    """
    plain = all("|" not in answer and not answer.startswith("[") for answer in answers)
    return "|".join(answers) if plain else json.dumps(list(answers), ensure_ascii=False)
