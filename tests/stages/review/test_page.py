"""The page: only its own address gets in, and a person can review by keyboard in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpa_edge.evaluation.review import DECISIONS, REVIEW, read_decisions
from mpa_edge.stages.evaluate import questions
from mpa_edge.stages.review.server import serve
from mpa_edge.stages.review.session import open_session
from tests.bench.report.browser import Browser, Page
from tests.stages.review.conftest import HOSTILE, N

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def url(reviewable) -> Iterator[str]:
    with open_session(reviewable, None) as session, serve(session, 10**8) as address:
        yield address


def status(address: str, body: object = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, JSON | named), timeout=120) as reply:
            return reply.status, reply.read(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_nobody_else_gets_in(url: str, reviewable) -> None:
    start = url.rsplit("/", 2)[0]
    assert start.startswith("http://127.0.0.1:")
    other = start + "/" + "x" * (len(url) - len(start) - 2) + "/"
    for address in (start, start + "/", start + "/state", other, other + "state", start + "//" + url):
        assert status(address)[0] == 403
    right = {"id": "q0", "verdict": "right"}
    assert status(other + "decide", right)[0] == 403
    port = start.rpartition(":")[2]
    for header in (
        {"Host": f"evil.example:{port}"},
        {"Host": "evil.example"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{int(port) + 1}"},
    ):
        assert status(url, **header)[0] == 403
        assert status(url + "decide", right, **header)[0] == 403
    assert read_decisions(reviewable.folder, questions(reviewable).samples).by_id == {}
    assert status(url + "decide", right, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200
    with serve_again(reviewable) as again:
        assert again != url


@contextmanager
def serve_again(run) -> Iterator[str]:
    from mpa_edge.evaluation.review import DecisionLog
    from mpa_edge.stages.review.session import Session

    asked = questions(run)
    log = DecisionLog(read_decisions(run.folder, asked.samples), None)  # type: ignore[arg-type]
    with serve(Session(asked, log, asked.samples, "anls"), 10**8) as address:
        yield address


def test_nothing_is_loaded_from_outside(url: str) -> None:
    _, page, headers = status(url)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src 'self' data:; connect-src 'self'; ")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert b"http://" not in page
    assert b"https://" not in page
    assert status(url)[2]["Content-Security-Policy"] == policy


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("decide", {"id": "q0", "verdict": "undone"}, 400),
        ("decide", {"id": "q0", "verdict": "wrong"}, 400),
        ("decide", {"id": "q0", "verdict": "wrong", "answer": " | "}, 400),
        ("decide", {"id": "q0", "verdict": "wrong", "answer": "x" * 1001}, 400),
        ("decide", {"id": "q0", "verdict": "wrong", "answer": "\ud800"}, 400),
        ("decide", {"id": "q0", "verdict": "wrong", "answer": 7}, 400),
        ("decide", {"id": "q999", "verdict": "right"}, 400),
        ("decide", ["q0"], 400),
        ("decide", b"[" * 10_000, 400),
        ("decide", b"x" * 100_000, 413),
        ("undo", {"id": "nothing"}, 400),
        ("elsewhere", {"id": "q0"}, 404),
        ("../state", None, 403),
        ("image?id=../../run.json", None, 404),
        ("page.html", None, 404),
    ],
)
def test_what_is_no_decision_is_refused(url: str, path: str, body: object, code: int, reviewable) -> None:
    assert status(url + path if path != "../state" else url.rsplit("/", 2)[0] + "/state", body)[0] == code
    assert json.loads(status(url + "state")[1])["done"] == 0


def test_students_are_not_on_the_page(url: str) -> None:
    state = json.loads(status(url + "state")[1])
    assert set(state) == {"done", "n", "left_s", "last", "note", "question"}
    assert set(state["question"]) == {"id", "question", "answer"}


def test_an_image_comes_as_its_pixels_alone(url: str, reviewable) -> None:
    code, data, headers = status(url + "image?id=q3")
    assert (code, data[:3], headers["Content-Type"]) == (200, b"\xff\xd8\xff", "image/jpeg; charset=utf-8")
    (reviewable.images_folder / "1.png").write_bytes(b"<script>alert(1)</script>")
    code, text, _ = status(url + "image?id=q3")
    assert (code, text) == (404, b"this image cannot be opened: not an image")


# --- a person at the keyboard


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def until(page: Page, condition: str) -> None:
    """Wait until a condition holds and the page is at rest."""
    deadline = time.monotonic() + 120
    while not page.evaluate(f"!busy && state !== null && Boolean({condition})"):
        assert time.monotonic() < deadline, f"{condition}: {page.complaints()}"
        time.sleep(0.02)


def done(page: Page, n: int) -> None:
    until(page, f"state.done === {n}")


Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(reviewable) -> Iterator[Start]:
    """start("--n", "7") -> the program, and the address that it printed."""
    started = list[subprocess.Popen[str]]()

    def begin(*options: str) -> tuple[subprocess.Popen[str], str]:
        program = subprocess.Popen(
            [sys.executable, "-m", "mpa_edge", "review", str(reviewable.folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(program)
        assert program.stdout
        return program, program.stdout.readline().strip()

    yield begin
    for program in started:
        program.kill()
        program.communicate()


@pytest.mark.peer
def test_a_review_by_keyboard_survives_a_kill(start: Start, reviewable, browser: Browser, tmp_path: Path) -> None:
    program, address = start("--n", "6")
    with browser.open(address) as page:
        done(page, 0)
        assert page.evaluate("at('question').textContent").startswith(f"What is {HOSTILE}")
        until(page, "at('image').clientWidth > 300")
        page.press("1")
        done(page, 1)
        page.press("2", *"red", "Escape", "2", *"1 | 23", "Enter")
        done(page, 2)
        page.press("3")
        done(page, 3)
        page.press("z")
        done(page, 2)
        until(page, "at('image').complete && at('image').clientWidth > 300")
        fit = page.evaluate("at('image').clientWidth")
        page.press("+")
        until(page, f"at('image').clientWidth > {1.4 * fit}")
        page.press("-", " ")
        until(page, f"at('image').clientWidth > {2.9 * fit}")
        page.screenshot(tmp_path / "page.png")
        with browser.open(address) as tab:
            done(tab, 2)
            tab.press("1")
            done(tab, 3)
            page.press("3")  # the first tab still shows the question that the second one has decided
            until(page, "!at('note').hidden")
            done(page, 3)
            assert tab.complaints() == []
        assert page.complaints() == []
        assert {url.split("?")[0] for url in page.requests()} == {
            address + path for path in ("", "state", "decide", "undo", "image")
        }
        program.send_signal(signal.SIGKILL)
        program.wait()
        page.press("1")
        until(page, "at('note').textContent.includes('Nothing is lost')")
    program, again = start("--n", "6")
    assert again != address
    with browser.open(again, 390, 844) as page:
        done(page, 3)
        # thumbs instead of keys
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        sizes = page.evaluate("[...document.querySelectorAll('#choices button')].map(b => b.offsetHeight)")
        assert min(sizes) >= 44
        page.evaluate("at('right').click()")
        done(page, 4)
        page.press("1")
        done(page, 5)
        page.press("1")
        until(page, "!at('done').hidden")
        page.press("z")
        done(page, 5)
        page.press("1")
        done(page, 6)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0
    assert out.startswith("6 questions reviewed, teacher right 83% (95 % interval ")
    assert "Traceback" not in err
    lines = [json.loads(line) for line in (reviewable.folder / REVIEW / DECISIONS).read_text().splitlines()]
    verdicts = ["right", "wrong", "unanswerable", "undone", "right", "right", "right", "right", "undone", "right"]
    assert [line["verdict"] for line in lines] == verdicts
    assert lines[1]["answer"] == "1 | 23"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ends_with_a_summary_and_is_one_at_a_time(start: Start, reviewable, sign: signal.Signals) -> None:
    program, address = start()
    assert json.loads(status(address + "state")[1])["n"] == N
    second = subprocess.run(
        [sys.executable, "-m", "mpa_edge", "review", str(reviewable.folder)], capture_output=True, text=True, timeout=99
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert "is being reviewed already: use that page, or end that process with Ctrl-C" in second.stderr
    os.kill(program.pid, sign)
    out, err = program.communicate(timeout=120)
    assert (program.returncode, out) == (0, "0 questions reviewed\n"), err
