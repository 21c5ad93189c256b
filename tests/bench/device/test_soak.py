"""A soak by the real runner: one process answers for seconds; a leak that was planted is seen, a kill is survived."""

from __future__ import annotations

import signal
import subprocess

import pytest

from mpa_edge.bench.device.protocol import JobOrder, Step
from mpa_edge.bench.results.lines import checked_lines
from mpa_edge.bench.results.soak import figures_of
from mpa_edge.config.target import Thermal
from tests.bench.bundles import job, lines_of
from tests.bench.runners import BOTH, changed_copy, ids, run, start, wait_for

pytestmark = [pytest.mark.peer, pytest.mark.slow]
FREE = Thermal(start_below_c=None, throttle_at_c=None, cool_down_s=0)


def order(bundle, soak_s: float) -> JobOrder:
    steps = tuple(Step("artifact", one) for one in ids(bundle))
    return JobOrder({"artifact": BOTH["artifact"]}, steps, threads=1, soak_s=soak_s)


def seconds(folder) -> list[float]:
    return [line.values["seconds"] for line in lines_of(folder) if line.kind == "sample"]


def test_a_process_whose_answers_leak(bundles, tmp_path) -> None:
    leak = "tokens += int(values['tokens']); said[str(len(said))] = 'x' * 300_000".replace("'", '"')
    leaky = changed_copy(
        bundles["onnx"],
        tmp_path / "leaky",
        "mpa_edge/bench/device/worker.py",
        'tokens += int(values["tokens"])',
        leak,
    )
    asked, folder = order(bundles["onnx"], 4.0), tmp_path / "job"
    assert run(leaky, job(folder, asked)) == (0, "")
    assert [line.kind for line in lines_of(folder) if line.kind != "sample"] == ["loaded", "memory", "end"]
    assert sum(seconds(folder)) == pytest.approx(4.0, abs=1.0)
    figures = figures_of(checked_lines(folder / "out.jsonl", asked).lines, {}, [], FREE)
    assert figures["memory"].verdict == "leaks"
    assert figures["changed"] == 0


def test_killed_processes_are_replaced_until_the_time_is_over(bundles, tmp_path) -> None:
    asked, folder = order(bundles["onnx"], 3.0), tmp_path / "job"
    process = start(bundles["onnx"].folder, job(folder, asked))
    wait_for(lambda: (folder / "out.jsonl").is_file() and len(seconds(folder)) > 5, 120)
    (worker,) = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-KILL", worker], check=True)
    wait_for(lambda: any(line.kind == "sample" and line.block == 1 for line in lines_of(folder)), 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = (folder / "out.jsonl").read_bytes()
    # by another runner, which asks only for the rest
    assert run(bundles["onnx"].folder, folder) == (0, "")
    assert (folder / "out.jsonl").read_bytes().startswith(before.rpartition(b"\n")[0])
    assert {line.block for line in lines_of(folder) if line.kind == "sample"} == {0, 1, 2}
    assert sum(seconds(folder)) == pytest.approx(3.0, abs=1.0)
    done = (folder / "out.jsonl").read_bytes()
    assert run(bundles["onnx"].folder, folder) == (0, "")
    assert (folder / "out.jsonl").read_bytes() == done
