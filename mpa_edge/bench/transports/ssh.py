"""The connection through OpenSSH: its own programs, one connection for all calls, strict host key checking."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.bench.transports.faults import LINK, fix_of
from mpa_edge.bench.transports.process import Done, LinkError, call, end_group
from mpa_edge.bench.transports.transport import SHORT_S, Transport, last_line, printable
from mpa_edge.errors import MpaError

CONNECT_S = 10
ALIVE_S, ALIVE_TRIES = 2, 3
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": CONNECT_S,
    "ServerAliveInterval": ALIVE_S,
    "ServerAliveCountMax": ALIVE_TRIES,
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RequestTTY": "no",
    "ControlPersist": "no",
    "RemoteCommand": "none",
}
# runs as long as its input is open, which is as long as we run
HOLD = "{sh} -c 'unset TMOUT; while read -r line; do :; done'"
LINK_RC, CUT = 255, "the connection was cut"


@dataclass(frozen=True)
class Login:
    """Where to connect, as the user wrote it; the rest comes from OpenSSH's configuration."""

    host: str
    """Name, address, or alias of ssh_config."""
    user: str | None = None
    """On the device."""
    port: int | None = None
    """Of its server."""
    config: str | None = None
    """A file to read instead of ~/.ssh/config."""


class SshTransport(Transport):
    """A device with an ssh server. The shared connection is restored whenever it is gone."""

    shells = ("/bin/sh", "sh")

    def __init__(self, login: Login, root: str | None = None) -> None:
        self.name = f"ssh {login.host}"
        self._host = login.host
        self._options = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
        self._options += ["-F", login.config] if login.config else []
        self._options += ["-o", f"User={login.user}"] if login.user else []
        self._options += ["-o", f"Port={login.port}"] if login.port else []
        self._master: subprocess.Popen[bytes] | None = None
        self._was_connected = False
        self._forwards: dict[int, int] = {}
        # a socket's path may have about 100 bytes: $TMPDIR can be longer than that
        self._folder = Path(tempfile.mkdtemp(prefix="mpe-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
        self._log = self._folder / "log"
        try:
            self.root = root or self._home_root()
        except BaseException:
            self.close()
            raise

    def _home_root(self) -> str:
        home = self.checked("name its home folder", 'printf %s "${HOME:-$(cd && pwd)}"', timeout_s=SHORT_S)
        if not home.startswith("/") or "\ufffd" in home or not home.isprintable():
            raise MpaError(f"{self.name} has no usable home folder ({printable(home)}): name another with --root")
        return f"{home.rstrip('/')}/.cache/mpa-edge/bench"

    def _ssh(self, *words: str) -> list[str]:
        return ["ssh", *self._options, "-S", str(self._folder / "s"), *words]

    def _argv(self, command: str) -> list[str]:
        # only through the shared connection: where that is gone, a call must fail now, not after its own timeout
        only_shared = ("-o", "LogLevel=ERROR", "-o", "ControlMaster=no", "-o", f"ProxyCommand=echo {CUT} >&2")
        return self._ssh("-T", *only_shared, "--", self._host, command)

    def _prepare(self) -> None:
        """Start the connection that all calls share, unless it is there."""
        if self._master is not None and self._master.poll() is None:
            return
        forwards = [word for host, device in self._forwards.items() for word in ("-L", _addresses(host, device))]
        socket_file = self._folder / "s"
        socket_file.unlink(missing_ok=True)
        with self._log.open("wb") as log:
            hold = HOLD.format(sh=self.shells[0])
            argv = self._ssh("-T", "-o", "ControlMaster=yes", "-o", "LogLevel=INFO", *forwards, "--", self._host, hold)
            try:
                master = self._master = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | {"LC_ALL": "C"},
                )
            except FileNotFoundError as error:
                raise MpaError("ssh is missing: install it (apt install openssh-client)") from error
        deadline = time.monotonic() + CONNECT_S + 5
        while not socket_file.exists():
            if master.poll() not in (None, LINK_RC):
                return  # its login ended: the next command is told why
            if master.poll() is not None or time.monotonic() > deadline:
                end_group(master)
                raise self._broken(self._log.read_text(errors="replace"))
            time.sleep(0.02)
        self._was_connected = True

    def _link_works(self) -> bool:
        master = self._master
        if master is None:
            return False
        with suppress(subprocess.TimeoutExpired):  # a connection that was cut ends in a moment
            return 0 <= master.wait(0.5) != LINK_RC
        return True

    def _login_says(self, done: Done) -> str:
        if self._master is not None and self._master.poll() is not None:  # its command did not even hold the connection
            argv = self._ssh("-T", "-o", "ControlPath=none", "--", self._host, HOLD.format(sh=self.shells[0]))
            done = call(argv, timeout_s=SHORT_S)
        return super()._login_says(done)

    def _broken(self, complaint: str) -> MpaError:
        """A LinkError only if it worked before: a refused login or an unknown host key does not improve by waiting."""
        complaint = CUT if CUT in complaint else complaint
        fix = fix_of(complaint, LINK, "run ssh {host} by hand until it logs in without a question")
        is_lasting = not self._was_connected or re.search(LINK[0][0], complaint)
        return (MpaError if is_lasting else LinkError)(
            f"{self._host} cannot be reached ({last_line(complaint, CUT)}): {fix.format(host=self._host)}, then rerun"
        )

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """A port of this machine that leads to a port of the device; it survives a reconnection.

        MpaError where the device's server has refused that.
        """
        self._prepare()
        if "administratively prohibited" in self._log.read_text(errors="replace"):
            raise MpaError(
                f"{self._host} forwards no ports: set AllowTcpForwarding in its sshd_config to yes, then rerun"
            )
        host_port = free_port()
        self._control("forward", host_port, device_port)
        self._forwards[host_port] = device_port
        try:
            yield host_port
        finally:
            del self._forwards[host_port]
            if self._master is not None and self._master.poll() is None:
                self._control("cancel", host_port, device_port)

    def _control(self, verb: str, host_port: int, device_port: int) -> None:
        argv = self._ssh("-O", verb, "-L", _addresses(host_port, device_port), "--", self._host)
        done = call(argv, timeout_s=SHORT_S)
        if done.rc and verb == "forward":
            raise self._broken(done.stderr.decode(errors="replace"))

    def close(self) -> None:
        """End the connection and remove its files."""
        if self._master is not None:
            end_group(self._master)
            if self._master.stdin:
                self._master.stdin.close()
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _addresses(host_port: int, device_port: int) -> str:
    return f"127.0.0.1:{host_port}:127.0.0.1:{device_port}"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
