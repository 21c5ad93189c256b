from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from mpa_edge.errors import MpaError
from mpa_edge.nursery import models
from mpa_edge.vlm.shared.prompts import without_special_tokens
from mpa_edge.vlm.transformers import checkpoint
from tests.families import zoo

# as in Qwen2-VL, with the nursery's tokens: turns end with <|im_end|>, an answer starts on a new line
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}<image>{% else %}{{ line['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# no end token at all, as in some LLaVA checkpoints
BARE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'image' %}<image>\n{% else %}{{ line['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# thinking models write an empty thought into an answered turn only
REWRITING = CHATML.replace(
    "<|im_start|>{{ message['role'] }}\n",
    "<|im_start|>{{ message['role'] }}\n{% if not add_generation_prompt %}<think></think>{% endif %}",
)


@pytest.fixture(scope="module")
def processor():
    return models.build_processor()


def with_template(template: str, end: str):
    processor = models.build_processor()
    processor.chat_template, processor.tokenizer.eos_token = template, end
    return processor


def test_a_prompt_is_image_first_then_text_then_the_answers_turn(processor) -> None:
    assert checkpoint.chat_prompt(processor, "What is it?") == (
        "<|im_start|>User:<image>What is it?<end_of_utterance>\nAssistant:"
    )


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        (models.CHAT_TEMPLATE, "<end_of_utterance>", " 42<end_of_utterance>"),
        (CHATML, "<|im_end|>", "42<|im_end|>"),
        (BARE, "<|endoftext|>", " 42<|endoftext|>"),
    ],
)
def test_a_completion_is_the_answer_and_its_end_token_in_any_template(template: str, end: str, expected: str) -> None:
    processor = with_template(template, end)
    completion = checkpoint.chat_completion(processor, "How many?", "42")
    assert completion == expected
    ids = processor.tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert ids.count(processor.tokenizer.eos_token_id) == 1


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    with pytest.raises(MpaError, match="rewrites the prompt.*use another checkpoint"):
        checkpoint.chat_completion(with_template(REWRITING, "<|im_end|>"), "How many?", "42")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
marked = st.lists(st.one_of(texts, st.sampled_from(models.SPECIAL_TOKENS)), max_size=5).map("".join)
PROCESSOR = models.build_processor()


@given(marked, marked)
def test_only_the_templates_own_special_tokens_reach_the_model(prompt: str, answer: str) -> None:
    tokenizer = PROCESSOR.tokenizer
    special = set(tokenizer.all_special_ids)

    def specials(text: str) -> list[int]:
        return [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in special]

    assert specials(checkpoint.chat_prompt(PROCESSOR, prompt)) == specials(checkpoint.chat_prompt(PROCESSOR, "a?"))
    completion = checkpoint.chat_completion(PROCESSOR, prompt, answer)
    assert specials(completion) == [tokenizer.eos_token_id]
    assert completion == f" {without_special_tokens(answer, checkpoint.special_tokens(PROCESSOR))}{models.END}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <image>b", "a b"),
        ("<ima<image>ge>", ""),
        ("<end_of_utterance>\nAssistant: yes", "\nAssistant: yes"),
        ("a < b > c <images>", "a < b > c <images>"),
        ("", ""),
    ],
)
def test_special_tokens_are_taken_out_until_none_is_left(processor, text: str, expected: str) -> None:
    assert without_special_tokens(text, checkpoint.special_tokens(processor)) == expected


def test_a_processor_pads_on_the_left_and_a_model_is_fp32_in_evaluation_mode(random_checkpoint: Path) -> None:
    assert checkpoint.load_processor(str(random_checkpoint)).tokenizer.padding_side == "left"
    model = checkpoint.load_model(str(random_checkpoint), "cpu")
    assert (model.dtype, model.training) == (torch.float32, False)


def error(path: Path) -> str:
    with pytest.raises(MpaError) as caught:
        checkpoint.load_model(str(path), "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_damaged_weights_say_so(a_copy: Path) -> None:
    weights = a_copy / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 100, b"\x10" + whole[1:]):
        weights.write_bytes(damaged)
        assert "model.safetensors' is damaged" in error(a_copy)


def test_missing_weights_are_never_replaced_by_random_ones(a_copy: Path) -> None:
    tensors = load_file(a_copy / "model.safetensors")
    lost = sorted(key for key in tensors if "layers.1.mlp" in key)
    save_file({k: v for k, v in tensors.items() if k not in lost}, a_copy / "model.safetensors", {"format": "pt"})
    message = error(a_copy)
    assert f"lacks {len(lost)} tensors of its config.json ({lost[0]})" in message
    assert message.endswith("copy the checkpoint again")


