"""The weights of one scheme, component by component: what was finished before a kill is not made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpa_edge.config.scheme import ONNX_COMPONENTS, CalibrationConfig, Component, Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.quantize import WEIGHTED, quantize_gguf
from mpa_edge.exporters.importance import measure_importance, texts_of
from mpa_edge.exporters.onnx.export import export_component
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.publish.layout import file_name
from mpa_edge.exporters.source import Source
from mpa_edge.progress import say
from mpa_edge.runs.files import atomic_write, disk_errors, link_or_copy, make_folder, read_json, sha256_file, write_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.paths import remove

MADE = ".made.json"
DATA = "_data"
"""Suffix of the file that holds a large graph's weights."""


@dataclass
class BuildContext:
    """Where and how an export is built."""

    source: Source
    """What is exported."""
    folder: Path
    """The scheme's own files, not yet under their final name."""
    parts: Path
    """Files that several schemes are made from: full-precision ONNX graphs, a 16-bit GGUF."""
    budget: ImageBudget | None = None
    """Of the target."""
    threads: int | None = None
    """CPU threads; None: one for each core."""
    peak_rss_bytes: int = 0
    """Of the largest process so far."""
    notes: list[str] = field(default_factory=list)
    """Where the result is not what the scheme's name says."""

    def part(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file below `parts`, made once for all schemes; one whose hash has changed is made again."""
        path = self.parts / name
        make_folder(path.parent)
        stored = read_json(self.parts / MADE)
        made = stored if isinstance(stored, dict) else {}
        if name not in made or made[name] != _hashes(path):
            for old in (path, path.with_name(f"{path.name}{DATA}")):
                remove(old)
            make(path)
            write_json(self.parts / MADE, made | {name: _hashes(path)})
        return path

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a heavy step in a process of its own."""
        scratch = self.folder / ".scratch"
        with disk_errors(self.folder, self.source.weights_bytes):
            remove(scratch)  # of a step that was killed
            make_folder(scratch)
            try:
                result, peak_bytes = run_isolated(function, *arguments, threads=self.threads, scratch=scratch)
            finally:
                remove(scratch, quietly=True)
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak_bytes)
        return result


def build(context: BuildContext, scheme: Scheme) -> dict[Component, str]:
    """Make every component of a scheme that is not there yet; component -> path inside the folder."""
    files = {name: file_name(scheme.format, name, precision) for name, precision in scheme.components.items()}
    made = read_json(context.folder / MADE) or {}
    for component, name in files.items():
        out = context.folder / name
        if component not in made or not out.is_file():
            say(f"{scheme.name}: {component} as {scheme.components[component]}")
            make_folder(out.parent)
            made[component] = make_component(context, scheme, component, out)
            write_json(context.folder / MADE, made)
    context.notes.extend(note for component in files for note in made[component])
    return files


def make_component(context: BuildContext, scheme: Scheme, component: Component, out: Path) -> list[str]:
    """Write one component to `out`; returns where the result is not what the precision says, one line each."""
    precision = scheme.components[component]
    if component in ONNX_COMPONENTS:
        full = _graph(context, component)
        if precision == "fp32":
            for path in full.parent.glob(f"{full.name}*"):
                link_or_copy(path, out.with_name(path.name))
            return []
        calibration = None
        if precision.startswith("qdq"):  # inputs of the graphs on the run's own images, recorded once
            from mpa_edge.exporters.onnx.calibrate import calibrate

            graphs = {name: _graph(context, name) for name in ("vision", "embed", "decoder")}
            n = (scheme.calibration or CalibrationConfig()).n
            calibration = context.parts / f"calibration-{n}"
            if not (calibration / "done.json").is_file():
                context.run(calibrate, context.source, graphs, make_folder(calibration), n, context.budget)
                write_json(calibration / "done.json", {"n": n})
        importance = _importance(context) if component == "decoder" and precision in ("q4", "q4f16") else None
        return list(context.run(quantize_component, full, out, component, precision, scheme, calibration, importance))
    if component == "mmproj" or precision == "f16":
        part = _gguf(context, "mmproj" if component == "mmproj" else "language", precision)
        # a file of its own: damage to one export must not reach another
        with atomic_write(out, part.stat().st_size) as file, part.open("rb") as shared:
            shutil.copyfileobj(shared, file, 1 << 20)
    elif precision in ("f32", "bf16"):
        _convert(context, "language", precision, out)
    else:
        full, importance = _gguf(context, "language", "f16"), _importance(context) if precision in WEIGHTED else None
        return quantize_gguf(full, out, precision, context.threads, importance)
    return []


def _graph(context: BuildContext, component: Component) -> Path:
    """The full-precision ONNX graph of a component."""
    name = f"onnx/{component}/{Path(file_name('onnx', component, 'fp32')).name}"
    return context.part(name, lambda path: context.run(export_component, context.source.checkpoint, component, path))


def _importance(context: BuildContext) -> Path:
    """How much each input of the language model's matrices matters."""

    def measure(path: Path) -> None:
        context.run(measure_importance, context.source.checkpoint, texts_of(context.source), path)

    return context.part("importance.npz", measure)


def _gguf(context: BuildContext, component: Literal["language", "mmproj"], precision: str) -> Path:
    """A GGUF file that llama.cpp's converter made."""
    name = f"gguf/{file_name('gguf', component, precision)}"
    return context.part(name, lambda path: _convert(context, component, precision, path))


def _convert(context: BuildContext, component: Literal["language", "mmproj"], precision: str, out: Path) -> None:
    peak_bytes = convert(context.source, component, out, precision, context.budget)
    context.peak_rss_bytes = max(context.peak_rss_bytes, peak_bytes)


def _hashes(path: Path) -> dict[str, str]:
    """Hash of a part, and of the weights beside it."""
    return {one.name: sha256_file(one) for one in (path, path.with_name(f"{path.name}{DATA}")) if one.is_file()}
