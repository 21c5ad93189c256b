"""One model on a set of questions: its answers line by line as lmms-eval logs samples, and the score of all of them.

A line is written as soon as the model has answered, so that a kill costs one batch; the same command goes on behind it.
Keys of a line: https://github.com/EvolvingLMMs-Lab/lmms-eval lmms_eval/evaluator.py and lmms_eval/loggers/
evaluation_tracker.py at commit 75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3. `input` is the prompt without the picture, and
each metric has a key of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.predict import ask, mean
from mpa_edge.metrics import get_metric
from mpa_edge.metrics.paired import bootstrap_ci95
from mpa_edge.progress import progress
from mpa_edge.questions import QuestionSet
from mpa_edge.runs.files import MB, disk_errors, make_folder, read_json, sha256_json, write_json
from mpa_edge.runs.manifest import versions
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.tasks import Task, answer_prompt
from mpa_edge.types import VLM, Drop, Reply, Sample

CHUNK = 50
SAMPLES_MARK = "_samples_"


@dataclass(frozen=True)
class EvalSpec:
    """What is asked, how, and how it is scored."""

    questions: QuestionSet
    """Pictures, questions, answers."""
    task: Task
    """What follows a question, and the metric."""
    max_new_tokens: int
    """For one answer."""
    max_pixels: int
    """Larger pictures are left out and counted."""
    bootstrap: int = 2000
    """Resamples of the images behind the interval."""
    seed: int = 0
    """Of the bootstrap."""

    def identity(self, model_sha256: str) -> dict[str, str]:
        """What must be the same for a sheet to be gone on with; more or fewer questions may be asked."""
        how = {"suffix": self.task.short_answer_suffix, "tokens": self.max_new_tokens, "pixels": self.max_pixels}
        asked = {"questions": self.questions.name, "metric": self.task.metric, "prompt or limits": sha256_json(how)}
        return {"model": model_sha256} | asked


@dataclass(frozen=True)
class Mark:
    """What is kept in memory of one answer."""

    image: str
    """Bootstrap cluster."""
    kind: str | None
    """Question kind, where there is one."""
    strict: float
    """The reference metric, 0 to 1."""
    lenient: float
    """The lenient form, 0 to 1."""


def doc_of(sample: Sample) -> dict[str, Any]:
    """A question as it stands in a line of the sheet."""
    return {
        "question_id": sample.id,
        "image": sample.image,
        "question": sample.question,
        "answers": list(sample.answers),
        "kind": sample.kind,
    }


def line_of(quiz: EvalSpec, number: int, sample: Sample, reply: Reply) -> dict[str, Any]:
    """One line of the sheet."""
    metric, doc = get_metric(quiz.task.metric), doc_of(sample)
    return {
        "doc_id": number,
        "doc": doc,
        "target": sample.answers[0] if len(sample.answers) == 1 else str(list(sample.answers)),
        "input": answer_prompt(quiz.task, sample.question),
        "resps": [[reply.text]],
        "filtered_resps": [reply.text],
        "finish_reason": reply.finish_reason,
        "doc_hash": sha256_json(doc),
        metric.name: metric.score(reply.text, sample.answers),
        f"{metric.name}-lenient": metric.score(reply.text, sample.answers, lenient=True),
    }


def mark_of(line: dict[str, Any], metric: str) -> Mark:
    """What is kept of a line."""
    doc = line["doc"]
    return Mark(doc["image"], doc["kind"], float(line[metric]), float(line[f"{metric}-lenient"]))


# --- the file ---------------------------------------------------------------------------------------------------------


def results_path(out: Path) -> Path:
    """Where the score of a sheet is written: `x.jsonl` -> `x_results.json`, as lmms-eval pairs its files.

    >>> results_path(Path("a/x.jsonl")).name, results_path(Path("2026_samples_chartqa.jsonl")).name
    ('x_results.json', '2026_results.json')
    """
    return out.with_name(f"{out.stem.partition(SAMPLES_MARK)[0]}_results.json")


@contextmanager
def open_sheet(out: Path, identity: dict[str, str], fresh: bool) -> Iterator[tuple[IO[bytes], list[dict[str, Any]]]]:
    """The sheet to append to, held for this process, and the lines that are there.

    Raises MpaError where the file is not a sheet of the same model and setting; with `fresh` it is emptied.
    """
    make_folder(out.parent)
    with disk_errors(out.parent, MB), _opened(out) as file:
        _hold(file, out)
        lines = [] if fresh else list(_lines(file, out))
        _check_same(out, identity, bool(lines))
        if fresh:
            file.truncate(0)
        file.seek(0, os.SEEK_END)
        if not lines:
            write_json(results_path(out), {"identity": identity, "finished": False})
        yield file, lines


def _opened(out: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(out, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    except OSError as error:
        raise MpaError(f"cannot write {out} ({error.strerror}): choose another --out") from error


def _hold(file: IO[bytes], out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MpaError(f"{out} is being written by another process: wait for it, or choose another --out") from error


def _lines(file: IO[bytes], out: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; half a last one, which a kill leaves, is cut off."""
    end = 0
    for number, raw in enumerate(file, start=1):
        if not raw.endswith(b"\n"):
            break
        try:
            line = json.loads(raw)
            line["doc"]["question_id"]
        except (ValueError, TypeError, KeyError) as error:
            raise MpaError(f"{out}:{number}: no line of an earlier run; choose another --out, or --fresh") from error
        end += len(raw)
        yield line
    file.truncate(end)


