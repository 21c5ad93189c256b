"""An adapter that another trainer saved, merged into its base: what is exported is one plain checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.exporters.verify.probes import probes
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_file, sha256_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.manifest import RUN_FILE, StageClock, finish, is_done, prepare
from mpa_edge.runs.paths import copy, inside, move, remove, require_plain
from mpa_edge.vlm import fingerprint, resolve
from mpa_edge.vlm.transformers.adapter import Adapter, adapter_files, lora_config, read_adapter
from mpa_edge.vlm.transformers.files import (
    ADAPTER,
    CONFIGS,
    OTHERS,
    TOKENIZER,
    UNPARSED,
    check_files,
    local_folder,
    require_unquantized,
)

MERGED, BUILDING, STAGED = "merged", ".building", ".staged"
PROCESSOR = (*CONFIGS[2:], *TOKENIZER, *OTHERS, *UNPARSED)
"""Files of a processor: they are taken together from one folder."""
FIX = "name the model that it was made for with --base MODEL, or copy the adapter again"


def base_folder(adapter: Path, base: str | None) -> Path:
    """Folder of an adapter's base: the one that is named, else the one that it names itself.

    MpaError where that is not there, or is quantized: what a quantized base was tuned to is its full-precision model.
    """
    named = base or lora_config(adapter).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise MpaError(f"'{adapter / ADAPTER}' names no base model: name it with --base MODEL")
    try:
        folder = local_folder(resolve(named))
    except MpaError as error:
        if base:
            raise
        raise MpaError(
            f"'{adapter}' is an adapter of '{named}', which is not here: name it with --base MODEL"
        ) from error
    try:
        require_unquantized(folder, check_files(folder))
    except MpaError as error:
        raise MpaError(f"{error}, and name that with --base MODEL") from error
    return folder


def read(adapter: Path, base: Path) -> Adapter:
    """An adapter in the names of its base. MpaError where it does not fit; no weights of the base are read."""
    from mpa_edge.vlm.transformers.checkpoint import outline

    return read_adapter(adapter, outline(base))


def merged(adapter: Path, base: Path, folder: Path) -> Path:
    """Merge an adapter into `folder`, and return it; one that is there already and has not changed is kept.

    MpaError where the adapter does not fit; VerificationError where what was merged is not the adapter on its base.
    """
    if (folder.parent / RUN_FILE).is_file():
        raise MpaError(f"{folder.parent} is a run of its own: choose another folder with --out")
    require_plain(inside(folder.parent, folder.name))
    own = [adapter / ADAPTER, *adapter_files(adapter), *processor_files(adapter)]
    inputs = {
        "adapter": sha256_json({path.name: sha256_file(path) for path in own}),
        "base": fingerprint(str(base)),
    }
    with run_lock(make_folder(folder.parent)):
        if is_done(folder, inputs):
            say(f"{adapter.name}: merged before, nothing changed")
            return folder
        say(f"{adapter.name}: merged into {base}, to {folder}")
        prepare(folder, inputs, fresh=True)
        clock, building = StageClock(folder), folder / BUILDING
        difference, peak_bytes = run_isolated(_merge, adapter, base, building, folder / STAGED)
        # config.json last: nothing loads the folder before it is there
        for path in sorted(building.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            move(path, folder / path.name)
        for scratch in (building, folder / STAGED):
            remove(scratch)
        clock.tick()
        finish(
            folder,
            "merge",
            inputs=inputs,
            config="adapter",
            seed=0,
            counts={"peak_rss_bytes": peak_bytes},
            packages=("torch", "transformers", "peft"),
        )
    say(f"{adapter.name}: logits within {difference:.1e} of the adapter's")
    return folder


def _merge(adapter: Path, base: Path, out: Path, staged: Path) -> float:
    """Runs in a process of its own; returns the largest difference of logits."""
    from mpa_edge.vlm.transformers.merging import merge

    written = read(adapter, base).write(staged / "adapter")
    files = processor_of(adapter, base, staged / "files")
    return merge(str(base), written, make_folder(out), probe_inputs, files=files, fix=FIX)


def processor_files(folder: Path) -> list[Path]:
    """The files of a processor in an adapter's folder, if they are a whole one: a tokenizer and an image processor."""
    needed = (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "tokenizer.model", "vocab.json"),
    )
    if not all(any((folder / name).is_file() for name in names) for names in needed):
        return []
    return [folder / name for name in PROCESSOR if (folder / name).is_file()]


def processor_of(adapter: Path, base: Path, out: Path) -> Path:
    """A folder of the base's small files, with the adapter's processor where it has one: trainers change templates.

    MpaError where that has more tokens than the base.
    """
    from mpa_edge.vlm.transformers.checkpoint import load_processor, outline
    from mpa_edge.vlm.transformers.merging import COPIED

    own, taken = processor_files(adapter), {path.name for path in processor_files(adapter)}
    small = {path for pattern in COPIED for path in base.glob(pattern) if path.is_file()}
    kept = [path for path in small if not (taken and path.name in PROCESSOR) and not path.name.endswith(".index.json")]
    make_folder(out)
    for path in (*kept, *own):
        copy(path, out / path.name)
    n_tokens = len(load_processor(str(out)).tokenizer)
    n_rows = outline(base).get_input_embeddings().weight.shape[0]
    if n_tokens > n_rows:
        raise MpaError(
            f"'{adapter}' has {n_tokens} tokens and its base only {n_rows}: resize the base's embeddings as in the "
            "training, save it, and name it with --base MODEL"
        )
    return out


def probe_inputs(processor: Any) -> Mapping[str, Any]:
    """Model inputs of the first image and question of the gate."""
    from mpa_edge.vlm.transformers.checkpoint import chat_prompt

    values = processor.image_processor.to_dict()
    request = probes(values, str, str(processor.image_token))[0][0]
    return dict(
        processor(
            text=[chat_prompt(processor, request.prompt)],
            images=[[request.image]],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
    )
