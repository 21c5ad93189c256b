"""The images of a benchmark's split are what a run works on, and never those that it is evaluated on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import ImagesConfig, RenderConfig
from mpa_edge.errors import MpaError
from mpa_edge.stages.run import Run
from tests.questions import official


def run_of(folder: Path, task: str, split: str | None, limit: int | None = None) -> Run:
    recipe = load_recipe(
        "minicharts",
        [
            f"task={task}",
            "images.render=null",
            f"images.path={folder}",
            f"images.split={split or 'null'}",
            f"evaluate.benchmark={task}",
            f"evaluate.data={folder}",
        ],
    )
    return Run(folder / "run", recipe, None, limit)


def test_without_a_split_everything_below_the_folder_is_taken(tmp_path: Path) -> None:
    official.chartqa(tmp_path, "train")
    official.chartqa(tmp_path, "test")
    names = {entry.name for entry in run_of(tmp_path, "chartqa", None).entries}
    assert {name.split("/")[-3] for name in names} == {"train", "test"}


def test_a_split_is_the_images_of_its_annotation_files(tmp_path: Path) -> None:
    official.chartqa(tmp_path, "train")
    official.chartqa(tmp_path, "test")
    run = run_of(tmp_path, "chartqa", "train")
    assert run.entries
    assert all("/train/png/" in f"/{entry.name}" for entry in run.entries)
    assert len(run_of(tmp_path, "chartqa", "train", limit=1).entries) == 1


def test_what_evaluation_asks_about_is_left_out_of_the_training_split(tmp_path: Path) -> None:
    """ST-VQA's questions are a part of its training file."""
    official.stvqa(tmp_path)
    from mpa_edge.stages.run import image_paths

    asked, train = (image_paths("stvqa", str(tmp_path), split) for split in (None, "train"))
    assert asked < train
    found = {str(entry.path.absolute()) for entry in run_of(tmp_path, "stvqa", "train").entries}
    assert found == train - asked


def test_nothing_left_is_said(tmp_path: Path) -> None:
    official.textvqa(tmp_path)
    with pytest.raises(MpaError, match=r"no image of textvqa val that evaluation does not use: choose another"):
        run_of(tmp_path, "textvqa", "val").entries  # noqa: B018
    with pytest.raises(MpaError, match="holds no textvqa train split"):
        run_of(tmp_path, "textvqa", "train").entries  # noqa: B018


def test_drawn_images_have_no_splits() -> None:
    with pytest.raises(ValueError, match="images has both split and render"):
        ImagesConfig(render=RenderConfig(), split="train")
