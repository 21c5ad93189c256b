"""Operations and bytes by hand for one model, against torch's own counter, and what must grow with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.planning.model_specs import ImageTokens, Shapes, Stack, model_spec
from mpa_edge.planning.records import Device, Efficiency, Factor, device_file
from mpa_edge.planning.roofline import Batch, Machine, Tuned, batch_seconds, prompt_flops, training_flops, vision_flops

# two layers: 4 x 8 x 8 of attention and 2 x 8 x 16 of MLP; three gated layers with half the key-value heads
VISION = Stack(layers=2, hidden=8, ffn=16, query=8, key_value=8, gated=False)
LANGUAGE = Stack(layers=3, hidden=10, ffn=20, query=12, key_value=6, gated=True)
SMALL = Shapes(VISION, 12, 320, LANGUAGE, vocabulary=50, tied=True)
IMAGE = ImageTokens(tiles=2, patches=8, tokens=2, pixels=64)
FILE = device_file()
MACHINES = [Machine(name, device, FILE.efficiency[device.kind]) for name, device in FILE.devices.items()]


def test_parameters_by_hand() -> None:
    assert VISION.matrices == 2 * (4 * 64 + 2 * 128)
    assert LANGUAGE.matrices == 3 * (2 * 120 + 2 * 60 + 3 * 200)
    assert SMALL.parameters == 1024 + 12 * 8 + 320 + 2880 + 500
    assert SMALL.cache_numbers == 2 * 3 * 6


def test_operations_by_hand() -> None:
    # 8 patches through matrices and patch embedding, each sees 4 keys in 2 layers, 2 tokens through the connector
    assert vision_flops(SMALL, IMAGE) == 2 * 8 * (1024 + 96) + 4 * 8 * (2 * 8 * 4) + 2 * 2 * 320
    # 5 tokens, 5 x 5 scores and sums of width 12 in 3 layers, one row of logits
    assert prompt_flops(SMALL, 5) == 2 * 5 * 2880 + 4 * 3 * 12 * 25 + 2 * 500
    assert prompt_flops(SMALL, 5, before=2, logits=0) == 2 * 5 * 2880 + 4 * 3 * 12 * 5 * 7


WHOLE = Factor(value=1, where="")
BARE = Machine(
    "bare",
    Device(title="", kind="gpu", memory_bytes=1, flops=1.0, memory_bandwidth=1e30, source=""),
    Efficiency(prefill=WHOLE, training=WHOLE, memory=WHOLE, layer_s=Factor(value=0, where="")),
)
"""One operation a second, memory and calls free: seconds are operations."""


def test_an_image_is_computed_once_for_all_rows() -> None:
    batch = Batch(rows=4, images=1, prefix=2, tail=3, longest=1, written=1)
    rows = 4 * prompt_flops(SMALL, 3, before=2)
    encoded = vision_flops(SMALL, IMAGE) + prompt_flops(SMALL, 2, logits=0)
    assert batch_seconds(SMALL, IMAGE, batch, BARE) == pytest.approx(encoded + rows)
    assert batch_seconds(SMALL, IMAGE, replace(batch, images=0), BARE) == pytest.approx(rows)


def test_decoding_by_hand() -> None:
    batch = Batch(rows=4, images=0, prefix=2, tail=3, longest=6, written=5)
    # the first token comes with the prompt: four more of each row, after 2 + 3 + 2.5 on average
    decode = batch_seconds(SMALL, IMAGE, batch, BARE) - 4 * prompt_flops(SMALL, 3, before=2)
    assert decode == pytest.approx(4 * 4 * prompt_flops(SMALL, 1, before=7.5))
    slow_memory = replace(BARE, device=BARE.device.model_copy(update={"flops": 1e30, "memory_bandwidth": 1.0}))
    weights, cache = 5 * (2880 + 500), 4 * 36 * (4 * 7.5 + 2 * 2)
    assert batch_seconds(SMALL, IMAGE, batch, slow_memory) == pytest.approx(2 * (weights + cache))


def test_training_by_hand() -> None:
    forward, encode = prompt_flops(SMALL, 5, logits=5), vision_flops(SMALL, IMAGE)
    full, adapter = Tuned(100, full=True, sees=True), Tuned(100, full=False, sees=False)
    assert training_flops(SMALL, IMAGE, 5, full) == 3 * forward + 3 * encode
    assert training_flops(SMALL, IMAGE, 5, adapter) == 2 * forward + encode + 6 * 100 * 5
    again = training_flops(SMALL, IMAGE, 5, replace(adapter, sees=True), checkpointing=True)
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
    n, known = inputs["input_ids"].shape[1], model_spec(name)
    ours = vision_flops(known.shapes, known.image_tokens([(128, 64)])) + prompt_flops(known.shapes, n, logits=n)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


tokens = st.integers(1, 2000).map(float)
rows = st.integers(1, 64).map(float)


@settings(max_examples=60, deadline=None)
@given(rows, tokens, tokens, tokens, st.sampled_from(MACHINES))
def test_more_work_never_takes_less(n: float, prefix: float, tail: float, written: float, machine: Machine) -> None:
    batch = Batch(n, 1.0, prefix, tail, written, written)
    longer = (
        replace(batch, rows=n + 1),
        replace(batch, images=2.0),
        replace(batch, prefix=prefix + 1),
        replace(batch, tail=tail + 1),
        replace(batch, longest=written + 1, written=written + 1),
    )
    base = batch_seconds(SMALL, IMAGE, batch, machine)
    for other in longer:
        assert batch_seconds(SMALL, IMAGE, other, machine) >= base * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(rows, tokens, st.floats(1.0, 10.0), st.sampled_from(MACHINES))
def test_a_faster_machine_never_takes_longer(n: float, prefix: float, factor: float, machine: Machine) -> None:
    known = model_spec("HuggingFaceTB/SmolVLM-256M-Instruct").shapes
    batch, device = Batch(n, n, prefix, 20.0, 30.0, 20.0), machine.device
    update = {"flops": device.flops * factor, "memory_bandwidth": device.memory_bandwidth * factor}
    faster = replace(machine, device=device.model_copy(update=update))
    slow, fast = (batch_seconds(known, IMAGE, batch, at) for at in (machine, faster))
    assert slow / factor * (1 - 1e-9) <= fast <= slow * (1 + 1e-9)


def test_calls_are_hidden_on_a_gpu_only() -> None:
    cpu, gpu = (next(m for m in MACHINES if m.device.kind == kind) for kind in ("cpu", "gpu"))
    layer_s = cpu.efficiency.layer_s.value
    assert cpu.step_s(1.0, 10) == pytest.approx(1.0 + 10 * layer_s)
    assert gpu.step_s(1.0, 10) == 1.0
    assert gpu.step_s(0.0, 10) == pytest.approx(10 * gpu.efficiency.layer_s.value)
