"""The base class of all connections: scripts run in the device's own sh, files go through its cat, dd, wc and mv."""

from __future__ import annotations

import os
import posixpath
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, NoReturn

from mpa_edge.bench.transports.process import Done, LinkError, TooSlowError, call, patiently
from mpa_edge.errors import MpaError
from mpa_edge.runs.paths import new_file

PATIENCE_S = 600.0
# smaller files are sent in one go; larger ones resume at a whole number of blocks
BLOCK_BYTES = 1 << 20
# a transfer that moves no byte for this long is broken off
STALL_S = 20.0
SHORT_S = 30.0
# old Android devices take commands of at most 4 kB: longer ones go in as input
LONGEST_COMMAND = 3000
# a program uses the same status for its own failures and the command's (ssh 255, adb 1): this line tells them apart
ENDED = b"\nmpa-edge ended with "
WRAPPED = 'sh -c "$1"; printf "\\nmpa-edge ended with %s\\n" "$?" >&2'
READ_ALL = 'exec sh -c "$(cat)" </dev/null'


class Transport(ABC):
    """A device that runs sh scripts; subclasses connect to it. Every call has a timeout.

    A call that a broken link interrupts is retried for `patience_s`; then it raises a LinkError.
    """

    name: str
    """local, ssh HOST, adb SERIAL: for reports; contains no secret."""
    root: str
    """Absolute folder on the device that holds the bundles."""
    patience_s: float = PATIENCE_S
    _is_broken = False
    """Whether the connection broke since `_prepare`."""

    @abstractmethod
    def _argv(self, command: str) -> list[str]:
        """The program of this machine that has the device's sh run a script."""

    def _prepare(self) -> None:  # noqa: B027  this machine needs nothing
        """Called before each call: restore a broken connection."""

    @abstractmethod
    def _broken(self, complaint: str) -> MpaError:
        """The error for a command that did not run to its end."""

    @abstractmethod
    def forward(self, device_port: int) -> AbstractContextManager[int]:
        """A port of this machine that leads to a port of the device."""

    def close(self) -> None:  # noqa: B027  nor does it keep anything open
        """End the connection. Safe to call twice."""

    def run(self, command: str, *, timeout_s: float, stdin: bytes | None = None, patient: bool = True) -> Done:
        """Run the text of a POSIX sh script there.

        Where it must not be retried or waited for, `patient` is False. LinkError where the link is broken.
        """
        patience_s = self.patience_s if patient else 0.0
        return patiently(lambda: self._call(command, timeout_s=timeout_s, stdin=stdin), patience_s=patience_s)

    def checked(self, what: str, command: str, *, timeout_s: float, stdin: bytes | None = None) -> str:
        """As `run`, the output as text. MpaError "cannot `what`" where the command fails."""
        done = self.run(command, timeout_s=timeout_s, stdin=stdin)
        if done.rc:
            self.refused(what, done)
        return done.stdout.decode(errors="replace")

    def refused(self, what: str, done: Done) -> NoReturn:
        """Raise the MpaError of a command that failed on the device while it was to do `what`."""
        text = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise MpaError(
            f"{self.name} cannot {what} ({text or f'exit {done.rc}'}): check space and permissions there, then rerun"
        )

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Copy a file there; `target` appears complete, its folder is made.

        Resumes with `target`.part, which must be of the same file: `upload.send` checks the content there.
        """
        done = patiently(lambda: self._push(source, target, timeout_s), patience_s=self.patience_s)
        if done.rc:
            self.refused(f"write {target}", done)

    def _push(self, source: Path, target: str, timeout_s: float) -> Done:
        folder, size = quoted_path(posixpath.dirname(target)), source.stat().st_size
        names = f't={quoted_path(target)}; p="$t.part"; mkdir -p {folder} || exit 1;'
        # $p gets its name only if the link did not break before the last byte
        finish = f'[ "$(wc -c <"$p")" -eq {size} ] && mv -f "$p" "$t"'
        if size <= BLOCK_BYTES:
            script = f'{names} p="$p.$$"; cat >"$p" && {finish}'
            return self._call(script, timeout_s=timeout_s, stdin=source.read_bytes(), stall_s=STALL_S)
        found = self._call(f'{names} wc -c <"$p" 2>/dev/null || echo 0', timeout_s=SHORT_S).stdout.split()
        there = int(found[0]) if found else 0
        block, clear = (there // BLOCK_BYTES, "") if there <= size else (0, 'rm -f "$p"; ')
        # dd writes at a fixed place: bytes of a broken attempt that are still on their way can only repeat themselves
        script = f'{names} {clear}dd of="$p" bs={BLOCK_BYTES} seek={block} conv=notrunc && {finish}'
        with source.open("rb") as file:
            file.seek(block * BLOCK_BYTES)
            return self._call(script, timeout_s=timeout_s, stdin=file, stall_s=STALL_S)

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """Copy a file from there."""

        def once() -> Done:
            with new_file(target) as file:
                return self._call(f"exec cat {quoted_path(source)}", timeout_s=timeout_s, stdout=file, stall_s=STALL_S)

        done = patiently(once, patience_s=self.patience_s)
        if done.rc:
            self.refused(f"read {source}", done)

    def _call(
        self,
        command: str,
        *,
        timeout_s: float,
        stdin: bytes | IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stall_s: float | None = None,
    ) -> Done:
        self._prepare()
        if stdin is None and len(command) > LONGEST_COMMAND:
            command, stdin = READ_ALL, command.encode()
        try:
            argv = self._argv(f"exec sh -c {shlex.quote(WRAPPED)} sh {shlex.quote(command)}")
            done = call(argv, timeout_s=timeout_s, stdin=stdin, stdout=stdout, stall_s=stall_s)
        except TooSlowError as error:
            self._is_broken = True
            limit_s = min(timeout_s, stall_s or timeout_s)
            raise LinkError(
                f"{self.name} did not answer within {limit_s:.0f} s: check the connection, then rerun"
            ) from error
        stderr, mark, rc = done.stderr.rpartition(ENDED)
        if not mark or not rc.strip().isdigit():
            self._is_broken = True
            raise self._broken(done.stderr.decode(errors="replace"))
        return Done(int(rc), done.stdout, stderr)


class LocalTransport(Transport):
    """The machine that mpa-edge runs on, as the device."""

    name = "local"

    def __init__(self, root: str | None = None) -> None:
        usual = Path.home() / ".cache" / "mpa-edge" / "bench"
        self.root = str(Path(root or os.environ.get("MPA_EDGE_BENCH_ROOT") or usual).absolute())

    def _argv(self, command: str) -> list[str]:
        return ["sh", "-c", command]

    def _broken(self, complaint: str) -> MpaError:
        return LinkError("a program on this machine was killed: rerun")

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """The port itself."""
        yield device_port


def quoted_path(path: str) -> str:
    """A path for a script; only absolute ones, so that none can be taken for an option.

    >>> quoted_path("/tmp/it's here;")
    '\\'/tmp/it\\'"\\'"\\'s here;\\''
    """
    if not path.startswith("/") or "\0" in path:
        raise MpaError(f"{path!r} is not a path on a device: give an absolute one")
    return shlex.quote(path)


def enter_below(root: str, folder: str) -> str:
    """The start of a script that works in `folder`, in $here; it ends where that is not there, or is not below `root`.

    Neither a link nor a name with `..` leads out of `root`.
    """
    enter = f"cd -P {quoted_path(root)} && root=$(pwd -P) && cd -P {quoted_path(folder)} && here=$(pwd -P) || exit 0"
    return f'{{ {enter}; }} 2>/dev/null; case $here in "${{root%/}}"/?*) ;; *) exit 0 ;; esac'


def last_line(text: str | bytes, otherwise: str = "no message") -> str:
    """The last line of a program's output that is not blank, shortened.

    >>> last_line("a\\nb.\\n\\n"), last_line(b"")
    ('b.', 'no message')
    """
    decoded = text if isinstance(text, str) else text.decode(errors="replace")
    lines = [line.strip() for line in decoded.splitlines() if line.strip()]
    return lines[-1][:200] if lines else otherwise
