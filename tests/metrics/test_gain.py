"""The verdict's error rates are what it says: simulated, not believed."""

from __future__ import annotations

import numpy as np
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.metrics.gain import accuracy_result, clustered, judge, not_worse, settling
from mpa_edge.metrics.paired import mcnemar_above

DRAWS = 2000
Scores = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def world(
    rng: np.random.Generator, n: int, keep: float, *, base: float = 0.6, gain: float = 0.08, per: int = 1
) -> Scores:
    """Scores of base, aligned and an artifact that keeps each change of aligned with probability `keep`.

    `per` questions share a image; half of the images' difficulty is their own.
    """
    images = n // per
    ease = np.repeat(rng.normal(0, 0.15, images), per)
    before = (rng.random(n) < np.clip(base + ease, 0, 1)).astype(float)
    fixed = (gain + 0.06 * base) / (1 - base)
    after = np.where(before == 1, rng.random(n) > 0.06, rng.random(n) < fixed).astype(float)
    shipped = np.where(rng.random(n) < keep, after, before)
    return before, after, shipped, np.arange(n) // per


def share_of(word: str, seed: int, n: int, keep: float, **options: float) -> float:
    rng = np.random.default_rng(seed)
    return sum(judge(*world(rng, n, keep, **options)).verdict == word for _ in range(DRAWS)) / DRAWS


@pytest.mark.slow
@pytest.mark.parametrize(("n", "per"), [(200, 1), (500, 1), (1000, 4)])
def test_at_the_border_holds_is_said_in_at_most_one_of_twenty(n: int, per: int) -> None:
    """Half of the gain kept is exactly what the test is against: nominal 5 %."""
    assert share_of("holds", n, n, 0.5, per=per) <= 0.06
    assert share_of("lost", n + 1, n, 0.5, per=per) <= 0.065


@pytest.mark.slow
def test_a_lost_gain_hardly_ever_holds() -> None:
    assert share_of("holds", 3, 500, 0.0) == 0.0


@pytest.mark.slow
def test_no_gain_on_the_host_never_holds_by_more_than_chance() -> None:
    assert share_of("holds", 4, 500, 1.0, gain=0.0) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("n", "at_least"), [(200, 0.5), (500, 0.85), (1000, 0.98)])
def test_power_where_nearly_all_is_kept(n: int, at_least: float) -> None:
    assert share_of("holds", 5, n, 0.95) >= at_least


@pytest.mark.slow
def test_power_to_see_a_loss() -> None:
    assert share_of("lost", 6, 1000, 0.0) >= 0.9


def test_the_number_that_would_settle_it_does() -> None:
    """With the n that a large undecided-looking sample asks for, about four of five benchmarks are decided."""
    rng = np.random.default_rng(7)
    base, aligned, shipped, names = world(rng, 4000, 0.9)
    n = settling((shipped - base) - 0.5 * (aligned - base), names)
    assert n == len(base) + 1, "four thousand are more than enough"
    small = judge(*world(rng, 60, 0.75))
    assert (small.verdict, small.n_to_settle is not None) == ("inconclusive", True)
    kept = (shipped - base) - 0.5 * (aligned - base)
    needed = round(len(base) * (2.4865 * clustered(kept, names)[1] / kept.mean()) ** 2)
    decided = [judge(*world(rng, needed, 0.9)).verdict == "holds" for _ in range(300)]
    assert 0.65 <= np.mean(decided) <= 0.95


def test_words_and_reasons() -> None:
    names = [str(i) for i in range(300)]
    base, aligned = np.r_[np.zeros(150), np.ones(150)], np.r_[np.ones(60), np.zeros(90), np.ones(150)]
    kept = judge(base, aligned, aligned, names)
    assert (kept.verdict, kept.n_to_settle) == ("holds", None)
    assert kept.reasons[0] == "more than 50% of the gain is left, with 95 % confidence"
    gone = judge(base, aligned, base, names)
    assert gone.verdict == "lost"
    worse = judge(aligned, base, base, names)
    assert (worse.verdict, worse.reasons) == ("lost", ("aligned is worse than base on the host already",))
    same = judge(base, base, base, names)
    assert (same.verdict, same.n_to_settle) == ("inconclusive", None)
    assert "aligned is not certainly better than base on these 300 questions" in same.reasons


def test_one_image_says_nothing() -> None:
    base, aligned = np.zeros(50), np.ones(50)
    assert judge(base, aligned, aligned, ["one"] * 50).verdict == "inconclusive"


def test_figures_of_a_result() -> None:
    base, aligned, shipped = (
        [0.0] * 60 + [1.0] * 40,
        [1.0] * 30 + [0.0] * 30 + [1.0] * 40,
        [1.0] * 24 + [0.0] * 36 + [1.0] * 40,
    )
    result = accuracy_result(base, aligned, shipped, [str(i) for i in range(100)])
    assert (result.base.value, result.aligned.value, result.artifact.value) == (0.4, 0.7, 0.64)
    assert result.artifact.correct == 64
    assert result.retained_gain == 0.8
    assert result.retained_gain_lower is not None
    assert 0.5 < result.retained_gain_lower < 0.8
    assert (result.flips.gained, result.flips.lost) == (24, 0)
    assert result.p_mcnemar == mcnemar_above(24, 0) < 1e-6
    assert not not_worse(aligned, aligned, [str(i) for i in range(100)])  # three of a hundred may differ unseen
    assert not_worse(aligned * 2, aligned * 2, [str(i) for i in range(200)])
    assert not not_worse(aligned, shipped, [str(i) for i in range(100)])


def test_no_gain_retains_nothing() -> None:
    result = accuracy_result([1.0, 0.0], [1.0, 0.0], [1.0, 1.0], ["a", "b"])
    assert (result.retained_gain, result.retained_gain_lower) == (None, None)


def test_other_questions_are_refused() -> None:
    with pytest.raises(MpaError, match="were asked different questions"):
        accuracy_result([1.0], [1.0, 0.0], [1.0], ["a"])


def test_clusters_widen_the_error_where_images_agree() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0] * 10
    alone = clustered(values, [str(i) for i in range(80)])[1]
    together = clustered(values, [str(i // 4) for i in range(80)])[1]
    assert 1.8 < together / alone < 2.2
