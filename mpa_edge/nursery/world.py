"""What a minichart shows, as data, and all questions about it with their answers. No pixels here.

Three kinds of scene: a bar chart (2 to 4 labelled bars with printed values), a sign (a word, a number, a panel colour)
and a field of coloured shapes. The ground truth of a question comes from the scene, never from a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple(
    """OPEN SHOP SALE STOP TAXI CAFE BANK EXIT FOOD MILK BEER WINE FISH MEAT RICE CAKE TEA GAS BUS CAR ZOO PARK HOTEL
    PIZZA BREAD FRUIT BOOKS SHOES MUSIC LUNCH METRO BEACH RIVER PHONE PAPER TOYS GOLD HOME WEST EAST NORTH SOUTH LEFT
    RIGHT SLOW FAST COLD HOT ICE SUN MOON STAR BLUE POOL GYM SPA BAR PUB DELI FARM LAKE HILL ROAD QUIET JUMP KING VIEW
    BOX FIX OAK YES TRAIN SUSHI PLANT CLOSE TOWN POST WATER GRILL SODA LAMP DOOR WAY ART DOCK""".split()  # noqa: SIM905
)
SLOTS = 4  # a chart has four slots of 32 px, so that every bar owns two whole token columns
CELLS = 8  # a field of shapes is 4 x 2 cells of 32 px
FOCUSES = ("value", "comparison", "color", "count", "text")
PLAIN_SENTENCE = "Ask about a {focus}."


@dataclass(frozen=True)
class Chart:
    """Bars from left to right; `first_slot` is the slot of the leftmost one."""

    labels: tuple[str, ...]
    colors: tuple[str, ...]
    values: tuple[int, ...]
    first_slot: int


@dataclass(frozen=True)
class Sign:
    """A word in one half of the picture, a number in the other."""

    word: str
    number: int
    color: str
    word_first: bool


@dataclass(frozen=True)
class Field:
    """Coloured shapes in some of the eight cells: (cell, shape, colour)."""

    items: tuple[tuple[int, str, str], ...]


Scene = Chart | Sign | Field


@dataclass(frozen=True)
class QA:
    """A question about a scene, its answer, its kind, and the focus under which an annotator may ask it."""

    question: str
    answer: str
    kind: str
    focus: str
    key: str = ""
    """The word by which a look-up finds its bar: a label or a colour; empty for other kinds."""
    bar: int = -1
    """Index of the bar that a look-up asks about; -1 for other kinds."""


def draw_chart(rng: random.Random) -> Chart:
    """A random chart: distinct labels, colours and values."""
    n = rng.choice((2, 3, 3, 4, 4))
    return Chart(
        labels=tuple(rng.sample(LETTERS, n)),
        colors=tuple(rng.sample(COLORS, n)),
        values=tuple(rng.sample(range(1, 100), n)),
        first_slot=rng.randint(0, SLOTS - n),
    )


def draw_sign(rng: random.Random) -> Sign:
    """A random sign; four words in ten are random letters, so that words cannot be guessed."""
    spelled = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5)))
    word = spelled if rng.random() < 0.4 else rng.choice(WORDS)
    return Sign(word=word, number=rng.randint(1, 99), color=rng.choice(COLORS), word_first=rng.random() < 0.5)


def draw_field(rng: random.Random) -> Field:
    """A random field of one to five shapes."""
    cells = sorted(rng.sample(range(CELLS), rng.randint(1, 5)))
    return Field(items=tuple((cell, rng.choice(SHAPES), rng.choice(COLORS)) for cell in cells))


SCENE_SHARES: tuple[tuple[Callable[[random.Random], Scene], float], ...] = (
    (draw_chart, 0.6),
    (draw_sign, 0.2),
    (draw_field, 0.2),
)


def draw_scene(rng: random.Random) -> Scene:
    """One scene with the shares of SCENE_SHARES."""
    makers, shares = zip(*SCENE_SHARES, strict=True)
    return rng.choices(makers, weights=shares)[0](rng)


def questions(scene: Scene) -> list[QA]:
    """All questions about a scene, with their true answers.

    >>> scene = Chart(("A", "K"), ("red", "blue"), (7, 42), 0)
    >>> [qa.answer for qa in questions(scene) if qa.question == "What is the value of K?"]
    ['42']
    """
    if isinstance(scene, Chart):
        return list(_chart_questions(scene))
    if isinstance(scene, Sign):
        return list(_sign_questions(scene))
    return list(_field_questions(scene))


def _chart_questions(scene: Chart) -> Iterable[QA]:
    for i, (label, color, value) in enumerate(zip(scene.labels, scene.colors, scene.values, strict=True)):
        yield QA(f"What is the value of {label}?", str(value), "value", "value", label, i)
        yield QA(f"What is the value of the {color} bar?", str(value), "value_by_color", "value", color, i)
        yield QA(f"What color is bar {label}?", color, "bar_color", "color", label, i)
        yield QA(f"Which bar is {color}?", label, "label_by_color", "color", color, i)
    by_value = sorted(range(len(scene.values)), key=scene.values.__getitem__)
    low, high = by_value[0], by_value[-1]
    yield QA("Which bar is the highest?", scene.labels[high], "highest_bar", "comparison")
    yield QA("Which bar is the lowest?", scene.labels[low], "lowest_bar", "comparison")
    yield QA("What is the highest value?", str(scene.values[high]), "highest_value", "comparison")
    yield QA("What is the lowest value?", str(scene.values[low]), "lowest_value", "comparison")
    yield QA("How many bars are there?", str(len(scene.labels)), "bar_count", "count")


def _sign_questions(scene: Sign) -> Iterable[QA]:
    yield QA("What word is on the sign?", scene.word, "word", "text")
    yield QA("What number is on the sign?", str(scene.number), "number", "value")
    yield QA("What color is the sign?", scene.color, "sign_color", "color")


def _field_questions(scene: Field) -> Iterable[QA]:
    shapes = [shape for _, shape, _ in scene.items]
    colors = [color for _, _, color in scene.items]
    yield QA("How many shapes are there?", str(len(scene.items)), "shape_count", "count")
    for shape in sorted(set(shapes)):
        yield QA(f"How many {shape}s are there?", str(shapes.count(shape)), "count_by_shape", "count")
        if shapes.count(shape) == 1:
            yield QA(f"What color is the {shape}?", colors[shapes.index(shape)], "shape_color", "color")
    for color in sorted(set(colors)):
        yield QA(f"How many {color} shapes are there?", str(colors.count(color)), "count_by_color", "count")
        if colors.count(color) == 1:
            yield QA(f"Which shape is {color}?", shapes[colors.index(color)], "shape_by_color", "comparison")


def truth(scene: Scene, question: str) -> str | None:
    """The true answer of a question in the world's own words, or None where the question does not fit the scene.

    >>> truth(Sign("EXIT", 12, "red", True), "What number is on the sign?")
    '12'
    """
    if isinstance(scene, Field):
        for word in (*COLORS, *SHAPES):
            if question in (f"How many {word} shapes are there?", f"How many {word}s are there?"):
                return str(sum(word in item[1:] for item in scene.items))
    return next((qa.answer for qa in questions(scene) if qa.question == question), None)


def pick(rng: random.Random, scene: Scene, n: int, kinds: frozenset[str] | None = None) -> list[QA]:
    """Up to n different questions, spread evenly over the kinds that the scene offers."""
    by_kind: dict[str, list[QA]] = {}
    for qa in questions(scene):
        if kinds is None or qa.kind in kinds:
            by_kind.setdefault(qa.kind, []).append(qa)
    piles = list(by_kind.values())
    rng.shuffle(piles)
    for pile in piles:
        rng.shuffle(pile)
    rounds = (pile[i] for i in range(max(map(len, piles), default=0)) for pile in piles if i < len(pile))
    return [qa for _, qa in zip(range(n), rounds, strict=False)]
