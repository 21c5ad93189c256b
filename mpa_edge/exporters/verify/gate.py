"""The gate: an export that is not the same model as its checkpoint does not get through, and its reasons are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MpaError, VerificationError
from mpa_edge.exporters.budget import image_values
from mpa_edge.exporters.source import DOWNLOADED, Source
from mpa_edge.exporters.verify.census import Census, faults, summary, take_census
from mpa_edge.exporters.verify.parity import Compared, Mismatch, Pair, Parity, ParityDetails, compare
from mpa_edge.exporters.verify.probes import Probes, probes
from mpa_edge.exporters.verify.reference import Reference, read_reference, reference
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.vlm import resolve

if TYPE_CHECKING:
    from mpa_edge.artifact import Artifact
    from mpa_edge.config.scheme import Scheme, Tolerance
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.types import Trace, TraceableVLM

HEADLINES: dict[Mismatch, str] = {
    "none": "weights are not what they must be",
    "input": "input mismatch: what reaches the model is not what the checkpoint's processor makes",
    "execution": "execution mismatch: from the same input the export computes something else",
    "unknown": "the runtime hides its input, so it may be the input or the execution",
}
NOT_RUN = "its runtime cannot run it"
OTHER_PIXELS = (
    "pixels: the numbers that the vision encoder is given are others than the checkpoint's image processor makes"
)


@dataclass(frozen=True)
class Traced:
    """What an export did on the probes."""

    probes: list[Trace]
    """One for each coloured probe."""
    blanks: list[Trace]
    """One for each greyed probe."""
    fixed: tuple[list[Trace], list[Trace]] | None
    """Both again, from the checkpoint's own pixels; None where its own were equal, or are hidden."""


def verify(
    source: Source, folder: Path, scheme: Scheme, budget: ImageBudget | None, threads: int | None, parts: Path
) -> tuple[Parity, ParityDetails]:
    """Compare an exported folder with its checkpoint on pictures of three sizes, alone and in a batch, and by weights.

    The checkpoint's side is kept in `parts` for the next scheme. Raises VerificationError with every reason.
    """
    artifact = read_artifact(folder)
    truth = reference(source, budget, artifact.tokens.image, threads, parts)
    reasons, found = weigh(source, folder, artifact, threads)
    try:
        traced = run_isolated(trace_export, source, folder, budget, threads, truth, threads=threads)[0]
    except (MpaError, RuntimeError) as error:  # a runtime's own exception comes from its process as a RuntimeError
        if not_its_fault(error):
            raise
        raise failure(source, scheme, NOT_RUN, [f"run: {error}", *reasons]) from error
    known = read_reference(truth)
    if known is None:
        raise MpaError(f"{truth} cannot be read back: check the disk and run the same command again")
    return judge(source, scheme, known, traced, found, reasons)


def weigh(source: Source, folder: Path, artifact: Artifact, threads: int | None) -> tuple[list[str], Census]:
    """What is wrong with the weights, and what was counted."""
    try:
        census = run_isolated(census_of, source, folder, artifact, threads=threads)[0]
    except MpaError as error:
        if not_its_fault(error):
            raise
        return [f"weights: {error}"], {}
    return faults(census, artifact.files), census


def not_its_fault(error: Exception) -> bool:
    """Whether the machine is at fault: memory, disk or packages say nothing about the export.

    >>> not_its_fault(MpaError("trace_export was killed, most likely because memory ran out: free memory"))
    True
    """
    return any(word in str(error) for word in ("out of memory", "memory ran out", "disk full", "pip install"))


def judge(
    source: Source, scheme: Scheme, known: Reference, traced: Traced, census: Census, reasons: list[str]
) -> tuple[Parity, ParityDetails]:
    """Figures of an export that is right. Raises VerificationError for one that is not."""
    image_id = image_token_id(source.config)
    compared = compared_with(known, traced.probes, traced.blanks, scheme.tolerance, image_id)
    again = compared_with(known, *traced.fixed, scheme.tolerance, image_id) if traced.fixed else None
    where = mismatch(compared, again)
    pixels = [OTHER_PIXELS] if compared.details.pixels_equal is False else []
    if everything := [*pixels, *compared.reasons, *reasons]:
        raise failure(source, scheme, HEADLINES[where], everything)
    return compared.parity, compared.details.model_copy(update={"census": summary(census)})


