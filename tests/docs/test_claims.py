"""What the README says of an installation without extras is true: heavy packages are hidden, commands are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

HEAVY = ("torch", "torchvision", "transformers", "peft", "trl", "accelerate", "datasets", "num2words", "matplotlib")
SCRIPT = """
import sys
sys.modules.update(dict.fromkeys({heavy!r}))
from mpa_edge.cli.main import exit_code
sys.exit(exit_code({words!r}))
"""


def run_without_extras(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """None in sys.modules is an ImportError for whoever asks, as if the package were not installed."""
    script = SCRIPT.format(heavy=HEAVY, words=words)
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "line",
    [
        "score --metric anls p.jsonl",
        "check minicharts",
        "list",
        "show minicharts",
        "--help",
        "align --images . --dry-run",
    ],
)
def test_the_light_installation_can(line: str, tmp_path: Path, picture) -> None:
    (tmp_path / "p.jsonl").write_text('{"answers": ["5"], "prediction": "5"}\n')
    picture("a.png")
    done = run_without_extras(line.split(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_it_cannot_is_one_line_that_names_the_extra(tmp_path: Path, picture) -> None:
    picture("a.png")
    done = run_without_extras(["align", "--images", "images", "--out", "run"], tmp_path)
    assert done.returncode == 1
    assert "pip install 'mpa-edge[align]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
