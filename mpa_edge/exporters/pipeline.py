"""A whole export: refuse early, build by component, verify, and only then give it its final name."""

from __future__ import annotations

import importlib.util
import math
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mpa_edge import __version__
from mpa_edge.artifact import is_artifact, read_artifact
from mpa_edge.config.library import load_scheme, names
from mpa_edge.config.scheme import ONNX_COMPONENTS, Scheme
from mpa_edge.config.target import ImageBudget, Target
from mpa_edge.errors import MpaError, VerificationError, missing_package
from mpa_edge.exporters.build import MADE, BuildContext, build
from mpa_edge.exporters.gguf.check import check_gguf_possible
from mpa_edge.exporters.publish.card import write_card
from mpa_edge.exporters.publish.clients import refusal, write_clients
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.publish.manifest import (
    AccuracyFigures,
    ExportManifest,
    Refusal,
    entry,
    finished,
    is_exported,
    outputs_of,
    read_export_manifest,
)
from mpa_edge.exporters.sizes import disk_need_bytes
from mpa_edge.exporters.source import Source, generation_config
from mpa_edge.exporters.verify.accuracy import measure
from mpa_edge.exporters.verify.gate import References, trace_references, verify
from mpa_edge.exporters.verify.parity import Parity
from mpa_edge.progress import say
from mpa_edge.questions import measure_of
from mpa_edge.runs.files import read_json, require_free, sha256_json, write_json
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.log import versions
from mpa_edge.runs.manifest import INPUTS, MANIFEST, StageClock, clear, prepare
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.paths import inside, move, remove, require_plain
from mpa_edge.vlm.shared.sampling import changes_decoding
from mpa_edge.vlm.transformers.checkpoint import library_errors

PARTS, BUILDING, OLD, REFUSED = ".parts", ".building-", ".old-", "refused.json"
LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "gguf", "llama-cpp-python")
DEFAULT_CONTEXT_TOKENS = 4096
# format -> (package, extra of mpa-edge that installs it)
NEEDS = {
    "onnx": (
        ("torch", "align"),
        ("transformers", "align"),
        ("onnx", "export"),
        ("onnxruntime", "export"),
        ("onnxscript", "export"),
        ("tokenizers", "onnx"),
    ),
    "gguf": (("torch", "align"), ("transformers", "align"), ("gguf", "export"), ("llama_cpp", "gguf")),
}


@dataclass(frozen=True)
class Order:
    """What is to be exported, and how."""

    source: Source
    """The checkpoint."""
    schemes: tuple[Scheme, ...]
    """As resolved for the target."""
    target: Target | None = None
    """Its image budget, context and threads go into the export."""
    threads: int | None = None
    """CPU threads of the export itself."""
    fresh: bool = False
    """Make finished exports again."""
    first: bool = False
    """Only the first scheme is wanted that passes: the others are alternatives."""
    margin: float | None = None
    """Accuracy, 0 to 1, that an alternative may lose against aligned on held-out questions; None: not measured."""
    questions: int | None = None
    """How many of them are asked; None: as many as the recipe's evaluation."""
    clients: tuple[str, ...] = ()
    """Each gets a program beside the files."""

    @property
    def budget(self) -> ImageBudget | None:
        """Of the target."""
        return self.target.image if self.target else None

    @property
    def context_tokens(self) -> int:
        """Of the target, limited to what the model was made for.

        Where positions are scaled once a text grows beyond a length (Phi-3), that length: llama.cpp scales those of
        short texts, too, when it is ready for a longer one.
        """
        text = self.source.config.get("text_config") or self.source.config
        scaled_from = (text.get("rope_parameters") or {}).get("original_max_position_embeddings")
        longest = int(scaled_from or text.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)
        return min(longest, self.target.context_tokens if self.target else DEFAULT_CONTEXT_TOKENS)

    @property
    def device_threads(self) -> int | None:
        """CPU threads that the target asks for on the device."""
        return self.target.cpu.threads if self.target else None

    def others(self, scheme: Scheme) -> tuple[Scheme, ...]:
        """Schemes to advise in the place of one: the target's, or all where there is no target."""
        wanted = [choice.name for choice in self.target.schemes] if self.target else names("schemes")
        return tuple(resolved(name, self.target) for name in wanted if name != scheme.name)

    @cached_property
    def references(self) -> References:
        """What every scheme is compared with; traced on first use."""
        return trace_references(self.source, self.budget, self.threads)


