from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.errors import MpaError
from mpa_edge.nursery import draw, world
from mpa_edge.nursery.draw import CELL_PX, HEIGHT_PX, PALETTES, STYLES, WIDTH_PX, paint
from mpa_edge.nursery.world import Chart, Field, Sign

seeds = st.integers(0, 2**32)


def a_scene(seed: int) -> world.Scene:
    return world.draw_scene(random.Random(seed))


def printed(scene: world.Scene) -> str:
    if isinstance(scene, Chart):
        return "".join(f"{value}{label}" for label, value in zip(scene.labels, scene.values, strict=True))
    return f"{scene.word}{scene.number}" if isinstance(scene, Sign) else ""


@given(seeds, st.sampled_from(STYLES))
def test_a_picture_is_decided_by_scene_style_and_seed(seed: int, style: draw.Style) -> None:
    (one, glyphs), (two, again) = (paint(a_scene(seed), style, random.Random(seed)) for _ in range(2))
    assert (one.size, one.mode) == ((WIDTH_PX, HEIGHT_PX), "RGB")
    assert one.tobytes() == two.tobytes()
    assert glyphs == again


@given(seeds, st.sampled_from(STYLES))
def test_every_printed_character_is_known_and_lies_inside(seed: int, style: draw.Style) -> None:
    scene = a_scene(seed)
    _, glyphs = paint(scene, style, random.Random(seed))
    assert "".join(glyph.character for glyph in glyphs) == printed(scene)
    assert all(0 <= glyph.x_px < WIDTH_PX and 0 <= glyph.y_px < HEIGHT_PX for glyph in glyphs)


@given(seeds)
def test_a_label_and_its_value_stand_in_the_columns_of_their_bar(seed: int) -> None:
    scene = world.draw_chart(random.Random(seed))
    _, glyphs = paint(scene, "plain", random.Random(seed))
    for i, (label, value) in enumerate(zip(scene.labels, scene.values, strict=True)):
        own = [glyph for glyph in glyphs if int(glyph.x_px) // CELL_PX == scene.first_slot + i]
        assert "".join(glyph.character for glyph in own) == f"{value}{label}"


@given(seeds)
def test_colours_are_where_the_scene_says(seed: int) -> None:
    scene = world.draw_field(random.Random(seed))
    image, _ = paint(scene, "plain", random.Random(seed))
    cells = np.asarray(image).reshape(2, CELL_PX, 4, CELL_PX, 3).transpose(0, 2, 1, 3, 4).reshape(8, -1, 3)
    for cell, _, color in scene.items:
        assert (cells[cell] == PALETTES["plain"][color]).all(-1).sum() > 60
    shown = {cell for cell, _, _ in scene.items}
    for color in PALETTES["plain"].values():
        assert not any((cells[cell] == color).all(-1).any() for cell in set(range(8)) - shown)


def test_a_taller_bar_is_a_larger_value() -> None:
    scene = Chart(("A", "B", "C"), ("red", "green", "blue"), (10, 50, 99), 0)
    pixels = np.asarray(paint(scene, "plain", random.Random(1))[0])
    heights = [(pixels == PALETTES["plain"][color]).all(-1).any(1).sum() for color in scene.colors]
    assert heights == sorted(heights)
    assert heights[2] > 1.6 * heights[1]


def test_no_two_colours_of_a_palette_are_alike() -> None:
    for palette in PALETTES.values():
        assert tuple(palette) == world.COLORS
        values = np.array(list(palette.values()), int)
        distances = np.abs(values[:, None] - values[None]).sum(-1)
        assert distances[~np.eye(len(values), dtype=bool)].min() > 40


def test_the_target_style_varies_what_the_plain_one_keeps() -> None:
    plain = [draw.plain_look(random.Random(i)) for i in range(300)]
    target = [draw.target_look(random.Random(i)) for i in range(300)]
    assert not any(look.grid or look.outline or look.tilt_deg or look.noise_sd or look.blur_px for look in plain)
    assert {look.font for look in target} == set(draw.TARGET_FONTS)
    for trait in ("grid", "outline", "tilt_deg", "noise_sd", "blur_px"):
        assert 0.2 < np.mean([bool(getattr(look, trait)) for look in target]) < 0.7
    assert all(abs(look.tilt_deg) <= 5 for look in target)


@given(seeds)
def test_ink_stands_out_from_the_background(seed: int) -> None:
    for look in (draw.plain_look(random.Random(seed)), draw.target_look(random.Random(seed))):
        assert abs(sum(look.ink) - sum(look.background)) > 300


def test_a_tilt_moves_glyphs_with_their_pixels() -> None:
    image = draw.Image.new("RGB", (WIDTH_PX, HEIGHT_PX))
    image.putpixel((110, 20), (255, 255, 255))
    look = draw.Look((0, 0, 0), (255, 255, 255), PALETTES["plain"], "", tilt_deg=5.0)
    canvas = draw.Canvas(image, look, random.Random(0), [draw.Glyph("A", 110.5, 20.5)])
    turned, (glyph,) = draw._photograph(canvas)
    y, x = np.unravel_index(np.asarray(turned)[..., 0].argmax(), (HEIGHT_PX, WIDTH_PX))
    assert abs(glyph.x_px - x) < 1.5
    assert abs(glyph.y_px - y) < 1.5
    assert abs(glyph.y_px - 20.5) > 2


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw._font.cache_clear()
    draw._font_folder.cache_clear()
    with pytest.raises(MpaError) as caught:
        paint(Sign("STOP", 7, "red", True), "target", random.Random(0))
    assert str(caught.value) == "matplotlib is missing: pip install 'mpa-edge[align]'"


def test_fields_have_no_print() -> None:
    assert paint(Field(((0, "circle", "red"),)), "target", random.Random(0))[1] == []
