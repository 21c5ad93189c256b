"""Against OpenSSH's own server, on loopback."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_edge.bench.transports import ssh
from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.process import LinkError
from mpa_edge.bench.transports.ssh import SshTransport
from mpa_edge.errors import MpaError
from tests.bench.peers import SshPeer, free_port, run, sshd, until

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshPeer]:
    with sshd(tmp_path_factory.mktemp("sshd")) as peer:
        yield peer


@pytest.fixture
def way(server: SshPeer, tmp_path: Path) -> Iterator[SshTransport]:
    way = connect(server.via, ssh_config=server.config_file, root=f"{tmp_path}/it's a; root")
    way.patience_s = 0.0
    yield way
    way.close()


def masters(server: SshPeer) -> list[int]:
    """Connections of ours, by the configuration that they name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"ssh" and server.config_file.encode() in words:
            found.append(int(path.parent.name))
    return found


def test_run_push_pull(way: SshTransport, tmp_path: Path) -> None:
    assert way.name == "ssh device"
    done = way.run("cat; echo no >&2; exit 255", timeout_s=10, stdin=b"\0\xff\r\n")
    assert (done.rc, done.stdout, done.stderr) == (255, b"\0\xff\r\n", b"no\n")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(5_000_000))
    way.push(source, f"{way.root}/new\nline", timeout_s=20)
    way.pull(f"{way.root}/new\nline", back, timeout_s=20)
    assert back.read_bytes() == source.read_bytes()
    words = ["it's", 'a "b"', "$(c)", "`d`", "e\nf", "-g", "ü", "\\", "!"]
    done = way.run("printf '%s\\0' " + " ".join(map(shlex.quote, words)), timeout_s=10)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_the_root_is_in_the_home_there(server: SshPeer) -> None:
    way = connect(f"{server.via}:{server.port}", ssh_config=server.config_file)
    assert way.root == f"{Path.home()}/.cache/mpa-edge/bench"
    way.close()


def test_close_leaves_nothing(server: SshPeer) -> None:
    way = connect(server.via, ssh_config=server.config_file)
    folder = way._folder
    assert masters(server)
    assert folder.is_dir()
    way.close()
    way.close()
    assert not masters(server)
    assert not folder.exists()


def test_a_client_that_is_killed_leaves_no_connection(server: SshPeer) -> None:
    code = "import sys, time; from mpa_edge.bench.transports.connect import connect\n"
    code += "connect('ssh://device', ssh_config=sys.argv[1]); print('up', flush=True); time.sleep(60)"
    client = subprocess.Popen([sys.executable, "-c", code, server.config_file], stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "up\n"
    assert masters(server)
    client.kill()
    client.wait()
    until(lambda: not masters(server))


def echo_server(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.sendall(connection.recv(100))
        connection.close()


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"hello")
        return connection.recv(100)


def test_a_port_leads_there_also_after_the_server_was_killed(server: SshPeer, way: SshTransport) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo_server, args=(listener,), daemon=True).start()
    with way.forward(listener.getsockname()[1]) as port:
        assert ask(port) == b"hello"
        server.kill()
        with pytest.raises(LinkError, match="device cannot be reached"):
            way.run("true", timeout_s=10)
        server.start()
        assert way.run("echo back", timeout_s=10).stdout == b"back\n"
        assert ask(port) == b"hello"
    with pytest.raises(OSError):
        ask(port)
    listener.close()


def test_a_server_killed_in_the_middle_is_a_cut_link(server: SshPeer, way: SshTransport) -> None:
    threading.Timer(0.5, server.kill).start()
    with pytest.raises(LinkError):
        way.run("sleep 20", timeout_s=30)
    server.start()


def trust(server: SshPeer) -> None:
    """What a user does who has compared the fingerprint."""
    key = run("ssh-keyscan", "-p", str(server.port), "127.0.0.1")
    (server.folder / "known_hosts").write_text(key)


def test_an_unknown_host_key_is_refused_until_added(server: SshPeer) -> None:
    (server.folder / "known_hosts").unlink()
    with pytest.raises(MpaError, match="verification failed.*run ssh device by hand once, compare") as caught:
        connect(server.via, ssh_config=server.config_file)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, LinkError)
    assert not (server.folder / "known_hosts").exists()
    trust(server)
    connect(server.via, ssh_config=server.config_file).close()


def test_a_changed_host_key_is_refused_until_changed(server: SshPeer) -> None:
    server.kill()
    server.new_host_key()
    server.start()
    with pytest.raises(MpaError, match=r"verification failed.*ssh-keygen -R device"):
        connect(server.via, ssh_config=server.config_file)
    trust(server)
    connect(server.via, ssh_config=server.config_file).close()


def test_a_login_that_is_refused(server: SshPeer) -> None:
    keys = server.folder / "authorized_keys"
    kept = keys.read_text()
    keys.write_text("")
    try:
        with pytest.raises(
            MpaError, match=r"\(.*Permission denied .*\): install your key there with ssh-copy-id device"
        ):
            connect(server.via, ssh_config=server.config_file)
    finally:
        keys.write_text(kept)


FAR = {
    "ssh://nowhere.invalid": r"\(ssh: Could not resolve .*\): check the name",
    "ssh://127.0.0.1:{port}": r"\(.*Connection refused\): start its ssh server",
    "ssh://127.0.0.1:{http}": r"\(.*\): check the port, and the server's log there: it hangs up on us",
    "ssh://127.0.0.1:{silent}": r"\(.*timed out.*\): check its power, its address and firewalls",
}


@pytest.mark.parametrize("via", FAR)
def test_each_failure_of_the_link_has_its_fix(server: SshPeer, via: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ssh.OPTIONS, "ConnectTimeout", 1)
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=hang_up, args=(http,), daemon=True).start()
        ports = {"port": free_port(), "http": http.getsockname()[1], "silent": silent.getsockname()[1]}
        with pytest.raises(MpaError, match=FAR[via]) as caught:
            connect(via.format(**ports), ssh_config=server.config_file)
    assert str(caught.value).isprintable()
    assert not isinstance(caught.value, LinkError)


def hang_up(listener: socket.socket) -> None:
    """A web server, for ssh."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()


def test_a_key_that_changes_later_is_not_waited_for(server: SshPeer, way: SshTransport) -> None:
    way.patience_s = 60.0
    assert way.run("echo 1", timeout_s=10).stdout == b"1\n"
    server.kill()
    server.new_host_key()
    server.start()
    began = time.monotonic()
    with pytest.raises(MpaError, match="ssh-keygen -R device") as caught:
        way.run("true", timeout_s=10)
    assert not isinstance(caught.value, LinkError)
    assert time.monotonic() - began < 20
    trust(server)


def test_a_configuration_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("NoSuchWord yes\n")
    with pytest.raises(MpaError, match="onfiguration option.*: fix that line of the ssh configuration"):
        connect("ssh://device", ssh_config=str(tmp_path / "config"))