def _check_same(out: Path, identity: dict[str, str], has_lines: bool) -> None:
    stored = read_json(results_path(out))
    before = stored.get("identity") if isinstance(stored, dict) else None
    if not has_lines:
        return
    if not isinstance(before, dict):
        raise MpaError(f"{out} has no {results_path(out).name} beside it: choose another --out, or --fresh")
    changed = ", ".join(key for key in identity if before.get(key) != identity[key])
    if changed:
        raise MpaError(f"{out} has the answers of another run (other {changed}): choose another --out, or --fresh")


# --- asking -----------------------------------------------------------------------------------------------------------


def run_eval(vlm: VLM, quiz: EvalSpec, out: Path | None, model_sha256: str, fresh: bool = False) -> dict[str, Any]:
    """Ask what was not asked before and score everything. Writes `out` and its results file where `out` is given."""
    started, metric = time.monotonic(), quiz.task.metric
    if out is None:
        marks, unseen = _ask(vlm, quiz, {}, None)
        return score(quiz, vlm.name, marks, unseen, time.monotonic() - started)
    identity = quiz.identity(model_sha256)
    with open_sheet(out, identity, fresh) as (file, lines):
        _check_questions(quiz, lines, out)
        known = {line["doc_hash"]: mark_of(line, metric) for line in lines}
        marks, unseen = _ask(vlm, quiz, known, file)
        result = score(quiz, vlm.name, marks, unseen, time.monotonic() - started)
        about = {"identity": identity, "finished": True, "versions": versions("torch", "transformers")}
        write_json(results_path(out), result | about)
    return result


def _check_questions(quiz: EvalSpec, lines: Sequence[dict[str, Any]], out: Path) -> None:
    """What was asked before under a number is what would be asked now."""
    before = {line["doc_id"]: line["doc_hash"] for line in lines}
    now = zip(quiz.questions.numbers, quiz.questions.samples, strict=True)
    if any(before.get(number, mark) != mark for number, mark in ((i, sha256_json(doc_of(one))) for i, one in now)):
        raise MpaError(f"{out} has the answers to other questions: choose another --out, or --fresh")


