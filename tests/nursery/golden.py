"""What the frozen generator makes from fixed seeds. `python tests/nursery/golden.py` writes the golden files anew.

The shipped weights were trained on exactly these scenes, words and pixels: after a change they are of another world,
and must be trained again.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpa_edge.nursery import draw, models, world
from mpa_edge.nursery.draw import HEIGHT_PX, STYLES, WIDTH_PX, Glyph, paint
from mpa_edge.nursery.render import pictures, questions_of
from tools.nursery_training.batches import Encoder, batch
from tools.nursery_training.train import PLANS

FOLDER = Path(__file__).parents[1] / "golden" / "nursery"
SHEET, HASHES = FOLDER / "pictures.png", FOLDER / "hashes.json"
ROWS, COLUMNS = 6, 4
# what does not come from a font file or from an image library: equal to the last bit everywhere
EXACT = ("ids", "labels", "segment", "position", "found", "cells")


def sha256(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()


def scenes(n: int) -> list[world.Scene]:
    rng = random.Random(5)
    return [world.draw_scene(rng) for _ in range(n)]


def painted() -> list[tuple[Image.Image, list[Glyph]]]:
    """Two plain pictures and two target ones a row."""
    drawn = scenes(ROWS * COLUMNS)
    return [paint(scene, STYLES[i % COLUMNS // 2], random.Random(i)) for i, scene in enumerate(drawn)]


def sheet() -> Image.Image:
    whole = Image.new("RGB", (COLUMNS * WIDTH_PX, ROWS * HEIGHT_PX))
    for i, (image, _) in enumerate(painted()):
        whole.paste(image, (i % COLUMNS * WIDTH_PX, i // COLUMNS * HEIGHT_PX))
    return whole


def training_batch(name: str, step: int) -> dict[str, np.ndarray]:
    plan = PLANS[name]
    rows = batch(plan.seed, step, plan.batch_size, Encoder(models.build_processor()), plan.mix, plan.length)
    return {key: value.numpy() for key, value in rows.items()}


def batch_hashes(name: str, step: int) -> dict[str, str]:
    rows = training_batch(name, step)
    return {key: sha256(np.ascontiguousarray(rows[key], np.int64).tobytes()) for key in EXACT}


def hashes() -> dict[str, Any]:
    drawn = scenes(2000)
    rendered = list(pictures(60, 7, "mixed"))
    return {
        "tokenizer": sha256(models.TOKENIZER_FILE.read_bytes()),
        "chat_template": sha256(models.CHAT_TEMPLATE),
        "scenes": sha256(drawn),
        "questions": sha256([world.questions(scene) for scene in drawn]),
        "picked": sha256([world.pick(random.Random(i), scene, 6) for i, scene in enumerate(drawn)]),
        "looks": sha256([look(random.Random(i)) for i in range(500) for look in (draw.plain_look, draw.target_look)]),
        "rendered": sha256([(picture.name, picture.scene) for picture in rendered]),
        "answers": sha256(
            [
                sample.model_dump_json(exclude={"group"})
                for picture in rendered
                for sample in questions_of(picture, 7, 3)
            ]
        ),
        "words": sha256(["".join(glyph.character for glyph in glyphs) for _, glyphs in painted()]),
        **{f"{name}-{step}": batch_hashes(name, step) for name in PLANS for step in (0, 1799)},
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    sheet().save(SHEET, optimize=True)
    HASHES.write_text(json.dumps(hashes(), indent=1) + "\n")
