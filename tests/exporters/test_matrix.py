"""Every family in every format and scheme is the same model as its checkpoint, or is refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpa_edge.config import library
from mpa_edge.config.library import load_scheme
from mpa_edge.config.scheme import ONNX_COMPONENTS
from tests.exporters import matrix
from tests.vlm.exported import fill_parts

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


# all where the table is written, a quarter of an hour; else each family in a tenth of the schemes. No ONNX of Idefics3:
# it has the graphs of SmolVLM, and another family has its scheme
ALL = "MPA_EDGE_WRITE_DOCS" in os.environ
CELLS = [
    (model, scheme)
    for i, model in enumerate(matrix.MODELS)
    for j, scheme in enumerate(library.names("schemes"))
    if ALL or ((i + j) % 10 == 0 and (model, scheme[:4]) != ("idefics3", "onnx"))
]


@pytest.mark.parametrize(("model", "scheme"), CELLS)
def test_the_same_model(model: str, scheme: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix.in_one_process(monkeypatch)
    source, made = matrix.run_of(model, home), load_scheme(scheme)
    fill_parts(model, source.exports / "parts", tuple(name for name in ONNX_COMPONENTS if name in made.components))
    cell = matrix.measure(source, made)
    matrix.keep(model, scheme, cell)
    assert cell["result"] != "failed", cell["reason"]
    if cell["result"] == "refused":
        # ONNX takes every family; what llama.cpp computes wrongly is refused
        assert load_scheme(scheme).format != "onnx", cell["reason"]
