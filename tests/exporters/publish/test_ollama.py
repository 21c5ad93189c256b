"""The Modelfile: Ollama's grammar takes it, and its template language writes the checkpoint's prompt with it."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.template import adds_bos, image_text
from mpa_edge.exporters.publish.ollama import go_template, modelfile
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS
from mpa_edge.vlm.transformers.checkpoint import load_processor, with_bos
from tests.exporters import ollama
from tests.families import zoo
from tests.vlm.exported import STUDENT, checkpoint
from tests.vlm.llama_exported import gguf_folder

KINDS = (STUDENT, *(kind for kind in zoo.MODEL_TYPES if kind not in READ_BOTH_WAYS))
TALKS = (
    [("user", "How many bars are there?", 1)],
    [("user", 'In "which" year? {{ .Role }}\n\nOne word.', 1)],
    [("user", "Hello", 0)],
    [("user", "Which is larger?", 2)],
    [("system", "Be brief.", 0), ("user", "How many?", 1)],
    [("user", "How many?", 1), ("assistant", "Four.", 0), ("user", "Which colour?", 0)],
    [
        ("system", "Be brief.", 0),
        ("user", "How many?", 0),
        ("assistant", "Four.", 0),
        ("user", "And here?", 1),
        ("assistant", "Five.", 0),
        ("user", "Here?", 1),
    ],
)
QWEN_DEFAULT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
THINKS = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"


def prompt(processor: Any, talk: list[tuple[str, str, int]]) -> str:
    """The checkpoint's prompt, with Ollama's marks in the places of images."""
    messages = [
        {"role": role, "content": [*[{"type": "image"}] * n, {"type": "text", "text": text}]} for role, text, n in talk
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    text, number = with_bos(processor.tokenizer, text), 0
    while image_text(processor) in text:
        text, number = text.replace(image_text(processor), f"[img-{number}]", 1), number + 1
    return text


def jobs(template: str) -> list[dict[str, Any]]:
    made = []
    for talk in TALKS:
        number, messages = 0, []
        for role, text, n in talk:
            marks = "".join(f"[img-{number + i}]" for i in range(n))
            messages.append({"Role": role, "Content": marks + text, "Images": ["x"] * n})
            number += n
        made.append({"Template": template, "Messages": messages})
    return made


@functools.cache
def processor_of(which: str) -> Any:
    return load_processor(str(checkpoint(which)))


@pytest.mark.peer
@pytest.mark.parametrize("which", KINDS)
def test_go_writes_the_checkpoints_prompt(which: str) -> None:
    expected = [prompt(processor_of(which), talk) for talk in TALKS]
    assert ollama.filled(jobs(go_template(processor_of(which)))) == expected


@pytest.mark.peer
@pytest.mark.parametrize("change", [("{% for message in messages %}", QWEN_DEFAULT), None])
def test_a_default_system_message_and_an_empty_thought_are_written(change: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen2_vl"), tmp_path / "model"))
    own = (folder / "chat_template.jinja").read_text()
    head, _, _ = own.partition("{% if add_generation_prompt")
    changed = own.replace(*change) if change else head + THINKS
    assert changed != own
    (folder / "chat_template.jinja").write_text(changed)
    processor = load_processor(str(folder))
    expected = [prompt(processor, talk) for talk in TALKS]
    assert ollama.filled(jobs(go_template(processor))) == expected
    assert expected != [prompt(processor_of("qwen2_vl"), talk) for talk in TALKS]


LINES = (
    "{% for line in m['content'] %}"
    "{{ line['text'] if line['type'] == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}\n"
)
REFUSED = {
    "numbered turns": "{% for m in messages %}{{ loop.index }}: " + LINES + "{% endfor %}",
    "only the last turn": "{% set m = messages[-1] %}" + LINES,
    "no system": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    + LINES
    + "{% endfor %}",
    "braces": "{% for m in messages %}{{ '{{' }}" + LINES + "{% endfor %}",
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_a_template_without_fixed_parts_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_of("qwen2_vl"), "chat_template", template)
    with pytest.raises(MpaError, match="cannot be written for Ollama.*: use --client llama-server"):
        go_template(processor_of("qwen2_vl"))


@pytest.mark.peer
@pytest.mark.parametrize("which", [STUDENT, "llava", "lfm2_vl", "qwen2_vl"])
def test_the_file_follows_ollamas_grammar(which: str) -> None:
    """And the start token stands in the prompt once: llama.cpp adds it to some models' prompts."""
    folder, processor = gguf_folder(which), processor_of(which)
    artifact = read_artifact(folder)
    found = ollama.commands(modelfile(processor, artifact, folder))
    assert found[:2] == [("from", "./model-f16.gguf"), ("from", "./mmproj-f16.gguf")]
    [template] = [value for name, value in found if name == "template"]
    adds = adds_bos(read_header(folder / artifact.files["language"]).metadata)
    bos = str(processor.tokenizer.bos_token) if adds else ""
    assert [bos + text for text in ollama.filled(jobs(template))] == [prompt(processor, talk) for talk in TALKS]
    ends = [("stop", word) for word in processor.tokenizer.convert_ids_to_tokens(list(artifact.tokens.ends))]
    assert found[3:] == [*ends, ("temperature", "0"), ("num_ctx", "1024"), ("num_thread", "1")]


def test_the_grammar_is_ollamas() -> None:
    """Its own tests' cases, in short: an unclosed quote, an unknown command, a command without a value."""
    text = 'FROM ./a.gguf\n# why\nparameter stop "<|x|>"\nTEMPLATE """{{ .Role }}\n  "a"\n"""\nSYSTEM be brief\n'
    assert ollama.commands(text) == [
        ("from", "./a.gguf"),
        ("stop", "<|x|>"),
        ("template", '{{ .Role }}\n  "a"\n'),
        ("system", "be brief"),
    ]
    for wrong in ('FROM a\nTEMPLATE """x', "FROM a\nTEMPLATES x", "FROM", 'FROM a\nPARAMETER stop "x', "SYSTEM x"):
        with pytest.raises(AssertionError):
            ollama.commands(wrong)