def resolved(name: str, target: Target | None) -> Scheme:
    """A scheme with the precisions that a target sets."""
    scheme = load_scheme(name)
    for choice in target.schemes if target else ():
        if choice.name == scheme.name:
            return scheme.model_copy(update={"components": dict(choice.components)})
    return scheme


def choose_schemes(source: Source, wanted: Sequence[str], target: Target | None) -> tuple[Scheme, ...]:
    """The wanted schemes, or all of the target's that this model can take; with the precisions that the target sets.

    Raises MpaError with the reason where a wanted scheme, or every one of the target's, is not possible.
    """
    source.check()
    budget = target.image if target else None
    if wanted or target is None:
        chosen = [resolved(name, target) for name in dict.fromkeys(wanted)]
        for scheme in chosen:
            check_possible(source, scheme, budget)
        try_layout(source, chosen[:1], budget)
        return tuple(chosen)
    chosen, refusals = [], []
    for choice in target.schemes:
        scheme = resolved(choice.name, target)
        try:
            check_possible(source, scheme, budget)
        except MpaError as error:
            refusals.append(error)
            say(f"{scheme.name}: not possible for this model ({error})")
            continue
        chosen.append(scheme)
    if not chosen:
        raise refusals[0]
    try_layout(source, chosen[:1], budget)
    return tuple(chosen)


def taken_by(order: Order, clients: Sequence[str]) -> Order:
    """The order for clients: of alternatives, only those that every client can run. MpaError where one cannot."""
    refused = {
        scheme.name: reason
        for scheme in order.schemes
        if (reason := next(filter(None, (refusal(client, scheme, order.source) for client in clients)), None))
    }
    left = tuple(scheme for scheme in order.schemes if scheme.name not in refused)
    if refused and not (order.first and left):
        raise MpaError(next(iter(refused.values())))
    return replace(order, schemes=left, clients=tuple(dict.fromkeys(clients)))


def try_layout(source: Source, schemes: Sequence[Scheme], budget: ImageBudget | None) -> None:
    """Write the small files of exports for nothing. MpaError where a checkpoint's processor or prompt has no place."""
    for scheme in schemes:
        with library_errors(source.checkpoint), tempfile.TemporaryDirectory() as folder:
            write_layout(source, scheme, Path(folder), budget, DEFAULT_CONTEXT_TOKENS, None)


def check_possible(source: Source, scheme: Scheme, budget: ImageBudget | None = None) -> None:
    """Raise MpaError with the reason where a scheme cannot be made of a checkpoint, or not on this machine."""
    if settings := changes_decoding(generation_config(source.checkpoint)):
        raise MpaError(
            f"generation_config.json of {source.checkpoint} sets {', '.join(settings)}, which exports cannot follow: "
            "their answers would not be the model's. Remove it there, and evaluate the model without it"
        )
    text, tower = (source.config.get(f"{part}_config") or {} for part in ("text", "vision"))
    if text.get("use_bidirectional_attention") or text.get("enable_moe_block") or tower.get("standardize"):
        raise MpaError(
            f"exports cover {source.family.title}, not the larger models, which read images in both directions: "
            "align and export one of these"
        )
    formats = {"onnx" if component in ONNX_COMPONENTS else "gguf" for component in scheme.components}
    for name in sorted(formats):
        for package, extra in NEEDS[name]:
            if importlib.util.find_spec(package) is None:
                raise missing_package(package, extra)
    if "gguf" in formats:
        check_gguf_possible(
            source.config,
            source.image_values(budget),
            read_json(source.checkpoint / "tokenizer.json"),
            vision="mmproj" in scheme.components,
            precisions=scheme.components.values(),
        )
    if scheme.calibration is not None and source.run is None:
        raise MpaError(
            f"scheme {scheme.name} is calibrated on a run's own images, and {source.name} is not a run: "
            "name the run folder, or another scheme"
        )


