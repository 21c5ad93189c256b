"""What all ways share: files go through programs of the device's own sh (cat, dd, tail, mv)."""

from __future__ import annotations

import posixpath
import shlex
from pathlib import Path
from typing import IO, NoReturn

from mpa_edge.bench.transports import Done, LinkError
from mpa_edge.bench.transports.process import TooSlowError, call
from mpa_edge.errors import MpaError

# below this a file is sent in one go; a larger one goes on at a whole number of blocks
BLOCK_BYTES = 1 << 20
# a transfer that moves no byte for so long is cut
STALL_S = 20.0
SHORT_S = 30.0
# old Android devices take commands of at most 4 kB: longer ones go in as input
LONGEST_COMMAND = 3000
# programs say 255 (ssh) or 1 (adb) both for their own failures and for those of the command: this line tells them apart
ENDED = b"\nmpa-edge ended with "
WRAPPED = 'sh -c "$1"; printf "\\nmpa-edge ended with %s\\n" "$?" >&2'
READ_ALL = 'exec sh -c "$(cat)" </dev/null'


class ShellTransport:
    """A device that runs sh scripts; subclasses say how they get there."""

    name: str
    root: str

    def _argv(self, command: str) -> list[str]:
        """The program of this machine that has the device's sh run a script."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Called before each call: mend the way, if it broke."""

    def _broken(self, complaint: str) -> MpaError:
        """What it means that a command did not come to its end."""
        raise NotImplementedError

    def close(self) -> None:
        """End what was started for the way."""

    def run(self, command: str, *, timeout_s: float, stdin: bytes | None = None) -> Done:
        """Run the text of a POSIX sh script there. LinkError where the way is cut or `timeout_s` is over."""
        return self._call(command, timeout_s=timeout_s, stdin=stdin)

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Copy a file there; `target` appears whole, its folder is made.

        Goes on with `target`.part, which must be of the same file: who sends checks the content there (upload.send).
        """
        names = _names(target)
        if source.stat().st_size <= BLOCK_BYTES:
            content = source.read_bytes()
            script = f'{names} p="$p.$$"; cat >"$p" && {_when_whole(len(content))}'
            done = self._call(script, timeout_s=timeout_s, stdin=content, stall_s=STALL_S)
        else:
            done = self._push_large(source, names, timeout_s)
        if done.rc:
            refused(self.name, f"write {target}", done)

    def _push_large(self, source: Path, names: str, timeout_s: float) -> Done:
        size = source.stat().st_size
        found = self._call(f'{names} wc -c <"$p" 2>/dev/null || echo 0', timeout_s=SHORT_S).stdout.split()
        there = int(found[0]) if found else 0
        block = there // BLOCK_BYTES if there <= size else 0
        clear = "" if there <= size else 'rm -f "$p"; '
        # dd writes at its place: what a cut attempt still had on its way can only repeat the same bytes
        script = f'{names} {clear}dd of="$p" bs={BLOCK_BYTES} seek={block} conv=notrunc && {_when_whole(size)}'
        with source.open("rb") as file:
            file.seek(block * BLOCK_BYTES)
            return self._call(script, timeout_s=timeout_s, stdin=file, stall_s=STALL_S)

    def pull(self, source: str, target: Path, *, offset: int = 0, timeout_s: float) -> int:
        """Append what is behind `offset` of a file there to `target`; the number of bytes."""
        with target.open("ab") as file:
            before = file.tell()
            script = f"exec tail -c +{offset + 1} {quoted_path(source)}"
            done = self._call(script, timeout_s=timeout_s, stdout=file, stall_s=STALL_S)
        if done.rc:
            refused(self.name, f"read {source}", done)
        return target.stat().st_size - before

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
            self._lost()
            limit_s = min(timeout_s, stall_s or timeout_s)
            raise LinkError(
                f"{self.name} did not answer within {limit_s:.0f} s: check the connection, then give the command again"
            ) from error
        stderr, mark, rc = done.stderr.rpartition(ENDED)
        if not mark or not rc.strip().isdigit():
            self._lost()
            raise self._broken(done.stderr.decode(errors="replace"))
        return Done(int(rc), done.stdout, stderr)

    def _lost(self) -> None:
        """Called when the way broke."""


def refused(name: str, what: str, done: Done) -> NoReturn:
    """Raise the MpaError of a command that failed on the device `name` while it was to do `what`."""
    text = " ".join(done.stderr.decode(errors="replace").split())
    if "No space left" in text or "Disk quota" in text:
        raise MpaError(f"{name} has no space left to {what}: free some there, then give the same command again")
    raise MpaError(f"{name} cannot {what} ({text[-300:] or f'exit {done.rc}'}): check the path and its rights there")


def quoted_path(path: str) -> str:
    """A path for a script; absolute ones only, so that none can be taken for an option.

    >>> quoted_path("/tmp/it's here;")
    '\\'/tmp/it\\'"\\'"\\'s here;\\''
    """
    if not path.startswith("/") or "\0" in path:
        raise MpaError(f"{path!r} is no path on a device: give an absolute one")
    return shlex.quote(path)


def _names(target: str) -> str:
    """Shell: $t is the target, $p its part, their folder is there."""
    folder = quoted_path(posixpath.dirname(target))
    return f't={quoted_path(target)}; p="$t.part"; mkdir -p {folder} || exit 1;'


def _when_whole(size_bytes: int) -> str:
    """Shell: give $p its name, unless the link was cut before the last byte."""
    return f'[ "$(wc -c <"$p")" -eq {size_bytes} ] && mv -f "$p" "$t"'
