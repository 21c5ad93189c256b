"""The driver for a device that has a `llama-server` and no Python: the host asks, question by question.

It writes the same lines as the runner on a device does (`bench.runner`), into a file of the host, and goes on where
that file ends. The link may break and the server may die in between: the question is asked again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpa_edge.artifact import Artifact
from mpa_edge.bench.device.protocol import JobOrder, Line, Step, answered, blocks
from mpa_edge.bench.device.runner import MOST_FAULTS, Journal
from mpa_edge.bench.device.worker import answer
from mpa_edge.bench.host.llama_server_process import (
    Launch,
    RemoteServer,
    ServerEndedError,
    require_cores,
    stop_leftovers,
    usable_cores,
)
from mpa_edge.bench.transports import Transport
from mpa_edge.bench.transports.patience import patiently
from mpa_edge.errors import MpaError
from mpa_edge.progress import Advance, progress, say
from mpa_edge.vlm.llama_cpp.server import ServerGoneError, ServerSlowError

# what the figures of a llama-server leave out
NOT_TIMED = (
    "preprocess_s: llama-server does not time decoding and scaling the picture, so that ttft_s leaves them out",
    "vision_encode_s, prefill_s: llama-server times both as one, ttft_s",
)
MOST_CUTS, MOST_DEATHS = 20, 2


@dataclass(frozen=True)
class Site:
    """Where everything lies."""

    transport: Transport
    """The way to the device."""
    remote_bundle: str
    """Folder of the bundle there."""
    bundle: Path
    """Folder of the same bundle here: the pictures are sent from it."""
    server: str
    """Path of llama-server on the device."""
    job_root: str
    """Folder on the device for the servers' logs."""
    ports: Iterator[int] | None = None
    """Ports on the device to try; None: random ones."""


def drive(
    transport: Transport,
    remote_bundle: str,
    order: JobOrder,
    questions: Mapping[str, dict[str, Any]],
    artifacts: Mapping[str, Artifact],
    out: Path,
    *,
    bundle: Path,
    server: str,
    job_root: str,
    ports: Iterator[int] | None = None,
) -> bool:
    """Ask everything of an order that `out` has no answer to yet; whether all of it was answered.

    `questions` are those of `runner.read_questions(bundle)`; `artifacts`: variant -> what its folder holds. MpaError
    where nothing can be asked (no such program, a model that does not load, a device out of reach): what was answered
    stands in `out`, and the same call goes on.
    """
    site = Site(transport, remote_bundle, bundle, server, job_root, ports)
    _require_program(site)
    if order.cores:
        require_cores(transport, order.cores)
    with Journal(out) as journal:
        stop_leftovers(transport, job_root)
        done = answered(journal.lines)
        todo = [step for step in order.steps if step.key not in done]
        n = len(order.steps)
        with progress(f"bench on {transport.name}", n, n - len(todo)) as advance:
            driver = Driver(site, order, questions, artifacts, journal, advance)
            try:
                for block in blocks(todo):
                    driver.ask(block)
            finally:
                driver.stop()
        if todo or not any(line.kind == "end" for line in journal.lines):
            journal.write(Line("end"))
        return not driver.failed


def _require_program(site: Site) -> None:
    command = f"[ -f {shlex.quote(site.server)} ] && [ -x {shlex.quote(site.server)} ]"
    if patiently(lambda: site.transport.run(command, timeout_s=30.0)).rc:
        raise MpaError(
            f"on {site.transport.name}, there is no program {site.server}: build llama-server for it and copy it "
            "there, or name its place with --server"
        )


class Driver:
    """One server after the other, each with one model; a server that died is replaced."""

    def __init__(
        self,
        site: Site,
        order: JobOrder,
        questions: Mapping[str, dict[str, Any]],
        artifacts: Mapping[str, Artifact],
        journal: Journal,
        advance: Advance,
    ) -> None:
        self.site, self.order, self.questions, self.advance = site, order, questions, advance
        self.artifacts, self.journal, self.failed = artifacts, journal, False
        self._next = 1 + max((line.block for line in journal.lines if line.kind != "end"), default=-1)
        self._server: RemoteServer | None = None
        self._deadly, self._n_cores = 0, usable_cores(site.transport, order.cores)

    def ask(self, block: Sequence[Step]) -> None:
        """All questions of a block, with a server that is started for it and stopped behind it."""
        for step in block:
            self._ask(step, block)
            self.advance(1)
        self.stop()

    def stop(self) -> None:
        """Stop the server, if there is one, and write down its memory. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        with suppress(MpaError):
            server.look()
        peak_bytes, method = server.peak()
        self._write("memory", peak_bytes=peak_bytes, method=method, uptime_s=server.uptime_s())
        server.stop()

    def _write(self, kind: str, **values: Any) -> None:
        self.journal.write(Line(kind, self._variant, self._next - 1, values))

    # --- one question -------------------------------------------------------------------------------------------------

    def _ask(self, step: Step, block: Sequence[Step]) -> None:
        """Its answer, or why there is none. MpaError where one question after the other ends its server."""
        reason, deaths = "", 0
        while deaths < MOST_DEATHS and not reason:
            server = self._server or self._start(step.variant, block)
            try:
                return self._write("answer", **self._answer(server, step))
            except (ServerEndedError, ServerGoneError) as error:
                deaths += 1
                reason = str(error) if deaths == MOST_DEATHS else ""
                say(str(error))
                self.stop()
            except MpaError as error:
                reason = str(error)
        self.failed = True
        self._write("failed", id=step.id, repetition=step.repetition, reason=reason)
        self._deadly += deaths == MOST_DEATHS
        if self._deadly >= MOST_FAULTS:
            raise MpaError(f"{self._deadly} questions ended llama-server twice each; the last time: {reason}")
        return None

    def _answer(self, server: RemoteServer, step: Step) -> dict[str, Any]:
        """Through all cuts of the way. ServerEndedError or ServerSlowError where a new server is needed."""
        for _ in range(MOST_CUTS):
            try:
                said = answer(server.vlm, self.site.bundle, self.questions[step.id], step)
                server.watch()
                return said | {"uptime_s": server.uptime_s()}
            except ServerSlowError:
                raise
            except ServerGoneError as error:
                server.require_alive()
                say(f"{error} (it runs: connecting again)")
                server.connect()
        raise MpaError(f"the way to llama-server on {self.site.transport.name} breaks at each answer: mend it")

    # --- one server ---------------------------------------------------------------------------------------------------

    def _start(self, variant: str, block: Sequence[Step]) -> RemoteServer:
        """A server with the model of a variant, ready and warm."""
        self._variant, self._next = variant, self._next + 1
        server = self._server = RemoteServer(
            self.site.transport,
            self._launch(variant),
            self.site.job_root,
            timeout_s=self.order.answer_timeout_s,
            ports=self.site.ports,
        )
        self._write(
            "loaded",
            load_s=server.load_s,
            cold=False,
            runtime=server.runtime(),
            backend=server.backend(),
            threads=server.launch.threads,
            cores=server.cores,
            warm_up=self.order.warm_up,
            uptime_s=server.uptime_s(),
        )
        for step in block[: self.order.warm_up]:
            with suppress(MpaError):  # whatever it is, it shows again where it counts
                self._answer(server, step)
        return server

    def _launch(self, variant: str) -> Launch:
        artifact = self.artifacts[variant]
        return Launch(
            program=self.site.server,
            folder=f"{self.site.remote_bundle}/{self.order.variants[variant]}",
            artifact=artifact,
            threads=self.order.threads or artifact.threads or self._n_cores,
            cores=self.order.cores,
        )
