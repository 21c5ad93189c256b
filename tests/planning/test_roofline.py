"""Operations and bytes by hand for one model, against torch's own counter, and what must grow with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpa_edge.planning.image_tokens import Seen
from mpa_edge.planning.shapes import Shapes, Stack

from mpa_edge.planning.model_specs import known_model
from mpa_edge.planning.records import device_file
from mpa_edge.planning.roofline import (
    Batch,
    Machine,
    batch_seconds,
    decode_bytes,
    decode_flops,
    prefill_flops,
    prompt_flops,
    training_flops,
    vision_flops,
)

# two layers: 4 x 8 x 8 of attention and 2 x 8 x 16 of MLP; three gated layers with half the key-value heads
VISION = Stack(layers=2, hidden=8, ffn=16, query=8, key_value=8, gated=False)
LANGUAGE = Stack(layers=3, hidden=10, ffn=20, query=12, key_value=6, gated=True)
SMALL = Shapes("idefics3", VISION, 12, 0, 2, 320, LANGUAGE, vocabulary=50, tied=True, small=7)
PICTURE = Seen(sequences=2, patches=8, tokens=2, marks=0, pixels=64)
FILE = device_file()
MACHINES = [Machine(name, device, FILE.efficiency[device.kind]) for name, device in FILE.devices.items()]


def test_parameters_by_hand() -> None:
    assert VISION.matrices == 2 * (4 * 64 + 2 * 128)
    assert LANGUAGE.matrices == 3 * (2 * 120 + 2 * 60 + 3 * 200)
    assert SMALL.parameters == 1024 + 12 * 8 + 320 + 2880 + 500 + 7
    assert SMALL.cache_numbers == 2 * 3 * 6


def test_operations_by_hand() -> None:
    # 8 patches through matrices and patch embedding, each sees 4 keys in 2 layers, 2 tokens through the connector
    assert vision_flops(SMALL, PICTURE) == 2 * 8 * (1024 + 96) + 4 * 8 * (2 * 8 * 4) + 2 * 2 * 320
    # 5 tokens, 5 x 5 scores and sums of width 12 in 3 layers, one row of logits
    assert prompt_flops(SMALL, 5) == 2 * 5 * 2880 + 4 * 3 * 12 * 25 + 2 * 500
    assert prompt_flops(SMALL, 5, before=2, logits=0) == 2 * 5 * 2880 + 4 * 3 * 12 * 5 * 7


def test_a_picture_is_computed_once_for_all_rows() -> None:
    batch = Batch(rows=4, pictures=1, prefix=2, tail=3, longest=6, written=5)
    assert prefill_flops(SMALL, batch) == prompt_flops(SMALL, 2, logits=0) + 4 * prompt_flops(SMALL, 3, before=2)
    again = replace(batch, pictures=0)
    assert prefill_flops(SMALL, again) == 4 * prompt_flops(SMALL, 3, before=2)


def test_decoding_by_hand() -> None:
    batch = Batch(rows=4, pictures=1, prefix=2, tail=3, longest=6, written=5)
    # the first token comes with the prompt: four more of each row, behind 2 + 3 + 2.5 on the mean
    assert decode_flops(SMALL, batch) == 4 * 4 * prompt_flops(SMALL, 1, before=7.5)
    weights, cache = 5 * (2880 + 500), 4 * 36 * (4 * 7.5 + 2 * 2)
    assert decode_bytes(SMALL, batch, 2) == 2 * (weights + cache)


def test_training_by_hand() -> None:
    forward, encode = prompt_flops(SMALL, 5, logits=5), vision_flops(SMALL, PICTURE)
    assert training_flops(SMALL, PICTURE, 5, 100, full=True, sees=True) == 3 * forward + 3 * encode
    assert training_flops(SMALL, PICTURE, 5, 100, full=False, sees=False) == 2 * forward + encode + 6 * 100 * 5
    again = training_flops(SMALL, PICTURE, 5, 100, full=False, sees=True, again=True)
    assert again == 3 * forward + 3 * encode + 6 * 100 * 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nursery:student", "nursery:teacher"])
def test_torch_counts_as_many_operations(name: str) -> None:
    import torch
    from PIL import Image
    from torch.utils.flop_counter import FlopCounterMode

    from mpa_edge.vlm import resolve
    from mpa_edge.vlm.transformers import checkpoint

    processor, model = checkpoint.load_processor(resolve(name)), checkpoint.load_model(resolve(name), "cpu")
    model.set_attn_implementation("eager")  # the counter knows products, not fused attention
    text = checkpoint.chat_prompt(processor, "What color is the bar?")
    inputs = processor(
        text=[text], images=[[Image.new("RGB", (128, 64))]], return_tensors="pt", add_special_tokens=False
    )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    n, known = inputs["input_ids"].shape[1], known_model(name)
    ours = vision_flops(known.shapes, known.see([(128, 64)])) + prompt_flops(known.shapes, n, logits=n)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


tokens = st.integers(1, 2000).map(float)
rows = st.integers(1, 64).map(float)


@settings(max_examples=60, deadline=None)
@given(rows, tokens, tokens, tokens, st.sampled_from(MACHINES))
def test_more_work_never_takes_less(n: float, prefix: float, tail: float, written: float, machine: Machine) -> None:
    batch = Batch(n, 1.0, prefix, tail, written, written)
    longer = (
        replace(batch, rows=n + 1),
        replace(batch, pictures=2.0),
        replace(batch, prefix=prefix + 1),
        replace(batch, tail=tail + 1),
        replace(batch, longest=written + 1, written=written + 1),
    )
    base = batch_seconds(SMALL, PICTURE, batch, machine, 0.001, 2)
    for other in longer:
        more = batch_seconds(SMALL, PICTURE, other, machine, 0.001, 2)
        assert more.prepare >= base.prepare
        assert more.model >= base.model * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(rows, tokens, st.floats(1.0, 10.0), st.sampled_from(MACHINES))
def test_a_faster_machine_never_takes_longer(n: float, prefix: float, factor: float, machine: Machine) -> None:
    known = known_model("HuggingFaceTB/SmolVLM-256M-Instruct").shapes
    batch, device = Batch(n, n, prefix, 20.0, 30.0, 20.0), machine.device
    update = {"flops": device.flops * factor, "memory_bandwidth": device.memory_bandwidth * factor}
    faster = replace(machine, device=device.model_copy(update=update))
    slow, fast = (batch_seconds(known, PICTURE, batch, at, 0.0, 2).model for at in (machine, faster))
    assert slow / factor * (1 - 1e-9) <= fast <= slow * (1 + 1e-9)


def test_calls_are_hidden_on_a_gpu_only() -> None:
    cpu, gpu = (next(m for m in MACHINES if m.device.kind == kind) for kind in ("cpu", "gpu"))
    layer_s = cpu.efficiency.layer_s.value
    assert cpu.step_s(1.0, 10) == pytest.approx(1.0 + 10 * layer_s)
    assert gpu.step_s(1.0, 10) == 1.0
    assert gpu.step_s(0.0, 10) == pytest.approx(10 * gpu.efficiency.layer_s.value)
