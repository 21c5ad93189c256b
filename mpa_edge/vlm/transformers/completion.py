"""What older checkpoints leave to the program around them: a chat template, the size of a patch, a start token."""

from __future__ import annotations

import functools
from typing import Any

# USER and ASSISTANT as in LLaVA 1.5 and TinyLLaVA, from the prompt format of their model cards
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = {"llava": LLAVA_TEMPLATE}
"""`model_type` -> the chat template of checkpoints that were published without one."""


def complete(processor: Any, path: str) -> Any:
    """The processor of a checkpoint, with what its files leave out filled in from config.json; the same object."""
    template = processor.chat_template or processor.tokenizer.chat_template
    has_patches = getattr(processor, "patch_size", 0) is not None
    if not template or not has_patches:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        template = template or TEMPLATES.get(config.model_type)
        if not has_patches:
            _count_patches(processor, config)
    processor.chat_template = template
    return processor


def _count_patches(processor: Any, config: Any) -> None:
    """How many tokens a picture takes: LLaVA's processors of before 2025 did not say it."""
    vision = config.vision_config
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")


def with_start(tokenizer: Any, text: str) -> str:
    """A rendered prompt with the start token that the tokenizer would put in front of it, where it is not there yet.

    Prompts are tokenized as they stand, so that they are the same bytes everywhere; some templates leave the start
    token to the tokenizer.
    """
    start = _start(tokenizer)
    return text if text.startswith(start) else start + text


@functools.lru_cache(8)
def _start(tokenizer: Any) -> str:
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""
