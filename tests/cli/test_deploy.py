"""A student that answers as it is deployed is exported before it is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpa_edge.artifact import read_artifact
from mpa_edge.cli._deploy import before_stages
from mpa_edge.config.library import load_target
from mpa_edge.errors import MpaError
from mpa_edge.exporters import pipeline
from mpa_edge.exporters.pipeline import Order
from mpa_edge.runs.files import make_folder
from mpa_edge.stages.deployed import deployed_folder
from mpa_edge.stages.run import Run, open_run
from mpa_edge.vlm import resolve
from tests.vlm.exported import onnx_folder

ALL = ("annotate", "identify", "level", "merge", "evaluate")


def run_with(tmp_path, *overrides: str) -> Run:
    return open_run("minicharts", out=str(tmp_path / "run"), overrides=overrides)


def deployed(tmp_path, *more: str) -> Run:
    return run_with(tmp_path, "identify.student=as-deployed", *more, "threads=1")


def test_nothing_is_exported_where_nobody_asked(tmp_path) -> None:
    assert before_stages(run_with(tmp_path), ALL) == {}
    assert before_stages(deployed(tmp_path, "identify.target=cpu"), ("level", "merge")) == {}
    assert list(before_stages(deployed(tmp_path, "identify.target=cpu"), ALL)) == ["identify"]
    assert not (tmp_path / "run").exists()


def test_what_is_not_possible_is_said_before_the_teacher_works(tmp_path) -> None:
    with pytest.raises(MpaError, match="no target 'jetsn'"):
        before_stages(deployed(tmp_path, "identify.target=jetsn"), ALL)
    with pytest.raises(MpaError, match="no scheme 'onnx-int9'"):
        before_stages(deployed(tmp_path, "identify.target=cpu", "identify.scheme=onnx-int9"), ALL)


@pytest.mark.slow
def test_the_export_is_found_again(tmp_path, monkeypatch) -> None:
    """The order is that of the recipe; what an export is worth is tested with the exporters."""
    ordered = []

    def made(order: Order) -> list[Path]:
        ordered.append(order)
        return [Path(shutil.copytree(onnx_folder("student"), order.source.exports / order.schemes[0].name))]

    monkeypatch.setattr(pipeline, "run_export", made)
    run = deployed(tmp_path, "identify.target=jetson", "identify.scheme=onnx-fp32")
    make_folder(run.folder)
    before_stages(run, ALL)["identify"](run)
    assert read_artifact(deployed_folder(run)).scheme == "onnx-fp32"
    (order,) = ordered
    assert str(order.source.checkpoint) == resolve(run.recipe.student)
    assert (order.source.recipe, order.budget, order.threads) == (run.recipe, load_target("jetson").image, 1)
