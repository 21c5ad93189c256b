"""The training loop of the level stage: TRL's SFTTrainer with a peft adapter, its checkpoints and early stopping."""

from __future__ import annotations

import gc
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.families import family_of
from mpa_edge.progress import Advance, progress, say
from mpa_edge.runs.files import is_utf8, make_folder, read_json, write_json
from mpa_edge.runs.isolation import disk_guard
from mpa_edge.runs.manifest import COMPLETE, StageClock
from mpa_edge.runs.paths import move, remove
from mpa_edge.stages.level.dataset import AnswerCollator, as_rows
from mpa_edge.stages.level.ddp import broadcast, process_errors, rank, world_size
from mpa_edge.stages.level.precision import computes_in_bf16, load_student
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.run import Run, stable_seed, with_absolute_paths
from mpa_edge.vlm import resolve
from mpa_edge.vlm.transformers import checkpoint

FEWEST_STEPS = 8  # fewer training losses say too little
STATE = "trainer_state.json"
ONLY_IN_CHECKPOINTS = (COMPLETE, STATE, "optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin")


@dataclass(frozen=True)
class Outcome:
    """What training did."""

    losses: list[dict[str, float]]
    """One entry for each logged step: step, loss, learning_rate; eval_loss where the held-out slice was evaluated."""
    steps: int
    best_step: int


@dataclass(frozen=True)
class Training:
    """One training, as each of its processes needs to know it."""

    run: Run
    selection: Selection
    checkpoints: Path
    """Folder of the checkpoints."""
    resume_from: Path | None
    """Checkpoint to start from."""
    out: Path
    """Where the adapter (or the whole model) goes."""
    micro_batch: int
    """Samples in the memory of one process at once."""


def train(run: Run, selection: Selection, checkpoints: Path, out: Path, clock: StageClock) -> Outcome:
    """Train from the last complete checkpoint, or from the start, and save the best weights to `out`.

    When memory runs out, training resumes with a smaller micro-batch and more gradient accumulation, so a step sees the
    same samples. In several processes that is an error: the others would wait for the one that ran out.
    """
    resolved, config = checkpoints.resolve(), run.recipe.level
    # tokenizers take no path that is not UTF-8, which a relative one may well be
    checkpoints = make_folder(resolved if is_utf8(str(resolved)) else checkpoints)
    if world_size() > 1:  # the other processes may have another working folder
        images = str(run.images_folder.absolute())
        run = replace(run, folder=run.folder.absolute(), recipe=with_absolute_paths(run.recipe), images=images)
    # micro-batch x accumulation x processes is the recipe's batch size, whatever the processes
    micro_batch = whole = config.batch_size // world_size()
    while True:
        resume_from = last_checkpoint(checkpoints)
        if resume_from:
            state = read_json(resume_from / STATE)
            if is_over(state, config, len(selection.train)):
                return _take_best(resume_from, state, out)
            _relocate_best(resume_from, state)
        training = Training(run, selection, checkpoints, resume_from, out, micro_batch)
        broadcast(training)
        try:
            return learn(training, clock)
        except (MemoryError, RuntimeError) as error:
            if not checkpoint.is_out_of_memory(error):
                raise
            if micro_batch == 1:
                raise MpaError(
                    "out of memory with one sample at a time: use a smaller student or a lower level.rank"
                ) from error
        gc.collect()
        micro_batch = largest_divisor(whole, micro_batch // 2)
        say(f"out of memory: level resumes with {micro_batch} samples at a time, {config.batch_size} in a step")


def follow() -> None:
    """Take part in each training that the first process broadcasts, until it has finished. Prints nothing."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), process_errors():
        while (training := broadcast(None)) is not None:
            learn(training, None)


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to limit.

    >>> largest_divisor(32, 16), largest_divisor(30, 15), largest_divisor(7, 3)
    (16, 15, 1)
    """
    return max(d for d in range(1, limit + 1) if n % d == 0)


def learn(training: Training, clock: StageClock | None) -> Outcome:
    """Train in this process, alone or as one of several; the first one saves the result and keeps the `clock`."""
    recipe, config, selection = training.run.recipe, training.run.recipe.level, training.selection
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    checkpoint.set_threads(recipe.threads or max(1, cores))
    device = checkpoint.pick_device(recipe.device)
    with process_errors():
        processor = checkpoint.load_processor(resolve(recipe.student))
        model = _trainable(resolve(recipe.student), config, device, recipe.seed)
        # a checkpoint holds the trained weights and two moments of each, fp32, and some small files
        checkpoint_bytes = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 1_000_000
        with disk_guard(training.run.folder, checkpoint_bytes):
            trainer = _trainer(training, model, processor, device)
            if selection.holdout and config.patience:
                trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=config.patience))
            resume_from = training.resume_from
            start = int(read_json(resume_from / STATE)["global_step"]) if resume_from else 0
            with progress("level", trainer.args.max_steps, start) as advance:
                trainer.add_callback(StageCallback(clock, advance, start))
                if selection.holdout:
                    trainer.add_callback(HoldoutCallback(trainer))
                trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
            if rank() == 0:
                with _replaced(training.out) as building:
                    trainer.save_model(str(building))
                    remove(building / "training_args.bin")  # a pickle, which nobody should load
    state = trainer.state
    best = _step_of(state.best_model_checkpoint) or state.global_step
    return Outcome(_curve(state.log_history), state.global_step, best)


