"""Every scheme that ships: valid, explained, and under names that other programs know."""

from __future__ import annotations

import re

import pytest

from mpa_edge.config.library import load_scheme, names, root
from mpa_edge.exporters.publish.layout import file_name

ONNX = [name for name in names("schemes") if name.startswith("onnx-")]
# @huggingface/transformers 4.3, src/utils/dtypes.js: what its file names end in
JAVASCRIPT = {
    "fp32": "",
    "fp16": "_fp16",
    "int8": "_int8",
    "q8": "_quantized",
    "q4": "_q4",
    "q4f16": "_q4f16",
    "q2": "_q2",
}
JAVASCRIPT_HAS_NO_NAME = ("qdq8", "qdq16")


def text_of(name: str) -> str:
    return (root() / "export" / "schemes" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", names("schemes"))
def test_it_is_valid_and_has_its_file_name(name: str) -> None:
    scheme = load_scheme(name)
    assert scheme.name == name
    assert name.startswith(f"{scheme.format}-")
    assert scheme.title


@pytest.mark.parametrize("name", ONNX)
def test_the_first_lines_say_what_it_is_for(name: str) -> None:
    block = re.match(r"(?:# .+\n)+", text_of(name))
    assert block
    assert "# For: " in block[0]
    assert "# Size: " in block[0]


@pytest.mark.parametrize("name", ONNX)
def test_file_names_are_those_of_transformers_js(name: str) -> None:
    for component, precision in load_scheme(name).components.items():
        stem, _, _ = file_name("onnx", component, precision).removesuffix(".onnx").rpartition("/")[2].partition("_")
        assert stem in ("vision", "embed", "decoder")
        if precision not in JAVASCRIPT_HAS_NO_NAME:
            assert file_name("onnx", component, precision).endswith(f"{JAVASCRIPT[precision]}.onnx")


def test_the_schemes_that_are_promised() -> None:
    assert {f"onnx-{kind}" for kind in ("fp32", "fp16", "int8", "q4-q8", "q4", "q4f16", "qdq", "q2")} == set(ONNX)


def test_two_bits_are_a_control_and_nothing_else_is() -> None:
    controls = {name for name in names("schemes") if load_scheme(name).control}
    assert controls == {name for name in names("schemes") if "q2" in name}


def test_vision_is_never_cut_to_four_bits() -> None:
    # measured on the built-in student: it costs a third of the gain
    assert {load_scheme(name).components["vision"] for name in ONNX} <= {"fp32", "fp16", "int8", "qdq8"}


@pytest.mark.parametrize("name", ONNX)
def test_no_decoder_has_one_scale_for_all_activations(name: str) -> None:
    # measured on trained weights: perplexity rises by 69 %, and without limit on a CPU that has no VNNI
    assert load_scheme(name).components["decoder"] not in ("int8", "qdq8")


def test_fewer_bits_are_allowed_more() -> None:
    allowed = [load_scheme(f"onnx-{kind}").tolerance.kl_max for kind in ("fp32", "fp16", "int8", "q4", "q2")]
    assert allowed == sorted(set(allowed))
