"""What is exported: the aligned model of a run or a plain checkpoint folder, within a target's image budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError
from mpa_edge.families import Family, family_of
from mpa_edge.runs.files import read_json
from mpa_edge.runs.manifest import EXPORTS, FOLDERS, RECIPE_FILE, RUN_FILE, read_manifest
from mpa_edge.runs.paths import require_plain
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.vlm import fingerprint, resolve

# no pickles: they can run code
DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Source:
    """A checkpoint, and how it was made where that is known."""

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
        """Family of the model type. MpaError where no family covers it."""
        return family_of(self.config["model_type"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint's files."""
        return fingerprint(str(self.checkpoint))

    def prompt(self, question: str) -> str:
        """A question with what the run adds to it."""
        return answer_prompt(get_task(self.recipe.task), question) if self.recipe else question


def open_source(reference: str, out: str | None = None) -> Source:
    """A run folder with a merged model, a checkpoint folder, or a hub id. MpaError where there is nothing to export.

    Args:
        reference: Run folder, checkpoint folder, `nursery:NAME`, or hub id.
        out: Folder of the exports; None: below the run, or below runs/NAME.
    """
    folder = Path(reference).expanduser()
    if (folder / RUN_FILE).is_file():
        require_plain(folder)
        merged = folder / FOLDERS["merge"]
        if read_manifest(merged) is None:
            raise MpaError(f"{folder} has no finished merge: run mpa-edge align --out {folder} first")
        recipe = load_recipe(str(folder / RECIPE_FILE))
        return Source(folder.resolve().name, merged, Path(out) if out else folder / EXPORTS, run=folder, recipe=recipe)
    found = Path(resolve(reference))
    if not found.is_dir():
        found = download(reference)
    name = folder.resolve().name if folder.is_dir() else reference.rpartition("/")[2].replace(":", "-")
    return Source(name, found, Path(out) if out else Path("runs") / name / EXPORTS)


def download(hub_id: str, local_only: bool = False) -> Path:
    """Files of a hub checkpoint: weights as safetensors only, no program code. `local_only`: only from the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=local_only, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MpaError(f"cannot get '{hub_id}' from the hub ({why}): check the id, or name a folder") from error


def generation_config(checkpoint: Path) -> dict[str, Any]:
    """generation_config.json; empty where there is none."""
    found = read_json(checkpoint / "generation_config.json")
    return found if isinstance(found, dict) else {}


def processor_values(checkpoint: Path) -> dict[str, Any]:
    """The image processor's configuration, flat, from whichever of its two files a checkpoint has."""
    nested = read_json(checkpoint / "processor_config.json") or {}
    flat = read_json(checkpoint / "preprocessor_config.json") or {}
    return {**flat, **nested.get("image_processor", {})}


def image_values(checkpoint: Path, budget: ImageBudget | None) -> dict[str, Any]:
    """The same with a target's image budget applied."""
    values = processor_values(checkpoint)
    return values | within_budget(values, budget)


def within_budget(image: dict[str, Any], budget: ImageBudget | None) -> dict[str, Any]:
    """The keys of an image processor's configuration that must change to fit the budget; empty where it fits.

    Models that split an image into tiles (Idefics3, SmolVLM) get a smaller longest edge: k x k tiles at most. Qwen2-VL
    gets fewer pixels, InternVL fewer patches, models with one fixed size nothing.

    >>> smolvlm = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    >>> within_budget(smolvlm, ImageBudget(max_tiles=5, max_pixels=10**6))
    {'size': {'longest_edge': 1024}}
    >>> within_budget({"crop_to_patches": True, "max_patches": 12}, ImageBudget(max_tiles=4, max_pixels=10**6))
    {'max_patches': 4}
    >>> qwen = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "merge_size": 2}
    >>> within_budget(qwen, ImageBudget(max_tiles=4, max_pixels=602112))
    {'size': {'shortest_edge': 3136, 'longest_edge': 602112}}
    """
    if budget is None:
        return {}
    size = image.get("size") or {}
    if "max_image_size" in image:
        edge = math.isqrt(budget.max_tiles) * image["max_image_size"]["longest_edge"]
        return {"size": {"longest_edge": edge}} if edge < size["longest_edge"] else {}
    if "merge_size" in image and size["longest_edge"] > budget.max_pixels:
        shortest = min(size["shortest_edge"], budget.max_pixels)
        return {"size": {"shortest_edge": shortest, "longest_edge": budget.max_pixels}}
    if image.get("crop_to_patches") and image["max_patches"] > budget.max_tiles:
        return {"max_patches": budget.max_tiles}
    return {}
