"""Questions and answers of the built-in world, checked by a second way of reading a scene."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.nursery import world
from mpa_edge.nursery.world import QA, Chart, Field, Scene, Sign

KINDS = {
    Chart: {
        "value",
        "value_by_color",
        "bar_color",
        "label_by_color",
        "highest_bar",
        "lowest_bar",
        "highest_value",
        "lowest_value",
        "bar_count",
    },
    Sign: {"word", "number", "sign_color"},
    Field: {"shape_count", "count_by_shape", "shape_color", "count_by_color", "shape_by_color"},
}

numbers = st.integers(0, 2**32)
scenes = numbers.map(lambda seed: world.draw_scene(random.Random(seed)))
charts = numbers.map(lambda seed: world.draw_chart(random.Random(seed)))
fields = numbers.map(lambda seed: world.draw_field(random.Random(seed)))


def bars(scene: Chart) -> list[dict[str, str]]:
    columns = zip(scene.labels, scene.colors, map(str, scene.values), strict=True)
    return [{"label": label, "color": color, "value": value} for label, color, value in columns]


def only(found: list[str]) -> str:
    (one,) = found  # more than one would be an ambiguous question
    return one


def read_chart(scene: Chart, question: str) -> str:
    table = bars(scene)
    if found := re.fullmatch(r"What is the value of the (\w+) bar\?", question):
        return only([bar["value"] for bar in table if bar["color"] == found[1]])
    if found := re.fullmatch(r"What is the value of ([A-Z])\?", question):
        return only([bar["value"] for bar in table if bar["label"] == found[1]])
    if found := re.fullmatch(r"What color is bar ([A-Z])\?", question):
        return only([bar["color"] for bar in table if bar["label"] == found[1]])
    if found := re.fullmatch(r"(Which bar|What) is the (highest|lowest)( value)?\?", question):
        wanted = {"highest": max, "lowest": min}[found[2]](int(bar["value"]) for bar in table)
        return only([bar["value" if found[3] else "label"] for bar in table if int(bar["value"]) == wanted])
    if found := re.fullmatch(r"Which bar is (\w+)\?", question):
        return only([bar["label"] for bar in table if bar["color"] == found[1]])
    assert question == "How many bars are there?"
    return str(len(table))


def read_sign(scene: Sign, question: str) -> str:
    found = re.fullmatch(r"What (\w+) is (?:on )?the sign\?", question)
    return {"word": scene.word, "number": str(scene.number), "color": scene.color}[found[1]]


def read_field(scene: Field, question: str) -> str:
    pairs = [f"{color} {shape}" for _, shape, color in scene.items]
    if question == "How many shapes are there?":
        return str(len(pairs))
    if found := re.fullmatch(r"How many (\w+) shapes are there\?", question):
        return str(sum(pair.startswith(found[1]) for pair in pairs))
    if found := re.fullmatch(r"How many (\w+)s are there\?", question):
        return str(sum(pair.endswith(found[1]) for pair in pairs))
    if found := re.fullmatch(r"What color is the (\w+)\?", question):
        return only([pair.split()[0] for pair in pairs if pair.endswith(found[1])])
    found = re.fullmatch(r"Which shape is (\w+)\?", question)
    return only([pair.split()[1] for pair in pairs if pair.startswith(found[1])])


def read(scene: Scene, question: str) -> str:
    readers = {Chart: read_chart, Sign: read_sign, Field: read_field}
    return readers[type(scene)](scene, question)


@given(scenes)
def test_every_answer_is_what_a_second_reader_finds(scene: Scene) -> None:
    for qa in world.questions(scene):
        assert qa.answer == read(scene, qa.question), qa


@given(scenes)
def test_truth_agrees_with_the_questions_and_knows_no_other(scene: Scene) -> None:
    asked = world.questions(scene)
    assert [world.truth(scene, qa.question) for qa in asked] == [qa.answer for qa in asked]
    assert world.truth(scene, "How many dogs are there?") is None
    assert world.truth(scene, asked[0].question.lower()) is None


@given(fields)
def test_a_colour_or_shape_that_is_not_there_counts_zero(scene: Field) -> None:
    for question in [f"How many {color} shapes are there?" for color in world.COLORS]:
        assert world.truth(scene, question) == read_field(scene, question)
    for question in [f"How many {shape}s are there?" for shape in world.SHAPES]:
        assert world.truth(scene, question) == read_field(scene, question)


@given(charts)
def test_a_lookup_names_its_bar(scene: Chart) -> None:
    lookups = [qa for qa in world.questions(scene) if qa.key]
    assert len(lookups) == 4 * len(scene.labels)
    for qa in lookups:
        bar = bars(scene)[qa.bar]
        assert qa.key in (bar["label"], bar["color"])
        assert qa.answer in bar.values()
        assert qa.question.removesuffix("?").split()[-1 if "bar?" not in qa.question else -2] == qa.key


@given(scenes)
def test_a_scene_offers_its_kinds_under_known_focuses_and_asks_nothing_twice(scene: Scene) -> None:
    asked = world.questions(scene)
    assert {qa.kind for qa in asked} <= KINDS[type(scene)]
    assert {qa.focus for qa in asked} <= set(world.FOCUSES)
    assert len({qa.question for qa in asked}) == len(asked)
    assert all(qa.question.endswith("?") and qa.answer.strip() == qa.answer != "" for qa in asked)


def test_all_scenes_kinds_and_focuses_come_up() -> None:
    rng = random.Random(1)
    drawn = [world.draw_scene(rng) for _ in range(2000)]
    shares = Counter(type(scene) for scene in drawn)
    assert shares[Chart] / 2000 == pytest.approx(0.6, abs=0.04)
    assert shares[Sign] / 2000 == pytest.approx(0.2, abs=0.03)
    asked = [qa for scene in drawn for qa in world.questions(scene)]
    assert {qa.kind for qa in asked} == set().union(*KINDS.values())
    assert {qa.focus for qa in asked} == set(world.FOCUSES)


@given(charts)
def test_a_chart_fits_its_slots_and_is_never_ambiguous(scene: Chart) -> None:
    n = len(scene.labels)
    assert 2 <= n == len(scene.colors) == len(scene.values) <= 4
    assert all(len(set(column)) == n for column in (scene.labels, scene.colors, scene.values))
    assert 0 <= scene.first_slot <= world.SLOTS - n


@given(scenes, st.integers(0, 40), numbers)
def test_pick_spreads_over_the_kinds_without_repeating(scene: Scene, n: int, seed: int) -> None:
    offered = Counter(qa.kind for qa in world.questions(scene))
    picked = world.pick(random.Random(seed), scene, n)
    assert len(picked) == len(set(picked)) == min(n, sum(offered.values()))
    counts = Counter(qa.kind for qa in picked)
    most = max(counts.values(), default=0)
    assert all(counts[kind] >= min(most - 1, offered[kind]) for kind in offered)
    assert picked == world.pick(random.Random(seed), scene, n)


@given(scenes, numbers)
def test_pick_keeps_to_the_kinds_it_is_given(scene: Scene, seed: int) -> None:
    kinds = frozenset({"value", "word", "shape_count"})
    picked: list[QA] = world.pick(random.Random(seed), scene, 99, kinds)
    assert {qa.kind for qa in picked} == kinds & {qa.kind for qa in world.questions(scene)}
    assert world.pick(random.Random(seed), scene, 5, frozenset()) == []


def test_pick_depends_on_its_seed() -> None:
    scene = world.draw_chart(random.Random(3))
    assert len({tuple(world.pick(random.Random(seed), scene, 4)) for seed in range(20)}) > 10
