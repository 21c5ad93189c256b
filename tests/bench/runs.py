"""A run for tests whose alignment is as good as can be: base is the built-in student, aligned the built-in teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

from mpa_edge.assets import load_recipe
from mpa_edge.runs import finish
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS


def run_folder(folder: Path, aligned: str = "teacher") -> Path:
    """As far as merged."""
    folder.mkdir(parents=True)
    remember(Run(folder, load_recipe("minicharts", ["threads=1"])))
    merged = Path(shutil.copytree(WEIGHTS / aligned, folder / "merged"))
    finish(merged, "merge", inputs={"level": "", "student": "", "config": ""}, config="", seed=0, counts={})
    return folder
