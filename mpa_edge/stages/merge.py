"""Adapter into base: one plain checkpoint with everything that travels with it, checked before it is called done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.images import open_image
from mpa_edge.runs import StageClock, atomic_write, disk_errors, finish, is_done, make_folder, prepare, sha256_json
from mpa_edge.stages.level import ADAPTER
from mpa_edge.stages.progress import say
from mpa_edge.stages.run import Run, memory_counts
from mpa_edge.tasks import answer_prompt
from mpa_edge.types import Drop
from mpa_edge.vlm import checkpoint, resolve

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "merge"
MAX_LOGIT_DIFFERENCE = 1e-4
PROBE_IMAGES = 4
# What a checkpoint folder holds besides weights and what the processor writes itself.
TRAVELS_ALONG = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md", "generation_config.json", "chat_template*")
Census = dict[str, tuple[int, ...]]


def run_merge(run: Run, fresh: bool = False) -> None:
    """Write `merged/`: a checkpoint that AutoProcessor and AutoModelForImageTextToText load as it is."""
    folder = run.stage_folder(STAGE)
    inputs = {"level": run.outputs_of("level"), "student": run.student_fingerprint, "config": sha256_json(STAGE)}
    if not fresh and is_done(folder, inputs):
        return say("merge: done before, nothing changed")
    prepare(folder, inputs, fresh=True)
    clock = StageClock(folder)
    checkpoint.set_threads(run.recipe.threads)
    difference = merge(resolve(run.recipe.student), run.stage_folder("level") / ADAPTER, folder, probes(run))
    clock.tick()
    finish(
        folder, STAGE, inputs=inputs, config=STAGE, seed=run.recipe.seed, counts=memory_counts(),
        packages=("torch", "transformers", "peft"),
    )  # fmt: skip
    say(f"merge: {folder}, logits within {difference:.1e} of the adapter's")


def merge(base: str, adapter: Path, out: Path, inputs_of: Any) -> float:
    """Merge, save, load again, compare; the largest logit difference. Raises VerificationError on any mismatch.

    `inputs_of(processor)` makes the model inputs on which adapter and merged checkpoint are compared.
    """
    processor = checkpoint.load_processor(base)
    before = census(checkpoint.load_model(base, "cpu"))
    inputs = inputs_of(processor)
    model, expected = _merged(base, adapter, inputs)
    with disk_errors(out, sum(p.numel() for p in model.parameters()) * 4):
        model.save_pretrained(make_folder(out))
        processor.save_pretrained(out)
        _copy_along(base, out)
    del model
    saved = checkpoint.load_model(str(out), "cpu")
    check_census(before, census(saved))
    return check_logits(expected, _logits(saved, inputs))


def _merged(base: str, adapter: Path, inputs: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
    """(merged model, logits of base with the adapter beside it)."""
    if not (adapter / "adapter_config.json").is_file():
        model = checkpoint.load_model(str(adapter), "cpu")
        return model, _logits(model, inputs)
    from peft import PeftModel

    model = PeftModel.from_pretrained(checkpoint.load_model(base, "cpu"), str(adapter)).eval()
    _check_adapter(model, adapter)
    expected = _logits(model, inputs)
    return model.merge_and_unload(safe_merge=True), expected


def _check_adapter(model: Any, adapter: Path) -> None:
    """Every tensor of the adapter file must have found its module: one that did not would be lost in silence."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(adapter / "adapter_model.safetensors"), "pt") as file:
        stored = set(file.keys())
    unused = stored - set(get_peft_model_state_dict(model))
    if unused:
        raise VerificationError(
            f"{len(unused)} adapter tensors fit nothing in the student ({min(unused)}): "
            "the adapter belongs to another model, run mpa-edge level again"
        )


@torch.inference_mode()
def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
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


def check_logits(expected: Tensor, found: Tensor) -> float:
    """The largest difference; raises VerificationError above MAX_LOGIT_DIFFERENCE. Shapes (rows, tokens, vocabulary)."""
    difference = float((expected - found).abs().max())
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise VerificationError(
            f"merged logits differ from the adapter's by {difference:.2e} (allowed {MAX_LOGIT_DIFFERENCE:.0e}): "
            "run mpa-edge merge again with --fresh, and report it if it stays"
        )
    return difference


def probes(run: Run) -> Any:
    """A function that makes model inputs from the first readable images of the run."""

    def inputs_of(processor: Any) -> Mapping[str, Tensor]:
        opened = (open_image(e.path, run.recipe.images.max_pixels) for e in run.entries if e.drop is None)
        images = [image for image, _ in zip((i for i in opened if not isinstance(i, Drop)), range(PROBE_IMAGES))]
        if not images:
            raise MpaError(f"no readable image in {run.images_folder}: name another folder, --images DIR")
        prompt = checkpoint.chat_prompt(processor, answer_prompt(run.task, "What is shown?"))
        made = processor(
            text=[prompt] * len(images), images=[[image] for image in images], padding=True, padding_side="left",
            add_special_tokens=False, return_tensors="pt",
        )  # fmt: skip
        return dict(made)

    return inputs_of


def _copy_along(base: str, out: Path) -> None:
    """Licence, notices, generation config and template of the base; its model card as BASE_README.md."""
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, allow_patterns=list(TRAVELS_ALONG)))
    for pattern in TRAVELS_ALONG:
        for path in folder.glob(pattern):
            target = out / ("BASE_README.md" if path.name == "README.md" else path.name)
            if path.is_file() and not target.exists():
                shutil.copyfile(path, target)
    with atomic_write(out / "mpa_edge.json") as file:
        file.write(json.dumps({"base": Path(base).name, "method": "model parity alignment"}).encode())
