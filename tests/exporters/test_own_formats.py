"""What was published in its authors' own format is exported and verified like any other checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.source import Source, open_source
from tests.exporters import matrix
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
        ("internvl2_4b", {}, "onnx-fp32"),
        ("tinyllava_2b", {}, "onnx-fp32"),
        ("tinyllava_2b", ALL_PATCHES, "gguf-f16"),
    ],
)
def test_an_export_is_the_model_it_was_made_from(
    model: str, options: dict[str, Any], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix.in_one_process(monkeypatch)
    cell = matrix.measure(source_of(model, tmp_path, **options), load_scheme(scheme))
    assert cell["result"] == "equal", cell


def test_llama_cpp_shows_a_language_model_every_patch(tmp_path: Path) -> None:
    cell = matrix.measure(source_of("tinyllava_2b", tmp_path), load_scheme("gguf-q8_0"))
    assert cell["result"] == "refused"
    assert cell["reason"].startswith("GGUF takes all patches of one vision layer, and this model does not: use an onnx")
