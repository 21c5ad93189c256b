"""Numbers, choices and objects: what people and models really write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.errors import MpaError
from mpa_edge.metrics import cautions, get_metric, unparsable
from mpa_edge.metrics.number import plain

GAUGE, LAMP = get_metric("number:relative=0.05,unit=bar"), get_metric("choice:red|green|no light")
PLATE = get_metric("json:serial=text,bar=number,ok=boolean,relative=0.01")
A1 = '{"serial": "A1", "bar": 3.5, "ok": true}'
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("3.5 bar", 1.0),
        ("3,5bar", 1.0),
        ("3.50", 1.0),
        ("3.6 BAR.", 1.0),
        (" 3.67", 1.0),
        ("3.68", 0.0),
        ("-3.5", 0.0),
        ("3.5 psi", 0.0),
        ("3.5 bar or so", 0.0),
        ("35", 0.0),
        ("three and a half", 0.0),
        ("", 0.0),
        ("inf", 0.0),
        ("1e999", 0.0),
    ],
)
def test_a_number_with_its_unit(prediction: str, right: float) -> None:
    assert GAUGE.score(prediction, ["3.5 bar"]) == right == GAUGE.score(prediction, ["x", "3,5"])


@pytest.mark.parametrize("sign", ["", "-"])
@given(st.integers(0, 10**9), st.integers(0, 2))
@settings(max_examples=50)
def test_every_way_to_write_a_number_is_that_number(sign: str, whole: int, digits: int) -> None:
    decimals = "1234"[:digits]
    written = f"{whole:,}"
    value = float(f"{sign}{whole}.{decimals or 0}")
    ways = [f"{written}.{decimals}", f"{written.replace(',', ' ')},{decimals}"] if decimals else [written]
    if decimals and whole > 999:
        ways.append(f"{written.replace(',', '.')},{decimals}")
    for way in ways:
        found = plain(sign + way)
        assert found is not None, way
        assert float(found) == value, way
        assert json.loads(found) == value


def test_a_choice_is_one_of_the_list() -> None:
    assert LAMP.score("Red", ["red"]) == LAMP.score("no light.", ["No light"]) == 1.0
    assert LAMP.score("reddish", ["red"]) == LAMP.score("blue", ["blue"]) == LAMP.score("", ["red"]) == 0.0
    assert LAMP.agrees("a red", "red")
    assert not LAMP.agrees("blue", "blue")


@pytest.mark.parametrize(
    ("prediction", "share"),
    [
        (A1, 1.0),
        (f"```json\n{A1}\n```", 1.0),
        ('{"ok": true, "bar": 3.52, "serial": " a1", "more": 1}', 1.0),
        ('{"serial": "A1", "bar": "3.5", "ok": true}', 1.0),
        ('{"serial": "A1", "bar": 3.6, "ok": true}', 2 / 3),
        ('{"serial": "A1", "bar": 3.5}', 2 / 3),
        ('{"serial": "A1", "bar": [3.5], "ok": "true"}', 1 / 3),
        ('{"serial": "A1", "bar": 3.5, "ok": 1}', 2 / 3),
        ("{}", 0.0),
        (f"Sure: {A1}", 0.0),
        (A1[:-1], 0.0),
        ("[1]", 0.0),
        ("A1", 0.0),
    ],
)
def test_an_object_scores_the_share_of_its_fields(prediction: str, share: float) -> None:
    assert PLATE.score(prediction, [A1]) == pytest.approx(share)


def test_a_field_that_cannot_be_read_is_null_on_both_sides() -> None:
    unread = '{"serial": null, "bar": 3.5, "ok": null}'
    assert PLATE.score('{"bar": 3.5}', [unread]) == 1.0
    assert PLATE.score('{"bar": 3.5, "serial": "A1", "ok": null}', [unread]) == pytest.approx(2 / 3)


def test_only_the_same_object_agrees() -> None:
    assert PLATE.agrees(A1, '{"serial": "a1.", "bar": 3.5, "ok": true}')
    assert not PLATE.agrees(A1, '{"serial": "A1", "bar": 3.5, "ok": false}')


@given(st.dictionaries(st.sampled_from(["serial", "bar", "ok", "x"]), values))
def test_what_is_canonical_stays_and_is_right(found: dict) -> None:
    form = PLATE.form
    assert form is not None
    canonical = form.canonical(f"Here: {json.dumps(found)} as asked")
    if canonical is not None:
        assert list(json.loads(canonical)) == ["serial", "bar", "ok"]
        assert form.canonical(canonical) == canonical
        assert PLATE.score(canonical, [canonical]) == 1.0


@pytest.mark.parametrize("metric", [GAUGE, LAMP, PLATE])
@given(st.text(max_size=30) | st.sampled_from(["{" * 3000, "9" * 5000, "[" * 100_000, '{"a":' * 5000]))
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_a_metric(metric, text: str) -> None:
    assert 0.0 <= metric.score(text, [text or "x"], lenient=True) <= 1.0
    assert 0.0 <= metric.score(text, ["3.5"]) <= 1.0


def test_answers_in_another_form_are_counted_and_said() -> None:
    assert unparsable(PLATE, [A1, "A1", "{}"]) == 1
    assert unparsable(get_metric("exact-match"), ["A1"]) is None
    (said,) = cautions("number", [["5"], ["five"]])
    assert said == "1 of 2 questions accept an answer that is no number, for which nothing is right: correct them"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("number:relative=-1", "relative is '-1', not a number from 0: write number:relative=0.05,unit=bar"),
        ("choice:red", "two choices or more are needed: write choice:red|green"),
        ("json", "each field once is needed: write json:serial=text"),
        ("json:a=text,a=number", "each field once is needed"),
        ("json:a=date", "field 'a' has no type"),
    ],
)
def test_a_wrong_parameter_is_one_line(name: str, problem: str) -> None:
    with pytest.raises(MpaError, match=problem.replace("|", r"\|")):
        get_metric(name)
