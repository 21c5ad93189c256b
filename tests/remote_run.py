"""A program of the tests: annotate and identify in a run folder behind a URL, with models that answer from a function.

    python -m tests.remote_run URL PICTURES [SECONDS_PER_SHARD] [key=value ...]

A line `shard` on stdout for each shard that the teacher was asked about.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import mpa_edge.vlm
from mpa_edge.types import Reply, Request

LEASE_S = 2.0
SETTINGS = ("images.render=null", "annotate.shard_size=2", "annotate.samples_per_image=5")


class Scripted:
    """Asks for the number of a picture and knows it; the student is wrong about every third one."""

    seconds_per_shard = 0.0

    def __init__(self, reference: str, *, name: str, **_: Any) -> None:
        self.name = name

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        writing = bool(requests) and requests[0].max_new_tokens > 20
        if writing:
            time.sleep(self.seconds_per_shard)
            print("shard", flush=True)
        return [Reply(self._say(request), "stop", 3) for request in requests]

    def _say(self, request: Request) -> str:
        number = int(request.image.getpixel((0, 0))[0])
        if request.max_new_tokens > 20:
            return f"Question: Which number has picture {number}, asked {request.seed % 997}? Answer: {number}"
        return str(number if self.name == "teacher" or number % 3 else number + 1)

    def close(self) -> None:
        pass


def main(place: str, pictures: str, seconds_per_shard: str = "0", *overrides: str) -> None:
    mpa_edge.vlm.load = Scripted  # type: ignore[assignment]
    Scripted.seconds_per_shard = float(seconds_per_shard)
    from mpa_edge.runs.remote.mirror import working_copy
    from mpa_edge.runs.remote.stores import is_url
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run

    def work(folder: str) -> None:
        run = open_run("minicharts", images=pictures, out=folder, overrides=(*SETTINGS, *overrides))
        run_stages(run, ("annotate", "identify"))

    if is_url(place):
        with working_copy(place, lease_s=LEASE_S) as folder:
            work(str(folder))
    else:
        work(place)


if __name__ == "__main__":
    from mpa_edge.errors import MpaError

    try:
        main(*sys.argv[1:])
    except MpaError as error:
        sys.exit(f"error: {error}")
