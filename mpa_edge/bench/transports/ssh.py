"""The way through OpenSSH: its own programs, one connection for all calls, strict about host keys."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.bench.transports import LinkError
from mpa_edge.bench.transports.host_keys import host_key_error
from mpa_edge.bench.transports.process import call, end_group
from mpa_edge.bench.transports.shell import SHORT_S, ShellTransport, refused
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
}
HOME_ROOT = 'printf %s "$HOME/.cache/mpa-edge/bench"'


@dataclass(frozen=True)
class Login:
    """Where to, as the user wrote it; what is left out is in OpenSSH's configuration."""

    host: str
    """Name, address, or alias of ssh_config."""
    user: str | None = None
    """On the device."""
    port: int | None = None
    """Of its server."""
    config: str | None = None
    """A file to read instead of ~/.ssh/config."""

    def options(self) -> list[str]:
        """Options of ssh and its sisters that lead there, without the host."""
        found = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
        found += ["-F", self.config] if self.config else []
        found += ["-o", f"User={self.user}"] if self.user else []
        return found + (["-o", f"Port={self.port}"] if self.port else [])


class SshTransport(ShellTransport):
    """A device with an ssh server. The shared connection is made anew whenever it is gone."""

    def __init__(self, login: Login, root: str | None = None) -> None:
        self.name = f"ssh {login.host}"
        self._login = login
        self._master: subprocess.Popen[bytes] | None = None
        self._forwards: dict[int, int] = {}
        # a socket's path may have about 100 bytes: $TMPDIR can be longer than that
        self._folder = Path(tempfile.mkdtemp(prefix="mpe-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
        try:
            self.root = root or self._home_root()
        except BaseException:
            self.close()
            raise

    def _home_root(self) -> str:
        done = self.run(HOME_ROOT, timeout_s=SHORT_S)
        if done.rc or not done.stdout.startswith(b"/"):
            refused(self.name, "name its home folder", done)
        return done.stdout.decode()

    def _ssh(self, *words: str) -> list[str]:
        return ["ssh", *self._login.options(), "-S", str(self._folder / "s"), *words]

    def _argv(self, command: str) -> list[str]:
        # never past the shared connection: where that is gone, a call must fail now and not after a time-out of its own
        only_shared = ("-o", "ControlMaster=no", "-o", "ProxyCommand=exec false")
        return self._ssh("-T", *only_shared, "--", self._login.host, command)

    def _prepare(self) -> None:
        if self._master is None or self._master.poll() is not None:
            self._connect()

    def _connect(self) -> None:
        """Start the connection that all calls share; MpaError with what to mend where that fails."""
        ways = [word for host, device in self._forwards.items() for word in ("-L", _way(host, device))]
        (self._folder / "s").unlink(missing_ok=True)
        with (self._folder / "log").open("wb") as log:
            # its `cat` ends when we do, however we end: no connection is left behind
            argv = self._ssh("-T", "-o", "ControlMaster=yes", *ways, "--", self._login.host, "exec cat")
            try:
                self._master = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | {"LC_ALL": "C"},
                )
            except FileNotFoundError as error:
                raise MpaError("ssh is missing: install it (apt install openssh-client)") from error
        self._wait_for_master(self._master)

    def _wait_for_master(self, master: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + CONNECT_S + 5
        while not (self._folder / "s").exists():
            if master.poll() is not None or time.monotonic() > deadline:
                end_group(master)
                raise self._broken((self._folder / "log").read_text(errors="replace"))
            time.sleep(0.02)

    def _broken(self, complaint: str) -> MpaError:
        login, host = self._login, self._login.host
        if "host key" in complaint.lower() and ("strict checking" in complaint or "verification failed" in complaint):
            return host_key_error(host, login.options(), complaint)
        if "Permission denied (" in complaint:
            return MpaError(f"{host} refuses the login: install your key there with ssh-copy-id, then try ssh {host}")
        if "Bad owner or permissions" in complaint or "configuration option" in complaint:
            return MpaError(
                f"OpenSSH's configuration is broken ({_last_line(complaint)}): mend it until ssh {host} works"
            )
        return LinkError(
            f"{host} cannot be reached ({_last_line(complaint) or 'the connection was cut'}): "
            f"check its power and network until ssh {host} works"
        )

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """A port of this machine that leads to a port of the device, also after the connection was made anew."""
        self._prepare()
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
        argv = self._ssh("-O", verb, "-L", _way(host_port, device_port), "--", self._login.host)
        done = call(argv, timeout_s=SHORT_S)
        if done.rc and verb == "forward":
            raise self._broken(done.stderr.decode(errors="replace"))

    def close(self) -> None:
        """End the connection and what was started for it."""
        if self._master is not None:
            end_group(self._master)
            if self._master.stdin:
                self._master.stdin.close()
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _way(host_port: int, device_port: int) -> str:
    return f"127.0.0.1:{host_port}:127.0.0.1:{device_port}"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:200] if lines else ""
