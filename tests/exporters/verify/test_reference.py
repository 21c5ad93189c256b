"""The checkpoint's side of the comparison: what transformers computes, seen from inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpa_edge.config.target import ImageBudget
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify import reference
from mpa_edge.exporters.verify.probes import probes
from mpa_edge.exporters.verify.reference import Checkpoint, trace_checkpoint
from mpa_edge.types import Request
from mpa_edge.vlm.pixels.common import pixels_digest
from tests.families import zoo
from tests.vlm.exported import checkpoint

NAMES = {
    "idefics3": ["pixel_attention_mask", "pixel_values"],
    "smolvlm": ["pixel_attention_mask", "pixel_values"],
    "qwen2_vl": ["grid_thw", "pixel_values"],
    "qwen2_5_vl": ["image_grid_thw", "pixel_values"],
    "llava": ["pixel_values"],
    "internvl": ["pixel_values"],
}


def asked(model: Checkpoint) -> list[list[Request]]:
    return probes(model.processor.image_processor.to_dict(), lambda question: question, "<image>")


@pytest.mark.slow
@pytest.mark.parametrize("which", NAMES)
def test_a_trace_is_what_the_model_computes(which: str) -> None:
    """Token by token without a cache, the image's embeddings put in by the model itself."""
    import torch

    model = Checkpoint(checkpoint(which), {}, 1)
    request = asked(model)[0][0]
    [seen] = model.trace([request])
    inputs = model.inputs([request])
    assert list(seen.trace.input_ids) == inputs["input_ids"][0].tolist()
    assert seen.trace.input_ids.count(model.model.config.image_token_id) == len(seen.trace.vision)
    assert sorted(seen.pixels) == NAMES[which]
    assert seen.trace.pixels_sha256 == pixels_digest(seen.pixels)
    with torch.inference_mode():
        first = model.model(**inputs).logits[0, -1].float().numpy()
    np.testing.assert_allclose(seen.trace.logits[0], first, atol=1e-4)
    assert seen.trace.tokens == tuple(seen.trace.logits.argmax(-1).tolist())


