"""Merge an adapter into its base: one plain checkpoint with processor and licence, compared with what it came from."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import VerificationError
from mpa_edge.runs.files import make_folder, read_json
from mpa_edge.runs.isolation import disk_guard
from mpa_edge.runs.paths import copy
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import local_folder, require_inside, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOGIT_DIFFERENCE = 1e-4
"""Of a logit, or of the largest one where that is above 1: fp32 rounds in proportion."""
AGAIN = "rerun mpa-edge level with --fresh"
TUNED, TUNED_PLAN = "tuned_weights.safetensors", "tuned_weights.json"
"""Beside an adapter that `Adapter.write` wrote: weights of whole modules, and whether the head becomes its own."""
BASE_CARD = "BASE_README.md"
# the small files next to the weights: processor, tokenizer, chat template, generation config, licence
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
NOT_COPIED = ("config.json", "manifest.json", "*.index.json", "adapter_config.json", "trainer_state.json")
TensorInfo = tuple[tuple[int, ...], str]
"""Shape and sha256 of the values."""
InputsOf = Callable[[Any], Mapping[str, Any]]


def merge(
    base: str, adapter: Path, out: Path, inputs_of: InputsOf, *, files: Path | None = None, fix: str = AGAIN
) -> float:
    """Merge, save, reload and compare. Returns the largest logit difference; VerificationError on any mismatch.

    Args:
        base: Folder or hub id of the model that the adapter was made for.
        adapter: Folder of the adapter, or of a whole tuned model.
        out: Folder of the merged checkpoint.
        inputs_of: Makes the model inputs on which adapter and merged checkpoint are compared, from a processor.
        files: Checkpoint folder whose processor and other small files `out` gets; None: the base.
        fix: What to do about an adapter that does not fit.
    """
    before = tensors_of(checkpoint.load_model(base, "cpu"))
    gc.collect()
    small = str(files or base)
    inputs = inputs_of(checkpoint.load_processor(small))
    model, expected, adapted = _merged(base, adapter, inputs, fix)
    merged = tensors_of(model)
    check_untouched(before, merged, adapted)
    with disk_guard(out, sum(p.numel() for p in model.parameters()) * 4):
        model.save_pretrained(make_folder(out))
        copy_small_files(small, out)
    del model
    gc.collect()
    checkpoint.load_processor(str(out))
    saved = checkpoint.load_model(str(out), "cpu")
    check_saved(before, merged, tensors_of(saved))
    return check_logits(expected, _logits(saved, inputs))


def _merged(base: str, adapter: Path, inputs: Mapping[str, Tensor], fix: str) -> tuple[Any, Tensor, set[str] | None]:
    """(merged model, logits of the base with the adapter attached, modules that the adapter changes; None is all)."""
    if not (adapter / "adapter_config.json").is_file():
        model = checkpoint.load_model(str(adapter), "cpu")
        return model, _logits(model, inputs), None
    model, tuned = _with_adapter(base, adapter, fix)
    expected, targets = _logits(model, inputs), {*model.targeted_module_names, *tuned}
    try:
        return model.merge_and_unload(safe_merge=True), expected, targets
    except ValueError as error:  # what peft raises where weights are NaN
        raise VerificationError(f"{adapter} cannot be merged ({error}): {fix}") from error


def _with_adapter(base: str, adapter: Path, fix: str) -> tuple[Any, set[str]]:
    """(the base with the adapter attached, modules whose own weights the adapter's folder replaces).

    Every tensor of the file must have been loaded: peft ignores unknown ones.
    """
    from peft import PeftModel, get_peft_model_state_dict

    fix = f"the adapter belongs to another model or is damaged, {fix}"
    student, weights = checkpoint.load_model(base, "cpu"), adapter / "adapter_model.safetensors"
    try:
        require_inside(weights, adapter)
        stored = tensor_shapes([weights])
        tuned = _replace_weights(student, adapter)
        model = PeftModel.from_pretrained(student, str(adapter)).eval()
    except Exception as error:  # whatever a damaged adapter_config.json makes peft raise
        why = " ".join(str(error).split())[:200]
        raise VerificationError(f"{adapter} does not fit the student ({why}): {fix}") from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    placed = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = sorted(name for name in stored.keys() | placed.keys() if stored.get(name) != placed.get(name))
    if wrong:
        raise VerificationError(f"{len(wrong)} adapter tensors do not fit the student, first {wrong[0]}: {fix}")
    return model, tuned


def _replace_weights(model: Any, adapter: Path) -> set[str]:
    """Load the weights of whole modules that `Adapter.write` wrote; returns the modules' names."""
    from safetensors.torch import load_file

    plan = read_json(adapter / TUNED_PLAN) or {}
    if plan.get("untie"):
        untie(model)
    replaced = load_file(adapter / TUNED) if (adapter / TUNED).is_file() else {}
    model.load_state_dict(replaced, strict=False)
    return {name.rpartition(".")[0] for name in replaced}


def untie(model: Any) -> None:
    """Give a model an output matrix of its own, in the place of its input embeddings."""
    import torch

    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


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
        raise VerificationError(f"merging changed {wrong[0]}, which has no adapter: {AGAIN}, and report it")


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
            "rerun with --fresh, and report it if it stays"
        )
    if wrong := sorted(name for name in merged.keys() & saved.keys() if merged[name] != saved[name]):
        raise VerificationError(
            f"{len(wrong)} tensors changed when they were saved, first {wrong[0]}: rerun with --fresh"
        )


def check_logits(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two (rows, tokens, vocabulary); VerificationError above MAX_LOGIT_DIFFERENCE."""
    difference = float((expected - found).abs().max())
    allowed = MAX_LOGIT_DIFFERENCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise VerificationError(
            f"merged logits differ from the adapter's by {difference:.2e} (allowed {allowed:.0e}): "
            "rerun with --fresh, and report it if it stays"
        )
    return difference


def copy_small_files(base: str, out: Path) -> None:
    """Copy the files next to the base's weights, byte for byte; its model card becomes BASE_README.md."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=list(COPIED)))
    folder = local_folder(str(folder))
    excluded = {path.name for pattern in NOT_COPIED for path in folder.glob(pattern)}
    for path in (path for pattern in COPIED for path in folder.glob(pattern)):
        if path.is_file() and path.name not in excluded:
            copy(path, out / (BASE_CARD if path.name == "README.md" else path.name))
