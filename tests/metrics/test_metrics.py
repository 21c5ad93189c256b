"""What must hold for every metric, and what lenient must never do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.errors import MpaError
from mpa_edge.metrics import METRICS, Metric, get_metric
from mpa_edge.metrics.lenient import normalized, number, same

every = pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
texts = st.text(max_size=30) | st.sampled_from(
    ["", "the", "a", '"', "$5", "1,000", "5%", "U.S.", "-5", "...", "''", "İ"]
)

DIFFERENT = [
    ("no", "not"),
    ("1", "2013"),
    ("-5", "5"),
    ("6.8", "68"),
    ("6.8", "6,8"),
    ("1,00", "100"),
    ("2012", "2013"),
    ("", ""),
    (".", "."),
    ('""', '""'),
    ("'.'", "."),
    ("cat", "cats and dogs"),
    ("left", "right"),
    ("male", "female"),
    ("50", "500"),
    ("1.5", "15"),
    ("route 66", "route 65"),
    ("5", "five apples"),
    ("0", ""),
    ("", "yes"),
    ("2000", "1990"),
    ("inside", "outside"),
    ("A", "B"),
    ("12:30", "12:20"),
    ("5", "-5%"),
]
ALIKE = [
    ("Yes.", "yes"),
    (" red ", "Red"),
    ('"stop"', "stop"),
    ("'stop'.", "STOP"),
    ("“Stop”", "stop"),
    ("3.5.", "3.5"),
]
ALIKE_BUT_FOR_EXACT_MATCH = [
    ("50%", "50"),
    ("50 %", "50"),
    ("$5", "5"),
    ("-$5", "-5"),
    ("$1,234.50", "1234.50"),
    ("the dog", "dog"),
    ("A", "a"),
    ("An apple!", "apple"),
    ("1,000,000", "1000000"),
    ("coca  cola,", "Coca Cola"),
    ("The 'Who'", "who"),
]


@every
@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_lenient_keeps_apart(metric: Metric, left: str, right: str) -> None:
    assert metric.score(left, [right], lenient=True) == 0.0
    assert metric.score(right, [left], lenient=True) == 0.0
    assert not metric.agrees(left, right)


@every
@pytest.mark.parametrize(("left", "right"), ALIKE)
def test_lenient_forgives_form(metric: Metric, left: str, right: str) -> None:
    assert metric.score(left, [right], lenient=True) == metric.score(right, [left], lenient=True) == 1.0
    assert metric.agrees(left, right)


@pytest.mark.parametrize("name", ["vqa-accuracy", "anls", "relaxed-accuracy"])
@pytest.mark.parametrize(("left", "right"), ALIKE_BUT_FOR_EXACT_MATCH)
def test_lenient_forgives_signs_and_articles(name: str, left: str, right: str) -> None:
    assert METRICS[name].score(left, [right], lenient=True) == METRICS[name].score(right, [left], lenient=True) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("0.0", "0", 1),
        ("0.001", "0", 0),
        ("1999", "1999.0", 1),
        ("1999", "2000", 0),
        ("2100", "2101", 1),
        ("1499", "1500", 1),
        ("$1,020.00", "1000", 1),
        ("1e3", "1000", 1),
        ("52%", "50", 1),
        ("0.5", "50%", 0),
        ("nan", "nan", 1),
        ("1e999", "1e999", 1),
        ("1e999", "5", 0),
        ("%", "%", 0),
        ("$", "$", 0),
    ],
)
def test_lenient_relaxed_numbers(prediction: str, answer: str, right: int) -> None:
    assert METRICS["relaxed-accuracy"].score(prediction, [answer], lenient=True) == right


def test_strict_knows_nothing_of_lenient() -> None:
    assert METRICS["relaxed-accuracy"].score("5.%", ["5"]) == 0.0
    assert METRICS["vqa-accuracy"].score("Yes.", ["yes"] * 10) == 0.0
    assert METRICS["exact-match"].score("yes.", ["yes"]) == 0.0
    assert METRICS["anls"].score("yes.", ["yes"]) == 0.75


def test_lenient_vqa_is_leave_one_out_over_ten() -> None:
    score = METRICS["vqa-accuracy"].score
    by_matches = [score("Stop.", ["stop"] * k + ["go"] * (10 - k), lenient=True) for k in range(5)]
    assert by_matches == [0.0, 0.3, 0.6, 0.9, 1.0]
    assert score("stop", ["stop", "go"], lenient=True) == 0.5


@every
@settings(max_examples=200, deadline=None)
@given(prediction=texts, answers=st.lists(texts, min_size=1, max_size=11), lenient=st.booleans())
def test_scores_are_floats_in_the_unit_interval(
    metric: Metric, prediction: str, answers: list[str], lenient: bool
) -> None:
    score = metric.score(prediction, answers, lenient=lenient)
    assert type(score) is float
    assert 0.0 <= score <= 1.0
    assert score == metric.score(prediction, answers[::-1], lenient=lenient) or metric.name == "vqa-accuracy"


@every
@settings(max_examples=200, deadline=None)
@given(left=texts, right=texts)
def test_equal_is_right_unless_nothing_is_left(metric: Metric, left: str, right: str) -> None:
    assert metric.agrees(left, left) == (metric.score(left, [left], lenient=True) == 1.0)
    if any(char.isalnum() for char in left):
        assert metric.agrees(left, left)
    if metric.name != "relaxed-accuracy":
        assert metric.agrees(left, right) == metric.agrees(right, left)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_normalized_is_stable(text: str) -> None:
    once = normalized(text)
    assert normalized(once) == once
    assert same(text, once) == (once != "")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(value: float) -> None:
    assert number(normalized(repr(value))) == value


@every
@pytest.mark.parametrize(("answers", "fix"), [([], "give at least one"), ("yes", "put it into a list")])
@pytest.mark.parametrize("lenient", [False, True])
def test_bad_answers(metric: Metric, answers: list[str], fix: str, lenient: bool) -> None:
    with pytest.raises(MpaError, match=fix):
        metric.score("yes", answers, lenient=lenient)


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(MpaError, match=r"did you mean 'vqa-accuracy'\?$"):
        get_metric("vqa_accuracy")
    with pytest.raises(
        MpaError, match=r"use vqa-accuracy, anls, relaxed-accuracy, exact-match, number:.*json:serial=text$"
    ):
        get_metric("zzz")
