"""The census names what is missing from an export: tensors, a part of the model, or the adapter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpa_edge.exporters.verify.adapter import Adapter
from mpa_edge.exporters.verify.census import faults, is_used, summary, take_census
from mpa_edge.exporters.verify.weights import exported, grid
from tests.exporters import small_weights as small
from tests.exporters.small_weights import CONFIG, FILES, GGUF_FILES, Weights, edited

BEFORE = small.base()
AFTER = small.aligned(BEFORE)
ONNX = ("fp32", "fp16", "int8", "q4", "q4f16", "q2")
GGUF = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
TOWER, LANGUAGE, CONNECTOR = "vision_model", "text_model.layers", "connector"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("census")
    small.save(home / "base", BEFORE)
    small.save(home / "aligned", AFTER)
    return home


def found_wrong(home: Path, folder: Path, files: dict[str, str] = FILES, base: str | None = "base") -> list[str]:
    census = take_census(folder, files, home / "aligned", CONFIG, base and home / base)
    return faults(census, files)


def mixed(from_base: str) -> Weights:
    """The aligned model with the base's weights where a name holds one of the words."""
    words = from_base.split("|")
    return {name: BEFORE[name] if any(word in name for word in words) else AFTER[name] for name in AFTER}


# --- a faithful export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ONNX)
def test_faithful_onnx(home: Path, tmp_path: Path, precision: str) -> None:
    assert found_wrong(home, small.save_onnx(tmp_path, AFTER, precision)) == []


@pytest.mark.parametrize("precision", GGUF)
def test_faithful_gguf(home: Path, tmp_path: Path, precision: str) -> None:
    assert found_wrong(home, small.save_gguf(tmp_path, AFTER, precision), GGUF_FILES) == []


def test_every_parameter_is_counted(home: Path, tmp_path: Path) -> None:
    census = take_census(small.save_onnx(tmp_path, AFTER), FILES, home / "aligned", CONFIG, home / "base")
    parts = summary(census)
    sizes = {name: array.size for name, array in AFTER.items()}
    vision = sum(size for name, size in sizes.items() if TOWER in name)
    assert parts["vision"]["vision"]["parameters"] == parts["vision"]["vision"]["found"] == vision
    # the checkpoint has no output embeddings of its own: the decoder holds the token embeddings
    assert parts["decoder"]["head"]["found"] == sizes["model.text_model.embed_tokens.weight"]
    assert parts["decoder"]["language"]["change_kept"] == pytest.approx(1, abs=0.01)


def test_without_the_base_there_is_no_word_of_an_adapter(home: Path, tmp_path: Path) -> None:
    folder = small.save_onnx(tmp_path, AFTER)
    parts = summary(take_census(folder, FILES, home / "aligned", CONFIG, None))
    assert set(parts["decoder"]["language"]) == {"parameters", "found"}


# --- the adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ONNX)
def test_an_adapter_that_was_not_merged(home: Path, tmp_path: Path, precision: str) -> None:
    wrong = found_wrong(home, small.save_onnx(tmp_path, BEFORE, precision))
    assert any(
        line.startswith("adapter: decoder.onnx") and "language model: that is the base" in line for line in wrong
    )
    assert any(line.startswith("adapter: vision.onnx") and "vision tower: that is the base" in line for line in wrong)


@pytest.mark.parametrize("precision", GGUF)
def test_an_adapter_that_is_not_in_the_gguf(home: Path, tmp_path: Path, precision: str) -> None:
    wrong = found_wrong(home, small.save_gguf(tmp_path, BEFORE, precision), GGUF_FILES)
    assert any(line.startswith("adapter: model.gguf") and "language model" in line for line in wrong)
    assert any(line.startswith("adapter: mmproj.gguf") and "vision tower" in line for line in wrong)


@pytest.mark.parametrize("precision", ["fp16", "int8", "q4"])
def test_a_vision_adapter_that_went_missing(home: Path, tmp_path: Path, precision: str) -> None:
    """The language model is the aligned one, the tower the base's: only the tower is named."""
    wrong = found_wrong(home, small.save_onnx(tmp_path, mixed(TOWER), precision))
    assert len(wrong) == 1, wrong
    assert wrong[0].startswith("adapter: vision.onnx holds ")
    assert wrong[0].endswith("of what training changed in the vision tower: that is the base model's")


def test_a_connector_of_the_base(home: Path, tmp_path: Path) -> None:
    wrong = found_wrong(home, small.save_gguf(tmp_path, mixed(CONNECTOR)), GGUF_FILES)
    assert len(wrong) == 1, wrong
    assert "in the connector" in wrong[0]


