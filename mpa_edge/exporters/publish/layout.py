"""The small files of an export: what AutoProcessor, transformers.js and our own runtimes read beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpa_edge.artifact import Artifact, PromptParts, Tokens, write_artifact
from mpa_edge.config.scheme import Component, Format, Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.exporters.source import Source, generation_config, within_budget
from mpa_edge.runs.files import read_json, write_bytes, write_json
from mpa_edge.tasks import get_task
from mpa_edge.vlm.pixels.config import image_config

ONNX_FILES: dict[str, str] = {
    "vision": "vision_encoder",
    "embed": "embed_tokens",
    "decoder": "decoder_model_merged",
}
"""Component -> file name without suffix, as transformers.js calls it."""
SUFFIXES = {"fp32": "", "q8": "_quantized"}
"""Precision -> what its file name ends in, where that is not _PRECISION."""
STATIC = ("qdq8", "qdq16")
"""Precisions that transformers.js has no name for."""
HEARING = ("gemma4",)
"""Model types whose class in transformers.js does not load without an audio encoder; audio is not exported."""
OPSET, IR_VERSION = 20, 10
HALF_CACHE = ("fp16", "q4f16")
"""Precisions whose decoder keeps its cache in fp16."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# a text that no template and no tokenizer changes, and that no template contains
QUESTION = "mpa question 0451"
QWEN2_SIZES = ("num_hidden_layers", "num_key_value_heads", "num_attention_heads", "hidden_size")


def file_name(format: Format, component: Component, precision: str) -> str:  # noqa: A002, ARG001
    """Path of a component's weights inside an export.

    >>> file_name("onnx", "decoder", "q4"), file_name("onnx", "vision", "fp32"), file_name("onnx", "embed", "q8")
    ('onnx/decoder_model_merged_q4.onnx', 'onnx/vision_encoder.onnx', 'onnx/embed_tokens_quantized.onnx')
    >>> file_name("gguf", "language", "q4_0"), file_name("gguf", "mmproj", "f16"), file_name("hybrid", "vision", "int8")
    ('model-q4_0.gguf', 'mmproj-f16.gguf', 'onnx/vision_encoder_int8.onnx')
    """
    if component == "language":
        return f"model-{precision}.gguf"
    if component == "mmproj":
        return f"mmproj-{precision}.gguf"
    return f"onnx/{ONNX_FILES[component]}{SUFFIXES.get(precision, f'_{precision}')}.onnx"


def write_layout(
    source: Source,
    scheme: Scheme,
    folder: Path,
    budget: ImageBudget | None,
    context_tokens: int,
    threads: int | None,
) -> Artifact:
    """Write every small file of an export into `folder`, which holds the weights, and artifact.json last.

    AutoProcessor.from_pretrained(folder) loads the result; an onnx scheme is a model folder of transformers.js.

    Args:
        source: The checkpoint.
        scheme: Its components name the weight files.
        folder: The export.
        budget: Image budget that is applied to the image processor.
        context_tokens: Longest prompt with its answer.
        threads: CPU threads on the device; None: one for each usable core.

    Returns what artifact.json says. MpaError where the chat template does not put the image once before the question.
    """
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    processor = load_processor(str(source.checkpoint))
    config = source.config
    files = {part: file_name(scheme.format, part, bits) for part, bits in scheme.components.items()}
    write_processor(processor, folder, budget)
    if scheme.format == "onnx" and config["model_type"] in HEARING:
        write_bytes(folder / "onnx" / "audio_encoder.onnx", deaf(config["text_config"]["hidden_size"]))
    write_json(folder / "config.json", config | _javascript(scheme, config, folder, files))
    unchanged = [path for pattern in LICENCES for path in source.checkpoint.glob(pattern)]
    for path in (*unchanged, source.checkpoint / "generation_config.json"):
        if path.is_file():
            write_bytes(folder / path.name, path.read_bytes())
    answers: dict[str, Any] = {}
    if source.recipe is not None:
        suffix = get_task(source.recipe.task).short_answer_suffix
        answers = {"max_new_tokens": source.recipe.identify.max_new_tokens, "prompt_suffix": suffix}
    artifact = Artifact(
        name=f"{source.name}-{scheme.name}",
        scheme=scheme.name,
        format=scheme.format,
        family=source.family.name,
        model_type=config["model_type"],
        files=files,
        prompt=prompt_parts(processor),
        tokens=known_tokens(processor, source.checkpoint, config),
        image=image_config(folder, processor),
        text=text_sizes(config),
        context_tokens=context_tokens,
        threads=threads,
        repetition_penalty=generation_config(source.checkpoint).get("repetition_penalty") or 1.0,
        **answers,
    )
    write_artifact(folder, artifact)
    return artifact


