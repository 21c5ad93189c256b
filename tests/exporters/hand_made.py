"""A finished export without a model in it: a few bytes in each file, everything that is written about them true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpa_edge.artifact import Artifact, PromptParts, Tokens, write_artifact
from mpa_edge.config.scheme import Scheme
from mpa_edge.exporters.publish.layout import file_name
from mpa_edge.exporters.publish.manifest import (
    AccuracyFigures,
    ExportManifest,
    entry,
    outputs_of,
)
from mpa_edge.runs.files import write_json
from mpa_edge.runs.manifest import MANIFEST

PARITY = {
    "tokens_equal": True,
    "image_tokens_equal": True,
    "vision_cosine_min": 0.99912,
    "kl": 0.0125,
    "max_abs_logit_diff": 0.25,
    "greedy_prefix": 0.9375,
    "blank_image_changes": True,
}
ACCURACY = AccuracyFigures(
    base=0.493,
    aligned=0.683,
    artifact=0.677,
    n=1000,
    ci95=(0.648, 0.706),
    loss_upper=0.012,
    retained_gain=0.968421,
    verdict="holds",
    reasons=("more than 50% of the gain is left, with 95 % confidence",),
    questions_sha256="0" * 64,
)


def artifact_of(scheme: Scheme, **changes: Any) -> Artifact:
    files = {part: file_name(scheme.format, part, bits) for part, bits in scheme.components.items()}
    values: dict[str, Any] = {
        "name": f"mine-{scheme.name}",
        "scheme": scheme.name,
        "format": scheme.format,
        "family": "smolvlm",
        "model_type": "idefics3",
        "files": files,
        "prompt": PromptParts(before="<image>", after="", placeholder="<image>"),
        "tokens": Tokens(image="<image>", image_id=5, ends=(6, 2), special=("<image>",)),
        "image": {"kind": "idefics3"},
        "text": {"hidden_size": 256},
        "context_tokens": 2048,
    }
    return Artifact(**(values | changes))


def manifest_of(scheme: Scheme, folder: Path, **changes: Any) -> ExportManifest:
    files = {part: file_name(scheme.format, part, bits) for part, bits in scheme.components.items()}
    values: dict[str, Any] = {
        "inputs": {"checkpoint": "0" * 64},
        "scheme": scheme.model_dump(mode="json"),
        "target": "cpu",
        "files": {part: entry(folder, name) for part, name in files.items()},
        "outputs": outputs_of(folder),
        "notes": ("vision: 3 of 28 weights stay fp32",),
        "parity": PARITY,
        "parity_details": {},
        "versions": {"mpa-edge": "0.1.0", "onnxruntime": "1.31.1"},
        "seconds": 12.5,
        "peak_rss_bytes": 10**9,
    }
    return ExportManifest(**(values | changes))


def export(folder: Path, scheme: Scheme, **changes: Any) -> Path:
    """Weights of some bytes, artifact.json, a card, and manifest.json."""
    for part, bits in scheme.components.items():
        path = folder / file_name(scheme.format, part, bits)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{part} {bits}".encode() * 200)
    write_artifact(folder, artifact_of(scheme))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n", encoding="utf-8")
    write_json(folder / MANIFEST, manifest_of(scheme, folder, **changes))
    return folder
