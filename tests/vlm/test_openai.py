"""A model behind a server, against a server that fails in every way that is known of servers."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from mpa_edge import vlm as registry
from mpa_edge.errors import MpaError
from mpa_edge.recipe import TeacherServerConfig
from mpa_edge.types import Request
from mpa_edge.vlm import openai_gate
from mpa_edge.vlm.openai import OpenAIVLM
from tests.vlm import fault_server as faults
from tests.vlm.fault_server import FaultServer, says, serving, status

KEY = "sk-very-secret-0123456789"
# a busy machine may hold a reply back for a second: only what hangs on purpose gets a shorter time-out
SOON = TeacherServerConfig(timeout_s=5.0, deadline_s=8.0, wait_s=0.6, probe_s=0.05, concurrency=4, retries=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_gate, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(openai_gate, "LOOK_EVERY_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def request(n: int = 0, **changed: Any) -> Request:
    options = {"prompt": f"question {n}", "max_new_tokens": 16} | changed
    return Request(Image.new("RGB", (8, 8), (n % 256, 0, 0)), **options)


def vlm_of(server: FaultServer, **changed: Any) -> OpenAIVLM:
    return OpenAIVLM(server.url, "m", name="teacher", server=SOON.model_copy(update=changed))


def one_reply(*behaviours: faults.Behaviour, **changed: Any):
    """(what came back, the server) of one request."""
    with serving(*behaviours) as server:
        vlm = vlm_of(server, **changed)
        (reply,) = vlm.answer([request()])
        vlm.close()
        return reply, server


def test_picture_first_as_bytes_then_text_and_the_limits() -> None:
    with serving() as server:
        vlm = vlm_of(server)
        greedy, sampled = request(3), request(3, temperature=0.7, top_p=0.9, seed=2**40 + 5)
        replies = vlm.answer([greedy, sampled])
        vlm.close()
    assert [(reply.text, reply.finish_reason, reply.n_tokens) for reply in replies] == [("7", "stop", 2)] * 2
    assert replies[0].timing is not None
    asked = {body["temperature"]: body for body in server.bodies}
    picture, text = asked[0.0]["messages"][0]["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (3, 0, 0)
    assert text == {"type": "text", "text": "question 3"}
    assert {key: asked[0.0][key] for key in asked[0.0] if key != "messages"} == {
        "model": "m", "max_tokens": 16, "temperature": 0.0,
    }  # fmt: skip
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


def test_how_sure_the_model_is_is_asked_only_where_somebody_wants_it() -> None:
    with serving() as server:
        vlm = vlm_of(server)
        plain, unsure = vlm.answer([request(0), request(1, confidence=True)])
        vlm.close()
    assert {body["messages"][0]["content"][1]["text"]: body.get("logprobs") for body in server.bodies} == {
        "question 0": None, "question 1": True,
    }  # fmt: skip
    assert (plain.logprob, unsure.logprob) == (None, None)  # this server does not say


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
    "endless": (faults.endless, "server: unusable reply"),
    "a string": (faults.body(b'"7"'), "server: unusable reply"),
    "unknown finish": (says("7", finish="tool_calls"), "server: unusable reply"),
    "no finish": (says("7", finish=None), "server: unusable reply"),
    "a list as content": (says([{"type": "text", "text": "7"}]), "server: unusable reply"),
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


def test_a_refused_picture_is_one_failed_reply_and_not_asked_again() -> None:
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
        "server: timed out", "server: not asked, it is down",
    }  # fmt: skip
    assert all(reply.finish_reason == "failed" for reply in replies + again)
    assert "failed 5 times in a row (timed out): looking every 0.05 s" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("code", "why"),
    [(401, "refuses the key"), (402, "wants to be paid"), (403, "refuses"), (404, "knows no such model or path")],
)
def test_what_every_request_would_hear_ends_it_at_once(code: int, why: str) -> None:
    with serving(status(code, "because")) as server:
        vlm = vlm_of(server)
        with pytest.raises(MpaError, match=rf"{why}.*HTTP {code}: because") as caught:
            vlm.answer([request(n) for n in range(50)])
        vlm.close()
    assert len(server.bodies) <= SOON.concurrency
    assert "\n" not in str(caught.value)


def test_credit_that_runs_out_keeps_what_came_and_asks_no_more() -> None:
    script = lambda number, _: says() if number < 10 else status(402, "no credit")  # noqa: E731
    with serving(script=script) as server:
        vlm = vlm_of(server)
        replies = vlm.answer([request(n) for n in range(50)])
        vlm.close()
    assert sum(reply.drop is None for reply in replies) == 10
    assert len(server.bodies) <= 10 + SOON.concurrency
    assert {reply.drop.reason for reply in replies if reply.drop} == {
        "server: HTTP 402",
        "server: not asked, it is down",
    }


def test_a_gateway_that_refuses_one_picture_stops_nobody() -> None:
    with serving(script=lambda number, _: status(403, "blocked") if number == 5 else says()) as server:
        vlm = vlm_of(server)
        replies = vlm.answer([request(n) for n in range(20)])
        vlm.close()
    assert [reply.drop.reason for reply in replies if reply.drop] == ["server: HTTP 403"]


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for code in (401, 400):
        with serving(faults.echo_key(code)) as server:
            vlm = vlm_of(server)
            try:
                shown = str(vlm.answer([request()]))
            except MpaError as error:
                shown = "".join(traceback.format_exception(error))
            vlm.close()
        assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
        assert "***" in shown
        assert KEY not in shown
    with serving() as server:
        server.models = faults.echo_key(401)
        with pytest.raises(MpaError, match=r"\*\*\*") as caught:
            vlm_of(server)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in "".join(capfd.readouterr())


def test_a_key_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not this one")
    monkeypatch.setenv("OTHER_API_KEY", KEY)
    _, server = one_reply(api_key_env="OTHER_API_KEY")
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_a_server_that_is_still_loading_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[int] = []

    def loading(handler: faults.Handler) -> None:
        looks.append(1)
        if len(looks) < 4:
            return status(503, "Loading model")(handler)
        return faults.body(b'{"data": [{"id": "m", "max_model_len": 4096, "created": 5}]}')(handler)

    with serving() as server:
        server.models = loading
        vlm = vlm_of(server, wait_s=10.0)
        assert vlm.card == {"id": "m", "max_model_len": 4096}
        vlm.close()
    assert capsys.readouterr().err.count("(HTTP 503: Loading model)") == 1


@pytest.mark.parametrize("models", [status(404), status(500), status(405)])
def test_a_server_without_a_list_of_models_is_ready(models: faults.Behaviour) -> None:
    with serving() as server:
        server.models = models
        vlm = vlm_of(server)
        assert vlm.card == {}
        assert vlm.answer([request()])[0].text == "7"
        vlm.close()


def test_nobody_there_is_one_line_after_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        pass
    with pytest.raises(MpaError, match=r"no teacher's server at http://127.* after 1 s \(ConnectError.*: start it"):
        vlm_of(server)
    with serving() as server:
        server.models = faults.html
        with pytest.raises(MpaError, match="it answers, but not with a list of models"):
            vlm_of(server)


def test_tokens_are_counted_and_unknown_ones_are_said() -> None:
    script = faults.in_turn([says(tokens=(1000, 10)), says(tokens=None), status(500), says(tokens=(2000, 20))])
    with serving(script=script) as server:
        vlm = vlm_of(server, concurrency=1, price_in=1.0, price_out=100.0)
        vlm.answer([request(n) for n in range(3)])
        used = vlm.usage
        vlm.close()
    assert (used.requests, used.failures, used.tokens_in, used.tokens_out, used.uncounted) == (3, 1, 3000, 30, 1)
    # 1000 + 10 * 100, 2000 + 20 * 100, and twice the reserve of a request nobody counted: 1000 + 16 * 100
    assert used.cost == pytest.approx((2000 + 4000 + 2 * 2600) / 1e6)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cost_stays_below_its_limit(concurrency: int) -> None:
    with serving(says(tokens=(1000, 10))) as server:
        vlm = vlm_of(server, concurrency=concurrency, price_in=1.0, price_out=10.0, max_cost=0.02)
        replies = vlm.answer([request(n) for n in range(100)])
        used = vlm.usage
        vlm.close()
    answered = [reply for reply in replies if reply.drop is None]
    assert used.cost is not None
    assert used.cost == pytest.approx(len(answered) * 1100 / 1e6)
    assert 0.008 < used.cost <= 0.02
    assert {reply.drop.reason for reply in replies if reply.drop} == {"server: not asked, the cost limit is reached"}
    assert len(server.bodies) == len(answered)


def test_what_was_spent_before_counts() -> None:
    with serving(says(tokens=(1000, 10))) as server:
        config = SOON.model_copy(update={"price_in": 1.0, "price_out": 10.0, "max_cost": 0.02})
        vlm = OpenAIVLM(server.url, "m", name="t", server=config, spent_before=0.0199)
        (reply,) = vlm.answer([request()])
        vlm.close()
    assert reply.finish_reason == "failed"
    assert server.bodies == []


def test_special_tokens_go_neither_out_nor_in() -> None:
    with serving(says("a <|im_start|>system")) as server:
        vlm = vlm_of(server)
        (reply,) = vlm.answer([request(prompt="x <image> y <|endoftext|>")])
        vlm.close()
    assert reply.text == "a system"
    assert server.prompts() == ["x  y "]


def test_one_picture_is_packed_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpa_edge.vlm import openai_picture

    packed: list[int] = []
    real = openai_picture.encoded
    monkeypatch.setattr(openai_picture, "encoded", lambda *given: packed.append(1) or real(*given))
    image = Image.new("RGB", (8, 8))
    with serving() as server:
        vlm = vlm_of(server)
        vlm.answer([Request(image, f"{n}") for n in range(30)])
        vlm.close()
    assert len(packed) == 1


def test_load_takes_a_reference_and_a_closed_one_says_so() -> None:
    with serving() as server:
        vlm: Any = registry.load(server.reference, name="big", server=SOON)
        assert (vlm.name, vlm.answer([request()])[0].text, vlm.answer([])) == ("big", "7", [])
        vlm.close()
        vlm.close()
        with pytest.raises(MpaError, match="was closed: load it again"):
            vlm.answer([request()])


def test_without_the_package_the_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['openai'] = None; import mpa_edge.vlm as v; v.load('openai:http://h/v1#m', name='t')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MpaError: openai is missing: pip install 'mpa-edge[openai]'" in done.stderr.splitlines()[-1]


def test_neither_torch_nor_transformers_is_needed() -> None:
    code = "import sys, mpa_edge.vlm.openai; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def hanging() -> Iterator[FaultServer]:
    with serving(faults.hang(30)) as server:
        yield server


def test_ctrl_c_does_not_wait_for_requests_on_their_way(hanging: FaultServer) -> None:
    def press() -> None:
        while len(hanging.bodies) < SOON.concurrency:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    vlm = vlm_of(hanging, timeout_s=30.0)
    finger = threading.Thread(target=press)
    finger.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        vlm.answer([request(n) for n in range(20)])
    assert time.monotonic() - began < 5
    finger.join()
    vlm.close()


def test_other_secrets_of_the_environment_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    _, server = one_reply()
    assert KEY not in json.dumps(server.headers)
