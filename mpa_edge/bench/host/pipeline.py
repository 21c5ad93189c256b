"""The whole benchmark: the host's answers, the bundle, the device's answers, the documents; bench.json last."""

from __future__ import annotations

import os
import shlex
import shutil
import uuid
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.device.protocol import ERRORS, ORDER, OUT, PROBE, WATCH, JobOrder, Line, read_lines, to_json
from mpa_edge.bench.device.runner import read_questions
from mpa_edge.bench.host import device_run
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.host.llama_server_run import NOT_TIMED, drive
from mpa_edge.bench.host.measurement import ANSWERED, DEVICE, FOLDER, Bench, spread
from mpa_edge.bench.host.upload import remove, send
from mpa_edge.bench.results.documents import Evidence, report_of, write_documents
from mpa_edge.bench.results.probe import WatchLine
from mpa_edge.bench.results.records import BENCH
from mpa_edge.bench.results.sensors import read_probe, read_watch
from mpa_edge.bench.results.timing import order as order_of
from mpa_edge.bench.transports import Transport
from mpa_edge.bench.transports.connect import connect
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import Comparison, answers_of_run, open_comparison
from mpa_edge.progress import progress, say
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.manifest import clear
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.types import Prediction

JOB = "job.json"
PROBE_AFTER = "probe-after.json"
# the longest silence of a job that is still taken for work: load, then one answer
STALL_S = 1200.0
FETCH_S = 120.0
KEPT_BUNDLES = 5
VARIANTS = ("artifact", "base")


def run_bench(bench: Bench, fresh: bool = False) -> Path:
    """Measure, and return the folder of bench.json. What was measured before is not measured again.

    Killed at any moment, the same command goes on: the job on the device keeps what it has answered.
    """
    with run_lock(make_folder(bench.results)):
        comparison = comparison_of(bench)
        bundle = bundle_of(bench, comparison)
        mark = bench.inputs(bundle.sha256)
        if not fresh and is_measured(bench.results, mark):
            say(f"{bench.scheme}: measured before, nothing changed (--fresh measures again)")
            return bench.results
        # before the job: where the device is this machine, they would take its cores
        host = host_answers(bench, comparison)
        evidence = measure(bench, comparison, bundle, attempt(bench.results, mark, fresh))
        return write_down(bench, comparison, bundle, host, evidence, mark)


def read_results(bench: Bench, job: Path) -> Path:
    """As `run_bench`, of a job that somebody ran by hand, whose folder is here."""
    if not (job / OUT).is_file():
        raise MpaError(f"{job} has no {OUT}: give the job's folder as bench.sh left it on the device")
    with run_lock(make_folder(bench.results)):
        comparison = comparison_of(bench)
        bundle, order = bundle_of(bench, comparison), job_order(bench, comparison)
        host = host_answers(bench, comparison)
        clear(bench.results)
        local = make_folder(bench.results / DEVICE)
        for name in (OUT, PROBE, PROBE_AFTER, WATCH):
            if (job / name).is_file():
                shutil.copyfile(job / name, local / name)
        evidence = evidence_of(order, bundle, local, "carried by hand")
        return write_down(bench, comparison, bundle, host, evidence, bench.inputs(bundle.sha256))


def make(bench: Bench, folder: Path | None = None) -> Bundle:
    """The bundle alone; in `folder`, else among the run's own."""
    with run_lock(make_folder(bench.results)):
        return bundle_of(bench, comparison_of(bench), folder)


def comparison_of(bench: Bench) -> Comparison:
    """The questions."""
    return open_comparison(
        bench.recipe, bench.effort.questions, bench.run / FOLDER / ANSWERED, bench.host_threads, "--questions"
    )


def host_answers(bench: Bench, comparison: Comparison) -> tuple[list[Prediction], list[Prediction]]:
    """Base and aligned in full precision, on this machine."""
    base, aligned = (answers_of_run(comparison, bench.run, bench.merged, name) for name in ("base", "aligned"))
    return base, aligned


def write_down(
    bench: Bench,
    comparison: Comparison,
    bundle: Bundle,
    host: tuple[list[Prediction], list[Prediction]],
    evidence: Evidence,
    mark: str,
) -> Path:
    """All documents; the folder."""
    write_documents(report_of(bench, bundle.sha256, *host, evidence), comparison.images, bench.results)
    write_json(bench.results / JOB, {"inputs": mark, "done": True})
    return bench.results


