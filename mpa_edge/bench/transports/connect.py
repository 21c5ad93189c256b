"""`--via` -> the way to a device."""

from __future__ import annotations

import os
import re

from mpa_edge.bench.transports import Transport
from mpa_edge.bench.transports.adb import AdbTransport
from mpa_edge.bench.transports.local import LocalTransport
from mpa_edge.bench.transports.ssh import Login, SshTransport
from mpa_edge.errors import MpaError

WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
SSH = re.compile(
    rf"(?:(?P<user>{WORD})@)?(?P<host>{WORD}|\[[0-9A-Fa-f:.]+(?:%{WORD})?\])(?::(?P<port>[0-9]{{1,5}}))?/?"
)
ADB = re.compile(r"(?:[A-Za-z0-9_\[][A-Za-z0-9._:\[\]%-]*)?")
FORMS = "local, ssh://USER@HOST[:PORT], ssh://ALIAS or adb://SERIAL"
MAX_PORT = 65535


def connect(
    via: str | None, *, default: str = "local", root: str | None = None, ssh_config: str | None = None
) -> Transport:
    """The device that `via` names; without one, that of the target's `transport` (local, adb: the only device).

    root: folder there for everything of ours, absolute. ssh_config: a file for ssh's -F, else $MPA_EDGE_SSH_CONFIG.
    Raises MpaError with what to mend.
    """
    if root is not None and (not root.startswith("/") or "\0" in root):
        raise MpaError(f"the folder on the device must be absolute, not {root!r}: write it from / on")
    kind, _, rest = (via or _of_target(default)).partition("://")
    if kind == "local" and not rest:
        return LocalTransport(root)
    if kind == "ssh":
        return SshTransport(login_of(rest, ssh_config or os.environ.get("MPA_EDGE_SSH_CONFIG")), root)
    if kind == "adb":
        return AdbTransport(_serial_of(rest), root)
    raise MpaError(f"--via {_shown(via or default)} is no way to a device: write {FORMS}")


def _of_target(transport: str) -> str:
    if transport == "ssh":
        raise MpaError("this target is reached by ssh: say where with --via ssh://USER@HOST, or --via local for here")
    return "adb://" if transport == "adb" else transport


def login_of(rest: str, config: str | None = None) -> Login:
    """What stands behind ssh://, taken apart. MpaError where it is anything else than a user, a host and a port.

    >>> login_of("user@orin:2222")
    Login(host='orin', user='user', port=2222, config=None)
    """
    found = SSH.fullmatch(rest)
    if not found and re.match(r"[^@/]*:[^@]*@", rest):
        # not shown: it is a password
        raise MpaError("--via ssh:// takes no password: install your key with ssh-copy-id, then write ssh://USER@HOST")
    if not found or int(found["port"] or 22) not in range(1, MAX_PORT + 1):
        raise MpaError(f"--via ssh://{_shown(rest)} names no host: write ssh://USER@HOST[:PORT] or ssh://ALIAS")
    return Login(found["host"].strip("[]"), found["user"], int(found["port"]) if found["port"] else None, config)


def _serial_of(rest: str) -> str | None:
    if not ADB.fullmatch(rest.rstrip("/")):
        raise MpaError(f"--via adb://{_shown(rest)} names no device: write adb://SERIAL as adb devices shows it")
    return rest.rstrip("/") or None


def _shown(text: str) -> str:
    """On one line, without what may be a password."""
    return re.sub(r"(?<=://)[^@/]*@|^[^@/]*:[^@]*@", "…@", ascii(text)[1:-1])
