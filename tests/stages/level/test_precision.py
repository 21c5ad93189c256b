"""Fewer bits and less memory in training: what is asked for is what happens, and what cannot be is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError
from mpa_edge.families import family_of
from mpa_edge.runs.manifest import StageClock
from mpa_edge.stages.level import precision, training
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.preflight import preflight
from mpa_edge.stages.run import device_used
from tests.families import zoo
from tests.stages.test_families import records


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        ({}, "cpu", {"weights": "float32", "computed_in": "float32"}),
        ({}, "cuda", {"weights": "bfloat16", "computed_in": "bfloat16"}),
        ({"precision": "fp32"}, "cuda", {"weights": "float32", "computed_in": "float32"}),
        ({"precision": "bf16"}, "cpu", {"weights": "float32", "computed_in": "bfloat16"}),
        ({"method": "full"}, "cuda", {"weights": "float32", "computed_in": "bfloat16"}),
        ({"quantize": "nf4"}, "cuda", {"weights": "nf4", "computed_in": "bfloat16"}),
    ],
)
def test_the_numbers_of_a_recipe(config: dict[str, Any], device: str, expected: dict[str, str]) -> None:
    assert precision.precision_used(LevelConfig(**config), device) == expected


@pytest.mark.parametrize("option", [{"method": "full"}, {"dora": True}])
def test_four_bits_are_for_plain_adapters(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="quantize needs method lora without dora"):
        LevelConfig(quantize="nf4", **option)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"level__quantize": "nf4"}, "bitsandbytes is missing: pip install 'mpa-edge[qlora]'"),
        ({"level__liger": True}, "liger-kernel is missing: pip install 'mpa-edge[liger]'"),
    ],
)
def test_a_missing_package_is_said_before_anything_runs(option, line, make_run, monkeypatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(MpaError) as caught:
        preflight(make_run(**option), ["annotate", "level"])
    assert str(caught.value) == line


def test_fused_kernels_need_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: object())
    with pytest.raises(MpaError, match="level.liger needs a GPU: --set level.liger=false"):
        precision.load_student("nowhere", LevelConfig(liger=True), "cpu")


@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_four_bits_are_for_the_language_model_alone(model_type: str) -> None:
    """By the very rule with which transformers chooses what to quantize."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.quantizers.quantizers_utils import should_convert_module

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(zoo.checkpoint(model_type)))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = {name for name in linears if should_convert_module(name, list(precision.NOT_QUANTIZED))}
    import re

    language = re.compile(family_of(model_type).target_modules(("language",)))
    assert chosen == {name for name in linears if language.fullmatch(name)}


def taught(make_run: Any, folder: Path, **options: Any) -> list[float]:
    """Losses of a short training of a tiny student."""
    run = make_run(
        student=str(zoo.checkpoint("idefics3")),
        threads=1,
        level__batch_size=4,
        level__max_steps=4,
        level__warmup_steps=0,
        level__rank=4,
        level__targets=["language", "vision"],
        level__holdout=0.0,
        **options,
    )
    chosen = Selection(records(8), (), 0)
    outcome = training.train(run, chosen, folder / "steps", folder / "adapter", StageClock(folder))
    return [entry["loss"] for entry in outcome.losses if "loss" in entry]


@pytest.mark.slow
def test_activations_computed_again_are_the_same_training(make_run, tmp_path, monkeypatch) -> None:
    plain = taught(make_run, tmp_path / "plain")
    seen: list[bool] = []
    original = training._arguments

    def arguments(*given: Any) -> Any:
        made = original(*given)
        seen.append(bool(made.activation_checkpointing))
        return made

    monkeypatch.setattr(training, "_arguments", arguments)
    again = taught(make_run, tmp_path / "again", level__gradient_checkpointing=True)
    assert seen == [True]
    assert again == pytest.approx(plain, rel=1e-5)
    rounded = taught(make_run, tmp_path / "rounded", level__precision="bf16")
    assert rounded != plain
    assert rounded == pytest.approx(plain, rel=0.1)


def test_what_auto_stood_for_is_recorded() -> None:
    used = device_used("auto")
    assert used["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert used["device_name"]
    assert int(used["torch_threads"]) >= 1
