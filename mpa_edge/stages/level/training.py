"""The training loop of the level stage: TRL's SFTTrainer, a peft adapter, a collator that masks all but the answer."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError
from mpa_edge.families import family_of
from mpa_edge.progress import Advance, progress, say
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.isolation import disk_guard
from mpa_edge.runs.manifest import COMPLETE, StageClock
from mpa_edge.stages.level.curriculum import LOSSES_BEFORE, easy_first, losses_before, row_losses
from mpa_edge.stages.level.dataset import AnswerCollator, as_rows
from mpa_edge.stages.level.ddp import agreed, blank, in_step, is_first, meet, place, wait_for
from mpa_edge.stages.level.distill import SoftLabel, distilling, require_same_words, soft_labels
from mpa_edge.stages.level.launch import launch
from mpa_edge.stages.level.precision import computes_in_bf16, load_student
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.run import Run, stable_seed
from mpa_edge.types import ParityRecord
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.model import is_out_of_memory

STATE = "trainer_state.json"
OPINIONS = "teacher"
ONLY_IN_CHECKPOINTS = (COMPLETE, STATE, "optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin")


@dataclass(frozen=True)
class Outcome:
    """What training did."""

    losses: list[dict[str, float]]
    """One entry a logged step: step, loss, learning_rate; and eval_loss where the held-out slice was looked at."""
    steps: int
    best_step: int
    used: Mapping[str, str] = field(default_factory=dict)
    """What did it, where that was not this process."""
    peak_rss_bytes: int = 0
    """Of the process that did it; 0 where it was this one."""


class Watcher(TrainerCallback):
    """Marks finished checkpoints, keeps the clock, moves the progress bar."""

    def __init__(self, clock: StageClock, advance: Advance, start: int) -> None:
        self.clock, self.advance, self.shown = clock, advance, start

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step."""
        self.advance(state.global_step - self.shown)
        self.shown = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written whole, by all processes: only then may a later run start from it."""
        meet()
        if not is_first():
            return
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        self.clock.tick()


def train(run: Run, selection: Selection, checkpoints: Path, out: Path, clock: StageClock) -> Outcome:
    """Train from the last whole checkpoint, or from the start, and save the best weights to `out`.

    Where memory runs out a step is made of smaller batches: it sees the same samples, and what was learned stays.
    """
    checkpoint.set_threads(run.recipe.threads)
    at_once = most = run.recipe.level.batch_size // (run.processes.count if run.processes else 1)
    while True:
        try:
            return attempt(run, selection, make_folder(checkpoints.resolve()), out, clock, at_once)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if at_once == 1:
                raise MpaError(
                    "out of memory with one sample at a time: use a smaller student or a lower level.rank"
                ) from error
        gc.collect()
        at_once = largest_divisor(most, at_once // 2)
        say(f"out of memory: level goes on with {at_once} samples at a time, {run.recipe.level.batch_size} in a step")


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to limit.

    >>> largest_divisor(32, 16), largest_divisor(30, 15), largest_divisor(7, 3)
    (16, 15, 1)
    """
    return max(d for d in range(1, limit + 1) if n % d == 0)


def attempt(run: Run, selection: Selection, checkpoints: Path, out: Path, clock: StageClock, at_once: int) -> Outcome:
    """One attempt, with so many samples in the memory of a process at once; here, or in processes of its own."""
    resume_from = last_checkpoint(checkpoints)
    if resume_from and is_over(read_json(resume_from / STATE), run.recipe.level, len(selection.train)):
        return _take_best(resume_from, out)
    if run.processes:
        return Outcome(**launch(run, run.processes, checkpoints, out, at_once))
    return learn(run, selection, checkpoints, out, clock, at_once)


