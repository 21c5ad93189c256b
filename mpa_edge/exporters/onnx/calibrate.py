"""Inputs of a model's graphs while it answers the run's own questions about the run's own images.

Static quantization measures the range of every activation on these. They are recorded from the fp32 export as it
answers, so image, prompt and positions are what a device will see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from mpa_edge.config.scheme import Component
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import open_image
from mpa_edge.runs.files import link_or_copy, make_folder, read_json
from mpa_edge.runs.manifest import FOLDERS, RENDERED, RUN_FILE
from mpa_edge.runs.parquet import read_parts
from mpa_edge.runs.paths import remove
from mpa_edge.types import Drop, ParityRecord, Request

if TYPE_CHECKING:
    from mpa_edge.config.recipe import Recipe
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.exporters.source import Source

Arrays = dict[str, NDArray[Any]]
CONTEXT_TOKENS = 131_072
"""No question of a run is longer."""


class Feeds(CalibrationDataReader):
    """Recorded inputs of one component, one file at a time."""

    def __init__(self, folder: Path, component: Component) -> None:
        self._paths = iter(sorted(folder.glob(f"{component}-*.npz")))

    def get_next(self) -> Arrays | None:
        """The next inputs by name; None at the end."""
        path = next(self._paths, None)
        if path is None:
            return None
        with np.load(path) as stored:
            return dict(stored)


def calibrate(
    source: Source, graphs: Mapping[Component, Path], folder: Path, n: int, budget: ImageBudget | None
) -> None:
    """Write `vision-00000.npz`, `decoder-00000.npz`, ... for n questions of the run's parity set into `folder`.

    `graphs` are the fp32 graphs. MpaError for a plain checkpoint, and where no question or image is left.
    """
    from mpa_edge.config.library import load_scheme
    from mpa_edge.exporters.publish.layout import file_name, write_layout
    from mpa_edge.vlm.onnxruntime.model import OnnxVLM

    if source.run is None or source.recipe is None:
        raise MpaError(f"'{source.name}' has no questions to measure static ranges on: export a run, or use onnx-int8")
    rows, images = chosen_rows(source.run, n), images_folder(source.run, source.recipe)
    # a complete fp32 export, its weights shared with `graphs`
    remove(folder / "model")
    model = make_folder(folder / "model")
    for component, graph in graphs.items():
        target = make_folder((model / file_name("onnx", component, "fp32")).parent)
        for path in graph.parent.glob(f"{graph.name}*"):
            link_or_copy(path, target / path.name)
    write_layout(source, load_scheme("onnx-fp32"), model, budget, CONTEXT_TOKENS, None)
    vlm = OnnxVLM(model, name="calibration")
    recorder = Recorder(vlm)
    for row in rows:
        image = open_image(images / row.image, source.recipe.images.max_pixels)
        if not isinstance(image, Drop):
            vlm.answer([Request(image, source.prompt(row.question), vlm.artifact.max_new_tokens)])
            recorder.write(folder)
    vlm.close()
    remove(model)
    if recorder.n == 0:
        raise MpaError(f"no image of the run is left in {images}: put them back, or use onnx-int8")


def chosen_rows(run: Path, n: int) -> list[ParityRecord]:
    """At most n confirmed questions of a run, spread evenly over all of them. MpaError where it has none."""
    rows = [row for row in read_parts(run / FOLDERS["identify"], ParityRecord) if row.verdict != "unverified"]
    if not rows:
        raise MpaError(f"{run} has no confirmed question to measure static ranges on: use onnx-int8")
    count = min(n, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def images_folder(run: Path, recipe: Recipe) -> Path:
    """Folder of a run's images."""
    given = (read_json(run / RUN_FILE) or {}).get("images") or recipe.images.path
    return Path(given).expanduser() if given else run / RENDERED


class Recorder:
    """Records what a model's graphs are fed. `n` is the number of answers that were written."""

    def __init__(self, vlm: Any) -> None:
        self.n = 0
        self._recorded: dict[Component, list[Arrays]] = {"vision": [], "decoder": []}
        for component, recorded in self._recorded.items():
            graph = getattr(vlm, component)

            def run(feeds: Arrays, inner: Callable[[Arrays], Any] = graph.run, kept: list[Arrays] = recorded) -> Any:
                kept.append(dict(feeds))
                return inner(feeds)

            graph.run = run

    def write(self, folder: Path) -> None:
        """Store what was fed since the last call: the image, and the answer as one pass over all its tokens."""
        vision, steps = self._recorded["vision"], self._recorded["decoder"]
        for component, arrays in (("vision", vision[-1]), ("decoder", one_pass(steps))):
            np.savez_compressed(folder / f"{component}-{self.n:05d}.npz", **cast(dict[str, Any], arrays))
        self.n += 1
        vision.clear()
        steps.clear()


def one_pass(steps: list[Arrays]) -> Arrays:
    """A prompt and its decoding steps as one prompt: embeddings and positions concatenated, logits of every position.

    The cache is the empty one of the first step.
    """
    whole = dict(steps[0])
    for name in {"inputs_embeds", "per_layer_inputs"} & set(whole):
        whole[name] = np.concatenate([step[name] for step in steps], axis=1)
    whole["position_ids"] = np.concatenate([step["position_ids"] for step in steps], axis=-1)
    whole["attention_mask"] = np.ones((1, whole["inputs_embeds"].shape[1]), np.int64)
    if "num_logits_to_keep" in whole:
        whole["num_logits_to_keep"] = np.zeros_like(whole["num_logits_to_keep"])
    return whole
