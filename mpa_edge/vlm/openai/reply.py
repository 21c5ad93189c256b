"""What a server sent -> a reply, or why it is none. Strict: nothing that is not an answer may pass as one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpa_edge.types import Drop, FinishReason, Reply
from mpa_edge.vlm.shared.prompts import without_special_tokens

if TYPE_CHECKING:
    from openai import APIStatusError

FAILURE = "server: "
TIMED_OUT, CONNECTION = "server: timed out", "server: connection lost"
OVER_BUDGET = "server: not asked, the cost limit is reached"
EMPTY, UNUSABLE = "server: empty reply", "server: unusable reply"
MAX_DETAIL_CHARS = 200
MAX_BODY_BYTES, READ_BYTES = 8_000_000, 65_536
MAX_TOKENS = 10**9
REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
    **dict.fromkeys(("content_filter", "safety"), "filtered"),
}
# words that a server's tokenizer may take for an image, a turn or an end, whoever wrote them (compare vLLM's
# CVE-2026-44222): what a teacher writes goes into a prompt again
SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?(?:s|bos|eos|pad|img|image|video|IMG_CONTEXT|fake_token_around_image|global-img|"
    r"row_\d+_col_\d+|end_of_utterance|start_of_turn|end_of_turn|image_soft_token|__media__)>|\[/?(?:INST|IMG)\]"
)
# what /v1/models says of a model that does not change between two requests (vLLM's `created` does)
CARD_KEYS = ("id", "root", "parent", "max_model_len")
CARD_META_KEYS = ("n_params", "size", "n_vocab", "n_embd")


@dataclass(frozen=True)
class Answer:
    """One reply with the tokens that the server counted for it."""

    reply: Reply
    tokens_in: int | None
    """Of prompt and image; None where the server does not say."""
    tokens_out: int | None
    """Of the answer."""


def is_failure(reason: str) -> bool:
    """Whether a row was dropped because the server failed, so that it is worth asking again.

    >>> is_failure(TIMED_OUT), is_failure("no question")
    (True, False)
    """
    return reason.startswith(FAILURE)


async def body_of(response: Any) -> bytes | Drop:
    """The body of a response, up to a size that no answer has, so that it cannot fill the memory."""
    body = bytearray()
    try:
        async for part in response.iter_bytes(READ_BYTES):
            body += part
            if len(body) > MAX_BODY_BYTES:
                return Drop(UNUSABLE, f"more than {MAX_BODY_BYTES:,} bytes")
    except Exception as error:  # of the transport below the client; its classes differ between versions
        return Drop(CONNECTION, f"{type(error).__name__}: {excerpt(str(error))}")
    return bytes(body)


def read_answer(body: bytes, secret: str | None = None) -> Answer | Drop:
    """The body of a 200 -> an answer, or a Drop where it is HTML, truncated, or has no choice with a message."""
    try:
        document = json.loads(body)
    except ValueError:  # also UnicodeDecodeError and JSONDecodeError
        return Drop(UNUSABLE, f"not JSON: {excerpt(body.decode(errors='replace'), secret)}")
    except RecursionError:
        return Drop(UNUSABLE, "JSON that is nested too deeply")
    if not isinstance(document, dict):
        return Drop(UNUSABLE, f"no JSON object: {excerpt(str(document), secret)}")
    choices, usage = document.get("choices"), document.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Drop(UNUSABLE, f"no choices: {excerpt(json.dumps(document), secret)}")
    why, content = choice.get("finish_reason"), message.get("content")
    reason = REASONS.get(why) if isinstance(why, str) else None
    if message.get("refusal"):
        reason = "filtered"
    if reason is None:
        return Drop(UNUSABLE, f"finish_reason is {excerpt(str(why))}")
    if content is not None and not isinstance(content, str):
        return Drop(UNUSABLE, f"the content is {type(content).__name__}")
    text = "" if reason == "filtered" else without_special_tokens(plain(content or ""), SPECIAL).strip()
    drop = Drop(EMPTY) if not text and reason == "stop" else None
    tokens_in, tokens_out = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Answer(Reply(text, reason, tokens_out or 0, drop=drop), tokens_in, tokens_out)


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS else None


def message_of(error: APIStatusError, key: str | None) -> str:
    """The error message in a server's response, or the start of its body, without the key, which some repeat."""
    try:
        text = error.response.text
    except Exception:
        return "unreadable"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    found = document.get("error", document.get("detail")) if isinstance(document, Mapping) else None
    message = found.get("message") if isinstance(found, Mapping) else found
    return excerpt(message if isinstance(message, str) else text, key)


def cause(error: BaseException) -> str:
    """What is below a client's error, in a few words: its own message may quote a URL."""
    inner = error.__cause__ or error
    return f"{type(inner).__name__}: {excerpt(str(inner))}".removesuffix(": ")


def card(body: bytes, model: str) -> dict[str, Any]:
    """What a list of models says about one model, without what changes. ValueError where it is not such a list.

    >>> card(b'{"data": [{"id": "m", "created": 1, "root": "/m"}]}', "m"), card(b'{"data": []}', "m")
    ({'id': 'm', 'root': '/m'}, {})
    """
    document = json.loads(body)
    listed = document.get("data") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of models")
    found: dict[str, Any] = next((one for one in listed if isinstance(one, dict) and one.get("id") == model), {})
    meta = found["meta"] if isinstance(found.get("meta"), dict) else {}
    places = [(found, key) for key in CARD_KEYS] + [(meta, key) for key in CARD_META_KEYS]
    return {key: place[key] for place, key in places if place.get(key) is not None}


def plain(text: str) -> str:
    """Text that can be written as UTF-8: half a pair of surrogates, which JSON may hold, becomes a question mark.

    >>> plain("a" + chr(0xD800))
    'a?'
    """
    return text.encode("utf-8", "replace").decode()


def excerpt(text: str, secret: str | None = None) -> str:
    """The start of a server's message, on one line and without the key.

    >>> excerpt("bad  key\\nsk-1", "sk-1")
    'bad key ***'
    """
    shown = plain(text.replace(secret, "***") if secret else text)
    return " ".join(shown[: 10 * MAX_DETAIL_CHARS].split())[:MAX_DETAIL_CHARS]
