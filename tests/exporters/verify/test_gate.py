"""The gate on real exports of the built-in student: the right one passes, every planted fault is caught and named."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file

from mpa_edge.artifact import ARTIFACT
from mpa_edge.config.library import load_recipe, load_scheme
from mpa_edge.errors import MachineError, VerificationError
from mpa_edge.exporters.build import MADE, BuildContext, build
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify import gate
from mpa_edge.exporters.verify.parity import Parity, ParityDetails
from mpa_edge.vlm import resolve
from mpa_edge.vlm.onnxruntime import model as runtime
from tests.vlm.exported import fill_parts, onnx_folder
from tests.vlm.llama_exported import gguf_folder, hybrid_folder, scheme_folder

pytestmark = pytest.mark.slow
STUDENT = Path(resolve("nursery:student"))
OF_THE_BASE = "vision encoder: its embeddings are the base model's, not the aligned model's"
VISION, DECODER = "onnx/vision_encoder.onnx", "onnx/decoder_model_merged.onnx"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def base(home: Path) -> Path:
    """A student before its alignment: the built-in one without an adapter's change in all matrices."""
    folder = Path(shutil.copytree(STUDENT, home / "base"))
    weights = {name: array.astype(np.float32) for name, array in load_file(STUDENT / "model.safetensors").items()}
    random = np.random.default_rng(5)
    for name, array in weights.items():
        if array.ndim == 2 and any(word in name for word in ("mlp", "self_attn", "connector")):
            change = random.normal(size=(array.shape[0], 4)) @ random.normal(size=(4, array.shape[1]))
            weights[name] = array + np.float32(0.1 * array.std() / change.std()) * change.astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def source(home: Path, base: Path) -> Source:
    """A run whose merged model is the built-in student."""
    recipe = load_recipe("minicharts").model_copy(update={"student": str(base)})
    return Source("mine", STUDENT, home / "exports", run=home, recipe=recipe)


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in this process, but for the test of the processes: seconds for each fault otherwise."""
    if "apart" not in request.fixturenames:
        monkeypatch.setattr(gate, "run_isolated", lambda function, *arguments, threads=None: (function(*arguments), 0))


@pytest.fixture
def apart() -> None:
    """Steps in processes of their own, as users have them."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copied(onnx_folder("student"), tmp_path)


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "export"))


def verified(source: Source, folder: Path, scheme: str = "onnx-fp32") -> tuple[Parity, ParityDetails]:
    return gate.verify(source, folder, load_scheme(scheme), None, 1, references(source))


@functools.cache
def traced(checkpoint: Path, base: str) -> gate.References:
    recipe = load_recipe("minicharts").model_copy(update={"student": base})
    return gate.trace_references(Source("mine", checkpoint, checkpoint, run=checkpoint, recipe=recipe), None, 1)


def references(source: Source) -> gate.References:
    return traced(source.checkpoint, source.recipe.student)  # type: ignore[union-attr]


def wrong(source: Source, folder: Path, scheme: str = "onnx-fp32") -> str:
    with pytest.raises(VerificationError) as caught:
        verified(source, folder, scheme)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert text.splitlines()[-1].startswith("nothing was exported: ")
    assert "report" not in text
    return text


def starts(text: str) -> set[str]:
    """What the reasons are about."""
    return {line.strip().partition(":")[0] for line in text.splitlines()[1:-1]}


