from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

import mpa_edge.config.recipe
import mpa_edge.runs.manifest
import mpa_edge.types
from mpa_edge.types import AlignReport, Sample


def test_records_are_frozen_and_know_their_fields() -> None:
    sample = Sample(id="1", image="a.png", question="What?", answers=("x",))
    with pytest.raises(ValidationError):
        sample.id = "2"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Sample(id="1", image="a", question="q", answers=("x",), label="y")  # type: ignore[call-arg]


def test_align_report_has_the_published_keys() -> None:
    assert list(AlignReport.model_fields) == (
        "run images annotated dropped verified gap truth n_reviewed teacher_accuracy teacher_ci95 method "
        "accuracy gain gain_ci95 p_mcnemar seconds peak_rss_bytes".split()
    )


@pytest.mark.parametrize("module", [mpa_edge.types, mpa_edge.config.recipe, mpa_edge.runs.manifest])
def test_every_field_of_a_record_has_a_line_of_documentation(module: object) -> None:
    tree = ast.parse(Path(module.__file__).read_text())  # type: ignore[attr-defined]
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(field.target)}"
