"""From lines of a job to rows and figures."""

from __future__ import annotations

import pytest

from mpa_edge.bench.device.protocol import Line, Step
from mpa_edge.bench.results.build import answer_rows, busy, peak_memory, require_all
from mpa_edge.errors import MpaError
from mpa_edge.tasks import get_task
from mpa_edge.types import Prediction


def answer(question: str, text: str, variant: str = "artifact", repetition: int = 0, block: int = 0) -> Line:
    values = {"id": question, "repetition": repetition, "text": text, "tokens": 3}
    return Line("answer", variant, block, values)


def prediction(question: str, text: str, score: float) -> Prediction:
    return Prediction(
        sample_id=question,
        image_id=f"{question}.png",
        kind="word",
        question="Which?",
        answers=("red",),
        model="m",
        text=text,
        score=score,
    )


def test_the_first_answer_on_the_device_is_scored_beside_those_of_the_host() -> None:
    lines = [answer("1", "red"), answer("2", "blue"), answer("1", "green", repetition=1), answer("2", "red", "base")]
    base = [prediction("1", "blue", 0.0), prediction("2", "red", 1.0)]
    aligned = [prediction("1", "red", 1.0), prediction("2", "red", 1.0)]
    made = answer_rows(get_task("minicharts"), base, aligned, lines)
    assert [(one.base, one.aligned, one.artifact, one.scores) for one in made] == [
        ("blue", "red", "red", (0.0, 1.0, 1.0)),
        ("red", "red", "blue", (1.0, 1.0, 0.0)),
    ]


def test_a_missing_answer_ends_with_the_runners_reason_and_what_to_do() -> None:
    steps = [Step("artifact", "1"), Step("artifact", "1", 1), Step("base", "1")]
    require_all(steps, [answer("1", "x"), answer("1", "x", repetition=1), answer("1", "x", "base")])
    lines = [answer("1", "x"), Line("failed", "artifact", 0, {"reason": "killed by signal 9"})]
    with pytest.raises(MpaError, match=r"2 of 3 answers are missing: killed by signal 9; rerun to resume"):
        require_all(steps, lines)


def test_memory_is_the_largest_of_a_variants_processes_or_says_why_not() -> None:
    lines = [
        Line("memory", "artifact", 0, {"peak_bytes": 5, "method": "VmHWM"}),
        Line("memory", "artifact", 2, {"peak_bytes": 9, "method": "VmHWM"}),
        Line("memory", "base", 1, {"peak_bytes": 99, "method": "VmHWM"}),
    ]
    assert (peak_memory(lines, "artifact").peak_bytes, peak_memory(lines, "artifact").method) == (9, "VmHWM")
    denied = [Line("memory", "artifact", 0, {"peak_bytes": None, "method": "/proc is closed"})]
    assert (peak_memory(denied, "artifact").peak_bytes, peak_memory(denied, "artifact").method) == (
        None,
        "/proc is closed",
    )
    assert peak_memory([], "artifact").peak_bytes is None


def test_busy_times_belong_to_one_variant_and_count_its_tokens() -> None:
    lines = [
        Line("loaded", "artifact", 0, {"uptime_s": 8.0, "load_s": 2.0}),
        answer("1", "x"),
        answer("2", "x"),
        Line("memory", "artifact", 0, {"uptime_s": 14.0}),
        Line("loaded", "base", 1, {"uptime_s": 15.0}),
        answer("1", "x", "base", 1, 1),
        Line("memory", "base", 1, {"uptime_s": 19.0}),
        Line("loaded", "artifact", 2, {"uptime_s": 20.0}),  # killed: it never said its end
    ]
    assert busy(lines, "artifact") == ([(10.0, 14.0)], 6)
