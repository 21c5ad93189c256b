"""A copy of a checkpoint that llama.cpp's converter understands: weights as links, small files as it wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, read_json, write_json

# llama.cpp's converter chooses the language model's class by this name; transformers leaves it out of a nested config
TEXT_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi": "PhiForCausalLM",
}
# the class that knows SmolVLM's tensor names
SMOLVLM_TEXT = "VLlama3ForCausalLM"
LINKED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja")
COPIED = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
# each may name Python files of somebody else's; the converter is never given one
CODE_KEYS = ("auto_map", "custom_pipelines")


def stage(checkpoint: Path, folder: Path, image: dict[str, Any] | None = None) -> Path:
    """Fill `folder` with what the converter needs of a checkpoint, which itself is never touched.

    `image` are the image processor's values to use in place of the checkpoint's. Only safetensors come along.
    MpaError where config.json or the weights are missing.
    """
    config = read_json(checkpoint / "config.json")
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not isinstance(config, dict) or not weights:
        raise MpaError(f"{checkpoint} holds no config.json with safetensors: copy the checkpoint again")
    make_folder(folder)
    index = checkpoint / "model.safetensors.index.json"
    linked = [path for path in (*weights, index, *(checkpoint / name for name in LINKED)) if path.is_file()]
    for path in linked:
        (folder / path.name).symlink_to(path.resolve())
    for name in COPIED:
        if (checkpoint / name).is_file():
            write_json(folder / name, without_code(read_json(checkpoint / name)))
    write_json(folder / "config.json", staged_config(config))
    write_json(folder / "preprocessor_config.json", image_processor(checkpoint) | (image or {}))
    return folder


def staged_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the language model's class named and nothing in it that names code.

    >>> staged_config({"model_type": "llava", "auto_map": {}, "text_config": {"model_type": "qwen2"}})
    {'model_type': 'llava', 'text_config': {'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM']}}
    """
    plain = without_code(config)
    text = plain.get("text_config")
    if isinstance(text, dict) and not plain["model_type"].startswith("qwen"):
        text["architectures"] = [text_architecture(config)]
    return plain


def text_architecture(config: dict[str, Any]) -> str:
    """The converter's class for the language model of a checkpoint. MpaError where it has none.

    >>> text_architecture({"model_type": "idefics3", "text_config": {"model_type": "llama"}})
    'VLlama3ForCausalLM'
    """
    kind = config["text_config"].get("model_type", "")
    if config["model_type"] in ("idefics3", "smolvlm") and kind == "llama":
        return SMOLVLM_TEXT
    if kind not in TEXT_ARCHITECTURES:
        known = ", ".join(TEXT_ARCHITECTURES)
        raise MpaError(f"GGUF takes no language model of type '{kind}' (it takes {known}): use an onnx scheme")
    return TEXT_ARCHITECTURES[kind]


def without_code(value: Any) -> Any:
    """A copy of a JSON value without the keys that name Python code, at any depth.

    >>> without_code({"a": [{"auto_map": {"AutoModel": "x.py"}, "b": 1}]})
    {'a': [{'b': 1}]}
    """
    if isinstance(value, dict):
        return {key: without_code(item) for key, item in value.items() if key not in CODE_KEYS}
    return [without_code(item) for item in value] if isinstance(value, list) else value


def image_processor(checkpoint: Path) -> dict[str, Any]:
    """The image processor's values of a checkpoint, flat, wherever it keeps them. MpaError where it has none."""
    processor = read_json(checkpoint / "processor_config.json")
    nested = processor.get("image_processor") if isinstance(processor, dict) else None
    flat = nested if isinstance(nested, dict) else read_json(checkpoint / "preprocessor_config.json")
    if not isinstance(flat, dict):
        raise MpaError(f"{checkpoint} has no image processor: save the model's processor into it")
    plain: dict[str, Any] = without_code(flat)
    return plain
