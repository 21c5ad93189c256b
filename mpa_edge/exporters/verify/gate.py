"""The gate: an export that is not the same model as its checkpoint does not pass, and every reason is named."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import read_artifact
from mpa_edge.errors import MachineError, MpaError, NotFiniteError, VerificationError
from mpa_edge.exporters.gguf.template import template_problem
from mpa_edge.exporters.source import Source
from mpa_edge.exporters.verify.parity import (
    DECODER,
    PIXELS,
    TEMPLATE,
    VISION,
    Compared,
    Mismatch,
    Pair,
    Parity,
    ParityDetails,
    Reason,
    compare,
    compare_with_base,
)
from mpa_edge.exporters.verify.probes import probes
from mpa_edge.exporters.verify.reference import CheckpointTraces, trace_checkpoint
from mpa_edge.progress import say
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.vlm import fingerprint, resolve
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.transformers.files import download

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mpa_edge.config.scheme import Component, Scheme
    from mpa_edge.config.target import ImageBudget
    from mpa_edge.types import Trace

HEADLINES: dict[Mismatch, str] = {
    "none": "it answers as another model does",
    "input": "input mismatch: what reaches the model is not what the checkpoint's processor makes",
    "execution": "execution mismatch: from the same input the export computes something else",
    "unknown": "the runtime hides its input, so it may be the input or the execution",
}
NOT_RUN = "its runtime cannot run it"
RUNTIME = "runtime"
OTHER_PIXELS = Reason(PIXELS, "the vision encoder is given other numbers than the checkpoint's image processor makes")
PARTS: dict[str, tuple[Component, ...]] = {VISION: ("vision", "mmproj"), DECODER: ("decoder", "language")}
References = tuple[CheckpointTraces, CheckpointTraces | None]
"""Traces of the checkpoint, and of the student before it was aligned; None where that cannot be loaded."""


def trace_references(source: Source, budget: ImageBudget | None, threads: int | None) -> References:
    """Run the checkpoint and its base model on the probes, each in a process of its own."""
    aligned = run_isolated(trace_checkpoint, source, budget, threads, threads=threads)[0]
    base = base_of(source)
    if base is None or fingerprint(str(base)) == source.fingerprint:
        return aligned, None
    try:
        before = replace(source, checkpoint=base)
        return aligned, run_isolated(trace_checkpoint, before, budget, threads, True, threads=threads)[0]
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
    others: Sequence[Scheme] = (),
    adapter: Path | None = None,
) -> tuple[Parity, ParityDetails]:
    """Compare an exported folder with its checkpoint on images of two sizes, alone and in a batch, and on a text.

    `references` are the checkpoint's side (`trace_references`), the same for every scheme; `others` are the schemes
    that an error may advise; `adapter` is a LoRA adapter that llama.cpp applies to the folder's model. Raises
    VerificationError with every reason where the export is not the same model, and MachineError where this machine
    cannot run it.
    """
    aligned, base = references
    try:
        found = run_isolated(trace_export, source, folder, budget, threads, aligned, adapter, threads=threads)[0]
    except MachineError:
        raise
    except (MpaError, RuntimeError) as error:  # a runtime's own exception arrives from its process as a RuntimeError
        component = error.component if isinstance(error, NotFiniteError) else ""
        at = next((name for name, parts in PARTS.items() if component in parts), RUNTIME)
        raise failure(source, scheme, NOT_RUN, [Reason(at, str(error))], others) from error
    image_id = int(source.config.get("image_token_id", source.config.get("image_token_index", -1)))
    originals, texts = [one.trace for one in aligned.probes], [(aligned.forced, found.forced)]
    compared = compare([*map(Pair, originals, found.traces)], texts, scheme.tolerance, image_id)
    reasons = [OTHER_PIXELS] if compared.details.pixels_equal is False else []
    reasons += compared.reasons
    if found.template_problem:
        reasons.append(Reason(TEMPLATE, found.template_problem))
    positions: dict[str, float] = {}
    if base is not None:
        embeddings = (originals[0].vision, base.probes[0].trace.vision, found.traces[0].vision)
        positions, of_base = compare_with_base(embeddings, (aligned.forced, base.forced, found.forced))
        reasons += of_base
    if reasons:
        fixed = compare([*map(Pair, originals, found.fixed)], [], scheme.tolerance, image_id) if found.fixed else None
        kind = "input" if found.template_problem else mismatch(compared, fixed)
        raise failure(source, scheme, HEADLINES[kind], reasons, others)
    return compared.parity, compared.details.model_copy(update=positions)


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


def failure(
    source: Source, scheme: Scheme, headline: str, reasons: Sequence[Reason], others: Sequence[Scheme]
) -> VerificationError:
    """The error of an export that is not the same model: a headline, a line for each reason, what to do."""
    listed = "\n".join(f"  {reason.component}: {reason.text}" for reason in reasons)
    return VerificationError(
        f"{scheme.name} of {source.name} is not the model it was made from; {headline}\n{listed}\n"
        f"nothing was exported: {advice(scheme, {reason.component for reason in reasons}, others)}"
    )


def advice(scheme: Scheme, wrong: Set[str], others: Sequence[Scheme]) -> str:
    """What to do about components that are wrong: `others` of which have more bits there."""
    if TEMPLATE in wrong or PIXELS in wrong:
        formats = "GGUF" if scheme.format == "onnx" else "ONNX"
        what = "chat template" if TEMPLATE in wrong else "image processor"
        return f"more bits do not help; check the checkpoint's {what}, or use a scheme of another format ({formats})"
    if RUNTIME in wrong:
        return "a file is damaged or its runtime is another version: rerun with --fresh, and run mpa-edge doctor"
    wider = [other.name for other in others if not other.control and has_more_bits(other, scheme, wrong)]
    names = " and the ".join(name for name in (VISION, DECODER) if name in wrong)
    if wider:
        return f"choose a scheme with more bits for the {names}: {', '.join(wider)}"
    return f"no other scheme here has more bits for the {names}: rerun with --fresh, or name a scheme with --scheme"


def has_more_bits(other: Scheme, scheme: Scheme, wrong: Set[str]) -> bool:
    """Whether a scheme has more bits in every wrong component, and no fewer in the others.

    A vision encoder in GGUF and one in ONNX are the same component here.
    """
    for name, parts in PARTS.items():
        ours, theirs = (
            next(bits_of(precision) for part, precision in one.components.items() if part in parts)
            for one in (scheme, other)
        )
        if theirs < ours or (name in wrong and theirs == ours):
            return False
    return True


def bits_of(precision: str) -> int:
    """Bits of a weight.

    >>> bits_of("q4_k_m"), bits_of("bf16"), bits_of("q4f16"), bits_of("qdq8")
    (4, 16, 4, 8)
    """
    return int(re.findall(r"\d+", precision)[0])


# --- the export, in a process of its own ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportTraces:
    """What an export did."""

    traces: list[Trace]
    """One for each probe."""
    fixed: list[Trace] | None
    """The same from the checkpoint's own pixels; None where those were equal, or its runtime hides or takes none."""
    forced: NDArray[np.float32]
    """(tokens, vocabulary) logits before the tokens of the text."""
    template_problem: str | None
    """Why the programs of llama.cpp would write another prompt."""


