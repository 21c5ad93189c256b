"""What the student is trained on."""

from __future__ import annotations

from collections import Counter

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


def of(kind: int, n: int, answer: str = "7", question: str = "?") -> list[ParityRecord]:
    """`n` gap rows of a kind, each about a picture of its own."""
    row = record(0, 0)
    ids = [f"{kind}.{answer}.{question}.{i}-{kind}" for i in range(n)]
    changed = {"answer": answer, "question": question, "verdict": "gap"}
    return [row.model_copy(update={**changed, "id": one, "image_id": one}) for one in ids]


def kinds(rows) -> Counter:
    return Counter(int(row.id.rpartition("-")[2]) for row in rows)


def kind_of(row: ParityRecord) -> int:
    return int(row.id.rpartition("-")[2])


def test_balance_takes_from_the_frequent_kinds_only() -> None:
    rows = [*of(0, 90), *of(1, 40), *of(2, 5)]
    config = LevelConfig(balance_kinds=True, holdout=0.0, replay=0.0)
    chosen = select(rows, config, 0, kind_of)
    assert kinds(chosen.train) == {0: 45, 1: 40, 2: 5}
    assert chosen.left_out == 45
    assert kinds(select(rows, LevelConfig(holdout=0.0), 0, kind_of).train) == {0: 90, 1: 40, 2: 5}


@pytest.mark.parametrize("key", ["answer", "question"])
def test_what_is_said_too_often_is_thinned(key) -> None:
    often, seldom = [*of(0, 60, **{key: "Yes"}), *of(1, 20, **{key: "yes"})], of(2, 20, **{key: "no"})
    chosen = select([*often, *seldom], LevelConfig(holdout=0.0, replay=0.0, **{f"{key}_share": 0.25}), 0)
    said = Counter(getattr(row, key).casefold() for row in chosen.train)
    assert said == {"yes": 25, "no": 20}
    assert chosen.left_out == 55


def test_the_form_of_an_answer_does_not_hide_it() -> None:
    rows = [*of(0, 50, answer="Yes."), *of(1, 50, answer="yes")]
    assert len(select(rows, LevelConfig(holdout=0.0, replay=0.0, answer_share=0.1), 0).train) == 10


def test_thinning_does_not_depend_on_the_order_of_rows_but_on_the_seed() -> None:
    rows, config = of(0, 100), LevelConfig(holdout=0.0, replay=0.0, answer_share=0.2)
    one, other = select(rows, config, 1), select(rows[::-1], config, 1)
    assert {row.id for row in one.train} == {row.id for row in other.train}
    assert {row.id for row in one.train} != {row.id for row in select(rows, config, 2).train}


def test_replay_is_a_share_of_what_is_left() -> None:
    rows = [*of(0, 100), *(row for row in ROWS if row.verdict == "parity")]
    chosen = select(rows, LevelConfig(holdout=0.0, replay=0.5, answer_share=0.2), 0)
    assert (len(chosen.train), chosen.replayed, chosen.left_out) == (30, 10, 80)


def test_held_out_rows_are_not_thinned() -> None:
    rows = of(0, 200)
    plain, thin = (select(rows, LevelConfig(holdout=0.2, answer_share=share), 0) for share in (1.0, 0.1))
    assert plain.holdout == thin.holdout
