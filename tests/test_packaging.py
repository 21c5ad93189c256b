"""The wheel: everything a user needs, nothing heavy among what it requires, and it works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
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
    for path in (ROOT / "mpa_edge" / "nursery" / "models").rglob("*"):
        assert path.is_dir() or str(path.relative_to(ROOT)) in names
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
    code = "import mpa_edge.assets as a; print(a.root()); print(a.load_recipe('minicharts').name)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "mpa_edge" / "_assets"), "minicharts"]
