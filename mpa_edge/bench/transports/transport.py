"""The base class of all connections: scripts run in the device's own sh, files go through its cat, dd, wc and mv."""

from __future__ import annotations

import os
import posixpath
import re
import secrets
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

from mpa_edge.bench.transports.faults import DEVICE, LOGIN, LOGIN_ELSE, fix_of
from mpa_edge.bench.transports.process import Done, LinkError, TooSlowError, call, patiently
from mpa_edge.errors import MpaError
from mpa_edge.runs.paths import new_file

PATIENCE_S = 600.0
# smaller files are sent in one go; larger ones resume at a whole number of blocks
BLOCK_BYTES = 1 << 20
# a transfer that moves no byte for this long is broken off
STALL_S = 20.0
SHORT_S = 30.0
FETCHED_BYTES = 64 << 20
# of a large file, in one call
PIECE_BYTES = 32 << 20
# What every login shell understands (sh, tcsh, fish, rbash): one word with plain quotes. The script comes as input, and
# the command's own input behind it: dd takes no byte more than it is told. A script of which a cut link or a startup
# file took a part lacks one of its marks, and a shell that takes our input for commands ends at the first word. What a
# login prints stands in front of the marks or behind them. A program uses the same exit status for its own failures and
# the command's (ssh 255, adb 1): hence the status is printed.
COMMAND = (
    "{sh} -c '"
    "command -v dd >/dev/null 2>&1 || PATH=${{PATH:+$PATH:}}/usr/local/bin:/usr/bin:/bin:/system/bin; "
    "LC_ALL=C; export PATH LC_ALL; umask u=rwx; (: >&2) || exec 2>/dev/null; "
    "unset TMOUT CDPATH TAR_OPTIONS GREP_OPTIONS BLOCKSIZE BLOCK_SIZE DF_BLOCK_SIZE PYTHONIOENCODING PYTHONINSPECT; "
    "unset -f cd ls cp mv rm cat; "
    "s=$(dd bs=1 count={size} 2>/dev/null); case $s in exit*{mark}*{mark}) ;; *) exit 97 ;; esac; "
    "echo >&2; echo errors {mark} >&2; echo; echo begins {mark}; "
    '{sh} -c "${{s#exit }}"; s=$?; echo; echo ends {mark} $s; echo >&2; echo no more errors {mark} >&2'
    "'"
)
SCRIPT = "exit #{mark}\n{command}\n#{mark}"
# commands in a row that do not run to their end although the link works: this does not improve by waiting
MAX_CUTS = 3