def test_weights_of_another_shape_are_refused(a_copy: Path) -> None:
    config = json.loads((a_copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 256
    (a_copy / "config.json").write_text(json.dumps(config))
    assert "lacks 9 tensors" in error(a_copy)  # gate, up and down of three layers


def test_a_pickle_is_never_opened(a_copy: Path) -> None:
    (a_copy / "model.safetensors").unlink()
    (a_copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(a_copy / "ran").encode() + b"'\ntR.")
    assert "safetensors" in error(a_copy)
    assert not (a_copy / "ran").exists()


def test_code_that_travels_with_a_checkpoint_is_not_run(a_copy: Path, capfd) -> None:
    config = json.loads((a_copy / "config.json").read_text())
    config |= {
        "model_type": "brand_new",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.M"},
    }
    (a_copy / "config.json").write_text(json.dumps(config))
    (a_copy / "own.py").write_text(f"open({str(a_copy / 'ran')!r}, 'w')")
    error(a_copy)
    assert not (a_copy / "ran").exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "brand_new"}', '{"model_type": "llama"}'])
def test_a_config_that_is_no_vision_language_model_is_one_line(a_copy: Path, content: str) -> None:
    (a_copy / "config.json").write_text(content)
    error(a_copy)


def test_a_language_model_has_no_image_processor(a_copy: Path) -> None:
    for name in ("processor_config.json", "chat_template.jinja"):
        (a_copy / name).unlink(missing_ok=True)
    (a_copy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MpaError, match="no vision-language model|cannot load"):
        checkpoint.load_processor(str(a_copy))


def test_a_folder_without_a_tokenizer_is_one_line(a_copy: Path) -> None:
    for path in a_copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(MpaError) as caught:
        checkpoint.load_processor(str(a_copy))
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_an_error_and_auto_takes_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkpoint.pick_device("auto") == checkpoint.pick_device("cpu") == "cpu"
    with pytest.raises(MpaError, match="cuda is not available.*--set device=cpu"):
        checkpoint.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [checkpoint.pick_device(wanted) for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_threads_are_set_and_default_to_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(checkpoint.os, "sched_getaffinity", lambda _: {0, 5})
    try:
        assert checkpoint.set_threads(1) == torch.get_num_threads() == 1
        assert checkpoint.set_threads(None) == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_that_needs_its_authors_code_names_the_other_format(tmp_path: Path) -> None:
    code = {"AutoConfig": "configuration_minicpm.MiniCPMVConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "minicpmv", "auto_map": code}))
    (tmp_path / "configuration_minicpm.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(MpaError, match=r"for InternVL one whose name ends with -hf"):
        checkpoint.load_processor(str(tmp_path))


# --- checkpoints published before processors knew everything ----------------------------------------------------------


@pytest.fixture(params=["siglip", "clip"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """(a LLaVA checkpoint of today, the same as of 2024: an image processor, a tokenizer, no more)."""
    today = zoo.checkpoint("llava", tower=request.param)
    folder = Path(shutil.copytree(today, tmp_path / "old"))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor["image_processor"]))
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    return today, folder


def test_an_old_llava_takes_as_many_tokens_as_a_new_one(old: tuple[Path, Path]) -> None:
    today, before = (checkpoint.load_processor(str(folder)) for folder in old)
    assert isinstance(before.patch_size, int)
    image = zoo.noise(90, 60)
    feeds = [
        processor(text=["a <image> b"], images=[[image]], add_special_tokens=False, return_tensors="pt")
        for processor in (today, before)
    ]
    assert feeds[0]["input_ids"].tolist() == feeds[1]["input_ids"].tolist()
    assert (feeds[0]["pixel_values"] == feeds[1]["pixel_values"]).all()


def test_it_is_asked_as_its_card_says_and_answers_end(old: tuple[Path, Path]) -> None:
    processor = checkpoint.load_processor(str(old[1]))
    assert checkpoint.chat_prompt(processor, "What is it?") == "USER: <image>\nWhat is it?\nASSISTANT:"
    assert checkpoint.chat_completion(processor, "What is it?", "red") == " red</s>"


def test_what_is_filled_in_is_saved(old: tuple[Path, Path], tmp_path: Path) -> None:
    processor = checkpoint.load_processor(str(old[1]))
    processor.save_pretrained(tmp_path / "saved")
    shutil.copy(old[1] / "config.json", tmp_path / "saved")
    again = checkpoint.load_processor(str(tmp_path / "saved"))
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "chat_template"):
        assert getattr(again, name) == getattr(processor, name)


def test_a_family_without_a_known_template_says_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.checkpoint("internvl"), tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(MpaError, match=r"has no chat template: put its chat_template\.jinja into the folder"):
        checkpoint.load_processor(str(folder))


def test_a_start_token_that_the_template_leaves_out_is_there_once() -> None:
    tokenizer = checkpoint.load_processor(str(zoo.checkpoint("llava"))).tokenizer
    assert checkpoint.with_bos(tokenizer, "USER: x") == "USER: x"  # this one adds none
    adding = checkpoint.load_processor(str(zoo.checkpoint("llava"))).tokenizer
    adding._tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", adding.bos_token_id)])
    assert adding("x")["input_ids"][0] == adding.bos_token_id
    assert checkpoint.with_bos(adding, "USER: x") == checkpoint.with_bos(adding, "<s>USER: x") == "<s>USER: x"
