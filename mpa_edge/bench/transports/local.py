"""The machine that mpa-edge runs on, as the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.bench.transports.process import LinkError
from mpa_edge.bench.transports.transport import Transport
from mpa_edge.errors import MpaError


class LocalTransport(Transport):
    """sh of this machine."""

    name = "local"

    def __init__(self, root: str | None = None) -> None:
        root = root or os.environ.get("MPA_EDGE_BENCH_ROOT") or str(Path.home() / ".cache" / "mpa-edge" / "bench")
        self.root = str(Path(root).absolute())

    def _argv(self, command: str) -> list[str]:
        return ["sh", "-c", command]

    def _broken(self, complaint: str) -> MpaError:
        return LinkError("a program on this machine was killed: rerun")

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """The port itself."""
        yield device_port
