"""What counts of a device's output: only lines that were asked for, with values of the right types and sizes."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.bench.device.protocol import LINE_BYTES, JobOrder, Line, Step, to_line
from mpa_edge.bench.results import lines
from mpa_edge.bench.results.documents import Evidence, report_of
from mpa_edge.bench.results.lines import checked_lines, whole_lines
from mpa_edge.bench.results.timing import order
from tests.bench.results.test_documents import ALIGNED, BASE, LIMITS, PROBE, bench, evidence

HOSTILE: list[Any] = [1e308, -1e308, 10**400, -1, "1", "", None, True, [], {}, [[]], {"a": 1}, "x" * 10**6, 0.5, 2**63]


def honest() -> Evidence:
    return evidence(0.8)


def written(folder: Path, *parts: Any) -> Path:
    path = folder / "out.jsonl"
    path.write_text("".join(to_line(part) if isinstance(part, Line) else part for part in parts))
    return path


def report(found: lines.JobLines) -> str:
    plain = honest()
    made = report_of(
        bench(),
        "0" * 64,
        BASE,
        ALIGNED,
        Evidence(plain.order, found.lines, PROBE, [], "local", 5_000_000, (), found.cautions),
        LIMITS,
    )[0]
    return made.model_dump_json(exclude={"created"})


def test_an_honest_job_has_no_caution(tmp_path: Path) -> None:
    plain = honest()
    found = checked_lines(written(tmp_path, *plain.lines, Line("end")), plain.order)
    assert found.cautions == ()
    assert report(found) == report(lines.JobLines(tuple(plain.lines), ()))


def test_only_what_was_asked_counts_once_and_the_rest_is_a_caution(tmp_path: Path) -> None:
    """As a device might that wants to look fast: repetitions that nobody asked for, second answers, other questions."""
    plain = honest()
    fast = {"text": "no", "tokens": 3, "ttft_s": 1e-6}
    more = [
        *(Line("answer", "artifact", 0, {"id": "q1", "repetition": n, **fast}) for n in range(6, 5000)),
        *(Line("answer", line.variant, 0, line.values | fast) for line in plain.lines if line.kind == "answer"),
        Line("answer", "artifact", 0, {"id": "q-other", "repetition": 0, **fast}),
        Line("answer", "teacher", 0, {"id": "q1", "repetition": 0, **fast}),
        Line("loaded", "artifact", 10**9, {"load_s": 1e-6, "cold": True}),
        Line("memory", "artifact", 0, {"peak_bytes": 1, "method": "VmHWM"}),
    ]
    without = checked_lines(written(tmp_path, *plain.lines), plain.order)
    found = checked_lines(written(tmp_path, *plain.lines, *more), plain.order)
    assert found.lines == without.lines
    assert found.cautions == (
        "4997 lines of the device's out.jsonl answer what was not asked and do not count",
        "161 lines of the device's out.jsonl repeat earlier ones and do not count",
    )
    made = json.loads(report(found))
    assert made["verdict"] == "holds"
    assert made["latency"]["ttft_s"]["p50"] == 0.1
    assert made["reasons"][-2:] == list(found.cautions)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("kind", ["loaded", "answer", "memory", "failed"])
def test_no_value_of_a_line_raises_or_makes_a_number_that_is_none(tmp_path: Path, kind: str, value: Any) -> None:
    plain = honest()
    of_kind = lines.KINDS[kind]
    keys = list(of_kind.json_schema()["properties"])
    good = next((line.values for line in plain.lines if line.kind == kind), {})
    wrong = [Line(kind, "artifact", 0, {**good, key: value}) for key in keys]
    text = [json.dumps({"kind": kind, "variant": "artifact", "block": 0, "values": one.values}) + "\n" for one in wrong]
    text += [
        json.dumps({"kind": kind, "variant": "artifact", "block": 0, "values": {}} | {key: value}) + "\n"
        for key in ("kind", "variant", "block", "values", "more")
    ]
    found = checked_lines(written(tmp_path, *text, *plain.lines), plain.order)
    made = report(found)
    assert "NaN" not in made
    assert "Infinity" not in made
    assert all(figure["p50"] is None or 0 <= figure["p50"] < 1e9 for figure in json.loads(made)["latency"].values())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b'{"kind": "answer"', b"[" * 2000, b"9" * 5000, b"\xff"]))
)
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("job") / "out.jsonl"
    path.write_bytes(b"".join(parts))
    asked = JobOrder({"artifact": "models/artifact"}, (Step("artifact", "1"),))
    assert checked_lines(path, asked).lines == ()


def test_forty_thousand_lines_take_seconds(tmp_path: Path) -> None:
    ids = [f"q{i}" for i in range(120)]
    steps = order(ids, repetitions=166, timed_ids=ids, variants=["artifact", "base"], seed=0)
    asked = JobOrder({"artifact": "models/artifact", "base": "models/base"}, steps)
    values = {"text": "yes", "tokens": 3, "ttft_s": 0.1, "tpot_s": 0.01, "total_s": 0.2, "tokens_per_s": 100.0}
    said = [Line("answer", step.variant, 0, {"id": step.id, "repetition": step.repetition, **values}) for step in steps]
    path = written(tmp_path, Line("loaded", "artifact", 0, {"load_s": 0.5, "cold": True}), *said)
    assert len(said) > 39_000
    began = time.process_time()
    found = checked_lines(path, asked)
    report_of(bench(), "0" * 64, BASE, ALIGNED, Evidence(asked, found.lines, PROBE, [], "local", 5_000_000), LIMITS)
    assert time.process_time() - began < 20


def test_a_line_without_end_takes_no_memory_and_the_next_one_counts(tmp_path: Path) -> None:
    path, size = tmp_path / "out.jsonl", 40 * LINE_BYTES
    with path.open("wb") as file:
        file.write(b"{" + b" " * size + b"\n")
        file.write(to_line(Line("answer", "artifact", 0, {"id": "1", "repetition": 0, "text": "x"})).encode())
        file.write(b'{"torn": ')
    asked = JobOrder({"artifact": "models/artifact"}, (Step("artifact", "1"),))
    tracemalloc.start()
    found = checked_lines(path, asked)
    assert tracemalloc.get_traced_memory()[1] < 5 * LINE_BYTES
    tracemalloc.stop()
    assert [line.values["id"] for line in found.lines] == ["1"]
    assert found.cautions == ("1 lines of the device's out.jsonl are not the runner's and do not count",)


def test_a_file_without_end_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *[to_line(Line("end"))] * 100)
    assert len(list(whole_lines(path, path.stat().st_size // 2))) == 50
    monkeypatch.setattr(lines, "OUT_BYTES", 0)
    asked = JobOrder({"artifact": "models/artifact"}, (Step("artifact", "1"),))
    assert "the rest does not count" in checked_lines(path, asked).cautions[-1]


def test_words_of_a_device_hold_no_escape(tmp_path: Path) -> None:
    asked = JobOrder({"artifact": "models/artifact"}, (Step("artifact", "1"),))
    wrong = Line("failed", "artifact", 0, {"reason": "bad\x1b]0;title\x07\n\u202enews" + "x" * 10_000})
    (line,) = checked_lines(written(tmp_path, wrong), asked).lines
    assert line.values["reason"].startswith("bad ]0;title news")
    assert len(line.values["reason"]) == 400
