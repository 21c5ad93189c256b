"""A job on a device that has a `llama-server` and no Python: the host asks question by question.

It writes the same lines as the runner on a device does (`bench.device.runner`), into a file of the host, and resumes
where that file ends. Where the link breaks or the server dies in between, the question is asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.device.protocol import JobOrder, Line, Step, blocks, read_questions
from mpa_edge.bench.device.runner import MAX_FAULTS, Journal
from mpa_edge.bench.device.worker import answer
from mpa_edge.bench.host.llama_server_process import (
    RemoteServer,
    ServerEndedError,
    server_devices,
    stop_leftovers,
    usable_cores,
)
from mpa_edge.bench.transports.transport import Transport
from mpa_edge.config.accelerator import CPU_ONLY
from mpa_edge.config.llama_cpp import LlamaCpp
from mpa_edge.errors import MpaError
from mpa_edge.progress import progress, say
from mpa_edge.vlm.llama_cpp.offload import choose, usage
from mpa_edge.vlm.llama_cpp.server import ServerGoneError, ServerSlowError

# figures that a llama-server does not report
NOT_TIMED = (
    "preprocess_s: llama-server does not time decoding and scaling the image, so ttft_s leaves them out",
    "vision_encode_s, prefill_s: llama-server times both as one, ttft_s",
)
MAX_RECONNECTS, MAX_DEATHS = 20, 2


@dataclass
class LlamaServerJob:
    """What every job through a llama-server needs."""

    transport: Transport
    order: JobOrder
    bundle: Path
    """Its folder here, from which the images are sent."""
    remote_bundle: str
    """Its folder on the device."""
    program: str
    """Path of llama-server on the device."""
    job_root: str
    """Folder on the device for the servers' logs."""
    _server: RemoteServer | None = None

    @contextmanager
    def _opened(self, out: Path) -> Iterator[Journal]:
        """The journal in `out`; it gets its end line where the block ends without an error."""
        self._questions = read_questions(self.bundle)
        self._n_cores = usable_cores(self.transport, self.order.cores)
        devices, options = server_devices(self.transport, self.program), LlamaCpp.model_validate(self.order.llama_cpp)
        self._offload = choose(self.order.accelerators, devices, options, "llama-server")
        with Journal(out) as self.journal:
            stop_leftovers(self.transport, self.job_root)
            self._block = self.journal.next_block() - 1
            yield self.journal
            self.journal.end()

    def _load(self, variant: str) -> RemoteServer:
        """A server with the model of a variant, ready; `concurrency` questions at once."""
        self._variant, self._block = variant, self._block + 1
        folder = self.order.variants[variant]
        artifact = read_artifact(self.bundle / folder)
        threads = self.order.threads or artifact.threads or self._n_cores
        server = self._server = RemoteServer(
            self.transport,
            artifact,
            program=self.program,
            model_folder=f"{self.remote_bundle}/{folder}",
            threads=threads,
            cores=self.order.cores,
            root=self.job_root,
            timeout_s=self.order.answer_timeout_s,
            offload=self._offload,
            slots=self.order.concurrency,
        )
        self._record(
            "loaded",
            load_s=server.load_s,
            cold=False,
            runtime=f"llama-server {server.vlm.props.build_info}",
            backend=self._offload.backend,
            threads=threads,
            cores=server.cores,
            warm_up=self.order.warm_up,
            uptime_s=server.uptime_s(),
        )
        return server

    def _record(self, kind: str, **values: Any) -> None:
        self.journal.write(Line(kind, self._variant, self._block, values))


@dataclass
class LlamaServerRun(LlamaServerJob):
    """Answers an order through llama-server, one process for each block; a server that died is replaced."""

    _failed = False
    _deadly = 0

    def run(self, out: Path) -> bool:
        """Ask every question of the order that has no answer in `out` yet. Returns whether all were answered.

        MpaError where nothing can be asked (a model that does not load, a device out of reach): what was answered is in
        `out`, and a rerun resumes.
        """
        with self._opened(out) as journal:
            todo, n = journal.todo(self.order), len(self.order.steps)
            with progress(f"bench on {self.transport.name}", n, n - len(todo)) as advance:
                try:
                    for block in blocks(todo):
                        for step in block:
                            self._ask(step, block)
                            advance(1)
                        self._stop()
                finally:
                    self._stop()
        return not self._failed

    def _ask(self, step: Step, block: Sequence[Step]) -> None:
        """Record its answer, or why there is none. MpaError where too many questions kill their server."""
        reason, deaths = "", 0
        while not reason:
            server = self._server or self._start(step.variant, block)
            try:
                return self._record("answer", **self._answer(server, step))
            except (ServerEndedError, ServerGoneError) as error:
                deaths += 1
                reason = str(error) if deaths == MAX_DEATHS else ""
                say(str(error))
                self._stop()
            except MpaError as error:
                reason = str(error)
        self._failed = True
        self._record("failed", id=step.id, repetition=step.repetition, reason=reason)
        self._deadly += deaths == MAX_DEATHS
        if self._deadly >= MAX_FAULTS:
            raise MpaError(f"{self._deadly} questions ended llama-server twice each; the last time: {reason}")
        return None

    def _answer(self, server: RemoteServer, step: Step) -> dict[str, Any]:
        """The answer, reconnecting where the link breaks. ServerEndedError, ServerSlowError: it needs a new server."""
        for _ in range(MAX_RECONNECTS):
            try:
                values = answer(server.vlm, self.bundle, self._questions[step.id], step)
                server.watch()
                return values | {"uptime_s": server.uptime_s()}
            except ServerSlowError:
                raise
            except ServerGoneError as error:
                server.require_alive()
                say(f"{error} (it is running: reconnecting)")
                server.connect()
        raise MpaError(f"the link to llama-server on {self.transport.name} breaks at each answer: fix it and rerun")

    def _start(self, variant: str, block: Sequence[Step]) -> RemoteServer:
        """A server with the model of a variant, ready and warm."""
        server, folder = self._load(variant), self.order.variants[variant]
        if self.order.accelerators != CPU_ONLY:
            used = usage(
                self._offload, server.placement(), self.bundle / folder / server.artifact.files["mmproj"], None
            )
            self._record("used", **asdict(used), software=used.is_software)
        for step in block[: self.order.warm_up]:
            with suppress(MpaError):  # it fails again where it counts
                self._answer(server, step)
        return server

    def _stop(self) -> None:
        """Stop the server, if there is one, and record its peak memory. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        with suppress(MpaError):
            server.look()
        self._record("memory", **server.memory.values(), uptime_s=server.uptime_s())
        server.stop()
