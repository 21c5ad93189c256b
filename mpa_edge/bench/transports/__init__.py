"""The way to the device: one interface for this machine, OpenSSH and adb."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpa_edge.errors import MpaError


@dataclass(frozen=True)
class Done:
    """How a command on the device ended."""

    rc: int
    """Its exit status there."""
    stdout: bytes
    """What it printed."""
    stderr: bytes
    """What it complained about."""


class LinkError(MpaError):
    """The way to the device is cut or too slow, which may pass: the job there goes on meanwhile."""


class Transport(Protocol):
    """Programs and files on a device. Every call has a time-out; an MpaError says what to mend."""

    name: str
    """local, ssh HOST, adb SERIAL: for reports; holds no secret."""
    root: str
    """Folder on the device below which bundles go; absolute."""

    def run(self, command: str, *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """Run the text of a POSIX sh script there. A LinkError where the way is cut, so that one may try again."""
        ...

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Copy a file there. What an earlier attempt left in `target`.part is gone on with; `target` appears whole."""
        ...

    def pull(self, source: str, target: Path, *, offset: int = 0, timeout_s: float) -> int:
        """Append what is behind `offset` of a file there to `target`; the number of bytes."""
        ...

    def forward(self, device_port: int) -> AbstractContextManager[int]:
        """A port of this machine that leads to a port of the device."""
        ...

    def close(self) -> None:
        """End what was started for the way. Safe to call twice."""
        ...
