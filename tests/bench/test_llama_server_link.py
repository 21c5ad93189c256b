"""A llama-server behind a real sshd and a real adbd: where the link breaks, no question is lost or repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.transport import Transport
from tests.bench.llama_server import program
from tests.bench.llama_server_asked import IDS, answers, ask, bundle, lines, order
from tests.bench.peers import AdbPeer, SshPeer, adbd, sshd, until

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(120)]
REPETITIONS = 4


@pytest.fixture(scope="module")
def ssh_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshPeer]:
    with sshd(tmp_path_factory.mktemp("sshd")) as peer:
        yield peer


@pytest.fixture(scope="module")
def adb_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbPeer]:
    with adbd(tmp_path_factory.mktemp("adbd")) as peer:
        yield peer


def measured(transport: Transport, tmp_path: Path, breaks: Callable[[], None], after: int = 5) -> Path:
    """The answers to many questions, while something happens behind the fifth."""
    bundle()
    out = tmp_path / "out.jsonl"

    def work() -> None:
        until(lambda: out.exists() and len(answers(out)) >= after)
        breaks()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ask(transport, order(*IDS, repetitions=REPETITIONS), out, program(tmp_path))
    finally:
        thread.join()
        transport.close()
    assert answers(out) == [step.key for step in order(*IDS, repetitions=REPETITIONS).steps]
    assert not list(Path(transport.root).glob("jobs/one/server-*"))
    return out


def test_a_broken_ssh_keeps_the_server(ssh_device: SshPeer, tmp_path: Path) -> None:
    def breaks() -> None:
        ssh_device.kill()
        time.sleep(1)
        ssh_device.start()

    transport = connect(ssh_device.via, root=f"{tmp_path}/it's a; root", ssh_config=ssh_device.config_file)
    out = measured(transport, tmp_path, breaks)
    assert [line.kind for line in lines(out)].count("loaded") == 1
    assert lines(out)[0].values["load_s"] < 20


@pytest.mark.parametrize("fault", ["adb server killed", "cable out"])
def test_a_broken_adb_keeps_the_server(
    adb_device: AdbPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for key, value in adb_device.env.items():
        monkeypatch.setenv(key, value)

    def cable() -> None:
        adb_device.cut()
        time.sleep(5)
        adb_device.cut(False)

    breaks = cable if fault == "cable out" else adb_device.kill_server
    out = measured(connect(adb_device.via, root=f"{tmp_path}/it's a; root"), tmp_path, breaks)
    assert [line.kind for line in lines(out)].count("loaded") == 1
