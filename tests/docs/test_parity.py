"""docs/parity.md shows what docs/parity.json holds, and that holds every family in every scheme."""

from __future__ import annotations

import pytest

from mpa_edge.config import library
from mpa_edge.families import families
from tests.exporters import matrix


def test_the_table_is_the_record() -> None:
    text = matrix.DOCUMENT.read_text(encoding="utf-8")
    assert matrix.with_table(text) == text, "run python -m tests.exporters.matrix"


@pytest.mark.parametrize("model", matrix.MODELS)
def test_every_scheme_was_measured(model: str) -> None:
    cells = matrix.recorded()[model]
    assert sorted(cells) == library.names("schemes")
    assert {cell["result"] for cell in cells.values()} <= {"equal", "refused"}
    assert all(cell["result"] == "equal" for name, cell in cells.items() if name.startswith("onnx"))


def test_every_family_is_there() -> None:
    measured = {model.partition(":")[0] for model in matrix.MODELS}
    assert measured == {kind for family in families().values() for kind in family.model_types}
