"""A run for tests with a clear gain: aligned is the built-in student, base the same with a part of its weights lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

from mpa_edge.config.library import load_recipe
from mpa_edge.runs.manifest import finish
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS


def weakened(folder: Path) -> Path:
    """The built-in student without what its last text layer adds: it answers, and mostly wrong."""
    shutil.copytree(WEIGHTS / "student", folder)
    tensors = load_file(folder / "model.safetensors")
    lost = [
        name
        for name in tensors
        if "text_model.layers.2." in name and name.endswith(("down_proj.weight", "o_proj.weight"))
    ]
    assert len(lost) == 2
    save_file(tensors | {name: 0 * tensors[name] for name in lost}, folder / "model.safetensors", {"format": "pt"})
    return folder


def run_folder(folder: Path) -> Path:
    """As far as merged."""
    folder.mkdir(parents=True)
    base = weakened(folder.parent / f"{folder.name}-base")
    remember(Run(folder, load_recipe("minicharts", ["threads=1", f"student={base}"])))
    merged = Path(shutil.copytree(WEIGHTS / "student", folder / "merged"))
    finish(merged, "merge", inputs={"level": "", "student": "", "config": ""}, config="", seed=0, counts={})
    return folder
