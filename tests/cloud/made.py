"""Jobs for the tests, as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpa_edge.cloud.launch import Asked, Rendered, make_job, render

BUCKETS = {"sky": "s3://kept/team/runs", "hf": "hf://buckets/me/kept/runs"}


def asked(provider: str = "sky", **changes: Any) -> Asked:
    plain: dict[str, Any] = {
        "provider": provider,
        "source": "minicharts",
        "images": None,
        "out": None,
        "name": None,
        "bucket": BUCKETS[provider],
        "gpus": None,
        "n_images": None,
        "secrets": (),
        "spot": True,
        "overrides": (),
        "limit": None,
        "options": (),
        "files": {},
    }
    return Asked(**(plain | changes))


def rendered(provider: str = "sky", **changes: Any) -> Rendered:
    return render(make_job(asked(provider, **changes)), ["about nothing"])


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
