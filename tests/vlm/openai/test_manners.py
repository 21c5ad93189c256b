"""What real servers do that the protocol does not say, or says otherwise: each manner has its right reading."""

from __future__ import annotations

import gzip
import json
from email.utils import formatdate
from typing import Any

import pytest

from tests.vlm import fault_server as faults
from tests.vlm.fault_server import document, says, serving, status
from tests.vlm.openai_asked import one_reply, request, vlm_of

pytestmark = pytest.mark.usefixtures("impatient_client")


def error(http: int, **fields: Any) -> faults.Behaviour:
    """An error object with the fields of some server."""
    return lambda handler: faults.send(handler, json.dumps({"error": fields}).encode(), http)


@pytest.mark.parametrize("reason", ["stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", None, ""])
def test_a_normal_end_has_many_names(reason: str | None) -> None:
    reply, server = one_reply(says("7", finish=reason))
    assert (reply.text, reply.finish_reason, reply.drop, len(server.bodies)) == ("7", "stop", None, 1)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_cut_has_many_names_and_leaves_no_empty_reply(reason: str) -> None:
    for content in (None, "", "<think>the bar is"):
        reply, _ = one_reply(says(content, finish=reason, reasoning_content="the bar is"))
        assert (reply.text, reply.finish_reason, reply.drop) == ("", "length", None)


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "RECITATION", "refusal"])
def test_a_filter_has_many_names(reason: str) -> None:
    reply, _ = one_reply(says("I will not", finish=reason))
    assert (reply.text, reply.finish_reason, reply.drop) == ("", "filtered", None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "7"}], "7"),
        ([{"type": "text", "text": "7 "}, {"type": "text", "text": "bars"}], "7 bars"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "6?"}]}, {"type": "text", "text": "7"}], "7"),
        (["7", " bars"], "7 bars"),
        ("<think>6?</think>\n\n7", "7"),
        ("6? No.\n</think>\n\n7", "7"),
        ("◁think▷6?◁/think▷7", "7"),
        ("[THINK]6?[/THINK]7", "7"),
        ("<|channel|>analysis<|message|>6?<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>", "7"),
    ],
)
def test_an_answer_comes_in_parts_and_after_thoughts(content: Any, text: str) -> None:
    reply, server = one_reply(says(content))
    assert (reply.text, reply.drop, len(server.bodies)) == (text, None, 1)


def test_thoughts_alone_are_an_empty_reply_that_says_so() -> None:
    for behaviour in (says(None, reasoning_content="7, for"), says("<think>7, for"), says([{"type": "thinking"}])):
        reply, _ = one_reply(behaviour)
        assert reply.drop is not None
        assert reply.drop.reason == "server: empty reply"
    reply, _ = one_reply(says(None, reasoning="7, for"))
    assert reply.drop is not None
    assert reply.drop.detail == "only thoughts: switch thinking off at the server"


def test_zipped_bodies_byte_order_marks_and_other_names_of_the_counts() -> None:
    made = document("7", tokens=None) | {"usage": {"input_tokens": 5, "output_tokens": 2}}
    for raw, headers in [
        (gzip.compress(json.dumps(made).encode()), {"Content_Encoding": "gzip"}),
        (b"\xef\xbb\xbf" + json.dumps(made).encode(), {}),
    ]:
        with serving(faults.body(raw, **headers)) as server:
            vlm = vlm_of(server)
            assert vlm.answer([request()])[0].text == "7"
            assert (vlm.usage.tokens_in, vlm.usage.tokens_out, vlm.usage.uncounted) == (5, 2, 0)
            vlm.close()


# --- errors ---


@pytest.mark.parametrize(
    "refusing",
    [
        error(400, message="The response was filtered", code="content_filter", param="prompt"),
        error(400, message="no", type="content_policy_violation", code=None),
        faults.body(b'{"error": {"message": "no", "code": "content_filter"}}'),
    ],
)
def test_a_filter_in_front_of_the_model_withholds_the_answer(refusing: faults.Behaviour) -> None:
    reply, server = one_reply(refusing)
    assert (reply.finish_reason, reply.drop, len(server.bodies)) == ("filtered", None, 1)


def test_a_used_up_quota_is_no_rate_limit() -> None:
    script = lambda number, _: says() if number < 6 else error(429, message="quota", code="insufficient_quota")  # noqa: E731
    with serving(script=script) as server:
        vlm = vlm_of(server, deadline_s=60.0)
        replies = vlm.answer([request(n) for n in range(40)])
        vlm.close()
    assert sum(reply.drop is None for reply in replies) == 6
    assert {reply.drop.reason for reply in replies if reply.drop} == {
        "server: HTTP 402",
        "server: not asked, it is down",
    }
    assert len(server.bodies) <= 6 + 4


