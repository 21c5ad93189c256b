"""The weights of one scheme, component by component: what a kill has not touched is not made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpa_edge.config.scheme import ONNX_COMPONENTS, CalibrationConfig, Component, Scheme
from mpa_edge.config.target import ImageBudget
from mpa_edge.exporters.budget import image_values
from mpa_edge.exporters.publish.layout import file_name
from mpa_edge.exporters.source import Source
from mpa_edge.progress import say
from mpa_edge.runs.files import atomic_write, disk_errors, make_folder, read_json, sha256_file, write_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.manifest import INPUTS

MADE = ".made.json"
DATA = "_data"
"""What the name of a large graph's weights ends in, behind the graph's own."""


@dataclass
class BuildContext:
    """Where an export is built."""

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
    """Largest process so far."""
    notes: list[str] = field(default_factory=list)
    """What did not go as the scheme's name says."""

    @property
    def source_bytes(self) -> int:
        """Of the checkpoint's weights: what a step may need on the disk."""
        return sum(path.stat().st_size for path in self.source.checkpoint.glob("*.safetensors"))

    def has_part(self, path: Path) -> bool:
        """Whether a part is there and is what it was when it was made; one that is not goes."""
        marks = (read_json(self.parts / MADE) or {}).get(path.relative_to(self.parts).as_posix())
        if marks is not None and marks == _marks(path):
            return True
        for name in (path.name, f"{path.name}{DATA}"):
            path.with_name(name).unlink(missing_ok=True)
        return False

    def keep_part(self, path: Path) -> None:
        """Write down what a part is."""
        made = read_json(self.parts / MADE) or {}
        write_json(self.parts / MADE, made | {path.relative_to(self.parts).as_posix(): _marks(path)})

    def apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a heavy step in a process of its own."""
        scratch = self.folder / ".scratch"
        with disk_errors(self.folder, self.source_bytes):
            shutil.rmtree(scratch, ignore_errors=True)  # of a step that was killed
            make_folder(scratch)
            try:
                result, peak_bytes = run_isolated(function, *arguments, threads=self.threads, scratch=scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak_bytes)
        return result


def build(shop: BuildContext, scheme: Scheme) -> dict[Component, str]:
    """Make every component of a scheme that is not there yet; component -> path inside the folder."""
    files = {name: file_name(scheme.format, name, precision) for name, precision in scheme.components.items()}
    made = read_json(shop.folder / MADE) or {}
    for component, name in files.items():
        if component not in made or not (shop.folder / name).is_file():
            say(f"{scheme.name}: {component} as {scheme.components[component]}")
            make_folder((shop.folder / name).parent)
            made[component] = _component(shop, scheme, component, shop.folder / name)
            write_json(shop.folder / MADE, made)
    shop.notes.extend(note for component in files for note in made[component])
    return files


def _component(shop: BuildContext, scheme: Scheme, component: Component, out: Path) -> list[str]:
    make = _onnx if component in ONNX_COMPONENTS else _mmproj if component == "mmproj" else _language
    return make(shop, scheme, component, out)


def _onnx(shop: BuildContext, scheme: Scheme, component: Component, out: Path) -> list[str]:
    from mpa_edge.exporters.onnx.quantize import quantize_component

    full, precision = _graph(shop, component), scheme.components[component]
    if precision == "fp32":
        for path in full.parent.glob(f"{full.name}*"):
            _share(path, out.with_name(path.name))
        return []
    calibration = _calibration(shop, scheme) if precision.startswith("qdq") else None
    return list(shop.apart(quantize_component, full, out, component, precision, scheme, calibration))


def _graph(shop: BuildContext, component: Component) -> Path:
    """The full-precision graph of a component, made once for all schemes."""
    from mpa_edge.exporters.onnx.export import export_component

    path = make_folder(shop.parts / "onnx" / component) / Path(file_name("onnx", component, "fp32")).name
    if not shop.has_part(path):
        shop.apart(export_component, shop.source.checkpoint, component, path)
        shop.keep_part(path)
    return path


def _calibration(shop: BuildContext, scheme: Scheme) -> Path:
    """Inputs of the graphs on the run's own pictures, made once."""
    from mpa_edge.exporters.onnx.calibrate import calibrate

    graphs = {name: _graph(shop, name) for name in ("vision", "embed", "decoder")}
    n = (scheme.calibration or CalibrationConfig()).n
    folder = shop.parts / f"calibration-{n}"
    if not (folder / "done.json").is_file():
        shop.apart(calibrate, shop.source, graphs, make_folder(folder), n, shop.budget)
        write_json(folder / "done.json", {"n": n})
    return folder


def _language(shop: BuildContext, scheme: Scheme, _component: Component, out: Path) -> list[str]:
    from mpa_edge.exporters.gguf.quantize import quantize_gguf

    precision = scheme.components["language"]
    if precision in ("f32", "bf16"):
        _convert(shop, "language", out, precision)
        return []
    full = _gguf_part(shop, "language", "f16")
    if precision == "f16":
        _copy(full, out)
        return []
    return list(quantize_gguf(full, out, precision, shop.threads))


def _mmproj(shop: BuildContext, scheme: Scheme, _component: Component, out: Path) -> list[str]:
    _copy(_gguf_part(shop, "mmproj", scheme.components["mmproj"]), out)
    return []


def _gguf_part(shop: BuildContext, component: Literal["language", "mmproj"], precision: str) -> Path:
    """A converted file, made once for all schemes."""
    path = make_folder(shop.parts / "gguf") / file_name("gguf", component, precision)
    if not shop.has_part(path):
        _convert(shop, component, path, precision)
        shop.keep_part(path)
    return path


def _convert(shop: BuildContext, component: Literal["language", "mmproj"], out: Path, precision: str) -> None:
    from mpa_edge.exporters.gguf.convert import convert

    values = image_values(shop.source.checkpoint, shop.budget)
    peak_bytes = convert(shop.source.checkpoint, component, out, precision, values)
    shop.peak_rss_bytes = max(shop.peak_rss_bytes, peak_bytes)


def discard_parts(parts: Path) -> None:
    """Remove the shared parts; a kill in between leaves nothing that could be taken for whole."""
    (parts / INPUTS).unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)


def _marks(path: Path) -> dict[str, str]:
    """Hash of a part, and of the weights beside it."""
    return {one.name: sha256_file(one) for one in (path, path.with_name(f"{path.name}{DATA}")) if one.is_file()}


def _share(path: Path, out: Path) -> None:
    """The same file under a second name, without a copy where the disk can do that."""
    temp = out.with_name(f".{out.name}.tmp")
    temp.unlink(missing_ok=True)
    try:
        os.link(path, temp)
    except OSError:
        shutil.copyfile(path, temp)
    os.replace(temp, out)


def _copy(path: Path, out: Path) -> None:
    """A file of its own: two exports must not stand or fall together."""
    with atomic_write(out, path.stat().st_size) as file, path.open("rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)