def edit_artifact(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / ARTIFACT).read_text(encoding="utf-8"))
    change(values)
    (folder / ARTIFACT).write_text(json.dumps(values), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Every floating point weight of a graph through a function of its name."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(tensor.name, array)), tensor.name))
    onnx.save(model, path)


def quantize(path: Path, component: str, precision: str) -> None:
    full = path.rename(path.with_suffix(".full"))
    quantize_component(full, path, component, precision, load_scheme("onnx-q4"))  # type: ignore[arg-type]
    full.unlink()


def to_scheme(folder: Path, name: str) -> None:
    """Quantize the graphs of an fp32 export."""
    for component, file in json.loads((folder / ARTIFACT).read_text(encoding="utf-8"))["files"].items():
        quantize(folder / file, component, str(load_scheme(name).components[component]))


def to_base(path: Path, base: Path, where: str = "") -> None:
    """The base's numbers in place of the aligned ones, in the tensors with a name that contains `where`."""
    before, after = load_file(base / "model.safetensors"), load_file(STUDENT / "model.safetensors")

    def swapped(_: str, array: np.ndarray) -> np.ndarray:
        for name, tensor in after.items():
            plain = tensor.astype(np.float32)
            if where not in name:
                continue
            if plain.shape == array.shape and np.array_equal(plain, array):
                return before[name].astype(np.float32)
            if plain.ndim == 2 and plain.T.shape == array.shape and np.array_equal(plain.T, array):
                return before[name].astype(np.float32).T
        return array

    edit_weights(path, swapped)


# --- the right one ----------------------------------------------------------------------------------------------------


def test_a_right_export_passes_in_processes_of_its_own(apart: None, source: Source, folder: Path) -> None:
    parity, details = verified(source, folder)
    assert set(parity.model_dump()) == {
        "tokens_equal",
        "image_tokens_equal",
        "vision_cosine_min",
        "kl",
        "max_abs_logit_diff",
        "greedy_prefix",
        "blank_image_changes",
    }
    assert parity.greedy_prefix == 1
    assert parity.max_abs_logit_diff < 1e-3
    assert details.pixels_equal
    assert details.vision_toward_aligned == pytest.approx(1, abs=0.01)
    assert details.kl_aligned < 0.01 * details.kl_base


@pytest.mark.parametrize("precision", ["fp16", "int8", "q4", "q4f16", "q2"])
def test_a_right_quantized_export_passes(source: Source, folder: Path, precision: str) -> None:
    to_scheme(folder, f"onnx-{precision}")
    verified(source, folder, f"onnx-{precision}")


# --- another input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.45, 0.5, 0.5]), ("image_std", [0.5, 0.5, 0.4]), ("resample", 2), ("rescale_factor", 1 / 256)],
)
def test_an_image_processor_with_another_value(source: Source, folder: Path, key: str, value: Any) -> None:
    edit_artifact(folder, lambda artifact: artifact["image"].update({key: value}))
    text = wrong(source, folder)
    assert "; input mismatch: " in text
    assert "preprocessing" in starts(text)


def test_swapped_channels(source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = runtime.prepare

    def swapped(config: dict[str, Any], image: Image.Image) -> Any:
        return own(config, Image.merge("RGB", image.split()[::-1]))

    monkeypatch.setattr(runtime, "prepare", swapped)
    assert "; input mismatch: " in wrong(source, folder)


def test_a_wide_tolerance_does_not_hide_other_pixels(source: Source, folder: Path) -> None:
    edit_artifact(folder, lambda artifact: artifact["image"].update(image_std=[0.5, 0.5, 0.499]))
    text = wrong(source, folder, "onnx-q2")
    assert starts(text) == {"preprocessing"}
    assert "; input mismatch: " in text


def test_an_image_with_fewer_tiles(source: Source, folder: Path) -> None:
    edit_artifact(folder, lambda artifact: artifact["image"].update(size={"longest_edge": 64}))
    text = wrong(source, folder)
    assert "preprocessing" in starts(text)
    assert "check the checkpoint's image processor" in text
    assert "; input mismatch: " in text


def test_one_image_token_more(source: Source, folder: Path) -> None:
    edit_artifact(folder, lambda artifact: artifact["image"].update(image_seq_len=17))
    text = wrong(source, folder)
    assert "; its runtime cannot run it\n" in text
    assert "the vision encoder gives " in text


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("before", "User:", "User: "), ("after", "\nAssistant:", "\nassistant:"), ("after", "\n", "")],
)
def test_another_chat_template(source: Source, folder: Path, key: str, old: str, new: str) -> None:
    def change(artifact: dict[str, Any]) -> None:
        assert old in artifact["prompt"][key]
        artifact["prompt"][key] = artifact["prompt"][key].replace(old, new)

    edit_artifact(folder, change)
    text = wrong(source, folder)
    assert "chat template" in starts(text)
    assert "check the checkpoint's chat template" in text
    assert "; input mismatch: " in text


