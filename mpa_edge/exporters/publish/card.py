"""README.md of an export: what it is, what it came from, how good it is, under which licence, how to run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpa_edge.artifact import Artifact
from mpa_edge.exporters.publish.licences import Licence, front_matter, licence_of
from mpa_edge.exporters.publish.manifest import CARD, ExportManifest
from mpa_edge.exporters.publish.snippets import snippets
from mpa_edge.exporters.sizes import full_bytes
from mpa_edge.exporters.source import Source
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.manifest import FOLDERS, read_manifest

QUESTION = "What is shown?"
LIBRARY = {"onnx": "transformers.js", "gguf": "gguf", "hybrid": "mpa-edge"}
TITLES = {"onnx": "ONNX", "gguf": "GGUF", "hybrid": "ONNX vision encoder and GGUF language model"}


def write_card(source: Source, artifact: Artifact, manifest: ExportManifest, folder: Path) -> None:
    """Write README.md into the folder of an export; called again when its accuracy was measured."""
    write_bytes(folder / CARD, card(source, artifact, manifest, folder).encode())


def card(source: Source, artifact: Artifact, manifest: ExportManifest, folder: Path) -> str:
    """The whole text."""
    licences = known_licences(source)
    sections = (
        _head(source, artifact, licences),
        _introduction(source, artifact, manifest, licences),
        _licence(licences, folder),
        _accuracy(manifest),
        _files(source, manifest),
        _parity(manifest),
        _use(source, artifact, manifest),
        _made_with(manifest),
    )
    return "\n".join(line for section in sections for line in section).rstrip("\n") + "\n"


def known_licences(source: Source) -> dict[str, Licence]:
    """Of the student, and of the teacher that wrote its labels; of a plain checkpoint only its own."""
    if source.recipe is None:
        return {"base": licence_of(str(source.checkpoint))}
    return {"base": licence_of(source.recipe.student), "teacher": licence_of(source.recipe.teacher)}


def _head(source: Source, artifact: Artifact, licences: dict[str, Licence]) -> Iterator[str]:
    """YAML for the hub: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    from huggingface_hub import ModelCardData

    base, hub_id = licences["base"], _hub_id(source, licences["base"])
    named: dict[str, Any] = {"license_name": base.name, "license_link": base.link or None} if base.name else {}
    data = ModelCardData(
        license=base.id,
        base_model=hub_id,
        base_model_relation="quantized" if hub_id else None,
        pipeline_tag="image-text-to-text",
        library_name=LIBRARY[artifact.format],
        tags=["mpa-edge", *artifact.format.replace("hybrid", "onnx gguf").split(), artifact.model_type],
        **named,
    )
    yield from ("---", data.to_yaml().strip(), "---", "")


