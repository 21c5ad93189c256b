"""What a person decided about the teacher's answers, and what the scores of models are with it.

A decision is a line of RUN/review/decisions.jsonl, on the disk before the next question is shown. Nothing is changed
there: the last line about a question counts, and `undone` takes a decision back. A line holds a hash of what was
judged: where the teacher has asked or answered anew, it counts no more.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.metrics import get_metric
from mpa_edge.metrics.gain import Reviewed
from mpa_edge.metrics.interval import mean_bounds
from mpa_edge.metrics.paired import mean
from mpa_edge.metrics.prediction_powered import Estimate, estimate
from mpa_edge.questions import QuestionSet
from mpa_edge.runs.files import MB, disk_errors, fsync_folder, make_folder, sha256_json
from mpa_edge.runs.paths import inside, open_in_place
from mpa_edge.types import Prediction, Record, Sample

REVIEW, DECISIONS = "review", "decisions.jsonl"
MOST_BYTES = 64 * MB
LONGEST_ANSWER = 1000
PEOPLE = 10
USABLE = 0.8
"""A kind of question is worth dropping where the teacher is surely right less often than this."""

Ruling = Literal["right", "wrong", "unanswerable", "undone"]


class Decision(Record):
    """One line of the file."""

    id: str
    """Of the question."""
    verdict: Ruling
    """right: so is the teacher's answer; wrong: `answer` is right; unanswerable: nothing is; undone: not decided."""
    answer: Annotated[str, Field(max_length=LONGEST_ANSWER)] = ""
    """The right answer where the teacher's is wrong; several accepted ones between bars."""
    about: str
    """Hash of image, question and the teacher's answer."""
    at: AwareDatetime
    """When, UTC."""


def accepted(typed: str, metric: str) -> tuple[str, ...]:
    """The accepted answers that a person typed: between bars, unless it is an object. VQA accuracy counts ten people.

    >>> accepted("stop | halt", "anls"), accepted('{"a": "x|y"}', "json:a=text"), len(accepted("5", "vqa-accuracy"))
    (('stop', 'halt'), ('{"a": "x|y"}',), 10)
    """
    parts = (typed,) if typed.startswith("{") else tuple(part.strip() for part in typed.split("|") if part.strip())
    return (parts * PEOPLE)[:PEOPLE] if metric == "vqa-accuracy" else parts


@dataclass
class Decisions:
    """The decisions about some questions."""

    samples: Sequence[Sample]
    """The questions, with the teacher's answers."""
    by_id: dict[str, Decision] = field(default_factory=dict)
    """What counts: question -> decision, in the order in which they were made."""
    outdated: int = 0
    """Decisions about questions that are no longer asked, or that the teacher now answers otherwise."""

    @property
    def sha256(self) -> str:
        """Of what counts."""
        return sha256_json([made.model_dump(exclude={"at"}) for _, made in sorted(self.by_id.items())])

    def take(self, decision: Decision) -> None:
        """Let a decision count."""
        self.by_id.pop(decision.id, None)
        if decision.verdict != "undone":
            self.by_id[decision.id] = decision


@dataclass(frozen=True)
class DecisionLog:
    """The file of decisions, open for this process alone."""

    decisions: Decisions
    """What it holds."""
    file: IO[bytes]
    """Where new ones are written."""

    def add(self, sample: Sample, verdict: Ruling, answer: str = "") -> None:
        """Write a decision, and return when it is on the disk. MpaError where the disk is full."""
        now = datetime.now(UTC).replace(microsecond=0)
        decision = Decision(id=sample.id, verdict=verdict, answer=answer, about=about(sample), at=now)
        end = self.file.tell()
        try:
            with disk_errors(Path(self.file.name).parent, MB):
                data = json.dumps(decision.model_dump(mode="json"), ensure_ascii=False).encode() + b"\n"
                while data:  # a disk that is nearly full takes a part
                    data = data[self.file.write(data) or 0 :]
                os.fsync(self.file.fileno())
        except (MpaError, OSError):
            self.file.truncate(end)  # the next line must not begin behind half of this one
            self.file.seek(end)
            raise
        self.decisions.take(decision)


