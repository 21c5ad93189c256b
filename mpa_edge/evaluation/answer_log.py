"""Ask one model all questions of a spec and keep its answers, so that a kill loses at most one chunk of them.

The log is a file of JSON lines as lmms-eval logs samples:
https://github.com/EvolvingLMMs-Lab/lmms-eval lmms_eval/evaluator.py and lmms_eval/loggers/evaluation_tracker.py at
commit 75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3. `input` is the prompt without the image, and each metric has a key of
its own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.predict import EvalSpec, ask
from mpa_edge.metrics import get_metric
from mpa_edge.progress import progress
from mpa_edge.runs.files import MB, disk_errors, make_folder, sha256_json
from mpa_edge.runs.paths import open_in_place
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import VLM, Drop, Prediction, Reply, Sample

CHUNK = 100


@dataclass
class AnswerLog:
    """One model's answers to the questions of a spec."""

    spec: EvalSpec
    """What is asked."""
    file: IO[bytes] | None = None
    """Where answers are appended; None: they are kept in memory only."""
    answers: dict[str, str] = field(default_factory=dict)
    """Sample id -> what the model said."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Why questions got no answer in this process: reason -> how many."""
    logged: dict[int, str] = field(default_factory=dict)
    """What the file held when it was opened: number of a question -> hash of its `log_doc`."""

    @property
    def missing(self) -> list[tuple[int, Sample]]:
        """Number and sample of each question without an answer, in order."""
        numbered = zip(self.spec.questions.numbers, self.spec.questions.samples, strict=True)
        return [(number, sample) for number, sample in numbered if sample.id not in self.answers]

    def add(self, replies: list[tuple[int, Sample, Reply]]) -> None:
        """Keep answers, and write them to disk before returning."""
        if self.file is not None and replies:
            lines = (json.dumps(log_line(self.spec, *reply), ensure_ascii=False) + "\n" for reply in replies)
            self.file.write("".join(lines).encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        self.answers |= {sample.id: reply.text for _, sample, reply in replies}

    def predictions(self, model: str) -> list[Prediction]:
        """The scored answers, in the order of the questions; `model` is the name written into each of them."""
        score = get_metric(self.spec.task.metric).score
        return [
            Prediction(
                sample_id=sample.id,
                image_id=sample.group or sample.image,
                kind=sample.kind,
                question=sample.question,
                answers=sample.answers,
                model=model,
                text=self.answers[sample.id],
                score=score(self.answers[sample.id], sample.answers),
            )
            for sample in self.spec.questions.samples
            if sample.id in self.answers
        ]


@contextmanager
def open_log(path: Path, spec: EvalSpec, fresh: bool = False) -> Iterator[AnswerLog]:
    """The log at `path`, locked for this process, with the answers that it holds; `fresh` discards them.

    A line that a kill cut in half is removed. Raises MpaError where another process has the file, or it is no log.
    """
    make_folder(path.parent)
    with disk_errors(path.parent, MB), _open_locked(path) as file:
        if fresh:
            file.truncate(0)
        log, answers, whole_bytes = AnswerLog(spec, file), {}, 0
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            try:
                line = json.loads(raw)
                log.logged[line["doc_id"]] = line["doc_hash"]
                answers[line["doc_hash"]] = line["resps"][0][0]
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise MpaError(
                    f"{path}:{number}: no line of an answer log; choose another --out, or --fresh"
                ) from error
            whole_bytes += len(raw)
        file.truncate(whole_bytes)
        file.seek(0, os.SEEK_END)
        hashes = {sample.id: sha256_json(log_doc(sample)) for sample in spec.questions.samples if answers}
        log.answers = {sample_id: answers[mark] for sample_id, mark in hashes.items() if mark in answers}
        yield log


def _open_locked(path: Path) -> IO[bytes]:
    try:
        file = open(path, "r+b", opener=open_in_place)  # noqa: SIM115  closed by the caller
    except OSError as error:
        raise MpaError(f"cannot write {path} ({error.strerror}): choose another --out") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise MpaError(f"{path} is being written by another process: wait for it, or choose another --out") from error
    return file


def log_doc(sample: Sample) -> dict[str, Any]:
    """A question as it stands in a line of the log."""
    return {
        "question_id": sample.id,
        "image": sample.image,
        "question": sample.question,
        "answers": list(sample.answers),
        "kind": sample.kind,
    }


def log_line(spec: EvalSpec, number: int, sample: Sample, reply: Reply) -> dict[str, Any]:
    """One line of the log."""
    metric, doc = get_metric(spec.task.metric), log_doc(sample)
    return {
        "doc_id": number,
        "doc": doc,
        "target": sample.answers[0] if len(sample.answers) == 1 else str(list(sample.answers)),
        "input": answer_prompt(spec.task, sample.question),
        "resps": [[reply.text]],
        "filtered_resps": [reply.text],
        "finish_reason": reply.finish_reason,
        "doc_hash": sha256_json(doc),
        metric.name: metric.score(reply.text, sample.answers),
        f"{metric.name}-lenient": metric.score(reply.text, sample.answers, lenient=True),
    }


def answer_all(
    vlm: VLM,
    log: AnswerLog,
    *,
    title: str = "evaluate",
    skip_failed: bool = False,
    after_chunk: Callable[[], None] = lambda: None,
) -> None:
    """Ask the questions that have no answer yet, in chunks that are written to the log.

    A server's failure never counts as an answer. With `skip_failed`, questions without an answer are counted in
    `log.unanswered` and left out; otherwise the first one raises MpaError, after the answers of its chunk are kept.
    `after_chunk` is called after each chunk.
    """
    missing, total = log.missing, len(log.spec.questions.samples)
    with progress(title, total, total - len(missing)) as advance:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            replies = ask(vlm, log.spec, [sample for _, sample in chunk])
            answered, problems = list[tuple[int, Sample, Reply]](), list[str]()
            for number, sample in chunk:
                reply = replies[sample.id]
                if isinstance(reply, Drop):
                    log.unanswered[reply.reason] += 1
                    path = log.spec.questions.folder / sample.image
                    problems.append(f"{path}: {reply.reason}; fix the image or remove its questions")
                elif reply.finish_reason == "failed" and reply.drop:
                    log.unanswered[reply.drop.reason] += 1
                    why = " ".join(filter(None, (reply.drop.reason, reply.drop.detail and f"({reply.drop.detail})")))
                    problems.append(f"{vlm.name} left a question unanswered, {why}: fix the server and rerun")
                else:
                    answered.append((number, sample, reply))
            log.add(answered)
            after_chunk()
            if problems and not skip_failed:
                raise MpaError(problems[0])
            advance(len(chunk))