def _trainable(path: str, config: LevelConfig, device: str, seed: int) -> Any:
    """The student with a fresh adapter on the parts that the recipe names, or with all its weights trainable."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(stable_seed(seed, "adapter"))
    model = load_student(path, config, device)
    if config.method == "full":
        return model.train()
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=family_of(model.config.model_type).target_modules(config.targets),
        base_model_name_or_path=None,
    )
    return get_peft_model(model, lora)


def _trainer(training: Training, model: Any, processor: Any, device: str) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import SFTTrainer

    disable_progress_bar()
    run, selection = training.run, training.selection
    trainer = SFTTrainer(
        model=model,
        args=_arguments(training, device),
        train_dataset=Dataset.from_list(as_rows(selection.train, processor, run)),
        eval_dataset=Dataset.from_list(as_rows(selection.holdout, processor, run)) if selection.holdout else None,
        processing_class=processor,
        data_collator=AnswerCollator(processor, run.images_folder, run.recipe.images.max_pixels),
    )
    for callback in (PrinterCallback, ProgressCallback):  # replaced by our own progress
        trainer.remove_callback(callback)
    return trainer


def _arguments(training: Training, device: str) -> Any:
    """SFTConfig of a recipe. Evaluation and checkpoints fall on the same steps, so that the best one can be kept."""
    from trl import SFTConfig

    config, seed, has_holdout = training.run.recipe.level, training.run.recipe.seed, bool(training.selection.holdout)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the recipe decides, not the launcher
    return SFTConfig(
        output_dir=str(training.checkpoints),
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        max_steps=_planned_steps(config, len(training.selection.train)),
        per_device_train_batch_size=training.micro_batch,
        gradient_accumulation_steps=config.batch_size // (training.micro_batch * world_size()),
        per_device_eval_batch_size=training.micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        eval_strategy="steps" if has_holdout else "no",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps if has_holdout else config.save_steps,
        save_total_limit=2,
        load_best_model_at_end=has_holdout,
        metric_for_best_model="eval_loss" if has_holdout else None,
        greater_is_better=False if has_holdout else None,
        restore_callback_states_from_checkpoint=True,  # the patience that was used up before a kill
        logging_steps=1,
        logging_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
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
        dataset_kwargs={"skip_prepare_dataset": True},
    )


class StageCallback(TrainerCallback):
    """Marks complete checkpoints, keeps the clock of the stage, moves the progress bar."""

    def __init__(self, clock: StageClock | None, advance: Advance, start: int) -> None:
        self.clock, self.advance, self.shown = clock, advance, start

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step."""
        self.advance(state.global_step - self.shown)
        self.shown = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All processes have written their part of a checkpoint: only now may a later run resume from it."""
        PartialState().wait_for_everyone()
        if rank() == 0:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
            if self.clock:
                self.clock.tick()


class HoldoutCallback(TrainerCallback):
    """Evaluates the untrained student, and the last step where none was evaluated before it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step: its loss is logged as that of step 0. Training draws the same numbers as without."""
        if state.global_step == 0:
            with torch.random.fork_rng():
                self.trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step."""
        evaluated = any(entry["step"] > 0 for entry in state.log_history if "eval_loss" in entry)
        if state.global_step >= state.max_steps and not evaluated:
            control.should_evaluate = True


