"""What a server sent -> a reply, or why it is none. Strict: nothing that is not an answer may pass as one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpa_edge.metrics.lenient import without_thoughts
from mpa_edge.runs.log import redacted
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
# in lower case, as servers and the models behind them write them; no reason at all is a normal end
REASONS: dict[str, FinishReason] = {
    **dict.fromkeys(
        ("", "none", "null", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed"),
        "stop",
    ),
    **dict.fromkeys(("length", "max_tokens", "max_new_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "safety", "refusal", "recitation", "blocklist", "prohibited_content"),
        "filtered",
    ),
}
# fields of errors, in lower case
NO_CREDIT = {"insufficient_quota", "insufficient_balance", "billing_hard_limit_reached", "billing_not_active"}
FILTERED = {"content_filter", "content_policy_violation", "data_inspection_failed", "moderation_blocked"}
LIMITS = ("max_tokens", "max_completion_tokens")
# what a server may refuse to be told, in the order in which it is left out
PARAMETERS = ("top_p", "seed", "temperature", *LIMITS)
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


@dataclass(frozen=True)
class Refusal:
    """An error that a server answered with: by its status, or with status 200 and an error as the body."""

    status: int
    """Of HTTP, or the one that the body names; 0 where there is none."""
    message: str
    """The server's, in short and without secrets."""
    codes: frozenset[str] = frozenset()
    """What it calls the error, in lower case."""
    parameters: tuple[str, ...] = ()
    """Those of PARAMETERS that it is about."""


def refusal(status: int, body: str) -> Refusal:
    """What a server's error says. Which parameter it does not take stands in a field of some, in the words of others.

    >>> refusal(400, '{"error": {"message": "Unknown name", "code": "unsupported", "param": "seed"}}')
    Refusal(status=400, message='Unknown name', codes=frozenset({'unsupported'}), parameters=('seed',))
    >>> refusal(422, '{"detail": [{"loc": ["body", "top_p"], "msg": "extra"}]}').parameters
    ('top_p',)
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    document = document[0] if isinstance(document, list) and document else document
    document = document if isinstance(document, Mapping) else {}
    found = document.get("error") or document.get("detail") or document
    fields = found if isinstance(found, Mapping) else {}
    message = fields.get("message") if fields else found
    code, param = str(fields.get("code")), fields.get("param")
    if status == 200:
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
    about = param if isinstance(param, str) and param else body
    return Refusal(
        status,
        excerpt(message if isinstance(message, str) and message else body),
        frozenset(str(fields[key]).lower() for key in ("code", "type", "status") if fields.get(key)),
        tuple(name for name in PARAMETERS if re.search(rf"(?<!\w){name}(?!\w)", about)),
    )


def read_answer(body: bytes) -> Answer | Refusal | Drop:
    """The body of a 200 -> an answer, or an error, or a Drop where it is HTML, cut, or has no choice with a message."""
    try:
        document = json.loads(body)
    except ValueError:  # also UnicodeDecodeError and JSONDecodeError
        return Drop(UNUSABLE, f"not JSON: {excerpt(body.decode(errors='replace'))}")
    except RecursionError:
        return Drop(UNUSABLE, "JSON that is nested too deeply")
    if not isinstance(document, dict):
        return Drop(UNUSABLE, f"no JSON object: {excerpt(str(document))}")
    choices, usage = document.get("choices"), document.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices else None
    holder = choice if isinstance(choice, dict) else document
    if holder.get("error"):
        return refusal(200, json.dumps({"error": holder["error"]}))
    message = holder.get("message")
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Drop(UNUSABLE, f"no choices: {excerpt(json.dumps(document))}")
    why, content = choice.get("finish_reason"), _joined(message.get("content"))
    reason = REASONS.get(str(why).lower()) if why is None or isinstance(why, str) else None
    if message.get("refusal"):
        reason = "filtered"
    if reason is None:
        return Drop(UNUSABLE, f"finish_reason is {excerpt(str(why))}")
    if content is None:
        return Drop(UNUSABLE, f"the content is {type(message['content']).__name__}")
    text = "" if reason == "filtered" else without_special_tokens(plain(without_thoughts(content)), SPECIAL).strip()
    thoughts = content or any(message.get(key) for key in ("reasoning_content", "reasoning"))
    drop = Drop(EMPTY, "only thoughts: switch thinking off at the server" if thoughts else "")
    tokens_in, tokens_out = (
        _count(usage, "prompt_tokens", "input_tokens"),
        _count(usage, "completion_tokens", "output_tokens"),
    )
    reply = Reply(text, reason, tokens_out or 0, drop=drop if not text and reason == "stop" else None)
    return Answer(reply, tokens_in, tokens_out)


def _joined(content: Any) -> str | None:
    """The text of a message, which may come in parts; None where it is of another kind. Thoughts are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def _count(usage: object, *keys: str) -> int | None:
    """A count of tokens under the first of its names that is there."""
    value = next((usage[key] for key in keys if key in usage), None) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS else None


def text_of(error: APIStatusError) -> str:
    """The body of an error."""
    try:
        return str(error.response.text)
    except Exception:  # of the transport: it was cut, or cannot be unpacked
        return "unreadable"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, innermost last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def cause(error: BaseException) -> str:
    """What is below a client's error, in a few words: its own message says nothing."""
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


def excerpt(text: str) -> str:
    """The start of a server's message, on one line and without the secrets of this process's environment.

    >>> excerpt("bad  key\\nBearer sk-1")
    'bad key Bearer ***'
    """
    return " ".join(redacted(plain(text)).split())[:MAX_DETAIL_CHARS]
