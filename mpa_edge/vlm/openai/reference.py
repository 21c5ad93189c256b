"""`openai:BASE_URL#MODEL`: a teacher behind any server that speaks the OpenAI protocol."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from mpa_edge.config.recipe import SERVER_PREFIX
from mpa_edge.errors import MpaError
from mpa_edge.runs.network import is_this_machine, secret_from

EXAMPLE = f"{SERVER_PREFIX}http://127.0.0.1:8000/v1#MODEL"
DEFAULT_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class ServerReference:
    """Which server, and which of its models."""

    base_url: str
    """With its path (/v1), without a trailing slash, without secrets."""
    model: str
    """The server's name for it."""


def is_server(reference: str) -> bool:
    """Whether a model reference names a server.

    >>> is_server("openai:http://host:8000/v1#m"), is_server("owner/name")
    (True, False)
    """
    return reference.startswith(SERVER_PREFIX)


def parse(reference: str) -> ServerReference:
    """The parts of a reference. Raises MpaError where it is malformed or contains a secret.

    >>> parse("openai:http://Host:8000/v1/#Qwen/Qwen2-VL-7B-Instruct")
    ServerReference(base_url='http://host:8000/v1', model='Qwen/Qwen2-VL-7B-Instruct')
    """
    # split at the first #: a model id may contain another one
    address, _, model = reference.removeprefix(SERVER_PREFIX).partition("#")
    try:
        url = urlsplit(address.strip())
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is not a number, a bracket that is not closed
        valid = False
    if not valid:
        raise MpaError(f"a teacher's server is no http address: write {EXAMPLE}")
    # never quoted: it may contain a key
    if url.username or url.password or url.query:
        raise MpaError(f"a server's address may hold no user, password or query: write {EXAMPLE}, export {DEFAULT_KEY}")
    if not model.strip():
        raise MpaError(f"no model after '{address}': write {EXAMPLE}")
    return ServerReference(f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}", model.strip())


def is_private_way(base_url: str) -> bool:
    """Whether what is sent is encrypted or stays on this machine.

    >>> [is_private_way(f"{url}/v1") for url in ("https://a.b", "http://127.0.0.1:1", "http://localhost", "http://a.b")]
    [True, True, True, False]
    """
    url = urlsplit(base_url)
    return url.scheme == "https" or is_this_machine(url.hostname or "")


def key_for(base_url: str, api_key_env: str | None) -> str | None:
    """The key to send, from the environment only; None where there is none to send.

    A key that the recipe names (`api_key_env`) must be set, and one that is sent must fit into a header, else MpaError.
    The default key may belong to another server, so it is sent only over an encrypted or local connection.
    """
    if api_key_env is None:
        return secret_from(DEFAULT_KEY) if is_private_way(base_url) else None
    key = secret_from(api_key_env)
    if key is None:
        raise MpaError(f"the environment has no {api_key_env} (teacher_server.api_key_env): export it first")
    return key
