"""One model on a set of questions: its accuracy with its interval, and the file in which lmms-eval keeps both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.answer_log import AnswerLog, answer_all, log_doc, open_log
from mpa_edge.evaluation.predict import EvalSpec
from mpa_edge.evaluation.review import Decisions, reviewed_score
from mpa_edge.metrics import get_metric, unparsable
from mpa_edge.metrics.paired import bootstrap_ci95, mean
from mpa_edge.progress import say
from mpa_edge.questions import left_out
from mpa_edge.runs.files import read_json, sha256_json, write_json
from mpa_edge.runs.log import versions
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.paths import remove
from mpa_edge.types import VLM, Prediction

SAMPLES_MARK = "_samples_"


def results_path(out: Path) -> Path:
    """Where the score of an answer log is written: `x.jsonl` -> `x_results.json`, as lmms-eval pairs its files.

    >>> results_path(Path("a/x.jsonl")).name, results_path(Path("2026_samples_chartqa.jsonl")).name
    ('x_results.json', '2026_results.json')
    """
    return out.with_name(f"{out.stem.partition(SAMPLES_MARK)[0]}_results.json")


def identity_of(spec: EvalSpec, model_sha256: str) -> dict[str, str]:
    """What must be the same for an answer log to be resumed; more or fewer questions may be asked."""
    how = {"suffix": spec.task.short_answer_suffix, "tokens": spec.max_new_tokens, "pixels": spec.max_pixels}
    asked = {"questions": spec.questions.name, "metric": spec.task.metric, "prompt or limits": sha256_json(how)}
    return {"model": model_sha256} | asked


def run_eval(
    spec: EvalSpec,
    name: str,
    load_vlm: Callable[[], VLM],
    out: Path | None = None,
    model_sha256: str = "",
    fresh: bool = False,
    decisions: Decisions | None = None,
) -> dict[str, Any]:
    """Ask a model the questions that it has not answered yet, and score all answers.

    `name` is the model's name in the result; `load_vlm` is called only where a question is left to ask. With `out`,
    answers are logged there and the result is written to `results_path(out)`. With `decisions` about a teacher's
    questions, the accuracy is the true one. Raises MpaError where `out` holds the
    answers of another model (`model_sha256`) or to other questions, unless `fresh` discards them.
    """
    started, identity = time.monotonic(), identity_of(spec, model_sha256)
    with open_log(out, spec, fresh) if out else nullcontext(AnswerLog(spec)) as log:
        if out and log.logged:
            _check_same(out, identity, log)
        elif out:
            write_json(results_path(out), {"identity": identity, "finished": False})
        if log.missing:
            with closing(load_vlm()) as vlm:
                after_chunk = _keep_replies(vlm, out, fresh) if out else lambda: None
                answer_all(vlm, log, title=spec.questions.name, skip_failed=True, after_chunk=after_chunk)
        if log.unanswered:
            say(f"{spec.questions.name}: {left_out(log.unanswered)}")
        made = log.predictions(name)
        result = score(spec, name, made, log.unanswered, time.monotonic() - started)
        if decisions and (true := reviewed_score(made, decisions, spec.task.metric)):
            result |= true | {"agreement": result["accuracy"], "kinds": {}}
        if out:
            about = {"identity": identity, "finished": True, "versions": versions("torch", "transformers")}
            write_json(results_path(out), result | about)
    return result


def _keep_replies(vlm: VLM, out: Path, fresh: bool) -> Callable[[], None]:
    """Let a server's replies be kept beside the log as they come; the value forgets those that are in the log."""
    keep_books, path = getattr(vlm, "keep_books", None), out.with_name(f".{out.name}.replies")
    if keep_books is None:
        return lambda: None
    if fresh:
        remove(path)
    keep_books(lambda: None, path)
    forget: Callable[[], None] = vlm.forget_replies  # type: ignore[attr-defined]
    return forget


