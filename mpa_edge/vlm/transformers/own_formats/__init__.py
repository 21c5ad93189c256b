"""Checkpoints in their authors' own format, rewritten once as checkpoints that transformers loads without their code.

Only names and the layout of some matrices differ, so tensors are renamed and cut, and config, tokenizer and processor
written anew. The result lies in the user's cache; everything behind `files.local_folder` sees only that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import MB, sha256_json, write_json
from mpa_edge.runs.paths import copy
from mpa_edge.runs.user_cache import made_once
from mpa_edge.vlm.transformers.files import (
    AGAIN,
    check_files,
    read_object,
    require_unquantized,
    tensor_shapes,
    weight_files,
)
from mpa_edge.vlm.transformers.own_formats import internvl_chat, tinyllava
from mpa_edge.vlm.transformers.own_formats.rewriting import Rewritten, plan, rewrite

VERSION = 1
"""Of the rewriting: a later one rewrites every checkpoint again."""
FORMATS: dict[str, Callable[[Path, dict[str, Any]], Rewritten]] = {
    "internvl_chat": internvl_chat.read,
    "tinyllava": tinyllava.read,
    "tiny_llava_stablelm": tinyllava.read_older,
}
"""`model_type` of config.json -> what reads such a checkpoint."""
READ = ("*.json", "*.safetensors", "*.model", "*.txt")
COPIED = ("README.md", "LICEN[SC]E*", "NOTICE*")


def converted(folder: Path) -> Path:
    """The folder of a checkpoint that transformers loads: `folder` itself, or the rewritten copy in the user's cache.

    The copy is made when it is first asked for, and again where a file of `folder` has changed. MpaError where a tensor
    is missing, unknown or of another shape than config.json says, or the model computes what transformers cannot.
    """
    try:
        config = read_object(folder / "config.json")
    except MpaError:  # whoever loads the checkpoint says so
        return folder
    read = FORMATS.get(str(config.get("model_type")))
    if read is None:
        return folder
    checked = check_files(folder)
    require_unquantized(folder, checked)
    weights = weight_files(folder)
    seen = {path.name: path.stat() for pattern in READ for path in folder.glob(pattern)}
    key = sha256_json([VERSION, {name: [stat.st_size, stat.st_mtime_ns] for name, stat in seen.items()}])

    def make(out: Path) -> None:
        say(f"{folder}: rewriting it once in transformers' format")
        found = read(folder, checked)
        pieces = plan(found.rules, tensor_shapes(weights), folder)
        _require_whole(folder, found.config, {piece.name: piece.shape for piece in pieces})
        rewrite(weights, pieces, out)
        write_json(out / "config.json", found.config)
        write_json(out / "generation_config.json", found.generation)
        found.write_processor(out)
        for path in (path for pattern in COPIED for path in folder.glob(pattern)):
            copy(path, out / path.name)

    return made_once(f"{_name(folder)}-{key[:12]}", make, sum(path.stat().st_size for path in weights) + MB)


def _name(folder: Path) -> str:
    """What people call a checkpoint: its folder's name, or its hub id's last part."""
    real = folder.resolve()
    return real.parents[1].name.rpartition("--")[2] if real.parent.name == "snapshots" else real.name


def _require_whole(folder: Path, config: dict[str, Any], found: dict[str, tuple[int, ...]]) -> None:
    """MpaError where the rewritten tensors are not those of the model that config.json describes."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mpa_edge.vlm.transformers.checkpoint import library_errors, quiet

    quiet()
    with library_errors(folder), torch.device("meta"):
        plain = {key: value for key, value in config.items() if key != "model_type"}
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(config["model_type"], **plain))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if not wrong:
        return
    name = wrong[0]
    if name not in found:
        raise MpaError(f"'{folder}' lacks {len(wrong)} tensors of its config.json, first {name}: {AGAIN}")
    if name not in wanted:
        raise MpaError(
            f"'{folder}' holds {len(wrong)} tensors that its config.json has no place for, first {name}: {AGAIN}"
        )
    shapes = f"{list(found[name])}, and {list(wanted[name])} in config.json"
    raise MpaError(f"'{folder}': {len(wrong)} tensors do not fit config.json, first {name} with {shapes}: {AGAIN}")
