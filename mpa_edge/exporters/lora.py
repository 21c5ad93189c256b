"""`--as gguf-lora`: what a LoRA tuning changed as llama.cpp's adapter, to be shipped to a device that has the base."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mpa_edge.config.library import load_scheme
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.exporters import adapter as incoming
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.lora import adapter_problem, convert_adapter
from mpa_edge.exporters.pipeline import BUILDING, LIBRARIES, OLD, Order, check_possible, parts_inputs, publish
from mpa_edge.exporters.publish.layout import file_name, write_layout
from mpa_edge.exporters.publish.licences import licence_of
from mpa_edge.exporters.publish.manifest import CARD, FileEntry, entry
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify.gate import base_of, verify
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, read_json, require_free, sha256_file, sha256_json, write_bytes, write_json
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.log import versions
from mpa_edge.runs.manifest import MANIFEST, prepare
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.paths import inside, remove, require_plain
from mpa_edge.types import Record
from mpa_edge.vlm import fingerprint
from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS
from mpa_edge.vlm.transformers.adapter import Adapter, adapter_files
from mpa_edge.vlm.transformers.files import ADAPTER

SCRATCH = ".base"
NAME, FILE, LIKE = "gguf-lora", "adapter-f16.gguf", "gguf-f16"
"""The name for `--as`, its file, and the scheme that base and adapter together are held to."""


class AdapterManifest(Record):
    """manifest.json of an adapter. Written last: a folder without one is not finished."""

    schema_version: Literal[1] = 1
    """Of this document."""
    stage: Literal["export-adapter"] = "export-adapter"
    """No model is in the folder."""
    inputs: dict[str, str]
    """Everything the file depends on: name -> sha256."""
    base: str
    """The model that it was made for: its name on the hub, or that of its folder."""
    base_sha256: str
    """Identity of the base's files (`vlm.fingerprint`)."""
    adapter: FileEntry
    """The file."""
    parity: dict[str, Any]
    """Base and adapter in llama.cpp, both in 16 bits, compared with the merged checkpoint."""
    parity_details: dict[str, Any]
    """What lies behind the figures."""
    versions: dict[str, str]
    """Python, mpa-edge and the libraries that did the work."""
    seconds: float
    """Wall seconds."""
    peak_rss_bytes: int
    """Largest resident memory of any process."""


def adapter_of(source: Source) -> tuple[Source, Adapter]:
    """(base, adapter in its names) of a run or an adapter folder.

    MpaError where there is none, or llama.cpp cannot apply it while it runs.
    """
    base = base_of(source)
    if source.adapter is None or base is None:
        raise MpaError(
            f"{source.name} has no LoRA adapter beside its base: --as {NAME} takes a run that was tuned with LoRA, or "
            "the folder of an adapter"
        )
    found = incoming.read(source.adapter, base)
    if problem := adapter_problem(found):
        raise MpaError(f"{problem}: export the merged model instead, for example --as gguf-q8_0")
    made_for = Source(source.name, base, source.exports)
    if made_for.config["model_type"] in READ_BOTH_WAYS:
        raise MpaError(
            f"llama.cpp's programs, which would apply the adapter, read images of {made_for.family.title} in both "
            f"directions: export the merged model, for example --as gguf-q8_0 --client python"
        )
    return made_for, found


