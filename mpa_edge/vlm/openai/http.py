"""HTTP under the OpenAI protocol: the client, and what its errors mean for a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from mpa_edge.config.recipe import TeacherServerConfig
from mpa_edge.types import Drop
from mpa_edge.vlm.openai.circuit_breaker import retry_after_s
from mpa_edge.vlm.openai.reply import CONNECTION, MAX_BODY_BYTES, UNUSABLE, excerpt

CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 65_536
BUSY = 429
# the server will say the same to every other request
HOPELESS = {401: "refuses the key", 402: "wants to be paid", 403: "refuses the key", 404: "knows no such model or path"}
RETRIED = {408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
# llama-server while it loads, and proxies whose server is not there yet
NOT_READY = {429, 502, 503, 504}
# what /v1/models says of a model that does not change from one look to the next (vLLM's `created` does)
CARD_KEYS = ("id", "root", "parent", "max_model_len")
CARD_META_KEYS = ("n_params", "size", "n_vocab", "n_embd")


@dataclass(frozen=True)
class Failure:
    """What became of an attempt that brought no answer."""

    drop: Drop
    """Reason and detail."""
    again: bool
    """Whether it may help to ask once more."""
    sent: bool = True
    """Whether the server may have worked on it."""
    status: int | None = None
    """HTTP status; None where there was none."""
    retry_after_s: float | None = None
    """What the server asked for."""


def client(base_url: str, key: str | None, config: TeacherServerConfig) -> Any:
    """A client without retries of its own (they would multiply with ours) that follows no redirect."""
    limits = openai.Timeout(config.timeout_s, connect=min(CONNECT_TIMEOUT_S, config.timeout_s))
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key or "none",  # a server without keys ignores it, and the client wants one
        max_retries=0,
        timeout=limits,
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=limits),
    )


async def body_of(response: Any) -> bytes | Drop:
    """The body of a reply, up to a size that no answer has: it must not fill the memory."""
    parts, size_bytes = [], 0
    try:
        async for part in response.iter_bytes(READ_BYTES):
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > MAX_BODY_BYTES:
                return Drop(UNUSABLE, f"more than {MAX_BODY_BYTES:,} bytes")
    except Exception as error:  # of the transport under the client, whose classes differ between its versions
        return Drop(CONNECTION, f"{type(error).__name__}: {excerpt(str(error))}")
    return b"".join(parts)


def refused(error: openai.APIStatusError, key: str | None, wait_s: float) -> Failure:
    """What an HTTP status means for a request; a wait longer than `wait_s` is one too many."""
    status = error.status_code
    asked_s = retry_after_s(error.response.headers.get("retry-after"))
    again = (status == BUSY or status in RETRIED) and (asked_s or 0.0) <= wait_s
    detail = said(error, key) + (f"; to be asked again after {asked_s:.0f} s" if asked_s else "")
    return Failure(
        Drop(f"server: HTTP {status}", detail),
        again,
        sent=status >= 500,
        status=status,
        retry_after_s=asked_s if again else None,
    )


def said(error: openai.APIStatusError, key: str | None) -> str:
    """What a server wrote beside its status, without the key, which some repeat."""
    try:
        text = error.response.text
    except Exception:
        return "unreadable"
    return excerpt(message_in(text), key)


def message_in(text: str) -> str:
    """The message of an error document, or the text itself.

    >>> message_in('{"error": {"message": "no"}}'), message_in("<html>")
    ('no', '<html>')
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = document.get("error", document.get("detail")) if isinstance(document, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return message if isinstance(message, str) else text


def cause(error: BaseException) -> str:
    """What lies under a client's error, in a few words: its class says more than its message, which may quote a URL."""
    inner = error.__cause__ or error
    return f"{type(inner).__name__}: {excerpt(str(inner))}".removesuffix(": ")


def is_refused(error: BaseException) -> bool:
    """Whether nobody took the request: no connection was made.

    >>> is_refused(openai.OpenAIError("x"))
    False
    """
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def card(body: bytes, model: str) -> dict[str, Any]:
    """What a list of models says of one of them, as far as it stays the same. ValueError where it is no such list.

    >>> card(b'{"data": [{"id": "m", "created": 1, "root": "/m"}]}', "m"), card(b'{"data": []}', "m")
    ({'id': 'm', 'root': '/m'}, {})
    """
    document = json.loads(body)
    listed = document.get("data") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of models")
    found: dict[str, Any] = next((one for one in listed if isinstance(one, dict) and one.get("id") == model), {})
    stated = found.get("meta")
    meta = stated if isinstance(stated, dict) else {}
    kept = {key: found[key] for key in CARD_KEYS if found.get(key) is not None}
    return kept | {key: meta[key] for key in CARD_META_KEYS if meta.get(key) is not None}
