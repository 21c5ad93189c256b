"""The real runner with OpenVINO's plugin: engines and the proof of use have a process of their own, once a model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mpa_edge.bench.results.accelerators import accelerator_of, not_the_accelerator
from mpa_edge.bench.results.lines import checked_lines
from tests.bench.bundles import image_questions, job, lines_of, plain_order, small
from tests.bench.runners import everything, run
from tests.vlm import planted

pytestmark = [pytest.mark.peer, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runner's processes keep engines."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_both_models_are_prepared_once_and_the_record_proves_what_computed(bundles, tmp_path) -> None:
    order = everything(bundles["onnx"], accelerators=("cuda", "openvino", "cpu"))
    folder = job(tmp_path / "job", order)
    assert run(bundles["onnx"].folder, folder) == (0, "")
    lines = lines_of(folder)
    assert [(line.kind, line.variant) for line in lines[:3]] == [
        ("used", "artifact"),
        ("used", "base"),
        ("loaded", "artifact"),
    ]
    assert lines[2].values["backend"] == "OpenVINOExecutionProvider"
    assert len(list((tmp_path / "home" / ".cache" / "mpa-edge" / "engines").glob("*/built.json"))) == 1  # same weights
    found = accelerator_of(order, checked_lines(folder / "out.jsonl", order).lines)
    assert found is not None
    assert found.there == ("openvino", "cpu")
    assert (found.used, found.software, found.gpu_memory_bytes) == ("openvino", False, None)
    assert found.missing == ("cuda (install onnxruntime-gpu instead of onnxruntime)",)
    assert found.build_s == lines[1].values["build_s"] > 0
    # on a busy machine the lookup of 0.1 ms may wait for a core
    assert (found.time_share or {})["openvino"] > 0.5
    before = (folder / "out.jsonl").read_bytes()
    assert run(bundles["onnx"].folder, folder) == (0, "")
    assert (folder / "out.jsonl").read_bytes() == before


def test_an_operator_left_to_the_cpu_makes_the_timings_invalid(tmp_path) -> None:
    export = planted.with_operator(tmp_path / "planted", "FastGelu", 30_000_000)
    bundle = small(tmp_path, artifact=export)
    order = replace(plain_order(image_questions(tmp_path / "images", ["a.png"])), threads=1, accelerators=("openvino",))
    folder = job(tmp_path / "job", order)
    assert run(bundle.folder, folder) == (0, "")
    (reason,) = not_the_accelerator(accelerator_of(order, checked_lines(folder / "out.jsonl", order).lines))
    assert re.match(r"fell back to cpu: \d+% of the time on openvino: FastGelu of vision_encoder on cpu \d+%", reason)


def test_what_must_compute_and_is_not_there_ends_the_job_with_its_name(bundles, tmp_path) -> None:
    folder = job(tmp_path / "job", everything(bundles["onnx"], accelerators=("tensorrt",)))
    assert run(bundles["onnx"].folder, folder)[0] == 1
    (first, *_) = lines_of(folder)
    assert first.kind == "failed"
    assert first.values["reason"].startswith("not on this device: tensorrt (install onnxruntime-gpu")
    assert not any(line.kind == "answer" for line in lines_of(folder))


def test_the_target_has_a_say(bundles, tmp_path) -> None:
    wrong = {"OpenVINOExecutionProvider": {"load_config": json.dumps({"CPU": {"NO_SUCH": "1"}})}}
    order = everything(bundles["onnx"], accelerators=("openvino",), provider_options=wrong)
    folder = job(tmp_path / "job", replace(order, steps=order.steps[:1]))
    assert run(bundles["onnx"].folder, folder)[0] == 1
    assert "openvino refuses" in lines_of(folder)[0].values["reason"]
    assert "NO_SUCH" in lines_of(folder)[0].values["reason"]


def test_a_runtime_without_a_profile_still_answers(bundles, tmp_path) -> None:
    order = everything(bundles["gguf"], accelerators=("openvino", "cpu"))
    folder = job(tmp_path / "job", replace(order, steps=order.steps[:1]))
    assert run(bundles["gguf"].folder, folder)[0] == 0
    assert any(line.kind == "answer" for line in lines_of(folder))