def about(sample: Sample) -> str:
    """Hash of what is judged."""
    return sha256_json([sample.image, sample.question, sample.answers])[:16]


def read_decisions(run: Path, samples: Sequence[Sample]) -> Decisions:
    """The decisions about some questions of a run; none where there is no file. MpaError where it is damaged."""
    found = Decisions(samples)
    path = inside(run, f"{REVIEW}/{DECISIONS}")
    if path.is_file():
        with open(path, "rb") as file:
            _read(file, path, found)
    return found


@contextmanager
def open_decisions(run: Path, samples: Sequence[Sample]) -> Iterator[DecisionLog]:
    """The same, to be added to. MpaError where another process has the file."""
    path = inside(run, f"{REVIEW}/{DECISIONS}")
    make_folder(path.parent)
    with disk_errors(path.parent, MB), open(path, "r+b", buffering=0, opener=open_in_place) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MpaError(
                f"{run} is being reviewed already: use that page, or end that process with Ctrl-C"
            ) from error
        found = Decisions(samples)
        file.truncate(_read(file, path, found))
        file.seek(0, os.SEEK_END)
        os.fsync(file.fileno())
        fsync_folder(path.parent)
        yield DecisionLog(found, file)


def _read(file: IO[bytes], path: Path, found: Decisions) -> int:
    """Let the decisions of a file count; returns how many bytes are whole lines, for a kill may have cut the last."""
    if os.fstat(file.fileno()).st_size > MOST_BYTES:
        raise MpaError(f"{path} is larger than {MOST_BYTES // MB} MB, so it is no file of decisions: move it away")
    *lines, cut_off = (data := file.read()).split(b"\n")
    asked, outdated = {sample.id: about(sample) for sample in found.samples}, set[str]()
    for number, line in enumerate(lines, start=1):
        try:
            decision = Decision.model_validate_json(line, strict=True)
        except ValidationError:
            decision = None
        if decision is None or (decision.verdict == "wrong" and not decision.answer.strip("| ")):
            raise MpaError(f"{path}:{number}: no decision of a review: delete this line, and rerun")
        if asked.get(decision.id) == decision.about:
            found.take(decision)
        else:
            outdated.add(decision.id)
    found.outdated = len(outdated)
    return len(data) - len(cut_off)


