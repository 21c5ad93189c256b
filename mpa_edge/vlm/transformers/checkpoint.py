"""Loading a transformers checkpoint: device, threads, model and processor; the one prompt that all stages share."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.shared.prompts import without_special_tokens
from mpa_edge.vlm.transformers.template_limits import require_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def quiet() -> None:
    """Silence transformers' progress bars and warnings; errors are still shown."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "align") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pick_device(wanted: str) -> str:
    """`auto` -> cuda where available, else cpu. Raises MpaError where cuda is asked for and not available."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise MpaError("device cuda is not available here: --set device=cpu, or install a CUDA build of torch")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def set_threads(threads: int | None) -> int:
    """Set torch's thread count, by default one for each usable core, and return it.

    Also lets glibc keep large freed blocks, which the next batch needs again a moment later. By default each goes back
    to the kernel and returns page by page: a fifth of a small model's time on a CPU.
    """
    import ctypes

    import torch

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries do not have it
        for parameter in (-1, -3):  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 2**31 - 1)
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count


def load_processor(path: str) -> Any:
    """Tokenizer, image processor and chat template of a checkpoint, padding on the left."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoProcessor, PreTrainedConfig

    quiet()
    config: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # loading the processor gives the better error
        config, _ = PreTrainedConfig.get_config_dict(path)
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise MpaError(
            f"'{path}' needs its authors' Python code, which is never run here: use a checkpoint in transformers' own "
            "format (for InternVL one whose name ends with -hf)"
        )
    processor = _loading(path, lambda: AutoProcessor.from_pretrained(path, trust_remote_code=False))
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise MpaError(f"'{path}' is no vision-language model: its processor lacks a tokenizer or an image processor")
    processor.tokenizer.padding_side = "left"
    # older checkpoints are completed from config.json
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        processor.chat_template = TEMPLATES.get(config.get("model_type", ""))
    if getattr(processor, "patch_size", 0) is None:
        # LLaVA's processors before 2025 did not say how many tokens an image takes
        of_model = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor.patch_size = of_model.vision_config.patch_size
        processor.vision_feature_select_strategy = of_model.vision_feature_select_strategy
        processor.num_additional_image_tokens = int(of_model.vision_config.model_type == "clip_vision_model")
    if not processor.chat_template:
        raise MpaError(f"'{path}' has no chat template: put its chat_template.jinja into the folder")
    require_bounded(processor.chat_template, f"'{path}'")
    return processor


def load_model(
    path: str, device: str, config: Any = None, *, dtype: str | None = None, quantization: Any = None
) -> PreTrainedModel:
    """Weights of a checkpoint in evaluation mode: fp32 on a CPU, bf16 on a GPU. safetensors only, no remote code.

    With a `config` of fewer layers than the checkpoint's own, only those are read. `dtype` overrides the weights' type,
    `quantization` is a quantization config of transformers.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    quiet()
    kind = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else torch.bfloat16
    options = {"dtype": kind, "use_safetensors": True, **({} if config is None else {"config": config})}
    if quantization is not None:  # quantized weights cannot be moved to another device later
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model, found = _loading(
        path,
        lambda: AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    # transformers would continue with random numbers for whatever is missing or has another shape
    if absent := sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]):
        raise MpaError(
            f"'{path}' lacks {len(absent)} tensors of its config.json ({absent[0]}): copy the checkpoint again"
        )
    return (model if quantization is not None else model.to(device)).eval()


def _loading(path: str, load: Any) -> Any:
    """Run a loader; its errors become one line."""
    from safetensors import SafetensorError

    try:
        return load()
    except SafetensorError as error:
        raise MpaError(f"cannot load '{path}': damaged weights ({error}); copy the checkpoint again") from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0].rstrip(".") if lines else type(error).__name__
        raise MpaError(f"cannot load '{path}': {why[:300]}; check the folder or the hub id") from error


def with_bos(tokenizer: Any, text: str) -> str:
    """A rendered prompt with the start token that its tokenizer would add, unless it is already there.

    Prompts are tokenized without adding special tokens, so that they are the same bytes everywhere; some templates
    leave the start token to the tokenizer.
    """
    bos, bos_id = str(tokenizer.bos_token), tokenizer.bos_token_id
    if bos_id is None or tokenizer("", add_special_tokens=True)["input_ids"][:1] != [bos_id]:
        return text
    return text if text.startswith(bos) else bos + text


@functools.lru_cache(8)
def special_tokens(processor: Any) -> tuple[str, ...]:
    """Every special token of a processor: its tokenizer's, and the one that stands for an image."""
    tokenizer = processor.tokenizer
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    image_token = getattr(processor, "image_token", None)
    return tuple(known | {*tokenizer.all_special_tokens, *filter(None, [image_token])})


def chat_prompt(processor: Any, prompt: str) -> str:
    """The text before the model's answer: image first, then the prompt, in the model's own chat template.

    Identify, training, evaluation and export all call this function, so that their prompts are the same bytes.
    """
    content = [{"type": "image"}, {"type": "text", "text": without_special_tokens(prompt, special_tokens(processor))}]
    message = [{"role": "user", "content": content}]
    text = str(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    return with_bos(processor.tokenizer, text)


def chat_completion(processor: Any, prompt: str, answer: str) -> str:
    """The training target after `chat_prompt`: the answer up to and including the end token, nothing after it."""
    question, answer = (without_special_tokens(text, special_tokens(processor)) for text in (prompt, answer))
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    text = str(processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))
    whole = with_bos(processor.tokenizer, text)
    before = chat_prompt(processor, prompt)
    if not whole.startswith(before):
        raise MpaError("the student's chat template rewrites the prompt once it is answered: use another checkpoint")
    rest, end = whole[len(before) :], str(processor.tokenizer.eos_token)
    head, found, _ = rest.partition(end)
    return head + end if found else rest.rstrip() + end