def _ask(vlm: VLM, quiz: EvalSpec, known: dict[str, Mark], file: IO[bytes] | None) -> tuple[list[Mark], dict[str, int]]:
    """Marks in the order of the questions, and the pictures that could not be shown: reason -> questions."""
    marks = {sample.id: known.get(sha256_json(doc_of(sample))) for sample in quiz.questions.samples}
    pairs = zip(quiz.questions.numbers, quiz.questions.samples, strict=True)
    todo = [(number, sample) for number, sample in pairs if marks[sample.id] is None]
    unseen: Counter[str] = Counter()
    with progress(quiz.questions.name, len(marks), len(marks) - len(todo)) as advance:
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            lines, drops = _answered(vlm, quiz, chunk)
            _append(file, lines)
            unseen.update(drops)
            marks |= {line["doc"]["question_id"]: mark_of(line, quiz.task.metric) for line in lines}
            advance(len(chunk))
    return [mark for mark in marks.values() if mark is not None], dict(unseen)


def _answered(vlm: VLM, quiz: EvalSpec, chunk: Sequence[tuple[int, Sample]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of one chunk, and why questions of it could not be asked."""
    samples = [sample for _, sample in chunk]
    said = ask(vlm, quiz.task, quiz.questions.folder, samples, quiz.max_new_tokens, quiz.max_pixels)
    pairs = [(number, one, _lost(said[one.id]) or said[one.id]) for number, one in chunk]
    lines = [line_of(quiz, number, one, reply) for number, one, reply in pairs if not isinstance(reply, Drop)]
    return lines, [reply.reason for _, _, reply in pairs if isinstance(reply, Drop)]


def _lost(said: Reply | Drop) -> Drop | None:
    """A server's failure is no answer of its model; silence is one."""
    return said.drop if isinstance(said, Reply) and said.finish_reason == "failed" else None


def _append(file: IO[bytes] | None, lines: Sequence[dict[str, Any]]) -> None:
    """Lines onto the disk."""
    if file is not None and lines:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


# --- the score --------------------------------------------------------------------------------------------------------


def score(quiz: EvalSpec, model: str, marks: Sequence[Mark], unseen: dict[str, int], seconds: float) -> dict[str, Any]:
    """Strict accuracy with its interval, the lenient one beside it, both for each kind. MpaError without answers."""
    if not marks:
        reasons = ", ".join(unseen)
        raise MpaError(f"{quiz.questions.name}: not one picture can be shown ({reasons}): download or mend them again")
    kinds = list(dict.fromkeys(mark.kind for mark in marks if mark.kind is not None))
    kinds = kinds if quiz.questions.mean_of_kinds else sorted(kinds)
    by_kind = {kind: [mark for mark in marks if mark.kind == kind] for kind in kinds}
    alike = quiz.questions.mean_of_kinds and len(kinds) > 1 and all(mark.kind is not None for mark in marks)
    return {
        "model": model,
        "questions": quiz.questions.name,
        "note": quiz.questions.note,
        "dropped": dict(Counter(quiz.questions.dropped) + Counter(unseen)),
        "images": len({mark.image for mark in marks}),
        **_part(quiz, marks, by_kind if alike else {}),
        "mean_of_kinds": alike,
        "kinds": {kind: _part(quiz, part, {}) for kind, part in by_kind.items()},
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _part(quiz: EvalSpec, marks: Sequence[Mark], parts: dict[str, list[Mark]]) -> dict[str, Any]:
    """The figures of some answers; where there are `parts`, each of them counts the same."""
    weights = [len(marks) / len(parts) / len(parts[mark.kind or ""]) if parts else 1.0 for mark in marks]
    strict = [mark.strict * weight for mark, weight in zip(marks, weights, strict=True)]
    lenient = [mark.lenient * weight for mark, weight in zip(marks, weights, strict=True)]
    images = [mark.image for mark in marks]
    return {
        "n": len(marks),
        "metric": quiz.task.metric,
        "accuracy": mean(strict),
        "ci95": bootstrap_ci95(strict, images, resamples=quiz.bootstrap, seed=quiz.seed),
        "lenient": {"metric": f"{quiz.task.metric}-lenient", "accuracy": mean(lenient)},
    }
