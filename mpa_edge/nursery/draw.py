"""Draws a scene: 128 x 64 RGB, in a plain style and in a target style (dark mode, other fonts, grid, tilt, noise).

The result depends only on the scene, the style and the random generator that is passed in.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mpa_edge.errors import missing_package
from mpa_edge.nursery.world import Chart, Field, Scene, Sign

WIDTH_PX, HEIGHT_PX, CELL_PX = 128, 64, 32
Style = Literal["plain", "target"]
RGB = tuple[int, int, int]
STYLES: tuple[Style, ...] = ("plain", "target")

PALETTES: dict[str, dict[str, RGB]] = {
    "plain": {
        "red": (214, 39, 40),
        "green": (44, 150, 44),
        "blue": (40, 90, 210),
        "yellow": (235, 200, 20),
        "purple": (140, 70, 180),
        "orange": (250, 128, 20),
    },
    "pastel": {
        "red": (255, 105, 97),
        "green": (119, 200, 119),
        "blue": (108, 160, 240),
        "yellow": (250, 230, 110),
        "purple": (190, 140, 225),
        "orange": (255, 179, 90),
    },
    "deep": {
        "red": (160, 16, 30),
        "green": (10, 100, 40),
        "blue": (20, 50, 140),
        "yellow": (200, 165, 0),
        "purple": (95, 30, 130),
        "orange": (205, 90, 0),
    },
}
PLAIN_FONTS = ("", "DejaVuSans.ttf")
TARGET_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneralBol.ttf",
    "cmb10.ttf",
)


@dataclass(frozen=True)
class Glyph:
    """A printed character and its centre, in pixels of the finished image."""

    character: str
    x_px: float
    y_px: float


@dataclass(frozen=True)
class Look:
    """The appearance of an image, without its content."""

    background: RGB
    ink: RGB
    palette: dict[str, RGB]
    font: str
    grid: bool = False
    outline: bool = False
    tilt_deg: float = 0.0
    noise_sd: float = 0.0
    blur_px: float = 0.0


@dataclass
class Canvas:
    """An image that is being drawn: its pixels, its look, and the printed characters so far."""

    image: Image.Image
    look: Look
    rng: random.Random
    glyphs: list[Glyph] = field(default_factory=list)

    @property
    def pen(self) -> ImageDraw.ImageDraw:
        """Draws on the image."""
        return ImageDraw.Draw(self.image)


def plain_look(rng: random.Random) -> Look:
    """Dark ink on white or nearly white."""
    tint = rng.choice(((255, 255, 255), (255, 255, 255), (248, 248, 244), (244, 248, 255)))
    return Look(background=tint, ink=(0, 0, 0), palette=PALETTES["plain"], font=rng.choice(PLAIN_FONTS))


def target_look(rng: random.Random) -> Look:
    """Dark mode, palette, font, grid, outline, tilt, noise and blur, each drawn independently."""
    dark = rng.random() < 0.6
    shade, tint = rng.randint(12, 52), rng.randint(0, 24)
    night, day = (shade, shade + tint // 3, shade + tint), (255 - tint, 250 - tint // 2, 240 - tint // 2)
    level = rng.randint(205, 250)
    return Look(
        background=night if dark else day,
        ink=(level, level, level - tint) if dark else (shade, shade // 2, tint),
        palette=PALETTES[rng.choice(("plain", "pastel") if dark else ("plain", "pastel", "deep"))],
        font=rng.choice(TARGET_FONTS),
        grid=rng.random() < 0.5,
        outline=rng.random() < 0.3,
        tilt_deg=rng.uniform(-5, 5) if rng.random() < 0.6 else 0.0,
        noise_sd=rng.uniform(3, 13) if rng.random() < 0.6 else 0.0,
        blur_px=rng.uniform(0.2, 0.5) if rng.random() < 0.3 else 0.0,
    )


def paint(scene: Scene, style: Style, rng: random.Random) -> tuple[Image.Image, list[Glyph]]:
    """The finished image (128 x 64 RGB) and its printed characters, at their positions after the tilt."""
    look = plain_look(rng) if style == "plain" else target_look(rng)
    canvas = Canvas(Image.new("RGB", (WIDTH_PX, HEIGHT_PX), look.background), look, rng)
    if isinstance(scene, Chart):
        _paint_chart(canvas, scene)
    elif isinstance(scene, Sign):
        _paint_sign(canvas, scene)
    else:
        _paint_field(canvas, scene)
    return _photograph(canvas)


@functools.cache
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not name:
        return ImageFont.load_default(size=size_px)
    return ImageFont.truetype(str(_font_folder() / name), size_px)


@functools.cache
def _font_folder() -> Path:
    """The folder of matplotlib's fonts; the align extra installs matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package("matplotlib", "align") from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _write(canvas: Canvas, text: str, centre_x: float, middle_y: float, size_px: int) -> None:
    font = _font(canvas.look.font, size_px)
    x_px = round(centre_x - font.getlength(text) / 2)
    canvas.pen.text((x_px, round(middle_y)), text, font=font, fill=canvas.look.ink, anchor="lm")
    for i, character in enumerate(text):
        left, right = font.getlength(text[:i]), font.getlength(text[: i + 1])
        canvas.glyphs.append(Glyph(character, x_px + (left + right) / 2, middle_y))


