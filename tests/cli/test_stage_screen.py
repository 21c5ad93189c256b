"""What is on screen when a run is not evaluated yet."""

from mpa_edge.cli._stage import so_far
from mpa_edge.types import AlignReport

REPORT = AlignReport(
    run="runs/x",
    images=3,
    annotated=12,
    dropped={},
    verified=0,
    gap=0,
    accuracy=None,
    gain=None,
    gain_ci95=None,
    p_mcnemar=None,
    seconds={},
    peak_rss_bytes=1,
)


def test_a_question_that_nobody_asked_is_not_a_zero() -> None:
    assert so_far(REPORT, asked=False) == "12 annotated"


def test_after_identify_zeros_are_results() -> None:
    assert so_far(REPORT, asked=True) == "12 annotated, 0 verified, 0 gap"
