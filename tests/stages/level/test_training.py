"""The collator, resuming, and memory that runs out, on a tiny random student."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.nursery.models import END, build_model, build_processor
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.manifest import COMPLETE, StageClock
from mpa_edge.stages.level import training
from mpa_edge.stages.level.dataset import IGNORE, AnswerCollator, as_rows
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.level.training import largest_divisor, last_checkpoint
from mpa_edge.types import ParityRecord, Request
from mpa_edge.vlm.transformers import checkpoint

ANSWERS = ("7", "red", "42", "no", "-5", "3.5", "U.S.", "a  b", "blue circle")


def records(n: int, images: int = 6) -> tuple[ParityRecord, ...]:
    return tuple(
        ParityRecord(
            id=str(i),
            image_id=str(i % images),
            image=f"{i % images}.png",
            question=f"What is {i}?",
            answer=ANSWERS[i % len(ANSWERS)],
            teacher_answer="",
            student_answer=None,
            verdict="gap",
        )
        for i in range(n)
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    build_model("student").half().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(student):
    return checkpoint.load_processor(str(student))


@pytest.fixture
def run(make_run, student):
    return make_run(
        student=str(student),
        threads=1,
        level__batch_size=4,
        level__max_steps=4,
        level__eval_steps=2,
        level__targets=["language"],
        level__rank=2,
        level__warmup_steps=0,
    )


def test_only_the_answer_and_its_end_token_are_learned(run, processor, images_folder) -> None:
    rows = as_rows(records(9), processor, run)
    batch = AnswerCollator(processor, images_folder, 10_000)(rows)
    assert batch["labels"].shape == batch["input_ids"].shape
    for labels, ids, mask, answer in zip(
        batch["labels"], batch["input_ids"], batch["attention_mask"], ANSWERS, strict=True
    ):
        learned = labels != IGNORE
        assert torch.equal(labels[learned], ids[learned])
        said = processor.tokenizer.decode(labels[learned])
        assert said.strip() == f"{answer}{END}"
        assert processor.tokenizer.decode(labels[learned][-1:]) == END
        # one piece at the end of what is not padding
        where = learned.nonzero().flatten().tolist()
        assert where == list(range(where[0], int(mask.sum())))
    assert not (batch["labels"] == processor.tokenizer.convert_tokens_to_ids("<image>")).any()


def test_the_prompt_is_the_one_of_all_other_stages(run, processor, images_folder, student, monkeypatch) -> None:
    """Token for token: what stands before the labels is what answers start from, with shared prefixes and without."""
    from mpa_edge.vlm.transformers import model as transformers_model
    from mpa_edge.vlm.transformers.model import TransformersVLM

    rows = as_rows(records(3), processor, run)
    batch = AnswerCollator(processor, images_folder, 10_000)(rows)
    seen = []
    vlm = TransformersVLM(str(student), name="student", device="cpu", threads=1, batch_size=1)
    generate = vlm.model.generate

    def spy(**inputs):
        seen.append(inputs)
        return generate(**inputs)

    vlm.model.generate = spy
    images = [Image.open(images_folder / row.image).convert("RGB") for row in records(3)]
    requests = [Request(image, row.question, max_new_tokens=1) for image, row in zip(images, records(3), strict=True)]
    behind, decode = [], transformers_model.decode

    def watched(model, rows, *rest):
        behind.extend([*row.prefix.ids, *row.tail] for row in rows)
        return decode(model, rows, *rest)

    monkeypatch.setattr(transformers_model, "decode", watched)
    vlm.answer(requests)
    assert not seen
    vlm.shares = False
    vlm.answer(requests)
    starts = []
    for labels, ids, inputs in zip(batch["labels"], batch["input_ids"], seen, strict=True):
        first = int((labels != IGNORE).nonzero()[0])
        assert ids[:first].tolist() == inputs["input_ids"][0].tolist()
        starts.append(ids[:first].tolist())
    assert sorted(behind) == sorted(starts)
    assert torch.equal(batch["pixel_values"][:1], seen[0]["pixel_values"])


def trained(run, tmp_path, name: str = "out", n: int = 12) -> training.Outcome:
    selection = Selection(records(n), records(4), 0)
    folder = make_folder(tmp_path / name)
    return training.train(run, selection, folder / "checkpoints", folder / "adapter", StageClock(folder))


def losses(outcome: training.Outcome) -> list[float]:
    return [entry["loss"] for entry in outcome.losses if "loss" in entry]


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_batch_and_changes_no_step(run, tmp_path, monkeypatch, capsys) -> None:
    expected = trained(run, tmp_path, "calm")
    real = training._trainable

    def greedy(*arguments):
        model = real(*arguments)
        forward = model.forward

        def limited(*args, **inputs):
            if inputs["input_ids"].shape[0] > 2 and model.training:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return forward(*args, **inputs)

        model.forward = limited
        return model

    monkeypatch.setattr(training, "_trainable", greedy)
    found = trained(run, tmp_path, "tight")
    assert "out of memory: level resumes with 2 samples at a time, 4 in a step\n" in capsys.readouterr().err
    assert found.steps == expected.steps == 4
    assert losses(found) == pytest.approx(losses(expected), rel=1e-3)


@pytest.mark.slow
def test_memory_that_is_never_enough(run, tmp_path, monkeypatch) -> None:
    def never(*_, **__):
        raise MemoryError

    monkeypatch.setattr(training, "_trainer", never)
    with pytest.raises(MpaError, match="out of memory with one sample at a time"):
        trained(run, tmp_path)


@pytest.mark.slow
def test_patience_survives_a_kill(run, tmp_path, monkeypatch) -> None:
    """A resumed training has the same patience left, also in a moved folder; one that had stopped trains no more."""
    level = run.recipe.level.model_copy(update={"patience": 2, "max_steps": 20, "eval_steps": 1, "learning_rate": 1.0})
    run = replace(run, recipe=run.recipe.model_copy(update={"level": level}))
    whole = trained(run, tmp_path, "whole")
    assert whole.steps < 20
    saved = training.StageCallback.on_save

    def dies(self, args, state, control, **more):
        saved(self, args, state, control, **more)
        if state.global_step in (whole.steps - 1, whole.steps):
            raise KeyboardInterrupt

    monkeypatch.setattr(training.StageCallback, "on_save", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(run, tmp_path, "killed")
    (tmp_path / "killed").rename(tmp_path / "moved")
    with pytest.raises(KeyboardInterrupt):
        trained(run, tmp_path, "moved")
    monkeypatch.undo()
    after = trained(run, tmp_path, "moved")
    assert after.steps == whole.steps
    assert after.best_step == whole.best_step
    assert losses(after) == losses(whole)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "moved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def with_level(run, **changed):
    return replace(run, recipe=run.recipe.model_copy(update={"level": run.recipe.level.model_copy(update=changed)}))


@pytest.mark.slow
def test_a_student_that_training_ruined_is_refused(run, tmp_path) -> None:
    """Whether it was evaluated on the way or only at the end; a good one passes, also without held-out samples."""
    run = replace(run, recipe=run.recipe.model_copy(update={"student": "nursery:student"}))
    for name, changed in (("often", {}), ("once", {"eval_steps": 50})):
        good, bad = with_level(run, **changed), with_level(run, learning_rate=1.0, **changed)
        found = trained(good, tmp_path, f"good-{name}")
        assert [entry["step"] for entry in found.losses if "eval_loss" in entry] == [
            0,
            *([2, 4] if not changed else [4]),
        ]
        training.require_better(found, good.recipe.level, 4)
        with pytest.raises(
            VerificationError, match=r"lower level\.learning_rate \(1\) or train for more steps, and rerun$"
        ):
            training.require_better(trained(bad, tmp_path, f"bad-{name}"), bad.recipe.level, 4)
    blind = with_level(run, max_steps=12)
    selection = Selection(records(12), (), 0)
    folder = make_folder(tmp_path / "blind")
    found = training.train(blind, selection, folder / "checkpoints", folder / "adapter", StageClock(folder))
    training.require_better(found, blind.recipe.level, 0)


@pytest.mark.slow
def test_the_evaluation_before_training_changes_no_step(run, tmp_path, monkeypatch) -> None:
    run = with_level(run, dropout=0.5)
    seen = trained(run, tmp_path, "seen")
    monkeypatch.setattr(training.HoldoutCallback, "on_train_begin", lambda *_, **__: None)
    assert losses(trained(run, tmp_path, "unseen")) == losses(seen)


@pytest.mark.parametrize(
    ("held_out", "best", "said"),
    [
        ({0: 2.0, 4: 1.5, 8: 3.0}, 4, None),
        ({0: 2.0, 4: 2.0}, 4, "was 2 before training and is 2;"),
        ({0: 2.0, 4: 9.5, 8: 10.0}, 4, "the loss on 9 held-out samples was 2 before training and is 9.5;"),
        ({0: 2.0, 4: math.nan}, 4, "is nan;"),
        ({0: 2.0, 4: math.nan}, 6, "is nan;"),
    ],
)
def test_what_is_no_better_than_before(held_out, best, said) -> None:
    curve = [{"step": step, "eval_loss": loss} for step, loss in held_out.items()]
    outcome = training.Outcome(curve, 8, best)
    with pytest.raises(VerificationError, match=said) if said else nullcontext():
        training.require_better(outcome, LevelConfig(), 9)


def test_training_losses_that_are_no_numbers() -> None:
    outcome = training.Outcome([{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}], 2, 2)
    with pytest.raises(VerificationError, match="the loss on the training samples was"):
        training.require_better(outcome, LevelConfig(), 0)
    training.require_better(training.Outcome([{"step": 1, "loss": 2.0}], 1, 1), LevelConfig(), 0)
    worse = training.Outcome([{"step": i, "loss": 2.0 + i / 10} for i in range(8)], 8, 8)
    with pytest.raises(VerificationError, match=r"was 2 before training and is 2\.6;"):
        training.require_better(worse, LevelConfig(), 0)


def test_a_training_is_over_when_patience_or_steps_are_used_up() -> None:
    stopping = {"EarlyStoppingCallback": {"attributes": {"early_stopping_patience_counter": 2}}}
    state = {"global_step": 8, "stateful_callbacks": stopping}
    config = LevelConfig(max_steps=20, patience=3)
    assert not training.is_over(state, config, 12)
    assert training.is_over(state, config.model_copy(update={"patience": 2}), 12)
    assert not training.is_over(state, config.model_copy(update={"patience": 0}), 12)
    assert training.is_over(state, config.model_copy(update={"max_steps": 8}), 12)


def test_half_written_checkpoints_are_removed(tmp_path) -> None:
    for step, whole in ((2, True), (4, True), (10, False)):
        folder = make_folder(tmp_path / f"checkpoint-{step}")
        if whole:
            (folder / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()
    assert last_checkpoint(make_folder(tmp_path / "none")) is None


def test_divisors() -> None:
    assert [largest_divisor(30, limit) for limit in (15, 7, 3, 1)] == [15, 6, 3, 1]
