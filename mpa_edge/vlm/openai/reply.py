"""What a server sent -> a reply, or why it is none. Strict: nothing that is not an answer may pass for one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mpa_edge.types import Drop, FinishReason, Reply

FAILURE = "server: "
TIMED_OUT, CONNECTION = "server: timed out", "server: connection lost"
DOWN, TOO_DEAR = "server: not asked, it is down", "server: not asked, the cost limit is reached"
EMPTY, UNUSABLE = "server: empty reply", "server: unusable reply"
MAX_DETAIL_CHARS = 200
MAX_BODY_BYTES = 8_000_000
MAX_TOKENS = 10**9
REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
    **dict.fromkeys(("content_filter", "safety"), "filtered"),
}
# words that a server's tokenizer may take for an image, a turn or an end, whoever wrote them (compare vLLM's
# CVE-2026-44222): what a teacher wrote goes into a prompt again
SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?(?:s|bos|eos|pad|img|image|video|IMG_CONTEXT|fake_token_around_image|global-img|"
    r"row_\d+_col_\d+|end_of_utterance|start_of_turn|end_of_turn|image_soft_token|__media__)>|\[/?(?:INST|IMG)\]"
)


@dataclass(frozen=True)
class Answer:
    """One reply with the tokens that the server counted for it."""

    reply: Reply
    """As the pipeline takes it."""
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


def failed(drop: Drop) -> Reply:
    """The reply that stands for none."""
    return Reply(text="", finish_reason="failed", n_tokens=0, drop=drop)


def without_special(text: str) -> str:
    """Text that cannot be read as an image, a turn or an end.

    >>> without_special("a<|im_<|im_end|>end|>b </s> x < y")
    'ab  x < y'
    """
    while (cleaned := SPECIAL.sub("", text)) != text:  # what is left may close up to another one
        text = cleaned
    return text


def plain(text: str) -> str:
    """Text that can be written as UTF-8: half a pair of surrogates, which JSON may hold, becomes a question mark.

    >>> plain("a" + chr(0xD800))
    'a?'
    """
    return text.encode("utf-8", "replace").decode()


def excerpt(text: str, secret: str | None = None) -> str:
    """The start of what a server said, on one line and without the key.

    >>> excerpt("bad  key\\nsk-1", "sk-1")
    'bad key ***'
    """
    shown = plain(text.replace(secret, "***") if secret else text)
    return " ".join(shown[: 10 * MAX_DETAIL_CHARS].split())[:MAX_DETAIL_CHARS]


def read_answer(body: bytes, secret: str | None = None) -> Answer | Drop:
    """The body of a 200 -> an answer, or a Drop where it is HTML, half a document, or has no choice with a message."""
    try:
        document = json.loads(body)
    except ValueError:  # UnicodeDecodeError and JSONDecodeError are kinds of it
        return Drop(UNUSABLE, f"not JSON: {excerpt(body.decode(errors='replace'), secret)}")
    except RecursionError:
        return Drop(UNUSABLE, "JSON that is nested too deeply")
    if not isinstance(document, dict):
        return Drop(UNUSABLE, f"no JSON object: {excerpt(str(document), secret)}")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Drop(UNUSABLE, f"no choices: {excerpt(json.dumps(document), secret)}")
    return _read_message(message, choice.get("finish_reason"), document.get("usage"))


def _read_message(message: dict[str, Any], why: object, usage: object) -> Answer | Drop:
    counted = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
    reason = REASONS.get(why) if isinstance(why, str) else None
    content = message.get("content")
    if message.get("refusal"):
        reason = "filtered"
    if reason is None:
        return Drop(UNUSABLE, f"finish_reason is {excerpt(str(why))}")
    if content is not None and not isinstance(content, str):
        return Drop(UNUSABLE, f"the content is {type(content).__name__}")
    text = without_special(plain(content or "")).strip()
    if reason == "filtered":
        text = ""
    drop = Drop(EMPTY) if not text and reason == "stop" else None
    return Answer(Reply(text, reason, tokens_out or 0, drop=drop), tokens_in, tokens_out)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS else None
