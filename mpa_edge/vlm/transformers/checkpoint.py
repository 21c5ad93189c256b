"""Loading a transformers checkpoint: device, threads, model and processor; the one prompt that all stages share."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mpa_edge.errors import MachineError, MpaError, missing_package
from mpa_edge.runs.files import FULL, read_json
from mpa_edge.vlm.shared.prompts import without_special_tokens
from mpa_edge.vlm.transformers.files import AGAIN, check_files, local_folder, tensor_shapes, weight_files
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
TRIED_PX = (224, 224)
PRIVATE = ("_name_or_path", "id2label", "label2id")
"""Keys of config.json that name a path of this machine, or mean nothing on another one."""


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
    """Tokenizer, image processor and chat template of a checkpoint, padding on the left.

    They are tried on one small image, so that a file which they cannot work with is named now, in an MpaError.
    """
    from transformers import AutoConfig, AutoProcessor

    folder = local_folder(path)
    config = checked_config(folder)
    with library_errors(folder), _native_messages_hidden():
        processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise MpaError(f"'{path}' is no vision-language model: its processor lacks a tokenizer or an image processor")
    processor.tokenizer.padding_side = "left"
    # older checkpoints are completed from config.json
    template = processor.chat_template or processor.tokenizer.chat_template or TEMPLATES.get(config["model_type"])
    processor.chat_template = template.get("default") if isinstance(template, dict) else template
    if not processor.chat_template or not isinstance(processor.chat_template, str):
        raise MpaError(f"'{path}' has no chat template: put its chat_template.jinja into the folder")
    require_bounded(processor.chat_template, f"'{path}'")
    with library_errors(folder, processor):
        if getattr(processor, "patch_size", 0) is None:
            # LLaVA's processors before 2025 did not say how many tokens an image takes
            of_model = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            processor.patch_size = of_model.vision_config.patch_size
            processor.vision_feature_select_strategy = of_model.vision_feature_select_strategy
            processor.num_additional_image_tokens = int(of_model.vision_config.model_type == "clip_vision_model")
        said = read_json(folder / "processor_config.json") or {}
        if hasattr(processor, "image_seq_len") and "image_seq_len" not in said:
            # a folder with preprocessor_config.json alone does not say how many tokens a tile takes
            of_model = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            edge = of_model.vision_config.image_size // of_model.vision_config.patch_size
            processor.image_seq_len = edge**2 // of_model.scale_factor**2
        processor(
            text=[chat_prompt(processor, "What is shown?")],
            images=[[Image.new("RGB", TRIED_PX)]],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
    return processor


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json as `check_files` gives it, of a kind of model that transformers can load without foreign code."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    quiet()
    config = check_files(folder)
    kind = config["model_type"]
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise MpaError(
            f"'{folder}' needs its authors' Python code, which is never run here: use a checkpoint in transformers' "
            "own format (for InternVL one whose name ends with -hf)"
        )
    if kind not in KNOWN:
        raise MpaError(
            f"'{folder}' is no vision-language model that transformers knows: its config.json says model_type '{kind}'"
            ", use another checkpoint"
        )
    return config


def load_model(
    path: str, device: str, config: Any = None, *, dtype: str | None = None, quantization: Any = None
) -> PreTrainedModel:
    """Weights of a checkpoint in evaluation mode: fp32 on a CPU, bf16 on a GPU. safetensors only, no remote code.

    With a `config` of fewer layers than the checkpoint's own, only those are read. `dtype` overrides the weights' type,
    `quantization` is a quantization config of transformers.
    """
    import torch

    folder = local_folder(path)
    outline(folder, config)
    kind = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else torch.bfloat16
    options: dict[str, Any] = {"dtype": kind, **({} if config is None else {"config": config})}
    if quantization is not None:  # quantized weights cannot be moved to another device later
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model = _from_pretrained(folder, options)
    with library_errors(folder):
        return (model if quantization is not None else model.to(device)).eval()


def outline(folder: Path, config: Any = None) -> Any:
    """A checkpoint's model without its weights, after every check that needs no more than the files' headers.

    None for weights that are quantized, which only their library can check. MpaError as in `load_model`.
    """
    is_quantized = "quantization_config" in checked_config(folder)
    tensor_shapes(weight_files(folder), floats_only=not is_quantized)
    options = {"device_map": "meta", **({} if config is None else {"config": config})}
    return None if is_quantized else _from_pretrained(folder, options)


def written_out(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint with every default of transformers, without keys that mean nothing elsewhere."""
    from transformers import AutoConfig

    def public(tree: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in tree.items() if key not in PRIVATE}
        return {key: public(value) if isinstance(value, dict) else value for key, value in kept.items()}

    with library_errors(folder):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        return public(json.loads(config.to_json_string(use_diff=False)))


def saved_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """Tensor of a checkpoint -> its name where transformers saves an outlined model; without those that it drops.

    Published checkpoints name the same tensors in several ways, each release of transformers in its own.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    steps, tensors = model._weight_conversions, {name: torch.empty(0, device="meta") for name in model.state_dict()}
    model._weight_conversions = None  # those of the files: the way back would lead to their names
    saved = {id(tensor): name for name, tensor in revert_weight_conversion(model, tensors).items()}
    own = tensors.keys() - (model.all_tied_weights_keys or {}).keys()  # a tied head is not saved
    names = {name: saved[id(tensor)] for name, tensor in tensors.items() if name in own and id(tensor) in saved}
    return {key: names[name] for key, name in _renamed(model, stored, steps).items() if name in names}


def inner_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """Tensor, as any release of transformers named it -> its name in a model; itself where it is none of the model's"""
    from transformers.conversion_mapping import get_model_conversion_mapping

    own = model.state_dict()
    found = _renamed(model, stored, get_model_conversion_mapping(model))
    return {key: key if key in own or name not in own else name for key, name in found.items()}


