"""What goes along, what need not, what cannot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mpa_edge.cloud import mounts as module
from mpa_edge.cloud.mounts import Mount, find_mounts
from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError

AWKWARD = 'it\'s "my" $HOME & co; (größe)'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def folder(place: Path, name: str, size: int = 10) -> Path:
    made = place / name
    made.mkdir(parents=True)
    (made / "0.png").write_bytes(b"x" * size)
    return made


def recipe(**changes: str) -> Recipe:
    return load_recipe("minicharts", [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def mounts(recipe: Recipe, images: str | None, provider: str) -> list[Mount]:
    return find_mounts(recipe, images, provider)[0]


def test_drawn_images_need_no_mount(place: Path) -> None:
    assert find_mounts(recipe(), None, "sky") == ([], [])


def test_a_folder_goes_along_and_an_address_does_not(place: Path) -> None:
    (mount,) = mounts(recipe(), str(folder(place, AWKWARD)), "sky")
    assert (mount.source, mount.target, mount.size_bytes) == (str(place / AWKWARD), "/mpa/images", 10)
    (far,) = mounts(recipe(), "s3://images/a", "sky")
    assert (far.source, far.size_bytes) == ("s3://images/a", None)


def test_a_folder_that_the_recipe_names_goes_along(place: Path) -> None:
    named = recipe(images="{path: ../photos}")
    folder(place, "photos")
    assert mounts(named, None, "sky")[0].source == str(place / "photos")
    assert mounts(named, "gs://images", "sky")[0].source == "gs://images"


def test_checkpoints_and_questions_of_this_machine_go_along(place: Path) -> None:
    student, asked = folder(place, "my student"), folder(place, "exam")
    (asked / "questions.csv").write_text("id,image,question,answer\n")
    own = recipe(student=f'"{student}"', evaluate__questions=f'"{asked}/questions.csv"')
    mounts, overrides = find_mounts(own, None, "sky")
    assert {mount.what: mount.source for mount in mounts} == {"student": str(student), "questions": str(asked)}
    assert overrides == ["student=/mpa/student", "evaluate.questions=/mpa/questions/questions.csv"]
    mounts, overrides = find_mounts(recipe(level__labelled=f'"{asked}/questions.csv"'), None, "sky")
    assert [(mount.what, mount.source) for mount in mounts] == [("labelled", str(asked))]
    assert overrides == ["level.labelled=/mpa/labelled/questions.csv"]


def test_a_benchmark_is_one_folder(place: Path) -> None:
    benchmark = load_recipe("smolvlm-500m-chartqa")
    for images in ("s3://data/chartqa", str(folder(place, "chartqa"))):
        mounts, overrides = find_mounts(benchmark, images, "sky")
        assert [mount.what for mount in mounts] == ["images"]
        assert overrides == ["evaluate.data=/mpa/images"]


def test_what_does_not_exist_is_said(place: Path) -> None:
    with pytest.raises(MpaError, match="no folder 'nowhere'"):
        find_mounts(recipe(), "nowhere", "sky")
    with pytest.raises(MpaError, match=r"no file 'q\.csv'"):
        find_mounts(recipe(evaluate__questions="q.csv"), None, "sky")


@pytest.mark.parametrize("images", [".", "..", "~", "/"])
def test_nobody_sends_a_home_folder_by_accident(place: Path, images: str) -> None:
    with pytest.raises(MpaError, match="would be copied"):
        find_mounts(recipe(), images, "sky")


def test_what_is_too_large_is_copied_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(MpaError, match=r"aws s3 sync .*photos s3://bucket/images"):
        find_mounts(recipe(), str(folder(place, "photos", 101)), "sky")
    assert mounts(recipe(), str(folder(place, "fewer", 100)), "sky")


def test_what_git_ignores_would_be_left_out_without_a_word(place: Path) -> None:
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    (place / ".gitignore").write_text("*.png\nall/\n")
    made = folder(place, "photos")
    (made / "1.jpg").write_bytes(b"x")
    with pytest.raises(MpaError, match=r"1 files or folders in .*photos \(0\.png, \.\.\.\): .*\.skyignore"):
        find_mounts(recipe(), str(made), "sky")
    assert mounts(recipe(), str(made), "hf")
    (made / ".skyignore").touch()
    assert mounts(recipe(), str(made), "sky")
    assert mounts(recipe(), str(folder(place, "all")), "sky")


@pytest.mark.parametrize("of", ["elsewhere", "elsewhere/0.png"])
def test_a_link_would_be_left_out_without_a_word(place: Path, of: str) -> None:
    made = folder(place, "photos")
    folder(place, "elsewhere")
    (made / "more").symlink_to(place / of)
    with pytest.raises(MpaError, match=r"photos/more is a link.*cp -rL"):
        find_mounts(recipe(), str(made), "sky")


def test_a_link_to_the_folder_is_the_folder(place: Path) -> None:
    (place / "latest").symlink_to(folder(place, "photos"))
    assert mounts(recipe(), str(place / "latest"), "sky")[0].source == str(place / "photos")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://localhost:1/v1", "https://10.0.0.7/v1"])
def test_a_teacher_that_only_this_machine_reaches(place: Path, url: str) -> None:
    with pytest.raises(MpaError, match="does not reach the teacher"):
        find_mounts(recipe(teacher=f'"openai:{url}#m"'), None, "sky")


def test_a_teacher_that_everybody_reaches(place: Path) -> None:
    assert mounts(recipe(teacher='"openai:https://models.example/v1#m"'), None, "sky") == []
