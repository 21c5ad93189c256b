"""What a checkpoint means does not depend on the layout of its files: the judge is transformers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mpa_edge.cli.main import main
from mpa_edge.config.library import load_target
from mpa_edge.config.scheme import Component
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import stage
from mpa_edge.exporters.gguf.template import gguf_template
from mpa_edge.exporters.pipeline import PARTS, Order, choose_schemes, parts_inputs, run_export
from mpa_edge.exporters.source import open_source
from mpa_edge.planning.model_specs import model_spec
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.manifest import prepare
from mpa_edge.vlm import load
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.exporters import layouts
from tests.exporters.gguf.made import source_of
from tests.families import zoo
from tests.vlm.exported import fill_parts

Layout = Callable[[Path], Path]
CASES: dict[str, tuple[str, Layout]] = {
    "names of 4.52": ("qwen2_5_vl", layouts.named_as_in_4_52),
    "names of 4.52, qwen2_vl": ("qwen2_vl", layouts.named_as_in_4_52),
    "files of 2024, qwen2_vl": ("qwen2_vl", layouts.processor_files_of_2024),
    "files of 2024, idefics3": ("idefics3", layouts.processor_files_of_2024),
    "files of 2024, qwen2_5_vl": ("qwen2_5_vl", layouts.processor_files_of_2024),
    "differences, llava": ("llava", layouts.only_differences),
    "differences, idefics3": ("idefics3", layouts.only_differences),
    "differences, internvl": ("internvl", layouts.only_differences),
    "no template": ("llava", layouts.without_template),
    "second copies": ("idefics3", layouts.with_second_copies),
    "hub cache": ("smolvlm", layouts.in_a_hub_cache),
    "sharded": ("qwen3_vl", layouts.sharded),
    "torch_dtype": ("internvl", layouts.torch_dtype),
    "tied head": ("qwen2_vl", layouts.with_tied_head),
    "flat preprocessor": ("qwen2_vl", layouts.flat_preprocessor),
    "template in the tokenizer": ("smolvlm", layouts.template_in_tokenizer),
    "nested tower": (
        "llava",
        lambda folder: layouts.renamed(folder, lambda name: name.replace("tower.", "tower.vision_model.")),
    ),
    "names of 5": (
        "internvl",
        lambda folder: layouts.renamed(
            folder,
            lambda name: (
                name.removeprefix("language_model.")
                if "lm_head" in name
                else "model." + name.replace("language_model.model.", "language_model.")
            ),
        ),
    ),
}
both = pytest.mark.parametrize(("model_type", "layout"), CASES.values(), ids=CASES)


@both
def test_every_reader_sees_the_checkpoint_as_transformers_saves_it(
    model_type: str, layout: Layout, tmp_path: Path
) -> None:
    plain = source_of(zoo.checkpoint(model_type))
    source = source_of(layout(layouts.copy_of(tmp_path, model_type)))
    assert source.config == plain.config
    assert source.image_values(None) == plain.image_values(None)
    assert source.shapes == plain.shapes
    planned, usual_plan = (model_spec(str(one.checkpoint)) for one in (source, plain))
    assert planned.shapes == usual_plan.shapes
    assert planned.image_tokens([(300, 200)]) == usual_plan.image_tokens([(300, 200)])
    budget = load_target("cpu").image
    assert source.image_values(budget) == plain.image_values(budget)
    staged, usual = (stage(one, tmp_path / f"staged-{i}", budget) for i, one in enumerate((source, plain)))
    for name in ("config.json", "preprocessor_config.json"):
        assert read_json(staged / name) == read_json(usual / name)
    template = read_json(staged / "tokenizer_config.json")["chat_template"]
    assert layout is layouts.without_template or template == read_json(usual / "tokenizer_config.json")["chat_template"]


# ONNX graphs are made from the model that transformers loads; llama.cpp's converter reads the files itself
EXPORTED = [
    *(
        pytest.param(*CASES[name], "gguf-f16", id=f"{name}, gguf")
        for name in ("names of 4.52", "files of 2024, idefics3", "differences, llava", "hub cache", "nested tower")
    ),
    pytest.param(*CASES["no template"], "onnx-fp32", id="no template, onnx"),
    pytest.param("qwen2_vl", layouts.as_it_lies, "gguf-f16", id="all at once, gguf"),
    pytest.param("idefics3", layouts.as_it_lies, "onnx-int8", id="all at once, onnx"),
]


UNCHANGED: dict[Layout, tuple[Component, ...]] = {
    layouts.without_template: ("vision", "embed", "decoder"),
    layouts.as_it_lies: ("vision",),  # it has more words
}
"""Graphs that a layout does not change: those of the usual one."""


@pytest.mark.peer
@pytest.mark.parametrize(("model_type", "layout", "scheme"), EXPORTED)
def test_an_export_is_the_model_that_transformers_loads(
    model_type: str, layout: Layout, scheme: str, tmp_path: Path
) -> None:
    folder = layout(layouts.copy_of(tmp_path, model_type))
    source = open_source(str(folder), out=str(tmp_path / "exports"))
    target = load_target("cpu")
    order = Order(source, choose_schemes(source, [scheme], target), target, threads=1)
    prepare(source.exports / PARTS, parts_inputs(order))
    fill_parts(model_type, source.exports / PARTS, UNCHANGED.get(layout, ()))
    [made] = run_export(order)
    manifest = read_json(made / "manifest.json")
    assert manifest["parity"]["greedy_prefix"] == 1.0 or scheme == "onnx-int8"
    folder.chmod(0o755)
    if scheme == "gguf-f16":
        template = read_header(next(made.glob("model-*.gguf"))).metadata["tokenizer.chat_template"]
        assert template == gguf_template(str(folder))


def test_what_is_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = layouts.with_second_copies(layouts.copy_of(tmp_path, "idefics3"))
    source = source_of(folder)
    choose_schemes(source, ["onnx-int8", "onnx-fp16"], None)
    said = capsys.readouterr().err
    assert said.count("transformers does not load adapter_model.safetensors, consolidated.safetensors") == 1


# --- refused before anything is built ---------------------------------------------------------------------------------


def quantized(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    held = load_file(folder / "model.safetensors")
    name = next(name for name in held if name.endswith("q_proj.weight"))
    save_file(
        held | {name: held[name].char(), f"{name}.SCB": held[name][:, 0].contiguous()}, folder / "model.safetensors"
    )


def compressed(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"compression_config": {"quant_method": "compressed-tensors"}})


def int8_without_a_word(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    name = next(name for name in held if name.endswith("q_proj.weight"))
    save_file(held | {name: held[name].char()}, folder / "model.safetensors")


def gptq_of_2023(folder: Path) -> None:
    write_json(folder / "quantize_config.json", {"bits": 4})


def adapter_beside(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "owner/base"})
    save_file(load_file(folder / "model.safetensors"), folder / "adapter_model.safetensors")


def adapter_alone(folder: Path) -> None:
    adapter_beside(folder)
    (folder / "model.safetensors").unlink()


def adapter_without_config(folder: Path) -> None:
    adapter_alone(folder)
    (folder / "config.json").unlink()


def wrapped(folder: Path) -> None:
    layouts.renamed(folder, lambda name: f"base_model.model.{name}")


def index_of(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    weight_map = {"a": "part.safetensors", "b": name}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def index_with_a_pickle(folder: Path) -> None:
    index_of(folder, "pytorch_model.bin")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(folder / "ran"), "w"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def index_that_climbs(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder.parent / "other.safetensors")
    index_of(folder, "../other.safetensors")


def index_from_the_root(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder.parent / "other.safetensors")
    index_of(folder, str(folder.parent / "other.safetensors"))


def linked_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "other.safetensors")


def linked_part(folder: Path) -> None:
    index_of(folder, "part.safetensors")
    (folder / "part.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "part.safetensors").symlink_to("../other.safetensors")


def linked_licence(folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    (folder / "LICENSE").symlink_to("../secret")


def own_weights_file(folder: Path) -> None:
    write_json(
        folder / "config.json", read_json(folder / "config.json") | {"transformers_weights": "adapter_model.bin"}
    )


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def other_shape(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["text_config"]["intermediate_size"] *= 2
    write_json(folder / "config.json", config)


def lost_tensors(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    save_file({name: one for name, one in held.items() if "layers.1." not in name}, folder / "model.safetensors")


def template_without_image(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")


def other_image_processor(folder: Path) -> None:
    values = read_json(folder / "processor_config.json")
    values["image_processor"] |= {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}}
    write_json(folder / "processor_config.json", values)


ADAPTER_ALONE = (
    r"is an adapter of 'owner/base', which is not here: name it with --base MODEL"
    r"|is an adapter \(adapter_config.json\), not a whole model: mpa-edge export .* merges it"
)
REFUSED: dict[Callable[[Path], None], str] = {
    quantized: r"is quantized already \(bitsandbytes, quantization_config.*use the checkpoint that it was made from",
    compressed: r"is quantized already \(compressed-tensors, .*use the checkpoint that it was made from",
    int8_without_a_word: r"holds .*q_proj.weight as I8: use the checkpoint in fp32, bf16 or fp16",
    gptq_of_2023: r"is quantized already \(quantize_config.json\)",
    adapter_beside: r"holds a model and an adapter \(adapter_config.json\).*remove the adapter's files",
    adapter_alone: ADAPTER_ALONE,
    adapter_without_config: ADAPTER_ALONE,
    wrapped: r"begin with 'base_model.model.'.*save the model inside it",
    index_with_a_pickle: r"names 'pytorch_model.bin', which is no safetensors file: convert",
    index_that_climbs: r"names '../other.safetensors', outside the folder",
    index_from_the_root: r"names '/.*other.safetensors', outside the folder",
    linked_weights: r"model.safetensors' leads out of the checkpoint's folder: copy the file itself",
    linked_part: r"part.safetensors' leads out of the checkpoint's folder: copy the file itself",
    linked_licence: r"LICENSE' leads out of the checkpoint's folder: copy the file itself",
    own_weights_file: r"names a weights file of its own",
    only_a_pickle: r"holds only pytorch_model.bin, a pickle that can run code: convert",
    other_shape: r"lacks 6 tensors of its config.json",
    template_without_image: r"chat_template.jinja' cannot be used \(it puts no image into a question\): copy it",
    other_image_processor: r"idefics3' does not work \(.*\): its files do not belong together",
    lost_tensors: r"lacks \d+ tensors of its config.json",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_dry_run_refuses_what_cannot_be_exported(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = layouts.copy_of(tmp_path, "idefics3")
    change(folder)
    for scheme in ("onnx-fp32", "gguf-f16"):
        with pytest.raises(MpaError, match=REFUSED[change]) as caught:
            choose_schemes(open_source(str(folder), out=str(tmp_path / "exports")), [scheme], None)
        assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()
    assert not (tmp_path / "exports").exists()


LOADED = [change for change in REFUSED if change not in (quantized, compressed, gptq_of_2023)]


@pytest.mark.parametrize("change", LOADED, ids=lambda change: change.__name__)
def test_no_loader_takes_it_either(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = layouts.copy_of(tmp_path, "idefics3")
    change(folder)
    with pytest.raises(MpaError, match=REFUSED[change]):
        load(str(folder), name="student", device="cpu", threads=1)
    assert not (folder / "ran").exists()


def test_the_screen_of_a_published_qwen_shows_the_forecast(tmp_path: Path) -> None:
    folder = layouts.processor_files_of_2024(layouts.copy_of(tmp_path, "qwen2_vl"))
    done = CliRunner().invoke(main, ["export", str(folder), "--target", "cpu", "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["predicted_bytes"]
