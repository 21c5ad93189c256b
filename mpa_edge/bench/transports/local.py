"""The machine that mpa-edge runs on, as the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.bench.transports import LinkError
from mpa_edge.bench.transports.shell import ShellTransport
from mpa_edge.errors import MpaError


class LocalTransport(ShellTransport):
    """sh of this machine."""

    name = "local"

    def __init__(self, root: str | None = None) -> None:
        own = os.environ.get("MPA_EDGE_BENCH_ROOT")
        self.root = str(Path(root or own or Path.home() / ".cache" / "mpa-edge" / "bench").absolute())

    def _argv(self, command: str) -> list[str]:
        return ["sh", "-c", command]

    def _broken(self, complaint: str) -> MpaError:
        return LinkError("a program on this machine was killed: give the same command again")

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """The port itself."""
        yield device_port
