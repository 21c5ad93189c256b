"""A model behind a server of the OpenAI protocol: vLLM, SGLang, llama-server, transformers serve, a hosted one.

Requests go out together and come back in order. What goes wrong with one of them becomes a reply that says so
(`Reply.drop`); only what no request can survive (a wrong key, an unknown model) is an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import openai

from mpa_edge.config.recipe import TeacherServerConfig
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.types import Drop, Reply, Request, TeacherUsage, Timing
from mpa_edge.vlm.openai.circuit_breaker import Gate, Pass, backoff_s
from mpa_edge.vlm.openai.cost import Meter, Prices
from mpa_edge.vlm.openai.http import (
    BUSY,
    HOPELESS,
    NOT_READY,
    Failure,
    body_of,
    card,
    cause,
    client,
    is_refused,
    refused,
    said,
)
from mpa_edge.vlm.openai.image import Pictures
from mpa_edge.vlm.openai.reference import ServerReference, key_for
from mpa_edge.vlm.openai.reply import (
    CONNECTION,
    DOWN,
    FAILURE,
    TIMED_OUT,
    TOO_DEAR,
    Answer,
    failed,
    plain,
    read_answer,
    without_special,
)

LOOK_TIMEOUT_S = 10.0
SAY_EVERY_S = 15.0
MAX_SEED = 2**31 - 1  # llama.cpp's is 32 bits wide


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
        self.name, self.reference = name, ServerReference(base_url, model)
        self.config = server or TeacherServerConfig()
        self._key = key_for(base_url, self.config.api_key_env)
        prices = Prices(self.config.price_in, self.config.price_out)
        self._meter = Meter(prices, self.config.max_cost, spent_before)
        self._gate = Gate(self.config.wait_s, self.config.probe_s)
        pictures = self.config.concurrency + 8
        self._pictures = Pictures(self.config.image_format, self.config.max_image_bytes, pictures)
        self._client: Any = client(base_url, self._key, self.config)
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

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        if self._runner is not None:
            self._runner.run(self._client.close())
            self._runner.close()
            self._runner = None

    def _run(self, work: Any) -> Any:
        """Run on the loop that the connections belong to. Ctrl-C cancels what is on its way."""
        if self._runner is None:
            work.close()
            raise MpaError("this teacher's server was closed: load it again")
        return self._runner.run(work)

    # --- is it there? ---

    async def _wait_until_ready(self) -> dict[str, Any]:
        """The model's card, as soon as the server answers at all: a large model loads for minutes."""
        url, began, told = self.reference.base_url, time.monotonic(), -SAY_EVERY_S
        while True:
            found = await self._look()
            if isinstance(found, dict):
                return found
            waited = time.monotonic() - began
            if waited >= self.config.wait_s:
                raise MpaError(
                    f"no teacher's server at {url} after {waited:.0f} s ({found}): start it, or mend the address "
                    f"(it ends in /v1 as a rule)"
                )
            if waited - told >= SAY_EVERY_S:
                say(f"waiting for the teacher's server at {url} ({found})")
                told = waited
            await asyncio.sleep(min(self.config.probe_s, 1.0))

    async def _look(self) -> dict[str, Any] | str:
        """The card of the model, or why the server is not ready. MpaError where it never will be for us."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                async with self._client.models.with_streaming_response.list() as response:
                    body = await body_of(response)
                return body.detail if isinstance(body, Drop) else card(body, self.reference.model)
        except (TimeoutError, openai.APITimeoutError):
            return "no answer"
        except openai.APIStatusError as error:
            if error.status_code in HOPELESS.keys() - {404}:
                raise self._hopeless(error.status_code, said(error, self._key)) from None
            # a server need not have a list of models, and one of transformers without a cache folder fails at it
            return f"HTTP {error.status_code}: {said(error, self._key)}" if error.status_code in NOT_READY else {}
        except openai.OpenAIError as error:
            return cause(error)
        except ValueError:
            return "it answers, but not with a list of models"

    # --- asking ---

    async def _answer_all(self, requests: Sequence[Request]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        todo = iter(range(len(requests)))
        if self._meter.blind and requests:
            first = next(todo)
            replies[first] = await self._one(requests[first])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.config.concurrency, len(requests))):
                    group.create_task(self._work(requests, todo, replies))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._pictures.clear()
        return [replies[i] for i in range(len(requests))]

    async def _work(self, requests: Sequence[Request], todo: Iterator[int], replies: dict[int, Reply]) -> None:
        """One of the workers that take the requests in turn."""
        for i in todo:
            replies[i] = await self._one(requests[i])

    async def _one(self, request: Request) -> Reply:
        """A reply, after as many attempts as it may have."""
        left_s, tries, attempts, last = self.config.deadline_s, 0, 0, Drop(DOWN)
        while (leave := await self._gate.enter()) is not None:
            outcome, took_s = await self._attempt(request, leave, left_s)
            if isinstance(outcome, Reply):
                return outcome
            last, wait_s = outcome.drop, backoff_s(tries)
            tries, attempts, left_s = tries + 1, attempts + (outcome.status != BUSY), left_s - took_s - wait_s
            if not outcome.again or attempts > self.config.retries or left_s <= 0:
                break
            await asyncio.sleep(wait_s)
        return failed(last)

    async def _attempt(self, request: Request, leave: Pass, left_s: float) -> tuple[Reply | Failure, float]:
        """(what came of asking once, seconds); gate and meter know of it afterwards."""
        alive, why, began = None, "", time.monotonic()
        try:
            reserve = self._meter.reserve(request.max_new_tokens)
            if reserve is None:
                return failed(Drop(TOO_DEAR)), 0.0
            body = self._body(request, await self._pictures.uri(request.image))
            began = time.monotonic()
            outcome = await self._send(body, min(self.config.timeout_s, left_s))
            took_s = time.monotonic() - began
            if isinstance(outcome, Answer):
                alive = True
                self._meter.settle(reserve, outcome.tokens_in, outcome.tokens_out)
                if self.config.max_cost is not None and None in (outcome.tokens_in, outcome.tokens_out):
                    raise MpaError("the teacher's server counts no tokens, so no cost limit can be kept: leave it out")
                return timed(outcome.reply, took_s), took_s
            alive, why = self._judge(outcome), outcome.drop.reason.removeprefix(FAILURE)
            (self._meter.lose if outcome.sent else self._meter.release)(reserve)
            return outcome, took_s
        finally:
            self._gate.done(leave, alive, why)

    def _judge(self, failure: Failure) -> bool | None:
        """Whether a server that failed so is alive; a rate limit holds all back. MpaError where it is hopeless.

        One that has answered before (and whose credit is used up now) is given up without losing its answers; a 403
        to one request among others is a gateway that does not like its picture.
        """
        if failure.status in HOPELESS and not self.usage.requests:
            raise self._hopeless(failure.status, failure.drop.detail)
        if failure.status in HOPELESS.keys() - {403}:
            self._gate.give_up()
            return None
        if failure.status == BUSY:
            self._gate.pause(failure.retry_after_s or 0.0)
            return None
        if failure.retry_after_s and failure.again:
            self._gate.pause(failure.retry_after_s)
        return not failure.again

    def _hopeless(self, status: int | None, detail: str) -> MpaError:
        where = f"the teacher's server at {self.reference.base_url}"
        return MpaError(
            f"{where} {HOPELESS[status or 404]} (HTTP {status}: {detail}): check teacher, "
            f"teacher_server.api_key_env and the key"
        )

    def _body(self, request: Request, uri: str) -> dict[str, Any]:
        """A chat completion: image first, then text, as everywhere here."""
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": without_special(plain(request.prompt))},
        ]
        limits: dict[str, Any] = {self.config.limit_key: request.max_new_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            limits |= {"top_p": request.top_p, "seed": request.seed & MAX_SEED}
        return {"model": self.reference.model, "messages": [{"role": "user", "content": content}], **limits}

    async def _send(self, body: dict[str, Any], timeout_s: float) -> Answer | Failure:
        """One HTTP request. The time covers the whole of it: a server that drips a byte a second is no answer."""
        try:
            async with asyncio.timeout(timeout_s):
                async with self._client.chat.completions.with_streaming_response.create(**body) as response:
                    got = await body_of(response)
        except (TimeoutError, openai.APITimeoutError):
            return Failure(Drop(TIMED_OUT, f"after {timeout_s:.0f} s"), again=True)
        except openai.APIStatusError as error:
            return refused(error, self._key, self.config.wait_s)
        except openai.OpenAIError as error:
            return Failure(Drop(CONNECTION, cause(error)), again=True, sent=not is_refused(error))
        answer = got if isinstance(got, Drop) else read_answer(got, self._key)
        return answer if isinstance(answer, Answer) else Failure(answer, again=True)


def timed(reply: Reply, total_s: float) -> Reply:
    """The same reply with its time."""
    return replace(reply, timing=Timing(total_s))
