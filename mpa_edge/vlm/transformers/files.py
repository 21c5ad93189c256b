"""The files of a checkpoint, checked before a library opens one; nothing here needs torch.

Weights are those that transformers would take, but only safetensors (a pickle can run code), and only from inside the
checkpoint's folder.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.network import check_hub

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TEMPLATE = "chat_template.jinja"
CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OTHERS = ("chat_template.json", "video_preprocessor_config.json")
# read by the tokenizer alone: a large one takes a second to parse
UNPARSED = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", TEMPLATE)
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "LICEN[SC]E*", "NOTICE*")
# a second copy of the weights in their authors' own format
NOT_DOWNLOADED = ("consolidated*.safetensors",)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")
# written by quantizers that do not use config.json
QUANTIZED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
MOST_LAYERS, MOST, MOST_PIXELS, LONGEST_EDGE_PX = 10_000, 2**31, 2**24, 2**14
EDGES = ("edge", "height", "width")
BOUNDS = "clipping"
"""Keys that end so bound values, where any number will do: Gemma 4's audio tower says 1e10."""
COUNTS = re.compile(r"(layers|depth|heads|experts|patches)$")
AGAIN = "copy it from the checkpoint again"


def local_folder(reference: str) -> Path:
    """The folder of a checkpoint that transformers loads: itself, or the files of a hub id, downloaded where they are
    not in the cache. One in its authors' own format is rewritten in the cache, see `own_formats`.
    """
    from mpa_edge.vlm.transformers.own_formats import converted

    folder = Path(reference)
    return converted(folder if folder.is_dir() else download(reference))


