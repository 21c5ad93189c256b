"""Words, drawings, samples and the terminal's table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.report import drawing, words
from mpa_edge.bench.report.compare import compare_all, report_document
from mpa_edge.bench.report.html import render_html
from mpa_edge.bench.report.read import BenchData, read_bench
from mpa_edge.bench.report.table import render_comparison, render_table, verdict_line
from mpa_edge.bench.results.records import AnswerRow, BenchReport, Figure
from mpa_edge.bench.results.samples import pick, story
from mpa_edge.questions.own import SILVER_NOTE
from tests.bench import made_up
from tests.bench.report import hostile

REAL = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


def changed(data: BenchData, **values: object) -> BenchData:
    report: BenchReport = data.report.model_copy(update=values)
    return replace(data, report=report)


def row(scores: tuple[float, float, float], name: str = "q", thumbnail: str | None = None) -> AnswerRow:
    return AnswerRow(
        id=name,
        image="a.png",
        question="?",
        kind=None,
        answers=("1",),
        base="1",
        aligned="1",
        artifact="1",
        scores=scores,
        thumbnail=thumbnail,
    )


# --- words and drawings -----------------------------------------------------------------------------------------------


@given(st.text(max_size=600))
def test_visible_text_hides_nothing(text: str) -> None:
    shown = words.visible(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]", shown)
    shown.encode()


@given(REAL, REAL)
def test_a_scale_holds_its_range(a: float, b: float) -> None:
    low, high = sorted((a, b))
    axis = drawing.scale(low, high)
    reach = 1e-6 * max(1.0, abs(low), abs(high))
    assert axis.low <= low + reach
    assert axis.high >= high - reach
    assert 2 <= len(axis.ticks) <= 12
    assert 0 <= axis.at(a) <= 100


def test_phases_are_the_whole(holds: BenchData) -> None:
    latency = holds.report.latency
    total = latency["total_s"].p50
    assert total is not None
    assert sum(drawing.phases(latency).values()) == pytest.approx(total, rel=0.03)


def test_phases_without_a_split_are_still_drawn(holds: BenchData) -> None:
    kept = {name: holds.report.latency[name] for name in ("ttft_s", "total_s")}
    assert list(drawing.phases(kept)) == ["everything before the first token", "tokens after the first"]
    assert drawing.phases({}) == {}
    none = Figure(unit="s", n=0, p50=None, p90=None, p99=None, ci95=None)
    assert drawing.phases({"ttft_s": none, "total_s": none}) == {}


def test_stacks_fit_one_scale(holds: BenchData) -> None:
    found = drawing.stacks(holds.report)
    assert list(found) == ["artifact", "base"]
    assert len(drawing.phase_names(found)) == len({name for segments in found.values() for name in segments})
    ends = [one.start + one.width for segments in found.values() for one in segments.values()]
    assert max(ends) == pytest.approx(100, abs=0.1)


def test_the_front_only_climbs(benches: list[BenchData]) -> None:
    sweep = next(data.sweep for data in benches if data.sweep)
    places = drawing.sweep_places(sweep)
    assert [place.chosen for place in places].index(True) == 0
    assert {place.point.on_front for place in places} == {True, False}
    steps = drawing.front_line(places)
    assert all(y2 <= y1 and x2 >= x1 for x1, y1, x2, y2 in steps)
    assert drawing.front_line([]) == []


def test_a_sweep_without_times_has_no_drawing(holds: BenchData) -> None:
    assert holds.sweep is not None
    points = tuple(point.model_copy(update={"ttft_s": None}) for point in holds.sweep.points)
    bare = replace(holds, sweep=holds.sweep.model_copy(update={"points": points, "recommended": None}))
    text = render_html([bare])
    assert "No drawing: no setting has a time that counts" in text
    assert "None is recommended" in text


def test_a_setting_may_be_any_text() -> None:
    assert words.settings_text({"threads": "<b>", "image_budget": 4, "scheme": "x"}) == "x, <b> threads, 4 tiles"


def test_a_recommendation_that_is_not_there_is_none(holds: BenchData) -> None:
    assert holds.sweep is not None
    assert words.sweep_sentence(holds.sweep.model_copy(update={"recommended": 99})).startswith("None is recommended")


def test_samples_start_with_changes() -> None:
    rows = [row((1, 1, 1), f"same{i}") for i in range(50)] + [row((0, 1, 0), "lost"), row((0, 1, 1), "gained")]
    chosen = pick(rows)
    assert len(chosen) == 12
    assert [one.id for one in chosen[:2]] == ["lost", "gained"]
    assert len({one.id for one in chosen}) == 12
    assert pick([]) == []
    assert pick(rows[:3]) == rows[:3]


def test_samples_prefer_those_with_a_thumbnail() -> None:
    rows = [row((0, 1, 0), f"bare{i}") for i in range(20)] + [row((0, 1, 0), "seen", "thumbnails/seen.jpg")]
    assert pick(rows)[0].id == "seen"
    many = [row((1, 1, 1), f"seen{i}", f"thumbnails/{i}.jpg") for i in range(12)]
    assert all(one.thumbnail for one in pick([*rows[:20], *many]))


def test_samples_go_over_the_kinds_in_turn() -> None:
    rows = [row((0, 1, 1), f"{kind}{i}").model_copy(update={"kind": kind}) for kind in "abc" for i in range(5)]
    assert [one.id for one in pick(rows, 6)] == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_only_samples_that_count_are_drawn(holds: BenchData) -> None:
    found = drawing.dots(holds.timings, "ttft_s")
    assert found is not None
    assert (found.counts, found.beyond) == ({"artifact": 40, "base": 40}, 0)
    asked_once = [one.model_copy(update={"repetition": 0}) for one in holds.timings]
    assert drawing.dots(asked_once, "ttft_s") is None
    slow = holds.timings[0].model_copy(update={"values": {"ttft_s": 60.0}})
    outlier = drawing.dots((*holds.timings, slow), "ttft_s")
    assert outlier is not None
    assert outlier.beyond == 1
    assert outlier.axis.high < 3


def test_every_outcome_has_a_story() -> None:
    cases = [(b, a, q) for b in (0, 1) for a in (0, 1) for q in (0, 1)]
    assert story(row((0, 1, 0))) == "lost on the device"
    assert {story(row(case)) for case in cases} >= {"gained", "lost by alignment", "right in all three"}
    assert len(pick([row(case, str(case)) for case in cases])) == 8


# --- the page as text -------------------------------------------------------------------------------------------------


def test_the_page_is_the_same_every_time(run: Path, benches: list[BenchData]) -> None:
    again = [read_bench(data.folder) for data in benches]
    assert render_html(benches) == render_html(again)


def test_the_page_says_what_is_asked_for(holds: BenchData) -> None:
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", render_html([holds]))).replace("\u00a0", " ")
    for part in (
        "The gain holds",
        "at least 76 % with 95 % confidence",
        "vision encoder",
        "missed by 10 %",
        "Settings for jetson",
        "lost on the device",
        "not readable: permission denied",
        "0.146 J per generated token",
        "Not timed",
        "decoding of the image file",
        "max(VmHWM, VmRSS + VmSwap)",
    ):
        assert part in text


def test_refused_schemes_are_named(holds: BenchData) -> None:
    text = render_html([holds])
    assert "refused: gguf-q4" in text
    assert "it may lose 2.7 points of accuracy" in text


def test_an_inconclusive_one_says_what_would_settle_it(benches: list[BenchData]) -> None:
    data = next(data for data in benches if data.report.verdict == "inconclusive")
    number = f"About {data.report.n_to_settle:,} questions would settle it; 60 were asked."
    assert number in words.summary(data.report)
    assert number in render_table(data)
    assert number.replace(",", "&#44;") in render_html([data]) or number in render_html([data])


def test_an_emulated_one_gives_no_timing_verdict(benches: list[BenchData]) -> None:
    data = next(data for data in benches if data.report.emulated)
    text = render_html([data])
    assert "Timings do not count; the gain holds" in text
    assert text.count("gives no verdict") == 3
    assert text.count("not judged") == 3
    assert "Not measured: emulated" in text


def test_missing_parts_are_said(holds: BenchData) -> None:
    bare = replace(holds, answers=(), timings=(), thumbnails={}, sweep=None, notes=("answers.jsonl is missing",))
    nothing = Figure(unit="s", n=0, p50=None, p90=None, p99=None, ci95=None)
    bare = changed(bare, latency={"ttft_s": nothing}, base_latency={}, budgets=(), energy=None)
    for text in (render_html([bare]), render_table(bare)):
        assert "The gain holds" in text
    assert "No answer was timed" in render_html([bare])
    assert "answers.jsonl is missing" in render_html([bare])


def test_no_gain_is_said(holds: BenchData) -> None:
    found = holds.report.accuracy
    none = changed(holds, accuracy=found.model_copy(update={"retained_gain": None, "retained_gain_lower": None}))
    assert "Alignment brought no gain here." in words.summary(none.report)
    assert "no gain beyond noise" in render_html([none])
    lost = changed(holds, accuracy=found.model_copy(update={"retained_gain": -0.1, "retained_gain_lower": -0.5}))
    assert "Nothing of the gain is left." in words.summary(lost.report)


def test_the_log_is_named_in_one_line(run: Path, benches: list[BenchData], holds: BenchData) -> None:
    assert "run.log" not in render_html(benches)
    logged = replace(holds, has_log=True)
    assert "<p>Log: run.log</p>" in render_html([logged]).partition("<footer>")[2]
    assert "<p>Log: run.log</p>" in render_html([*benches[1:], logged])


# --- table and JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_the_table_keeps_its_width(benches: list[BenchData], width: int, tmp_path: Path) -> None:
    for data in (*benches, hostile.write(tmp_path)):
        text = render_table(data, width)
        table = text[text.index("accuracy") :]
        assert max(map(len, table.splitlines())) <= width
        assert "\x1b" not in text
        assert "accuracy" in text


def test_the_table_says_the_verdict_first(benches: list[BenchData]) -> None:
    starts = {data.report.verdict: render_table(data).split(":")[0] for data in benches}
    assert starts == {
        "holds": "✓ The gain holds",
        "lost": "✗ The gain is lost",
        "inconclusive": "? Not settled yet",
        "invalid": "! Timings do not count; the gain holds",
    }
    assert verdict_line(benches[1]) == "✗ lost: minicharts: gguf-q2_k on jetson, 55.0 %"


def test_the_comparison_is_in_all_forms(holds: BenchData, tmp_path: Path) -> None:
    worse = read_bench(made_up.write(tmp_path / "worse", run="newer", slower=1.2))
    comparisons, alone = compare_all([holds], [worse])
    assert "✗ regression" in render_comparison(comparisons[0])
    assert "6 regressions beyond noise" in render_html([worse], comparisons, alone)
    document = report_document([worse], comparisons, alone)
    assert document["regressions"] == 6
    assert json.loads(json.dumps(document))["benches"][0]["bench"]["run"] == "newer"
    better, _ = compare_all([worse], [holds])
    assert "No regression beyond noise" in render_html([holds], better)


def test_agreement_with_the_teacher_is_never_called_accuracy(holds: BenchData) -> None:
    data = replace(changed(holds, truth="teacher", refused=()), sweep=None)
    for text in (render_table(data), re.sub("<[^>]*>", " ", render_html([data], []))):
        said = " ".join(text.split())
        assert SILVER_NOTE in said
        assert "greement with the teacher" in said.replace(SILVER_NOTE, "")
        assert "accuracy" not in said.replace(SILVER_NOTE, "").lower()
    comparisons, _ = compare_all([holds], [data])
    assert comparisons[0].differences == ("answers compared with: labels → teacher",)
