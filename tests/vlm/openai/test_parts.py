"""The parts of a model behind a server that need no server: images, replies, circuit breaker, meter, references."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.types import Drop, TeacherUsage
from mpa_edge.vlm import fingerprint, resolve
from mpa_edge.vlm.openai import circuit_breaker
from mpa_edge.vlm.openai.circuit_breaker import FAILURES_IN_A_ROW, CircuitBreaker, backoff_s, retry_after_s
from mpa_edge.vlm.openai.cost import Meter, add
from mpa_edge.vlm.openai.image import ImageCache, data_uri
from mpa_edge.vlm.openai.reference import key_for, parse
from mpa_edge.vlm.openai.reply import SPECIAL, Answer, excerpt, is_failure, read_answer
from mpa_edge.vlm.shared.prompts import without_special_tokens
from tests.vlm.fault_server import document

# --- images -----------------------------------------------------------------------------------------------------------


def noise(side: int) -> Image.Image:
    return Image.frombytes("RGB", (side, side), random.Random(1).randbytes(3 * side * side))


def opened(uri: str) -> tuple[Image.Image, int]:
    data = base64.b64decode(uri.partition(",")[2])
    return Image.open(io.BytesIO(data)), len(data)


def test_png_is_the_very_pixels_and_jpeg_is_smaller() -> None:
    image = noise(64)
    exact, png_bytes = opened(data_uri(image))
    assert (exact.format, exact.tobytes()) == ("PNG", image.tobytes())
    rough, jpeg_bytes = opened(data_uri(image, "jpeg"))
    assert rough.format == "JPEG"
    assert jpeg_bytes < png_bytes


@pytest.mark.parametrize("max_bytes", [9_000, 4_000, 1_000])
def test_an_image_above_the_cap_is_made_smaller_until_it_fits(max_bytes: int) -> None:
    found, size = opened(data_uri(noise(100), max_bytes=max_bytes))
    assert (found.format, size <= max_bytes) == ("JPEG", True)
    assert found.width == found.height


def test_a_cap_that_nothing_meets_ends_with_one_pixel() -> None:
    assert opened(data_uri(noise(50), max_bytes=1))[0].size == (1, 1)


def test_few_images_are_kept_and_a_new_one_never_gets_the_bytes_of_an_old_one() -> None:
    async def run() -> list[tuple[int, int, int]]:
        images = ImageCache("png", 10_000, capacity=2)
        uris = [await images.uri(Image.new("RGB", (4, 4), (n, 0, 0))) for n in range(30)]
        assert len(images._tasks) == 2
        assert len({digest for _, digest in uris}) == 30
        return [opened(uri)[0].getpixel((0, 0)) for uri, _ in uris]  # type: ignore[misc]

    assert asyncio.run(run()) == [(n, 0, 0) for n in range(30)]


# --- replies ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200) | st.text().map(lambda text: json.dumps(text).encode()))
def test_bytes_of_any_kind_are_no_answer_and_no_crash(body: bytes) -> None:
    found = read_answer(body)
    assert isinstance(found, Drop)
    assert is_failure(found.reason)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["choices", "choice", "message", "content", "finish_reason", "usage", "prompt_tokens"]), JSON)
def test_a_document_with_anything_in_any_place_is_read_or_dropped(place: str, value: Any) -> None:
    made = document("x")
    choice = made["choices"][0]
    holder = {
        "choices": made,
        "usage": made,
        "message": choice,
        "finish_reason": choice,
        "content": choice["message"],
        "prompt_tokens": made["usage"],
        "choice": made,
    }[place]
    holder["choices" if place == "choice" else place] = [value] if place == "choice" else value
    found = read_answer(json.dumps(made).encode())
    if isinstance(found, Answer):
        assert found.reply.finish_reason in ("stop", "length", "filtered")
        assert found.reply.text or found.reply.drop or found.reply.finish_reason != "stop"


@given(document_end=st.integers(1, len(json.dumps(document("a long answer"))) - 1))
def test_every_beginning_of_a_document_is_no_answer(document_end: int) -> None:
    assert isinstance(read_answer(json.dumps(document("a long answer")).encode()[:document_end]), Drop)


def test_half_a_surrogate_pair_becomes_text_that_can_be_written() -> None:
    found = read_answer(json.dumps(document("4" + chr(0xD83D))).encode())
    assert isinstance(found, Answer)
    assert found.reply.text.encode() == b"4?"
    assert excerpt(chr(0xDC00)) == "?"


def test_nesting_ends_in_a_drop() -> None:
    assert isinstance(read_answer(b"[" * 200_000), Drop)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2)),
        ({"prompt_tokens": "5", "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": -5}, (None, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, (None, 1)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
def test_only_plausible_counts_count(usage: Any, counted: tuple[int | None, int | None]) -> None:
    found = read_answer(json.dumps(document() | {"usage": usage}).encode())
    assert isinstance(found, Answer)
    assert (found.tokens_in, found.tokens_out) == counted


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain < 5 > 3 and <b>", "plain < 5 > 3 and <b>"),
        ("<|vision_start|><|image_pad|>x", "x"),
        ("<fake_token_around_image><row_1_col_2><image>x</s>", "x"),
        ("[INST] x [/INST]<__media__>", " x "),
        ("<ima<image>ge>x", "x"),
    ],
)
def test_words_with_a_meaning_for_a_tokenizer_are_taken_out(text: str, left: str) -> None:
    assert without_special_tokens(text, SPECIAL) == left


def test_an_excerpt_is_short_one_line_and_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "sk-0123456789")
    text = excerpt("a\n" * 500 + "sk-0123456789")
    assert len(text) <= 200
    assert "\n" not in text
    assert excerpt("x sk-0123456789 y") == "x (OTHER_API_KEY) y"


# --- breaker ----------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes only while a request is held back."""
    made = Clock()

    async def sleep(seconds: float) -> None:
        made.now += seconds

    monkeypatch.setattr(circuit_breaker.asyncio, "sleep", sleep)
    return made


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        permit = asyncio.run(breaker.enter())
        assert permit is not None
        breaker.done(permit, alive=False, why="HTTP 500")