def run_export(order: Order) -> list[Path]:
    """Make every scheme of an order, or its first that passes; returns their folders.

    Finished exports that did not change are skipped. Raises VerificationError where a scheme is not the same model, or
    no alternative passes.
    """
    exports = order.source.exports
    for name in (PARTS, *(f"{kind}{scheme.name}" for scheme in order.schemes for kind in ("", BUILDING, OLD))):
        require_plain(inside(exports, name))
    for folder in (exports / scheme.name for scheme in order.schemes):
        if folder.is_dir() and any(folder.iterdir()) and not (is_artifact(folder) or (folder / MANIFEST).is_file()):
            raise MpaError(f"{folder} contains something other than an export: choose another --out")
    with run_lock(exports):
        for old in exports.glob(f"{OLD}*"):  # of a kill; the only copy stays until there is a new one
            if (exports / old.name.removeprefix(OLD)).exists():
                remove(old)
        missing = [s for s in order.schemes if order.fresh or not is_exported(exports / s.name, inputs_of(order, s))]
        if order.first and order.margin is None and order.schemes[0] not in missing:
            missing = []  # the alternatives are not needed
        if missing:
            require_free(exports, disk_need_bytes(order.source, missing[:1] if order.first else missing))
            prepare(exports / PARTS, parts_inputs(order), order.fresh)
        folders = [export_first(order)] if order.first else [export_scheme(order, scheme) for scheme in order.schemes]
        for folder in folders if order.clients else ():
            write_clients(order.source, folder, order.clients)
        remove(exports / PARTS / INPUTS)  # first: after a kill, nothing looks valid
        remove(exports / PARTS, quietly=True)
    return folders


def export_first(order: Order) -> Path:
    """The first scheme of an order that is the same model and, where a margin is given, loses no more than that.

    What is refused is kept in `refused.json`, so that a rerun does not make it again. VerificationError with every
    reason where none is left.
    """
    path = order.source.exports / REFUSED
    before, refused = {one.key: one for one in read_refused(path)}, list[Refusal]()
    for scheme in order.schemes:
        asked = {**inputs_of(order, scheme), "margin": order.margin, "n": order.questions, "version": __version__}
        key, final = sha256_json(asked), order.source.exports / scheme.name
        if key in before and not order.fresh:
            refused.append(before[key])
            say(f"{scheme.name}: refused before ({before[key].reason}); --fresh tries it again")
            continue
        was_there, folder = is_exported(final, inputs_of(order, scheme)), None
        try:
            folder = export_scheme(order, scheme)
            if order.margin is not None:
                measure(order.source, [folder], order.questions, order.threads)
                require_within(finished(folder).accuracy, order.margin)
        except VerificationError as error:
            reason = str(error).removeprefix(f"{scheme.name}: ")
            accuracy = finished(folder).accuracy if folder else None
            refused.append(Refusal(key=key, scheme=scheme.name, reason=reason, accuracy=accuracy))
            before[key] = refused[-1]
            write_json(path, [one.model_dump(mode="json") for one in before.values()])
            say(f"{scheme.name}: refused: {reason}")
            if folder and not was_there:
                remove(folder)
            continue
        manifest = finished(folder)
        if manifest.refused != tuple(refused):
            manifest = manifest.model_copy(update={"refused": tuple(refused)})
            write_card(order.source, read_artifact(folder), manifest, folder)
            write_json(folder / MANIFEST, manifest)
        return folder
    reasons = [f"{one.scheme}: {one.reason}" for one in refused]
    raise VerificationError("\n".join(["no scheme passes:", *reasons, *wider_margin(refused)]))


def wider_margin(refused: Sequence[Refusal]) -> Iterator[str]:
    """The fix where schemes were refused for what they may lose: the margin that keeps the best one."""
    measured = [(one.accuracy.loss_upper, one.scheme, one.accuracy.n) for one in refused if one.accuracy]
    if measured:
        loss, best, n = min(measured)
        points = math.floor(100 * loss) + 1
        yield f"--margin {points} keeps {best}; more than these {n} questions may show that it loses less"


def require_within(figures: AccuracyFigures | None, margin: float) -> None:
    """Raise VerificationError where an export may have lost more accuracy than the margin, at 95 % confidence."""
    if figures and figures.loss_upper >= margin:
        of = measure_of("labels" if figures.truth == "labels" else "teacher")  # also where some are reviewed
        raise VerificationError(
            f"it may lose {100 * figures.loss_upper:.1f} points of {of} (aligned "
            f"{figures.aligned:.1%}, exported {figures.artifact:.1%} on {figures.n} questions, one-sided 95 %), "
            f"{100 * margin:g} are allowed"
        )


