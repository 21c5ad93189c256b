"""A model behind a server, against a server that fails in every way that is known of servers."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import pytest
from PIL import Image

from tests.vlm import fault_server as faults
from tests.vlm.fault_server import says, serving, status
from tests.vlm.openai_asked import SOON, one_reply, request, vlm_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient_client")]  # time-outs are waited for


def test_image_first_as_bytes_then_text_and_the_limits() -> None:
    with serving() as server:
        vlm = vlm_of(server)
        greedy, sampled = request(3), request(3, temperature=0.7, top_p=0.9, seed=2**40 + 5)
        replies = vlm.answer([greedy, sampled])
        vlm.close()
    assert [(reply.text, reply.finish_reason, reply.n_tokens) for reply in replies] == [("7", "stop", 2)] * 2
    assert replies[0].timing is not None
    asked = {body["temperature"]: body for body in server.bodies}
    image, text = asked[0.0]["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (3, 0, 0)
    assert text == {"type": "text", "text": "question 3"}
    assert {key: asked[0.0][key] for key in asked[0.0] if key != "messages"} == {
        "model": "m",
        "max_tokens": 16,
        "temperature": 0.0,
    }
    assert (asked[0.7]["top_p"], asked[0.7]["seed"]) == (0.9, (2**40 + 5) % 2**31)


def test_answers_come_back_in_order_and_no_more_go_out_than_allowed() -> None:
    def script(number: int, asked: dict[str, Any]) -> faults.Behaviour:
        prompt = asked["messages"][0]["content"][1]["text"]

        def slowly(handler: faults.Handler) -> None:
            time.sleep(0.03 * (7 - number % 7))
            says(prompt.upper())(handler)

        return slowly

    with serving(script=script) as server:
        vlm = vlm_of(server)
        replies = vlm.answer([request(n) for n in range(40)])
        vlm.close()
    assert [reply.text for reply in replies] == [f"QUESTION {n}" for n in range(40)]
    assert 2 <= server.most_at_once <= SOON.concurrency


def test_a_limit_by_another_name() -> None:
    _, server = one_reply(limit_key="max_completion_tokens")
    assert server.bodies[0]["max_completion_tokens"] == 16
    assert "max_tokens" not in server.bodies[0]


TRANSIENT = {
    "500": (status(500, "oops"), "server: HTTP 500"),
    "503": (status(503), "server: HTTP 503"),
    "529": (status(529), "server: HTTP 529"),
    "disconnect": (faults.disconnect, "server: connection lost"),
    "half a body": (faults.half_body, "server: connection lost"),
    "wrong length": (faults.wrong_length, "server: unusable reply"),
    "truncated": (faults.truncated, "server: unusable reply"),
    "html": (faults.html, "server: unusable reply"),
    "empty body": (faults.body(b""), "server: unusable reply"),
    "no choices": (faults.body(b'{"choices": []}'), "server: unusable reply"),
    "error as 200": (faults.body(b'{"error": {"message": "overloaded"}}'), "server: unusable reply"),
    "error as text": (faults.body(b'{"error": "Unexpected endpoint"}'), "server: unusable reply"),
    "error of 200 with a code": (faults.body(b'{"error": {"message": "upstream", "code": 502}}'), "server: HTTP 502"),
    "error in a choice": (says(None, finish="error"), "server: unusable reply"),
    "endless": (faults.endless, "server: unusable reply"),
    "a string": (faults.body(b'"7"'), "server: unusable reply"),
    "unknown finish": (says("7", finish="tool_calls"), "server: unusable reply"),
    "a number as content": (says(7), "server: unusable reply"),
    "half a chunk": (faults.half_chunk, "server: connection lost"),
    "no gzip": (faults.body(b"7", Content_Encoding="gzip"), "server: unusable reply"),
    "hang": (faults.hang(20), "server: timed out"),
    "drip": (faults.drip(0.05), "server: timed out"),
}


def test_a_server_that_is_started_again_is_found_on_its_port() -> None:
    with serving() as first:
        vlm = vlm_of(first, wait_s=20.0, retries=20)
        assert [reply.text for reply in vlm.answer([request(n) for n in range(8)])] == ["7"] * 8
        port = int(first.url.split(":")[2].partition("/")[0])

    def restart() -> None:
        time.sleep(0.4)
        with serving(says("8"), port=port):
            done.wait(20)

    done = threading.Event()
    later = threading.Thread(target=restart)
    later.start()
    replies = vlm.answer([request(n) for n in range(30)])
    done.set()
    later.join()
    vlm.close()
    assert [reply.text for reply in replies] == ["8"] * 30


@pytest.mark.parametrize("which", TRANSIENT)
def test_what_passes_is_tried_again_and_what_stays_is_a_failed_reply(which: str) -> None:
    behaviour, reason = TRANSIENT[which]
    timeout_s = 1.0 if reason == "server: timed out" else 5.0
    reply, server = one_reply(behaviour, says("8"), timeout_s=timeout_s)
    assert (reply.text, reply.drop, len(server.bodies)) == ("8", None, 2)
    reply, server = one_reply(behaviour, retries=1, timeout_s=timeout_s)
    assert (reply.text, reply.finish_reason) == ("", "failed")
    assert reply.drop is not None
    assert reply.drop.reason == reason
    assert len(server.bodies) == 2


def test_nothing_is_taken_for_an_answer_that_is_none() -> None:
    for behaviour, finish, reason in [
        (says(None), "stop", "server: empty reply"),
        (says("  \n"), "stop", "server: empty reply"),
        (says("<|im_end|>"), "stop", "server: empty reply"),
        (says(None, finish="content_filter"), "filtered", None),
        (says("I will not", finish="content_filter"), "filtered", None),
        (says(None, refusal="I cannot help with that"), "filtered", None),
        (says("half an ans", finish="length"), "length", None),
    ]:
        reply, server = one_reply(behaviour)
        assert (reply.finish_reason, reply.drop and reply.drop.reason, len(server.bodies)) == (finish, reason, 1)
        assert reply.text == ("half an ans" if finish == "length" else "")


def test_a_refused_image_is_one_failed_reply_and_not_asked_again() -> None:
    reply, server = one_reply(status(400, "image too large"), says())
    assert reply.drop is not None
    assert (reply.drop.reason, reply.drop.detail, len(server.bodies)) == ("server: HTTP 400", "image too large", 1)


def test_a_redirect_is_not_followed() -> None:
    reply, server = one_reply(status(302, "gone", Location="http://127.0.0.1:1/"), says())
    assert (reply.drop and reply.drop.reason, len(server.bodies)) == ("server: HTTP 302", 1)


def test_a_rate_limit_holds_everybody_for_as_long_as_it_says() -> None:
    with serving(status(429, Retry_After="1"), says()) as server:
        vlm = vlm_of(server, concurrency=1, timeout_s=5.0, wait_s=5.0, retries=0)
        replies = vlm.answer([request(n) for n in range(3)])
        vlm.close()
    assert [reply.text for reply in replies] == ["7"] * 3
    assert server.asked_s[1] - server.asked_s[0] >= 1.0
    assert server.asked_s[3] - server.asked_s[1] < 1.0


def test_a_rate_limit_for_hours_is_a_failure() -> None:
    reply, server = one_reply(status(429, Retry_After="86400"))
    assert reply.drop is not None
    assert (reply.drop.reason, len(server.bodies)) == ("server: HTTP 429", 1)
    assert "after 86400 s" in reply.drop.detail


def test_the_deadline_covers_all_attempts() -> None:
    began = time.monotonic()
    reply, server = one_reply(faults.hang(20), deadline_s=0.5, timeout_s=0.3, retries=20)
    assert reply.drop is not None
    assert reply.drop.reason == "server: timed out"
    assert len(server.bodies) == 2
    assert time.monotonic() - began < 3


def test_a_dead_server_costs_no_time_out_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(faults.hang(20)) as server:
        vlm = vlm_of(server, timeout_s=0.3, wait_s=0.5)
        began = time.monotonic()
        replies = vlm.answer([request(n) for n in range(200)])
        took_s = time.monotonic() - began
        again = vlm.answer([request(n) for n in range(200)])
        vlm.close()
    # one after the other, four at once and four attempts each, they would take a minute
    assert took_s < 4
    assert time.monotonic() - began < 6
    assert len(server.bodies) < 30
    assert {reply.drop.reason for reply in replies + again if reply.drop} <= {
        "server: timed out",
        "server: not asked, it is down",
    }
    assert all(reply.finish_reason == "failed" for reply in replies + again)
    assert "failed 5 times in a row (timed out): retrying every 0.05 s" in capsys.readouterr().err


def test_a_server_that_comes_back_is_asked_again_one_probe_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    def script(number: int, _: dict[str, Any]) -> faults.Behaviour:
        return status(503) if number < 14 else says()

    with serving(script=script) as server:
        vlm = vlm_of(server, wait_s=20.0, retries=20, probe_s=0.1)
        replies = vlm.answer([request(n) for n in range(20)])
        vlm.close()
    assert [reply.text for reply in replies] == ["7"] * 20
    gaps = [later - earlier for earlier, later in zip(server.asked_s[8:14], server.asked_s[9:15], strict=True)]
    assert min(gaps) >= 0.09
    said = capsys.readouterr().err
    assert said.count("in a row (HTTP 503)") == 1
    assert said.count("answers again") == 1