def test_an_image_token_that_a_user_may_write(source: Source, folder: Path) -> None:
    def change(artifact: dict[str, Any]) -> None:
        artifact["tokens"]["special"] = [t for t in artifact["tokens"]["special"] if t != "<image>"]

    edit_artifact(folder, change)
    assert "the vision encoder gives " in wrong(source, folder)


def test_unknown_end_tokens(source: Source, folder: Path) -> None:
    edit_artifact(folder, lambda artifact: artifact["tokens"].update(ends=[511]))
    assert starts(wrong(source, folder, "onnx-q2")) == {"decoder"}


# --- another execution ------------------------------------------------------------------------------------------------


def test_an_image_that_is_ignored(source: Source, folder: Path) -> None:
    """The encoder's output times zero: any image gives the same answer."""
    model = onnx.load(folder / VISION)
    node = next(node for node in model.graph.node if "image_features" in node.output)
    node.output[list(node.output).index("image_features")] = "seen"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    model.graph.node.append(helper.make_node("Mul", ["seen", "nothing"], ["image_features"]))
    onnx.save(model, folder / VISION)
    text = wrong(source, folder)
    assert {"vision encoder", "decoder"} <= starts(text)
    assert "the export ignores the image" in text
    assert "; execution mismatch: " in text


def test_channels_swapped_in_the_graph(source: Source, folder: Path) -> None:
    """The same pixels, read in another order: not the input's fault."""
    edit_weights(folder / VISION, lambda _, array: array[:, ::-1] if array.ndim == 4 and array.shape[1] == 3 else array)
    text = wrong(source, folder)
    assert "; execution mismatch: " in text
    assert "vision encoder" in starts(text)


def test_a_shuffled_layer(source: Source, folder: Path) -> None:
    """All weights are there, two layers have changed places: only running it tells."""
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / DECODER).graph.initializer}
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}

    def swapped(name: str, array: np.ndarray) -> np.ndarray:
        layer = next((layer for layer in other if layer in name), None)
        return array if layer is None else weights[name.replace(layer, other[layer])]

    edit_weights(folder / DECODER, swapped)
    text = wrong(source, folder)
    assert "decoder" in starts(text)
    assert "; execution mismatch: " in text


def test_two_bits_passed_off_as_eight(source: Source, folder: Path) -> None:
    quantize(folder / DECODER, "decoder", "q2")
    text = wrong(source, folder, "onnx-int8")
    assert starts(text) == {"decoder"}