def _renamed(model: Any, stored: Iterable[str], steps: Any) -> dict[str, str]:
    """Tensor of a file -> its name after the steps by which transformers loads it into a model."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    own = model.state_dict()
    return {key: rename_source_key(key, renamings, converters, model.base_model_prefix, own)[0] for key in stored}


def _from_pretrained(folder: Path, options: dict[str, Any]) -> Any:
    """The model. MpaError for a tensor that is missing or has another shape or name: it would get random numbers."""
    from transformers import AutoModelForImageTextToText

    with library_errors(folder):
        model, found = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    absent = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    # all names begin in a way of their own where the model was saved inside a wrapper
    foreign, own = list(found["unexpected_keys"]), list(model.state_dict())
    prefix = os.path.commonprefix(foreign).rpartition(".")[0]  # noqa: RUF071
    if absent and prefix and "config" not in options and not any(name.startswith(prefix) for name in own):
        raise MpaError(
            f"the tensor names of '{folder}' begin with '{prefix}.', which belongs to a wrapper of the model: "
            "save the model inside it (peft: merge_and_unload() before save_pretrained())"
        )
    if absent:
        raise MpaError(
            f"'{folder}' lacks {len(absent)} tensors of its config.json ({absent[0]}): copy the checkpoint again"
        )
    return model


# --- which file an error comes from -----------------------------------------------------------------------------------


@contextmanager
def library_errors(folder: Path, processor: Any = None) -> Iterator[None]:
    """Turn whatever a library raises in the block into an MpaError that names the file of a checkpoint to blame.

    `processor` is tried part by part where it could be loaded. MachineError where memory runs out; a full disk is left
    to the caller.
    """
    try:
        yield
    except (MpaError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers panics with a BaseException
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        if is_out_of_memory(error):
            full = f"out of memory while '{folder}' was loaded: use a smaller model or a larger machine"
            raise MachineError(full) from error
        with _native_messages_hidden():
            name, why = _blamed(folder, processor) or ("", error)
        if not name:
            raise MpaError(
                f"'{folder}' does not work ({_line(why)}): its files do not belong together, copy the checkpoint again"
            ) from error
        if not (folder / name).exists():
            raise MpaError(f"'{folder / name}' is missing: {AGAIN}") from error
        raise MpaError(f"'{folder / name}' cannot be used ({_line(why)}): {AGAIN}") from error


def _blamed(folder: Path, processor: Any) -> tuple[str, BaseException] | None:
    """The file that a library fails on when it is loaded alone, and its error; None where none fails alone."""
    import torch
    from tokenizers import Tokenizer
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoTokenizer,
        GenerationConfig,
    )

    def present(*names: str) -> str:
        return next((name for name in names if (folder / name).exists()), names[0])

    def build() -> None:
        with torch.device("meta"):
            AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(where, trust_remote_code=False))

    def require_image() -> None:
        if str(getattr(processor, "image_token", "")) not in chat_prompt(processor, "What is shown?"):
            raise ValueError("it puts no image into a question")

    where = str(folder)
    nested = "image_processor" in (read_json(folder / "processor_config.json") or ())
    image = "processor_config.json" if nested else "preprocessor_config.json"
    words = present("tokenizer.json", "tokenizer.model", "vocab.json")
    template = present("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
    loads: list[tuple[str, Callable[[], Any]]] = [("config.json", build)]
    if (folder / "generation_config.json").exists():
        loads.append(("generation_config.json", lambda: GenerationConfig.from_pretrained(where)))
    if words == "tokenizer.json":
        loads.append((words, lambda: Tokenizer.from_file(str(folder / words)).encode("a")))
    loads.append(
        (present("tokenizer_config.json", words), lambda: AutoTokenizer.from_pretrained(where, trust_remote_code=False))
    )
    loads.append((image, lambda: AutoImageProcessor.from_pretrained(where, trust_remote_code=False)))
    if processor is not None:
        drawn = Image.new("RGB", TRIED_PX)
        loads.append((image, lambda: processor.image_processor(images=[[drawn]], return_tensors="pt")))
        loads.append(("tokenizer_config.json", lambda: processor.tokenizer(["What is shown?"], padding=True)))
        loads.append((template, require_image))
    for name, load in loads:
        try:
            load()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return name, error
    return None


def _line(error: BaseException) -> str:
    """The first line of an error's text; its kind where that asks for a report to the library's authors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = bool(lines) and not any(word in lines[0] for word in ("unexpected", "report"))
    return lines[0].rstrip(".")[:200] if told else type(error).__name__


@contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Hide what a library's compiled code writes to stderr: a panic of tokenizers prints its own lines."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host. torch has no class of its own for the latter.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"))
    True
    """
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "out of memory", "Cannot allocate memory")
    )


# --- prompts ----------------------------------------------------------------------------------------------------------


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
