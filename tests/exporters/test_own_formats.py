"""What was published in its authors' own format is exported and verified like any other checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.onnx.export import export_component
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.vlm.transformers import checkpoint
from mpa_edge.vlm.transformers.files import local_folder
from tests.exporters import matrix
from tests.exporters.numpy_loop import session
from tests.families import zoo

pytestmark = pytest.mark.slow
ALL_PATCHES = {"vision_feature_select_strategy": "cls_patch"}


def source_of(model: str, home: Path, **options: Any) -> Source:
    return open_source(str(zoo.checkpoint(model, **options)), str(home / "exports"))


@pytest.mark.parametrize(
    ("model", "options", "scheme"),
    [
        ("internvl2_2b", {}, "gguf-f16"),
        ("internvl2_4b", {}, "gguf-f16"),
        ("tinyllava_2b", ALL_PATCHES, "gguf-f16"),
    ],
)
def test_an_export_is_the_model_it_was_made_from(
    model: str, options: dict[str, Any], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix.in_one_process(monkeypatch)
    cell = matrix.measure(source_of(model, tmp_path, **options), load_scheme(scheme))
    assert cell["result"] == "equal", cell


@pytest.mark.parametrize("model", ["internvl2_4b", "tinyllava_2b"])
def test_a_decoder_in_onnx_is_torchs(model: str, tmp_path: Path) -> None:
    """The other components are those of their families."""
    folder = local_folder(str(zoo.checkpoint(model)))
    export_component(folder, "decoder", tmp_path / "decoder.onnx")
    embeds = torch.randn(1, 7, zoo.HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = checkpoint.load_model(str(folder), "cpu")
        expected = whole.lm_head(whole.model.language_model(inputs_embeds=embeds).last_hidden_state).numpy()
    decoder = session(tmp_path / "decoder.onnx")
    empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in decoder.get_inputs()[4:]}
    feed = {
        "inputs_embeds": embeds.numpy(),
        "attention_mask": np.ones((1, 7), np.int64),
        "position_ids": np.arange(7)[None],
        "num_logits_to_keep": np.array(0),
    }
    found = decoder.run(["logits"], feed | empty)[0]
    assert np.abs(found - expected).max() < 1e-4


def test_llama_cpp_shows_a_language_model_every_patch(tmp_path: Path) -> None:
    cell = matrix.measure(source_of("tinyllava_2b", tmp_path), load_scheme("gguf-q8_0"))
    assert cell["result"] == "refused"
    assert cell["reason"].startswith("GGUF takes all patches of one vision layer, and this model does not: use an onnx")