@pytest.mark.parametrize(("file", "word"), [(VISION, "mlp.fc1.weight"), (DECODER, "down_proj.weight")])
def test_weights_that_are_no_numbers(source: Source, folder: Path, file: str, word: str) -> None:
    def spoiled(name: str, array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[0, 0] = np.nan if word in name else array[0, 0] if array.ndim > 1 else array.flat[0]
        return array

    edit_weights(folder / file, lambda name, array: spoiled(name, array) if array.ndim == 2 else array)
    assert starts(wrong(source, folder)) & {"decoder", "vision encoder"}


def test_an_activation_that_is_too_large_for_16_bits(tmp_path: Path) -> None:
    """1e5 in the vision encoder, harmless in fp32: what is wrong is named, and what would do."""
    checkpoint = Path(shutil.copytree(STUDENT, tmp_path / "large"))
    weights = load_file(checkpoint / "model.safetensors")
    prefix = "model.vision_model.encoder.layers.0.mlp."
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    for name, factor in (("fc1.weight", 1e5), ("fc1.bias", 1e5), ("fc2.weight", 1e-5)):
        weights[prefix + name] *= np.float32(factor)
    save_file(weights, checkpoint / "model.safetensors")
    source = Source("large", checkpoint, tmp_path / "exports")
    schemes = [load_scheme(name) for name in ("onnx-fp32", "onnx-fp16", "onnx-int8")]
    known = gate.trace_references(source, None, 1)
    fill_parts("student", tmp_path / "parts", ("embed", "decoder"))
    for scheme in schemes[:2]:
        folder = tmp_path / scheme.name
        folder.mkdir()
        build(BuildContext(source, folder, tmp_path / "parts", None, 1), scheme)
        write_layout(source, scheme, folder, None, 2048, 1)
    gate.verify(source, tmp_path / "onnx-fp32", schemes[0], None, 1, known)
    with pytest.raises(VerificationError, match="onnx-fp16 of large is not the model") as caught:
        gate.verify(source, tmp_path / "onnx-fp16", schemes[1], None, 1, known, schemes)
    assert "vision encoder" in starts(str(caught.value))
    assert str(caught.value).endswith("choose a scheme with more bits for the vision encoder: onnx-fp32")


@pytest.mark.parametrize(
    ("scheme", "component", "advised"),
    [
        ("onnx-q4", "decoder", "choose a scheme with more bits for the decoder: gguf-q8_0, onnx-fp16, onnx-int8"),
        ("onnx-int8", "vision encoder", "choose a scheme with more bits for the vision encoder: onnx-fp16"),
        ("onnx-fp16", "decoder", "no other scheme here has more bits for the decoder: rerun with --fresh, or name a "),
        ("gguf-q8_0", "chat template", "more bits do not help; check the checkpoint's chat template, or use a scheme "),
        ("onnx-q4", "runtime", "a file is damaged or its runtime is another version: rerun with --fresh, and run "),
    ],
)
def test_advice_fits_the_cause(scheme: str, component: str, advised: str) -> None:
    others = [load_scheme(name) for name in ("gguf-q8_0", "gguf-q2_k", "onnx-fp16", "onnx-int8", "onnx-q2")]
    assert gate.advice(load_scheme(scheme), {component}, others).startswith(advised)


@pytest.mark.peer
def test_a_template_that_llama_cpps_programs_render_as_another_prompt(source: Source, pair: Path) -> None:
    """Our own runtime would give the right answer."""
    path = pair / "model-f16.gguf"
    content = path.read_bytes()
    assert content.count(b"| capitalize") == 1
    path.write_bytes(content.replace(b"| capitalize", b"| upper     "))
    text = wrong(source, pair, "gguf-f16")
    assert starts(text) == {"chat template"}
    assert "llama.cpp's programs write '<|im_start|>USER:" in text


def test_a_damaged_graph(source: Source, folder: Path) -> None:
    path = folder / DECODER
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert starts(wrong(source, folder)) == {"runtime"}


@pytest.mark.parametrize("step", ["trace_export", "trace_checkpoint"])
def test_a_machine_that_is_too_small_is_not_the_exports_fault(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dies(*_: Any) -> None:
        raise MachineError(f"{step} was killed, most likely because memory ran out: free memory and rerun")

    known = references(source)
    monkeypatch.setattr(gate, step, dies)
    with pytest.raises(MachineError, match="memory ran out") as caught:
        gate.verify(source, folder, load_scheme("onnx-fp32"), None, 1, known)
        gate.trace_references(source, None, 1)
    assert caught.value.exit_code == 1


def test_a_runtime_that_gives_up_halfway(apart: None, source: Source, folder: Path) -> None:
    """An embedding table of another width: the graph loads, and stops in the middle with an exception of its own."""
    path = folder / "onnx/embed_tokens.onnx"
    model = onnx.load(path)
    table = model.graph.initializer[0]
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:, :128].copy(), table.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 128
    onnx.save(model, path)
    assert "runtime" in starts(wrong(source, folder))


# --- other weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "q4", "q4f16", "q2"])
def test_an_adapter_that_was_not_merged(source: Source, folder: Path, base: Path, precision: str) -> None:
    """At any number of bits: coarse schemes have wide tolerances, but the export lies at the base."""
    to_base(folder / VISION, base)
    to_base(folder / DECODER, base)
    if precision != "fp32":
        to_scheme(folder, f"onnx-{precision}")
    text = wrong(source, folder, f"onnx-{precision}")
    assert OF_THE_BASE in text
    assert "they are the base model's" in text or precision == "q2"


@pytest.mark.parametrize("precision", ["fp16", "int8", "q4"])
def test_a_vision_adapter_that_went_missing(source: Source, folder: Path, base: Path, precision: str) -> None:
    """The language model is the aligned one, the tower the base's: only the vision embeddings are the base's."""
    to_base(folder / VISION, base)
    to_scheme(folder, f"onnx-{precision}")
    text = wrong(source, folder, f"onnx-{precision}")
    assert OF_THE_BASE in text
    assert "they are the base model's" not in text


@pytest.mark.parametrize("precision", ["fp16", "int8", "q4", "q4f16"])
def test_a_language_adapter_that_went_missing(source: Source, folder: Path, base: Path, precision: str) -> None:
    """The tower is the aligned one, and rounding moves the words as far as the alignment did."""
    to_base(folder / DECODER, base)
    to_scheme(folder, f"onnx-{precision}")
    text = wrong(source, folder, f"onnx-{precision}")
    assert starts(text) == {"decoder"}
    assert "they are the base model's" in text


def test_a_wide_tolerance_does_not_hide_a_missing_adapter(source: Source, folder: Path, base: Path) -> None:
    to_base(folder / VISION, base)
    assert OF_THE_BASE in wrong(source, folder, "onnx-q2")


def test_a_connector_of_the_base(source: Source, folder: Path, base: Path) -> None:
    to_base(folder / VISION, base, "connector")
    to_scheme(folder, "onnx-fp16")
    assert "vision encoder" in starts(wrong(source, folder, "onnx-fp16"))


def test_a_layer_that_was_left_out_of_the_merge(source: Source, folder: Path, base: Path) -> None:
    to_base(folder / DECODER, base, "text_model.layers.1.")
    to_scheme(folder, "onnx-fp16")
    assert "decoder" in starts(wrong(source, folder, "onnx-fp16"))


def test_weights_on_another_scale(source: Source, folder: Path) -> None:
    """A scale that was applied twice."""
    edit_weights(folder / VISION, lambda name, array: array * 3 if "fc1.weight" in name else array)
    assert "vision encoder" in starts(wrong(source, folder))


def test_one_layer_written_twice(source: Source, folder: Path) -> None:
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / DECODER).graph.initializer}
    edit_weights(folder / DECODER, lambda name, _: weights[name.replace("layers.1.", "layers.0.")])
    assert "decoder" in starts(wrong(source, folder))


