"""The wheel that travels is this package."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

import mpa_edge
from mpa_edge.runs.wheel import PACKAGE, build_wheel, wheel_name


def test_the_same_content_is_the_same_file() -> None:
    assert build_wheel() == build_wheel()


def test_it_carries_the_package_and_its_data() -> None:
    with zipfile.ZipFile(BytesIO(build_wheel())) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"mpa_edge-{mpa_edge.__version__}.dist-info/METADATA").decode()
    assert {f"mpa_edge/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")} <= names
    assert {"mpa_edge/_assets/constraints.txt", "mpa_edge/_assets/recipes/minicharts.yaml"} <= names
    assert "mpa_edge/nursery/weights/student/model.safetensors" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "/"))]
    assert f"Version: {mpa_edge.__version__}\n" in metadata
    assert "Provides-Extra: align" in metadata


@pytest.mark.slow
def test_pip_installs_it_and_it_runs(tmp_path: Path) -> None:
    wheel = tmp_path / wheel_name()
    wheel.write_bytes(build_wheel())
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, timeout=120)
    assert (site / "bin" / "mpa-edge").is_file()
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = "import mpa_edge.config.library as a; print(a.root()); print(a.load_recipe('minicharts').name)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [str(site / "mpa_edge" / "_assets"), "minicharts"]
