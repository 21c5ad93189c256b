"""The gate: an export that is not the same model as its checkpoint does not pass, and every reason is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MachineError, MpaError, VerificationError
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify.parity import (
    Compared,
    Mismatch,
    Pair,
    Parity,
    ParityDetails,
    compare,
    compare_with_base,
)
from mpa_edge.exporters.verify.probes import probes
from mpa_edge.exporters.verify.reference import ProbeTrace, trace_checkpoint
from mpa_edge.progress import say
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.vlm import fingerprint, resolve
from mpa_edge.vlm.transformers.files import download

if TYPE_CHECKING:
    from mpa_edge.config.scheme import Scheme
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.types import Trace

HEADLINES: dict[Mismatch, str] = {
    "none": "it answers as another model does",
    "input": "input mismatch: what reaches the model is not what the checkpoint's processor makes",
    "execution": "execution mismatch: from the same input the export computes something else",
    "unknown": "the runtime hides its input, so it may be the input or the execution",
}
NOT_RUN = "its runtime cannot run it"
OTHER_PIXELS = "pixels: the vision encoder is given other numbers than the checkpoint's image processor makes"
References = tuple[list[ProbeTrace], list[ProbeTrace] | None]
"""Traces of the checkpoint, and of the student before it was aligned; None where that cannot be loaded."""


def trace_references(source: Source, budget: ImageBudget | None, threads: int | None) -> References:
    """Run the checkpoint and its base model on the probes, each in a process of its own."""
    aligned = run_isolated(trace_checkpoint, source, budget, threads, threads=threads)[0]
    base = base_of(source)
    if base is None or fingerprint(str(base)) == source.fingerprint:
        return aligned, None
    try:
        before = replace(source, checkpoint=base)
        return aligned, run_isolated(trace_checkpoint, before, budget, threads, threads=threads)[0]
    except MachineError:
        raise
    except MpaError as error:
        say(f"{source.name}: not compared with the base model ({error})")
        return aligned, None


def verify(
    source: Source,
    folder: Path,
    scheme: Scheme,
    budget: ImageBudget | None,
    threads: int | None,
    references: References,
) -> tuple[Parity, ParityDetails]:
    """Compare an exported folder with its checkpoint on images of three sizes, alone and in a batch.

    `references` are the checkpoint's side (`trace_references`), the same for every scheme. Raises VerificationError
    with every reason where the export is not the same model, and MachineError where this machine cannot run it.
    """
    aligned, base = references
    try:
        traces, fixed = run_isolated(trace_export, source, folder, budget, threads, aligned, threads=threads)[0]
    except MachineError:
        raise
    except (MpaError, RuntimeError) as error:  # a runtime's own exception arrives from its process as a RuntimeError
        raise failure(source, scheme, NOT_RUN, [f"run: {error}"]) from error
    image_id = int(source.config.get("image_token_id", source.config.get("image_token_index", -1)))
    originals = [one.trace for one in aligned]
    compared = compare([*map(Pair, originals, traces)], scheme.tolerance, image_id)
    reasons = [OTHER_PIXELS] if compared.details.pixels_equal is False else []
    reasons += compared.reasons
    positions: dict[str, float] = {}
    if base is not None:
        positions, found = compare_with_base(originals[:-1], [one.trace for one in base[:-1]], traces[:-1])
        reasons += found
    if reasons:
        with_its_pixels = compare([*map(Pair, originals, fixed)], scheme.tolerance, image_id) if fixed else None
        raise failure(source, scheme, HEADLINES[mismatch(compared, with_its_pixels)], reasons)
    return compared.parity, compared.details.model_copy(update={"toward_aligned": positions})


def mismatch(compared: Compared, fixed: Compared | None) -> Mismatch:
    """Where the difference comes from. `fixed`: the same from the checkpoint's own pixels, where that was tried.

    Different prompt tokens are a different input whatever the pixels are. Otherwise the execution is to blame where the
    export differs although its pixels are equal or were made equal, and the input where that fixed it. Where a runtime
    hides its pixels, equal image embeddings prove that they were right.
    """
    parity, pixels_equal = compared.parity, compared.details.pixels_equal
    if not compared.reasons and pixels_equal is not False:
        return "none"
    if not (parity.tokens_equal and parity.image_tokens_equal):
        return "input"
    if pixels_equal is False:
        return "unknown" if fixed is None else "execution" if fixed.reasons else "input"
    return "execution" if pixels_equal or compared.vision_equal else "unknown"


def failure(source: Source, scheme: Scheme, headline: str, reasons: list[str]) -> VerificationError:
    """The error of an export that is not the same model: a headline, a line for each reason, what to do."""
    listed = "\n".join(f"  {reason}" for reason in reasons)
    return VerificationError(
        f"{scheme.name} of {source.name} is not the model it was made from; {headline}\n{listed}\n"
        "nothing was exported: rerun with --fresh; if it fails again, choose a scheme with more bits and report this"
    )


# --- the export, in a process of its own ------------------------------------------------------------------------------


def trace_export(
    source: Source, folder: Path, budget: ImageBudget | None, threads: int | None, known: list[ProbeTrace]
) -> tuple[list[Trace], list[Trace] | None]:
    """Run an exported folder on the probes, and again from the checkpoint's own pixels.

    The second run is None where the pixels were equal, or where the runtime hides them or cannot take them.
    """
    from mpa_edge.vlm import load

    artifact = read_artifact(folder)
    batches = probes(source.image_values(budget), source.prompt, artifact.tokens.image)
    model: Any = load(str(folder), name=artifact.name, threads=threads)
    try:
        traces = [trace for batch in batches for trace in model.trace(batch)]
        if all(ours.pixels_sha256 in (None, one.trace.pixels_sha256) for ours, one in zip(traces, known, strict=True)):
            return traces, None
        pixels = iter([one.pixels for one in known])
        try:
            return traces, [trace for batch in batches for trace in model.trace(batch, [next(pixels) for _ in batch])]
        except MpaError:
            return traces, None
    finally:
        model.close()


def base_of(source: Source) -> Path | None:
    """Folder of the student before it was aligned; None for a plain checkpoint, or where the files are gone."""
    if source.recipe is None:
        return None
    student = resolve(source.recipe.student)
    if Path(student).is_dir():
        return Path(student)
    try:
        return download(student, local_only=True)
    except MpaError:
        return None
