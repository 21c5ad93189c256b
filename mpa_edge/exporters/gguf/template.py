"""The chat template of a GGUF file: what llama.cpp's own programs render with it must be the checkpoint's prompt.

transformers gives a template an image and a text, two parts. llama.cpp's programs give it one text, in which a marker
stands for the image (`contains_media` and `messages_inp_normalizer` in common/chat.cpp, tools/mtmd/mtmd-cli.cpp). So
what a template writes around an image, such as LLaVA's line break behind it, would be lost.

They also tell every template to let the model think (`enable_thinking` in common/chat.h), where transformers leaves it
to the template: Qwen3.5 0.8B and 2B would begin a thought that they were not trained to begin.
"""

from __future__ import annotations

from typing import Any

from mpa_edge.vlm.llama_cpp.server import OLD_MARKER, WRITTEN_BY_RUNTIME

QUESTION = "mpa question 0451"
THINKING, NEVER_SET = "enable_thinking", "thinking_is_asked_for"
"""Variable that llama.cpp's programs set, and one that they do not know."""
# in front of the original: a text that starts with an image's marker becomes an image and a text, any other one a text
_BEFORE = """\
{%- set own = namespace(messages=[], marker='') -%}
{%- for message in messages -%}
{%- set text = message['content'] if message['content'] is string else '' -%}
{%- if text.startswith('<__media') -%}
{%- set own.marker = text.split('>')[0] + '>' -%}
{%- set parts = [{'type': 'image'}, {'type': 'text', 'text': text[own.marker | length:]}] -%}
{%- set own.messages = own.messages + [{'role': message['role'], 'content': parts}] -%}
{%- elif message['content'] is string -%}
{%- set own.messages = own.messages + [{'role': message['role'], 'content': [{'type': 'text', 'text': text}]}] -%}
{%- else -%}
{%- set own.messages = own.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = own.messages -%}
{%- set rendered -%}{{ '' }}"""
# behind it: the marker in the place of the image
_AFTER = """{{ '' }}{% endset -%}
{{- rendered.replace('PLACEHOLDER', own.marker) if own.marker else rendered -}}"""


def gguf_template(checkpoint: str) -> str:
    """The template for a checkpoint's GGUF: its own, or its own in a frame that restores what would be lost.

    Loads the processor: call it in a process of its own. MpaError where that fails.
    """
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    processor = load_processor(checkpoint)
    template = processor.chat_template
    own = str(template["default"] if isinstance(template, dict) else template)
    bos = str(processor.tokenizer.bos_token)
    for _ in range(2):
        if client_prompt(processor, own).removeprefix(bos) == wanted_prompt(processor).removeprefix(bos):
            return own
        own = own.replace(THINKING, NEVER_SET)
    return _BEFORE + own.removesuffix("\n") + _AFTER.replace("PLACEHOLDER", image_text(processor))


def template_problem(checkpoint: str, metadata: dict[str, Any]) -> str | None:
    """Why llama.cpp's programs would write another prompt than transformers; None where it is the same.

    `metadata`: of the language model's file.
    """
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    template = metadata.get("tokenizer.chat_template")
    if not template:
        return "the file has none, and llama.cpp's programs then use ChatML"
    processor = load_processor(checkpoint)
    bos, shown, wanted = (
        str(processor.tokenizer.bos_token),
        client_prompt(processor, template),
        wanted_prompt(processor),
    )
    if adds_bos(metadata):
        shown = bos + shown.removeprefix(bos)
    return None if shown == wanted else f"llama.cpp's programs write {shown!r}, transformers {wanted!r}"


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether llama.cpp writes the start token by itself: sentencepiece vocabularies do unless told otherwise."""
    return bool(metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama"))


def client_prompt(processor: Any, template: str) -> str:
    """What llama.cpp's programs make of a question about one image; "" where the template takes it in no form."""
    from jinja2 import TemplateError

    text = OLD_MARKER + QUESTION
    forms: tuple[Any, ...] = (text, [{"type": "text", "text": text}])  # the second where a template takes no plain text
    for content in forms:
        message = [{"role": "user", "content": content}]
        try:
            rendered = processor.tokenizer.apply_chat_template(
                message, chat_template=template, add_generation_prompt=True, tokenize=False, **{THINKING: True}
            )
        except (TemplateError, TypeError):
            continue
        if OLD_MARKER in rendered:
            return str(rendered)
    return ""


def wanted_prompt(processor: Any) -> str:
    """The checkpoint's prompt for the same question, with the marker in the place of the image."""
    from mpa_edge.vlm.transformers.checkpoint import chat_prompt

    return chat_prompt(processor, QUESTION).replace(image_text(processor), OLD_MARKER)


def image_text(processor: Any) -> str:
    """What the checkpoint's template writes for an image, without what llama.cpp writes around it by itself."""
    (start, end), image = WRITTEN_BY_RUNTIME, str(processor.image_token)
    return f"{start}{image}{end}" if start in processor.tokenizer.get_vocab() else image
