"""The chat template of a GGUF: llama.cpp's programs write the checkpoint's prompt with it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.template import QUESTION, client_prompt, gguf_template, template_problem, wanted_prompt
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.transformers.checkpoint import load_processor
from tests.exporters.gguf.made import STUDENT, checkpoint, converted, source_of
from tests.families import zoo

TALK = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Four."}]},
    {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
]


@functools.cache
def processor(which: str) -> Any:
    return load_processor(str(checkpoint(which)))


@pytest.mark.parametrize("which", ["student", *zoo.MODEL_TYPES])
def test_one_text_with_a_marker_becomes_the_checkpoints_prompt(which: str) -> None:
    template = gguf_template(str(checkpoint(which)))
    bos = processor(which).tokenizer.bos_token or ""
    wanted = wanted_prompt(processor(which))
    assert client_prompt(processor(which), template).removeprefix(bos) == wanted.removeprefix(bos)
    assert QUESTION in wanted
    changed = which in ("student", "idefics3", "smolvlm", "llava", "internvl")
    assert (template != processor(which).chat_template) == changed


@pytest.mark.parametrize("which", ["student", *zoo.MODEL_TYPES])
@pytest.mark.parametrize("asks", [True, False])
def test_a_talk_in_parts_is_rendered_as_before(which: str, asks: bool) -> None:
    render = functools.partial(processor(which).tokenizer.apply_chat_template, tokenize=False)
    template = gguf_template(str(checkpoint(which)))
    made = render(TALK, chat_template=template, add_generation_prompt=asks)
    assert made == render(TALK, chat_template=processor(which).chat_template, add_generation_prompt=asks)
    if template != processor(which).chat_template:
        plain = [message | {"content": "".join(p.get("text", "") for p in message["content"])} for message in TALK[2:]]
        assert render(plain, chat_template=template) == render(TALK[2:], chat_template=template)


THINKS = (
    "{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is true %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize("which", ["qwen3_5", "internvl"])
def test_a_model_that_does_not_think_by_itself_is_not_told_to(which: str, tmp_path: Path) -> None:
    """llama.cpp's programs set enable_thinking. In a frame of ours and without one."""
    folder = Path(shutil.copytree(checkpoint(which), tmp_path / which))
    own = (folder / "chat_template.jinja").read_text() + THINKS
    (folder / "chat_template.jinja").write_text(own)
    made, wanted = gguf_template(str(folder)), wanted_prompt(load_processor(str(folder)))
    assert wanted.endswith("</think>\n\n")
    assert client_prompt(processor(which), made) == wanted
    assert client_prompt(processor(which), own) != wanted
    assert "llama.cpp's programs write" in str(template_problem(str(folder), {"tokenizer.chat_template": own}))


def test_a_marker_of_a_server_is_taken_as_it_is() -> None:
    text = "<__media_AbC12__>What is it? 3 > 2"
    template = gguf_template(str(STUDENT))
    found = processor("student").tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert found == "<|im_start|>User:<__media_AbC12__>What is it? 3 > 2<end_of_utterance>\nAssistant:"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer.chat_template": None}, "the file has none, and llama.cpp's programs then use ChatML"),
        (
            {"tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
            "llama.cpp's programs write",
        ),
        ({"tokenizer.chat_template": "{{ nothing.there.at.all }}"}, "llama.cpp's programs write ''"),
        ({"tokenizer.ggml.add_bos_token": True}, None),  # it is there already
    ],
)
def test_a_template_that_writes_another_prompt_is_named(changes: dict[str, Any], problem: str | None) -> None:
    metadata = {"tokenizer.chat_template": gguf_template(str(STUDENT)), "tokenizer.ggml.model": "gpt2"} | changes
    found = template_problem(str(STUDENT), metadata)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.peer
@pytest.mark.parametrize("which", ["student", *zoo.MODEL_TYPES])
def test_the_files_own_template_writes_the_checkpoints_prompt(which: str) -> None:
    assert template_problem(str(checkpoint(which)), read_header(converted(which, "language")).metadata) is None


@pytest.mark.peer
@pytest.mark.parametrize("which", ["smolvlm", "llava"])
def test_a_template_of_an_older_file_or_our_own_reaches_the_gguf(which: str, tmp_path: Path) -> None:
    """chat_template.json of 2024, and a LLaVA that was published without any."""
    folder = Path(shutil.copytree(checkpoint(which), tmp_path / which))
    template = AutoProcessor.from_pretrained(folder).chat_template
    (folder / "chat_template.jinja").unlink()
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    if which == "smolvlm":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    convert(source_of(folder), "language", tmp_path / "x.gguf")
    assert template_problem(str(folder), read_header(tmp_path / "x.gguf").metadata) is None
