"""A model behind a server of the OpenAI protocol: vLLM, SGLang, llama-server, transformers serve, a hosted one.

Requests are sent concurrently and answered in order. One that fails becomes a reply that says why (`Reply.drop`); only
what makes every request fail (a wrong key, an unknown model) is an error.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from mpa_edge.config.recipe import TeacherServerConfig
from mpa_edge.errors import MachineError, MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import sha256_json
from mpa_edge.runs.network import certificates, proxy_for, secret_from
from mpa_edge.types import Drop, Reply, Request, TeacherUsage, Timing
from mpa_edge.vlm.openai.circuit_breaker import CircuitBreaker, Permit, backoff_s, retry_after_s
from mpa_edge.vlm.openai.cost import Meter
from mpa_edge.vlm.openai.image import ImageCache
from mpa_edge.vlm.openai.kept import KeptReplies
from mpa_edge.vlm.openai.reference import ServerReference, key_for
from mpa_edge.vlm.openai.reply import (
    CONNECTION,
    FAILURE,
    FILTERED,
    LIMITS,
    NO_CREDIT,
    OVER_BUDGET,
    SPECIAL,
    TIMED_OUT,
    UNUSABLE,
    Answer,
    Refusal,
    body_of,
    card,
    cause,
    causes,
    plain,
    read_answer,
    refusal,
    text_of,
)
from mpa_edge.vlm.shared.prompts import without_special_tokens

CONNECT_TIMEOUT_S = LOOK_TIMEOUT_S = 10.0
SAY_EVERY_S = 15.0
MAX_SEED = 2**31 - 1  # llama.cpp's is 32 bits wide
BUSY = 429
# every other request would get the same
HOPELESS = {401: "refuses the key", 402: "wants to be paid", 403: "refuses the key", 404: "knows no such model or path"}
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
REFUSES_PARAMETERS = {400, 422}
# llama-server while it loads, and proxies whose server is not up yet
NOT_READY = {429, 502, 503, 504}
# of httpx, below the client: nothing was sent
NOT_SENT = ("ConnectError", "ConnectTimeout", "ProxyError")


@dataclass(frozen=True)
class Failure:
    """Why an attempt brought no answer."""

    drop: Drop
    """Reason and detail."""
    again: bool
    """Whether a retry may help."""
    sent: bool = True
    """Whether the server may have worked on it."""
    status: int | None = None
    """HTTP status; None where there was none."""
    retry_after_s: float | None = None
    """The wait that the server asked for."""
    parameters: tuple[str, ...] = ()
    """Of the request, that the server does not take."""


class OpenAIVLM:
    """Answers through a server. `usage` counts what it cost, `card` is what the server says about the model."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        name: str,
        server: TeacherServerConfig | None = None,
        spent_before: float = 0.0,
    ) -> None:
        """Wait until the server answers. `spent_before` counts towards the cost limit. MpaError where it stays away."""
        self.name, self.reference = name, ServerReference(base_url, model)
        config = self.config = server or TeacherServerConfig()
        key, proxy, trusted = key_for(base_url, config.api_key_env), proxy_for(base_url), certificates()
        self._through = f" through {proxy}" if proxy else ""
        self._refused, self._accepted = set[str](), set[str]()
        self._kept, self._disk_full = KeptReplies(), list[MachineError]()
        self._count: Callable[[], None] = lambda: None
        self._meter = Meter(config.price_in, config.price_out, config.max_cost, spent_before)
        self._breaker = CircuitBreaker(config.wait_s, config.probe_s)
        self._images = ImageCache(config.image_format, config.max_image_bytes, config.concurrency + 8)
        timeout = openai.Timeout(config.timeout_s, connect=min(CONNECT_TIMEOUT_S, config.timeout_s))
        self._client: Any = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",  # the client requires one; a server without keys ignores it
            organization=secret_from("OPENAI_ORG_ID"),
            project=secret_from("OPENAI_PROJECT_ID"),
            max_retries=0,  # they would multiply with ours
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                timeout=timeout,
                trust_env=False,  # what the environment says was read above
                proxy=proxy and proxy.url,
                verify=trusted or True,
            ),
        )
        self._runner: asyncio.Runner | None = asyncio.Runner()
        self.card: dict[str, Any] = self._run(self._wait_until_ready())

    @property
    def usage(self) -> TeacherUsage:
        """What was used since it was loaded."""
        return self._meter.usage

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; one that failed has `finish_reason` failed and says why in `drop`.

        Raises MpaError where no request can succeed: a refused key, a model that the server does not know.
        """
        replies: list[Reply] = self._run(self._answer_all(requests))
        return replies

    def keep_books(self, count: Callable[[], None], replies: Path) -> None:
        """From now on call `count` before each request, and keep each reply in the file `replies` at once.

        What is in the file already is not asked for again. MpaError where it cannot be written.
        """
        self._count, self._kept = count, KeptReplies(replies)

    def forget_replies(self, *, only_many: bool = False) -> None:
        """What was made of the replies is on the disk. `only_many`: keep them unless they are too many."""
        self._kept.forget(only_many=only_many)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._kept.close()
        if self._runner is not None:
            self._runner.run(self._client.close())
            self._runner.close()
            self._runner = None

    def _run(self, work: Any) -> Any:
        """Run a coroutine on the event loop of the connections. Ctrl-C cancels the requests that are on their way."""
        if self._runner is None:
            work.close()
            raise MpaError("this teacher's server was closed: load it again")
        return self._runner.run(work)

    # --- is it there? ---

    async def _wait_until_ready(self) -> dict[str, Any]:
        """The model's card, as soon as the server answers at all: a large model loads for minutes."""
        url, began, reported = self.reference.base_url, time.monotonic(), -SAY_EVERY_S
        while True:
            found = await self._look()
            if isinstance(found, dict):
                return found
            waited = time.monotonic() - began
            if waited >= self.config.wait_s:
                raise MpaError(
                    f"no teacher's server at {url}{self._through} after {waited:.0f} s ({found}): start it, or fix "
                    f"the address (it usually ends in /v1)"
                )
            if waited - reported >= SAY_EVERY_S:
                say(f"waiting for the teacher's server at {url}{self._through} ({found})")
                reported = waited
            await asyncio.sleep(min(self.config.probe_s, 1.0))

    async def _look(self) -> dict[str, Any] | str:
        """The card of the model, or why the server is not ready. MpaError where it will never accept our requests."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                async with self._client.models.with_streaming_response.list() as response:
                    body = await body_of(response)
                return body.detail if isinstance(body, Drop) else card(body, self.reference.model)
        except (TimeoutError, openai.APITimeoutError):
            return "no answer"
        except openai.APIStatusError as error:
            message = refusal(error.status_code, text_of(error)).message
            if error.status_code in HOPELESS.keys() - {404}:
                raise self._hopeless(error.status_code, message) from None
            # a server need not have a list of models, and that of transformers fails without a cache folder
            return f"HTTP {error.status_code}: {message}" if error.status_code in NOT_READY else {}
        except openai.OpenAIError as error:
            if found := next((one for one in causes(error) if isinstance(one, ssl.SSLCertVerificationError)), None):
                raise MpaError(
                    f"the certificate of the teacher's server at {self.reference.base_url}{self._through} is not "
                    f"trusted ({found.verify_message}): set SSL_CERT_FILE to the certificates of its issuer"
                ) from None
            return cause(error)
        except ValueError:
            return "it answers, but not with a list of models"

    # --- asking ---

    async def _answer_all(self, requests: Sequence[Request]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        todo = iter(range(len(requests)))

        async def work(todo: Iterator[int]) -> None:
            for i in todo:
                replies[i] = await self._answer(requests[i])

        if self._meter.is_blind and requests:
            await work(iter([next(todo)]))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.config.concurrency, len(requests))):
                    group.create_task(work(todo))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._images.clear()
        if self._disk_full:
            first, self._disk_full = self._disk_full[0], []
            raise first
        return [replies[i] for i in range(len(requests))]

    async def _answer(self, request: Request) -> Reply:
        """A reply, after as many attempts as allowed. Rate limits and refused parameters do not count as attempts."""
        left_s, tries, attempts, last = self.config.deadline_s, 0, 0, Drop(f"{FAILURE}not asked, it is down")
        uri, digest = await self._images.uri(request.image)
        # image first, then text, as for every other VLM
        text = without_special_tokens(plain(request.prompt), SPECIAL)
        key = sha256_json([self.reference.model, digest, text, self._parameters(request, set())])
        if (known := self._kept.get(key)) is not None:
            return known
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        message, without = {"role": "user", "content": content}, set[str]()
        while not self._disk_full and (permit := await self._breaker.enter()) is not None:
            began, without = time.monotonic(), without | self._refused
            body = {"model": self.reference.model, "messages": [message], **self._parameters(request, without)}
            outcome = await self._attempt(body, request.max_new_tokens, permit, left_s)
            if isinstance(outcome, Reply):
                self._keep(key, outcome, without)
                return outcome
            last, wait_s = outcome.drop, backoff_s(tries)
            if more := next((n for n in outcome.parameters if n not in without | self._accepted), None):
                without, wait_s = without | {more}, 0.0
            else:
                tries, attempts = tries + 1, attempts + (outcome.status != BUSY)
                if not outcome.again or attempts > self.config.retries:
                    self._accepted |= without & {*outcome.parameters} - self._refused
                    break
            left_s -= time.monotonic() - began + wait_s
            if left_s <= 0:
                break
            await asyncio.sleep(wait_s)
        return Reply("", "failed", 0, drop=last)

    def _keep(self, key: str, reply: Reply, without: set[str]) -> None:
        """Write a reply down. What was left out of its request is left out of all others."""
        if reply.finish_reason == "failed":
            return
        if more := sorted(without - self._refused):
            self._refused |= without
            greedy = "; its answers are not greedy then" if "temperature" in more else ""
            say(f"the teacher's server refuses {' and '.join(more)}: all requests go without from now on{greedy}")
        if reply.drop is None:
            try:
                self._kept.add(key, reply)
            except MachineError as error:  # what is on its way may still fit
                self._disk_full.append(error)

    def _parameters(self, request: Request, without: set[str]) -> dict[str, Any]:
        """How an answer is made. The limit has two names, and one of them is always sent."""
        limit: str = self.config.limit_key
        if limit in without:
            limit = next(name for name in LIMITS if name != limit)
        wanted: dict[str, Any] = {limit: request.max_new_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            wanted |= {"top_p": request.top_p, "seed": request.seed & MAX_SEED}
        return {name: value for name, value in wanted.items() if name == limit or name not in without}

    async def _attempt(
        self, body: dict[str, Any], max_new_tokens: int, permit: Permit, left_s: float
    ) -> Reply | Failure:
        """Ask once; meter and circuit breaker are told the outcome."""
        alive, why = None, ""
        try:
            reserve = self._meter.reserve(max_new_tokens)
            if reserve is None:
                return Reply("", "failed", 0, drop=Drop(OVER_BUDGET))
            try:
                self._count()
            except MachineError as error:
                self._disk_full.append(error)
                self._meter.fail(reserve, sent=False)
                return Reply("", "failed", 0, drop=Drop(f"{FAILURE}not asked, the disk is full"))
            began = time.monotonic()
            outcome = await self._send(body, min(self.config.timeout_s, left_s))
            if isinstance(outcome, Failure):
                status, why = outcome.status, outcome.drop.reason.removeprefix(FAILURE)
                self._meter.fail(reserve, sent=outcome.sent)
                if status in HOPELESS and not self.usage.requests:
                    raise self._hopeless(status, outcome.drop.detail)
                # its credit may be used up: its answers so far are kept. A 403 may be a gateway that rejects one image
                if status in HOPELESS.keys() - {403}:
                    self._breaker.give_up()
                else:
                    alive = None if status == BUSY else not outcome.again
                    if outcome.retry_after_s:
                        self._breaker.pause(outcome.retry_after_s)
                return outcome
            alive = True
            self._meter.settle(reserve, outcome.tokens_in, outcome.tokens_out)
            if self.config.max_cost is not None and None in (outcome.tokens_in, outcome.tokens_out):
                raise MpaError("the teacher's server counts no tokens, so no cost limit can be kept: leave it out")
            return replace(outcome.reply, timing=Timing(time.monotonic() - began))
        finally:
            self._breaker.done(permit, alive, why)

    def _hopeless(self, status: int | None, detail: str) -> MpaError:
        return MpaError(
            f"the teacher's server at {self.reference.base_url}{self._through} {HOPELESS[status or 404]} "
            f"(HTTP {status}: {detail}): check teacher, teacher_server.api_key_env and the key"
        )

    async def _send(self, body: dict[str, Any], timeout_s: float) -> Answer | Failure:
        """One HTTP request. `timeout_s` covers all of it: a server that sends a byte a second gives no answer."""
        headers: Mapping[str, str] = {}
        try:
            async with asyncio.timeout(timeout_s):
                async with self._client.chat.completions.with_streaming_response.create(**body) as response:
                    headers, got = response.headers, await body_of(response)
        except (TimeoutError, openai.APITimeoutError):
            return Failure(Drop(TIMED_OUT, f"after {timeout_s:.0f} s{self._through}"), again=True)
        except openai.APIStatusError as error:
            return self._failure(refusal(error.status_code, text_of(error)), error.response.headers)
        except openai.OpenAIError as error:
            sent = type(error.__cause__).__name__ not in NOT_SENT
            return Failure(Drop(CONNECTION, cause(error) + self._through), again=True, sent=sent)
        answer = got if isinstance(got, Drop) else read_answer(got)
        if isinstance(answer, Refusal):
            return self._failure(answer, headers)
        return answer if isinstance(answer, Answer) else Failure(answer, again=True)

    def _failure(self, refused: Refusal, headers: Mapping[str, str]) -> Answer | Failure:
        """What becomes of a request that the server answered with an error."""
        if refused.codes & FILTERED:
            return Answer(Reply("", "filtered", 0), 0, 0)
        status = 402 if refused.codes & NO_CREDIT else refused.status
        asked_s = retry_after_s(headers.get("retry-after"))
        again = (status in RETRIED or not status) and (asked_s or 0.0) <= self.config.wait_s
        detail = refused.message + (f"; to be asked again after {asked_s:.0f} s" if asked_s else "")
        return Failure(
            Drop(f"{FAILURE}HTTP {status}" if status else UNUSABLE, detail + self._through),
            again,
            sent=status >= 500 or not status,
            status=status or None,
            retry_after_s=asked_s if again else None,
            parameters=refused.parameters if status in REFUSES_PARAMETERS else (),
        )
