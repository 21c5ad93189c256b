from __future__ import annotations

from typing import Any

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.check import check_gguf_possible
from mpa_edge.runs.files import read_json
from tests.exporters.gguf.made import STUDENT, source_of

TILES = {"do_image_splitting": True, "size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}}
LLAMA = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536}
SMOL = {"model_type": "smolvlm", "text_config": LLAMA, "vision_config": {}}
QWEN = {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 64}, "vision_config": {"depth": 32}}
DEEP = {
    "model_type": "qwen3_vl",
    "text_config": {"hidden_size": 64, "num_hidden_layers": 28},
    "vision_config": {"depth": 24, "deepstack_visual_indexes": [5, 11, 17]},
}
SIGLIP = {"model_type": "siglip_vision_model"}
LLAVA = {
    "model_type": "llava",
    "text_config": LLAMA,
    "vision_config": SIGLIP,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "full",
}
DELTA = {"model_type": "qwen3_5", "text_config": {"hidden_size": 64}, "vision_config": {"depth": 12}}
GEMMA = {"model_type": "gemma4", "text_config": {"hidden_size": 64}, "vision_config": {}}
INTERNVL = {"model_type": "internvl", "text_config": LLAMA, "vision_config": {"norm_type": "layer_norm"}}


def check(config: dict[str, Any], processor: dict[str, Any] = TILES, **options: Any) -> None:
    check_gguf_possible(config, processor, **options)


@pytest.mark.parametrize(
    "config", [SMOL, QWEN, DEEP, DELTA, GEMMA, LLAVA, INTERNVL], ids=lambda config: config["model_type"]
)
def test_what_llama_cpp_runs_is_let_through(config: dict[str, Any]) -> None:
    check(config)


def test_the_built_in_student_is_let_through() -> None:
    source = source_of(STUDENT)
    check_gguf_possible(source.config, source.image_values(None), read_json(STUDENT / "tokenizer.json"))


def vision(config: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return config | {"vision_config": config["vision_config"] | changed}


def text(**changed: Any) -> dict[str, Any]:
    return SMOL | {"text_config": LLAMA | changed}


REFUSED = {
    "family": ({"model_type": "blip-2"}, TILES, "GGUF covers idefics3, .*, not model type 'blip-2'"),
    "language": (text(model_type="mamba"), TILES, "no language model of type 'mamba'"),
    "rows": (text(hidden_size=100), TILES, "hidden_size 100 is not a multiple of 32.*: use gguf-f16"),
    "FFN rows": (text(intermediate_size=1000), TILES, "intermediate_size 1000 is not a multiple of 32"),
    "no splitting": (SMOL, TILES | {"do_image_splitting": False}, "splits images, and this processor does not"),
    "one tile": (SMOL, TILES | {"size": {"longest_edge": 512}}, "longest_edge 512 leaves one tile of 512"),
    "shallow Qwen": (vision(QWEN, depth=2), {}, "needs 3 vision layers of a Qwen model, this has 2"),
    "odd windows": (vision(QWEN, fullatt_block_indexes=[7, 15, 24]), {}, r"not at \[7, 15, 24\]"),
    "CLIP tower": (vision(LLAVA, model_type="clip_vision_model"), {}, "loses a patch of vision tower 'clip_vision"),
    "class token": (LLAVA | {"vision_feature_select_strategy": "default"}, {}, "takes all patches of one vision layer"),
    "two layers": (LLAVA | {"vision_feature_layer": [-2, -1]}, {}, "takes all patches of one vision layer"),
    "connector": (LLAVA | {"projector_hidden_act": "relu"}, {}, "connector computes gelu, and projector_hidden_act is"),
    "DeepStack": (
        DEEP | {"text_config": {"num_hidden_layers": 3}},
        {},
        "more language layers than the 3 that DeepStack",
    ),
    "RMS tower": (vision(INTERNVL, norm_type="rms_norm"), {}, "InternVL's 300M vision tower"),
    "QK norm": (vision(INTERNVL, use_qk_norm=True), {}, "InternVL's 300M vision tower"),
}


@pytest.mark.parametrize(("config", "processor", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_runs_wrongly_is_refused_with_the_reason(
    config: dict[str, Any], processor: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MpaError, match=reason) as caught:
        check(config, processor)
    assert "use " in str(caught.value).rpartition(":")[2]


def test_regular_windows_are_let_through() -> None:
    check(vision(QWEN, fullatt_block_indexes=[7, 15, 23, 31]))


def test_a_hybrid_does_not_care_about_the_vision_of_llama_cpp() -> None:
    check(SMOL, TILES | {"do_image_splitting": False}, vision=False)
    check(vision(LLAVA, model_type="clip_vision_model"), vision=False)


def test_half_precision_takes_rows_of_any_length() -> None:
    check(text(hidden_size=100), precisions=["f16", "f16"])


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(MpaError, match="no pre-tokenizer with the rules of this tokenizer.json: use an onnx scheme"):
        check(SMOL, tokenizer={"pre_tokenizer": {"type": "Whitespace"}})
