"""Learning from the teacher's token probabilities, and in an order, on tiny random models."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.nursery.models import build_model, build_processor
from mpa_edge.runs.files import make_folder, read_json
from mpa_edge.runs.manifest import StageClock
from mpa_edge.stages.level import distill, training
from mpa_edge.stages.level.answer_logits import IGNORE, answer_logits, by_row, in_batches
from mpa_edge.stages.level.curriculum import LOSSES_BEFORE, easy_first, losses_before, row_losses
from mpa_edge.stages.level.dataset import AnswerCollator, as_rows
from mpa_edge.stages.level.distill import SOFT, SoftLabel, divergence, opinions, require_same_words, stacked
from mpa_edge.stages.level.selection import Selection
from mpa_edge.stages.level.stage import level_inputs
from mpa_edge.vlm.transformers import checkpoint
from tests.stages.level.test_training import losses, records


def saved(folder: Path, seed: int) -> Path:
    build_model("student", seed=seed).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SimpleNamespace:
    """Teacher and student of one shape and different weights."""
    folder = tmp_path_factory.mktemp("models")
    return SimpleNamespace(teacher=saved(folder / "teacher", 1), student=saved(folder / "student", 2))


@pytest.fixture(scope="module")
def loaded(models) -> SimpleNamespace:
    return SimpleNamespace(
        teacher=checkpoint.load_model(str(models.teacher), "cpu"),
        student=checkpoint.load_model(str(models.student), "cpu"),
        processor=checkpoint.load_processor(str(models.student)),
    )


@pytest.fixture
def run(make_run, models):
    return make_run(
        teacher=str(models.teacher),
        student=str(models.student),
        threads=1,
        level__batch_size=4,
        level__max_steps=4,
        level__eval_steps=2,
        level__targets=["language"],
        level__rank=2,
        level__warmup_steps=0,
        level__distill=1.0,
        level__curriculum=True,
    )


@pytest.fixture
def lessons(run, loaded, pictures):
    """(rows, collator): answers of one to four tokens."""
    return as_rows(records(9), loaded.processor, run), AnswerCollator(loaded.processor, pictures, 10_000)


# --- logits at given answers ------------------------------------------------------------------------------------------


def test_logits_are_those_that_predict_the_answers_tokens(loaded, lessons) -> None:
    rows, collate = lessons
    batch = collate(rows)
    with torch.no_grad():
        logits, labels = answer_logits(loaded.student, batch)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        whole = loaded.student(**inputs).logits
    learned = batch["labels"] != IGNORE
    assert torch.equal(labels, batch["labels"][learned])
    torch.testing.assert_close(logits, whole[:, :-1][learned[:, 1:]], atol=1e-5, rtol=1e-5)
    parts = by_row(labels, batch["labels"])
    assert [part.tolist() for part in parts] == [row[row != IGNORE].tolist() for row in batch["labels"]]
    assert len({len(part) for part in parts}) > 1


def test_memory_that_runs_out_halves_what_is_asked_at_once() -> None:
    sizes = []

    def work(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise MemoryError
        return [item * 10 for item in items]

    assert in_batches(range(7), 7, work) == [0, 10, 20, 30, 40, 50, 60]
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(MpaError, match="out of memory with one sample at a time"):
        in_batches([1, 2, 3], 1, lambda items: work([*items, 0, 0]))
    with pytest.raises(ValueError, match="of its own"):
        in_batches([1], 1, lambda items: (_ for _ in ()).throw(ValueError("of its own")))


# --- divergence -------------------------------------------------------------------------------------------------------


def by_definition(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon, from probabilities, in double precision."""
    p, q = p.double(), q.double()
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


def distributions(n: int = 50, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, vocabulary) * 3, torch.randn(n, vocabulary) * 3


def test_with_all_tokens_it_is_the_divergence() -> None:
    student, teacher = distributions()
    top = teacher.log_softmax(-1).topk(30)
    found = divergence(student, top.indices, top.values)
    torch.testing.assert_close(
        found.double(), by_definition(teacher.softmax(-1), student.softmax(-1)), atol=1e-5, rtol=1e-4
    )
    assert bool((found <= math.log(2) + 1e-6).all())


def test_with_few_tokens_it_is_never_more_and_rarely_much_less() -> None:
    student, teacher = distributions()
    whole = by_definition(teacher.softmax(-1), student.softmax(-1))
    last = torch.zeros(())
    for k in (1, 4, 16):
        top = teacher.log_softmax(-1).topk(k)
        found = divergence(student, top.indices, top.values).double()
        assert bool((found <= whole + 1e-5).all())
        assert found.mean() > last.mean()
        last = found
    assert last.mean() > 0.9 * whole.mean()


