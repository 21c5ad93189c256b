"""Jobs for the tests, as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpa_edge.cloud.job import Job, make_job
from mpa_edge.cloud.launch import Rendered, render

BUCKETS = {"sky": "s3://kept/team/runs", "hf": "hf://buckets/me/kept/runs"}


def job(provider: str = "sky", **changes: Any) -> Job:
    plain: dict[str, Any] = {
        "provider": provider,
        "source": "minicharts",
        "bucket": BUCKETS[provider],
        "secrets": (),
        "spot": True,
        "overrides": (),
        "options": (),
    }
    absent = dict.fromkeys(("images", "out", "name", "gpus", "image_count", "limit"))
    return make_job(**(plain | absent | changes))


def rendered(provider: str = "sky", **changes: Any) -> Rendered:
    return render(job(provider, **changes), ["about nothing"])


def write_recipe(path: Path, **changes: str) -> Path:
    """A small recipe of somebody's own."""
    values = {
        "schema_version": "1",
        "name": "own",
        "task": "minicharts",
        "teacher": "nursery:teacher",
        "student": "nursery:student",
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
    return path
