"""What is exported: the aligned model of a run or a plain checkpoint folder, within a target's image budget."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpa_edge.config.library import load_recipe
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.target import ImageBudget
from mpa_edge.errors import MpaError, missing_package
from mpa_edge.evaluation.predict import with_silver
from mpa_edge.exporters import adapter
from mpa_edge.families import Family, family_of
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json
from mpa_edge.runs.manifest import EXPORTS, FOLDERS, RECIPE_FILE, RUN_FILE, read_manifest
from mpa_edge.runs.paths import require_plain
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.vlm import fingerprint, resolve
from mpa_edge.vlm.transformers.adapter import is_adapter
from mpa_edge.vlm.transformers.files import (
    check_files,
    local_folder,
    require_unquantized,
    tensor_shapes,
    weight_files,
)

GEMMA_TOKENS = (70, 140, 280, 560, 1120)
"""Numbers of tokens that Gemma 4 takes for an image."""


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
    adapter: Path | None = None
    """Folder of the LoRA adapter that was merged into it; None where none was."""
    base: Path | None = None
    """Folder of the model that `adapter` was made for; None for a run, whose recipe names it."""

    @cached_property
    def family(self) -> Family:
        """Family of the model type. MpaError where no family covers it."""
        return family_of(check_files(self.checkpoint)["model_type"])

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The weight files that transformers takes. MpaError as in `weight_files`."""
        taken = tuple(weight_files(self.checkpoint))
        if others := sorted(path.name for path in self.checkpoint.glob("*.safetensors") if path not in taken):
            say(f"{self.name}: transformers does not load {', '.join(others)}, so it is left out")
        return taken

    @property
    def weights_bytes(self) -> int:
        """Size of the weight files."""
        return sum(path.stat().st_size for path in self.weights)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json with every default written out, as transformers reads it. MpaError where a file is damaged."""
        return self._outline[0]

    @cached_property
    def names(self) -> dict[str, str]:
        """Tensor in the weight files -> its name where transformers saves the model; without those that it drops."""
        return self._outline[1]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor, as transformers names it where it saves the model -> shape. MpaError where a file is damaged."""
        stored = tensor_shapes(list(self.weights))
        return {name: stored[key] for key, name in self.names.items()}

    @cached_property
    def _outline(self) -> tuple[dict[str, Any], dict[str, str]]:
        from mpa_edge.vlm.transformers.checkpoint import outline, saved_names, written_out

        require_unquantized(self.checkpoint, check_files(self.checkpoint))
        model = outline(self.checkpoint)
        config = written_out(self.checkpoint) | {"architectures": [type(model).__name__]}
        return config, saved_names(model, tensor_shapes(list(self.weights)))

    @cached_property
    def processor(self) -> tuple[dict[str, Any], str]:
        """(values of the image processor with every default, chat template), wherever the checkpoint has them."""
        from mpa_edge.vlm.transformers.checkpoint import load_processor

        loaded = load_processor(str(self.checkpoint))
        return json.loads(loaded.image_processor.to_json_string()), str(loaded.chat_template)

    def image_values(self, budget: ImageBudget | None) -> dict[str, Any]:
        """Values of the image processor with a target's image budget applied."""
        values = self.processor[0]
        return values | within_budget(values, budget)

    def check(self) -> None:
        """Read everything that is not weights, once. MpaError for the first thing that is damaged or not covered."""
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise missing_package(package, "align")
        self.family, self.config, self.processor  # noqa: B018

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint's files."""
        return fingerprint(str(self.checkpoint))

    def prompt(self, question: str) -> str:
        """A question with what the run adds to it."""
        return answer_prompt(get_task(self.recipe.task), question) if self.recipe else question


