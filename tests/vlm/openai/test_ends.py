"""What ends a run against a server, what it may cost, which key it takes, and what it never shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpa_edge import vlm as registry
from mpa_edge.errors import MpaError
from mpa_edge.types import Request
from mpa_edge.vlm.openai.client import OpenAIVLM
from tests.vlm import fault_server as faults
from tests.vlm.fault_server import FaultServer, says, serving, status
from tests.vlm.openai_asked import KEY, SOON, one_reply, request, vlm_of

pytestmark = pytest.mark.usefixtures("impatient_client")


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


def test_a_gateway_that_refuses_one_image_stops_nobody() -> None:
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


def test_one_image_is_packed_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpa_edge.vlm.openai import image as openai_image

    packed: list[int] = []
    real = openai_image.data_uri
    monkeypatch.setattr(openai_image, "data_uri", lambda *given: packed.append(1) or real(*given))
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "MachineError: openai is missing: pip install 'mpa-edge[openai]'" in done.stderr.splitlines()[-1]


def test_neither_torch_nor_transformers_is_needed() -> None:
    code = "import sys, mpa_edge.vlm.openai.client; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
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


# --- the way to the server ---


def test_a_proxy_never_sees_what_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        _, server = one_reply()
    assert (proxy.headers, proxy.bodies) == ([], [])
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_a_proxy_is_used_and_named_in_errors_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(says("through"), status(502, "no route"), status(401)) as proxy:
        port = proxy.url.split(":")[2].partition("/")[0]
        monkeypatch.setenv("http_proxy", f"me:{KEY}@127.0.0.1:{port}")
        vlm = OpenAIVLM("http://teacher.invalid/v1", "m", name="t", server=SOON.model_copy(update={"retries": 0}))
        first, second = vlm.answer([request()])[0], vlm.answer([request()])[0]
        vlm.close()
        assert first.text == "through"
        assert second.drop is not None
        assert second.drop.detail == f"no route through the proxy of http_proxy (http://127.0.0.1:{port})"
        assert proxy.headers[-1]["proxy-authorization"].startswith("Basic ")
    with pytest.raises(
        MpaError, match=r"at http://teacher.invalid/v1 through the proxy of http_proxy \(http://127"
    ) as e:
        OpenAIVLM("http://teacher.invalid/v1", "m", name="t", server=SOON)
    assert KEY not in "".join(traceback.format_exception(e.value))
    assert KEY not in capsys.readouterr().err


def test_a_server_whose_certificate_nobody_vouches_for_is_not_waited_for(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*made.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    with serving(tls=(cert, key)) as server:
        config = SOON.model_copy(update={"wait_s": 600.0})
        with pytest.raises(MpaError, match=r"not trusted \(self-signed certificate\): set SSL_CERT_FILE"):
            OpenAIVLM(server.url, "m", name="t", server=config)
        with pytest.MonkeyPatch.context() as changed:
            changed.setenv("SSL_CERT_FILE", str(cert))
            vlm = OpenAIVLM(server.url, "m", name="t", server=config)
            assert vlm.answer([request()])[0].text == "7"
            vlm.close()


SECRETS = {
    "a line end of Windows": ("OPENAI_API_KEY", "sk-canary-0123456789\r", 0),
    "a dash of a text program": ("OPENAI_API_KEY", "sk\u2013canary-0123456789", 1),
    "two lines": ("OPENAI_API_KEY", "sk-canary-0123456789\nsk-canary-9876543210", 1),
    "an organisation": ("OPENAI_ORG_ID", "org\u2013canary-0123456789", 1),
    "certificates": ("SSL_CERT_FILE", "/nowhere", 1),
}


@pytest.mark.parametrize("how", SECRETS)
def test_what_the_environment_holds_works_or_is_named_at_once_and_stands_nowhere(how: str, tmp_path: Path) -> None:
    name, value, rc = SECRETS[how]
    out, began = tmp_path / "answers.jsonl", time.monotonic()
    with serving(says("red")) as server:
        words = ["evaluate", server.reference, "--limit", "2", "--out", str(out), "-v"]
        done = subprocess.run(
            [sys.executable, "-m", "mpa_edge", *words],
            env=os.environ | {name: value},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == rc, done.stderr
    assert time.monotonic() - began < 60
    if rc:
        assert server.bodies == []
        assert done.stderr.splitlines()[-1].startswith(f"error: {name} ")
    else:
        assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-canary-0123456789"}
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in (done.stdout, done.stderr, *written) if "canary" in text]