def export_adapter(order: Order) -> Path:
    """Write the adapter's folder, when base and adapter together answer as the merged checkpoint does; returns it.

    MpaError as in `adapter_of`; VerificationError where they answer in another way.
    """
    source, exports, started = order.source, order.source.exports, time.monotonic()
    check_possible(source, load_scheme(LIKE), order.budget)
    base, found = adapter_of(source)
    final, building = exports / NAME, exports / f"{BUILDING}{NAME}"
    for name in (NAME, building.name, f"{OLD}{NAME}"):
        require_plain(inside(exports, name))
    folder = source.adapter or Path()
    inputs = parts_inputs(order) | {
        "adapter": sha256_json({path.name: sha256_file(path) for path in (folder / ADAPTER, *adapter_files(folder))}),
        "base": fingerprint(str(base.checkpoint)),
    }
    with run_lock(exports):
        before = read_adapter_manifest(final)
        if before and not order.fresh and before.inputs == inputs and before.adapter.is_in(final):
            say(f"{NAME}: done before, nothing changed")
            return final
        require_free(exports, 3 * source.weights_bytes)
        prepare(building, inputs, order.fresh)
        try:
            peak_bytes = convert_adapter(base, found, building / FILE)
            parity, details = _compare(order, base, building / FILE, make_folder(building / SCRATCH))
        except VerificationError:
            remove(building)  # no file of a wrong export stays
            raise
        finally:
            remove(building / SCRATCH, quietly=True)
        manifest = AdapterManifest(
            inputs=inputs,
            base=licence_of(source.recipe.student if source.recipe else str(base.checkpoint)).model,
            base_sha256=inputs["base"],
            adapter=entry(building, FILE),
            parity=parity,
            parity_details=details,
            versions=versions(*LIBRARIES),
            seconds=round(time.monotonic() - started, 3),
            peak_rss_bytes=max(peak_bytes, peak_rss_bytes()),
        )
        write_bytes(building / CARD, _card(source, manifest).encode())
        write_json(building / MANIFEST, manifest)
        publish(building, final)
    say(f"{NAME}: verified in {time.monotonic() - started:.0f} s")
    return final


def _compare(order: Order, base: Source, file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the gate for the base in 16 bits with the adapter attached, against the merged checkpoint."""
    scheme = load_scheme(LIKE)
    named = scheme.model_copy(update={"name": NAME})
    order.references  # noqa: B018  # a model that cannot answer is not built
    say(f"{NAME}: the base in 16 bits, to compare with")
    convert(base, "language", folder / file_name("gguf", "language", "f16"))
    convert(order.source, "mmproj", folder / file_name("gguf", "mmproj", "f16"), budget=order.budget)
    write_layout(order.source, scheme, folder, order.budget, order.context_tokens, order.device_threads)
    parity, details = verify(order.source, folder, named, order.budget, order.threads, order.references, adapter=file)
    return parity.model_dump(mode="json"), details.model_dump(mode="json")


def read_adapter_manifest(folder: Path) -> AdapterManifest | None:
    """The manifest of an adapter; None where it is missing or damaged."""
    try:
        return AdapterManifest.model_validate(read_json(folder / MANIFEST))
    except ValidationError:
        return None


def report_of(folder: Path) -> dict[str, Any]:
    """What `--json` prints."""
    manifest = read_adapter_manifest(folder)
    if manifest is None:
        raise MpaError(f"{folder} is not a finished adapter: run mpa-edge export first")
    return {
        "scheme": NAME,
        "path": str(folder),
        "base": manifest.base,
        "base_sha256": manifest.base_sha256,
        "files": {"adapter": manifest.adapter.model_dump(mode="json")},
        "parity": manifest.parity,
        "seconds": manifest.seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
    }


def _card(source: Source, manifest: AdapterManifest) -> str:
    """README.md: what it belongs to, and how it is run."""
    return f"""# {source.name}-{NAME}

A LoRA adapter for llama.cpp, of `{manifest.base}` ({source.family.title}), {manifest.adapter.bytes / 1e6:,.2f} MB. It
holds no model: the device needs the base's GGUF pair, `mpa-edge export BASE --as gguf-q8_0` with the checkpoint whose
`base_sha256` is in `manifest.json`. The licence of the base applies.

```sh
llama-server -m model-q8_0.gguf --mmproj mmproj-q8_0.gguf --lora {FILE}
```

In 16 bits, base and adapter differ from the merged checkpoint by a mean KL divergence of {manifest.parity["kl"]:.2g}
nats of the next token's probabilities; {manifest.parity["greedy_prefix"]:.0%} of greedy tokens are the same.
"""