def download(hub_id: str, local_only: bool = False) -> Path:
    """Files of a hub checkpoint: weights as safetensors only, no program code. `local_only`: only from the cache."""
    if not local_only:
        check_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted, unwanted = list(DOWNLOADED), list(NOT_DOWNLOADED)
    try:
        return Path(
            snapshot_download(hub_id, local_files_only=local_only, allow_patterns=wanted, ignore_patterns=unwanted)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MpaError(f"cannot get '{hub_id}' from the hub ({why}): check the id, or name a folder") from error


def require_readable(path: Path) -> None:
    """MpaError that names a file where this user may not read it."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise MpaError(f"'{path}' cannot be read ({error.strerror}): check its permissions, or {AGAIN}") from error


def read_text(path: Path) -> str:
    """A text file. MpaError that names it where it cannot be read."""
    require_readable(path)
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise MpaError(f"'{path}' is no UTF-8 text: {AGAIN}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. MpaError that names the file where it does not."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MpaError(f"'{path}' is {f'no JSON ({error})' if text else 'empty'}: {AGAIN}") from error
    if not isinstance(found, dict):
        raise MpaError(f"'{path}' holds a JSON {type(found).__name__} in place of an object: {AGAIN}")
    return found


def check_files(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint whose small files are sound in form.

    MpaError names the file: damaged JSON, a link that leads out of the folder, a number that no model has, a folder
    that is an adapter.
    """
    require_no_adapter(folder)
    try:
        for path in folder.iterdir():
            if path.is_symlink() and not path.is_dir():
                require_inside(path, folder)
        for path in (folder / name for name in (*CONFIGS, *TOKENIZER, *OTHERS, *UNPARSED)):
            if os.path.lexists(path) or path.name == "config.json":
                if not path.is_file():
                    what = "is no file" if os.path.lexists(path) else "is missing"
                    raise MpaError(f"'{path}' {what}: {AGAIN}")
                require_readable(path)
    except OSError as error:
        where = error.filename or folder
        raise MpaError(f"'{where}' cannot be read ({error.strerror}): check its permissions, or {AGAIN}") from error
    if (folder / TEMPLATE).is_file():
        read_text(folder / TEMPLATE)
    found = {name: read_object(folder / name) for name in (*CONFIGS, *TOKENIZER, *OTHERS) if (folder / name).is_file()}
    for name in CONFIGS:
        if name in found:
            check_numbers(folder / name, found[name])
    config = found["config.json"]
    if not isinstance(config.get("model_type"), str):
        raise MpaError(f"'{folder / 'config.json'}' names no model_type: {AGAIN}")
    if config.get("transformers_weights"):
        raise MpaError(f"'{folder / 'config.json'}' names a weights file of its own: save the checkpoint again without")
    return config


def require_no_adapter(folder: Path) -> None:
    """MpaError where transformers would load an adapter on top of a model, or there is only an adapter."""
    if not (folder / ADAPTER).exists():
        return
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise MpaError(
            f"'{folder}' holds a model and an adapter ({ADAPTER}), which transformers would add to it: remove the "
            "adapter's files if it is merged already, else move them to a folder of their own, and export that"
        )
    raise MpaError(
        f"'{folder}' is an adapter ({ADAPTER}), not a whole model: mpa-edge export {folder} merges it into its base, "
        f"name runs/{folder.resolve().name}/merged then"
    )


def require_inside(path: Path, folder: Path) -> None:
    """MpaError where a file lies outside its folder. A hub cache's links to its blobs are right."""
    real, root = path.resolve(), folder.resolve()
    # models--OWNER--NAME/snapshots/REVISION/file -> models--OWNER--NAME/blobs/HASH
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    if not real.is_relative_to(root) and real.parent != blobs.resolve():
        raise MpaError(f"'{path}' leads out of the checkpoint's folder: copy the file itself into the folder")


def require_unquantized(folder: Path, config: dict[str, Any]) -> None:
    """MpaError where the weights are quantized already: what is made from them would be rounded twice."""
    places = (config, config.get("text_config"), config.get("vision_config"))
    keys = ("quantization_config", "compression_config")  # the latter of compressed-tensors before 2025
    found = [place[key] for place in places if isinstance(place, dict) for key in keys if place.get(key)]
    files = [name for name in QUANTIZED if (folder / name).exists()]
    if not found and not files:
        return
    named = found[0] if found else {}
    method = named.get("quant_method") if isinstance(named, dict) else None
    where = "quantization_config in config.json" if found else files[0]
    raise MpaError(
        f"'{folder}' is quantized already ({f'{method}, ' if method else ''}{where}): "
        "use the checkpoint that it was made from, in fp32, bf16 or fp16"
    )


def check_numbers(path: Path, tree: dict[str, Any]) -> None:
    """MpaError for a number that no model has: some would take all memory, or forever."""
    image = path.name.startswith(("processor", "preprocessor"))
    pixels = "merge_size" in str(tree) or "Qwen" in str(tree)  # Qwen's edges are areas

    def most(key: str) -> float:
        if key.endswith(BOUNDS):
            return math.inf
        if COUNTS.search(key):
            return MOST_LAYERS
        if not image:
            return MOST
        return MOST_PIXELS if pixels or not key.endswith(EDGES) else LONGEST_EDGE_PX

    for key, number in numbers(tree):
        negative = number < 0 and (COUNTS.search(key) or (image and key.endswith(EDGES)))
        if negative or (math.isfinite(number) and number > most(key)):
            raise MpaError(f"'{path}' says {key} {number:.0f}, which no model has: {AGAIN}")
    for key in (key for key in tree if key.endswith("_token_id")):
        listed = tree[key] if isinstance(tree[key], list) else [tree[key]]
        if not all(one is None or type(one) is int for one in listed):
            raise MpaError(f"'{path}' says {key} {tree[key]!s:.40}, which is no token: {AGAIN}")


def numbers(tree: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value, with the key that it stands under.

    >>> list(numbers({"a": [1, {"b": 2.5}], "c": True}))
    [('a', 1), ('b', 2.5)]
    """
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from numbers(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from numbers(value, key)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield key, tree


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers takes: model.safetensors, else those of the index.

    MpaError where there are none, one is no safetensors, or one lies outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        weight_map = read_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise MpaError(f"'{folder / INDEX}' has no weight_map: {AGAIN}")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        why = f"only {pickles[0]}, a pickle that can run code" if pickles else f"no {WEIGHTS}"
        raise MpaError(
            f"'{folder}' holds {why}: convert the checkpoint to safetensors (save_pretrained() of transformers) first"
        )
    for name in names:
        path = folder / name
        if not name.endswith(".safetensors"):
            raise MpaError(f"'{folder / INDEX}' names '{name}', which is no safetensors file: convert the checkpoint")
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise MpaError(f"'{folder / INDEX}' names '{name}', outside the folder: copy the checkpoint again")
        if not path.is_file():
            raise MpaError(f"'{path}' is missing: copy the checkpoint again")
        require_inside(path, folder)
        require_readable(path)
    return [folder / name for name in names]


def tensor_shapes(paths: list[Path], floats_only: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the headers. MpaError for a damaged file, or for quantized weights."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, "numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
                kinds = {name: one.get_dtype() for name, one in slices.items()}
                shapes |= {name: tuple(one.get_shape()) for name, one in slices.items()}
        except (SafetensorError, OSError) as error:
            raise MpaError(f"'{path}' is damaged ({error}): {AGAIN}") from error
        other = next((name for name, kind in kinds.items() if kind not in FLOATS), None)
        if floats_only and other is not None:
            raise MpaError(
                f"'{path}' holds {other} as {kinds[other]}: use the checkpoint in fp32, bf16 or fp16, not quantized"
            )
    return shapes
