from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tools import install


def fake_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with nothing in it."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty environment in the place of .venv."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    for name, path in (("VENV", folder), ("PYTHON", folder / "bin" / "python"), ("LOG", folder / "install.log")):
        monkeypatch.setattr(install, name, path)
    return folder


def pip(*arguments: str) -> str:
    command = [str(install.PYTHON), "-m", "pip", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_an_empty_environment_gets_three_steps_that_say_how_much(made: Path, tmp_path: Path) -> None:
    steps = list(install.steps("demo", install.constraints_for(None, tmp_path), cpu=False))
    assert [step.title.split()[0] for step in steps] == ["PyTorch", "llama.cpp", "mpa-edge"]
    assert all(" GB to fetch" in step.expects or " MB to fetch" in step.expects for step in steps)
    assert not any(word in steps[2].arguments[-1] for word in ("ray", "s3", "openai", "dev"))
    assert install.CPU_WHEELS in next(install.steps("demo", tmp_path, cpu=True)).arguments


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.14.1+cpu", "2.14.0+cpu"])
def test_a_cpu_build_that_is_there_is_kept(made: Path, tmp_path: Path, version: str) -> None:
    pip("install", "--no-index", str(fake_wheel(tmp_path, "torch", version)))
    with pytest.raises(SystemExit, match="no torchvision, and both must be of one build"):
        install.installed_torch()
    pip("install", "--no-index", str(fake_wheel(tmp_path, "torchvision", "0.29.1+cpu")))
    torch = install.installed_torch()
    assert torch == version
    pinned = install.constraints_for(torch, tmp_path)
    assert not [step for step in install.steps("demo", pinned, cpu=False) if "PyTorch" in step.title]
    # what pip would do for packages that want torch
    report = tmp_path / "report.json"
    pip("install", "--dry-run", "--report", str(report), "-c", str(pinned), "accelerate", "peft", "torchvision")
    names = {one["metadata"]["name"] for one in json.loads(report.read_text())["install"]}
    assert "accelerate" in names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "triton"))}


@pytest.mark.slow
def test_a_step_that_fails_says_what_to_do(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = install.Step("Nothing", "0 MB", ("--no-index", "no-such-package-at-all"), "check this, then rerun")
    with pytest.raises(SystemExit, match="Nothing could not be installed: check this, then rerun"):
        install.run(step, tmp_path)
    assert "No matching distribution found" in capsys.readouterr().err


@pytest.mark.slow
def test_progress_is_shown_where_no_terminal_is(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "LINE_EVERY_S", 0.1)
    monkeypatch.setattr(install, "TICK_S", 0.05)
    wheel = fake_wheel(tmp_path, "tiny", "1.0")
    install.run(install.Step("tiny", "0 MB", ("--no-index", str(wheel)), ""), tmp_path)
    err = capsys.readouterr().err
    assert "starting pip, 0:0" in err
    assert "done in 0:0" in err


def test_too_little_space_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(install, "installed_torch", lambda: None)
    monkeypatch.setitem(install.NEED_BYTES, "demo", 10**18)
    with pytest.raises(SystemExit, match="GB needed: free some space, then rerun"):
        install.main("demo", cpu=False)
