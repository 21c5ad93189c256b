"""Several questions at once to llama.cpp's own server, for seconds; a server that dies is replaced."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mpa_edge.bench.host.llama_server_soak import LlamaServerSoak
from mpa_edge.bench.results.lines import checked_lines
from mpa_edge.bench.results.soak import figures_of
from mpa_edge.bench.transports.transport import LocalTransport
from mpa_edge.config.target import Thermal
from tests.bench import peers
from tests.bench.llama_server import program
from tests.bench.llama_server_asked import IDS, bundle, lines, order

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(240)]
FREE = Thermal(start_below_c=None, throttle_at_c=None, cool_down_s=0)


def test_three_at_once_and_a_death_in_between(tmp_path: Path) -> None:
    device, out = LocalTransport(str(tmp_path / "device")), tmp_path / "out.jsonl"
    asked = replace(order(*IDS), soak_s=4.0, concurrency=3)

    def kill() -> None:
        peers.until(lambda: out.is_file() and sum(line.kind == "sample" for line in lines(out)) > 3, 120)
        (pid,) = (int(path.read_text()) for path in Path(device.root).glob("jobs/one/server-*/server.pid"))
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    folder = bundle().folder
    run = LlamaServerSoak(
        device,
        asked,
        bundle=folder,
        remote_bundle=str(folder),
        program=str(program(tmp_path)),
        job_root=f"{device.root}/jobs/one",
    )
    run.run(out)
    killer.join()
    found = checked_lines(out, asked)
    assert found.cautions == ()
    assert [line.kind for line in found.lines if line.kind != "sample"] == ["loaded", "failed", "loaded"]
    figures = figures_of(found.lines, {}, [], FREE)
    assert figures
    assert figures["processes"] == 2
    assert figures["seconds"] == pytest.approx(4.0, abs=1.5)
    # three wait at a time: each waits for about as long as three answers take
    at_once = figures["answers"] * figures["latency_s"].p50 / figures["seconds"]
    assert 1.5 < at_once < 4.5
    assert all(line.values["rss_bytes"] > 10e6 for line in found.lines if line.kind == "sample")
    # a rerun finds nothing to do
    before = out.read_bytes()
    run.run(out)
    assert out.read_bytes() == before
