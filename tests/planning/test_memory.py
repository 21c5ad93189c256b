"""Bytes by hand, and what each option of training saves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.planning.memory import (
    LIBRARIES_BYTES,
    answering_bytes,
    kept,
    largest_that_fits,
    passing,
    training_bytes,
    tuned,
)
from mpa_edge.planning.model_specs import model_spec
from mpa_edge.planning.records import device_file
from mpa_edge.planning.roofline import Batch, Machine, Tuned
from tests.planning.test_roofline import IMAGE, LANGUAGE, SMALL, VISION

BIG = model_spec("Qwen/Qwen2-VL-2B-Instruct").shapes


def test_numbers_of_a_layer_by_hand() -> None:
    assert kept(VISION) == 2 * (8 * 8 + 3 * 8 + 4 * 8 + 2 * 16)
    assert kept(LANGUAGE) == 3 * (8 * 10 + 3 * 12 + 4 * 6 + 4 * 20)
    assert kept(LANGUAGE, checkpointing=True) == 3 * 10 + kept(LANGUAGE) / 3
    assert passing(VISION) == 4 * 8 + max(24, 32)


def test_an_adapter_by_hand() -> None:
    # q, o: 10 + 12 each; k, v: 10 + 6 each; three matrices of 10 + 20
    assert tuned(SMALL, LevelConfig(rank=4)).parameters == 4 * 3 * (2 * 22 + 2 * 16 + 3 * 30)
    assert tuned(SMALL, LevelConfig(method="full")).parameters == SMALL.parameters


@pytest.mark.slow
def test_peft_trains_as_many() -> None:
    from peft import LoraConfig as Lora
    from peft import get_peft_model

    from mpa_edge.families import family_of
    from mpa_edge.vlm import resolve
    from mpa_edge.vlm.transformers import checkpoint

    level = LevelConfig(rank=8, targets=("language", "vision", "connector"))
    model = checkpoint.load_model(resolve("nursery:student"), "cpu")
    targets = family_of("idefics3").target_modules(level.targets)
    trained = get_peft_model(model, Lora(r=8, target_modules=targets)).num_parameters(only_trainable=True)
    assert tuned(model_spec("nursery:student").shapes, level).parameters == pytest.approx(trained, rel=0.001)


def test_training_by_hand() -> None:
    level, what = LevelConfig(), tuned(SMALL, LevelConfig())
    sample = 5 * kept(LANGUAGE) * 4 + 8 * passing(VISION) * 4 + 5 * 50 * 12 + 3 * 64 * 4
    held = LIBRARIES_BYTES["cpu"] + 4 * SMALL.parameters + 16 * what.parameters
    assert training_bytes(SMALL, IMAGE, 5, 3, what, level, "cpu") == held + 3 * sample


def test_what_the_weights_take() -> None:
    def weights(**changes: object) -> float:
        level = LevelConfig(**changes)
        what = Tuned(0, full=level.method == "full", sees=False)
        return training_bytes(BIG, IMAGE, 0, 0, what, level, "gpu") - LIBRARIES_BYTES["gpu"]

    assert weights() == 2 * BIG.parameters
    assert weights(method="full") == 4 * BIG.parameters
    assert weights(precision="fp32") == 4 * BIG.parameters
    rest = BIG.parameters - BIG.language.matrices
    assert weights(quantize="nf4") == pytest.approx(0.515875 * BIG.language.matrices + 4 * rest)


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"liger": True}])
def test_options_save_memory(option: dict[str, bool]) -> None:
    plain, other = LevelConfig(), LevelConfig(**option)
    need = [training_bytes(BIG, IMAGE, 1000, 8, tuned(BIG, level), level, "gpu") for level in (plain, other)]
    assert need[1] < need[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 5000))
def test_the_largest_that_fits(size: int, limit: int) -> None:
    found = largest_that_fits(size, float, limit)
    assert found in {size >> n for n in range(13)}
    assert found <= limit
    assert found == size or 2 * found + 1 > limit


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 512), st.integers(1, 4000), st.sampled_from(["cpu", "a100"]))
def test_more_rows_take_more(rows: int, prefix: int, name: str) -> None:
    device = device_file().devices[name]
    machine = Machine(name, device, device_file().efficiency[device.kind])
    few, more = (answering_bytes(BIG, IMAGE, Batch(n, 1, prefix, 20, 30, 20), machine) for n in (rows, rows + 1))
    assert BIG.parameters * 2 < few <= more
