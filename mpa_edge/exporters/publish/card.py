"""README.md of an export: what it is, what it was made from, how good it is, its licence, how to run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mpa_edge.artifact import Artifact
from mpa_edge.exporters.publish.licences import Licence, front_matter, licence_of
from mpa_edge.exporters.publish.manifest import CARD, ExportManifest, component_bytes, read_export_manifest
from mpa_edge.exporters.publish.snippets import snippets
from mpa_edge.exporters.sizes import fp32_bytes
from mpa_edge.exporters.source import Source
from mpa_edge.questions import measure_of
from mpa_edge.questions.own import SILVER_NOTE
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.manifest import FOLDERS, read_manifest

QUESTION = "What is shown?"
UNMEASURED = "not measured"
HALF = {"onnx": "onnx-fp16", "gguf": "gguf-f16"}
"""Format -> its scheme in 16 bits."""
SAME_MODEL = ("checkpoint", "image budget")
LIBRARY = {"onnx": "transformers.js", "gguf": "gguf", "hybrid": "mpa-edge"}
TITLES = {"onnx": "ONNX", "gguf": "GGUF", "hybrid": "ONNX vision encoder and GGUF language model"}
PARITY = {
    "tokens_equal": "prompt tokens equal",
    "image_tokens_equal": "image tokens equal",
    "vision_cosine_min": "smallest cosine of an image embedding",
    "kl": "mean KL divergence of the next token's probabilities, nats",
    "max_abs_logit_diff": "largest difference of a logit",
    "greedy_prefix": "greedy tokens equal, from the first on",
    "blank_image_changes": "a blank image changes the answer's logits",
}


def write_card(source: Source, artifact: Artifact, manifest: ExportManifest, folder: Path) -> None:
    """Write README.md into the folder of an export; called again when its accuracy was measured."""
    write_bytes(folder / CARD, card(source, artifact, manifest, folder).encode())


def card(source: Source, artifact: Artifact, manifest: ExportManifest, folder: Path) -> str:
    """The whole text."""
    if source.recipe is None:
        licences = {"base": licence_of(str(source.checkpoint))}
    else:
        licences = {"base": licence_of(source.recipe.student), "teacher": licence_of(source.recipe.teacher)}
    precisions = manifest.scheme["components"]
    listed = ", ".join(f"{component} {precision}" for component, precision in precisions.items())
    of = f"of `{licences['base'].model}`, family {source.family.name}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    figures = "`manifest.json` holds the sha256 of every file and all figures"
    sections: tuple[Iterable[str], ...] = (
        [*_front_matter(source, artifact, licences["base"]), f"# {artifact.name}", ""],
        [f"{TITLES[artifact.format]} ({listed}) {of}.", *_training(source, manifest, licences), ""],
        ["## Licence", "", *_licence(licences, folder), ""],
        [f"## {_measure(manifest)}", "", *_accuracy(manifest), *_refused(manifest), ""],
        ["## Lost at each step", "", *_steps(artifact, manifest, folder), ""],
        ["## Files", "", *_files(source, manifest)],
        ["## Compared with the checkpoint", "", *_parity(manifest), ""],
        ["## How to run it", "", "From inside this folder, with an `image.png` in it.", ""],
        snippets(artifact, source.prompt(QUESTION), manifest.scheme["name"]),
        ["## How it was made", "", f"By `mpa-edge export` ({versions}); {figures}."],
    )
    return "\n".join(line for section in sections for line in section).rstrip("\n") + "\n"


def _front_matter(source: Source, artifact: Artifact, base: Licence) -> Iterator[str]:
    """YAML for the hub: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    from huggingface_hub import ModelCardData

    # hub id of the model that this one was made from; None for a folder of this machine, or a built-in model
    hub_id: Any = base.model
    if base.model.count("/") != 1:
        readme = source.checkpoint / CARD
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        hub_id = front_matter(text).get("base_model")
    if not isinstance(hub_id, str) or hub_id.count("/") != 1:
        hub_id = None
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


def _training(source: Source, manifest: ExportManifest, licences: dict[str, Licence]) -> Iterator[str]:
    if source.recipe is not None and source.run is not None:

        def count(stage: str, key: str) -> str:
            done = read_manifest((source.run or Path()) / FOLDERS[stage])
            return f"{done.counts[key]:,}" if done and key in done.counts else "an unknown number of"

        yield (
            f"Aligned with Model Parity Alignment (arXiv 2509.16633), recipe `{source.recipe.name}`: the teacher "
            f"`{licences['teacher'].model}` wrote {count('annotate', 'annotated')} pseudo labels for "
            f"{count('annotate', 'images')} unlabelled images; training used the {count('identify', 'gap')} that only "
            f"the teacher answered correctly, and {count('level', 'replayed')} that both did. "
            "No human label was used."
        )
    if manifest.target:
        yield f"Made for the target `{manifest.target}`: its image budget and context are in the files."


