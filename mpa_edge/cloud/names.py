"""Names and URLs that end up in task files and command lines: checked once, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import is_url
from mpa_edge.vlm.openai.reference import DEFAULT_KEY, is_private_way, is_server, parse

NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
BUCKET = re.compile(r"[a-z0-9]+://[A-Za-z0-9][\w.-]*(/[\w.=+@,-]+)*")
HUB_BUCKET = re.compile(r"hf://buckets/[^/]+/[^/]+(/.*)?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HUB_TOKEN = "HF_TOKEN"
EXAMPLES = {"sky": "s3://my-bucket/runs", "hf": "hf://buckets/OWNER/BUCKET"}
SCHEMES = {"sky": ("s3", "gs", "r2", "nebius"), "hf": ("hf",)}
"""What `sky` mounts with a write cache, and where Hugging Face Jobs can write."""


def job_name(given: str | None, recipe: str) -> str:
    """The name of a job: the given one, else one made of the recipe's. MpaError if clouds would not take it.

    >>> job_name(None, "smolvlm_500m.v2"), job_name("charts-2", "x")
    ('smolvlm-500m-v2', 'charts-2')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", recipe).strip("-")[:36].strip("-")
    name = given if given is not None else plain if plain[:1].isalpha() else f"run-{plain}"
    if not NAME.fullmatch(name):
        raise MpaError(f"--cloud-name '{name}': use at most 40 lower case letters, digits and dashes, a letter first")
    return name


def checked_url(option: str, url: str, provider: str) -> str:
    """A bucket URL without its final slash. MpaError if a task file cannot hold it; possible keys are not repeated."""
    parts = urlsplit(url) if is_url(url) else None
    example = f"{option} {EXAMPLES[provider]}"
    if parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise MpaError(f"{option} is not a plain bucket URL (no keys, no query): write {example}")
    plain = url.rstrip("/")
    if not BUCKET.fullmatch(plain) or ".." in plain.split("/"):
        raise MpaError(f"{option} '{url}' has characters other than letters, digits and ._-=+@, : write {example}")
    if parts.scheme not in SCHEMES[provider]:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES[provider])
        raise MpaError(f"{option} '{url}' cannot be mounted there: use {known}, for example {example}")
    return plain


def bucket_url(given: str | None, provider: str) -> str:
    """The bucket that keeps the run. MpaError if none is given, or the provider cannot write to it."""
    if given is None:
        raise MpaError(f"a job needs a bucket that keeps its run: add --bucket {EXAMPLES[provider]}")
    url = checked_url("--bucket", given, provider)
    if provider == "hf" and not HUB_BUCKET.fullmatch(url):
        raise MpaError(f"--bucket '{url}' is not a bucket: write {EXAMPLES['hf']} (hf buckets create makes one)")
    return url


def split_bucket(url: str) -> tuple[str, str]:
    """A bucket URL -> what can be mounted, and the path inside it.

    >>> split_bucket("s3://bucket/runs/x"), split_bucket("s3://bucket")
    (('s3://bucket', 'runs/x'), ('s3://bucket', ''))
    """
    scheme, _, rest = url.partition("://")
    bucket, _, inside = rest.partition("/")
    return f"{scheme}://{bucket}", inside


def require_printable(words: Iterable[str]) -> None:
    """MpaError for a line break or another control character, which a task file would not keep."""
    for word in words:
        if not word.isprintable():
            raise MpaError(f"{word!r} contains a control character or a line break: remove it")


def secret_names(recipe: Recipe, asked: Sequence[str], environ: Mapping[str, str], hub: bool) -> tuple[str, ...]:
    """Names of the environment variables that a job needs; only names are ever written.

    The hub's token if it is set (or `hub`), the key of the teacher's server, and those `asked` for with --secret.
    MpaError for something that is not a name, or not set.
    """
    for name in asked:
        if not VARIABLE.fullmatch(name):
            # not repeated: it may be the value
            raise MpaError("--secret takes the name of an environment variable, not a value: export it, give its name")
    wanted = [*asked]
    if is_server(recipe.teacher):
        named = recipe.teacher_server.api_key_env
        if named or (environ.get(DEFAULT_KEY) and is_private_way(parse(recipe.teacher).base_url)):
            wanted.append(named or DEFAULT_KEY)
    for name in wanted:
        if not environ.get(name):
            raise MpaError(f"the job needs {name}, which is not set: export {name} first")
    return tuple(dict.fromkeys([*([HUB_TOKEN] if hub or environ.get(HUB_TOKEN) else []), *wanted]))