def read_refused(path: Path) -> list[Refusal]:
    """What was refused before; nothing where the file is missing or damaged."""
    with suppress(ValidationError):
        return TypeAdapter(list[Refusal]).validate_python(read_json(path) or [], strict=False)
    return []


def parts_inputs(order: Order) -> dict[str, str]:
    """Everything that the parts shared by several schemes depend on: name -> hash."""
    return {"checkpoint": order.source.fingerprint, "image budget": sha256_json(order.budget)}


def inputs_of(order: Order, scheme: Scheme) -> dict[str, str]:
    """Everything that the files of a scheme depend on: name -> hash."""
    return {
        **parts_inputs(order),
        "scheme": sha256_json(scheme.model_dump(exclude={"title"})),
        "target": sha256_json({"context_tokens": order.context_tokens, "threads": order.device_threads}),
    }


def export_scheme(order: Order, scheme: Scheme) -> Path:
    """Build, verify and publish one scheme. Raises VerificationError where it is not the same model."""
    final, inputs = order.source.exports / scheme.name, inputs_of(order, scheme)
    building = order.source.exports / f"{BUILDING}{scheme.name}"
    if not order.fresh and is_exported(final, inputs):
        say(f"{scheme.name}: done before, nothing changed")
        remove(building)  # of a run that was killed before it published
        return final
    if order.fresh or not is_exported(building, inputs):
        earlier = read_export_manifest(final)
        if earlier is not None and not order.fresh:
            changed = ", ".join(sorted(key for key in inputs if earlier.inputs.get(key) != inputs[key]))
            say(f"{scheme.name}: made again because of changed {changed or 'files'}")
        prepare(building, inputs, order.fresh)
        clock, started = StageClock(building), time.monotonic()
        context = BuildContext(order.source, building, order.source.exports / PARTS, order.budget, order.threads)
        order.references  # noqa: B018  # a model that cannot answer is not built
        files = build(context, scheme)
        clock.tick()
        artifact = write_layout(
            order.source, scheme, building, order.budget, order.context_tokens, order.device_threads
        )
        try:
            references, others = order.references, order.others(scheme)
            parity, details = verify(order.source, building, scheme, order.budget, order.threads, references, others)
        except VerificationError:
            clear(building)  # no file of a wrong export stays
            remove(building)
            raise
        children_bytes = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        manifest = ExportManifest(
            inputs=inputs,
            scheme=scheme.model_dump(mode="json"),
            target=order.target.name if order.target else None,
            files={component: entry(building, name) for component, name in files.items()},
            outputs=outputs_of(building),
            notes=tuple(dict.fromkeys(context.notes)),
            parity=parity.model_dump(mode="json"),
            parity_details=details.model_dump(mode="json"),
            versions=versions(*LIBRARIES),
            seconds=round(clock.tick(), 3),
            peak_rss_bytes=max(context.peak_rss_bytes, peak_rss_bytes(), children_bytes),
        )
        write_card(order.source, artifact, manifest, building)
        write_json(building / MANIFEST, manifest)
        say(f"{scheme.name}: verified in {time.monotonic() - started:.0f} s")
    publish(building, final)
    return final


def publish(building: Path, final: Path) -> None:
    """Give a verified folder its final name; a kill in between leaves the old one, or a folder that is complete."""
    old = final.with_name(f"{OLD}{final.name}")
    for name in (MADE, ".inputs.json", ".seconds.json"):
        remove(building / name)
    if final.exists():
        remove(old)
        move(final, old)
    move(building, final)
    remove(old, quietly=True)


def report_of(folder: Path) -> dict[str, Any]:
    """What `--json` prints about one export."""
    manifest = finished(folder)
    accuracy = manifest.accuracy
    return {
        "scheme": manifest.scheme["name"],
        "path": str(folder),
        "files": {component: file.model_dump(mode="json") for component, file in manifest.files.items()},
        "parity": {name: manifest.parity[name] for name in Parity.model_fields},
        "accuracy": accuracy and accuracy.model_dump(include={"truth", "base", "aligned", "artifact", "n"}),
        "retained_gain": accuracy.retained_gain if accuracy else None,
        "refused": [one.model_dump(include={"scheme", "reason"}) for one in manifest.refused],
        "seconds": manifest.seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
    }