def learn(run: Run, selection: Selection, checkpoints: Path, out: Path, clock: StageClock, at_once: int) -> Outcome:
    """Train in this process, alone or as one of several."""
    recipe, config = run.recipe, run.recipe.level
    taken_up = agreed((last := last_checkpoint(checkpoints)) and last.name) if is_first() else agreed(None)
    resume_from = checkpoints / taken_up if taken_up else None
    device = checkpoint.pick_device(recipe.device)
    path = resolve(recipe.student)
    processor = checkpoint.load_processor(path)
    soft = _opinions(run, selection.train, processor, checkpoints / OPINIONS, clock, device) if config.distill else {}
    model, collate = _trainable(path, config, device, recipe.seed), _collator(run, processor, soft)
    if config.curriculum:
        selection = _easy_first(run, selection, model, collate, out.with_name(LOSSES_BEFORE), at_once)
    with disk_guard(run.folder, _checkpoint_bytes(model)):
        trainer = _trainer(run, selection, model, collate, checkpoints, device, at_once)
        start = take_up(trainer, resume_from) if resume_from else 0
        with progress("level", trainer.args.max_steps, start) as advance:
            trainer.add_callback(Watcher(clock, advance, start))
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if is_first():
            _save(trainer, out)
    state = trainer.state
    return Outcome(
        _curve(state.log_history), state.global_step, _step_of(state.best_model_checkpoint) or state.global_step
    )


def _collator(run: Run, processor: Any, soft: Mapping[str, SoftLabel] | None = None) -> AnswerCollator:
    return AnswerCollator(processor, run.images_folder, run.recipe.images.max_pixels, soft)


def _opinions(
    run: Run, rows: Sequence[ParityRecord], student: Any, folder: Path, clock: StageClock, device: str
) -> dict[str, SoftLabel]:
    """What the teacher thinks of the tokens of each answer. It is out of memory again before the student comes."""
    path = resolve(run.recipe.teacher)
    processor = checkpoint.load_processor(path)
    require_same_words(processor, student)
    said = soft_labels(
        folder,
        as_rows(rows, processor, run),
        run.recipe.level.batch_size,
        lambda: (checkpoint.load_model(path, device), _collator(run, processor), len(processor.tokenizer)),
        clock.tick,
    )
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return said


def _easy_first(
    run: Run, selection: Selection, model: Any, collate: AnswerCollator, path: Path, at_once: int
) -> Selection:
    """The same samples in the order of what the untrained student finds easy; a fresh adapter changes nothing yet."""
    rows = selection.train
    if not is_first():
        wait_for([path])

    def measure() -> dict[str, float]:
        losses = row_losses(model, as_rows(rows, collate.processor, run), _collator(run, collate.processor), at_once)
        return {row.id: loss for row, loss in zip(rows, losses, strict=True)}

    return replace(selection, train=tuple(easy_first(rows, losses_before(path, rows, measure))))


def _curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The logged steps, without the Trainer's summary of its own running time."""
    return [dict(entry) for entry in history if "loss" in entry or "eval_loss" in entry]


def _checkpoint_bytes(model: Any) -> int:
    """What one checkpoint takes: the trained weights and two moments of each, fp32, and some small files."""
    return 12 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 1_000_000


def is_over(stored: Mapping[str, Any], config: LevelConfig, n_train: int) -> bool:
    """Whether a checkpoint is the last of its training: the Trainer would take one step more from there."""
    spent = bool(config.patience) and _patience_used(stored) >= config.patience
    return spent or int(stored["global_step"]) >= _planned_steps(config, n_train)


def _patience_used(stored: Mapping[str, Any]) -> int:
    saved = stored.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
    return int(saved["attributes"]["early_stopping_patience_counter"]) if saved else 0


def _take_best(resume_from: Path, out: Path) -> Outcome:
    """The result of a training that was killed after its last checkpoint."""
    stored = read_json(resume_from / STATE)
    best = _step_of(stored.get("best_model_checkpoint")) or int(stored["global_step"])
    with _building(out) as building, disk_guard(out.parent, 1_000_000):
        shutil.copytree(
            resume_from.with_name(f"checkpoint-{best}"), building, ignore=shutil.ignore_patterns(*ONLY_IN_CHECKPOINTS)
        )
    return Outcome(_curve(stored["log_history"]), int(stored["global_step"]), best)


