"""docs/your-own-images.md from its first command to the verdict, as it stands there, with a person at the keyboard."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_edge.bench.report.words import HEADLINES
from tests.bench.report.browser import Browser
from tests.docs.markdown import PROGRAM, ROOT, shell_lines
from tests.forks import Forks
from tests.stages.review.test_page import done, until

PAGE = (ROOT / "docs" / "your-own-images.md").read_text(encoding="utf-8")
# exit codes of bench: done, and a gain that is lost
VERDICTS = (0, 3)


def started(line: str, folder: Path) -> subprocess.Popen[str]:
    program, *words = shlex.split(line)
    assert program == PROGRAM
    return subprocess.Popen(
        [sys.executable, "-m", "mpa_edge", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(line: str, folder: Path, forks: Forks) -> str:
    program, *words = shlex.split(line)
    assert program == PROGRAM
    ended = forks(*words, cwd=folder)
    ends = VERDICTS if words[0] == "bench" else (0,)
    assert ended.rc in ends, f"{line}: {ended.stderr}"
    return ended.stdout


def review(line: str, folder: Path, browser: Browser, n: int) -> str:
    """A person who finds every eighth answer wrong."""
    program = started(line, folder)
    assert program.stdout
    with browser.open(program.stdout.readline().strip()) as page:
        for i in range(n):
            done(page, i)
            page.press(*(("2", *"none", "Enter") if i % 8 == 7 else ("1",)))
        until(page, "!at('done').hidden")
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    return out


@pytest.mark.peer
@pytest.mark.timeout(1200)
def test_from_images_to_a_verdict(forks: Forks, tmp_path: Path) -> None:
    for name, text in zip(
        ("my-task.yaml", "my-recipe.yaml"), re.findall(r"```yaml\n(.*?)```", PAGE, re.S), strict=True
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    said, browser = dict[str, str](), Browser(tmp_path / "profile")
    try:
        for line in shell_lines(PAGE):
            name = line.split()[1]
            said[name] = review(line, tmp_path, browser, 40) if name == "review" else run(line, tmp_path, forks)
    finally:
        browser.close()
    assert (tmp_path / "runs" / "try" / "sheet.html").is_file()
    assert said["review"].startswith("40 questions reviewed, teacher right 88%")
    assert "agreement with the teacher" in said["align"]
    found = json.loads(run("mpa-edge evaluate runs/own --json", tmp_path, forks))
    assert (found["truth"], found["n_reviewed"]) == ("reviewed", 40)
    assert found["gain_ci95"][0] <= found["gain"] <= found["gain_ci95"][1]
    # a machine that is busy with other tests may time nothing
    assert any(words in said["bench"] for words in HEADLINES.values()), said["bench"]
    assert "True gain before export" in said["bench"]
    assert list((tmp_path / "runs" / "own").rglob("report.html"))