def test_the_breaker_opens_after_some_failures_in_a_row_and_lets_one_probe_through(clock: Clock) -> None:
    breaker = CircuitBreaker(wait_s=60.0, probe_s=5.0, clock=clock)
    fail(breaker, FAILURES_IN_A_ROW - 1)
    good = asyncio.run(breaker.enter())
    assert good is not None
    breaker.done(good, alive=True)
    fail(breaker, FAILURES_IN_A_ROW)
    assert clock.now == 100.0
    probe = asyncio.run(breaker.enter())
    assert probe is not None
    assert probe == "probe"
    assert clock.now == pytest.approx(105.0)
    breaker.done(probe, alive=True)
    for _ in range(3):
        permit = asyncio.run(breaker.enter())
        assert permit is not None
        assert permit == "request"


def test_after_the_wait_a_dead_server_is_given_up_for_good(clock: Clock) -> None:
    breaker = CircuitBreaker(wait_s=60.0, probe_s=5.0, clock=clock)
    fail(breaker, FAILURES_IN_A_ROW)
    probes = 0
    while (permit := asyncio.run(breaker.enter())) is not None:
        assert permit == "probe"
        breaker.done(permit, alive=False, why="timed out")
        probes += 1
    assert 11 <= probes <= 12
    assert clock.now == pytest.approx(160.0, abs=5.0)
    clock.now += 1000.0
    assert asyncio.run(breaker.enter()) is None


def test_late_failures_of_others_do_not_let_a_second_probe_through(clock: Clock) -> None:
    breaker = CircuitBreaker(wait_s=60.0, probe_s=5.0, clock=clock)
    under_way = [asyncio.run(breaker.enter()) for _ in range(9)]
    for permit in under_way[:-1]:
        assert permit is not None
        breaker.done(permit, alive=False)
    probe = asyncio.run(breaker.enter())
    assert probe is not None
    assert probe == "probe"
    late = under_way[-1]
    assert late is not None
    breaker.done(late, alive=False)
    assert breaker._probing


def test_a_pause_holds_everybody_and_a_rate_limit_is_no_failure(clock: Clock) -> None:
    breaker = CircuitBreaker(wait_s=60.0, probe_s=5.0, clock=clock)
    for _ in range(3 * FAILURES_IN_A_ROW):
        permit = asyncio.run(breaker.enter())
        assert permit is not None
        breaker.done(permit, alive=None)
    breaker.pause(30.0)
    breaker.pause(2.0)
    permit = asyncio.run(breaker.enter())
    assert permit is not None
    assert permit == "request"
    assert clock.now == pytest.approx(130.0)


def test_the_wait_is_anything_up_to_a_bound_that_doubles() -> None:
    waits = [[backoff_s(attempt) for _ in range(300)] for attempt in range(8)]
    for attempt, found in enumerate(waits):
        bound = min(60.0, 2.0**attempt)
        assert 0 <= min(found) < 0.2 * bound
        assert 0.8 * bound < max(found) <= bound