def compared_with(
    known: Reference, traces: list[Trace], blanks: list[Trace], tolerance: Tolerance, image_id: int
) -> Compared:
    """The export's traces beside the checkpoint's."""
    pairs = [Pair(seen.trace, trace) for seen, trace in zip(known.probes, traces, strict=True)]
    greyed = [(0, Pair(seen.trace, trace)) for seen, trace in zip(known.blanks, blanks, strict=True)]
    return compare(pairs, greyed, tolerance, image_id)


def mismatch(compared: Compared, again: Compared | None) -> Mismatch:
    """Where the difference comes from. `again`: the same from the checkpoint's own pixels, where that was tried.

    Other prompt tokens are another input whatever the pixels are. Otherwise the export is blamed where it differs
    although its pixels are equal or were made equal, and the input where that mended it. Where a runtime hides its
    pixels, equal embeddings prove that they were right.
    """
    parity, details = compared.parity, compared.details
    if not compared.reasons and details.pixels_equal is not False:
        return "none"
    if not (parity.tokens_equal and parity.image_tokens_equal):
        return "input"
    if details.pixels_equal is False:
        return "unknown" if again is None else "execution" if again.reasons else "input"
    if details.pixels_equal or not any(reason.startswith("vision") for reason in compared.reasons):
        return "execution"
    return "unknown"


def failure(source: Source, scheme: Scheme, headline: str, reasons: list[str]) -> VerificationError:
    """The error of an export that is not the same model: a headline, a line for each reason, what to do."""
    listed = "\n".join(f"  {reason}" for reason in reasons)
    return VerificationError(
        f"{scheme.name} of {source.name} is not the model it was made from; {headline}\n{listed}\n"
        "nothing was exported: run again with --fresh, and if it stays, choose a scheme with more bits and report this"
    )


def image_token_id(config: dict[str, Any]) -> int:
    """Id of the token that stands for one image embedding, as the checkpoint names it."""
    return int(config.get("image_token_id", config.get("image_token_index", -1)))


# --- steps in a process of their own ----------------------------------------------------------------------------------


def trace_export(source: Source, folder: Path, budget: ImageBudget | None, threads: int | None, truth: Path) -> Traced:
    """Run an exported folder on the probes, and where its pixels are others than the checkpoint's, from those too."""
    from mpa_edge.vlm import load

    image, artifact = image_values(source.checkpoint, budget), read_artifact(folder)
    asked = probes(image, source.prompt, artifact.tokens.image)
    known = read_reference(truth)
    model: Any = load(str(folder), name=artifact.name, threads=threads)
    try:
        traces = [trace for batch in asked.batches for trace in model.trace(batch)]
        blanks = [model.trace([request])[0] for _, request in asked.blanks]
        fixed = traced_from(model, asked, known) if known and others(traces, known) else None
    finally:
        model.close()
    return Traced(traces, blanks, fixed)


def others(traces: list[Trace], known: Reference) -> bool:
    """Whether an export was given other pixels than its checkpoint; False where a runtime hides them."""
    pairs = zip(traces, known.probes, strict=True)
    return any(trace.pixels_sha256 not in (None, seen.trace.pixels_sha256) for trace, seen in pairs)


def traced_from(model: TraceableVLM, asked: Probes, known: Reference) -> tuple[list[Trace], list[Trace]] | None:
    """Coloured and greyed probes from the checkpoint's own pixels; None where the runtime cannot take them."""
    pixels = [seen.pixels for seen in known.probes]
    traces: list[Trace] = []
    try:
        for batch in asked.batches:
            traces += model.trace(batch, pixels[len(traces) : len(traces) + len(batch)])
        greyed = zip(asked.blanks, known.blanks, strict=True)
        return traces, [model.trace([request], [seen.pixels])[0] for (_, request), seen in greyed]
    except MpaError:
        return None


def census_of(source: Source, folder: Path, artifact: Artifact) -> Census:
    """Compare the weights of an exported folder with its checkpoint's, and with those before the alignment."""
    return take_census(folder, artifact.files, source.checkpoint, source.config, base_of(source))


def base_of(source: Source) -> Path | None:
    """The student before it was aligned; None for a plain checkpoint, or where its files are no longer here."""
    if source.recipe is None:
        return None
    reference_ = resolve(source.recipe.student)
    if Path(reference_).is_dir():
        return Path(reference_)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference_, local_files_only=True, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, MpaError):
        return None
