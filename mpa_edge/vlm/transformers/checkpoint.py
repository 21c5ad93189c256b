"""Loading a transformers checkpoint: device, threads, model, processor, and the one prompt that all stages share."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.vlm.transformers.completion import complete, with_start

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

TRUSTED = "MPA_EDGE_TRUSTED_CODE"


def quiet() -> None:
    """No weight-loading bars and no notices of libraries between our lines; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "align") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pick_device(wanted: str) -> str:
    """`auto` -> cuda where there is one, else cpu. Raises MpaError where cuda was asked for and is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise MpaError("device cuda is not available here: --set device=cpu, or install a CUDA build of torch")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks, which the next batch asks for again a moment later.

    By default each goes back to the kernel and comes back page by page: a fifth of the time of a small model on a CPU.
    Numbers of the parameters: malloc.h, M_TRIM_THRESHOLD and M_MMAP_THRESHOLD. Other C libraries are left as they are.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (-1, -3):
            mallopt(parameter, 2**31 - 1)


def set_threads(threads: int | None) -> int:
    """Set torch's thread count (one for each usable core where none is given) and return it."""
    import torch

    keep_freed_memory()
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count


def trust_code_in(folder: Path) -> None:
    """Let the program code of one downloaded snapshot run, in this process and in those that it starts."""
    os.environ[TRUSTED] = str(folder)


def is_trusted(path: str) -> bool:
    """Whether the program code that lies beside a checkpoint may run: only where somebody named its commit."""
    return os.environ.get(TRUSTED) == path


def brings_code(path: str) -> bool:
    """Whether a checkpoint is of a kind that transformers does not know, and has a program of its own to load it."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):  # whoever loads it says better what is wrong
        return False
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def load_processor(path: str) -> Any:
    """Tokenizer, image processor and chat template of a checkpoint, padding on the left."""
    from transformers import AutoProcessor

    quiet()
    if not is_trusted(path) and brings_code(path):
        raise MpaError(
            f"'{path}' needs program code of its authors, which never runs here: name a checkpoint in the format of "
            "transformers (of InternVL one whose name ends with -hf)"
        )
    processor = _loading(path, lambda: AutoProcessor.from_pretrained(path, trust_remote_code=is_trusted(path)))
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise MpaError(f"'{path}' is no vision-language model: its processor lacks a tokenizer or an image processor")
    processor.tokenizer.padding_side = "left"
    complete(processor, path)
    if not processor.chat_template:
        raise MpaError(f"'{path}' has no chat template: put its chat_template.jinja into the folder")
    return processor


def load_model(
    path: str, device: str, config: Any = None, *, dtype: str | None = None, quantization: Any = None
) -> PreTrainedModel:
    """Weights of a checkpoint in evaluation mode: fp32 on a CPU, bf16 on a GPU. safetensors only, no remote code.

    With a `config` of fewer layers than the checkpoint's own, only those are read. `dtype` names another type of the
    weights, `quantization` is a configuration of transformers for fewer bits.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    quiet()
    kind = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else torch.bfloat16
    options = {"dtype": kind, "use_safetensors": True, **({} if config is None else {"config": config})}
    if quantization is not None:  # packed where it is to run: it cannot be moved later
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model, found = _loading(
        path,
        lambda: AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=is_trusted(path), output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    # transformers would go on with random numbers in the place of what is missing or has another shape
    if absent := sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]):
        raise MpaError(
            f"'{path}' lacks {len(absent)} tensors of its config.json ({absent[0]}): copy the checkpoint again"
        )
    return (model if quantization is not None else model.to(device)).eval()


def _loading(path: str, load: Any) -> Any:
    """Run a loader; what goes wrong becomes one line."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0].rstrip(".") if lines else type(error).__name__
        raise MpaError(f"cannot load '{path}': {why[:300]}; check the folder or the hub id") from error
    except Exception as error:  # safetensors raises a class of its own that it does not export
        if type(error).__name__ != "SafetensorError":
            raise
        raise MpaError(f"cannot load '{path}': damaged weights ({error}); copy the checkpoint again") from error


@functools.lru_cache(8)
def _special_tokens(tokenizer: Any, image_token: str | None) -> re.Pattern[str]:
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= {*tokenizer.all_special_tokens, *filter(None, [image_token])}
    return re.compile("|".join(re.escape(token) for token in sorted(known, key=len, reverse=True)))


def without_special_tokens(processor: Any, text: str) -> str:
    """Text that cannot be read as an image, a turn or an end, whoever wrote it: no special token stays in it."""
    special = _special_tokens(processor.tokenizer, getattr(processor, "image_token", None))
    while (cleaned := special.sub("", text)) != text:  # what is left may close up to another one
        text = cleaned
    return text


def chat_prompt(processor: Any, prompt: str) -> str:
    """The text that the model sees before its answer: image first, then the prompt, in the model's own template.

    Identify, training, evaluation and export all call this one function, so that their prompts are the same bytes.
    """
    content = [{"type": "image"}, {"type": "text", "text": without_special_tokens(processor, prompt)}]
    message = [{"role": "user", "content": content}]
    text = str(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    return with_start(processor.tokenizer, text)


def chat_completion(processor: Any, prompt: str, answer: str) -> str:
    """What the model should say after `chat_prompt`: the answer up to and with the end token, nothing behind it."""
    asked, said = (without_special_tokens(processor, text) for text in (prompt, answer))
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
    ]
    text = str(processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))
    whole = with_start(processor.tokenizer, text)
    before = chat_prompt(processor, prompt)
    if not whole.startswith(before):
        raise MpaError("the student's chat template rewrites the prompt once it is answered: use another checkpoint")
    rest, end = whole[len(before) :], str(processor.tokenizer.eos_token)
    head, found, _ = rest.partition(end)
    return head + end if found else rest.rstrip() + end
