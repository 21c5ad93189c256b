"""Exported graphs against torch: logits, greedy tokens, padding, images of many sizes; and the files themselves."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.graphs import build, known
from mpa_edge.exporters.onnx import files
from mpa_edge.exporters.onnx.export import export_component, load_part
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.families import families
from mpa_edge.vlm.transformers.checkpoint import chat_prompt, load_processor
from tests.exporters.numpy_loop import FILES, NumpyLoop, session
from tests.families import zoo
from tests.vlm.exported import checkpoint, onnx_folder

# the student is an Idefics3
EVERY = ("student", *(kind for kind in zoo.MODEL_TYPES if kind != "idefics3"), "llava:clip")
QUESTIONS = ("How many red shapes are there, and is the largest one on the left?", "Hi", "What is it?")
SIZES = ((128, 64), (40, 150), (31, 30))
N_TOKENS = 16


class TorchSide:
    """A checkpoint in torch; its image processor is the Pillow one."""

    def __init__(self, which: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText

        folder = str(checkpoint(which))
        self.processor = load_processor(folder)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.single, self.double = (
            AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval() for dtype in ("float32", "float64")
        )

    def feed(self, rows: slice) -> Any:
        images = [drawn(*size, seed=i) for i, size in enumerate(SIZES)][rows]
        texts = [chat_prompt(self.processor, question) for question in QUESTIONS[rows]]
        return self.processor(
            text=texts,
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )

    def logits(self, feed: Any, model: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return model(**feed.to(model.dtype)).logits.numpy()

    def greedy(self, feed: Any) -> np.ndarray:
        options = {"max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS, "do_sample": False}
        return self.single.generate(**feed, **options)[:, feed["input_ids"].shape[1] :].numpy()


side = functools.cache(TorchSide)


@functools.cache
def loop(which: str) -> NumpyLoop:
    return NumpyLoop(onnx_folder(which) / "onnx", checkpoint(which))


def arrays(feed: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in feed.items()}


@functools.cache
def proto(which: str, part: str) -> onnx.ModelProto:
    return onnx.load(onnx_folder(which) / "onnx" / f"{FILES[part]}.onnx")


ROWS = {"one": slice(0, 1), "another": slice(1, 2), "left-padded batch": slice(0, 2), "three": slice(0, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("which", EVERY)
def test_logits_are_as_near_to_the_truth_as_torchs_own(which: str, rows: slice) -> None:
    """The truth is float64: random weights enlarge the last bit of both, and of neither more than of the other."""
    torch_side, feed = side(which), side(which).feed(rows)
    real = feed["attention_mask"].numpy() == 1
    truth = torch_side.logits(feed, torch_side.double)[real]
    theirs = np.abs(torch_side.logits(torch_side.feed(rows), torch_side.single)[real] - truth).max()
    ours = np.abs(loop(which).logits(arrays(torch_side.feed(rows)))[real] - truth).max()
    assert ours <= max(1e-4, 3 * theirs)
    assert ours < 1e-3 * truth.std()


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("which", EVERY)
def test_greedy_tokens_are_torchs(which: str, rows: slice) -> None:
    feed = side(which).feed(rows)
    ends = side(which).single.generation_config.eos_token_id
    found = loop(which).greedy(arrays(feed), N_TOKENS, ends if isinstance(ends, list) else [ends])
    expected = side(which).greedy(feed)
    assert found.tolist() == expected.tolist()
    assert len(set(expected.ravel().tolist())) > 4, "a model that says one word proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_only_the_wanted_logits_are_computed(which: str) -> None:
    feed = arrays(side(which).feed(slice(0, 2)))
    everything, n_tokens = loop(which).logits(feed), feed["input_ids"].shape[1]
    assert everything.shape[1] == n_tokens
    for keep in (1, 3, n_tokens):
        np.testing.assert_allclose(loop(which).logits(feed, keep), everything[:, -keep:], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["student", "qwen2_vl", "qwen3_5", "lfm2_vl", "gemma4"])
def test_a_prompt_in_two_pieces_is_the_same_prompt(which: str) -> None:
    run, feed = loop(which), arrays(side(which).feed(slice(0, 2)))
    embeds, positions, mask, cut = run.embeddings(feed), run.positions(feed), feed["attention_mask"], 9
    _, cache = run.step(embeds[:, :cut], mask[:, :cut], positions[..., :cut], run.empty_cache(2), 0)
    rest, _ = run.step(embeds[:, cut:], mask, positions[..., cut:], cache, 0)
    np.testing.assert_allclose(rest[:, -1], run.logits(feed)[:, -1], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_empty_tile_gives_no_features_and_an_empty_image_one_tile() -> None:
    run = session(onnx_folder("student") / "onnx" / "vision_encoder.onnx")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 3, 64, 64)).astype(np.float32)
    pixels[0, 1] = pixels[1, 2] = 0
    mask = np.ones((2, 3, 64, 64), bool)
    whole = run.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})[0]
    assert whole.shape == (4, 16, 256)
    alone = run.run(None, {"pixel_values": pixels[1:, :2], "pixel_attention_mask": mask[1:, :2]})[0]
    np.testing.assert_allclose(whole[2:], alone, atol=1e-5)
    empty = run.run(None, {"pixel_values": pixels * 0, "pixel_attention_mask": mask})[0]
    assert empty.shape == (1, 16, 256)


@pytest.mark.slow
def test_what_is_masked_does_not_count() -> None:
    run = session(onnx_folder("student") / "onnx" / "vision_encoder.onnx")
    pixels = np.random.default_rng(0).standard_normal((1, 1, 3, 64, 64)).astype(np.float32)
    mask = np.ones((1, 1, 64, 64), bool)
    mask[..., 32:, :] = False
    other = pixels.copy()
    other[..., 32:, :] = 1
    first, second = (run.run(None, {"pixel_values": p, "pixel_attention_mask": mask})[0][0] for p in (pixels, other))
    # the first two rows of tokens see the upper half alone
    np.testing.assert_allclose(first[:8], second[:8], atol=1e-4)
    assert np.abs(first[8:] - second[8:]).max() > 0.1


STATES = {"qwen3_5": ("conv", "recurrent"), "lfm2_vl": ("conv",)}
VISION_INPUTS = {
    "pixel_values+pixel_attention_mask": ("student", "smolvlm"),
    "pixel_values+grid_thw": ("qwen2_vl",),
    "pixel_values+image_grid_thw": ("qwen2_5_vl", "qwen3_vl", "qwen3_5"),
    "pixel_values+pixel_position_ids": ("gemma4",),
    "pixel_values": ("llava", "llava:clip", "internvl"),
    "pixel_values+pixel_attention_mask+spatial_shapes": ("lfm2_vl",),
}


def axes(value: Any) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_names_and_axes_are_the_javascript_clients(which: str) -> None:
    vision, embed, decoder = (proto(which, part).graph for part in FILES)
    assert which in VISION_INPUTS["+".join(value.name for value in vision.input)]
    assert [value.name for value in vision.output] == ["image_features"]
    assert [(value.name, axes(value)) for value in embed.input] == [("input_ids", ["batch_size", "sequence_length"])]
    inputs = {value.name: axes(value) for value in decoder.input}
    assert inputs["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert inputs["position_ids"] == [*([3] if "qwen" in which else []), "batch_size", "sequence_length"]
    assert inputs["num_logits_to_keep"] == []
    keys_values = [name for name in inputs if name.startswith("past_key_values.")]
    assert {(inputs[name][0], inputs[name][2]) for name in keys_values} == {("batch_size", "past_sequence_length")}
    past = [name for name in inputs if name.startswith("past")]
    if which in STATES:
        states = [f"past_{part}.{layer}" for layer in (0, 2) for part in STATES[which]]
        assert set(past) - set(states) == set(keys_values)
        assert not [name for name in keys_values if name.split(".")[1] in "02"]
        assert all(inputs[name][0] == "batch_size" and min(inputs[name][1:]) > 0 for name in states)
    if which == "gemma4":  # layers 2 and 3 read the keys and values of 0 and 1
        assert past == [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
        assert [inputs[name][3] for name in past] == [64, 64, 128, 128]
        assert inputs["per_layer_inputs"] == ["batch_size", "sequence_length", 4, 64]
    renamed = [name.replace("past_key_values", "present").replace("past_", "present_") for name in past]
    assert [value.name for value in decoder.output][1:] == renamed


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_quantizers_find_every_weight(which: str) -> None:
    """They look for a MatMul with a constant on its right; a Gemm, or a weight turned at run time, would stay fp32."""
    for part in FILES:
        graph = proto(which, part).graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        found = {node.input[1] for node in graph.node if node.op_type == "MatMul"} & set(weights)
        large = {name for name, tensor in weights.items() if len(tensor.dims) == 2 and min(tensor.dims) > 64}
        tables = {node.input[0] for node in graph.node if node.op_type in ("Gather", "MatMul")}
        assert large <= found | tables, sorted(large - found - tables)
        assert not [node for node in graph.node if node.op_type == "Gemm"]
        assert proto(which, part).opset_import[0].version >= 20
        onnx.checker.check_model(proto(which, part))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["student", "qwen2_5_vl"])
def test_no_file_tells_of_the_machine_that_made_it(which: str) -> None:
    for path in (onnx_folder(which) / "onnx").iterdir():
        content = path.read_bytes()
        assert not [
            word for word in (b"site-packages", b".py", b"stack_trace", str(Path.cwd()).encode()) if word in content
        ]


@pytest.mark.slow
def test_weights_in_a_file_of_their_own_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's, in the test of the JavaScript client."""
    part = "embed"
    monkeypatch.setattr(files, "EMBEDDED_BYTES", 1000)
    out = tmp_path / f"{FILES[part]}.onnx"
    export_component(checkpoint("student"), part, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}_data"]
    assert out.stat().st_size < 100_000
    places = {
        entry.value
        for tensor in onnx.load(out, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {f"{out.name}_data"}
    apart, whole = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer}
        for m in (onnx.load(out), proto("student", part))
    )
    assert apart.keys() == whole.keys()
    assert all(np.array_equal(apart[name], whole[name]) for name in whole)
    session(out)


