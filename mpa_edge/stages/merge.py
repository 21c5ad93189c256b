"""Merge the adapter into the base: one plain checkpoint with processor and licence, verified before it is published."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.images.folder import open_image
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json, write_json
from mpa_edge.runs.isolation import disk_guard
from mpa_edge.runs.manifest import StageClock, clear, finish, is_done
from mpa_edge.runs.paths import copy, move, remove
from mpa_edge.stages.level.stage import ADAPTER
from mpa_edge.stages.run import Run, begin, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop
from mpa_edge.vlm import interrupts_held, resolve
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import require_inside, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "merge"
BUILDING = ".building"
MAX_LOGIT_DIFFERENCE = 1e-4
PROBE_IMAGES = 4
BASE_CARD = "BASE_README.md"
# the small files next to the weights: processor, tokenizer, chat template, generation config, licence
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
NOT_COPIED = ("config.json", "manifest.json", "*.index.json", "adapter_config.json", "trainer_state.json")
TensorInfo = tuple[tuple[int, ...], str]
"""Shape and sha256 of the values."""
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
    adapter = run.stage_folder("level") / ADAPTER
    difference = merge(resolve(run.recipe.student), adapter, building, partial(probe_inputs, run))
    # config.json last: nothing loads the folder before it is there
    for path in sorted(building.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
        move(path, folder / path.name)
    remove(building)
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


def probe_inputs(run: Run, processor: Any) -> Mapping[str, Any]:
    """Model inputs of one question about each of the first readable images of a run."""
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


def merge(base: str, adapter: Path, out: Path, inputs_of: InputsOf) -> float:
    """Merge, save, reload and compare. Returns the largest logit difference; VerificationError on any mismatch.

    `adapter` may also be a whole tuned model. `inputs_of(processor)` makes the model inputs on which the adapter and
    the merged checkpoint are compared.
    """
    before = tensors_of(checkpoint.load_model(base, "cpu"))
    inputs = inputs_of(checkpoint.load_processor(base))
    model, expected, adapted = _merged(base, adapter, inputs)
    merged = tensors_of(model)
    check_untouched(before, merged, adapted)
    with disk_guard(out, sum(p.numel() for p in model.parameters()) * 4):
        model.save_pretrained(make_folder(out))
        _copy_small_files(base, out)
    del model
    gc.collect()
    checkpoint.load_processor(str(out))
    saved = checkpoint.load_model(str(out), "cpu")
    check_saved(before, merged, tensors_of(saved))
    return check_logits(expected, _logits(saved, inputs))


def _merged(base: str, adapter: Path, inputs: Mapping[str, Tensor]) -> tuple[Any, Tensor, set[str] | None]:
    """(merged model, logits of the base with the adapter attached, modules that the adapter changes; None is all)."""
    if not (adapter / "adapter_config.json").is_file():
        model = checkpoint.load_model(str(adapter), "cpu")
        return model, _logits(model, inputs), None
    model = _with_adapter(base, adapter)
    expected, targets = _logits(model, inputs), set(model.targeted_module_names)
    try:
        return model.merge_and_unload(safe_merge=True), expected, targets
    except ValueError as error:  # what peft raises where weights are NaN
        raise VerificationError(f"{adapter} cannot be merged ({error}): rerun mpa-edge level with --fresh") from error


def _with_adapter(base: str, adapter: Path) -> Any:
    """The base with the adapter attached. Every tensor of the file must have been loaded: peft ignores unknown ones."""
    from peft import PeftModel, get_peft_model_state_dict

    fix = "the adapter belongs to another model or is damaged, rerun mpa-edge level with --fresh"
    student, weights = checkpoint.load_model(base, "cpu"), adapter / "adapter_model.safetensors"
    try:
        require_inside(weights, adapter)
        stored = tensor_shapes([weights])
        model = PeftModel.from_pretrained(student, str(adapter)).eval()
    except Exception as error:  # whatever a damaged adapter_config.json makes peft raise
        why = " ".join(str(error).split())[:200]
        raise VerificationError(f"{adapter} does not fit the student ({why}): {fix}") from error
    placed = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    wrong = sorted(name for name in stored.keys() | placed.keys() if stored.get(name) != placed.get(name))
    if wrong:
        raise VerificationError(f"{len(wrong)} adapter tensors do not fit the student, first {wrong[0]}: {fix}")
    return model


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    import torch

    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits
    return logits


def tensors_of(model: Any) -> dict[str, TensorInfo]:
    """Every tensor of a model by name."""
    return {
        name: (tuple(tensor.shape), hashlib.sha256(tensor.detach().reshape(-1).numpy().data).hexdigest())
        for name, tensor in model.state_dict().items()
    }


def check_untouched(
    before: Mapping[str, TensorInfo], merged: Mapping[str, TensorInfo], adapted: set[str] | None
) -> None:
    """Raise VerificationError where merging changed a tensor outside the `adapted` modules; None is all modules."""
    changed = sorted(name for name in before if before[name] != merged.get(name))
    wrong = [name for name in changed if adapted is not None and name.rpartition(".")[0] not in adapted]
    if wrong:
        raise VerificationError(
            f"merging changed {wrong[0]}, which has no adapter: rerun mpa-edge level with --fresh, and report it"
        )


def check_saved(
    before: Mapping[str, TensorInfo], merged: Mapping[str, TensorInfo], saved: Mapping[str, TensorInfo]
) -> None:
    """Raise VerificationError where the saved model has other tensors or shapes than the base, or other values than
    the merged model had in memory.

    >>> check_saved({"w": ((2,), "a")}, {"w": ((2,), "b")}, {"w": ((2,), "b")})
    """
    shapes, found = ({name: shape for name, (shape, _) in one.items()} for one in (before, saved))
    if wrong := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        name = wrong[0]
        raise VerificationError(
            f"merging changed {len(wrong)} tensors, first {name}: {shapes.get(name)} -> {found.get(name)}; "
            "rerun mpa-edge merge with --fresh, and report it if it stays"
        )
    if wrong := sorted(name for name in merged.keys() & saved.keys() if merged[name] != saved[name]):
        raise VerificationError(
            f"{len(wrong)} tensors changed when they were saved, first {wrong[0]}: rerun mpa-edge merge with --fresh"
        )


def check_logits(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two (rows, tokens, vocabulary); VerificationError above MAX_LOGIT_DIFFERENCE."""
    difference = float((expected - found).abs().max())
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise VerificationError(
            f"merged logits differ from the adapter's by {difference:.2e} (allowed {MAX_LOGIT_DIFFERENCE:.0e}): "
            "rerun mpa-edge merge with --fresh, and report it if it stays"
        )
    return difference


def _copy_small_files(base: str, out: Path) -> None:
    """Copy the files next to the base's weights, byte for byte; its model card becomes BASE_README.md."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=list(COPIED)))
    excluded = {path.name for pattern in NOT_COPIED for path in folder.glob(pattern)}
    for path in (path for pattern in COPIED for path in folder.glob(pattern)):
        if path.is_file() and path.name not in excluded:
            copy(path, out / (BASE_CARD if path.name == "README.md" else path.name))
    write_json(out / "mpa_edge.json", {"base": Path(base).name, "method": "model parity alignment"})