def test_a_twin_has_nothing_to_learn_and_a_step_brings_the_others_closer() -> None:
    student, teacher = distributions()
    top = teacher.log_softmax(-1).topk(8)
    torch.testing.assert_close(divergence(teacher, top.indices, top.values), torch.zeros(50), atol=1e-5, rtol=0)
    student.requires_grad_()
    before = divergence(student, top.indices, top.values).sum()
    before.backward()
    assert bool(student.grad.isfinite().all())
    after = divergence(student.detach() - 0.5 * student.grad, top.indices, top.values).sum()
    assert after < before


def test_opinions_are_the_teachers_likeliest_tokens(loaded, lessons, monkeypatch) -> None:
    monkeypatch.setattr(distill, "TOP", 5)
    rows, collate = lessons
    words = len(loaded.processor.tokenizer)
    said = opinions(loaded.teacher, rows, collate, words)
    assert [label.id for label in said] == [row["id"] for row in rows]
    (alone,) = opinions(loaded.teacher, rows[4:5], collate, words)
    assert alone.tokens == said[4].tokens
    assert alone.logprobs == pytest.approx(said[4].logprobs, abs=1e-4)
    for label, row in zip(said, rows, strict=True):
        tokens = loaded.processor.tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        assert list(label.tokens) == tokens
        assert len(label.ids) == len(label.logprobs) == 5 * len(tokens)
        assert max(label.ids) < words
        assert label.logprobs[:5] == tuple(sorted(label.logprobs[:5], reverse=True))


def test_soft_labels_lie_beside_the_tokens_that_they_are_about(loaded, lessons, pictures) -> None:
    rows, collate = lessons
    said = {label.id: label for label in opinions(loaded.teacher, rows, collate, 40)}
    other = said["3"].model_copy(update={"tokens": (1, *said["3"].tokens)})
    known = {name: label for name, label in said.items() if name != "5"} | {"3": other}
    labels = collate(rows)["labels"]
    soft = stacked(rows, labels, known)
    parts = by_row(soft["known"], labels)
    assert [bool(part.all()) for part in parts] == [row["id"] not in ("3", "5") for row in rows]
    assert [bool(part.any()) for part in parts] == [row["id"] not in ("3", "5") for row in rows]
    ids = by_row(soft["ids"], labels)
    assert ids[4].flatten().tolist() == list(said["4"].ids)
    # a held-out batch has none: early stopping compares what it always did
    assert SOFT in AnswerCollator(loaded.processor, pictures, 10_000, known)(rows)
    assert SOFT not in AnswerCollator(loaded.processor, pictures, 10_000, {"other": said["1"]})(rows)
    assert stacked(rows, labels, {}) == {}


def test_tokenizers_that_differ_are_an_error(loaded) -> None:
    words = loaded.processor.tokenizer.get_vocab()
    one, *_ = words
    other = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: words | {one: 10**6}))
    require_same_words(loaded.processor, loaded.processor)
    with pytest.raises(MpaError, match=rf"different tokenizers \(1 of {len(words)} tokens differ\).*level\.distill=0"):
        require_same_words(loaded.processor, other)


def test_a_teacher_behind_a_server_has_no_probabilities_to_learn_from(run) -> None:
    raw = run.recipe.model_dump(mode="json") | {"teacher": "openai:http://127.0.0.1:1/v1#m"}
    with pytest.raises(ValidationError, match="needs the teacher's own files, and it is a server: use level.distill=0"):
        Recipe.model_validate(raw)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(run, tmp_path, name: str = "out"):
    folder = make_folder(tmp_path / name)
    rows = Selection(records(12), records(4), 0)
    return training.train(run, rows, folder / "checkpoints", folder / "adapter", StageClock(folder)), folder


@pytest.mark.slow
def test_the_loss_is_likelihood_plus_weighted_divergence(run, loaded, lessons, monkeypatch) -> None:
    rows, collate = lessons
    collate.soft = {label.id: label for label in opinions(loaded.teacher, rows, collate, 40)}
    batch = collate(rows)
    trainer = object.__new__(distill.distilling(3.0))
    with torch.no_grad():
        n = int((batch["labels"] != IGNORE).sum())
        found = trainer.compute_loss(loaded.student, dict(batch), num_items_in_batch=torch.tensor(2 * n))
        soft = batch.pop(SOFT)
        logits, labels = answer_logits(loaded.student, batch)
        nll = -logits.log_softmax(-1).gather(1, labels[:, None]).sum()
        apart = divergence(logits, soft["ids"], soft["logprobs"]).sum()
    assert float(found) == pytest.approx(float(nll + 3 * apart) / (2 * n), rel=1e-5)
    assert apart > 0.01