def open_source(reference: str, out: str | None = None, base: str | None = None, *, merge: bool = True) -> Source:
    """A run folder with a merged model, a checkpoint folder, an adapter, or a hub id.

    MpaError where there is nothing to export, or an adapter does not fit its base.

    Args:
        reference: Run folder, checkpoint folder, folder of an adapter, `nursery:NAME`, or hub id.
        out: Folder of the exports; None: below the run, or below runs/NAME.
        base: Model that an adapter was made for; None: the one that it names.
        merge: Whether an adapter is merged. If not, the checkpoint is its base, of the same shapes.
    """
    folder = Path(reference).expanduser()
    if (folder / RUN_FILE).is_file():
        require_plain(folder)
        merged = folder / FOLDERS["merge"]
        if read_manifest(merged) is None:
            raise MpaError(f"{folder} has no finished merge: run mpa-edge align --out {folder} first")
        require_no_base(reference, base)
        recipe = with_silver(load_recipe(str(folder / RECIPE_FILE)), folder)
        exports, tuned = Path(out) if out else folder / EXPORTS, folder / FOLDERS["level"] / "adapter"
        own = tuned if is_adapter(tuned) else None
        return Source(folder.resolve().name, merged, exports, run=folder, recipe=recipe, adapter=own)
    found = folder if is_adapter(folder) else local_folder(resolve(reference))
    name = folder.resolve().name if folder.is_dir() else reference.rpartition("/")[2].replace(":", "-")
    exports = Path(out) if out else Path("runs") / name / EXPORTS
    if not is_adapter(found):
        require_no_base(reference, base)
        return Source(name, found, exports)
    of = adapter.base_folder(found, base)
    if not merge:
        adapter.read(found, of)
        return Source(name, of, exports, adapter=found, base=of)
    merged = adapter.merged(found, of, (exports if out else exports.parent) / adapter.MERGED)
    return Source(name, merged, exports, adapter=found, base=of)


def require_no_base(reference: str, base: str | None) -> None:
    """MpaError where a base is named for what is no adapter."""
    if base:
        raise MpaError(f"{reference} is no adapter: leave out --base")


def generation_config(checkpoint: Path) -> dict[str, Any]:
    """generation_config.json; empty where there is none."""
    found = read_json(checkpoint / "generation_config.json")
    return found if isinstance(found, dict) else {}


def within_budget(image: dict[str, Any], budget: ImageBudget | None) -> dict[str, Any]:
    """The keys of an image processor's configuration that must change to fit the budget; empty where it fits.

    Models that split an image into tiles (Idefics3, SmolVLM) get a smaller longest edge: k x k tiles at most. Qwen2-VL
    gets fewer pixels, Gemma 4 fewer tokens, InternVL fewer patches, LFM2-VL fewer tiles, models with one fixed size
    nothing.

    >>> smolvlm = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    >>> within_budget(smolvlm, ImageBudget(max_tiles=5, max_pixels=10**6))
    {'size': {'longest_edge': 1024}}
    >>> within_budget({"crop_to_patches": True, "max_patches": 12}, ImageBudget(max_tiles=4, max_pixels=10**6))
    {'max_patches': 4}
    >>> qwen = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "merge_size": 2}
    >>> within_budget(qwen, ImageBudget(max_tiles=4, max_pixels=602112))
    {'size': {'shortest_edge': 3136, 'longest_edge': 602112}}
    >>> gemma = {"max_soft_tokens": 280, "patch_size": 16, "pooling_kernel_size": 3}
    >>> within_budget(gemma, ImageBudget(max_tiles=4, max_pixels=602112))
    {'max_soft_tokens': 140}
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
    if "max_soft_tokens" in image:
        area = (image["patch_size"] * image["pooling_kernel_size"]) ** 2
        fitting = [n for n in GEMMA_TOKENS if n * area <= budget.max_pixels] or list(GEMMA_TOKENS[:1])
        return {"max_soft_tokens": fitting[-1]} if fitting[-1] < image["max_soft_tokens"] else {}
    if image.get("crop_to_patches") and image["max_patches"] > budget.max_tiles:
        return {"max_patches": budget.max_tiles}
    if image.get("do_image_splitting") and image.get("max_tiles", 0) > budget.max_tiles:
        splits = budget.max_tiles >= image["min_tiles"]
        return {"max_tiles": budget.max_tiles} if splits else {"do_image_splitting": False}
    return {}
