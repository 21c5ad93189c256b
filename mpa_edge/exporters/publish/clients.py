"""`--client`: a file beside an export for a program that runs it, listed in its manifest as every other file is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mpa_edge.config.scheme import Scheme
    from mpa_edge.exporters.source import Source

FILES = {
    "llama-server": ("llama-server.sh",),
    "ollama": ("Modelfile",),
    "python": ("run.py",),
    "transformers.js": ("run.mjs", "index.html"),
}
"""Client -> files that are written for it."""


def refusal(client: str, scheme: Scheme, source: Source) -> str | None:
    """Why a client cannot run an export, in words that end with what to do; None where it can."""
    from mpa_edge.exporters.publish.ollama import go_template
    from mpa_edge.exporters.publish.snippets import NOT_IN_JAVASCRIPT
    from mpa_edge.exporters.source import generation_config
    from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    if client == "transformers.js":
        if scheme.format != "onnx" or any("qdq" in bits for bits in scheme.components.values()):
            return f"transformers.js does not read {scheme.name}: name another scheme, such as --as onnx-int8"
        if source.config["model_type"] in NOT_IN_JAVASCRIPT:
            return f"transformers.js has no class for {source.family.title}: use --client python"
    if client in ("llama-server", "ollama"):
        if scheme.format != "gguf":
            return f"{client} does not read {scheme.name}: name another scheme, such as --as gguf-q8_0"
        if source.config["model_type"] in READ_BOTH_WAYS:
            return f"{client} reads an image in both directions, {source.family.title} do not: use --client python"
        if generation_config(source.checkpoint).get("repetition_penalty", 1.0) not in (None, 1.0):
            return f"{client} was not tested with the checkpoint's repetition_penalty: use --client python"
    if client == "ollama":
        try:
            go_template(load_processor(str(source.checkpoint)))
        except MpaError as error:
            return str(error)
    return None


def write_clients(source: Source, folder: Path, clients: Iterable[str]) -> None:
    """Write the files of clients into a finished export and its manifest; what is there already stays as it is."""
    from mpa_edge.exporters.publish.manifest import entry, finished
    from mpa_edge.runs.files import write_bytes, write_json
    from mpa_edge.runs.manifest import MANIFEST

    manifest = finished(folder)
    outputs = dict(manifest.outputs)
    for client in clients:
        for name, text in zip(FILES[client], _texts(client, source, folder), strict=True):
            write_bytes(folder / name, text.encode())
            outputs[name] = entry(folder, name)
    if outputs != manifest.outputs:
        write_json(folder / MANIFEST, manifest.model_copy(update={"outputs": outputs}))


def _texts(client: str, source: Source, folder: Path) -> tuple[str, ...]:
    """Contents of the files of a client."""
    from mpa_edge.artifact import read_artifact
    from mpa_edge.exporters.publish import snippets
    from mpa_edge.exporters.publish.card import QUESTION
    from mpa_edge.exporters.publish.ollama import modelfile
    from mpa_edge.vlm.transformers.checkpoint import load_processor

    artifact, prompt = read_artifact(folder), source.prompt(QUESTION)
    if client == "llama-server":
        return (snippets.llama_server_snippet(artifact).code,)
    if client == "ollama":
        return (modelfile(load_processor(str(source.checkpoint)), artifact, folder),)
    if client == "python":
        return (snippets.mpa_edge_snippet(artifact, prompt, artifact.scheme).code,)
    in_node = snippets.javascript_snippet(artifact, prompt, artifact.scheme).code
    return in_node, snippets.browser_page(artifact, QUESTION)