def test_shuffled_rows(source: Source, folder: Path) -> None:
    random = np.random.default_rng(0)
    edit_weights(folder / VISION, lambda name, array: random.permutation(array) if "fc1.weight" in name else array)
    assert "vision encoder" in starts(wrong(source, folder))


def test_a_truncated_tensor(source: Source, folder: Path) -> None:
    edit_weights(folder / VISION, lambda name, array: array[:-1] if "fc1.weight" in name else array)
    assert "runtime" in starts(wrong(source, folder))


# --- llama.cpp and both runtimes --------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return copied(gguf_folder("student"), tmp_path)


def edit_gguf(path: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Numbers of the 16- and 32-bit tensors, in place."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.data.dtype.kind == "f":
            tensor.data[...] = change(tensor.name, tensor.data)
    reader.data.flush()


@pytest.mark.peer
def test_a_right_gguf_passes(source: Source, pair: Path) -> None:
    parity, details = verified(source, pair, "gguf-f16")
    assert parity.tokens_equal
    assert details.pixels_equal is None
    assert details.vision_toward_aligned == pytest.approx(1, abs=0.01)
    assert details.kl_aligned < 0.01 * details.kl_base


@pytest.mark.peer
@pytest.mark.parametrize("value", [0.0, np.nan, 1e-3])
def test_an_mmproj_full_of_nothing(source: Source, pair: Path, value: float) -> None:
    edit_gguf(pair / "mmproj-f16.gguf", lambda name, data: data * 0 + value if ".blk." in name else data)
    text = wrong(source, pair, "gguf-q2_k")
    if np.isnan(value):
        assert starts(text) == {"vision encoder"}
    else:
        assert "vision encoder" in starts(text)
        assert "it may be the input or the execution" in text


@pytest.mark.peer
@pytest.mark.parametrize("precision", ["f16", "q8_0", "q4_0", "q2_k"])
def test_an_adapter_that_is_not_in_the_gguf(
    source: Source, home: Path, base: Path, tmp_path: Path, precision: str
) -> None:
    """Both files made from the base."""
    folder, scheme = copied(scheme_folder("student", f"gguf-{precision}"), tmp_path), load_scheme(f"gguf-{precision}")
    (folder / MADE).unlink()
    build(BuildContext(Source("base", base, home / "exports"), folder, home / "base-parts", None, 1), scheme)
    text = wrong(source, folder, scheme.name)
    assert OF_THE_BASE in text


@pytest.mark.peer
def test_a_language_model_of_the_base_in_llama_cpp(source: Source, home: Path, base: Path, pair: Path) -> None:
    """The mmproj is the aligned one: the logits tell."""
    vision = (pair / "mmproj-f16.gguf").read_bytes()
    (pair / MADE).unlink()
    build(
        BuildContext(Source("base", base, home / "exports"), pair, home / "base-parts", None, 1),
        load_scheme("gguf-f16"),
    )
    (pair / "mmproj-f16.gguf").write_bytes(vision)
    text = wrong(source, pair, "gguf-f16")
    assert starts(text) == {"decoder"}
    assert "; execution mismatch: " in text


@pytest.mark.peer
def test_a_gguf_that_lies_about_its_size(source: Source, pair: Path) -> None:
    """Found from the header, before any library believes it."""
    path = pair / "model-f16.gguf"
    content = bytearray(path.read_bytes())
    content[8:16] = (2**40).to_bytes(8, "little")  # number of tensors
    path.write_bytes(content)
    assert starts(wrong(source, pair, "gguf-f16")) == {"runtime"}


@pytest.mark.peer
def test_a_prompt_of_another_template_in_llama_cpp(source: Source, pair: Path) -> None:
    edit_artifact(pair, lambda artifact: artifact["prompt"].update(after="<end_of_utterance>\n"))
    assert "chat template" in starts(wrong(source, pair, "gguf-f16"))


@pytest.mark.peer
def test_another_input_in_the_hybrid(source: Source, tmp_path: Path) -> None:
    folder = copied(hybrid_folder("student"), tmp_path)
    edit_artifact(folder, lambda artifact: artifact["image"].update(image_mean=[0.3, 0.5, 0.5]))
    assert "; input mismatch: " in wrong(source, folder, "hybrid-int8-q8_0")


@pytest.mark.peer
def test_a_right_hybrid_passes(source: Source, tmp_path: Path) -> None:
    verified(source, copied(hybrid_folder("student"), tmp_path), "hybrid-int8-q8_0")


# --- where the base is ------------------------------------------------------------------------------------------------


def test_a_base_that_is_no_longer_here(source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recipe = source.recipe.model_copy(update={"student": "nobody/never"})  # type: ignore[union-attr]
    gone = Source(source.name, source.checkpoint, source.exports, run=source.run, recipe=recipe)
    assert gate.base_of(gone) is None


def test_a_plain_checkpoint_has_no_base(source: Source) -> None:
    assert gate.base_of(Source(source.name, source.checkpoint, source.exports)) is None


def test_a_base_that_cannot_be_loaded_is_left_out(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(STUDENT, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes(b"\xff" * 64)
    recipe = source.recipe.model_copy(update={"student": str(damaged)})  # type: ignore[union-attr]
    assert gate.trace_references(replace(source, recipe=recipe), None, 1)[1] is None
    assert "mine: not compared with the base model (" in capsys.readouterr().err