@pytest.mark.slow
def test_a_killed_training_goes_on_with_order_and_opinions(run, tmp_path, monkeypatch) -> None:
    expected, whole = trained(run, tmp_path, "whole")
    before = read_json(whole / LOSSES_BEFORE)
    assert set(before) == {row.id for row in records(12)}
    save = training.Watcher.on_save

    def dies(self, args, state, control, **more):
        save(self, args, state, control, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Watcher, "on_save", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(run, tmp_path, "killed")
    monkeypatch.setattr(training, "row_losses", None)  # not measured again
    monkeypatch.setattr(distill, "opinions", None)
    found, killed = trained(run, tmp_path, "killed")
    assert losses(found) == losses(expected)
    name = "adapter/adapter_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_the_divergence_matters_to_what_is_learned(run, tmp_path) -> None:
    with_it, folder = trained(run, tmp_path, "with")
    level = run.recipe.level.model_copy(update={"distill": 0.0})
    plain = type(run)(run.folder, run.recipe.model_copy(update={"level": level}), images=run.images)
    without, other = trained(plain, tmp_path, "without")
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() != (other / name).read_bytes()
    assert losses(with_it)[0] > losses(without)[0]  # the same first batch: likelihood, and something more


def test_the_teacher_counts_where_it_is_learned_from(run, monkeypatch) -> None:
    monkeypatch.setattr(type(run), "outputs_of", lambda self, stage: "hash")
    assert level_inputs(run)["teacher"] == run.teacher_fingerprint
    level = run.recipe.level.model_copy(update={"distill": 0.0})
    assert "teacher" not in level_inputs(type(run)(run.folder, run.recipe.model_copy(update={"level": level})))


# --- order ------------------------------------------------------------------------------------------------------------


def test_easy_samples_come_first(loaded, lessons) -> None:
    rows, collate = lessons
    found = row_losses(loaded.student, rows, collate, 4)
    for row, loss in zip(rows, found, strict=True):
        with torch.no_grad():
            batch = collate([row])
            expected = float(loaded.student(**batch).loss)
        assert loss == pytest.approx(expected, rel=1e-4)
    by_id = {row.id: loss for row, loss in zip(records(9), found, strict=True)}
    ordered = [by_id[row.id] for row in easy_first(records(9), by_id)]
    assert ordered == sorted(found)
    assert len(set(found)) > 5


def test_equal_losses_keep_one_order() -> None:
    rows = records(9)
    assert easy_first(rows[::-1], dict.fromkeys((row.id for row in rows), 1.0)) == list(rows)


def test_losses_are_measured_once(tmp_path) -> None:
    rows, path = records(3), tmp_path / LOSSES_BEFORE
    measured = losses_before(path, rows, lambda: {row.id: 1.23456789 for row in rows})
    assert measured == {row.id: 1.2346 for row in rows}
    assert losses_before(path, rows, lambda: {}) == measured
    more = records(4)
    assert losses_before(path, more, lambda: {row.id: 2.0 for row in more})["3"] == 2.0


def test_pictures_are_what_the_losses_depend_on(loaded, run, pictures) -> None:
    """A student that does not look would call every picture equally easy."""
    rows = as_rows(records(1), loaded.processor, run)
    Image.effect_noise((512, 512), 90).convert("RGB").save(pictures / "0.png")
    one = row_losses(loaded.student, rows, AnswerCollator(loaded.processor, pictures, 10**6), 1)
    Image.new("RGB", (512, 512), "white").save(pictures / "0.png")
    other = row_losses(loaded.student, rows, AnswerCollator(loaded.processor, pictures, 10**6), 1)
    assert one != other


def test_soft_labels_can_be_written(tmp_path) -> None:
    from mpa_edge.runs.parquet import read_rows, write_rows

    label = SoftLabel(id="1", tokens=(4, 2), top=2, ids=(4, 9, 2, 1), logprobs=(-0.5, -1.0, -0.25, -2.0))
    write_rows(tmp_path / "x.parquet", [label], SoftLabel)
    assert read_rows(tmp_path / "x.parquet", SoftLabel) == [label]
