"""Adapter into base: one plain checkpoint with everything that travels with it, checked before it is called done."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.images.folder import open_image
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json, write_json
from mpa_edge.runs.isolation import disk_guard
from mpa_edge.runs.manifest import StageClock, clear, finish, is_done
from mpa_edge.stages.level.stage import ADAPTER
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.interrupts import interrupts_held

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "merge"
BUILDING = ".building"
MAX_LOGIT_DIFFERENCE = 1e-4
PROBE_IMAGES = 4
BASE_CARD = "BASE_README.md"
# Everything small that lies beside the weights: processor, tokenizer, chat template, generation config, licence.
TRAVELS_ALONG = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
STAYS = ("config.json", "manifest.json", "*.index.json", "adapter_config.json", "trainer_state.json")
Census = dict[str, tuple[int, ...]]
InputsOf = Callable[[Any], Mapping[str, Any]]


def run_merge(run: Run, fresh: bool = False) -> None:
    """Write `merged/`: a checkpoint that AutoProcessor and AutoModelForImageTextToText load as it is."""
    folder, inputs = run.stage_folder(STAGE), merge_inputs(run)
    if not fresh and is_done(folder, inputs):
        say("merge: already done, nothing changed")
        return
    begin(STAGE, folder, inputs, fresh)
    clock = StageClock(folder)
    with interrupts_held():
        checkpoint.set_threads(run.recipe.threads)
    building = folder / BUILDING
    clear(make_folder(building))
    difference = merge(resolve(run.recipe.student), run.stage_folder("level") / ADAPTER, building, probes(run))
    publish(building, folder)
    clock.tick()
    finish(
        folder,
        STAGE,
        inputs=inputs,
        config=STAGE,
        seed=run.recipe.seed,
        counts=memory_counts(),
        packages=("torch", "transformers", "peft"),
    )
    say(f"merge: {folder}, logits within {difference:.1e} of the adapter's")


def merge_inputs(run: Run) -> dict[str, str]:
    """Everything that the merged checkpoint depends on."""
    return {"level": run.outputs_of("level"), "student": run.student_fingerprint, "config": sha256_json(STAGE)}


def publish(building: Path, folder: Path) -> None:
    """Move verified files to where they belong, config.json last: before it is there nothing loads the folder."""
    for path in sorted(building.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        os.replace(path, folder / path.name)
    shutil.rmtree(building)


def merge(base: str, adapter: Path, out: Path, inputs_of: InputsOf) -> float:
    """Merge, save, load again, compare; the largest logit difference. Raises VerificationError on any mismatch.

    `inputs_of(processor)` makes the model inputs on which adapter and merged checkpoint are compared.
    """
    untouched = checkpoint.load_model(base, "cpu")
    before, digests = census(untouched), digest(untouched)
    del untouched
    inputs = inputs_of(checkpoint.load_processor(base))
    model, expected, may_change = _merged(base, adapter, inputs)
    merged = digest(model)
    check_untouched(digests, merged, may_change)
    with disk_guard(out, sum(p.numel() for p in model.parameters()) * 4):
        model.save_pretrained(make_folder(out))
        _copy_along(base, out)
    del model
    gc.collect()
    checkpoint.load_processor(str(out))
    saved = checkpoint.load_model(str(out), "cpu")
    check_census(before, census(saved))
    check_same(merged, digest(saved))
    return check_logits(expected, _logits(saved, inputs))


def _merged(base: str, adapter: Path, inputs: Mapping[str, Tensor]) -> tuple[Any, Tensor, set[str] | None]:
    """(merged model, logits of base with the adapter beside it, modules that may change; None is all)."""
    if not (adapter / "adapter_config.json").is_file():
        model = checkpoint.load_model(str(adapter), "cpu")
        return model, _logits(model, inputs), None
    model = _with_adapter(base, adapter)
    expected, targets = _logits(model, inputs), set(model.targeted_module_names)
    try:
        return model.merge_and_unload(safe_merge=True), expected, targets
    except ValueError as error:  # peft's word for weights that are not numbers
        raise VerificationError(f"{adapter} cannot be merged ({error}): run mpa-edge level again --fresh") from error


def _with_adapter(base: str, adapter: Path) -> Any:
    """Base with the adapter beside it. Every tensor of the file must have found its place: a lost one is silent."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    again = "the adapter belongs to another model or is damaged, run mpa-edge level again with --fresh"
    try:
        with safe_open(str(adapter / "adapter_model.safetensors"), "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        model = PeftModel.from_pretrained(checkpoint.load_model(base, "cpu"), str(adapter)).eval()
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise VerificationError(f"{adapter} does not fit the student ({why}): {again}") from error
    placed = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    wrong = sorted(name for name in stored.keys() | placed.keys() if stored.get(name) != placed.get(name))
    if wrong:
        raise VerificationError(f"{len(wrong)} adapter tensors do not fit the student, first {wrong[0]}: {again}")
    return model


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    import torch

    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits
    return logits


def census(model: Any) -> Census:
    """Name and shape of every tensor of a model."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_census(before: Census, after: Census) -> None:
    """Raise VerificationError where merging lost, added or reshaped a tensor.

    >>> check_census({"w": (2,)}, {"w": (2,)})
    """
    wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if wrong:
        name = wrong[0]
        raise VerificationError(
            f"merging changed {len(wrong)} tensors, first {name}: {before.get(name)} -> {after.get(name)}; "
            "run mpa-edge merge again with --fresh, and report it if it stays"
        )


def digest(model: Any) -> dict[str, str]:
    """Name and sha256 of every tensor of a model, fp32 or as it is."""
    tensors = model.state_dict().items()
    return {name: hashlib.sha256(t.detach().reshape(-1).numpy().data).hexdigest() for name, t in tensors}


def check_untouched(before: Mapping[str, str], after: Mapping[str, str], may_change: set[str] | None) -> None:
    """Raise VerificationError where merging changed a tensor that has no adapter."""
    changed = sorted(name for name in before if before[name] != after.get(name))
    wrong = [name for name in changed if may_change is not None and name.rpartition(".")[0] not in may_change]
    if wrong:
        raise VerificationError(
            f"merging changed {wrong[0]}, which has no adapter: run mpa-edge level again with --fresh, and report it"
        )


def check_same(merged: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """Raise VerificationError where a tensor is not what it was before it was saved."""
    wrong = sorted(name for name in merged.keys() & saved.keys() if merged[name] != saved[name])
    if wrong:
        raise VerificationError(
            f"{len(wrong)} tensors changed when they were saved, first {wrong[0]}: "
            "run mpa-edge merge again with --fresh"
        )


def check_logits(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two (rows, tokens, vocabulary); VerificationError above MAX_LOGIT_DIFFERENCE."""
    difference = float((expected - found).abs().max())
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise VerificationError(
            f"merged logits differ from the adapter's by {difference:.2e} (allowed {MAX_LOGIT_DIFFERENCE:.0e}): "
            "run mpa-edge merge again with --fresh, and report it if it stays"
        )
    return difference


def probes(run: Run) -> InputsOf:
    """A function that makes model inputs from the first readable images of the run."""

    def inputs_of(processor: Any) -> Mapping[str, Any]:
        opened = (open_image(e.path, run.recipe.images.max_pixels) for e in run.entries if e.drop is None)
        images = list(islice((image for image in opened if not isinstance(image, Drop)), PROBE_IMAGES))
        if not images:
            raise MpaError(f"no readable image in {run.images_folder}: name another folder, --images DIR")
        prompt = checkpoint.chat_prompt(processor, answer_prompt(run.task, "What is shown?"))
        made = processor(
            text=[prompt] * len(images),
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        return dict(made)

    return inputs_of


def _copy_along(base: str, out: Path) -> None:
    """Copy what lies beside the base's weights, byte for byte; its model card becomes BASE_README.md."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=list(TRAVELS_ALONG)))
    kept_back = {path.name for pattern in STAYS for path in folder.glob(pattern)}
    for path in (path for pattern in TRAVELS_ALONG for path in folder.glob(pattern)):
        if path.is_file() and path.name not in kept_back:
            shutil.copyfile(path, out / (BASE_CARD if path.name == "README.md" else path.name))
    write_json(out / "mpa_edge.json", {"base": Path(base).name, "method": "model parity alignment"})
