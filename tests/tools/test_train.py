from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForImageTextToText, AutoProcessor

from mpa_edge.nursery import models
from tools.nursery_training import batches, train
from tools.nursery_training.batches import IGNORE
from tools.nursery_training.train import PLANS, Plan, Training, supply

TINY = {name: replace(plan, steps=6, batch_size=2, warmup_steps=2) for name, plan in PLANS.items()}


def steps_of(training: Training, n: int) -> list[tuple[float, float, float]]:
    rows = supply(training.plan, training.encoder, training.step)
    return [training.train_step(next(rows)) for _ in range(n)]


@pytest.mark.parametrize("name", PLANS)
def test_the_packed_forward_is_the_stock_models_on_every_segment(name: str) -> None:
    encoder = batches.Encoder(models.build_processor())
    trainee = train.Trainee(TINY[name], encoder).eval()
    stock = models.build_model(name, TINY[name].seed).eval()
    plan = PLANS[name]
    rows = batches.batch(0, 0, 1, encoder, plan.mix, plan.length)
    everywhere = torch.arange(plan.length)
    inputs = [rows[key] for key in ("frames", "ids", "segment", "position")]
    pixels = rows["frames"].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    with torch.inference_mode():
        packed = trainee(*inputs, everywhere, everywhere)[0]
        for number in range(1, int(rows["segment"].max()) + 1):
            own = (rows["segment"][0] == number).nonzero()[:, 0]
            ids = torch.tensor([encoder.prefix + rows["ids"][0, own].tolist()])
            alone = stock(input_ids=ids, pixel_values=pixels).logits[0, len(encoder.prefix) :]
            assert (packed[own] - alone).abs().max() < 1e-5
    assert number >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_three_steps_and_a_resume_are_six_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "AVERAGE_EVERY_STEPS", 2)  # so that the average has moved before the checkpoint

    def start(folder: str) -> Training:
        return Training(TINY[name], tmp_path / folder, "cpu", compiled=False)

    whole, first = start("whole"), start("halves")
    undisturbed = steps_of(whole, 6)
    losses = steps_of(first, 3)
    first.save_checkpoint()
    resumed = start("halves")
    assert resumed.step == 3
    losses += steps_of(resumed, 3)
    assert repr(losses) == repr(undisturbed)  # repr: two pictures without a chart have no look-ups, their loss is nan
    assert all(torch.equal(whole.average[key], resumed.average[key]) for key in whole.average)
    assert len({loss for loss, _, _ in losses}) == 6


def test_a_checkpoint_of_another_plan_is_refused_and_a_killed_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(TINY["student"], tmp_path, "cpu", compiled=False)
    training.step = 2
    training.save_checkpoint()
    training.step = 4
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        training.save_checkpoint()
    assert Training(TINY["student"], tmp_path, "cpu", compiled=False).step == 2
    with pytest.raises(click.ClickException, match="name another --out"):
        Training(replace(TINY["student"], seed=1), tmp_path, "cpu", compiled=False)


@pytest.mark.slow
def test_the_command_trains_logs_and_leaves_a_stock_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        PLANS, "student", replace(PLANS["student"], steps=20, batch_size=1, after=(train.Phase(5, 0.5, 0.2, 0.1),))
    )
    command = ["student", "--out", str(tmp_path), "--no-compile", "--checkpoint-every", "20"]
    done = CliRunner().invoke(train.main, command, catch_exceptions=False)
    assert done.exit_code == 0
    (record,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (record["step"], record["images"]) == (25, 25)
    assert json.loads(done.stdout) == record
    for folder in ("latest", "final"):
        assert AutoModelForImageTextToText.from_pretrained(tmp_path / folder).dtype == torch.float16
        assert AutoProcessor.from_pretrained(tmp_path / folder).tokenizer.padding_side == "left"
    assert Training(PLANS["student"], tmp_path, "cpu", compiled=False).step == 20


def test_the_rate_warms_up_holds_and_goes_down_to_two_percent() -> None:
    plan = Plan("student", 1000, 1, PLANS["student"].mix, 216, warmup_steps=100, hold_share=0.5)
    factors = [train.rate_factor(step, plan) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99:500] == [1.0] * 401
    assert factors[500:] == sorted(factors[500:], reverse=True)
    assert factors[-1] == 0.02


def test_phases_follow_the_main_schedule_with_a_mix_and_a_rate_of_their_own() -> None:
    after = (train.Phase(10, 0.6, 0.4, 0.2), train.Phase(20, 0.0, 0.6, 0.02))
    plan = replace(PLANS["student"], steps=100, after=after)
    assert plan.total_steps == 130
    shares = [plan.mix_at(step).target_share for step in (0, 99, 100, 109, 110, 129)]
    assert shares == [plan.mix.target_share] * 2 + [0.6] * 2 + [0.0] * 2
    assert replace(plan.mix_at(105), target_share=plan.mix.target_share) == plan.mix
    rates = [train.rate_factor(step, plan) for step in (100, 105, 110, 120)]
    assert rates == pytest.approx([0.4, 0.3, 0.6, 0.31])


def test_every_parameter_has_exactly_one_optimizer() -> None:
    trainee = train.Trainee(TINY["student"], batches.Encoder(models.build_processor()))
    muon, adamw = train.optimizers(trainee, 1e-3)
    owned = [id(p) for optimizer in (muon, adamw) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted({id(p) for p in trainee.parameters()})
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])


def test_places_of_labels_are_padded_with_places_that_teach_nothing() -> None:
    at, targets = train.padded_places(torch.tensor([[IGNORE, 5], [7, IGNORE]]), 4)
    assert at.tolist() == [1, 2, 0, 0]
    assert targets.tolist() == [5, 7, IGNORE, IGNORE]


@pytest.mark.parametrize("name", PLANS)
def test_the_room_for_labels_and_key_words_is_never_too_small(name: str) -> None:
    """`train_step` reserves 48 labels and 10 key words a picture: more would be dropped without a word."""
    plan = PLANS[name]
    rows = batches.batch(1, 0, 40, batches.Encoder(models.build_processor()), plan.mix, plan.length)
    assert (rows["labels"] != IGNORE).sum() <= 40 * 48
    assert (rows["found"][:, 0] != IGNORE).sum() <= 40 * 10
