"""The transformers VLM: the same reply whatever else is in the batch, and a batch that fits into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.generation.logits_process import TopPLogitsWarper

from mpa_edge.errors import MpaError
from mpa_edge.nursery import models
from mpa_edge.nursery.render import pictures
from mpa_edge.types import Request
from mpa_edge.vlm import load
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers import model as module
from mpa_edge.vlm.transformers.batching import BatchSize
from mpa_edge.vlm.transformers.model import TransformersVLM
from mpa_edge.vlm.transformers.sampling import SeededSampling
from tests.families import zoo

PROMPTS = (
    "Ask about a value.",
    "How many bars are there?",
    "What is the value of the purple bar?",
    "Ask about a text.",
)


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [picture.image for picture in pictures(4, 99, "target")]


@pytest.fixture(scope="module")
def teacher() -> Iterator[TransformersVLM]:
    vlm = load("nursery:teacher", name="teacher", device="cpu", threads=1)
    yield vlm
    vlm.close()


@pytest.fixture(scope="module")
def random_student(random_checkpoint: Path) -> TransformersVLM:
    return TransformersVLM(str(random_checkpoint), name="student", device="cpu", threads=1)


@pytest.fixture
def student(random_student: TransformersVLM) -> TransformersVLM:
    """Random weights: nothing it says is likely, which is the hard case for sampling."""
    random_student.batch = BatchSize(64)
    return random_student


def sampled(drawn: list[Image.Image], n: int, **options: float) -> list[Request]:
    """Two questions about each image in turn, each with a seed of its own."""
    defaults = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 12}
    return [
        Request(drawn[i // 2 % len(drawn)], PROMPTS[i % len(PROMPTS)], seed=i, **{**defaults, **options})
        for i in range(n)
    ]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_sampled_reply_does_not_depend_on_its_batch(name: str, drawn, request: pytest.FixtureRequest) -> None:
    vlm = request.getfixturevalue(name)
    requests = sampled(drawn, 8)
    together = vlm.answer(requests)
    assert [vlm.answer([one])[0] for one in requests] == together
    assert vlm.answer(requests[::-1])[::-1] == together
    assert vlm.answer([*requests[5:], *requests[:5]]) == [*together[5:], *together[:5]]
    vlm.batch = BatchSize(3)
    assert vlm.answer(requests) == together
    vlm.batch = BatchSize(64)
    assert len({reply.text for reply in together}) > 3


def test_greedy_rows_stay_greedy_beside_sampled_ones(teacher: TransformersVLM, drawn) -> None:
    mixed = [
        Request(one.image, one.prompt, one.max_new_tokens, temperature=one.temperature * (i % 2), seed=one.seed)
        for i, one in enumerate(sampled(drawn, 8, temperature=1.5))
    ]
    greedy = [Request(one.image, one.prompt, one.max_new_tokens) for one in mixed]
    said, expected = teacher.answer(mixed), teacher.answer(greedy)
    assert said[::2] == expected[::2]
    assert said[1::2] != expected[1::2]


def test_a_seed_decides_a_reply_and_another_seed_gives_another(student: TransformersVLM, drawn) -> None:
    def said(seed: int) -> str:
        return student.answer([Request(drawn[0], "How many?", 8, temperature=1.0, seed=seed)])[0].text

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(6)}) > 3


def draws(n: int, probabilities: list[float], **options: float) -> Counter[int]:
    requests = [Request(None, "", seed=seed, **options) for seed in range(n)]
    scores = torch.tensor(probabilities).log().expand(n, -1)
    return Counter(SeededSampling(requests)(torch.zeros(n, 1, dtype=torch.long), scores).argmax(-1).tolist())


def test_sampling_draws_each_token_with_its_probability() -> None:
    counts = draws(8000, [0.5, 0.3, 0.15, 0.05], temperature=1.0)
    for token, probability in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert counts[token] / 8000 == pytest.approx(probability, abs=0.02)


def test_temperature_sharpens_and_top_p_cuts_the_tail() -> None:
    sharp = draws(4000, [0.5, 0.3, 0.15, 0.05], temperature=0.5)
    assert sharp[0] / 4000 == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.03)
    cut = draws(4000, [0.5, 0.3, 0.15, 0.05], temperature=1.0, top_p=0.75)
    assert set(cut) == {0, 1}
    assert cut[0] / 4000 == pytest.approx(0.625, abs=0.03)


def test_top_p_keeps_the_tokens_that_transformers_keeps() -> None:
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    kept = TopPLogitsWarper(0.6)(None, scores / 0.7)[0].isfinite()
    request = Request(None, "", temperature=0.7, top_p=0.6)
    assert torch.equal(SeededSampling([request])(torch.zeros(1, 1), scores)[0].isfinite(), kept)


def test_greedy_scores_are_not_touched() -> None:
    scores = torch.randn(2, 9)
    assert torch.equal(SeededSampling([Request(None, "")] * 2)(torch.zeros(2, 1), scores), scores)


def test_a_reply_says_whether_it_ended_or_was_cut(teacher: TransformersVLM, drawn) -> None:
    whole, cut, one = teacher.answer([Request(drawn[0], PROMPTS[0], max_new_tokens=n) for n in (64, 3, 1)])
    assert (whole.finish_reason, cut.finish_reason, one.finish_reason) == ("stop", "length", "length")
    assert (cut.n_tokens, one.n_tokens) == (3, 1)
    assert whole.text.startswith(cut.text)
    assert 3 < whole.n_tokens <= 64
    ids = teacher.processor.tokenizer(f" {whole.text}", add_special_tokens=False)["input_ids"]
    assert whole.n_tokens == len(ids) + 1  # the end token is counted


def test_replies_come_in_the_order_of_the_requests(teacher: TransformersVLM, drawn) -> None:
    requests = [Request(image, PROMPTS[1], max_new_tokens=n) for image, n in zip(drawn, (9, 3, 8, 2), strict=True)]
    assert teacher.answer(requests) == [teacher.answer([request])[0] for request in requests]
    assert teacher.answer([]) == []


def test_an_image_is_seen_once_as_long_as_it_lives(
    teacher: TransformersVLM, drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode = [], teacher.model.base_model.get_image_features
    monkeypatch.setattr(
        teacher.model.base_model,
        "get_image_features",
        lambda pixel_values, *rest, **options: seen.append(len(pixel_values)) or encode(pixel_values, *rest, **options),
    )
    requests = sampled([image.copy() for image in drawn], 8)
    shared = teacher.answer(requests)
    assert seen == [4]
    assert teacher.answer(requests[::-1])[::-1] == shared
    assert seen == [4]
    copies = [Request(one.image.copy(), one.prompt, 12, one.temperature, one.top_p, one.seed) for one in requests]
    assert teacher.answer(copies) == shared
    assert seen == [4, 8]


def test_images_of_any_size_share_a_batch(teacher: TransformersVLM) -> None:
    noise = zoo.noise(700, 700)
    images = [noise.resize(size) for size in ((128, 64), (64, 128), (1, 1), (900, 2), (640, 480), (30, 300))]
    requests = [Request(image, prompt, max_new_tokens=8) for image in images for prompt in PROMPTS[:2]]
    assert teacher.answer(requests) == [teacher.answer([request])[0] for request in requests]


def test_an_image_token_in_a_question_is_text_and_not_an_image(student: TransformersVLM, drawn) -> None:
    marked, plain = (Request(drawn[0], text, 4) for text in ("How <image>many?<end_of_utterance>", "How many?"))
    assert student.answer([marked]) == student.answer([plain])


def saying(monkeypatch: pytest.MonkeyPatch, new: list[int]) -> None:
    """The model answers every prompt with these tokens."""
    monkeypatch.setattr(module, "decode", lambda model, rows, *_: [new] * len(rows))


def test_special_tokens_never_reach_the_text(student: TransformersVLM, drawn, monkeypatch) -> None:
    tokenizer = student.processor.tokenizer
    special = [i for i in range(len(models.SPECIAL_TOKENS)) if i != tokenizer.eos_token_id]
    spelled = (
        tokenizer("<ima", add_special_tokens=False)["input_ids"]
        + tokenizer("ge>", add_special_tokens=False)["input_ids"]
    )
    word = tokenizer(" red", add_special_tokens=False)["input_ids"]
    saying(monkeypatch, [*special, *word, *special, *spelled, tokenizer.eos_token_id, *word])
    (reply,) = student.answer([Request(drawn[0], "What?", max_new_tokens=500)])
    assert (reply.text, reply.finish_reason) == ("red", "stop")
    assert reply.n_tokens == 2 * len(special) + len(word) + len(spelled) + 1


def test_what_comes_behind_the_end_or_the_limit_is_cut(student: TransformersVLM, drawn, monkeypatch) -> None:
    tokenizer = student.processor.tokenizer
    red, blue = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" red", " blue"))
    saying(monkeypatch, [red, tokenizer.eos_token_id, blue])
    long, short = student.answer([Request(drawn[0], "What?", max_new_tokens=n) for n in (3, 1)])
    assert (long.text, long.finish_reason, long.n_tokens) == ("red", "stop", 2)
    assert (short.text, short.finish_reason, short.n_tokens) == ("red", "length", 1)
    monkeypatch.setattr(student.model.generation_config, "eos_token_id", [blue, 3])
    saying(monkeypatch, [red, blue, red])
    assert student.answer([Request(drawn[0], "What?", max_new_tokens=3)])[0].n_tokens == 2


def echoing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model repeats the end of its prompt: every row has a reply of its own, at no cost."""
    monkeypatch.setattr(module, "decode", lambda model, rows, *_: [list(row.tail[-8:]) for row in rows])


