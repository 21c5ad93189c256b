"""What computed, by the device's lines: shares, the verdict on the timings, and warnings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mpa_edge.bench.device.protocol import JobOrder, Line, Step, to_line
from mpa_edge.bench.report.compare import compare_all
from mpa_edge.bench.report.read import read_bench
from mpa_edge.bench.report.table import render_table
from mpa_edge.bench.results.accelerators import accelerator_of, not_the_accelerator
from mpa_edge.bench.results.documents import report_of, write_documents
from mpa_edge.bench.results.lines import checked_lines
from tests.bench.results.test_documents import ALIGNED, BASE, LIMITS, bench, evidence

USED = {
    "accelerator": "openvino",
    "device": "Intel(R) Xeon(R) Processor",
    "missing": ["cuda (install onnxruntime-gpu instead of onnxruntime)"],
    "nodes": {"openvino": 530, "cpu": 5},
    "seconds": {"openvino": 0.95, "cpu": 0.05},
    "elsewhere": [("FastGelu of vision_encoder on cpu", 0.04), ("Gather of embed_tokens on cpu", 0.01)],
    "there": ["openvino", "cpu"],
    "software": False,
    "build_s": 12.5,
    "gpu_bytes": None,
}
ORDER = JobOrder(
    {"artifact": "models/artifact"}, (Step("artifact", "q"),), accelerators=("tensorrt", "cuda", "openvino", "cpu")
)


def measured(**changed: object) -> Line:
    return Line("used", "artifact", 0, USED | changed)


def test_the_record_says_what_was_asked_and_what_computed() -> None:
    found = accelerator_of(ORDER, [measured()])
    assert found is not None
    assert (found.asked, found.used, found.build_s) == (("tensorrt", "cuda", "openvino", "cpu"), "openvino", 12.5)
    assert found.there == ("openvino", "cpu")
    assert found.time_share == {"openvino": 0.95, "cpu": 0.05}
    assert found.node_share == {"openvino": 0.9907, "cpu": 0.0093}
    assert found.elsewhere == ("FastGelu of vision_encoder on cpu 4%", "Gather of embed_tokens on cpu 1%")
    assert accelerator_of(ORDER, []) is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        (
            {"seconds": {"openvino": 0.89, "cpu": 0.11}},
            ["fell back to cpu: 89% of the time on openvino: FastGelu of vision_encoder on cpu 4%, Gather"],
        ),
        ({"seconds": {"cpu": 1.0}, "elsewhere": []}, ["fell back to cpu: 0% of the time on openvino"]),
        (
            {"seconds": {"tensorrt": 0.5, "cuda": 0.3, "cpu": 0.2}, "accelerator": "tensorrt"},
            ["back to cuda and cpu: 50%"],
        ),
        ({"seconds": None, "nodes": {"cuda": 20, "cpu": 10}, "accelerator": "cuda"}, ["67% of the layers on cuda"]),
        ({"seconds": None, "nodes": None}, []),
        (
            {"accelerator": "qnn"},
            ["fell back to qnn: the device has no tensorrt and no cuda and no openvino", "fell back to"],
        ),
        ({"software": True, "device": "llvmpipe"}, ["software renderer: llvmpipe"]),
    ],
)
def test_timings_of_another_processor_do_not_count(changed: dict[str, object], expected: list[str]) -> None:
    found = not_the_accelerator(accelerator_of(ORDER, [measured(**changed)]))
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


def test_the_benchmark_has_the_verdict_and_the_table_the_share(tmp_path: Path) -> None:
    good = evidence(0.8)
    good = replace(good, order=replace(good.order, accelerators=("openvino",)))
    kept, _, _ = report_of(bench(), "0" * 64, BASE, ALIGNED, replace(good, lines=[measured(), *good.lines]), LIMITS)
    assert (kept.verdict, kept.timings) == ("holds", "valid")
    assert any(line.startswith("not on the device, openvino computed instead: cuda (") for line in kept.reasons)
    fell = measured(seconds={"openvino": 0.2, "cpu": 0.8})
    lost = report_of(bench(), "0" * 64, BASE, ALIGNED, replace(good, lines=[fell, *good.lines]), LIMITS)
    assert (lost[0].verdict, lost[0].accuracy_verdict) == ("invalid", "holds")
    assert lost[0].timings.startswith("invalid: fell back to cpu: 20% of the time on openvino")
    assert all(line.met is None for line in lost[0].budgets)
    write_documents(*lost, images=tmp_path, folder=tmp_path / "out")
    table = " ".join(render_table(read_bench(tmp_path / "out")).split())
    assert "openvino (Intel(R) Xeon(R) Processor), 20 % of the time" in table
    assert "engines built in 12.5 s" in table


@pytest.mark.parametrize(
    "values",
    [
        {"accelerator": 5},
        {"accelerator": "cpu", "seconds": {"cpu": -1.0}},
        {"accelerator": "cpu", "nodes": {str(i): 1 for i in range(50)}},
        {"accelerator": "cpu", "elsewhere": [["a"]]},
        {},
    ],
)
def test_a_line_that_is_not_the_runners_does_not_count(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(to_line(Line("used", "artifact", 0, values)))
    found = checked_lines(path, ORDER)
    assert (found.lines, len(found.cautions)) == ((), 1)


def test_a_line_of_the_runner_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(to_line(measured(device="a\nb\x1b", gpu_bytes=5)))
    (line,) = checked_lines(path, ORDER).lines
    assert line.values["device"] == "a b"
    assert accelerator_of(ORDER, [line]) == accelerator_of(ORDER, [measured(device="a b", gpu_bytes=5)])
    assert json.loads(path.read_text())["values"]["gpu_bytes"] == 5


def test_results_of_a_named_accelerator_stand_beside_the_others(tmp_path: Path) -> None:
    one = bench("jetson")
    assert one.accelerators == one.target.accelerators
    assert one.results.name == "onnx-int8"
    named = replace(one, accelerator="cuda")
    assert (named.accelerators, named.results.name) == (("cuda",), "onnx-int8-cuda")
    assert named.inputs("0") != one.inputs("0")
    good = evidence(0.8)
    good = replace(good, order=replace(good.order, accelerators=("openvino",)))
    for folder, lines in (("cpu", good.lines), ("openvino", [measured(), *good.lines])):
        made = report_of(bench(), "0" * 64, BASE, ALIGNED, replace(good, lines=lines), LIMITS)
        write_documents(*made, images=tmp_path, folder=tmp_path / folder)
    cpu, openvino = (read_bench(tmp_path / name) for name in ("cpu", "openvino"))
    assert (cpu.title, openvino.title) == ("mine: onnx-int8 on cpu", "mine: onnx-int8 on cpu (openvino)")
    pairs, alone = compare_all([cpu, openvino], [openvino, cpu])
    assert [one.before.title for one in pairs] == [one.after.title for one in pairs] == [openvino.title, cpu.title]
    assert alone == []
    assert len(compare_all([cpu], [openvino])[0]) == 1