def _check_same(out: Path, identity: dict[str, str], log: AnswerLog) -> None:
    """Raise MpaError where the answers in a log are those of another model, or to other questions."""
    stored = read_json(results_path(out))
    before = stored.get("identity") if isinstance(stored, dict) else None
    if not isinstance(before, dict):
        raise MpaError(f"{out} has no {results_path(out).name} beside it: choose another --out, or --fresh")
    changed = ", ".join(key for key in identity if before.get(key) != identity[key])
    if changed:
        raise MpaError(f"{out} holds the answers of another run (other {changed}): choose another --out, or --fresh")
    questions = log.spec.questions
    for number, sample in zip(questions.numbers, questions.samples, strict=True):
        if number in log.logged and log.logged[number] != sha256_json(log_doc(sample)):
            raise MpaError(f"{out} holds the answers to other questions: choose another --out, or --fresh")


def score(
    spec: EvalSpec, model: str, made: Sequence[Prediction], unanswered: Mapping[str, int], seconds: float
) -> dict[str, Any]:
    """Strict accuracy with its interval and the lenient accuracy, of all answers and of each kind of question.

    `unanswered`: reason -> questions without an answer. MpaError where there is no answer at all.
    """
    questions = spec.questions
    if not made:
        reasons = ", ".join(unanswered)
        raise MpaError(
            f"{questions.name}: no question was answered ({reasons}): fix the images or the server, and rerun"
        )
    kinds = list(dict.fromkeys(row.kind for row in made if row.kind is not None))
    by_kind = {
        kind: [row for row in made if row.kind == kind]
        for kind in (kinds if questions.mean_of_kinds else sorted(kinds))
    }
    image_of = {sample.id: sample.image for sample in questions.samples}
    mean_of_kinds = questions.mean_of_kinds and len(kinds) > 1 and all(row.kind is not None for row in made)
    return {
        "model": model,
        "questions": questions.name,
        "note": questions.note,
        "dropped": dict(Counter(questions.dropped) + Counter(unanswered)),
        "truth": questions.truth,
        "images": len({image_of[row.sample_id] for row in made}),
        **_figures(spec, made, by_kind if mean_of_kinds else {}),
        "mean_of_kinds": mean_of_kinds,
        "kinds": {kind: _figures(spec, rows, {}) for kind, rows in by_kind.items()},
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _figures(spec: EvalSpec, made: Sequence[Prediction], by_kind: Mapping[str, Sequence[Prediction]]) -> dict[str, Any]:
    """The figures of some answers; where `by_kind` is given, each kind has the same weight."""
    metric = get_metric(spec.task.metric)
    weights = [len(made) / len(by_kind) / len(by_kind[row.kind or ""]) if by_kind else 1.0 for row in made]
    strict = [row.score * weight for row, weight in zip(made, weights, strict=True)]
    lenient = [
        metric.score(row.text, row.answers, lenient=True) * weight for row, weight in zip(made, weights, strict=True)
    ]
    images = [row.image_id for row in made]
    wrong_form = unparsable(metric, [row.text for row in made])
    return {
        "n": len(made),
        "metric": metric.name,
        "accuracy": mean(strict),
        "ci95": bootstrap_ci95(strict, images, resamples=spec.bootstrap, seed=spec.seed, low=0.0),
        "lenient": {"metric": f"{metric.name}-lenient", "accuracy": mean(lenient)},
    } | ({} if wrong_form is None else {"unparsable": wrong_form})


def accuracy_by_kind(made: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, float]]:
    """Model -> predictions on the same questions; for each kind of question their number and each model's accuracy."""
    first = next(iter(made.values()))
    kinds = sorted({row.kind for row in first if row.kind is not None})
    return {
        kind: {"n": float(sum(row.kind == kind for row in first))}
        | {name: mean([row.score for row in rows if row.kind == kind]) for name, rows in made.items()}
        for kind in kinds
    }