def require_better(outcome: Outcome, config: LevelConfig, n_holdout: int) -> None:
    """Raise VerificationError where training made the student no better.

    What counts is the loss on the held-out samples, before training and of the weights that were kept. Without held-out
    samples, the training loss must have fallen below that of the first step at some point of the last quarter.
    """
    held_out = {int(entry["step"]): entry["eval_loss"] for entry in outcome.losses if "eval_loss" in entry}
    curve = [entry["loss"] for entry in outcome.losses if "loss" in entry]
    before, after, where = held_out.get(0, math.inf), held_out.get(outcome.best_step, math.nan), f"{n_holdout} held-out"
    if not n_holdout:
        after = min(curve[-max(1, len(curve) // 4) :]) if all(map(math.isfinite, curve)) else math.nan
        before, where = curve[0] if len(curve) >= FEWEST_STEPS else math.inf, "the training"
    if not after < before:
        raise VerificationError(
            f"level made the student no better: the loss on {where} samples was {before:.3g} before training and is "
            f"{after:.3g}; nothing is merged, the annotations are kept: lower level.learning_rate "
            f"({config.learning_rate:g}) or train for more steps, and rerun"
        )


def _planned_steps(config: LevelConfig, n_train: int) -> int:
    return config.max_steps or max(1, round(config.epochs * -(-n_train // config.batch_size)))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; those that a kill left half-written are removed."""
    found = {step: path for path in folder.glob("checkpoint-*") if (step := _step_of(str(path)))}
    for path in found.values():
        if not (path / COMPLETE).is_file():
            remove(path)
    complete = {step: path for step, path in found.items() if path.is_dir()}
    return complete[max(complete)] if complete else None


def is_over(state: Mapping[str, Any], config: LevelConfig, n_train: int) -> bool:
    """Whether the checkpoint of this trainer state ended its training: the Trainer would take one more step from it."""
    stopping = state.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
    patience_used = int(stopping["attributes"]["early_stopping_patience_counter"]) if stopping else 0
    stopped_early = bool(config.patience) and patience_used >= config.patience
    return stopped_early or int(state["global_step"]) >= _planned_steps(config, n_train)


def _relocate_best(resume_from: Path, state: Mapping[str, Any]) -> None:
    """Point a checkpoint to its best sibling where that is now: the Trainer stores an absolute path."""
    if best := _step_of(state.get("best_model_checkpoint")):
        now_at = str(resume_from.with_name(f"checkpoint-{best}"))
        write_json(resume_from / STATE, {**state, "best_model_checkpoint": now_at})


def _take_best(resume_from: Path, state: Mapping[str, Any], out: Path) -> Outcome:
    """The result of a training that was killed after its last checkpoint."""
    best = _step_of(state.get("best_model_checkpoint")) or int(state["global_step"])
    source, ignore = resume_from.with_name(f"checkpoint-{best}"), shutil.ignore_patterns(*ONLY_IN_CHECKPOINTS)
    with _replaced(out) as building, disk_guard(out.parent, 1_000_000):
        shutil.copytree(source, building, ignore=ignore)
    return Outcome(_curve(state["log_history"]), int(state["global_step"]), best)


def _curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The logged steps, without the Trainer's summary of its own running time."""
    return [dict(entry) for entry in history if "loss" in entry or "eval_loss" in entry]


def _step_of(place: str | None) -> int | None:
    """The step of a checkpoint's folder; None where it has none.

    >>> _step_of("runs/x/checkpoint-40"), _step_of("runs/x/checkpoint-old"), _step_of(None)
    (40, None, None)
    """
    step = place.rpartition("/checkpoint-")[2] if place else ""
    return int(step) if step.isdecimal() else None


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A new folder to fill, which replaces `out` when the block has ended without an error."""
    building = out.with_name(f".{out.name}")
    for folder in (building, out):
        remove(folder)
    yield building
    move(building, out)
