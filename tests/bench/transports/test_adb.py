"""Against Android's own adbd, in a network namespace, through Debian's adb."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_edge.bench.transports.adb import AdbTransport
from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.process import LinkError
from mpa_edge.errors import MpaError
from tests.bench.peers import AdbPeer, adbd

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbPeer]:
    with adbd(tmp_path_factory.mktemp("adbd")) as peer:
        yield peer


@pytest.fixture
def way(device: AdbPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbTransport]:
    for key, value in device.env.items():
        monkeypatch.setenv(key, value)
    way = connect(device.via, root=f"{tmp_path}/it's a; root")
    way.patience_s = 0.0
    yield way
    way.close()


def test_run_push_pull(way: AdbTransport, device: AdbPeer, tmp_path: Path) -> None:
    assert way.name == f"adb {device.serial}"
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
    assert way.run(f"printf %s {'x' * 50_000} | wc -c", timeout_s=5).stdout.strip() == b"50000"


def test_the_only_device_needs_no_name(way: AdbTransport, device: AdbPeer) -> None:
    other = connect("adb://")
    assert (other.name, other.root) == (way.name, "/data/local/tmp/mpa-edge")


def test_a_device_that_is_not_there(way: AdbTransport, device: AdbPeer) -> None:
    with pytest.raises(MpaError, match=f"adb sees no device emulator-1 \\({device.serial}\\)"):
        connect("adb://emulator-1")


@pytest.mark.parametrize(
    ("serial", "says"),
    [
        ("{address}:9", r"\(.*refused.*\): enable debugging over the network"),
        ("nowhere.invalid:5555", r"\(.*resolve.*\): check the name, or write its address"),
    ],
)
def test_why_a_device_on_the_network_is_not_there(way: AdbTransport, device: AdbPeer, serial: str, says: str) -> None:
    with pytest.raises(MpaError, match=says) as caught:
        connect(f"adb://{serial.format(address=device.address)}")
    assert str(caught.value).isprintable()


def serve_once(device: AdbPeer) -> subprocess.Popen:
    """Somebody on the device who says hello on port 8123."""
    code = "import socket\nlistener = socket.create_server(('127.0.0.1', 8123))\nprint(flush=True)\n"
    code += "while True:\n    listener.accept()[0].sendall(b'hello')"
    argv = ["ip", "netns", "exec", device.link, "python3", "-c", code]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE)
    server.stdout.readline()
    return server


def ask(port: int) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return connection.recv(100)


def test_a_port_leads_there_also_after_the_adb_server_was_killed(way: AdbTransport, device: AdbPeer) -> None:
    server = serve_once(device)
    try:
        with way.forward(8123) as port:
            assert ask(port) == b"hello"
            device.kill_server()
            with pytest.raises(LinkError, match=f"device {device.serial} does not answer"):
                way.run("true", timeout_s=10)
            assert way.run("echo back", timeout_s=10).stdout == b"back\n"
            assert ask(port) == b"hello"
    finally:
        server.kill()
        server.wait()


def test_a_device_that_restarts_is_found_again(way: AdbTransport, device: AdbPeer) -> None:
    device.kill()
    with pytest.raises(LinkError):
        way.run("true", timeout_s=10)
    with pytest.raises(LinkError):
        way.run("true", timeout_s=10)
    device.start()
    assert way.run("echo back", timeout_s=10).stdout == b"back\n"


def test_a_black_hole_is_noticed(way: AdbTransport, device: AdbPeer) -> None:
    way.run("true", timeout_s=10)
    device.cut()
    started = time.monotonic()
    try:
        with pytest.raises(LinkError, match="did not answer within 2 s"):
            way.run("true", timeout_s=2)
        assert time.monotonic() - started < 3
    finally:
        device.cut(False)
    assert way.run("echo back", timeout_s=20).stdout == b"back\n"