class Transport(ABC):
    """A device that runs sh scripts; subclasses connect to it. Every call has a timeout.

    A call that a broken link interrupts is retried for `patience_s`; then it raises a LinkError.
    """

    name: str
    """local, ssh HOST, adb SERIAL: for reports; contains no secret."""
    root: str
    """Absolute folder on the device that holds the bundles."""
    patience_s: float = PATIENCE_S
    shells: tuple[str, ...] = ("sh",)
    """Paths of the device's sh; the first counts, those that do not work are left out."""
    _is_broken = False
    """Whether the connection broke since `_prepare`."""
    _cuts: int | None = None
    """Commands in a row that did not run to their end although the link works; None: none ever ran."""

    @abstractmethod
    def _argv(self, command: str) -> list[str]:
        """The program of this machine that has the device's login shell run a command."""

    def _prepare(self) -> None:  # noqa: B027  this machine needs nothing
        """Called before each call: restore a broken connection."""

    @abstractmethod
    def _broken(self, complaint: str) -> MpaError:
        """The error for a command that did not run to its end because of the link."""

    def _link_works(self) -> bool:
        """Whether the link works, after a command that did not run to its end."""
        return False

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
        text = printable(done.stderr)[-300:]
        fix = fix_of(text, DEVICE, "check space and permissions there")
        raise MpaError(f"{self.name} cannot {what} ({text or f'exit {done.rc}'}): {fix}, then rerun")

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Copy a file there; `target` appears complete, its folder is made.

        Resumes with `target`.part, which must be of the same file: `upload.send` checks the content there.
        """
        done = None
        while done is None:
            done = patiently(lambda: self._push(source, target, timeout_s), patience_s=self.patience_s)
        if done.rc:
            self.refused(f"write {target}", done)

    def _push(self, source: Path, target: str, timeout_s: float) -> Done | None:
        """Send a file, or the next piece of a large one; None where more is to be sent."""
        folder, size = quoted_path(posixpath.dirname(target)), source.stat().st_size
        names = f't={quoted_path(target)}; p="$t.part"; mkdir -p {folder} || exit 1;'
        # $p gets its name only if the link did not break before the last byte
        finish = f'[ "$(wc -c <"$p")" -eq {size} ] && mv -f "$p" "$t"'
        if size <= BLOCK_BYTES:
            script = f'{names} p="$p.$$"; cat >"$p" && {finish}'
            return self._call(script, timeout_s=timeout_s, stdin=source.read_bytes(), stall_s=STALL_S)
        found = re.match(rb"\s*(\d{1,15})\s", self._call(f'{names} wc -c <"$p"', timeout_s=SHORT_S).stdout)
        there = int(found[1]) if found else 0
        block, clear = (there // BLOCK_BYTES, "") if there <= size else (0, 'rm -f "$p"; ')
        with source.open("rb") as file:
            file.seek(block * BLOCK_BYTES)
            piece = file.read(PIECE_BYTES)
        end = block * BLOCK_BYTES + len(piece)
        # dd writes at a fixed place: bytes of a broken attempt that are still on their way can only repeat themselves
        write = f'dd of="$p" bs={BLOCK_BYTES} seek={block} conv=notrunc'
        check = finish if end == size else f'[ "$(wc -c <"$p")" -ge {end} ]'
        done = self._call(f"{names} {clear}{write} && {check}", timeout_s=timeout_s, stdin=piece, stall_s=STALL_S)
        return done if done.rc or end == size else None

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """Copy a file from there; of a longer one, its first FETCHED_BYTES."""
        script = f"exec head -c {FETCHED_BYTES} {quoted_path(source)}"
        done = patiently(lambda: self._call(script, timeout_s=timeout_s, stall_s=STALL_S), patience_s=self.patience_s)
        if done.rc:
            self.refused(f"read {source}", done)
        with new_file(target) as file:
            file.write(done.stdout)

    def _call(
        self, command: str, *, timeout_s: float, stdin: bytes | None = None, stall_s: float | None = None
    ) -> Done:
        mark = secrets.token_hex(8)
        script = SCRIPT.format(mark=mark, command=command).encode()
        while True:
            self._prepare()
            words = COMMAND.format(sh=self.shells[0], size=len(script), mark=mark)
            try:
                argv, given, end = self._argv(words), script + (stdin or b""), f"\nends {mark} ".encode()
                done = call(argv, timeout_s=timeout_s, stdin=given, stall_s=stall_s, end=end)
            except TooSlowError as error:
                self._is_broken = True
                limit_s = min(timeout_s, stall_s or timeout_s)
                raise (MpaError if self._cuts is None else LinkError)(
                    f"{self.name} did not answer within {limit_s:.0f} s: check the connection, its load, and what its "
                    "login starts, then rerun"
                ) from error
            rest = done.stdout.partition(f"\nbegins {mark}".encode())[2]
            output, _, status = rest.rpartition(end)
            if rest.startswith(b"\r"):
                raise MpaError(
                    f"{self.name} runs commands in a terminal, which changes what they print: take script, tmux or "
                    "ForceCommand out of its startup files and sshd_config"
                )
            if ended := re.match(rb"(\d{1,3})\s", status):
                self._cuts = 0
                errors = done.stderr.partition(f"\nerrors {mark}\n".encode())[2]
                return Done(int(ended[1]), output[1:], errors.partition(f"\nno more errors {mark}\n".encode())[0])
            self._cut(done)

    def _cut(self, done: Done) -> None:
        """After a command that did not run to its end: raise the error, or return to have it tried with another sh."""
        self._is_broken = True
        if not self._link_works():
            raise self._broken(done.stderr.decode(errors="replace"))
        if len(self.shells) > 1 and self._cuts is None:
            self.shells = self.shells[1:]
            return
        text = self._login_says(done)
        worked, self._cuts = self._cuts is not None, (self._cuts or 0) + 1
        raise (LinkError if worked and self._cuts < MAX_CUTS else MpaError)(
            f"{self.name} can be reached, but its login runs no command to its end ({text or 'it says nothing'}): "
            f"{fix_of(text, LOGIN, LOGIN_ELSE)}, then rerun"
        )

    def _login_says(self, done: Done) -> str:
        """What a login said instead of running a command, on one line."""
        return printable(done.stderr + b" " + done.stdout)[-300:]


class LocalTransport(Transport):
    """The machine that mpa-edge runs on, as the device."""

    name = "local"
    _cuts = 0

    def __init__(self, root: str | None = None) -> None:
        usual = Path.home() / ".cache" / "mpa-edge" / "bench"
        self.root = str(Path(root or os.environ.get("MPA_EDGE_BENCH_ROOT") or usual).absolute())

    def _argv(self, command: str) -> list[str]:
        return shlex.split(command)

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
    lines = [line for each in decoded.splitlines() if (line := printable(each))]
    return lines[-1][:200] if lines else otherwise


def printable(text: str | bytes) -> str:
    r"""A program's output on one line, without what could control a terminal.

    >>> printable(b"a\x1b[31m \r\n b\xff")
    'a [31m b\ufffd'
    """
    decoded = text if isinstance(text, str) else text.decode(errors="replace")
    return " ".join("".join(one if one.isprintable() else " " for one in decoded).split())