@given(st.text(max_size=40))
def test_a_retry_after_is_a_time_or_nothing(value: str) -> None:
    found = retry_after_s(value)
    assert found is None or 0 <= found < float("inf")


# --- cost -------------------------------------------------------------------------------------------------------------


@given(
    limit=st.floats(0.001, 0.1),
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 50)), min_size=1, max_size=60),
    at_once=st.integers(1, 20),
)
def test_with_prompts_of_one_size_the_limit_is_never_passed(
    limit: float, sizes: list[tuple[int, int]], at_once: int
) -> None:
    prompt = max(size for size, _ in sizes)
    meter = Meter(3.0, 15.0, limit)
    on_their_way: list[float] = []
    asked = iter(sizes)
    for _ in range(1 if meter.is_blind else at_once):
        on_their_way += [held] if (held := meter.reserve(50)) is not None else []
    for _, tokens_out in asked:
        if not on_their_way:
            break
        meter.settle(on_their_way.pop(), prompt, tokens_out)
        while len(on_their_way) < at_once and (held := meter.reserve(50)) is not None:
            on_their_way.append(held)
    assert meter.usage.cost is not None
    # the first request goes ahead before anybody knows how large a prompt is
    assert meter.usage.cost <= max(limit, meter.cost(prompt, 50) or 0.0) + 1e-9


def test_without_prices_tokens_are_counted_and_nothing_is_refused() -> None:
    meter = Meter()
    assert ([meter.reserve(10**6) for _ in range(3)], meter.is_blind) == ([0.0] * 3, False)
    assert meter.usage == TeacherUsage(failures=3)  # so far
    meter.settle(0.0, 10, 2)
    meter.fail(0.0, sent=True)
    meter.fail(0.0, sent=False)
    assert meter.usage == TeacherUsage(requests=1, failures=2, tokens_in=10, tokens_out=2)


def test_usages_add_up_and_an_unknown_cost_stays_unknown() -> None:
    one, other = TeacherUsage(requests=1, tokens_in=5, cost=0.5), TeacherUsage(requests=2, uncounted=1, cost=0.25)
    assert add(one, other) == TeacherUsage(requests=3, tokens_in=5, uncounted=1, cost=0.75)
    assert add(one, TeacherUsage()).cost is None


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "openai:",
        "openai:m",
        "openai:host:8000#m",
        "openai:ftp://h/v1#m",
        "openai:http://#m",
        "openai:http://h:x/v1#m",
        "openai:http://[::1/v1#m",
        "openai:http://h/v1",
        "openai:http://h/v1#",
        "openai:http://h/v1# ",
    ],
)
def test_a_malformed_reference_shows_a_good_one(reference: str) -> None:
    for ask in (resolve, fingerprint, parse):
        with pytest.raises(MpaError, match=r"write openai:http://127.0.0.1:8000/v1#MODEL"):
            ask(reference)


@pytest.mark.parametrize("address", ["user:sk-1@h", "sk-1@h", ":sk-1@h"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for reference in (f"openai:https://{address}/v1#m", "openai:https://h/v1?api-key=sk-1#m"):
        with pytest.raises(MpaError, match="may hold no user, password or query") as caught:
            parse(reference)
        assert "sk-1" not in str(caught.value)


def test_a_fingerprint_is_of_server_and_model_and_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fingerprint("openai:http://nowhere.invalid:1/v1#m")
    assert one == fingerprint("openai:http://NOWHERE.invalid:1/v1/#m")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert one == fingerprint("openai:http://nowhere.invalid:1/v1#m")
    others = {
        fingerprint(f"openai:{rest}") for rest in ("http://nowhere.invalid:2/v1#m", "http://nowhere.invalid:1/v1#n")
    }
    assert len(others | {one}) == 3


def test_the_usual_key_goes_only_where_nobody_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    urls = ["https://api.example.com/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://localhost/v1"]
    assert {key_for(url, None) for url in urls} == {"sk-1"}
    assert key_for("http://gpu-box:8000/v1", None) is None
    assert key_for("http://gpu-box:8000/v1", "OPENAI_API_KEY") == "sk-1"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert key_for("https://api.example.com/v1", None) is None
    with pytest.raises(MpaError, match=r"the environment has no OPENAI_API_KEY .*: export it first"):
        key_for("https://api.example.com/v1", "OPENAI_API_KEY")