def test_a_layer_that_was_left_out_of_the_merge(home: Path, tmp_path: Path) -> None:
    wrong = found_wrong(home, small.save_onnx(tmp_path, mixed(f"{LANGUAGE}.1"), "fp16"))
    assert len(wrong) == 1, wrong
    assert wrong[0].endswith("language model: a part was left out of the merge")


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
def test_the_verdict_does_not_hang_on_the_bits(bits: int) -> None:
    """Rounding to a grid of any width: faithful on one side, base on the other."""
    random = np.random.default_rng(bits)
    base = random.laplace(0, 0.05, (96, 96))
    after = base + 0.1 * base.std() * random.normal(size=base.shape)
    step = 2 * np.abs(base).max() / 2**bits / 2
    sides = []
    for exported_ in (after, base):
        adapter = Adapter()
        adapter.add(np.round(exported_ / step) * step, after, base)
        sides.append(adapter.side)
    assert sides[0] > 0 > sides[1]


def test_a_base_of_another_size_is_left_alone(home: Path, tmp_path: Path) -> None:
    name = "model.text_model.layers.0.mlp.down_proj.weight"
    small.save(tmp_path / "other", BEFORE | {name: BEFORE[name][:, :32]})
    census = take_census(small.save_onnx(tmp_path, AFTER), FILES, home / "aligned", CONFIG, tmp_path / "other")
    assert faults(census, FILES) == []


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_nearly_empty_mmproj(home: Path, tmp_path: Path) -> None:
    """Only the patch embedding is there, as where a converter skips what it does not know."""
    small.save_gguf(tmp_path, edited(AFTER, lambda name, array: array if "encoder" not in name else None))
    wrong = found_wrong(home, tmp_path, GGUF_FILES)
    assert len(wrong) == 1, wrong
    assert wrong[0].startswith(
        "weights: mmproj.gguf holds 42% of the vision tower; 4 tensors are not in it, first model."
    )


@pytest.mark.parametrize("value", [0.0, np.nan, 1e-3])
def test_an_mmproj_full_of_nothing(home: Path, tmp_path: Path, value: float) -> None:
    small.save_gguf(
        tmp_path, edited(AFTER, lambda name, array: array * 0 + np.float32(value) if TOWER in name else array)
    )
    assert any("holds 0% of the vision tower" in line for line in found_wrong(home, tmp_path, GGUF_FILES))


def test_a_truncated_tensor(home: Path, tmp_path: Path) -> None:
    name = "model.connector.modality_projection.proj.weight"
    small.save_gguf(tmp_path, AFTER | {name: AFTER[name][:, :96]})
    assert found_wrong(home, tmp_path, GGUF_FILES) == [
        f"weights: mmproj.gguf holds 0% of the connector; 1 tensors are not in it, first {name}"
    ]


def test_weights_on_another_scale(home: Path, tmp_path: Path) -> None:
    """A scale that was applied twice leaves every correlation at one."""
    small.save_onnx(tmp_path, edited(AFTER, lambda name, array: array * 3 if "fc1.weight" in name else array))
    assert any("vision tower; 2 tensors" in line for line in found_wrong(home, tmp_path))


def test_one_layer_written_twice(home: Path, tmp_path: Path) -> None:
    small.save_onnx(tmp_path, edited(AFTER, lambda name, array: AFTER[name.replace("layers.1", "layers.0")]))
    wrong = found_wrong(home, tmp_path)
    assert any("of the language model; 3 tensors are not in it" in line for line in wrong)


