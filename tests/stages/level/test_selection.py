"""What the student is trained on."""

from __future__ import annotations

import pytest

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.stages.level.selection import select
from mpa_edge.types import ParityRecord

VERDICTS = ("gap", "parity", "unverified")


def record(image: int, number: int) -> ParityRecord:
    verdict = VERDICTS[(image + number) % 3]
    return ParityRecord(
        id=f"{image}-{number}",
        image_id=str(image),
        image=f"{image}.png",
        question="?",
        answer="7",
        teacher_answer="7",
        student_answer=None,
        verdict=verdict,
    )


ROWS = [record(image, number) for image in range(200) for number in range(4)]
GAP = [row for row in ROWS if row.verdict == "gap"]


def test_the_gap_with_a_share_of_parity_items() -> None:
    chosen = select(ROWS, LevelConfig(replay=0.2, holdout=0.1), 0)
    trained = [row for row in chosen.train if row.verdict == "gap"]
    assert len(trained) + len(chosen.holdout) == len(GAP)
    assert chosen.replayed == round(0.2 * len(trained)) == sum(row.verdict == "parity" for row in chosen.train)
    assert {row.verdict for row in chosen.holdout} == {"gap"}
    assert 0.05 * len(GAP) < len(chosen.holdout) < 0.15 * len(GAP)


def test_held_out_images_are_held_out_whole() -> None:
    chosen = select(ROWS, LevelConfig(holdout=0.3, replay=5.0), 0)
    assert not {row.image_id for row in chosen.holdout} & {row.image_id for row in chosen.train}


def test_no_row_twice() -> None:
    for subset in ("gap", "all", "random", "verified"):
        chosen = select(ROWS, LevelConfig(subset=subset, replay=1.0), 0)
        ids = [row.id for row in chosen.train + chosen.holdout]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("subset", "verdicts"), [("gap", {"gap"}), ("verified", {"gap", "parity"}), ("all", set(VERDICTS))]
)
def test_subsets(subset, verdicts) -> None:
    chosen = select(ROWS, LevelConfig(subset=subset, replay=0.0), 0)
    assert {row.verdict for row in chosen.train} == verdicts
    assert len(chosen.train + chosen.holdout) == sum(row.verdict in verdicts for row in ROWS)
    assert chosen.replayed == 0


def test_random_is_as_large_as_the_gap_and_blind_to_verdicts() -> None:
    chosen = select(ROWS, LevelConfig(subset="random"), 0)
    assert len(chosen.train + chosen.holdout) == len(GAP)
    assert {row.verdict for row in chosen.train} == set(VERDICTS)


def test_the_same_seed_the_same_choice_in_any_order_of_rows() -> None:
    one, other = select(ROWS, LevelConfig(), 4), select(ROWS[::-1], LevelConfig(), 4)
    assert {row.id for row in one.train} == {row.id for row in other.train}
    assert {row.id for row in one.holdout} != {row.id for row in select(ROWS, LevelConfig(), 5).holdout}


def test_without_holdout() -> None:
    assert select(ROWS, LevelConfig(holdout=0.0), 0).holdout == ()