@pytest.mark.parametrize(
    ("which", "dtype"),
    [("idefics3", "float16"), ("qwen2_vl", "bfloat16"), ("llava", "bfloat16"), ("gemma4", "bfloat16")],
)
def test_a_large_checkpoint_stays_in_16_bits_and_computes_the_same(
    which: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = zoo.checkpoint(which, dtype=dtype)
    wide = Checkpoint(folder, {}, 1)
    monkeypatch.setattr(reference, "LARGE_BYTES", 0)
    narrow = Checkpoint(folder, {}, 1)
    kinds = {parameter.dtype for parameter in narrow.model.parameters() if parameter.ndim > 1}
    assert kinds == {torch.float32, getattr(torch, dtype)}
    [request] = asked(wide)[0]
    [one], [other] = wide.trace([request]), narrow.trace([request])
    for name in ("vision", "logits"):
        assert np.array_equal(getattr(one.trace, name), getattr(other.trace, name))
    assert np.array_equal(wide.forced(request, (1, 2, 3)), narrow.forced(request, (1, 2, 3)))


@pytest.mark.slow
def test_equal_tiles_are_encoded_once() -> None:
    model = Checkpoint(checkpoint("idefics3"), {}, 1)
    sizes: list[int] = []
    embeddings = model.model.base_model.vision_model.embeddings
    embeddings.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    drawn, gray = asked(model)[1]
    [seen] = model.trace([gray])
    n_tiles = model.inputs([gray])["pixel_values"].shape[1]
    assert (sum(sizes), len(seen.trace.vision)) == (1, 16 * n_tiles)
    tiles = np.split(seen.trace.vision, n_tiles)
    assert all(np.array_equal(tile, tiles[0]) for tile in tiles)
    model.trace([drawn])
    assert sum(sizes) == 1 + model.inputs([drawn])["pixel_values"].shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("which", NAMES)
def test_a_batch_is_its_rows(which: str) -> None:
    """Images of different sizes, questions of different length, padding on the left."""
    model = Checkpoint(checkpoint(which), {}, 1)
    batch = asked(model)[1]
    for seen, request in zip(model.trace(batch), batch, strict=True):
        [alone] = model.trace([request])
        assert seen.trace.input_ids == alone.trace.input_ids
        assert seen.trace.pixels_sha256 == alone.trace.pixels_sha256
        np.testing.assert_allclose(seen.trace.vision, alone.trace.vision, atol=1e-4)
        np.testing.assert_allclose(seen.trace.logits[0], alone.trace.logits[0], atol=1e-3)


@pytest.mark.slow
def test_the_budget_is_applied() -> None:
    source = Source("student", checkpoint("student"), Path("runs"))
    image = asked(Checkpoint(source.checkpoint, {}, 1))[0][0]
    whole = Checkpoint(source.checkpoint, {}, 1).trace([image])[0]
    tight = Checkpoint(source.checkpoint, {"size": {"longest_edge": 64}}, 1).trace([image])[0]
    assert len(tight.trace.vision) < len(whole.trace.vision)


@pytest.mark.slow
def test_another_budget_is_another_reference() -> None:
    source = Source("student", checkpoint("student"), Path("runs"))
    plain, tight = (trace_checkpoint(source, budget, 1) for budget in (None, ImageBudget(max_tiles=1, max_pixels=4096)))
    assert len(plain.probes) == 3
    assert len(plain.probes[0].trace.vision) > len(tight.probes[0].trace.vision)


@pytest.mark.slow
@pytest.mark.parametrize("which", NAMES)
def test_a_forced_text_is_what_the_model_computes(which: str) -> None:
    """All tokens in one run, the image's embeddings of the probe taken over: as one token after the other."""
    import torch

    model = Checkpoint(checkpoint(which), {}, 1)
    request = asked(model)[0][0]
    [seen] = model.trace([request])
    tokens = model.processor.tokenizer("Nobody asked her to count", add_special_tokens=False)["input_ids"][:6]
    found = model.forced(request, tokens)
    assert found.shape == (len(tokens), seen.trace.logits.shape[1])
    np.testing.assert_allclose(found[0], seen.trace.logits[0], atol=1e-3)
    inputs = model.inputs([request])
    for name, filler in (("input_ids", tokens[:3]), ("attention_mask", [1] * 3), ("mm_token_type_ids", [0] * 3)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.tensor([filler]).to(inputs[name].dtype)], 1)
    with torch.inference_mode():
        fourth = model.model(**inputs).logits[0, -1].float().numpy()
    np.testing.assert_allclose(found[3], fourth, atol=1e-3)


@pytest.mark.slow
def test_a_penalty_of_the_checkpoint_does_not_hide_behind_the_tokens() -> None:
    """Greedy is the argmax of the logits, whatever the generation config would make of them."""
    import json
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(shutil.copytree(checkpoint("student"), Path(temp) / "student"))
        path = folder / "generation_config.json"
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(values | {"repetition_penalty": 9.0, "min_new_tokens": 7}), encoding="utf-8")
        model = Checkpoint(folder, {}, 1)
        [seen] = model.trace([asked(model)[0][0]])
    assert seen.trace.tokens == tuple(seen.trace.logits.argmax(-1).tolist())


def test_the_probes_are_the_same_everywhere() -> None:
    """Images of two sizes; the same pixels on any machine, and no two alike."""
    image = {"max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 128}}
    one, other = (probes(image, lambda question: question, "<image>") for _ in range(2))
    digests = [[request.image.tobytes() for batch in found for request in batch] for found in (one, other)]
    assert digests[0] == digests[1]
    assert [len(batch) for batch in one] == [1, 2]
    first, second, gray = [request for batch in one for request in batch]
    assert first.image.size != second.image.size
    assert len(first.prompt) != len(second.prompt)
    assert gray.image.getcolors() == [(gray.image.width * gray.image.height, (128, 128, 128))]
    assert (gray.image.size, gray.prompt) == (first.image.size, first.prompt)
