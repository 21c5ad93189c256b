"""True means from silver rows and reviewed ones: against ppi-python, and by 2,000 simulated reviews."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpa_edge.errors import MpaError
from mpa_edge.metrics.interval import mean_bounds
from mpa_edge.metrics.prediction_powered import estimate

Scores = NDArray[np.float64]
TIMES = 2000
REVIEWED = 100

# ppi_mean_pointestimate and ppi_mean_ci of ppi-python 0.2.3 on `binary` and `continuous` rows: its dependencies (numba,
# statsmodels, scikit-learn) are ten times the size of ours, so its results stand here
PEER = (
    ("binary", 0, 200, 2000, 0.9, 0.5792923653361033, (0.534302696861021, 0.6242820338111855)),
    ("binary", 1, 500, 1500, 0.7, 0.6047793335838162, (0.5653083924669128, 0.6442502747007196)),
    ("binary", 2, 1000, 20000, 0.8, 0.5998874858370902, (0.5750123547195825, 0.6247626169545979)),
    ("binary", 3, 300, 900, 0.95, 0.6080976589621819, (0.5697048134968646, 0.6464905044274992)),
    ("continuous", 10, 200, 2000, 0.1, 0.48593730778015665, (0.47279121181250927, 0.499083403747804)),
    ("continuous", 11, 500, 2500, 0.3, 0.4991855556527415, (0.4875716739346274, 0.5107994373708555)),
)


@pytest.mark.parametrize(("kind", "seed", "n", "n_all", "share", "value", "ci"), PEER)
def test_is_that_of_the_authors(
    kind: str, seed: int, n: int, n_all: int, share: float, value: float, ci: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    if kind == "binary":
        true = (rng.random(n_all) < 0.6).astype(float)
        silver = np.where(rng.random(n_all) < share, true, 1 - true)
    else:
        true = rng.normal(0.5, 0.15, n_all).clip(0, 1)
        silver = true + rng.normal(0.05, share, n_all)
    found = estimate(silver, dict(enumerate(true[:n].tolist())), [str(i) for i in range(n_all)])
    assert found.value == pytest.approx(value, abs=1e-12)
    # ours is a little wider: Student's quantile, and half a row more in each direction
    added = (found.ci95[1] - found.ci95[0]) - (ci[1] - ci[0])
    assert 0 < added < (0.005 if kind == "binary" else 0.007)


def rows(
    rng: np.random.Generator, n: int, group: int, **shares: float
) -> tuple[list[str], Scores, Scores, NDArray[np.bool_]]:
    """(group of each row, true and silver scores of two models as (2, n), whether it can be answered)."""
    groups = np.repeat(np.arange(n), rng.integers(1, 2 * group, n) if group > 1 else 1)[:n]
    common = rng.random((4, n))[:, groups]
    drawn = np.where(rng.random((4, n)) < 0.3, common, rng.random((4, n)))  # rows of a group are alike
    teacher, before = drawn[0] < shares["teacher"], drawn[1] < shares["before"]
    after = np.where(before, drawn[2] >= shares["lost"], drawn[3] < shares["gained"])
    # where the teacher is wrong, a wrong model may say the same
    same = rng.random(n) < shares.get("same", 0.3)
    same_after = np.where(after == before, same, rng.random(n) < shares.get("same_after", 0.3))
    silver = [np.where(teacher, b, ~b & s) for b, s in ((before, same), (after, same_after))]
    return (
        [str(group) for group in groups],
        np.array([before, after], float),
        np.array(silver, float),
        rng.random(n) >= 0.05,
    )


PLAIN = {"teacher": 0.9, "before": 0.5, "gained": 0.3, "lost": 0.05}
WORLDS = {
    "plain": (600, 1, PLAIN),
    "groups": (600, 5, PLAIN),
    "small set": (300, 3, PLAIN),
    "worse": (600, 1, PLAIN | {"gained": 0.1, "lost": 0.4}),
    "wrong in the same way as its student": (1000, 4, PLAIN | {"same_after": 0.9}),
    "hardly a difference": (600, 1, PLAIN | {"gained": 0.04, "lost": 0.01}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_covers_the_truth_and_is_narrower(name: str) -> None:
    n, group, shares = WORLDS[name]
    rng = np.random.default_rng(1)
    _, true, _, possible = rows(rng, 400_000, 1, **shares)
    targets = true[0][possible].mean(), (true[1] - true[0])[possible].mean()
    times = TIMES if name in ("plain", "groups") else TIMES // 4
    hits, widths, alone = np.zeros(2), np.zeros(2), np.zeros(2)
    for _ in range(times):
        clusters, true, silver, possible = rows(rng, n, group, **shares)
        chosen = rng.permutation(n)[:REVIEWED]
        known = [row for row in chosen if possible[row]]
        of_two = ((true[0], silver[0], 0.0), (true[1] - true[0], silver[1] - silver[0], -1.0))
        for i, (y, s, low) in enumerate(of_two):
            reviewed = {int(row): float(y[row]) if possible[row] else None for row in chosen}
            ends = estimate(s, reviewed, clusters, low=low).ci95
            hits[i] += ends[0] <= targets[i] <= ends[1]
            widths[i] += ends[1] - ends[0]
            ends = mean_bounds(y[known], [clusters[row] for row in known], level=0.025, low=low, high=1.0)
            alone[i] += ends[1] - ends[0]
    assert (hits / times >= (0.93 if times == TIMES else 0.92)).all(), hits / times
    # with a handful of differences no interval is both valid and exact
    assert (hits / times <= (1.0 if name == "hardly a difference" else 0.98)).all(), hits / times
    assert (widths <= 0.8 * alone).all(), widths / alone


def test_a_teacher_that_is_wrong_like_its_student_fools_silver_and_not_the_review() -> None:
    """Alignment taught the student every error of the teacher and nothing else."""
    rng = np.random.default_rng(3)
    taught, before = rng.random(800) < 0.3, rng.random(800) < 0.5
    after = before & ~taught
    true = after.astype(float) - before
    silver = (after | taught).astype(float) - (before & ~taught)
    found = estimate(silver, dict(enumerate(true[:100].tolist())), [str(i) for i in range(800)], low=-1.0)
    assert true.mean() < -0.1
    assert silver.mean() > 0.25
    assert found.ci95[0] <= true.mean() <= found.ci95[1] < 0


@pytest.mark.parametrize("why", ["few", "unrelated", "opposed", "equal"])
def test_reviewed_rows_count_alone_where_silver_is_no_help(why: str) -> None:
    rng = np.random.default_rng(2)
    true = (rng.random(500) < 0.6).astype(float)
    n = 15 if why == "few" else 60
    silver = {"few": true, "unrelated": rng.permutation(true), "opposed": 1 - true, "equal": np.ones(500)}[why]
    clusters = [str(i) for i in range(500)]
    found = estimate(silver, dict(enumerate(true[:n].tolist())), clusters)
    assert (found.method, found.weight) == ("reviewed rows alone", 0.0)
    assert found.value == true[:n].mean()
    assert found.ci95 == mean_bounds(true[:n], clusters[:n], level=0.025, low=0.0, high=1.0)


def test_what_cannot_be_answered_is_no_part_of_it() -> None:
    """The silver score of such rows is high here; the true mean is that of the others."""
    rng = np.random.default_rng(4)
    possible = rng.random(20_000) < 0.6
    true = (rng.random(20_000) < 0.5).astype(float)
    silver = np.where(possible, true, 1.0)
    reviewed = {i: float(true[i]) if possible[i] else None for i in range(4000)}
    found = estimate(silver, reviewed, [str(i) for i in range(20_000)])
    assert found.method == "prediction-powered"
    assert found.value == pytest.approx(true[possible].mean(), abs=0.02)
    assert silver.mean() > 0.65


def test_needs_a_question_that_can_be_answered() -> None:
    with pytest.raises(MpaError, match="no reviewed question can be answered: review more"):
        estimate([1.0, 0.0], {0: None}, ["a", "b"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_stays_in_the_possible_range(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    low = data.draw(st.sampled_from([-1.0, 0.0]))
    score = st.sampled_from([low, 0.0, 0.5, 1.0])
    silver = data.draw(st.lists(score, min_size=n, max_size=n))
    reviewed = data.draw(st.dictionaries(st.integers(0, n - 1), st.one_of(st.none(), score), min_size=1))
    clusters = data.draw(st.lists(st.sampled_from("abcdefghij"), min_size=n, max_size=n))
    if all(value is None for value in reviewed.values()):
        return
    found = estimate(silver, reviewed, clusters, low=low)
    assert low <= found.ci95[0] <= found.value <= found.ci95[1] <= 1
    wider = estimate(silver, reviewed, clusters, low=low, level=0.01)
    assert wider.ci95[0] <= found.ci95[0] <= found.ci95[1] <= wider.ci95[1]