def trace_export(
    source: Source,
    folder: Path,
    budget: ImageBudget | None,
    threads: int | None,
    known: CheckpointTraces,
    adapter: Path | None = None,
) -> ExportTraces:
    """Run an exported folder on the probes and the text, and again from the checkpoint's own pixels."""
    from mpa_edge.vlm import load

    artifact = read_artifact(folder)
    batches = probes(source.image_values(budget), source.prompt, artifact.tokens.image)
    problem = None
    if "language" in artifact.files:
        header = read_header(folder / artifact.files["language"])
        problem = template_problem(str(source.checkpoint), header.metadata)
    model: Any = load(str(folder), name=artifact.name, threads=threads)
    try:
        if adapter is not None:
            model.language.attach(adapter)
        traces = [trace for batch in batches for trace in model.trace(batch)]
        forced = model.forced(batches[0][0], known.tokens)
        pairs = zip(traces, known.probes, strict=True)
        if all(ours.pixels_sha256 in (None, one.trace.pixels_sha256) for ours, one in pairs):
            return ExportTraces(traces, None, forced, problem)
        pixels = iter([one.pixels for one in known.probes])
        try:
            fixed = [trace for batch in batches for trace in model.trace(batch, [next(pixels) for _ in batch])]
        except MpaError:
            fixed = None
        return ExportTraces(traces, fixed, forced, problem)
    finally:
        model.close()


def base_of(source: Source) -> Path | None:
    """Folder of the student before it was aligned; None for a plain checkpoint, or where the files are gone."""
    if source.base is not None:
        return source.base
    if source.recipe is None:
        return None
    student = resolve(source.recipe.student)
    if Path(student).is_dir():
        return Path(student)
    try:
        return download(student, local_only=True)
    except MpaError:
        return None
