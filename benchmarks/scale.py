"""Memory and resume of annotate and identify over many pictures, with models that answer from a function.

    python benchmarks/scale.py --small 1000 --large 100000 --json

Each size runs in a process of its own: all shards, then the last shard of annotate is thrown away and the stage started
again. Measured: the process's peak resident memory (VmHWM), seconds of the whole run, and seconds from that start until
the teacher is asked (`resume_s`: listing the pictures, finding what is done). The pictures are 8 x 8 PNG files, each
another one. Not measured: models, and what pictures of a real size take while they are open (they have a budget of
their own, see mpa_edge/pictures.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
from PIL import Image

from mpa_edge.types import Reply, Request

MEGA = 1_000_000
WIDTH = 8


def draw(folder: Path, n: int) -> None:
    """n pictures, each with its number in its first pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        image = Image.new("RGB", (WIDTH, WIDTH))
        image.putpixel((0, 0), (i % 256, i // 256 % 256, i // 65536))
        image.save(folder / f"{i:07d}.png", compress_level=0)


class Scripted:
    """Asks for the number of a picture and knows it; the student is wrong about every third one."""

    def __init__(self, reference: str, *, name: str, **_: Any) -> None:
        self.name, self.asked_at = name, 0.0

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request."""
        FIRST_ASKED.setdefault(self.name, time.perf_counter())
        return [Reply(self._say(request), "stop", 3) for request in requests]

    def _say(self, request: Request) -> str:
        red, green, blue = request.image.getpixel((0, 0))  # type: ignore[misc]
        number = red + 256 * green + 65536 * blue
        if "Question" in request.prompt or request.max_new_tokens > 20:
            return f"Question: Which number has picture {number}, asked {request.seed % 997}? Answer: {number}"
        return str(number if self.name == "teacher" or number % 3 else number + 1)

    def close(self) -> None:
        """Nothing to free."""


FIRST_ASKED: dict[str, float] = {}


def inner(pictures: Path, out: Path) -> dict[str, Any]:
    """One size, in this process."""
    from mpa_edge.rows import part_path
    from mpa_edge.runs import MANIFEST, peak_rss_bytes
    from mpa_edge.stages import annotate, identify
    from mpa_edge.stages.run import Run, open_run

    def opened() -> Run:
        return open_run("minicharts", images=str(pictures), out=str(out), overrides=("images.render=null",))

    with mock.patch.object(annotate, "load", Scripted), mock.patch.object(identify, "load", Scripted):
        started, run = time.perf_counter(), opened()
        annotate.run_annotate(run)
        identify.run_identify(run)
        run_s, peak, last = time.perf_counter() - started, peak_rss_bytes(), len(run.shards) - 1
        folder = run.stage_folder("annotate")
        (folder / MANIFEST).unlink()
        part_path(folder, last).unlink()
        FIRST_ASKED.clear()
        started = time.perf_counter()
        annotate.run_annotate(opened())
    return {"run_s": run_s, "peak_rss_bytes": peak, "resume_s": FIRST_ASKED["teacher"] - started}


def measured(n: int) -> dict[str, Any]:
    """One size, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        draw(Path(temporary) / "pictures", n)
        words = [sys.executable, __file__, "--inner", str(Path(temporary) / "pictures"), str(Path(temporary) / "run")]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    click.echo(f"{n}: {found}", err=True)
    return {"pictures": n} | found


@click.command()
@click.option("--small", default=1000, show_default=True, help="Pictures.")
@click.option("--large", default=100_000, show_default=True, help="Pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--inner", "folders", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(small: int, large: int, as_json: bool, folders: tuple[Path, Path] | None) -> None:
    """Run the benchmark."""
    if folders:
        click.echo(json.dumps(inner(*folders)))
        return
    from align import machine

    few, many = measured(small), measured(large)
    growth = many["peak_rss_bytes"] - few["peak_rss_bytes"]
    result = {"small": few, "large": many, "growth_bytes": growth, "resume_s": many["resume_s"], "machine": machine()}
    line = f"{growth / MEGA:.0f} MB more for {large:,} pictures than for {small:,}; resumed in {many['resume_s']:.2f} s"
    click.echo(json.dumps(result, indent=1) if as_json else line)


if __name__ == "__main__":
    main()