def test_an_error_in_a_body_of_status_200_counts_as_its_code() -> None:
    busy = faults.body(b'{"error": {"message": "slow down", "code": 429}}')
    reply, server = one_reply(busy, busy, busy, says("8"), retries=0)
    assert (reply.text, len(server.bodies)) == ("8", 4)
    in_choice = document() | {"choices": [{"error": {"code": 400, "message": "too dark"}, "message": {"content": ""}}]}
    reply, server = one_reply(faults.body(json.dumps(in_choice).encode()))
    assert reply.drop is not None
    assert (reply.drop.reason, reply.drop.detail, len(server.bodies)) == ("server: HTTP 400", "too dark", 1)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"error": {"message": "too dark"}}',
        b'{"error": "too dark"}',
        b'[{"error": {"code": 413, "message": "too dark", "status": "INVALID_ARGUMENT"}}]',
        b'{"object": "error", "message": "too dark", "type": "BadRequestError", "param": null, "code": 413}',
        b'{"detail": "too dark"}',
        b"too dark",
    ],
)
def test_the_words_of_an_error_stand_in_many_places(raw: bytes) -> None:
    reply, server = one_reply(lambda handler: faults.send(handler, raw, 413))
    assert reply.drop is not None
    assert (reply.drop.reason, reply.drop.detail, len(server.bodies)) == ("server: HTTP 413", "too dark", 1)


def test_a_wait_may_be_a_date() -> None:
    reply, server = one_reply(status(503, Retry_After=formatdate(usegmt=True)), says("8"))
    assert (reply.text, len(server.bodies)) == ("8", 2)
    reply, server = one_reply(status(429, Retry_After="Fri, 31 Dec 2099 23:59:59 GMT"))
    assert reply.drop is not None
    assert "to be asked again after" in reply.drop.detail
    assert len(server.bodies) == 1


# --- parameters that a server does not take ---


def refusing(names: set[str], how: str) -> Any:
    """A script of a server that takes none of the parameters."""

    def script(_: int, asked: dict[str, Any]) -> faults.Behaviour:
        found = next((name for name in sorted(asked) if name in names), None)
        if found is None:
            return says("7")

        def refuse(handler: faults.Handler) -> None:
            raw = {
                "field": {"error": {"message": "Unsupported value", "param": found, "code": "unsupported_value"}},
                "words": {"error": {"message": f"`{found}` is not supported by this model", "param": None}},
                "path": {"error": {"message": "Unknown name", "param": f"generation_config.{found}"}},
                "validation": {"detail": [{"loc": ["body", found], "msg": "Extra inputs are not permitted"}]},
            }[how]
            faults.send(handler, json.dumps(raw).encode(), 422 if how == "validation" else 400)

        return refuse

    return script


@pytest.mark.parametrize("how", ["field", "words", "path", "validation"])
@pytest.mark.parametrize("names", [{"temperature"}, {"seed"}, {"top_p", "seed"}, {"temperature", "top_p", "seed"}])
def test_what_a_server_does_not_take_is_left_out_for_good(
    names: set[str], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(script=refusing(names, how)) as server:
        vlm = vlm_of(server, concurrency=1, retries=0)
        replies = vlm.answer([request(n, temperature=0.5, top_p=0.9) for n in range(8)])
        more = vlm.answer([request(n, temperature=0.5, top_p=0.9) for n in range(8)])
        used = vlm.usage
        vlm.close()
    assert [reply.text for reply in replies + more] == ["7"] * 16
    # found out once, at the first request
    assert len(server.bodies) == 16 + len(names)
    assert (used.requests, used.failures) == (16, len(names))
    said = capsys.readouterr().err
    assert said.count("refuses") == 1
    assert f"refuses {' and '.join(sorted(names))}: all requests go without" in said
    assert ("not greedy" in said) == ("temperature" in names)


def test_many_requests_on_their_way_find_it_out_together(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(script=refusing({"temperature"}, "field")) as server:
        vlm = vlm_of(server, concurrency=8)
        assert [reply.text for reply in vlm.answer([request(n) for n in range(40)])] == ["7"] * 40
        vlm.close()
    assert len(server.bodies) <= 40 + 8
    assert capsys.readouterr().err.count("refuses temperature") == 1


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_the_limit_goes_by_its_other_name_and_never_without(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = ({"max_tokens", "max_completion_tokens"} - {key}).pop()
    with serving(script=refusing({key}, "words")) as server:
        vlm = vlm_of(server, limit_key=key)
        assert vlm.answer([request()])[0].text == "7"
        vlm.close()
    assert server.bodies[-1][other] == 16
    with serving(script=refusing({key, other}, "words")) as server:
        vlm = vlm_of(server, limit_key=key)
        assert vlm.answer([request()])[0].finish_reason == "failed"
        vlm.close()
    assert all(len({key, other} & {*body}) == 1 for body in server.bodies)
    assert capsys.readouterr().err.count("refuses") == 1


def test_an_error_that_only_mentions_a_parameter_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are named, and neither is the reason: after one more try each, all is sent as before."""
    mentions = status(400, "image too large for max_tokens=16, temperature=0.0")
    with serving(script=lambda _, asked: mentions if "question 3" in json.dumps(asked) else says()) as server:
        vlm = vlm_of(server, concurrency=1)
        replies = vlm.answer([request(3), *(request(n) for n in range(8))])
        vlm.close()
    assert [reply.finish_reason for reply in replies] == ["failed" if n in (0, 4) else "stop" for n in range(9)]
    assert len(server.bodies) == 9 + 2
    assert all("temperature" in body and "max_tokens" in body for body in server.bodies[3:])
    assert "refuses" not in capsys.readouterr().err