def in_random_order(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The questions in an order by which the first n are a random sample, whatever n is.

    The place of a question depends on its id only, so more questions leave the earlier ones in their order.
    """
    return sorted(samples, key=lambda sample: place(seed, sample.id))


def place(seed: int, key: str) -> str:
    """What the random order of questions goes by: hash of the recipe's seed and the id of a question."""
    return sha256_json([seed, key])


def true_score(decision: Decision, metric: str, text: str, silver: float) -> float | None:
    """The score of an answer against the truth; None where the question cannot be answered.

    `silver`: its score against the teacher's answer.
    """
    if decision.verdict == "unanswerable":
        return None
    return silver if decision.verdict == "right" else get_metric(metric).score(text, accepted(decision.answer, metric))


def true_scores(decisions: Decisions, made: Sequence[Prediction], metric: str) -> dict[int, float | None]:
    """Position of each reviewed answer -> its true score, as `metrics.prediction_powered.estimate` takes them."""
    known = decisions.by_id
    return {
        i: true_score(known[row.sample_id], metric, row.text, row.score)
        for i, row in enumerate(made)
        if row.sample_id in known
    }


class TeacherQuality(Record):
    """How often the teacher was right."""

    n: int
    """Reviewed questions."""
    right: int
    """Of them, answered rightly by the teacher."""
    unanswerable: int
    """Of them, those that nobody can answer."""
    accuracy: float | None
    """Share of right answers to the questions that can be answered; null where none can."""
    ci95: tuple[float, float] | None
    """95 % interval of it, clustered by image or group of images."""
    usable: float
    """Share of right answers to all questions: those that cannot be answered teach something wrong too."""
    usable_upper: float
    """Upper end of its 95 % interval."""

    @property
    def worth_dropping(self) -> bool:
        """Whether the teacher is surely too often wrong to learn from."""
        return self.usable_upper < USABLE


def teacher_quality(decisions: Decisions) -> TeacherQuality:
    """Of all reviewed questions. MpaError where there are none."""
    rows = [(decisions.by_id[s.id].verdict, s.group or s.image) for s in decisions.samples if s.id in decisions.by_id]
    if not rows:
        raise MpaError("no question is reviewed: run mpa-edge review RUN")
    right = [float(verdict == "right") for verdict, _ in rows]
    known = [(float(verdict == "right"), group) for verdict, group in rows if verdict != "unanswerable"]

    def interval(values: list[float], groups: list[str]) -> tuple[float, float]:
        return mean_bounds(values, groups, level=0.025, low=0.0, high=1.0)

    return TeacherQuality(
        n=len(rows),
        right=int(sum(right)),
        unanswerable=len(rows) - len(known),
        accuracy=sum(right) / len(known) if known else None,
        ci95=interval([value for value, _ in known], [group for _, group in known]) if known else None,
        usable=sum(right) / len(rows),
        usable_upper=interval(right, [group for _, group in rows])[1],
    )


def teacher_by_kind(decisions: Decisions) -> dict[str, TeacherQuality]:
    """The same for each kind of question that was reviewed; empty where questions have no kind."""
    kinds = dict[str, list[Sample]]()
    for sample in decisions.samples:
        if sample.kind is not None and sample.id in decisions.by_id:
            kinds.setdefault(sample.kind, []).append(sample)
    return {kind: teacher_quality(Decisions(rows, decisions.by_id)) for kind, rows in sorted(kinds.items())}


def true_accuracy(made: Sequence[Prediction], decisions: Decisions, metric: str) -> Estimate:
    """The true accuracy of a model, from its answers to all questions of a teacher."""
    clusters = [row.image_id for row in made]
    return estimate([row.score for row in made], true_scores(decisions, made, metric), clusters)


def reviewed_score(made: Sequence[Prediction], decisions: Decisions, metric: str) -> dict[str, Any]:
    """The true accuracy of one model, as it stands in its score; empty where no decision about its answers tells it."""
    true = true_scores(decisions, made, metric)
    if all(score is None for score in true.values()):
        return {}
    found, teacher = true_accuracy(made, decisions, metric), teacher_quality(decisions)
    return {
        "truth": "reviewed",
        "n_reviewed": len(true),
        "accuracy": found.value,
        "ci95": found.ci95,
        "method": found.method,
        "teacher_accuracy": teacher.accuracy,
        "teacher_ci95": teacher.ci95,
    }


class ReviewFigures(Record):
    """What a review adds to the figures of base, aligned and an export."""

    n_reviewed: int
    """Reviewed questions."""
    teacher_accuracy: float
    """Share of right answers of the teacher to the reviewed questions that can be answered."""
    teacher_ci95: tuple[float, float]
    """95 % interval of it."""
    gain: float
    """True gain, aligned - base."""
    gain_ci95: tuple[float, float]
    """95 % interval of it."""
    method: str
    """How the gain was estimated: prediction-powered, or from the reviewed rows alone."""
    agreement: tuple[float, float, float]
    """Agreement of base, aligned and export with the teacher."""
    quality: tuple[str, ...]
    """How often the teacher was right, and which kinds to drop, in words."""


def decisions_about(run: Path | None, asked: QuestionSet) -> Decisions | None:
    """The decisions about the questions of a run's teacher; None where none of these tells what is true."""
    if run is None or asked.truth != "teacher":
        return None
    found = read_decisions(run, asked.samples)
    return found if any(one.verdict != "unanswerable" for one in found.by_id.values()) else None


def reviewed_scores(decisions: Decisions, models: Sequence[Sequence[Prediction]], metric: str) -> Reviewed:
    """Position of each reviewed question -> the true scores of base, aligned and export, in this order."""
    base, aligned, artifact = (true_scores(decisions, rows, metric) for rows in models)
    found = dict[int, tuple[float, float, float] | None]()
    for i, score in base.items():
        others = aligned[i], artifact[i]
        known = score is not None and others[0] is not None and others[1] is not None
        found[i] = (score or 0.0, others[0] or 0.0, others[1] or 0.0) if known else None
    return found


def review_figures(decisions: Decisions, models: Sequence[Sequence[Prediction]], metric: str) -> ReviewFigures | None:
    """The figures of a review of what base, aligned and export were asked; None where it tells nothing."""
    made = dict(zip(("base", "aligned"), models, strict=False))
    found = reviewed_result(made, decisions, metric)
    if found is None:
        return None
    agreement = [mean([row.score for row in rows]) for rows in models]
    fields = {name: found[name] for name in ReviewFigures.model_fields if name in found}
    return ReviewFigures(**fields | {"agreement": tuple(agreement), "quality": tuple(found["quality"])})


def reviewed_result(
    made: Mapping[str, Sequence[Prediction]], decisions: Decisions, metric: str
) -> dict[str, Any] | None:
    """True accuracies and gain of base and aligned, and the teacher's own accuracy; None where nothing tells them.

    `made`: model -> its answers to all questions of the teacher.
    """
    rows = {name: made[name] for name in ("base", "aligned")}
    true = true_scores(decisions, rows["base"], metric)
    if all(score is None for score in true.values()):
        return None
    teacher = teacher_quality(decisions)
    found = {name: true_accuracy(answers, decisions, metric) for name, answers in rows.items()}
    gain = true_gain(rows["base"], rows["aligned"], decisions, metric)
    return {
        "truth": "reviewed",
        "n_reviewed": len(true),
        "accuracy": {"teacher": teacher.accuracy} | {name: one.value for name, one in found.items()},
        "ci95": {"teacher": teacher.ci95} | {name: one.ci95 for name, one in found.items()},
        "agreement": {name: mean([row.score for row in answers]) for name, answers in rows.items()},
        "gain": gain.value,
        "gain_ci95": gain.ci95,
        "p_mcnemar": None,
        "method": gain.method,
        "teacher_accuracy": teacher.accuracy,
        "teacher_ci95": teacher.ci95,
        "quality": teacher_lines(decisions),
    }


def teacher_lines(decisions: Decisions) -> list[str]:
    """How often the teacher was right, in words: of all reviewed questions, by kind, and which kinds to drop."""
    found, kinds = teacher_quality(decisions), teacher_by_kind(decisions)
    right = f"the teacher was right in {found.right} of {found.n - found.unanswerable} reviewed questions"
    if found.accuracy is not None and found.ci95:
        right += f": {found.accuracy:.0%} (95 % interval {found.ci95[0]:.0%} – {found.ci95[1]:.0%})"
    lines = [right + (f"; {found.unanswerable} more cannot be answered" if found.unanswerable else "")]
    if len(kinds) > 1:
        each = (f"{kind} {one.right} of {one.n}" for kind, one in kinds.items())
        lines.append(f"right by kind, of all that were reviewed: {', '.join(each)}")
    drop = [f"{kind} (at most {one.usable_upper:.0%})" for kind, one in kinds.items() if one.worth_dropping]
    if drop:
        lines.append(
            f"worth dropping, for the teacher is right less than {USABLE:.0%} of the time: {', '.join(drop)}; remove "
            "them from the task's kinds, or use a larger teacher"
        )
    return lines


def true_gain(before: Sequence[Prediction], after: Sequence[Prediction], decisions: Decisions, metric: str) -> Estimate:
    """The true gain of one model over another, from their answers to the same questions."""
    was, now = (true_scores(decisions, rows, metric) for rows in (before, after))
    true = {i: None if score is None or was[i] is None else score - (was[i] or 0.0) for i, score in now.items()}
    silver = [a.score - b.score for b, a in zip(before, after, strict=True)]
    return estimate(silver, true, [row.image_id for row in before], low=-1.0)
