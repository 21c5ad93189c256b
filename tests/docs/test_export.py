"""docs/export.md and docs/targets.md say what the YAML files and the code say."""

from __future__ import annotations

import pytest

from mpa_edge.config import library
from mpa_edge.exporters.publish.snippets import NOT_IN_JAVASCRIPT, THREE_AXES
from mpa_edge.families import families
from tests.docs import export_table

PATHS = [export_table.EXPORT, export_table.TARGETS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_tables_are_todays(path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == export_table.filled(path.name, text), "run: python -m tests.docs.export_table"


def test_everything_is_in_a_table() -> None:
    export, targets = (path.read_text(encoding="utf-8") for path in PATHS)
    assert all(f"| `{name}` |" in export for name in library.names("schemes"))
    assert all(f"| `{name}` |" in targets for name in library.names("targets"))
    for key in ("tolerance", "calibration", "sources", "image", "thermal"):
        assert key in export + targets


def test_every_family_is_in_the_matrix() -> None:
    text = export_table.EXPORT.read_text(encoding="utf-8").partition("## Families and formats")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| Family")]
    assert len(rows) == len(families())
    assert all(any(word in row for row in rows) for word in ("SmolVLM", "Qwen2-VL", "Qwen2.5-VL", "LLaVA", "InternVL"))
    assert set(THREE_AXES) | set(NOT_IN_JAVASCRIPT) <= {kind for one in families().values() for kind in one.model_types}
