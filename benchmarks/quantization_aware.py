"""Whether a student that is leveled against its own quantized weights keeps more of the gain at 2 and 3 bits.

    python benchmarks/quantization_aware.py --out docs/ablation.json
    python benchmarks/report.py

For each seed: fresh images, pseudo-labels and gap as `mpa-edge align` makes them, and then one training each

- as the recipe does it; the merged model is quantized afterwards
- against quantized weights, once for each number of bits: each forward pass of the decoder rounds W + BA, the matrix
  that merging will write, and the gradient goes straight through the rounding (Bengio et al. 2013, arXiv 1308.3432).
  So what is quantized after the merge are the numbers that were trained. (Rounding W alone and adding BA, as QLoRA
  does, would be rounded once more.)

Rounding is that of the scheme onnx-q2, in torch: every matrix of the decoder, blocks of 32 inputs with a scale each, no
zero point. With 3 bits it is the same. Vision encoder and table of embeddings stay as they are. All models answer the
same questions that no training saw, in the style of the gap. About ten minutes of one core a seed; a rerun resumes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from align import EVALUATION_SEED
from common import Document, command, machine, read, remember

BLOCK = 32
KEY = "quantization_aware"
PLAIN = 0
"""Bits of a training that knows nothing of the rounding."""


def rounded(weight: Any, bits: int) -> Any:
    """A matrix (outputs, inputs) with its numbers as MatMulNBits reads them back: see the head of this file."""
    import torch

    n_inputs, half = weight.shape[1], 2 ** (bits - 1)
    padded = torch.nn.functional.pad(weight.float(), (0, -n_inputs % BLOCK))
    blocks = padded.reshape(len(weight), -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))  # it becomes the lowest number, -half
    scale = largest / -half
    numbers = torch.where(scale == 0, 0, blocks / scale).round().clamp(-half, half - 1)
    return (numbers * scale).reshape(padded.shape)[:, :n_inputs].to(weight.dtype)


def matrices(model: Any) -> Iterator[Any]:
    """The linear layers of the decoder, with or without an adapter."""
    from peft.tuners.lora import Linear
    from torch import nn

    adapted = [module for module in model.model.text_model.modules() if isinstance(module, Linear)]
    inside = {id(part) for one in adapted for part in one.modules()} - {id(one) for one in adapted}
    for module in (*model.model.text_model.modules(), model.lm_head):
        if isinstance(module, nn.Linear | Linear) and id(module) not in inside:
            yield module


def aware(module: Any, bits: int, inputs: Any) -> Any:
    """What the layer will compute when its adapter is merged and the result is quantized."""
    from torch.nn.functional import linear

    base = getattr(module, "base_layer", module)
    weight = base.weight
    if base is not module:
        (name,) = module.active_adapters
        weight = weight + module.scaling[name] * module.lora_B[name].weight @ module.lora_A[name].weight
    return linear(inputs, weight + (rounded(weight, bits) - weight).detach(), base.bias)


@contextmanager
def against(bits: int) -> Iterator[None]:
    """Let the level stage train against quantized weights; with PLAIN bits, as it does."""
    from mpa_edge.stages.level import training

    original = training._trainable

    def trainable(*arguments: Any) -> Any:
        model = original(*arguments)
        for module in matrices(model.get_base_model()) if bits != PLAIN else ():
            module.forward = partial(aware, module, bits)
        return model

    training._trainable = trainable
    try:
        yield
    finally:
        training._trainable = original


def merged(student: Path, adapter: Path | None, strength: float, bits: int, out: Path) -> Path:
    """Write the student with a share of an adapter's change, in so many bits."""
    from peft import PeftModel
    from peft.tuners.lora import Linear
    from torch import nn

    from mpa_edge.vlm.transformers import checkpoint
    from mpa_edge.vlm.transformers.merging import copy_small_files

    model = checkpoint.load_model(str(student), "cpu")
    if adapter is not None:
        tuned = PeftModel.from_pretrained(model, str(adapter))
        for module in tuned.modules():
            if isinstance(module, Linear):
                module.scaling = {name: value * strength for name, value in module.scaling.items()}
        model = tuned.merge_and_unload()
    if bits != PLAIN:
        # the head is quantized, the table of embeddings that it shares is not
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        for module in matrices(model):
            module.weight.data = rounded(module.weight.data, bits)
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    copy_small_files(str(student), out)
    return out