def test_shuffled_rows(home: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(small.FFN)
    small.save_onnx(tmp_path, edited(AFTER, lambda name, array: array[order] if "fc1.weight" in name else array))
    assert any("vision tower; 2 tensors" in line for line in found_wrong(home, tmp_path))


def test_tensors_that_say_nothing_may_be_folded_away(tmp_path: Path) -> None:
    plain = small.base() | {"model.vision_model.encoder.layers.0.mlp.fc2.bias": np.zeros(64, np.float32)}
    small.save(tmp_path / "aligned", plain)
    assert found_wrong(tmp_path, small.save_onnx(tmp_path, small.base()), base=None) == []


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "pieces"),
    [
        ("visual.blocks.0.attn.qkv.weight", (192, 64), lambda a: np.split(a, 3)),
        ("visual.blocks.0.attn.qkv.bias", (192,), lambda a: np.split(a, 3)),
        ("visual.patch_embed.proj.weight", (64, 3, 2, 4, 4), lambda a: [a[:, :, 0], a[:, :, 1]]),
        ("visual.patch_embed.proj.weight", (64, 3, 2, 4, 4), lambda a: [a.reshape(64, -1)]),
    ],
)
def test_pieces_of_a_tensor(tmp_path: Path, name: str, shape: tuple[int, ...], pieces: object) -> None:
    import gguf

    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    small.save(tmp_path, {name: array})
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    for i, piece in enumerate(pieces(array)):
        writer.add_tensor(f"v.{i}", np.ascontiguousarray(piece))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = {"mmproj": "mmproj.gguf"}
    census = take_census(tmp_path, files, tmp_path, {"model_type": "qwen2_vl"}, None)
    assert census["mmproj"]["vision"].found == array.size
    small.save(tmp_path, {name: array[::-1]})
    assert faults(take_census(tmp_path, files, tmp_path, {"model_type": "qwen2_vl"}, None), files)


@pytest.mark.parametrize(
    ("layer", "tensor", "used"),
    [
        (-2, "vision_tower.encoder.layers.1.mlp.fc1.weight", True),
        (-2, "vision_tower.encoder.layers.2.mlp.fc1.weight", False),
        (-1, "vision_tower.encoder.layers.2.mlp.fc1.weight", True),
        ([-3, -2], "vision_tower.encoder.layers.1.mlp.fc1.weight", True),
        (-2, "vision_tower.post_layernorm.weight", False),
        (-2, "multi_modal_projector.linear_1.weight", True),
        (-2, "language_model.layers.2.mlp.up_proj.weight", True),
    ],
)
def test_llava_does_not_run_all_of_its_tower(layer: object, tensor: str, used: bool) -> None:
    config = {"model_type": "llava", "vision_feature_layer": layer, "vision_config": {"num_hidden_layers": 3}}
    assert is_used(tensor, config) is used


@pytest.mark.parametrize("precision", ONNX)
def test_quantized_numbers_are_read_as_what_they_stand_for(tmp_path: Path, precision: str) -> None:
    """Every matrix as it was, up to half a step of its own grid."""
    full = exported(small.save_onnx(tmp_path / "full", AFTER) / "decoder.onnx")
    packed = exported(small.save_onnx(tmp_path / "packed", AFTER, precision) / "decoder.onnx")
    worst = {"fp32": 0, "fp16": 2e-4, "int8": 3e-3, "q4": 0.03, "q4f16": 0.03, "q2": 0.15}[precision]
    looked = [found for many in full.values() for found in many if found.values.ndim == 2]
    assert len(looked) == 3 * small.LAYERS + 1
    for found in looked:
        same_shape = [one.values for one in packed.get(found.shape, [])]
        turned = [one.values.T for one in packed.get(found.shape[::-1], [])]
        assert min(np.abs(values - found.values).max() for values in same_shape + turned) <= worst


def test_static_graphs_name_their_scales_in_an_operator(tmp_path: Path) -> None:
    """Weights in int8 along their first axis, a bias in 32 bits, with names that follow no rule."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = AFTER["model.vision_model.encoder.layers.0.mlp.fc1.weight"]
    bias = AFTER["model.vision_model.encoder.layers.0.mlp.fc1.bias"]
    steps = np.abs(weight).max(1) / 127
    stored = {
        "w": np.round(weight / steps[:, None]).astype(np.int8),
        "w_s": steps.astype(np.float32),
        "b": np.round(bias / 1e-6).astype(np.int32),
        "b_s": np.float32(1e-6),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_s"], ["weight"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_s"], ["bias"]),
    ]
    shapes = {"weight": weight.shape, "bias": bias.shape}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors)), tmp_path / "static.onnx")
    looked = {found.name: found.values for many in exported(tmp_path / "static.onnx").values() for found in many}
    np.testing.assert_allclose(looked["b"], bias[grid(len(bias))], atol=1e-6)
    np.testing.assert_allclose(looked["w"], weight[np.ix_(*map(grid, weight.shape))], atol=steps.max())


def test_bfloat16_is_read_by_whoever_asks_first(tmp_path: Path) -> None:
    """numpy has no bfloat16 of its own: a process that reads GGUF files only would not know it."""
    save_file({"w": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    code = "from mpa_edge.exporters.verify.weights import Stored; from pathlib import Path; import sys\n"
    code += "print(Stored(Path(sys.argv[1])).get('w').astype('float32').tolist())"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[[1.5, -2.0]]", done.stderr
