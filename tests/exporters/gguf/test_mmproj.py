from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.mmproj import tensor_name, vision_depth, write_mmproj
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.exporters.gguf.made import source_of
from tests.families import zoo


@pytest.mark.parametrize(
    ("model_type", "key", "name"),
    [
        ("llava", "vision_tower.embeddings.patch_embedding.bias", "v.patch_embd.bias"),
        ("llava", "vision_tower.vision_model.embeddings.position_embedding.weight", "v.position_embd.weight"),
        ("llava", "model.vision_tower.encoder.layers.1.self_attn.out_proj.weight", "v.blk.1.attn_out.weight"),
        ("llava", "model.multi_modal_projector.linear_2.bias", "mm.2.bias"),
        ("llava", "vision_tower.encoder.layers.2.mlp.fc1.weight", None),
        ("llava", "vision_tower.vision_model.post_layernorm.weight", None),
        ("llava", "vision_tower.head.probe", None),
        ("llava", "language_model.model.layers.0.mlp.up_proj.weight", None),
        ("llava", "lm_head.weight", None),
        ("internvl", "vision_tower.embeddings.cls_token", "v.class_embd"),
        ("internvl", "model.vision_tower.encoder.layer.1.lambda_2", "v.blk.1.ls2.weight"),
        ("internvl", "vision_tower.encoder.layer.0.attention.projection_layer.bias", "v.blk.0.attn_out.bias"),
        ("internvl", "multi_modal_projector.layer_norm.weight", "mm.model.mlp.0.weight"),
        ("internvl", "model.language_model.layers.0.self_attn.q_proj.weight", None),
    ],
)
def test_names(model_type: str, key: str, name: str | None) -> None:
    assert tensor_name(key, model_type, depth=2) == name


@pytest.mark.parametrize("model_type", ["llava", "internvl"])
@pytest.mark.parametrize("key", ["vision_tower.adapter.weight", "multi_modal_projector.linear_3.weight"])
def test_nothing_is_left_out_silently(model_type: str, key: str) -> None:
    with pytest.raises(MpaError, match=f"no place for the vision tensor '{key}': use an onnx or a hybrid scheme"):
        tensor_name(key, model_type, depth=2)


@pytest.mark.parametrize(("chosen", "depth"), [(-1, 4), (-2, 3), (-5, 0), (0, 0), (3, 3)])
def test_depth(chosen: int, depth: int) -> None:
    assert vision_depth({"vision_config": {"num_hidden_layers": 4}, "vision_feature_layer": chosen}) == depth


def tensors(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    return {tensor.name: (tensor.shape, tensor.type) for tensor in read_header(path).tensors}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_get_the_precision_and_the_rest_stays(precision: str, tmp_path: Path) -> None:
    write_mmproj(source_of(zoo.checkpoint("llava")), tmp_path / "x.gguf", precision)
    made = tensors(tmp_path / "x.gguf")
    assert made["v.blk.0.attn_q.weight"] == ((256, 256), precision)
    assert made["mm.2.weight"] == ((256, 256), precision)
    for name in ("v.patch_embd.weight", "v.position_embd.weight", "v.blk.0.ln1.weight", "mm.0.bias"):
        assert made[name][1] == "f32"


@pytest.mark.slow
def test_unused_layers_stay_out_and_the_last_used_one_is_named(tmp_path: Path) -> None:
    write_mmproj(source_of(zoo.checkpoint("llava")), tmp_path / "x.gguf", "f16")
    header = read_header(tmp_path / "x.gguf")
    assert header.metadata["clip.vision.block_count"] == 2
    assert header.metadata["clip.vision.feature_layer"] == (2,)
    assert not [tensor.name for tensor in header.tensors if tensor.name.startswith("v.blk.2.")]


@pytest.mark.slow
def test_the_position_of_internvls_class_token_goes_last(tmp_path: Path) -> None:
    """llama.cpp puts the token itself behind the patches."""
    source = zoo.checkpoint("internvl")
    write_mmproj(source_of(source), tmp_path / "x.gguf", "f16")
    table = load_file(source / "model.safetensors")["vision_tower.embeddings.position_embeddings"][0].numpy()
    where = next(t for t in read_header(tmp_path / "x.gguf").tensors if t.name == "v.position_embd.weight")
    made = np.frombuffer((tmp_path / "x.gguf").read_bytes(), np.float32, where.n_bytes // 4, where.offset)
    made = made.reshape(where.shape)
    assert np.array_equal(made[:-1], table[1:])
    assert np.array_equal(made[-1], table[0])


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "splits", "tiles"), [(None, True, 4), (2, True, 2), (None, False, 1)])
def test_the_image_budget_limits_internvls_tiles(budget: int | None, splits: bool, tiles: int, tmp_path: Path) -> None:
    source = Path(shutil.copytree(zoo.checkpoint("internvl"), tmp_path / "internvl"))
    values = read_json(source / "processor_config.json")
    values["image_processor"]["crop_to_patches"] = splits
    write_json(source / "processor_config.json", values)
    limit = ImageBudget(max_tiles=budget, max_pixels=10**6) if budget else None
    write_mmproj(source_of(source), tmp_path / "x.gguf", "f16", limit)
    assert read_header(tmp_path / "x.gguf").metadata["clip.vision.preproc_max_tiles"] == tiles


@pytest.mark.slow
def test_rows_that_fit_no_block_stay_at_half_precision(tmp_path: Path) -> None:
    write_mmproj(source_of(zoo.checkpoint("llava", hidden=204)), tmp_path / "x.gguf", "q8_0")
    assert tensors(tmp_path / "x.gguf")["mm.2.weight"] == ((204, 204), "f16")
