"""What is exported: the aligned model of a run, or a plain checkpoint folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpa_edge.assets import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.families import Family, family_of
from mpa_edge.recipe import Recipe
from mpa_edge.runs import FOLDERS, RECIPE_FILE, RUN_FILE, read_json, read_manifest
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.vlm import fingerprint, resolve

# no pickles: they are programs
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Source:
    """A checkpoint, and what is known of how it came to be."""

    name: str
    """Name of the run, or of the checkpoint folder."""
    checkpoint: Path
    """Folder of config.json, safetensors and processor files."""
    exports: Path
    """Where its exports go: runs/NAME/exports."""
    run: Path | None = None
    """The run folder; None for a plain checkpoint."""
    recipe: Recipe | None = None
    """How it was aligned; None for a plain checkpoint."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        found = read_json(self.checkpoint / "config.json")
        if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
            raise MpaError(f"{self.checkpoint / 'config.json'} is damaged: copy the checkpoint again")
        return found

    @cached_property
    def family(self) -> Family:
        """How this kind of model is taken apart. MpaError where no family covers it."""
        return family_of(self.config["model_type"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint's files."""
        return fingerprint(str(self.checkpoint))

    def prompt(self, question: str) -> str:
        """A question as the run asks it."""
        return answer_prompt(get_task(self.recipe.task), question) if self.recipe else question


def open_source(reference: str, out: str | None = None) -> Source:
    """A run folder with a merged model, a checkpoint folder, or a hub id. MpaError where there is nothing to export."""
    folder = Path(reference).expanduser()
    if (folder / RUN_FILE).is_file():
        return _of_run(folder, out)
    checkpoint = Path(resolve(reference))
    if not checkpoint.is_dir():
        checkpoint = _download(reference)
    name = reference.rstrip("/").rpartition("/")[2].replace(":", "-") or checkpoint.resolve().name
    return Source(name, checkpoint, Path(out) if out else Path("runs") / name / FOLDERS["export"])


def _of_run(folder: Path, out: str | None) -> Source:
    merged = folder / FOLDERS["merge"]
    if read_manifest(merged) is None:
        raise MpaError(f"{folder} has no finished merge: run mpa-edge align --out {folder} first")
    recipe = load_recipe(str(folder / RECIPE_FILE))
    return Source(
        folder.resolve().name, merged, Path(out) if out else folder / FOLDERS["export"], run=folder, recipe=recipe
    )


def _download(hub_id: str) -> Path:
    """Files of a hub checkpoint, safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MpaError(f"cannot get '{hub_id}' from the hub ({why}): check the id, or name a folder") from error