def _hub_id(source: Source, base: Licence) -> str | None:
    """Hub id of the model that this one descends from; None where it is a folder of this machine, or built in."""
    if base.model.count("/") == 1:
        return base.model
    readme = source.checkpoint / CARD
    head = front_matter(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else {}
    named = head.get("base_model")
    return named if isinstance(named, str) and named.count("/") == 1 else None


def _introduction(
    source: Source, artifact: Artifact, manifest: ExportManifest, licences: dict[str, Licence]
) -> Iterator[str]:
    bits = ", ".join(f"{part} {precision}" for part, precision in manifest.scheme["components"].items())
    yield f"# {artifact.name}"
    yield ""
    yield f"{TITLES[artifact.format]} ({bits}) of `{licences['base'].model}`, family {source.family.name}."
    if source.recipe is not None:
        yield from _training(source, licences)
    if manifest.target:
        yield f"Made for the target `{manifest.target}`: its image budget and context are in the files."
    yield ""


def _training(source: Source, licences: dict[str, Licence]) -> Iterator[str]:
    recipe, run = source.recipe, source.run
    if recipe is None or run is None:
        return
    counts = {name: _counts(run, name) for name in ("annotate", "identify", "level")}
    yield (
        f"Aligned with Model Parity Alignment (arXiv 2509.16633), recipe `{recipe.name}`: teacher "
        f"`{licences['teacher'].model}` wrote {_n(counts['annotate'], 'annotated')} pseudo labels for "
        f"{_n(counts['annotate'], 'images')} unlabelled pictures; training used the {_n(counts['identify'], 'gap')} "
        f"where only the teacher was right, and {_n(counts['level'], 'replayed')} that both knew. "
        "No human label was used."
    )


def _counts(run: Path, stage: str) -> dict[str, int]:
    manifest = read_manifest(run / FOLDERS[stage])
    return manifest.counts if manifest else {}


def _n(counts: dict[str, int], key: str) -> str:
    return f"{counts[key]:,}" if key in counts else "an unknown number of"


def _licence(licences: dict[str, Licence], folder: Path) -> Iterator[str]:
    yield "## Licence"
    yield ""
    texts = sorted(path.name for pattern in ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*") for path in folder.glob(pattern))
    for role, licence in licences.items():
        what = "the model this one is made from" if role == "base" else "which wrote the training labels"
        where = f", terms: {licence.link}" if licence.link else ""
        yield f"- `{licence.model}`, {what}: {licence.words}{where}"
    if texts:
        yield f"- Text: {', '.join(f'[{name}]({name})' for name in texts)}"
    for licence in licences.values():
        if licence.restriction:
            yield ""
            what = f"the licence of `{licence.model}` ({licence.words}) restricts use"
            yield f"> **Warning:** {what}: {licence.restriction}."
    yield ""


def _accuracy(manifest: ExportManifest) -> Iterator[str]:
    figures = manifest.accuracy
    yield "## Accuracy"
    yield ""
    if figures is None:
        yield "Not measured: `mpa-edge export RUN --accuracy 1000` asks base, aligned and export the same questions."
        yield ""
        return
    low, high = figures.ci95
    yield f"{figures.n:,} held-out questions, strict metric of the task, greedy decoding."
    yield ""
    yield "| Model | Accuracy |"
    yield "|---|---:|"
    yield f"| base, fp32 | {figures.base:.1%} |"
    yield f"| aligned, fp32 | {figures.aligned:.1%} |"
    yield f"| **this export** | **{figures.artifact:.1%}** (95 % interval {low:.1%} to {high:.1%}) |"
    yield ""
    if figures.retained_gain is not None:
        why = "; ".join(figures.reasons)
        yield f"It keeps {figures.retained_gain:.0%} of the gain. Verdict: **{figures.verdict}** ({why})."
        yield ""


def _files(source: Source, manifest: ExportManifest) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| Component | File | Precision | MB | of fp32 |"
    yield "|---|---|---|---:|---:|"
    for part, file in manifest.files.items():
        size = component_bytes(manifest, file.path)
        share = size / full_bytes(source, part)
        bits = manifest.scheme["components"][part]
        yield f"| {part} | `{file.path}` | {bits} | {size / 1e6:,.2f} | {share:.0%} |"
    yield ""
    yield from (f"- {note}" for note in manifest.notes)
    if manifest.notes:
        yield ""


def component_bytes(manifest: ExportManifest, path: str) -> int:
    """Size of a component's file with the weights that lie beside it."""
    return sum(file.bytes for name, file in manifest.outputs.items() if name in (path, f"{path}_data"))


def _parity(manifest: ExportManifest) -> Iterator[str]:
    """Figures of the gate that every export passes."""
    rows = {
        "tokens_equal": "prompt tokens equal",
        "image_tokens_equal": "image tokens equal",
        "vision_cosine_min": "smallest cosine of an image embedding",
        "max_abs_logit_diff": "largest difference of a logit",
        "greedy_prefix": "greedy tokens equal, from the first on",
        "blank_image_changes": "a blank picture changes the answer's logits",
    }
    yield "## Compared with the checkpoint"
    yield ""
    yield "On fixed pictures of three sizes and a batch of two, against the checkpoint in fp32:"
    yield ""
    yield "| Figure | Value |"
    yield "|---|---:|"
    for key, words in rows.items():
        if key in manifest.parity:
            yield f"| {words} | {_value(manifest.parity[key])} |"
    yield ""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}"


def _use(source: Source, artifact: Artifact, manifest: ExportManifest) -> Iterator[str]:
    prompt = source.prompt(QUESTION)
    yield "## How to run it"
    yield ""
    yield "From inside this folder, with a `picture.png` in it."
    yield ""
    for snippet in snippets(artifact, prompt, manifest.scheme["name"]):
        yield from (f"### {snippet.title}", "", snippet.before, "")
        yield from (f"```{snippet.language}", snippet.code.strip("\n"), "```", "")


def _made_with(manifest: ExportManifest) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield "## How it was made"
    yield ""
    yield f"By `mpa-edge export` ({versions}); `manifest.json` holds the sha256 of every file and all figures."
