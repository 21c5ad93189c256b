"""Every command's help ends with examples, and every example runs."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import click
import pytest
from PIL import Image

from mpa_edge.cli import main as cli
from mpa_edge.config.library import load_recipe
from mpa_edge.families import family_of
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.manifest import finish
from mpa_edge.stages.review.session import open_session
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS
from mpa_edge.vlm.transformers.checkpoint import load_model
from tests.bench import made_up
from tests.forks import Forks
from tests.questions.official import chartqa, okvqa, own_csv, stvqa, textvqa
from tests.stages.review.conftest import run_with_silver

ROOT = Path(cli.__file__).parent.parent.parent
PROMPT = "$ "


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    with click.Context(command) as ctx:
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from leaves(inner, (*path, name))


def examples(command: click.Command) -> list[str]:
    """The lines of the Examples block that start with `$ `."""
    text = (command.help or "").split("Examples:")
    lines = [line.strip() for line in text[-1].splitlines()] if len(text) > 1 else []
    return [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]


COMMANDS = dict(leaves(cli.main))
CASES = [(path, line) for path, command in COMMANDS.items() for line in examples(command)]


def runnable(path: tuple[str, ...], line: str) -> str:
    """The line as it is run: what would take minutes gets --dry-run, and a device that nobody has is this machine."""
    if not any("--dry-run" in option.opts for option in COMMANDS[path].params):
        return re.sub(r"(?<=--via )(?:ssh|adb)://\S+", "local", line)
    return line if "--dry-run" in line else f"{line} --dry-run"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """What examples talk about: photos/, charts/, data/, my-adapter/, files, runs/mine, runs/own (reviewed)."""
    shutil.copytree(_workplace(), tmp_path, dirs_exist_ok=True)
    return tmp_path


@functools.cache
def _workplace() -> Path:
    """Made once, and copied for each test."""
    tmp_path = Path(tempfile.mkdtemp(prefix="mpa-edge-workplace-"))
    atexit.register(shutil.rmtree, tmp_path, ignore_errors=True)
    for number, name in product(range(3), ("photos", "charts")):
        path = tmp_path / name / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (number * 80, 0, 0)).save(path)
    recipe = load_recipe("minicharts")
    make_folder(tmp_path / "runs" / "mine")
    remember(Run(tmp_path / "runs" / "mine", recipe, images=str(tmp_path / "charts")))
    merged = shutil.copytree(WEIGHTS / "student", tmp_path / "runs" / "mine" / "merged")
    finish(merged, "merge", inputs={}, config="", seed=0, counts={})
    for name in ("mine", "newer"):
        made_up.write(tmp_path / "runs" / name / "bench" / "jetson" / "gguf-q8_0", run=name, n=60)
    with open_session(run_with_silver(tmp_path / "runs" / "own", tmp_path / "own", 50), 1) as session:
        session.decide(session.state()["question"]["id"], "right", "")
    shutil.copytree(merged, tmp_path / "runs" / "own" / "merged")
    own_adapter(tmp_path / "my-adapter")
    (tmp_path / "predictions.jsonl").write_text('{"answers": ["5"], "prediction": "5"}\n')
    shutil.copy(ROOT / "recipes" / "minicharts.yaml", tmp_path / "my-recipe.yaml")
    own_csv(tmp_path / "photos" / "questions.csv")
    for make in (textvqa, stvqa, chartqa, okvqa):
        make(tmp_path / "data" / make.__name__)
    program = tmp_path / "bin" / "mpa-edge"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mpa_edge "$@"\n')
    program.chmod(0o755)
    return tmp_path


def own_adapter(folder: Path) -> None:
    """A LoRA adapter of the built-in student, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    student = load_model(str(WEIGHTS / "student"), "cpu")
    regex = family_of("idefics3").target_modules(("language",))
    get_peft_model(student, LoraConfig(r=2, target_modules=regex)).save_pretrained(folder)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_ends_with_examples(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    found = examples(command)
    assert found, f"mpa-edge {' '.join(path)} has no Examples block"
    assert (command.help or "").rstrip().splitlines()[-1].strip().startswith(PROMPT)
    assert all(line.startswith("mpa-edge ") or "| mpa-edge " in line for line in found)
    assert any(line.startswith(f"mpa-edge {' '.join(path)}") or f"| mpa-edge {path[0]}" in line for line in found)


SHELL = set("|*$<>&;")


@pytest.mark.parametrize(("path", "line"), CASES, ids=[line for _, line in CASES])
def test_the_example_runs(workplace: Path, path: tuple[str, ...], line: str, forks: Forks) -> None:
    if "copy" in path or SHELL & set(line):
        runs_in_a_shell(workplace, path, line)
        return
    ended = forks(*shlex.split(runnable(path, line))[1:], cwd=workplace)
    assert ended.rc == 0, ended.stderr
    assert ended.stdout.strip()
    assert "Traceback" not in ended.stderr


def runs_in_a_shell(workplace: Path, path: tuple[str, ...], line: str) -> None:
    """With pipes and patterns; an example of copy needs what the ones before it wrote."""
    env = {**os.environ, "PATH": f"{workplace / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    before = examples(COMMANDS[path])[: examples(COMMANDS[path]).index(line)]
    script = "\n".join(["set -e", *(f"{runnable(path, one)} >/dev/null" for one in before if "copy" in path)])
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{runnable(path, line)}"],
        cwd=workplace,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
