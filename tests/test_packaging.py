"""The wheel: everything a user needs, nothing heavy among what it requires, and it works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "onnxruntime",
    "ray",
    "openai",
    "matplotlib",
}


def nursery_files() -> set[str]:
    """The frozen tokenizer and every file of the built-in pair, relative to the checkout."""
    folder = ROOT / "mpa_edge" / "nursery"
    files = [folder / "tokenizer.json", *(path for path in (folder / "weights").rglob("*") if path.is_file())]
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {f"mpa_edge/nursery/weights/{name}/model.safetensors" for name in ("teacher", "student")} <= names
    return names


@pytest.mark.slow
def test_the_sdist_carries_what_the_wheel_is_made_of(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert nursery_files() <= names
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "recipes/minicharts.yaml",
        "targets/README.md",
    ):
        assert name in names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "mpa_edge").rglob("*.py")} <= names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_carries_code_assets_models_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "targets", "export"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
        for path in files:
            assert f"mpa_edge/_assets/{path.relative_to(ROOT)}" in names
    assert nursery_files() <= names
    assert "mpa_edge/_assets/constraints.txt" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") or ".pyc" in name for name in names)


@pytest.mark.slow
def test_the_core_requires_nothing_heavy(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    core = {
        line.split(">")[0].split("=")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line
    }
    assert core & HEAVY == set()
    assert {"click", "pydantic", "pyarrow"} <= core


@pytest.mark.slow
def test_an_installed_copy_reads_its_own_assets(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import mpa_edge.config.library as a; print(a.root()); print(a.load_recipe('minicharts').name)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "mpa_edge" / "_assets"), "minicharts"]
