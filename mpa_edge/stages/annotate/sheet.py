"""The contact sheet: what the teacher asked about a few images, on one page, to improve a task before hours of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from mpa_edge import __version__
from mpa_edge.images.decode import as_jpeg
from mpa_edge.images.folder import open_image
from mpa_edge.images.index import HELD_OUT
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.log import escaped
from mpa_edge.runs.parquet import (
    count_reasons,
    count_rows,
    dropped_path,
    each_dropped,
    part_path,
    read_rows,
    shards_done,
)
from mpa_edge.stages.identify import agreement, confirmed
from mpa_edge.stages.run import Run
from mpa_edge.types import Drop, Dropped, PseudoAnnotation

SHEET = "sheet.html"
MOST_IMAGES = 200
THUMBNAIL_PIXELS = 360


def write_sheet(run: Run) -> Path | None:
    """Write `sheet.html` into the folder of a run, about its first 200 images; None where annotate wrote nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = run.stage_folder("annotate")
    images = shown_images(run)
    if not images:
        return None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escaped(value) if type(value) is str else value,
    )
    page = environment.get_template("sheet.html.j2").render(
        version=__version__,
        run=run.folder.resolve().name,
        task=run.task,
        teacher=run.recipe.teacher,
        kept=count_rows(folder),
        reasons=count_reasons(each_dropped(folder)),
        images=[{"name": name, "thumbnail": thumbnail(run, name), "rows": rows} for name, rows in images.items()],
        most=MOST_IMAGES,
    )
    write_bytes(run.folder / SHEET, page.encode())
    return run.folder / SHEET


def shown_images(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Name of each image that is shown -> its annotations, kept or dropped, in the order of their prompts."""
    folder, found = run.stage_folder("annotate"), dict[str, list[dict[str, Any]]]()
    for shard in sorted(shards_done(folder, PseudoAnnotation)):
        lines = [
            *((row.image, kept_line(run, row)) for row in read_rows(part_path(folder, shard), PseudoAnnotation)),
            *(
                (row.image, dropped_line(run, row))
                for row in read_rows(dropped_path(folder, shard), Dropped)
                if row.reason != HELD_OUT
            ),
        ]
        for name, line in sorted(lines, key=lambda one: (one[0], one[1]["number"])):
            if name in found or len(found) < MOST_IMAGES:
                found.setdefault(name, []).append(line)
        if len(found) == MOST_IMAGES:
            break
    return found


def kept_line(run: Run, row: PseudoAnnotation) -> dict[str, Any]:
    """An annotation, and which of the teacher's own answers agree with it."""
    agrees = agreement(run)
    votes = [(vote, agrees(vote, row.answer)) for vote in row.votes]
    return {
        **asked_for(run, row.id),
        "question": row.question,
        "answer": row.answer,
        "votes": votes,
        "confirmed": confirmed(row.answer, row.votes, agrees) if votes else None,
        "reason": "",
    }


def dropped_line(run: Run, row: Dropped) -> dict[str, Any]:
    """An annotation that was left out; or an image, which has no number."""
    asked = {"number": 0, "kind": ""} if row.id == row.image else asked_for(run, row.id)
    return {**asked, "question": "", "answer": row.detail, "votes": [], "confirmed": None, "reason": row.reason}


def asked_for(run: Run, row_id: str) -> dict[str, Any]:
    """Number of an annotation of its image, and the kind of question that was asked for."""
    number, kinds = int(row_id.rpartition("-")[2]), run.task.prompt_kinds
    return {"number": number + 1, "kind": kinds[number % len(kinds)] or "any kind"}


def thumbnail(run: Run, name: str) -> str:
    """A small JPEG of an image as a data URI; empty where it cannot be opened."""
    image = open_image(run.images_folder / name, run.recipe.images.max_pixels)
    if isinstance(image, Drop):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(as_jpeg(image, THUMBNAIL_PIXELS)).decode()