def _licence(licences: dict[str, Licence], folder: Path) -> Iterator[str]:
    for role, licence in licences.items():
        what = "the model this one is made from" if role == "base" else "which wrote the training labels"
        where = f", terms: {licence.link}" if licence.link else ""
        yield f"- `{licence.model}`, {what}: {licence.title}{where}"
    texts = sorted(path.name for pattern in ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*") for path in folder.glob(pattern))
    if texts:
        yield f"- Text: {', '.join(f'[{name}]({name})' for name in texts)}"
    for licence in licences.values():
        if licence.restriction:
            what = f"the licence of `{licence.model}` ({licence.title}) restricts use"
            yield from ("", f"> **Warning:** {what}: {licence.restriction}.")


def _measure(manifest: ExportManifest) -> str:
    return measure_of(manifest.accuracy.truth if manifest.accuracy else "labels").capitalize()


def _accuracy(manifest: ExportManifest) -> Iterator[str]:
    figures = manifest.accuracy
    if figures is None:
        yield "Not measured: `mpa-edge export RUN --accuracy 1000` asks base, aligned and export the same questions."
        return
    low, high = figures.ci95
    yield f"{figures.n:,} held-out questions, strict metric of the task, greedy decoding."
    if figures.truth == "teacher":
        yield f"These figures are {SILVER_NOTE}."
    if figures.review:
        yield (
            f"True accuracies, estimated from the agreement with the teacher and {figures.review.n_reviewed} reviewed "
            f"questions ({figures.review.method})."
        )
    yield from ("", f"| Model | {measure_of(figures.truth).capitalize()} |", "|---|---:|")
    yield f"| base, fp32 | {figures.base:.1%} |"
    yield f"| aligned, fp32 | {figures.aligned:.1%} |"
    yield f"| **this export** | **{figures.artifact:.1%}** (95 % interval {low:.1%} to {high:.1%}) |"
    if figures.retained_gain is not None:
        why = "; ".join(figures.reasons)
        yield ""
        yield f"It keeps {figures.retained_gain:.0%} of the gain. Verdict: **{figures.verdict}** ({why})."


def _steps(artifact: Artifact, manifest: ExportManifest, folder: Path) -> Iterator[str]:
    """From the checkpoint to 16 bits to the scheme; the former from the 16-bit export of this checkpoint beside it."""
    half = HALF.get(artifact.format)
    found = read_export_manifest(folder.parent / half) if half else None
    if found is not None and any(found.inputs.get(key) != manifest.inputs.get(key) for key in SAME_MODEL):
        found = None
    whole, first = manifest.accuracy, found.accuracy if found else None
    same = whole and first and whole.questions_sha256 == first.questions_sha256

    def row(step: str, kl: Any, lost: float | None, n: int) -> str:
        cells = (UNMEASURED, "") if lost is None else (f"{100 * lost:+.1f}", f"{n:,}")
        return f"| {step} | {UNMEASURED if kl is None else f'{kl:.2g}'} | {' | '.join(cells)} |"

    yield from ("| Step | KL, nats | Lost, points | Questions |", "|---|---:|---:|---:|")
    if artifact.scheme != half:
        kl = found.parity.get("kl") if found else None
        yield row(
            "checkpoint to 16 bits", kl, first.aligned - first.artifact if first else None, first.n if first else 0
        )
        between = first.artifact - whole.artifact if same and first and whole else None
        yield row(f"16 bits to {artifact.scheme}", None, between, whole.n if whole else 0)
    lost = whole.aligned - whole.artifact if whole else None
    yield row(f"checkpoint to {artifact.scheme}", manifest.parity.get("kl"), lost, whole.n if whole else 0)


def _refused(manifest: ExportManifest) -> Iterator[str]:
    if not manifest.refused:
        return
    yield from (
        "",
        "Schemes that were tried before this one:",
        "",
        f"| Scheme | {_measure(manifest)} | Refused because |",
        "|---|---:|---|",
    )
    for one in manifest.refused:
        accuracy = f"{one.accuracy.artifact:.1%}" if one.accuracy else "not measured"
        yield f"| {one.scheme} | {accuracy} | {' '.join(one.reason.split())} |"


def _files(source: Source, manifest: ExportManifest) -> Iterator[str]:
    yield from ("| Component | File | Precision | MB | of fp32 |", "|---|---|---|---:|---:|")
    for component, file in manifest.files.items():
        size_bytes = component_bytes(manifest, component)
        share = size_bytes / fp32_bytes(source, component)
        precision = manifest.scheme["components"][component]
        yield f"| {component} | `{file.path}` | {precision} | {size_bytes / 1e6:,.2f} | {share:.0%} |"
    yield ""
    if manifest.notes:
        yield from (*(f"- {note}" for note in manifest.notes), "")


def _parity(manifest: ExportManifest) -> Iterator[str]:
    """Figures of the gate that every export passes."""
    yield "On fixed images, a batch of two and an English text, against the checkpoint in fp32:"
    yield from ("", "| Figure | Value |", "|---|---:|")
    for key, words in PARITY.items():
        value = manifest.parity.get(key)
        if value is not None:
            yield f"| {words} | {('no', 'yes')[value] if isinstance(value, bool) else f'{value:.5g}'} |"
