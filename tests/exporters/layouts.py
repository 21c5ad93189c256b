"""Checkpoints in the layouts in which people publish and keep them; each changes a copy of a zoo checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mpa_edge.runs.files import read_json, write_json
from tests.families import zoo


def copy_of(folder: Path, model_type: str, **options: object) -> Path:
    return Path(shutil.copytree(zoo.checkpoint(model_type, **options), folder / model_type))


def renamed(folder: Path, change: Callable[[str], str]) -> Path:
    """Other names for the tensors."""
    held = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in held.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def named_as_in_4_52(folder: Path) -> Path:
    """Qwen2-VL and Qwen2.5-VL as transformers 4.52 saved them."""

    def change(name: str) -> str:
        if name.startswith("visual"):
            return f"model.{name}"
        return re.sub(r"^model\.", "model.language_model.", name)

    return renamed(folder, change)


def processor_files_of_2024(folder: Path) -> Path:
    """A flat preprocessor_config.json, the template in chat_template.json, pixels of Qwen under their old names."""
    image = read_json(folder / "processor_config.json")["image_processor"]
    if "merge_size" in image:
        size = image.pop("size")
        image |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    others = {k: v for k, v in read_json(folder / "processor_config.json").items() if not isinstance(v, dict)}
    write_json(folder / "processor_config.json", others)
    write_json(folder / "preprocessor_config.json", image | {"processor_class": others["processor_class"]})
    template = folder / "chat_template.jinja"
    write_json(folder / "chat_template.json", {"chat_template": template.read_text(encoding="utf-8")})
    template.unlink()
    return folder


def only_differences(folder: Path) -> Path:
    """config.json with the values that differ from transformers' defaults, as `save_pretrained` wrote it for years."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    kept = json.loads(config.to_json_string(use_diff=True))
    for part in ("text_config", "vision_config"):
        own = getattr(config, part)
        differ = json.loads(own.to_json_string(use_diff=True))
        kept[part] = differ | {"model_type": own.model_type}
    write_json(folder / "config.json", kept)
    return folder


def without_template(folder: Path) -> Path:
    """As LLaVA 1.5 was published: no chat template anywhere."""
    (folder / "chat_template.jinja").unlink()
    return folder


def with_second_copies(folder: Path) -> Path:
    """Beside the weights: their authors' own format, and an adapter without its configuration."""
    renamed_copy = {f"original.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file(renamed_copy, folder / name)
    return folder


def in_a_hub_cache(folder: Path) -> Path:
    """The layout of huggingface_hub's cache: a snapshot of links to blobs."""
    home = folder.parent / "models--owner--name"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(home / "blobs" / f"{i:040}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{i:040}")
    return snapshot


def sharded(folder: Path) -> Path:
    """Two weight files and an index, without the metadata of `save_pretrained`."""
    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in files.items():
        save_file({name: held[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in files.items() for name in own}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors").unlink()
    return folder


def torch_dtype(folder: Path) -> Path:
    """config.json as transformers 4 wrote it."""

    def old(tree: dict[str, object]) -> dict[str, object]:
        named = {"torch_dtype" if key == "dtype" else key: value for key, value in tree.items()}
        return {key: old(value) if isinstance(value, dict) else value for key, value in named.items()}

    write_json(folder / "config.json", old(read_json(folder / "config.json")))
    return folder


def with_tied_head(folder: Path) -> Path:
    """A head in the file although it is the table of embeddings."""
    held = load_file(folder / "model.safetensors")
    table = next(tensor for name, tensor in held.items() if name.endswith("embed_tokens.weight"))
    save_file(held | {"lm_head.weight": table.clone()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def flat_preprocessor(folder: Path) -> Path:
    """preprocessor_config.json and no processor_config.json."""
    values = read_json(folder / "processor_config.json")
    image = values["image_processor"] | {"processor_class": values["processor_class"]}
    write_json(folder / "preprocessor_config.json", image)
    (folder / "processor_config.json").unlink()
    return folder


def template_in_tokenizer(folder: Path) -> Path:
    """Several templates by name, in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    named = [
        {"name": "default", "template": path.read_text(encoding="utf-8")},
        {"name": "tool_use", "template": "{{ messages }}"},
    ]
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", config | {"chat_template": named})
    path.unlink()
    return folder


def padded(folder: Path) -> Path:
    """A table of embeddings and a head with more rows than there are tokens, as many GPUs like it."""
    held, config = load_file(folder / "model.safetensors"), read_json(folder / "config.json")
    for name, tensor in held.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            held[name] = torch.nn.functional.pad(tensor, (0, 0, 0, -tensor.shape[0] % 64 + 64))
            config["text_config"]["vocab_size"] = held[name].shape[0]
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config)
    return folder


def as_it_lies(folder: Path) -> Path:
    """All of these at once, with two end tokens, in a folder with blanks that nobody may write to."""
    for change in (torch_dtype, flat_preprocessor, template_in_tokenizer, padded, sharded):
        change(folder)
    generation = read_json(folder / "generation_config.json")
    ends = [generation["eos_token_id"], generation["eos_token_id"] - 1]
    write_json(folder / "generation_config.json", generation | {"eos_token_id": ends})
    found = folder.rename(folder.with_name("Mein Modell für Zähler (2)"))
    for path in found.iterdir():
        path.chmod(0o444)
    found.chmod(0o555)
    return found
