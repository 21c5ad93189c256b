"""A checkpoint as the two files of llama.cpp: the language model, and the vision encoder with its connector.

llama.cpp's own converter does it, in a process of its own, on a staged copy of the checkpoint.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.check import WHOLE, pre_tokenizer_name, text_architecture
from mpa_edge.exporters.gguf.driver import run_converter
from mpa_edge.exporters.gguf.fetch import converter_folder
from mpa_edge.exporters.gguf.mmproj import NAMES, write_mmproj
from mpa_edge.exporters.gguf.template import gguf_template
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, fsync_folder, make_folder, read_json, write_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.paths import STAGED_SUFFIX, move, remove

if TYPE_CHECKING:
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.exporters.source import Source

GgufComponent = Literal["language", "mmproj"]
PRECISIONS: dict[GgufComponent, tuple[str, ...]] = {
    "language": ("f32", "f16", "bf16"),
    "mmproj": ("f32", "f16", "bf16", "q8_0"),
}
LINKED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
COPIED = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
NO_MTP = ("qwen3_5",)
"""Model types whose config.json counts a layer for predicting several tokens, which transformers leaves unsaved."""
# model type -> (part of a tensor's name, the same as the converter knows it: as published, from transformers 4)
AS_PUBLISHED = {"lfm2_vl": ("model.vision_tower.", "model.vision_tower.vision_model.")}
# these keys can name Python files that came with the checkpoint; the converter never gets one
CODE_KEYS = ("auto_map", "custom_pipelines")


def convert(
    source: Source,
    component: GgufComponent,
    out: Path,
    precision: str = "f16",
    budget: ImageBudget | None = None,
) -> int:
    """Write one component of a checkpoint as GGUF; returns the peak resident bytes of the process that did it.

    Args:
        source: The checkpoint. Its folder is never modified.
        component: "language" or "mmproj", the vision encoder with its connector.
        out: The file, which gets its name when it is complete.
        precision: See `PRECISIONS`; `quantize_gguf` makes the others from f16.
        budget: Image budget of a target.

    MpaError with the last line of the converter's output where it fails.
    """
    if precision not in PRECISIONS[component]:
        known = ", ".join(PRECISIONS[component])
        raise MpaError(f"{component} cannot be converted to {precision} directly: choose {known}, or quantize")
    make_folder(out.parent)
    temp = out.with_name(f".{out.name}.{os.getpid()}{TEMP_SUFFIX}")
    # beside the result, not in /tmp, so that the next run finds and removes what a kill leaves
    folder = out.with_name(f".{out.name}{STAGED_SUFFIX}")
    remove(folder)
    try:
        with disk_errors(out.parent, source.weights_bytes // 2):
            if component == "mmproj" and source.config["model_type"] in NAMES:
                _, peak_bytes = run_isolated(write_mmproj, source, temp, precision, budget)
            else:
                own = component == "language"
                template = run_isolated(gguf_template, str(source.checkpoint))[0] if own else None
                # llama.cpp skips blanks behind the special tokens of every model that has this name
                name = re.sub("(?i)phi-?(?=3)", "phi ", source.checkpoint.resolve().name) or "model"
                staged = stage(source, folder / name, budget, template)
                peak_bytes = _run_converter(source, staged, component, temp, precision)
            move(temp, out)
            fsync_folder(out.parent)
    finally:
        remove(folder, quietly=True)
        remove(temp, quietly=True)
    return peak_bytes


def _run_converter(source: Source, staged: Path, component: GgufComponent, out: Path, precision: str) -> int:
    pre_tokenizer = pre_tokenizer_name(read_json(staged / "tokenizer.json") or {}) or ""
    arguments = [str(staged), "--outfile", str(out), "--outtype", precision]
    if component == "mmproj":
        arguments.append("--mmproj")
    elif source.config["model_type"] in NO_MTP:
        arguments.append("--no-mtp")
    ours, theirs = AS_PUBLISHED.get(source.config["model_type"], ("", ""))
    names = {key: name.replace(ours, theirs, 1) for key, name in source.names.items()}
    _, peak_bytes = run_isolated(run_converter, converter_folder(), pre_tokenizer, names, arguments)
    if not out.is_file():
        raise MpaError(f"llama.cpp's converter wrote no {component}: use an onnx scheme, or report it")
    return peak_bytes


# --- the staged copy --------------------------------------------------------------------------------------------------


def stage(source: Source, folder: Path, budget: ImageBudget | None = None, template: str | None = None) -> Path:
    """Fill `folder` with what the converter needs: weights as links, small files as it expects them.

    What the checkpoint has in another place or under another name stands where the converter looks for it. `template`
    replaces its chat template. MpaError where the checkpoint is damaged.
    """
    image = source.image_values(budget)
    make_folder(folder)
    for i, path in enumerate(source.weights):
        (folder / f"model-{i:05}.safetensors").symlink_to(path.resolve())
    for name in LINKED:
        if (source.checkpoint / name).is_file():
            (folder / name).symlink_to((source.checkpoint / name).resolve())
    for name in COPIED:
        if (source.checkpoint / name).is_file():
            write_json(folder / name, without_code(read_json(source.checkpoint / name)))
    words = read_json(folder / "tokenizer_config.json") or {}
    if (folder / "tokenizer.model").is_file():
        words = {"added_tokens_decoder": added_tokens(read_json(folder / "tokenizer.json") or {})} | words
    write_json(folder / "tokenizer_config.json", words | {"chat_template": template or source.processor[1]})
    write_json(folder / "config.json", staged_config(source.config))
    write_json(folder / "preprocessor_config.json", without_code(image))
    return folder


def added_tokens(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Id -> added token, of a tokenizer.json; beside tokenizer.model the converter looks for them elsewhere.

    >>> added_tokens({"added_tokens": [{"id": 3, "content": "<img>", "special": True}]})
    {'3': {'content': '<img>', 'special': True}}
    """
    return {str(token.pop("id")): token for token in map(dict, tokenizer.get("added_tokens", []))}


def staged_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the language model's class named, and without keys that name code.

    >>> staged_config({"model_type": "llava", "auto_map": {}, "text_config": {"model_type": "qwen2"}})
    {'model_type': 'llava', 'text_config': {'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM']}}
    """
    plain: dict[str, Any] = without_code(config)
    text = plain.get("text_config")
    if isinstance(text, dict) and plain["model_type"] not in WHOLE:
        text["architectures"] = [text_architecture(config)]
    return plain


def without_code(value: Any) -> Any:
    """A copy of a JSON value without the keys that name Python code, at any depth.

    >>> without_code({"a": [{"auto_map": {"AutoModel": "x.py"}, "b": 1}]})
    {'a': [{'b': 1}]}
    """
    if isinstance(value, dict):
        return {key: without_code(item) for key, item in value.items() if key not in CODE_KEYS}
    return [without_code(item) for item in value] if isinstance(value, list) else value
