"""`--via` -> the connection to a device."""

from __future__ import annotations

import os
import re

from mpa_edge.bench.transports.adb import AdbTransport
from mpa_edge.bench.transports.ssh import Login, SshTransport
from mpa_edge.bench.transports.transport import LocalTransport, Transport
from mpa_edge.errors import MpaError

WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
SSH = re.compile(
    rf"(?:(?P<user>{WORD})@)?(?P<host>{WORD}|\[[0-9A-Fa-f:.]+(?:%{WORD})?\])(?::(?P<port>[0-9]{{1,5}}))?/?"
)
ADB = re.compile(r"(?:[A-Za-z0-9_\[][A-Za-z0-9._:\[\]%-]*)?")
FORMS = "local, ssh://USER@HOST[:PORT], ssh://ALIAS or adb://SERIAL"
MAX_PORT = 65535


def connect(via: str | None, *, root: str | None = None, ssh_config: str | None = None) -> Transport:
    """The device that `via` names; None is this machine, adb:// the only device that adb sees.

    root: absolute working directory on the device. ssh_config: a file for ssh's -F, else $MPA_EDGE_SSH_CONFIG.
    MpaError where `via` is malformed or there is no such device.
    """
    if root is not None and (not root.startswith("/") or "\0" in root):
        raise MpaError(f"the folder on the device must be absolute, not {root!r}: write it from / on")
    kind, _, rest = (via or "local").partition("://")
    if kind == "local" and not rest:
        return LocalTransport(root)
    if kind == "ssh":
        return SshTransport(login_of(rest, ssh_config or os.environ.get("MPA_EDGE_SSH_CONFIG")), root)
    if kind == "adb":
        serial = rest.rstrip("/")
        if not ADB.fullmatch(serial):
            raise MpaError(f"--via adb://{_shown(rest)} names no device: write adb://SERIAL as adb devices shows it")
        return AdbTransport(serial or None, root)
    raise MpaError(f"--via {_shown(via or '')} is unknown: write {FORMS}")


def login_of(rest: str, config: str | None = None) -> Login:
    """The parts of what follows ssh://. MpaError where it is anything other than a user, a host and a port.

    >>> login_of("user@orin:2222")
    Login(host='orin', user='user', port=2222, config=None)
    """
    found = SSH.fullmatch(rest)
    if not found and re.match(r"[^@/]*:[^@]*@", rest):
        # not shown: it contains a password
        raise MpaError("--via ssh:// takes no password: install your key with ssh-copy-id, then write ssh://USER@HOST")
    if not found or int(found["port"] or 22) not in range(1, MAX_PORT + 1):
        raise MpaError(f"--via ssh://{_shown(rest)} names no host: write ssh://USER@HOST[:PORT] or ssh://ALIAS")
    return Login(found["host"].strip("[]"), found["user"], int(found["port"]) if found["port"] else None, config)


def _shown(text: str) -> str:
    """On one line, without what may be a password."""
    return re.sub(r"(?<=://)[^@/]*@|^[^@/]*:[^@]*@", "…@", ascii(text)[1:-1])