@pytest.mark.slow
def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(graph: Path, out: Path) -> None:
        out.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "embed_weights", full)
    with pytest.raises(OSError, match="No space left"):
        export_component(checkpoint("student"), "embed", tmp_path / "embed_tokens.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("component", "absent"), [("vision", "model.text_model.layers."), ("decoder", "vision_model")])
def test_one_component_reads_no_layer_of_the_other(component: Any, absent: str) -> None:
    model = load_part(checkpoint("student"), component)
    weights = {name: parameter for name, parameter in model.named_parameters() if ".layers." in name}
    assert weights
    assert not [name for name in weights if absent in name]


@pytest.mark.parametrize("component", FILES)
def test_a_missing_tensor_is_an_error_not_a_random_number(component: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint("student"), folder)
    weights = load_file(folder / "model.safetensors")
    lost = {"vision": "vision_model.encoder.layers.0", "embed": "embed_tokens", "decoder": "text_model.layers.1"}
    kept = {name: tensor for name, tensor in weights.items() if lost[component] not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MpaError, match=r"lacks \d+ tensors"):
        load_part(folder, component)


def test_every_family_has_a_graph() -> None:
    assert known() == sorted(families())


def test_a_family_without_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_edge.exporters.graphs.known", lambda: ["llava", "smolvlm"])
    model = SimpleNamespace(config=SimpleNamespace(model_type="internvl"))
    with pytest.raises(MpaError, match="family 'internvl' has no ONNX graph: export it as GGUF"):
        build(model, "vision")


def test_a_strange_tower_is_refused() -> None:
    tower = SimpleNamespace(model_type="pixtral")
    model = SimpleNamespace(config=SimpleNamespace(model_type="llava", vision_config=tower), model=None)
    with pytest.raises(MpaError, match="'pixtral' tower has no ONNX graph"):
        build(model, "vision")
