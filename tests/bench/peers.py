"""Real devices for tests, on this machine: OpenSSH's server on loopback, Android's adbd in a network namespace."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
WAIT_S = 120.0
# bash reads ~/.bashrc for a command that comes by ssh, unless SHLVL says that another shell did: this machine's is no
# device's, and one that is killed in the middle can leave locks behind
HERE = "\nSetEnv SHLVL=9"
SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
CLIENT = """
Host device
  HostName 127.0.0.1
  Port {port}
  User {user}
Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""


def program(name: str) -> str:
    """Its path; a test that needs a program which is not there fails."""
    found = shutil.which(name, path=SBIN)
    assert found, f"{name} is missing: run .ci/peers as root"
    return found


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """Processes below one, the nearest first."""
    found, at = [pid], 0
    while at < len(found):
        for task in Path(f"/proc/{found[at]}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
        at += 1
    return found[1:]


def signal_all(pid: int, number: int) -> None:
    """A process and all below it; what was detached (its parent is another) is not touched."""
    for one in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(one, number)


def until(what, wait_s: float = WAIT_S):
    """The first true value of a function."""
    deadline = time.monotonic() + wait_s
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return value


def listens(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@dataclass
class SshPeer:
    """A device that one reaches by ssh."""

    folder: Path
    port: int
    process: subprocess.Popen | None = field(default=None, repr=False)
    login: tuple[str, Path] | None = None
    """Its user's shell and home, in a namespace with an /etc/passwd of its own; None: those of this machine."""

    @property
    def via(self) -> str:
        """For --via; goes with config_file."""
        return "ssh://device"

    @property
    def config_file(self) -> str:
        """For ssh -F, MPA_EDGE_SSH_CONFIG."""
        return str(self.folder / "config")

    def start(self) -> None:
        argv = [program("sshd"), "-D", "-e", "-f", self.folder / "sshd_config"]
        if self.login:
            shell, home = self.login
            rows = [row.split(":") for row in Path("/etc/passwd").read_text().splitlines()]
            rows = [[*row[:5], str(home), shell] if row[2] == str(os.geteuid()) else row for row in rows]
            (self.folder / "passwd").write_text("".join(":".join(row) + "\n" for row in rows))
            mount = f'mount --bind "{self.folder}/passwd" /etc/passwd && exec "$@"'
            argv = ["unshare", "--mount", "sh", "-c", mount, "sh", *argv]
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(argv, stderr=log, start_new_session=True)
        until(lambda: listens("127.0.0.1", self.port))

    def kill(self) -> None:
        """The server and its connections are gone at once; what was detached goes on."""
        if self.process:
            signal_all(self.process.pid, 9)
            self.process.wait()
            self.process = None

    def freeze(self, number: int = 19) -> None:
        """A black hole: nothing answers, nothing is refused. 18 ends it."""
        signal_all(self.process.pid, number)

    def new_host_key(self) -> None:
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink(missing_ok=True)
        run(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")

    def trust(self) -> None:
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")


@contextmanager
def sshd(folder: Path, *lines: str, shell: str = "", home: Path | None = None) -> Iterator[SshPeer]:
    """An OpenSSH server on loopback that knows one throw-away key; its files are in `folder`.

    lines: of its configuration, in front of ours. shell, home: of its user, as a login on a device has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    peer = SshPeer(folder, free_port(), login=(shell, home or Path.home()) if shell else None)
    peer.new_host_key()
    run(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / "user_key")
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        "\n".join(lines) + (HERE if not shell else "") + SSHD.format(port=peer.port, folder=folder)
    )
    user = run("whoami").strip()
    (folder / "config").write_text(CLIENT.format(port=peer.port, folder=folder, user=user))
    peer.trust()
    peer.start()
    try:
        yield peer
    finally:
        peer.kill()


@dataclass
class AdbPeer:
    """A device that one reaches by adb, in a network namespace of its own: adbd asks nobody for a key."""

    folder: Path
    address: str
    link: str
    env: dict[str, str]
    """To be set where adb is called: its server has a port of its own."""
    home: Path
    """Where adbd is unpacked."""
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def serial(self) -> str:
        return f"{self.address}:5555"

    @property
    def via(self) -> str:
        """For --via; goes with env."""
        return f"adb://{self.serial}"

    def start(self) -> None:
        libraries = self.home / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        loader = next(libraries.glob("ld-linux-*.so.*"))
        argv = ["ip", "netns", "exec", self.link, loader, "--library-path", f"{libraries}:{libraries}/android"]
        argv += [self.home / "usr/lib/android-sdk/platform-tools/adbd"]
        env = {**os.environ, "ADBD_PORT": "5555", "PATH": SBIN}
        log = (self.folder / "adbd.log").open("ab")
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        until(lambda: listens(self.address, 5555))

    def kill(self) -> None:
        """adbd and its shells are gone at once; what was detached goes on."""
        if self.process:
            signal_all(self.process.pid, 9)
            self.process.wait()
            self.process = None

    def cut(self, is_cut: bool = True) -> None:
        """A black hole: packets get lost, both ways."""
        run("ip", "-n", self.link, "link", "set", "eth0", "down" if is_cut else "up")

    def kill_server(self) -> None:
        """adb's own server on the host, as a crash would."""
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_server(path)]
        assert pids, "no adb server runs"
        for pid in pids:
            os.kill(pid, 9)

    def _is_server(self, path: Path) -> bool:
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            return b"fork-server" in words and any(self.env["ANDROID_ADB_SERVER_PORT"].encode() in w for w in words)
        return False


@contextmanager
def adbd(folder: Path) -> Iterator[AdbPeer]:
    """Debian's adbd behind a cable of its own; the namespace and the adb server are gone at the end."""
    program("adb")
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.getpid()
    # a block for benchmarks (RFC 2544): /30 each, one for each test process
    base = f"198.18.{pid // 64 % 256}.{pid % 64 * 4}"
    host, device = (base.rpartition(".")[0] + f".{int(base.rpartition('.')[2]) + n}" for n in (1, 2))
    link = f"mpe{pid}"
    env = {"ANDROID_ADB_SERVER_PORT": str(free_port()), "HOME": str(folder)}
    peer = AdbPeer(folder, device, link, env, Path(run(ROOT / ".ci" / "adbd").strip()))
    run("ip", "netns", "add", link)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", link)
        run("ip", "addr", "add", f"{host}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", link, "addr", "add", f"{device}/30", "dev", "eth0")
        run("ip", "-n", link, "link", "set", "lo", "up")
        peer.cut(False)
        peer.start()
        yield peer
    finally:
        peer.kill()
        subprocess.run(["adb", "kill-server"], env={**os.environ, **env}, capture_output=True, timeout=120)
        subprocess.run(["ip", "link", "del", link], capture_output=True)
        subprocess.run(["ip", "netns", "del", link], capture_output=True)