def take_up(trainer: Any, resume_from: Path) -> int:
    """What the Trainer forgets of a checkpoint: patience that was used up, and a folder that was moved.

    Returns the step of the checkpoint.
    """
    stored = read_json(resume_from / STATE)
    best = _step_of(stored.get("best_model_checkpoint"))
    if best and is_first():
        now_at = str(resume_from.with_name(f"checkpoint-{best}"))
        write_json(resume_from / STATE, stored | {"best_model_checkpoint": now_at})
    meet()
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = _patience_used(stored)
    return int(stored["global_step"])


def _step_of(place: str | None) -> int | None:
    """The step of a checkpoint's folder.

    >>> _step_of("runs/x/checkpoint-40"), _step_of(None)
    (40, None)
    """
    return int(Path(place).name.split("-")[1]) if place else None


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` when it is whole."""
    building = out.with_name(f".{out.name}")
    for folder in (building, out):
        shutil.rmtree(folder, ignore_errors=True)
    yield building
    os.replace(building, out)


def _save(trainer: Any, out: Path) -> None:
    """Save what was learned."""
    with _building(out) as building:
        trainer.save_model(str(building))
        (building / "training_args.bin").unlink(missing_ok=True)  # a pickle: nobody should ever have to load one


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those that a kill left behind half-written are removed."""
    found = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")}
    for path in found.values():
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
    whole = {step: path for step, path in found.items() if path.is_dir()}
    return whole[max(whole)] if whole else None


def _trainable(path: str, config: LevelConfig, device: str, seed: int) -> Any:
    """The student with a fresh adapter on the parts that the recipe names, or with all weights free."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(stable_seed(seed, "adapter"))
    model = load_student(path, config, device)
    if config.method == "full":
        return model.train()
    targets = family_of(model.config.model_type).target_modules(config.targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=targets,
        base_model_name_or_path=None,
    )
    return get_peft_model(model, lora)


def _planned_steps(config: LevelConfig, n_train: int) -> int:
    return config.max_steps or max(1, round(config.epochs * -(-n_train // config.batch_size)))


def _trainer(
    run: Run, selection: Selection, model: Any, collate: AnswerCollator, checkpoints: Path, device: str, at_once: int
) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import SFTTrainer

    disable_progress_bar()
    config, has_holdout, processor = run.recipe.level, bool(selection.holdout), collate.processor
    kind = distilling(config.distill) if config.distill else SFTTrainer
    rows, several = as_rows(selection.train, processor, run), place()[1] > 1
    trainer = (in_step(kind) if several else kind)(
        model=model,
        args=_arguments(config, checkpoints, device, run.recipe.seed, len(selection.train), has_holdout, at_once),
        train_dataset=Dataset.from_list([*rows, blank(rows[0])] if several else rows),
        eval_dataset=Dataset.from_list(as_rows(selection.holdout, processor, run)) if has_holdout else None,
        processing_class=processor,
        data_collator=collate,
    )
    if has_holdout and config.patience:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=config.patience))
    _silence(trainer)
    return trainer


def _silence(trainer: Any) -> None:
    """Our own progress replaces the Trainer's."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _arguments(
    config: LevelConfig, checkpoints: Path, device: str, seed: int, n_train: int, has_holdout: bool, at_once: int
) -> Any:
    """SFTConfig of a recipe. Evaluation and checkpoints fall on the same steps, so that the best one can be kept."""
    from trl import SFTConfig

    every = "steps" if has_holdout else "no"
    return SFTConfig(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        max_steps=_planned_steps(config, n_train),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=config.batch_size // (at_once * place()[1]),
        per_device_eval_batch_size=at_once,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        eval_strategy=every,
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps if has_holdout else config.save_steps,
        save_total_limit=2,
        load_best_model_at_end=has_holdout,
        metric_for_best_model="eval_loss" if has_holdout else None,
        greater_is_better=False if has_holdout else None,
        logging_steps=1,
        logging_strategy="steps",
        max_length=None,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        bf16=computes_in_bf16(config, device),
        use_liger_kernel=config.liger,
        disable_tqdm=True,
        prediction_loss_only=True,
        ddp_find_unused_parameters=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential" if config.curriculum else "random",
    )
