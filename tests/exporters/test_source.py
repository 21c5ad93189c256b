from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.exporters.source import open_source
from mpa_edge.runs.manifest import RUN_FILE, finish
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WEIGHTS / "student", tmp_path / "my-student"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose merge is finished."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    remember(Run(folder, load_recipe("minicharts")))
    merged = Path(shutil.copytree(WEIGHTS / "student", folder / "merged"))
    finish(merged, "merge", inputs={}, config="", seed=0, counts={})
    return folder


def test_a_checkpoint_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(checkpoint))
    assert (source.name, source.checkpoint, source.run) == ("my-student", checkpoint, None)
    assert source.exports == Path("runs/my-student/exports")
    assert source.family.name == "smolvlm"
    assert source.prompt("What?") == "What?"
    monkeypatch.chdir(checkpoint)
    assert open_source(".").name == "my-student"


def test_a_built_in_model() -> None:
    source = open_source("nursery:student", out="elsewhere")
    assert (source.name, source.checkpoint, source.exports) == (
        "nursery-student",
        WEIGHTS / "student",
        Path("elsewhere"),
    )


def test_a_run_gives_its_merged_model_and_its_recipe(run: Path) -> None:
    source = open_source(str(run))
    assert (source.name, source.checkpoint, source.exports) == ("mine", run / "merged", run / "exports")
    assert source.recipe is not None
    assert source.recipe.task == "minicharts"


def test_a_run_that_is_not_merged_says_what_to_run(run: Path) -> None:
    (run / "merged" / "manifest.json").unlink()
    with pytest.raises(MpaError, match="has no finished merge: run mpa-edge align --out .*mine first"):
        open_source(str(run))


def test_a_damaged_config_is_one_line(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(MpaError, match="config.json' is no JSON .*: copy it from the checkpoint again"):
        open_source(str(checkpoint)).family  # noqa: B018


def test_a_model_type_without_family_names_those_that_have_one(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "florence2"}))
    with pytest.raises(MpaError, match="no family for model type 'florence2': use a student of type gemma4, idefics3"):
        open_source(str(checkpoint)).family  # noqa: B018


@pytest.mark.parametrize("name", ["no/such/thing", "./nothing", "nursery:parrot"])
def test_nothing_of_that_name(name: str) -> None:
    with pytest.raises(MpaError, match="no model|no built-in model"):
        open_source(name)


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MpaError, match="cannot get 'owner/model' from the hub .*: check the id, or name a folder"):
        open_source("owner/model")


def test_a_folder_is_a_run_only_with_its_run_file(run: Path) -> None:
    (run / RUN_FILE).unlink()
    with pytest.raises(MpaError, match="has no config.json"):
        open_source(str(run))