def bundle_of(bench: Bench, comparison: Comparison, folder: Path | None = None) -> Bundle:
    """Everything that goes to the device; in `folder`, else among the run's own, of which the newest stay."""
    task = get_task(bench.recipe.task)
    questions = [
        Question(
            id=s.id,
            image=s.image,
            prompt=answer_prompt(task, s.question),
            max_new_tokens=bench.recipe.identify.max_new_tokens,
        )
        for s in comparison.samples
    ]
    made = make_bundle(
        folder=folder or bench.bundles,
        target=bench.target,
        artifact=bench.artifact,
        base=bench.base,
        questions=questions,
        images=comparison.images,
        max_pixels=bench.recipe.images.max_pixels,
        named_by_hash=folder is None,
        order=job_order(bench, comparison),
    )
    if folder is None:
        keep_newest(bench.bundles, made.folder)
    return made


def keep_newest(bundles: Path, used: Path, n: int = KEPT_BUNDLES) -> None:
    """Remove old bundles of a run: each holds the pictures once more."""
    os.utime(used)
    for old in sorted(bundles.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-n]:
        shutil.rmtree(old, ignore_errors=True)


def is_measured(results: Path, mark: str) -> bool:
    """Whether the documents of these very inputs are there."""
    job = read_json(results / JOB)
    return job == {"inputs": mark, "done": True} and (results / BENCH).is_file()


@dataclass(frozen=True)
class Attempt:
    """One job on the device."""

    id: str
    """Name of its folder there."""
    abandoned: str | None
    """Folder of an earlier job that nobody will read, and that may still be at work."""


def attempt(results: Path, mark: str, fresh: bool) -> Attempt:
    """The one that was cut off, else a new one."""
    job = read_json(results / JOB) or {}
    if not fresh and job.get("inputs") == mark and job.get("id"):
        say("going on with the job that was begun before")
        return Attempt(str(job["id"]), None)
    clear(results)
    made = Attempt(uuid.uuid4().hex[:12], job.get("folder"))
    write_json(results / JOB, {"inputs": mark, "id": made.id})
    return made


def job_order(bench: Bench, comparison: Comparison) -> JobOrder:
    """Who is asked what on the device."""
    variants = VARIANTS if bench.base else VARIANTS[:1]
    steps = order_of(
        [sample.id for sample in comparison.samples],
        repetitions=bench.effort.repetitions,
        timed_ids=spread(comparison.samples, bench.effort.timed),
        variants=variants,
        seed=bench.recipe.seed,
    )
    folders = {name: f"models/{name}" for name in variants}
    return JobOrder(folders, steps, bench.device_threads, bench.target.cpu.cores)


def measure(bench: Bench, comparison: Comparison, bundle: Bundle, job: Attempt) -> Evidence:
    """Send the bundle, run the job to its end, and bring back what it left."""
    order, local = job_order(bench, comparison), make_folder(bench.results / DEVICE)
    with closing(connect(bench.reach.via, root=bench.reach.root)) as transport:
        runner = device_run.choose_runner(
            transport,
            read_artifact(bench.artifact).format,
            python=bench.reach.python,
            server=bench.reach.server,
            fallback=bench.target.server,
        )
        if job.abandoned:
            with suppress(MpaError):  # it may have been another device
                Job(transport, job.abandoned).stop()
        files = {name: file.sha256 for name, file in bundle.manifest.files.items()}
        remote = send(transport, bundle.folder, files, bundle.sha256)
        with suppress(MpaError):
            remove(transport)  # of earlier benchmarks: a device must not fill up
        thermal = bench.target.thermal
        device_run.cool_down(transport, remote, thermal.start_below_c, thermal.cool_down_s)
        place = Place(transport, remote, f"{remote}/jobs/{job.id}", local)
        write_json(bench.results / JOB, {"inputs": bench.inputs(bundle.sha256), "id": job.id, "folder": place.folder})
        if runner.python:
            run_python(place, order, runner.python)
        else:
            run_server(place, order, bundle, str(runner.server))
        return evidence_of(order, bundle, local, transport.name, NOT_TIMED if runner.server else ())


