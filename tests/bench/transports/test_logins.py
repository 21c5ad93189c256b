"""Logins as devices have them, behind OpenSSH's own server: other shells, startup files that print, odd homes."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mpa_edge.bench.host.device_run import python_fault
from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.process import LinkError
from mpa_edge.bench.transports.ssh import SshTransport
from mpa_edge.errors import MpaError
from tests.bench.peers import program, sshd

pytestmark = pytest.mark.peer

Log = Callable[..., SshTransport]
WORDS = ["it's", 'a "b"', "$(c)", "`d`", "e\nf", "-g", "ü", "\\", "!", "!!", "~", "*", "a\tb", "%s", ""]
GREETING = "echo Welcome to my board; echo 'begins ends 0'; echo warning >&2\n"


@pytest.fixture
def log_in(tmp_path: Path) -> Iterator[Log]:
    """log_in(shell, {startup file: text}, line of sshd_config...) -> a connection."""
    with ExitStack() as stack:

        def log(shell: str, files: dict[str, str] | None = None, *lines: str, home: str = "home") -> SshTransport:
            place = tmp_path / home
            for name, text in (files or {}).items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(text)
            place.mkdir(exist_ok=True)
            peer = stack.enter_context(sshd(tmp_path / "sshd", *lines, shell=shell, home=place))
            way = connect(peer.via, ssh_config=peer.config_file)
            stack.callback(way.close)
            return way

        yield log


def works(way: SshTransport, tmp_path: Path) -> None:
    """Scripts, streams, exit codes and files of any size come through as they are."""
    assert way.root in (f"{next(tmp_path.glob('*h*me*'))}/.cache/mpa-edge/bench", "/nowhere/.cache/mpa-edge/bench")
    way.root = str(tmp_path / "root")
    way.patience_s = 0.0
    done = way.run("cat; echo no >&2; exit 255", timeout_s=10, stdin=b"\0\xff\r\nends")
    assert (done.rc, done.stdout, done.stderr) == (255, b"\0\xff\r\nends", b"no\n")
    assert way.run("exit 3", timeout_s=10).stdout == b""
    done = way.run("printf '%s\\0' " + " ".join(map(shlex.quote, WORDS)), timeout_s=10)
    assert done.stdout.decode().split("\0")[:-1] == WORDS
    for size in (100, 3_000_001):
        source, back = tmp_path / "source", tmp_path / "back"
        source.write_bytes(os.urandom(size))
        way.push(source, f"{way.root}/new\nline", timeout_s=20)
        way.pull(f"{way.root}/new\nline", back, timeout_s=20)
        assert back.read_bytes() == source.read_bytes()


ZSH, TCSH, FISH = ".zshenv", ".cshrc", ".config/fish/config.fish"
LOGINS: dict[str, tuple[str, dict[str, str]]] = {
    "bash that prints": ("bash", {".bashrc": GREETING}),
    "bash that prints at its end": ("bash", {".bashrc": "trap 'echo bye; echo ends; echo bye >&2' EXIT\n"}),
    "bash with options": (
        "bash",
        {".bashrc": "set -euC; set -o nounset; export SHELLOPTS; export TMOUT=1 CDPATH=/:~\n"},
    ),
    "bash with traces": ("bash", {".bashrc": "export SHELLOPTS; set -x\n"}),
    "bash with aliases": (
        "bash",
        {
            ".bashrc": "shopt -s expand_aliases; alias cd='echo cd' sh='echo sh' dd=false\n"
            "cat() { echo mine; }\nexport -f cat\n"
        },
    ),
    "bash without PATH": ("bash", {".bashrc": "export PATH=\n"}),
    "bash of another locale": ("bash", {".bashrc": "export LANG=tr_TR.UTF-8 LC_ALL=de_DE.UTF-8 BLOCKSIZE=1M\n"}),
    "bash with a strict umask": ("bash", {".bashrc": "umask 777\n"}),
    "bash that leaves something running": ("bash", {".bashrc": "sleep 5 & (sleep 1; echo late; sleep 9) &\n"}),
    "bash with other startup files": (
        "bash",
        {".bashrc": "echo 'echo hi; set -u; cd /' >~/env; export BASH_ENV=~/env ENV=~/env\nexport HOME=/nowhere\n"},
    ),
    "bash with a large greeting": (
        "bash",
        {".bashrc": "i=0; while [ $i -lt 20000 ]; do echo MOTD $i; i=$((i+1)); done\n"},
    ),
    "restricted bash": ("rbash", {".bashrc": GREETING}),
    "dash": ("dash", {}),
    "mksh": ("mksh", {}),
    "zsh that prints": ("zsh", {ZSH: GREETING + "setopt noclobber nounset\n"}),
    "tcsh": ("tcsh", {}),
    "tcsh that prints": (
        "tcsh",
        {TCSH: "echo Welcome; alias sh 'echo alias'; alias cd 'cd \\!*; ls'\nset noclobber\n"},
    ),
    "fish that prints": ("fish", {FISH: "echo Welcome; alias sh 'echo alias'; echo warning >&2\n"}),
}


@pytest.mark.parametrize("login", LOGINS)
def test_any_login_shell_runs_what_we_send(log_in: Log, tmp_path: Path, login: str) -> None:
    shell, files = LOGINS[login]
    works(log_in(program(shell), files), tmp_path)


def test_a_python_of_another_encoding_is_understood(log_in: Log) -> None:
    way = log_in(
        program("bash"), {".bashrc": "export PYTHONIOENCODING=utf-16 PYTHONINSPECT=1 PYTHONSTARTUP=/nowhere\n"}
    )
    assert "does not work" not in python_fault(way, "python3", "onnx")[0]


def test_a_home_with_blanks_and_umlauts(log_in: Log, tmp_path: Path) -> None:
    works(log_in(program("tcsh"), home="the ~user's höme; $(touch x)"), tmp_path)


@pytest.mark.parametrize("bashrc", ["exec 2>&1", "exec 2>/dev/null", "exec 2>&-", "exec > >(cat) 2>&1"])
def test_a_login_with_one_stream(log_in: Log, tmp_path: Path, bashrc: str) -> None:
    way = log_in(program("bash"), {".bashrc": f"{bashrc}\n"})
    (tmp_path / "source").write_bytes(bytes(1_500_000))
    way.push(tmp_path / "source", f"{tmp_path}/there", timeout_s=10)
    assert (tmp_path / "there").read_bytes() == bytes(1_500_000)
    assert way.run("cat", timeout_s=10, stdin=b"\0\xff\nends").stdout == b"\0\xff\nends"


def test_a_forced_command_that_runs_ours(log_in: Log, tmp_path: Path) -> None:
    works(log_in(program("bash"), {}, 'ForceCommand logger x; echo hello; eval "$SSH_ORIGINAL_COMMAND"'), tmp_path)


NO_LOGINS = {
    "nologin": ("/usr/sbin/nologin", "", "", "not available.*: give its user a plain shell"),
    "false": ("/bin/false", "", "", "it says nothing.*: take what ends, replaces or reads"),
    "an early end": ("bash", "exit 0\n", "", "it says nothing.*: take what ends"),
    "another shell": ("bash", "echo hi; exec cat\n", "", r"\(.*hi.*\): take what ends"),
    "an input that is taken": ("bash", "read -r line; echo $line\n", "", r"take what ends, replaces or reads"),
    "a shell that runs its input": ("bash", "exec zsh\n", "", "it says nothing"),
    "no home": ("bash", "export HOME=here\n", "", r"no usable home folder \(here\): name another with --root"),
    "no sh": ("bash", "exec /nowhere/sh\n", "", "No such file.*: install a POSIX sh"),
    "a forced command": ("bash", "", "ForceCommand echo only for backups", "only for backups.*ForceCommand"),
    "a terminal": (
        "bash",
        "",
        'ForceCommand script -qec "$SSH_ORIGINAL_COMMAND" /dev/null',
        "runs commands in a terminal",
    ),
    "sessions": ("bash", "", "MaxSessions 1", "set MaxSessions in its sshd_config to 2"),
}


@pytest.mark.parametrize("login", NO_LOGINS)
def test_a_login_that_runs_nothing_is_told_at_once(log_in: Log, login: str) -> None:
    shell, bashrc, line, says = NO_LOGINS[login]
    with pytest.raises(MpaError, match=says) as caught:
        log_in(shell if shell.startswith("/") else program(shell), {".bashrc": bashrc}, line)
    assert not isinstance(caught.value, LinkError)
    assert str(caught.value).isprintable()


def test_a_login_that_breaks_later_is_not_waited_for(log_in: Log, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mpa_edge.bench.transports.process.FIRST_WAIT_S", 0.01)
    way = log_in(program("bash"))
    (tmp_path / "home" / ".bashrc").write_text("echo broken; exit 1\n")
    with pytest.raises(MpaError, match="can be reached, but its login runs no command to its end .*broken") as caught:
        way.run("true", timeout_s=10)
    assert not isinstance(caught.value, LinkError)
    (tmp_path / "home" / ".bashrc").unlink()
    assert way.run("echo back", timeout_s=10).stdout == b"back\n"


def test_a_server_that_forwards_nothing_is_told(log_in: Log) -> None:
    way = log_in(program("bash"), {}, "AllowTcpForwarding no")
    with way.forward(9) as port, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as link:
        assert link.recv(1) == b""
    with pytest.raises(MpaError, match="forwards no ports: set AllowTcpForwarding in its sshd_config"), way.forward(9):
        pass


@pytest.mark.parametrize("part", [slice(1, None), slice(30, None), slice(0, -20), slice(0, -1)])
def test_a_script_that_was_cut_does_not_run(log_in: Log, tmp_path: Path, monkeypatch, part: slice) -> None:
    import mpa_edge.bench.transports.transport as module

    way = log_in(program("bash"))
    monkeypatch.setattr("mpa_edge.bench.transports.process.FIRST_WAIT_S", 0.01)
    real = module.call
    monkeypatch.setattr(module, "call", lambda argv, *, stdin, **given: real(argv, stdin=stdin[part], **given))
    with pytest.raises(MpaError):
        way.run(f"touch {tmp_path}/ran\ntouch {tmp_path}/ran\ntouch {tmp_path}/ran", timeout_s=10)
    assert not (tmp_path / "ran").exists()
