"""A soak of a llama-server on a device: questions from this machine, several at once, for as long as was asked.

It writes the lines of a soak by the runner on a device into a file of the host, and resumes where that file ends. A
latency is that of a client: with scaling and sending the image, the wait for a slot, and the link.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpa_edge.bench.device.protocol import NEXT_TO_NOTHING_S, SAMPLE_S, Step
from mpa_edge.bench.device.runner import MAX_FAULTS
from mpa_edge.bench.device.worker import answer
from mpa_edge.bench.host.llama_server_process import RemoteServer, ServerEndedError
from mpa_edge.bench.host.llama_server_run import LlamaServerJob
from mpa_edge.errors import MpaError
from mpa_edge.progress import progress, say
from mpa_edge.vlm.llama_cpp.server import LlamaServerVLM, ServerGoneError

LOOK_EVERY_S = 1.0


@dataclass
class Tally:
    """What the clients of a server got since the last sample, and why one of them ended."""

    tokens: int = 0
    changed: int = 0
    latencies_s: list[float] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    """Question -> its first answer."""
    fault: MpaError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, values: dict[str, Any], seconds: float) -> None:
        """An answer."""
        with self.lock:
            self.tokens += int(values["tokens"])
            self.changed += self.said.setdefault(values["id"], values["text"]) != values["text"]
            self.latencies_s.append(round(seconds, 5))

    def take(self) -> dict[str, Any]:
        """What there is, and begin anew."""
        with self.lock:
            found = {"tokens": self.tokens, "changed": self.changed, "latencies_s": self.latencies_s}
            self.tokens, self.changed, self.latencies_s = 0, 0, []
        return found


@dataclass
class LlamaServerSoak(LlamaServerJob):
    """Asks the steps of an order in turn, `concurrency` at once; a server that died is replaced."""

    def run(self, out: Path) -> None:
        """Ask until `soak_s` seconds are in `out`; Ctrl-C ends it earlier. MpaError where nothing can be asked."""
        self._tally, deaths = Tally(), 0
        with self._opened(out) as journal:
            done_s = sum(float(line.values["seconds"]) for line in journal.lines if line.kind == "sample")
            with progress(f"seconds on {self.transport.name}", round(self.order.soak_s), round(done_s)) as advance:
                while self.order.soak_s - done_s > NEXT_TO_NOTHING_S:
                    shown, server = round(done_s), self._start()
                    try:
                        for seconds in self._samples(server, self.order.soak_s - done_s):
                            done_s += seconds
                            advance(round(done_s) - shown)
                            shown = round(done_s)
                    except ServerEndedError as error:
                        deaths += 1
                        self._record("failed", reason=str(error))
                        say(str(error))
                        if deaths == MAX_FAULTS:
                            break
                    except KeyboardInterrupt:
                        say(f"stopping after {done_s:.0f} s: what was measured is kept")
                        break
                    finally:
                        server.stop()

    def _start(self) -> RemoteServer:
        """A server, ready and warm."""
        server = self._load(self.order.steps[0].variant)
        with suppress(MpaError):  # it fails again where it counts
            answer(server.vlm, self.bundle, self._questions[self.order.steps[0].id], self.order.steps[0])
        return server

    def _samples(self, server: RemoteServer, soak_s: float) -> Iterator[float]:
        """Write samples until `soak_s` is over, and yield the seconds of each. ServerEndedError where it is gone."""
        every_s = max(min(SAMPLE_S, soak_s / 100), 0.1)
        stop, steps = threading.Event(), itertools.cycle(self.order.steps)
        clients: list[threading.Thread] = []
        since, left_s = time.monotonic(), soak_s
        looked = since - LOOK_EVERY_S
        try:
            while left_s > NEXT_TO_NOTHING_S:
                if not clients:
                    clients = self._clients(server, steps, stop)
                time.sleep(every_s)
                if (fault := self._tally.fault) is not None:
                    stop.set()
                    for client in clients:
                        client.join()
                    if not isinstance(fault, ServerGoneError):
                        raise fault
                    server.require_alive()
                    say(f"{fault} (it is running: reconnecting)")
                    server.connect()
                    self._tally.fault, clients, since = None, [], time.monotonic()
                    stop.clear()
                    continue
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    server.look()
                    looked = time.monotonic()
                seconds = time.monotonic() - since
                if self._tally.latencies_s:
                    found = self._tally.take()
                    since, left_s = since + seconds, left_s - seconds
                    about = {"uptime_s": server.uptime_s(), "rss_bytes": server.memory.now_bytes}
                    self._record("sample", seconds=round(seconds, 4), **about, **found)
                    yield seconds
        finally:
            stop.set()
            for client in clients:
                client.join()
            self._tally.take()

    def _clients(self, server: RemoteServer, steps: Iterator[Step], stop: threading.Event) -> list[threading.Thread]:
        """Threads that ask, each over a connection of its own."""

        def ask(vlm: LlamaServerVLM) -> None:
            while not stop.is_set():
                with self._tally.lock:
                    step = next(steps)
                started = time.perf_counter()
                try:
                    values = answer(vlm, self.bundle, self._questions[step.id], step)
                except MpaError as error:
                    self._tally.fault = error
                    return
                self._tally.add(values, time.perf_counter() - started)

        made = [
            threading.Thread(target=ask, args=(server.client(),), daemon=True) for _ in range(self.order.concurrency)
        ]
        for client in made:
            client.start()
        return made