def evidence_of(
    order: JobOrder, bundle: Bundle, local: Path, transport: str, not_timed: tuple[str, ...] = ()
) -> Evidence:
    """What a job left, read from the files that are here."""
    if not (local / PROBE).is_file():
        raise MpaError(f"the job left no {PROBE}: run bench.sh of the bundle, not run.py alone")
    before = read_probe((local / PROBE).read_text(encoding="utf-8"))
    size_bytes = model_bytes(bundle)
    return Evidence(order, read_out(local), before, during(local), transport, size_bytes, not_timed)


@dataclass(frozen=True)
class Place:
    """Where a job runs, and where its files go."""

    transport: Transport
    """The way to the device."""
    remote: str
    """Folder of the bundle there."""
    folder: str
    """Folder of the job there."""
    local: Path
    """Folder of its files here."""


def run_python(place: Place, order: JobOrder, python: str) -> None:
    """Start or join the job, and follow it to its end. MpaError where it ended with less than all answers."""
    job, out = Job(place.transport, place.folder), place.local / OUT
    device_run.write_remote(place.transport, place.local / ORDER, to_json(order), f"{place.folder}/{ORDER}")
    job.start(shlex.join(["sh", f"{place.remote}/bench.sh", place.folder, python]), out)
    with progress(f"bench on {place.transport.name}", len(order.steps)) as advance:
        for line in read_lines(job.lines(out, stall_s=STALL_S)):
            if line.kind == "answer":
                advance(1)
    for name in (PROBE, PROBE_AFTER, WATCH, ERRORS):
        device_run.fetch(place.transport, f"{place.folder}/{name}", place.local / name)
    if rc := job.poll().rc:
        why = why_failed(read_out(place.local), job.errors())
        raise MpaError(
            f"on {place.transport.name}, the runner ended with {rc}: {why}; mend it, and give the same command again"
        )


def why_failed(lines: list[Line], errors: str) -> str:
    """The runner's own words."""
    failed = [str(line.values.get("reason")) for line in lines if line.kind == "failed"]
    said = [line.removeprefix("error: ") for line in errors.splitlines() if line.strip()]
    return failed[-1] if failed else said[-1] if said else "it said nothing"


def run_server(place: Place, order: JobOrder, bundle: Bundle, server: str) -> None:
    """Ask a llama-server question by question, with the device watched meanwhile."""
    transport, local = place.transport, place.local
    if not (local / PROBE).is_file():
        (local / PROBE).write_text(device_run.probe(transport, place.remote), encoding="utf-8")
    watch = Job(transport, f"{place.folder}/watch")
    watch.start(f"sh {shlex.quote(place.remote)}/probe.sh watch >>{WATCH}")
    artifacts = {name: read_artifact(bundle.folder / inside) for name, inside in bundle.variants.items()}
    try:
        drive(
            transport,
            place.remote,
            order,
            read_questions(bundle.folder),
            artifacts,
            local / OUT,
            bundle=bundle.folder,
            server=server,
            job_root=f"{place.folder}/server",
        )
    finally:
        with suppress(MpaError):
            watch.stop()
    device_run.fetch(transport, f"{place.folder}/watch/{WATCH}", local / WATCH)
    (local / PROBE_AFTER).write_text(device_run.probe(transport, place.remote), encoding="utf-8")


def read_out(local: Path) -> list[Line]:
    """All lines of a job."""
    return list(read_lines((local / OUT).read_text(encoding="utf-8").split("\n")))


def during(local: Path) -> list[WatchLine]:
    """What was seen of the device while the job ran, and right behind it."""
    watched: list[WatchLine] = []
    if (local / WATCH).is_file():
        watched += read_watch((local / WATCH).read_text(encoding="utf-8", errors="replace"))
    if (local / PROBE_AFTER).is_file():
        watched.append(read_probe((local / PROBE_AFTER).read_text(encoding="utf-8")))
    return watched


def model_bytes(bundle: Bundle) -> int:
    """Size of the artifact on the device."""
    inside = bundle.variants["artifact"] + "/"
    return sum(file.bytes for name, file in bundle.manifest.files.items() if name.startswith(inside))