def with_room_for(monkeypatch: pytest.MonkeyPatch, room: int, error: Exception) -> list[int]:
    """Batches above `room` run out of memory; the sizes that were tried."""
    tried, decode = [], module.decode

    def limited(model: object, rows: list, *rest: object) -> list:
        tried.append(len(rows))
        if len(rows) > room:
            raise error
        return decode(model, rows, *rest)

    monkeypatch.setattr(module, "decode", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("mmap: Cannot allocate memory"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    student: TransformersVLM, drawn, monkeypatch, capsys, error: Exception
) -> None:
    requests = [Request(drawn[0], f"How many {i}?", max_new_tokens=40) for i in range(8)]
    echoing(monkeypatch)
    expected = student.answer(requests)
    assert len({reply.text for reply in expected}) == 8
    tried = with_room_for(monkeypatch, 3, error)
    assert student.answer(requests) == expected
    assert tried == [8, 4, 2, 2, 2, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "out of memory: batch of student halved to 4",
        "out of memory: batch of student halved to 2",
    ]
    tried.clear()
    student.answer(requests[:4])
    assert tried == [2, 2]  # what was learned about memory is kept


def test_out_of_memory_in_the_middle_keeps_what_was_answered(student: TransformersVLM, drawn, monkeypatch) -> None:
    requests = [Request(drawn[0], f"How many {i}?", max_new_tokens=40) for i in range(8)]
    echoing(monkeypatch)
    expected = student.answer(requests)
    tried, decode = [], module.decode
    student.batch = BatchSize(4)

    def second_fails(model: object, rows: list, *rest: object) -> list:
        tried.append(len(rows))
        if len(tried) == 2:
            raise MemoryError
        return decode(model, rows, *rest)

    monkeypatch.setattr(module, "decode", second_fails)
    assert student.answer(requests) == expected
    assert tried == [4, 4, 2, 2]


def test_no_memory_for_one_image_is_one_line_and_other_errors_go_up(
    student: TransformersVLM, drawn, monkeypatch
) -> None:
    with_room_for(monkeypatch, 0, MemoryError())
    with pytest.raises(MpaError, match="one image at a time: use a smaller model or a larger machine"):
        student.answer(sampled(drawn, 2))
    with_room_for(monkeypatch, 0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        student.answer(sampled(drawn, 2))


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("index out of range"), OSError(12, "x")])
def test_what_is_not_out_of_memory(error: Exception) -> None:
    assert not checkpoint.is_out_of_memory(error)


def test_a_closed_model_can_be_closed_again(random_checkpoint: Path) -> None:
    vlm = TransformersVLM(str(random_checkpoint), name="student", device="cpu", threads=1)
    vlm.answer([Request(Image.new("RGB", (64, 64)), "What?", 2)])
    vlm.close()
    vlm.close()
    assert vlm.model is None
    assert vlm.store.held_bytes == 0
