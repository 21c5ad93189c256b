"""Names and addresses that end up in task files and command lines: checked once, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import is_url

NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
BUCKET = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<path>[A-Za-z0-9][\w.-]*(/[\w.=+@,-]+)*)")
EXAMPLES = {"sky": "s3://my-bucket/runs", "hf": "hf://buckets/OWNER/BUCKET"}
SCHEMES = {"sky": ("s3", "gs", "r2", "nebius"), "hf": ("hf",)}
"""What `sky` mounts with a write cache, and where Hugging Face Jobs can write."""


def job_name(given: str | None, recipe: str) -> str:
    """The name of a job: as given, else made of the recipe's. MpaError where no cloud would take it.

    >>> job_name(None, "smolvlm_500m.v2"), job_name("charts-2", "x")
    ('smolvlm-500m-v2', 'charts-2')
    """
    name = given if given is not None else _from_recipe(recipe)
    if not NAME.fullmatch(name):
        raise MpaError(f"--cloud-name '{name}': use at most 40 lower case letters, digits and dashes, a letter first")
    return name


def _from_recipe(recipe: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", recipe).strip("-")[:36].strip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}"


def checked_url(option: str, url: str, provider: str) -> str:
    """An address that a task file may hold, without a slash at its end. MpaError otherwise; what could be a key is
    not quoted.
    """
    parts = urlsplit(url) if is_url(url) else None
    example = EXAMPLES[provider]
    if parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise MpaError(f"{option} is no plain address of a bucket (no keys, no query): write {option} {example}")
    plain = url.rstrip("/")
    if not BUCKET.fullmatch(plain) or ".." in plain.split("/"):
        raise MpaError(f"{option} '{url}': letters, digits and ._-=+@, only, as in {option} {example}")
    if parts.scheme not in SCHEMES[provider]:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES[provider])
        raise MpaError(f"{option} '{url}' cannot be mounted there: use {known}, for example {option} {example}")
    return plain


def bucket_url(given: str | None, provider: str) -> str:
    """The bucket that keeps the run. MpaError where none is given, or none that the provider can write."""
    if given is None:
        raise MpaError(f"a job needs a bucket that keeps its run when a machine goes: --bucket {EXAMPLES[provider]}")
    url = checked_url("--bucket", given, provider)
    if provider == "hf" and not re.fullmatch(r"hf://buckets/[^/]+/[^/]+(/.*)?", url):
        raise MpaError(f"--bucket '{url}' is no bucket: write {EXAMPLES['hf']} (hf buckets create makes one)")
    return url


def split_bucket(url: str) -> tuple[str, str]:
    """An address of an object store -> what can be mounted, and the path inside.

    >>> split_bucket("s3://bucket/runs/x"), split_bucket("s3://bucket")
    (('s3://bucket', 'runs/x'), ('s3://bucket', ''))
    """
    scheme, _, rest = url.partition("://")
    bucket, _, inside = rest.partition("/")
    return f"{scheme}://{bucket}", inside


def printable(words: Iterable[str]) -> None:
    """MpaError where a word holds a line break or another control character: a task file would not keep it."""
    for word in words:
        if not word.isprintable():
            raise MpaError(f"{word!r} holds a line break or another control character: write it without")
