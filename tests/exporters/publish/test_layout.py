"""The small files of an export, for every family: what AutoProcessor, other clients and our runtimes find in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.artifact import Artifact, read_artifact
from mpa_edge.config.library import load_scheme
from mpa_edge.config.scheme import Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.layout import file_name, prompt_parts, write_layout
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.vlm.pixels import prepare
from mpa_edge.vlm.shared.prompts import without_special_tokens
from mpa_edge.vlm.transformers.checkpoint import chat_prompt, load_processor, special_tokens
from tests.families import zoo
from tests.vlm.exported import checkpoint

EVERY = ("student", *zoo.MODEL_TYPES, "llava:clip")
QUESTION = "What is <image> left of the <|im_start|>bar?\n"


def laid_out(
    where: str | Path, folder: Path, scheme_name: str = "onnx-fp32", budget: ImageBudget | None = None, **bits: str
) -> Artifact:
    """The small files beside empty weights."""
    checkpoint_folder = where if isinstance(where, Path) else checkpoint(where)
    scheme: Scheme = load_scheme(scheme_name)
    scheme = scheme.model_copy(update={"components": {**scheme.components, **bits}})
    for component, precision in scheme.components.items():
        path = folder / file_name(scheme.format, component, precision)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return write_layout(open_source(str(checkpoint_folder), out="runs"), scheme, folder, budget, 2048, 2)


def document(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def prepared(processor: Any, size: tuple[int, int]) -> tuple[list[int], tuple[int, ...]]:
    """(token ids, shape of the pixels) of an image and a question."""
    text = chat_prompt(processor, QUESTION)
    found = processor(text=[text], images=[[drawn(*size, seed=1)]], add_special_tokens=False, return_tensors="np")
    return found["input_ids"][0].tolist(), found["pixel_values"].shape


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_the_folder_is_the_checkpoints_processor(which: str, tmp_path: Path) -> None:
    laid_out(which, tmp_path)
    ours, theirs = load_processor(str(tmp_path)), load_processor(str(checkpoint(which)))
    assert type(ours) is type(theirs)
    for size in ((90, 60), (300, 40)):
        assert prepared(ours, size) == prepared(theirs, size)


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_the_config_is_the_checkpoints_with_every_default_written_out(which: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    laid_out(which, tmp_path)
    ours, theirs = (AutoConfig.from_pretrained(str(folder)) for folder in (tmp_path, checkpoint(which)))
    assert type(ours) is type(theirs)
    assert ours.get_text_config().to_dict() == theirs.get_text_config().to_dict()
    assert ours.vision_config.to_dict() == theirs.vision_config.to_dict()
    written = document(tmp_path / "config.json")
    assert written["model_type"] == theirs.model_type
    assert {"num_hidden_layers", "num_key_value_heads", "hidden_size"} <= written["text_config"].keys()
    assert str(checkpoint(which)) not in (tmp_path / "config.json").read_text()
    assert ("num_hidden_layers" in written) == (which == "qwen2_vl")


@pytest.mark.slow
@pytest.mark.parametrize("which", EVERY)
def test_the_artifact_says_what_the_checkpoint_does(which: str, tmp_path: Path) -> None:
    made = laid_out(which, tmp_path)
    assert read_artifact(tmp_path) == made
    processor = load_processor(str(checkpoint(which)))
    before, after = made.prompt.before, made.prompt.after
    question = without_special_tokens(QUESTION, special_tokens(processor))
    assert made.prompt.trims == (which == "gemma4")
    assert before + (question.strip() if made.prompt.trims else question) + after == chat_prompt(processor, QUESTION)
    assert before.count(made.prompt.placeholder) == 1
    assert processor.tokenizer.convert_tokens_to_ids(made.tokens.image) == made.tokens.image_id
    assert processor.tokenizer.eos_token_id in made.tokens.ends
    assert {made.tokens.image, processor.tokenizer.eos_token} <= set(made.tokens.special)
    assert made.text["head_dim"] == 64
    assert made.text["hidden_size"] == 256
    assert (made.context_tokens, made.threads, made.max_new_tokens, made.prompt_suffix) == (2048, 2, 16, "")
    # the image values are enough to prepare an image, and count its tokens right
    ids, _ = prepared(processor, (90, 60))
    assert prepare(made.image, drawn(90, 60, seed=1)).expansion.count(made.tokens.image) == ids.count(
        made.tokens.image_id
    )


BUDGET = ImageBudget(max_tiles=1, max_pixels=12544)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "internvl"])
def test_the_image_budget_is_in_every_file(which: str, tmp_path: Path) -> None:
    made = laid_out(which, tmp_path, budget=BUDGET)
    nested = document(tmp_path / "processor_config.json")["image_processor"]
    flat = document(tmp_path / "preprocessor_config.json")
    key = "max_patches" if which == "internvl" else "size"
    assert made.image[key] == nested[key] == flat[key]
    full, size = load_processor(str(checkpoint(which))), (240, 200)
    within = load_processor(str(tmp_path))
    assert len(prepared(within, size)[0]) < len(prepared(full, size)[0])
    n_tokens = prepared(within, size)[0].count(made.tokens.image_id)
    assert prepare(made.image, drawn(*size, seed=1)).expansion.count(made.tokens.image) == n_tokens


def test_other_clients_find_the_values_where_they_look(tmp_path: Path) -> None:
    laid_out("student", tmp_path)
    flat = document(tmp_path / "preprocessor_config.json")
    assert flat["image_processor_type"] == "Idefics3ImageProcessor"
    assert flat["processor_class"] == "Idefics3Processor"
    assert flat["size"] == {"longest_edge": 128}
    template = (tmp_path / "chat_template.jinja").read_text()
    assert document(tmp_path / "tokenizer_config.json")["chat_template"] == template
    assert document(tmp_path / "generation_config.json") == document(checkpoint("student") / "generation_config.json")


def test_javascript_is_told_the_precision_of_each_file(tmp_path: Path) -> None:
    laid_out("student", tmp_path, vision="fp16", embed="q8", decoder="q4f16")
    told = document(tmp_path / "config.json")["transformers.js_config"]
    assert told == {
        "dtype": {"vision_encoder": "fp16", "embed_tokens": "q8", "decoder_model_merged": "q4f16"},
        "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
    }


def test_javascript_is_told_of_weights_outside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decoder_model_merged_fp16.onnx_data").touch()
    laid_out("student", tmp_path, decoder="fp16")
    told = document(tmp_path / "config.json")["transformers.js_config"]
    assert told["use_external_data_format"] == {"decoder_model_merged_fp16.onnx": 1}


@pytest.mark.parametrize("scheme", ["gguf-q4_0", "hybrid-int8-q4_0", "onnx-qdq"])
def test_javascript_is_told_nothing_where_it_cannot_load_the_files(scheme: str, tmp_path: Path) -> None:
    laid_out("student", tmp_path, scheme)
    assert "transformers.js_config" not in document(tmp_path / "config.json")
    assert read_artifact(tmp_path).scheme == scheme


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("student"), tmp_path / "copy"))


def test_licences_go_along(tmp_path: Path) -> None:
    source = copied(tmp_path)
    (source / "LICENSE.txt").write_text("as it is")
    (source / "NOTICE").write_text("by whom")
    laid_out(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "as it is"
    assert (tmp_path / "out" / "NOTICE").read_text() == "by whom"


@pytest.mark.parametrize("ends", [[6, 2], 6])
def test_end_tokens_come_from_the_generation_config_first(ends: Any, tmp_path: Path) -> None:
    source = copied(tmp_path)
    settings = document(source / "generation_config.json") | {"eos_token_id": ends}
    (source / "generation_config.json").write_text(json.dumps(settings))
    assert laid_out(source, tmp_path / "out").tokens.ends == ((6, 2) if isinstance(ends, list) else (6,))


def test_end_tokens_without_a_generation_config_are_the_configs(tmp_path: Path) -> None:
    source = copied(tmp_path)
    (source / "generation_config.json").unlink()
    assert laid_out(source, tmp_path / "out").tokens.ends == (6,)


def test_a_run_brings_its_own_way_to_ask(tmp_path: Path) -> None:
    from mpa_edge.config.library import load_recipe

    recipe = load_recipe("textvqa") if "textvqa" in _recipes() else load_recipe(_recipes()[0])
    recipe = recipe.model_copy(update={"identify": recipe.identify.model_copy(update={"max_new_tokens": 5})})
    source = Source("a-run", checkpoint("student"), tmp_path, run=tmp_path, recipe=recipe)
    scheme = load_scheme("onnx-fp32")
    for component in scheme.components:
        (tmp_path / "onnx").mkdir(exist_ok=True)
        (tmp_path / file_name("onnx", component, "fp32")).touch()
    made = write_layout(source, scheme, tmp_path, None, 2048, None)
    assert made.name == "a-run-onnx-fp32"
    assert made.max_new_tokens == 5
    assert "Question?" + made.prompt_suffix == source.prompt("Question?")


def _recipes() -> list[str]:
    from mpa_edge.config.library import names

    return names("recipes")


TEMPLATES = {
    "no image": "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}",
    "image behind": "{{ messages[0]['content'][1]['text'] }}<image>",
    "question lost": "<image>{{ messages[0]['role'] }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_shows_no_image_before_the_question_is_refused(template: str) -> None:
    processor = load_processor(str(checkpoint("student")))
    processor.chat_template = template
    with pytest.raises(MpaError, match="does not put the image once before the question"):
        prompt_parts(processor)
