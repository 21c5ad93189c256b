"""OpenVINO's plugin on this CPU: answers, engines that are kept, what computed, graphs that it leaves or refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpa_edge.errors import MpaError
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.types import Request
from mpa_edge.vlm import load
from mpa_edge.vlm.onnxruntime.engines import build_seconds
from mpa_edge.vlm.onnxruntime.model import OnnxVLM
from mpa_edge.vlm.onnxruntime.providers import choose
from mpa_edge.vlm.onnxruntime.sessions import Graph
from tests.vlm import exported, planted
from tests.vlm.llama_exported import hybrid_folder

pytestmark = [pytest.mark.slow, pytest.mark.peer]

ASKED = Request(drawn(256, 64, seed=1), "What is the highest value?", 8)
# its own choice on some CPUs is bf16
EXACT = {"OpenVINOExecutionProvider": {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}}


@pytest.fixture(autouse=True)
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mpa-edge" / "engines"


def with_openvino(folder: Path, **given: object) -> OnnxVLM:
    return OnnxVLM(folder, name="it", threads=1, accelerators=["openvino"], **given)  # type: ignore[arg-type]


def test_the_answers_are_those_of_the_cpu_and_engines_are_built_once(engines: Path, tmp_path: Path) -> None:
    folder = exported.onnx_folder("student")
    expected, seen = OnnxVLM(folder, name="it", threads=1).trace([ASKED])[0], list[dict[str, int]]()
    for _ in range(2):
        model = with_openvino(folder, provider_options=EXACT, profile=tmp_path)
        assert model.decoder.session.get_providers()[0] == "OpenVINOExecutionProvider"
        assert model.answer([ASKED])[0].n_tokens == len(expected.tokens)
        found = model.trace([ASKED])[0]
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(found.logits, expected.logits, atol=2e-3)
        usage = model.profile_of(ASKED)
        assert (usage.accelerator, usage.missing, bool(usage.device)) == ("openvino", (), True)
        assert set(usage.nodes or {}) == set(usage.seconds or {}) == {"openvino", "cpu"}
        # on a busy machine the lookup of 0.1 ms may wait for a core
        assert (usage.seconds or {})["openvino"] > 0.5 * sum((usage.seconds or {}).values())
        assert [name for name, _ in usage.elsewhere] == ["Gather of embed_tokens on cpu"]
        assert not list(tmp_path.glob("profile*"))
        (place,) = engines.iterdir()
        assert place == model.execution.engines
        seen.append({path.name: path.stat().st_mtime_ns for path in place.glob("*.blob")})
        model.close()
    assert seen[0] == seen[1] != {}
    assert build_seconds(place, 5.0) == build_seconds(place, 1.0) == 5.0


def test_an_operator_that_it_leaves_to_the_cpu_is_found(tmp_path: Path) -> None:
    model = with_openvino(planted.with_operator(tmp_path / "export", "FastGelu", 30_000_000), profile=tmp_path)
    model.answer([ASKED])
    usage = model.profile_of(ASKED)
    seconds = usage.seconds or {}
    assert seconds["cpu"] > 0.1 * sum(seconds.values())
    name, longest_s = usage.elsewhere[0]
    assert name == "FastGelu of vision_encoder on cpu"
    assert longest_s == pytest.approx(seconds["cpu"], rel=0.2)
    assert (usage.nodes or {})["cpu"] >= 2


def test_a_graph_that_it_refuses_is_one_line(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"]),
        helper.make_node("Irfft", ["a"], ["y"], domain="com.microsoft", normalized=0, onesided=0, signal_ndim=1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (8, 8)) for name in ("x",)]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", values, out), opset_imports=opsets, ir_version=9)
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(MpaError, match=r"^openvino refuses odd.onnx \(.*\): choose another scheme") as caught:
        Graph(tmp_path / "odd.onnx", 1, choose(["openvino"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ['{"CPU": {"NO_SUCH": "1"}}', "{}}"])
def test_a_wrong_option_is_refused_and_not_ignored(config: str) -> None:
    options = {"OpenVINOExecutionProvider": {"load_config": config}}
    with pytest.raises(MpaError, match=r"load_config|NO_SUCH"):
        with_openvino(exported.onnx_folder("student"), provider_options=options)


def test_one_thread_is_one_thread(tmp_path: Path) -> None:
    """OpenVINO does not read ONNX Runtime's number of threads."""
    weight = numpy_helper.from_array(np.ones((1024, 1024), np.float32), "w")
    value, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1024]) for name in "xy")
    product = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [out], [weight])
    opsets = [helper.make_opsetid("", 20)]
    (tmp_path / "product.onnx").write_bytes(
        helper.make_model(product, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    graph = Graph(tmp_path / "product.onnx", 1, choose(["openvino"]))
    before = cpu_seconds()
    for _ in range(20):
        graph.run({"x": np.ones((2048, 1024), np.float32)})
    first, second, *_ = sorted((now - before.get(key, 0) for key, now in cpu_seconds().items()), reverse=True)
    assert second < 0.2 * first


def cpu_seconds() -> dict[int, float]:
    """Of each thread of this process."""
    return {one.id: one.user_time + one.system_time for one in psutil.Process().threads()}


def test_a_hybrid_reports_both_halves(tmp_path: Path) -> None:
    model = load(str(hybrid_folder("student")), name="it", threads=1, accelerators=["openvino"], profile=tmp_path)
    model.answer([ASKED])
    usage = model.profile_of(ASKED)  # type: ignore[attr-defined]
    assert usage.accelerator == "openvino"
    assert set(usage.seconds) == {"openvino", "cpu"}
    assert min(usage.seconds.values()) > 0
    assert usage.elsewhere[0][0] == "language model on cpu"
    model.close()