def accuracy(folder: Path, n: int) -> float:
    """Share of right answers to n questions in the style of the gap."""
    from mpa_edge.config.recipe import PILLOW_PIXEL_CAP
    from mpa_edge.evaluation.answer_log import AnswerLog, answer_all
    from mpa_edge.evaluation.predict import EvalSpec
    from mpa_edge.nursery.render import ANSWERS, render
    from mpa_edge.questions.own import read_questions
    from mpa_edge.tasks import get_task
    from mpa_edge.vlm import load

    with tempfile.TemporaryDirectory() as temporary:
        images = render(Path(temporary), n, EVALUATION_SEED, "target", answers_per_image=1)
        log = AnswerLog(EvalSpec(read_questions(images / ANSWERS), get_task("minicharts"), 16, PILLOW_PIXEL_CAP))
        vlm = load(str(folder), name="model", threads=1)
        answer_all(vlm, log)
        vlm.close()
    return sum(row.score for row in log.predictions("model")) / n


def measure(folder: Path, seed: int, bits: Sequence[int], steps: int, n: int, render: int) -> Document:
    """One seed: accuracies by what was trained, how much of it was kept, and the bits it was quantized to."""
    from mpa_edge.runs.manifest import StageClock
    from mpa_edge.stages.level import training
    from mpa_edge.stages.level.stage import choose
    from mpa_edge.stages.pipeline import run_stages
    from mpa_edge.stages.run import open_run
    from mpa_edge.vlm import resolve

    always = [f"seed={seed}", f"images.render.seed={1000 + seed}", f"images.render.n={render}", "threads=1"]
    always += [f"level.max_steps={steps}", "level.precision=bf16", "level.patience=0"]
    run = open_run("minicharts", out=str(folder), overrides=always)
    run_stages(run, ("annotate", "identify"))
    student, selection = Path(resolve(run.recipe.student)), choose(run)
    rows: dict[str, float] = read(folder / "accuracy.json")

    def answered(name: str, adapter: Path | None, strength: float, to: int) -> None:
        if name not in rows:
            rows[name] = accuracy(merged(student, adapter, strength, to, folder / "quantized"), n)
            (folder / "accuracy.json").write_text(json.dumps(rows))
            click.echo(f"seed {seed}, {name}: {rows[name]:.3f}", err=True)

    for to in (PLAIN, *bits):
        answered(f"before, {to}", None, 1.0, to)
    for trained in (PLAIN, *bits):
        place = folder / f"trained-{trained}"
        if not (place / "adapter" / "adapter_config.json").is_file():
            place.mkdir(exist_ok=True)
            with against(trained):
                training.train(run, selection, place / "checkpoints", place / "adapter", StageClock(place))
        for to in (PLAIN, *bits) if trained == PLAIN else (trained,):
            for strength in sorted({run.recipe.level.strength, 1.0}):
                name = "plain" if trained == PLAIN else "aware"
                answered(f"{name}, {to}, {strength:g}", place / "adapter", strength, to)
    return rows


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--bits", default="2,3", show_default=True, help="Comma-separated.")
@click.option("--steps", default=120, show_default=True, help="Optimiser steps of each training.")
@click.option("--questions", default=500, show_default=True, help="Questions that each model answers.")
@click.option("--images", default=1000, show_default=True, help="Images to annotate.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/quantized"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Kept in this JSON document.")
def main(seeds: str, bits: str, steps: int, questions: int, images: int, work: Path, out: Path) -> None:
    """See the head of this file."""
    wanted = [int(one) for one in bits.split(",")]
    rows = {}
    for seed in seeds.split(","):
        folder = work / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rows[seed] = measure(folder, int(seed), wanted, steps, questions, images)
        typed = command("quantization_aware.py", sys.argv[1:], without=("--work",))
        known = {"command": typed, "machine": machine(), "steps": steps, "n": questions, "images": images}
        remember(out, KEY, known | {"bits": wanted, "seeds": rows})


if __name__ == "__main__":
    main()