def write_processor(processor: Any, folder: Path, budget: ImageBudget | None) -> None:
    """Tokenizer, chat template, and image processor within the budget, in two files.

    transformers 5 nests the image processor in processor_config.json; transformers.js and older programs read
    preprocessor_config.json, and the chat template from tokenizer_config.json. transformers.js does not know that
    LLaVA may drop its class token: the number of image tokens is written as one that it reads. It would stretch images
    for LFM2-VL to the size that transformers ignores, and is told not to.
    """
    if getattr(processor, "vision_feature_select_strategy", None) == "default":
        processor.vision_feature_select_strategy = "full"
        processor.num_additional_image_tokens -= 1
    processor.save_pretrained(folder)
    nested = read_json(folder / "processor_config.json")
    image = nested["image_processor"]
    image |= within_budget(image, budget)
    if "encoder_patch_size" in image:
        image["do_resize"] = False
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    write_json(folder / "processor_config.json", nested)
    flat = {key: value for key, value in nested.items() if not isinstance(value, dict)}
    write_json(folder / "preprocessor_config.json", flat | image)
    words = read_json(folder / "tokenizer_config.json")
    words["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    write_json(folder / "tokenizer_config.json", words)


def _javascript(scheme: Scheme, config: dict[str, Any], folder: Path, files: dict[Component, str]) -> dict[str, Any]:
    """What transformers.js needs in config.json; nothing where it has no name for a precision."""
    if scheme.format != "onnx" or any(bits in STATIC for bits in scheme.components.values()):
        return {}
    # its Qwen2-VL reads the text model's sizes at the top level
    sizes = {key: config["text_config"][key] for key in QWEN2_SIZES} if config["model_type"] == "qwen2_vl" else {}
    types = {ONNX_FILES[part]: bits for part, bits in scheme.components.items()}
    chosen: dict[str, Any] = {
        "dtype": types | ({"audio_encoder": "fp32"} if config["model_type"] in HEARING else {}),
        "kv_cache_dtype": dict.fromkeys(HALF_CACHE, "float16"),
    }
    if outside := {Path(name).name: 1 for name in files.values() if (folder / f"{name}_data").is_file()}:
        chosen["use_external_data_format"] = outside
    return sizes | {"transformers.js_config": chosen}


def deaf(width: int) -> bytes:
    """An audio encoder that hears nothing: no rows of `width` numbers, whatever it is given."""
    from onnx import TensorProto, helper

    rows = helper.make_tensor("rows", TensorProto.FLOAT, [0, width], [])
    given = (
        helper.make_tensor_value_info("input_features", TensorProto.FLOAT, ["batch_size", "frames", "bins"]),
        helper.make_tensor_value_info("input_features_mask", TensorProto.BOOL, ["batch_size", "frames"]),
    )
    made = helper.make_tensor_value_info("audio_features", TensorProto.FLOAT, [0, width])
    node = helper.make_node("Constant", [], ["audio_features"], value=rows)
    graph = helper.make_graph([node], "deaf", given, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model.SerializeToString()


def prompt_parts(processor: Any) -> PromptParts:
    """The chat template filled in around one image and one question. MpaError where it takes them in another way."""
    from mpa_edge.vlm.transformers.checkpoint import chat_prompt

    before, found, after = chat_prompt(processor, QUESTION).partition(QUESTION)
    placeholder = str(processor.image_token)
    if not found or before.count(placeholder) != 1 or placeholder in after:
        raise MpaError(
            "the chat template does not put the image once before the question: use a checkpoint whose template does"
        )
    trims = chat_prompt(processor, f" {QUESTION} ") == before + QUESTION + after
    return PromptParts(before=before, after=after, placeholder=placeholder, trims=trims)


def known_tokens(processor: Any, checkpoint: Path, config: dict[str, Any]) -> Tokens:
    """Ids and texts of the tokens that a runtime needs."""
    tokenizer, image = processor.tokenizer, str(processor.image_token)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    # end tokens from the first place that names any, in the order of transformers
    generation = generation_config(checkpoint)
    named = (place.get("eos_token_id") for place in (generation, config, config.get("text_config") or {}))
    ends = next((end for end in named if end is not None), tokenizer.eos_token_id)
    return Tokens(
        image=image,
        image_id=int(tokenizer.convert_tokens_to_ids(image)),
        ends=tuple(ends) if isinstance(ends, list) else (int(ends),),
        special=tuple(sorted({*special, *tokenizer.all_special_tokens, image})),
    )


def text_sizes(config: dict[str, Any]) -> dict[str, int]:
    """Sizes of the language model's cache and head."""
    text = config.get("text_config") or config
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    inner = len((config.get("vision_config") or {}).get("deepstack_visual_indexes") or ())
    return {
        "hidden_size": hidden,
        "embeds_size": (1 + inner) * hidden,
        # layers without keys and values of their own have no cache
        "num_hidden_layers": text["num_hidden_layers"] - (text.get("num_kv_shared_layers") or 0),
        "num_attention_heads": heads,
        "num_key_value_heads": text.get("num_key_value_heads") or heads,
        "head_dim": text.get("head_dim") or hidden // heads,
        "vocab_size": text["vocab_size"],
    }