def _paint_grid(canvas: Canvas) -> None:
    background, ink = canvas.look.background, canvas.look.ink
    faint = tuple(round(0.75 * b + 0.25 * i) for b, i in zip(background, ink, strict=True))
    for y_px in range(canvas.rng.randint(4, 14), HEIGHT_PX, canvas.rng.randint(10, 18)):
        canvas.pen.line([(0, y_px), (WIDTH_PX, y_px)], fill=faint)


def _paint_chart(canvas: Canvas, scene: Chart) -> None:
    rng, pen = canvas.rng, canvas.pen
    if canvas.look.grid:
        _paint_grid(canvas)
    base_y, size_px, width_px = 49 + rng.randint(-1, 1), rng.choice((11, 12, 13)), rng.randint(11, 24)
    room_px = base_y - 15  # height of the tallest bar, below its printed value
    pen.line([(2, base_y), (WIDTH_PX - 3, base_y)], fill=(128, 128, 128))
    for i, (label, color, value) in enumerate(zip(scene.labels, scene.colors, scene.values, strict=True)):
        x_px = CELL_PX * (scene.first_slot + i) + CELL_PX / 2 + rng.randint(-2, 2)
        top_y = base_y - max(2, round(room_px * value / 99))
        outline = canvas.look.ink if canvas.look.outline else None
        box = [x_px - width_px / 2, top_y, x_px + width_px / 2, base_y]
        pen.rectangle(box, fill=canvas.look.palette[color], outline=outline)
        _write(canvas, str(value), x_px, top_y - 7, size_px)
        _write(canvas, label, x_px, base_y + 8, size_px)


def _paint_sign(canvas: Canvas, scene: Sign) -> None:
    rng, look = canvas.rng, canvas.look
    frame = [rng.randint(0, 3), rng.randint(0, 6), WIDTH_PX - 1 - rng.randint(0, 3), HEIGHT_PX - 1 - rng.randint(0, 6)]
    border_px = rng.randint(3, 6)
    canvas.pen.rectangle(frame, fill=look.palette[scene.color])
    inner = [frame[0] + border_px, frame[1] + border_px, frame[2] - border_px, frame[3] - border_px]
    canvas.pen.rectangle(inner, fill=look.background)
    word_x, number_x = (33, 95) if scene.word_first else (95, 33)
    size_px = rng.choice((11, 12, 13) if len(scene.word) == 5 else (12, 13, 14, 15))
    _write(canvas, scene.word, word_x + rng.randint(-1, 1), 32 + rng.randint(-9, 9), size_px)
    _write(canvas, str(scene.number), number_x + rng.randint(-8, 8), 32 + rng.randint(-9, 9), rng.choice((13, 15, 17)))


def _paint_field(canvas: Canvas, scene: Field) -> None:
    rng, pen = canvas.rng, canvas.pen
    if canvas.look.grid:
        _paint_grid(canvas)
    for cell, shape, color in scene.items:
        x_px = CELL_PX * (cell % 4) + CELL_PX / 2 + rng.randint(-4, 4)
        y_px = CELL_PX * (cell // 4) + CELL_PX / 2 + rng.randint(-4, 4)
        r_px = rng.randint(7, 11)
        box = [x_px - r_px, y_px - r_px, x_px + r_px, y_px + r_px]
        fill, outline = canvas.look.palette[color], canvas.look.ink if canvas.look.outline else None
        if shape == "circle":
            pen.ellipse(box, fill=fill, outline=outline)
        elif shape == "square":
            pen.rectangle(box, fill=fill, outline=outline)
        else:
            corners = [(x_px, box[1]), (box[0], box[3]), (box[2], box[3])]
            pen.polygon(corners, fill=fill, outline=outline)


def _photograph(canvas: Canvas) -> tuple[Image.Image, list[Glyph]]:
    """Tilt, blur and noise, as in a photograph of a screen."""
    image, look, glyphs = canvas.image, canvas.look, canvas.glyphs
    if look.tilt_deg:
        image = image.rotate(look.tilt_deg, Image.Resampling.BILINEAR, fillcolor=look.background)
        glyphs = [_turned(glyph, look.tilt_deg) for glyph in glyphs]
    if look.blur_px:
        image = image.filter(ImageFilter.GaussianBlur(look.blur_px))
    if look.noise_sd:
        noise = np.random.default_rng(canvas.rng.getrandbits(32)).normal(0, look.noise_sd, (HEIGHT_PX, WIDTH_PX, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image, glyphs


def _turned(glyph: Glyph, tilt_deg: float) -> Glyph:
    """The position of a glyph after the image was rotated counter-clockwise about its centre."""
    angle, x_px, y_px = math.radians(tilt_deg), glyph.x_px - WIDTH_PX / 2, glyph.y_px - HEIGHT_PX / 2
    return Glyph(
        glyph.character,
        WIDTH_PX / 2 + x_px * math.cos(angle) + y_px * math.sin(angle),
        HEIGHT_PX / 2 - x_px * math.sin(angle) + y_px * math.cos(angle),
    )
