"""Accelerators by name: what is here, what is missing, and no silent CPU. Option names against the providers' own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnxruntime
import pytest

from mpa_edge.config import library
from mpa_edge.config.accelerator import ACCELERATORS
from mpa_edge.errors import MpaError
from mpa_edge.vlm.onnxruntime import engines
from mpa_edge.vlm.onnxruntime.providers import CPU, KNOWN, ONE_NODE, Execution, Known, choose, devices_of
from tests.vlm.intel import INTEL

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "provider_options.json").read_text(encoding="utf-8"))


def test_every_accelerator_has_a_provider_except_those_of_llama_cpp() -> None:
    assert list(KNOWN) == [name for name in ACCELERATORS if name != "vulkan"]
    assert set(onnxruntime.get_all_providers()) >= {
        known.provider for those in KNOWN.values() for known in those if known.plugin is None
    }


def test_the_first_one_that_is_here_is_used_and_the_others_are_named() -> None:
    found = choose(["cuda", "vulkan", "cpu", "openvino"])
    assert (found.accelerator, found.providers) == ("cpu", (CPU,))
    assert found.missing == (
        "cuda (install onnxruntime-gpu instead of onnxruntime)",
        "vulkan (ONNX Runtime has none: use a gguf export)",
    )


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "qnn", "webgpu", "coreml", "xnnpack", "vulkan"])
def test_an_accelerator_that_must_be_there_and_is_not_is_one_line_with_the_fix(name: str) -> None:
    with pytest.raises(MpaError) as caught:
        choose([name])
    assert str(caught.value).startswith(f"not on this device: {name} (")
    assert str(caught.value).endswith("; or choose --accelerator cpu")
    assert "\n" not in str(caught.value)


def test_a_plugin_without_a_device_is_not_there() -> None:
    """OpenVINO's takes devices of Intel only."""
    if INTEL:
        assert choose(["openvino"]).devices
    else:
        with pytest.raises(MpaError, match="openvino \\(onnxruntime_ep_openvino finds no device\\)"):
            choose(["openvino"])


def test_a_provider_that_does_not_start_is_no_silent_cpu() -> None:
    """onnxruntime itself warns, and computes on the CPU, as where the CUDA provider finds no driver."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    silent = onnxruntime.InferenceSession(ONE_NODE, options, providers=["CUDAExecutionProvider", CPU])
    assert silent.get_providers() == [CPU]
    with pytest.raises(MpaError, match="CUDAExecutionProvider is installed and does not start: check its driver"):
        Execution("cuda", ("CUDAExecutionProvider", CPU)).session(ONE_NODE, options)
    assert devices_of(Known("CUDAExecutionProvider", "")) == ()


@pytest.mark.parametrize("name", library.names("targets"))
def test_options_of_targets_are_the_providers_own(name: str) -> None:
    for provider, options in library.load_target(name).provider_options.items():
        assert set(options) <= set(GOLDEN["options"][provider])


def test_options_for_engines_are_the_providers_own() -> None:
    shapes = engines.profile_shapes([("x", ["batch_size", "past_sequence_length"])], 64)
    assert shapes == {
        "trt_profile_min_shapes": "x:1x0",
        "trt_profile_opt_shapes": "x:1x32",
        "trt_profile_max_shapes": "x:1x64",
    }
    for provider in engines.BUILDERS:
        made = engines.session_options(provider, Path("/e"), {}, 1, {})
        assert "/e" in "".join(made.values())
        assert set(made | (shapes if provider == engines.TENSORRT else {})) <= set(GOLDEN["options"][provider])


def test_options_of_the_target_count_more() -> None:
    own = {"load_config": '{"GPU": {"CACHE_DIR": "/mine"}}', "x": "1"}
    made = engines.session_options(engines.OPENVINO, Path("/e"), {"ov_device": "GPU.0"}, 4, own)
    assert made == {"load_config": '{"GPU": {"CACHE_DIR": "/mine"}}', "x": "1"}
    made = engines.session_options(engines.OPENVINO, None, {}, 4, {"load_config": '{"CPU": {"A": "1"}}'})
    assert made == {"load_config": '{"CPU": {"INFERENCE_NUM_THREADS": "4", "A": "1"}}'}
    own = {"trt_engine_cache_path": "/mine"}
    made = engines.session_options(engines.TENSORRT, Path("/e"), {}, 4, own)
    assert (made["trt_engine_cache_path"], made["trt_timing_cache_path"]) == ("/mine", "/e")


def test_engines_have_a_place_for_all_that_they_depend_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    driver = tmp_path / "driver"
    monkeypatch.setattr(engines, "DRIVERS", (driver,))
    first = engines.engine_folder(["export", "TensorrtExecutionProvider"])
    assert engines.engine_folder(["export", "TensorrtExecutionProvider"]) == first
    driver.write_text("Kernel Module 540.4.0")
    second = engines.engine_folder(["export", "TensorrtExecutionProvider"])
    assert second != first != engines.engine_folder(["other export", "TensorrtExecutionProvider"])
    assert engines.build_seconds(second, 9.5) == engines.build_seconds(second, 0.1) == 9.5
    os.utime(second, (1, 1))
    for i in range(engines.KEPT - 2):
        engines.engine_folder([str(i)])
    left = set(first.parent.iterdir())
    assert len(left) == engines.KEPT
    assert second not in left
    assert first in left
