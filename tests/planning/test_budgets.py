"""Budgets against public measurements: what its author calls good is within them, a bad build is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.config.library import load_target, names
from mpa_edge.config.target import Target
from mpa_edge.planning.budgets import Work, limits, work_of
from mpa_edge.planning.model_specs import ModelSpec, model_spec

SMALL, LARGE, GEMMA = "HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "google/gemma-4-E2B-it"
BUS = (810, 1080)
"""The image of the measurement on the Orin Nano."""


def work(model: str, target: str, language_bytes: float = 0, size: tuple[int, int] = (512, 512)) -> Work:
    files = {"language": round(language_bytes)} if language_bytes else {}
    found = load_target(target)
    return work_of(model_spec(model), [size], found, files, found.context_tokens)


def text_model(layers: int, read_bytes: float) -> Work:
    """A language model alone, of which only the layers and the bytes are known."""
    made = work(SMALL, "cpu")
    language = replace(made.shapes.language, layers=layers)
    return replace(made, shapes=replace(made.shapes, language=language), token_bytes=read_bytes)


ORIN, AGX, PI = "jetson-orin-nano-8gb", "jetson-agx-orin", "raspberry-pi-5"
# github.com/hokwangchoi/jetson-orin-nano-benchmarks: Cosmos-Reason2-2B, a Qwen3-VL-2B, in 4 bits (1.11 GB)
COSMOS = work(LARGE, ORIN, 1.11e9)
# ggml-org/llama.cpp#26484 (GB and tok/s of one model of 24 layers); as good at any size, so as many bytes a second
PI_BYTES_PER_S = 10.2e9


@pytest.mark.parametrize(
    ("target", "asked", "tokens_per_s", "meets"),
    [
        pytest.param(ORIN, COSMOS, 38, True, id="2B, llama.cpp"),
        pytest.param(ORIN, COSMOS, 56, True, id="2B, vLLM"),
        pytest.param(ORIN, COSMOS, 60, True, id="2B, TensorRT Edge-LLM"),
        # the same bytes a second as llama.cpp above
        pytest.param(ORIN, work(LARGE, ORIN, 3.44e9), 38 * 1.11 / 3.44, False, id="2B in f16"),
        pytest.param(ORIN, text_model(30, 101e6), 165, True, id="SmolLM2-135M, smolhub.com, 25 W"),
        pytest.param(ORIN, text_model(16, 0.73e9), 54.1, True, id="LFM2.5-1.2B, smolhub.com, 25 W"),
        # github.com/nvidia-holoscan/holohub/issues/170
        pytest.param(AGX, text_model(32, 3.83e9), 22.5, True, id="7B in 4 bits, iGPU"),
        pytest.param(AGX, text_model(40, 7.37e9), 13.3, True, id="13B in 4 bits, iGPU"),
        pytest.param(AGX, text_model(80, 38.9e9), 3.0, True, id="70B in 4 bits, iGPU"),
        pytest.param(AGX, text_model(32, 3.83e9), 1.53, False, id="7B in 4 bits, on the CPU by mistake"),
        *(
            pytest.param(PI, text_model(24, size * 1e9), speed, True, id=f"{size} GB, llama.cpp")
            for size, speed in ((0.339, 30.39), (0.355, 28.39), (0.398, 25.77), (0.420, 23.23), (0.531, 19.87))
        ),
        # bytes of SmolVLM-256M's exports: docs/real.json
        pytest.param(PI, work(SMALL, PI, 125e6), PI_BYTES_PER_S / 125e6, True, id="256M in q4_k_m"),
        pytest.param(PI, work(SMALL, PI, 175e6), PI_BYTES_PER_S / 175e6, True, id="256M in q8_0"),
        pytest.param(PI, work(SMALL, PI, 327e6), PI_BYTES_PER_S / 327e6, False, id="256M in f16"),
        pytest.param(PI, work(SMALL, PI, 656e6), PI_BYTES_PER_S / 656e6, False, id="256M in f32"),
        # LiteRT-LM's own figures: 1.5 GB of memory on a Pi 5, and the CPU of a Galaxy S26 Ultra, a faster phone
        pytest.param(PI, replace(work(GEMMA, PI), token_bytes=1.3e9), 8, True, id="Gemma 4 E2B, LiteRT-LM"),
        pytest.param("android-flagship", replace(work(GEMMA, PI), token_bytes=1.3e9), 47, True, id="E2B, S26 Ultra"),
    ],
)
def test_decoding_that_was_measured(target: str, asked: Work, tokens_per_s: float, meets: bool) -> None:
    limit = limits(load_target(target), asked)["tokens_per_s"]
    assert (tokens_per_s >= limit.value) == meets, limit


def test_a_first_token_that_was_measured() -> None:
    limit = limits(load_target(ORIN), work(LARGE, ORIN, 1.11e9, BUS))["ttft_s"].value
    # TensorRT, and the slowest first image of llama.cpp
    assert 0.42 < 3.0 < limit
    # at most: six Cortex-A78AE at 1.5 GHz, 64 8-bit operations a cycle
    on_the_cpu = work(LARGE, ORIN, 1.11e9, BUS).operations / (6 * 64 * 1.5e9)
    assert on_the_cpu > limit


def test_memory_that_was_measured() -> None:
    # TensorRT Edge-LLM on the Orin Nano with 1.3 GB of weights: 4.3 GB; the budget allows less than the board has
    assert 4.3e9 < limits(load_target(ORIN), work(LARGE, ORIN, size=BUS))["memory_bytes"].value < 8e9
    # docs/bench.json, SmolVLM-256M and five tiles: peaks of exports with 8 and 4 bits, and of float32
    target = load_target("cpu")
    spec = model_spec(SMALL)
    five = replace(spec, image={**spec.image, "size": {"longest_edge": 1024}})
    limit = limits(target, work_of(five, [(1024, 1024)], target, {}, target.context_tokens))["memory_bytes"].value
    assert 0.675e9 < 0.816e9 < limit < 1.52e9


def test_a_model_that_does_not_fit_gets_the_share_of_the_board() -> None:
    target = load_target("phone")
    limit = limits(target, work(LARGE, "phone"))["memory_bytes"]
    assert limit.value == pytest.approx(0.2 * 6e9)
    assert limit.why == "20 % of 6 GB"


def test_the_arithmetic_is_in_the_words() -> None:
    made = limits(load_target(ORIN), replace(text_model(30, 0.48e9), token_bytes=0.48e9))
    assert made["tokens_per_s"].why == "half of 68 GB/s over 0.48 GB a token, 30 layers of 0.15 ms, and 1 ms"
    assert made["tokens_per_s"].value == pytest.approx(1 / (0.48 / 34 + 30 * 0.00015 + 0.001))


def test_limits_of_the_targets_own_count_first() -> None:
    target = load_target("cpu")
    own = target.model_copy(update={"budgets": target.budgets.model_copy(update={"ttft_s": 1.0})})
    made, before = limits(own, work(SMALL, "cpu")), limits(target, work(SMALL, "cpu"))
    assert (made["ttft_s"].value, made["ttft_s"].why) == (1.0, "set in the target")
    assert made["tokens_per_s"] == before["tokens_per_s"]
    assert list(made) == list(before) == ["memory_bytes", "ttft_s", "tokens_per_s"]
    # a model of unknown sizes has no others
    assert list(limits(own, None)) == ["ttft_s"]
    assert limits(target, None) == {}


@settings(max_examples=20)
@given(st.sampled_from([load_target(name) for name in names("targets")]), st.floats(1e6, 1e10), st.floats(1.01, 100))
def test_more_bytes_never_ask_for_more_speed(target: Target, size: float, factor: float) -> None:
    spec = model_spec(SMALL)
    few, many = (
        limits(target, work_of(spec, [(512, 512)], target, {"language": round(each)}, 2048))
        for each in (size, factor * size)
    )
    assert many["tokens_per_s"].value <= few["tokens_per_s"].value
    assert many["memory_bytes"].value >= few["memory_bytes"].value


def test_an_untied_gguf_is_not_read_in_full() -> None:
    spec: ModelSpec = model_spec(SMALL)
    target, size = load_target("cpu"), 60e6
    gguf, onnx = (
        work_of(spec, [(512, 512)], target, {part: round(size)}, 2048)  # type: ignore[dict-item]
        for part in ("language", "decoder")
    )
    read = spec.shapes.language.matrices + spec.shapes.head
    assert onnx.token_bytes - gguf.token_bytes == pytest.approx(size * (1 - read / (read + spec.shapes.head)), rel=1e-6)
