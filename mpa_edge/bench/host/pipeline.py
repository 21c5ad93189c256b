"""The whole benchmark: answers on the host, the bundle, answers on the device, the documents; bench.json is last."""

from __future__ import annotations

import re
import uuid
from contextlib import closing, suppress
from pathlib import Path

from pydantic import Field, ValidationError

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.device.protocol import OUT, PROBE, PROBE_AFTER, WATCH, JobOrder, content_id
from mpa_edge.bench.host.budgets import limits_of
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.host.device_run import choose_runner, cool_down, run_python, run_server
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.host.llama_server_run import NOT_TIMED
from mpa_edge.bench.host.upload import remove, send
from mpa_edge.bench.measurement import ANSWERED, DEVICE, FOLDER, Bench, spread
from mpa_edge.bench.results.documents import Evidence, report_of, write_documents
from mpa_edge.bench.results.lines import checked_lines, whole_lines
from mpa_edge.bench.results.probe import PROBE_BYTES, WATCH_BYTES, Reading, read_probe, read_watch
from mpa_edge.bench.results.records import BENCH
from mpa_edge.bench.results.timing import order as order_of
from mpa_edge.bench.transports.connect import connect
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.compare import Comparison, answers_of_run, open_comparison
from mpa_edge.images.folder import open_image
from mpa_edge.progress import say
from mpa_edge.runs import paths
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.log import logger
from mpa_edge.runs.manifest import FOLDERS
from mpa_edge.tasks import answer_prompt, get_task
from mpa_edge.types import Drop, Prediction, Record

JOB, BUNDLES = "job.json", "bundles"
KEPT_BUNDLES = 5
Answers = tuple[list[Prediction], list[Prediction]]
"""Of base and aligned in full precision, on this machine."""
OUR_JOB = re.compile(r"[0-9a-f]{64}/jobs/[0-9a-f]{12}")
"""Folder of a job, below the working directory on the device."""


class JobRecord(Record):
    """job.json."""

    inputs: str = ""
    """Hash of what was asked."""
    done: bool = False
    """Whether its results are written."""
    id: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    """Of the job, made here."""
    folder: str | None = None
    """Of the job on the device; what is run there is only what lies in a folder of ours."""


def read_job(folder: Path) -> JobRecord:
    """The job that was started before; an empty record where there is none, or its file is damaged."""
    try:
        return JobRecord.model_validate(read_json(folder / JOB))
    except ValidationError:
        return JobRecord()


def run_bench(bench: Bench, fresh: bool = False) -> Path:
    """Measure, and return the folder of bench.json. Results of the same inputs are kept, unless `fresh`.

    After a kill at any moment, a rerun resumes: the job on the device keeps its answers.
    """
    with run_lock(make_folder(bench.results)):
        comparison, order, bundle = prepare(bench)
        inputs = bench.inputs(bundle.sha256)
        job = read_job(bench.results)
        if not fresh and job.done and job.inputs == inputs and (bench.results / BENCH).is_file():
            say(f"{bench.scheme}: measured before, nothing changed (--fresh measures again)")
            return bench.results
        # before the job: where the device is this machine, they would compete with it for the cores
        host = host_answers(bench, comparison)
        name, is_server = on_device(bench, order, bundle, inputs, fresh)
        not_timed = NOT_TIMED if is_server else ()
        return write_results(bench, comparison, order, bundle, host, local_folder(bench), name, not_timed)


def local_folder(bench: Bench) -> Path:
    """Where the files of the job are copied to."""
    return make_folder(bench.results / DEVICE)


def on_device(bench: Bench, order: JobOrder, bundle: Bundle, inputs: str, fresh: bool) -> tuple[str, bool]:
    """Run a job, or resume the one of the same `inputs`, and copy its files to `local_folder`.

    Returns the name of the transport, and whether a llama-server answered there.
    """
    job = read_job(bench.results)
    abandoned, job_id = "", job.id
    if not fresh and job.inputs == inputs and job_id:
        say("resuming the job that was started before")
    else:
        abandoned, job_id = job.folder or "", uuid.uuid4().hex[:12]
        # the job's files go, the earlier documents stay until new ones take their place
        paths.remove(bench.results / DEVICE)
        write_json(bench.results / JOB, {"inputs": inputs, "id": job_id})
    local = local_folder(bench)
    with closing(connect(bench.reach.via, root=bench.reach.root)) as transport:
        format_ = read_artifact(bench.artifact).format
        program, is_server = choose_runner(transport, format_, bench.reach, bench.target.server)
        root, _, ours = abandoned.partition(f"{transport.root}/")
        if not root and OUR_JOB.fullmatch(ours):
            with suppress(MpaError):  # it may have been on another device
                Job(transport, abandoned).stop()
        files = {name: file.sha256 for name, file in bundle.manifest.files.items()}
        remote = send(transport, bundle.folder, files, bundle.sha256)
        with suppress(MpaError):
            remove(transport, bundle.sha256)  # old bundles would fill up the device
        cool_down(transport, remote, bench.target.thermal.start_below_c, bench.target.thermal.cool_down_s)
        folder = f"{remote}/jobs/{job_id}"
        write_json(bench.results / JOB, {"inputs": inputs, "id": job_id, "folder": folder})
        if is_server:
            run_server(transport, order, program, remote=remote, folder=folder, bundle=bundle.folder, local=local)
        else:
            run_python(transport, order, program, remote=remote, folder=folder, local=local)
    return transport.name, is_server


def read_results(bench: Bench, job: Path) -> Path:
    """As `run_bench`, for the folder of a job that was run manually and copied here."""
    if not (job / OUT).is_file():
        raise MpaError(f"{job} has no {OUT}: give the job's folder as bench.sh left it on the device")
    paths.require_plain(job)
    with run_lock(make_folder(bench.results)):
        comparison, order, bundle = prepare(bench)
        host = host_answers(bench, comparison)
        return write_results(bench, comparison, order, bundle, host, job, "manual copy")


def make(bench: Bench, folder: Path | None = None) -> Bundle:
    """Make only the bundle, in `folder` or among those of the run."""
    with run_lock(make_folder(bench.results)):
        return prepare(bench, folder)[2]


def prepare(bench: Bench, folder: Path | None = None) -> tuple[Comparison, JobOrder, Bundle]:
    """The held-out questions, the order in which the models answer them, and the bundle with everything for the device.

    The bundle is made in `folder`, else among the newest KEPT_BUNDLES of the run.
    """
    recipe, effort = bench.recipe, bench.effort
    scratch = bench.run / FOLDER / ANSWERED
    comparison = open_comparison(recipe, effort.questions, scratch, option="--questions")
    variants = ("artifact", "base") if bench.base else ("artifact",)
    steps = order_of(
        [sample.id for sample in comparison.samples],
        repetitions=effort.repetitions,
        timed_ids=spread(comparison.samples, effort.timed),
        variants=variants,
        seed=recipe.seed,
    )
    folders = {name: f"models/{name}" for name in variants}
    order = JobOrder(
        folders,
        steps,
        bench.device_threads,
        bench.target.cpu.cores,
        accelerators=bench.accelerators,
        provider_options=bench.target.provider_options,
        llama_cpp=bench.target.llama_cpp.model_dump(),
    )
    task, max_new_tokens = get_task(recipe.task), recipe.identify.max_new_tokens
    bundles = bench.run / FOLDER / BUNDLES
    bundle = make_bundle(
        folder=folder or bundles,
        artifact=bench.artifact,
        base=bench.base,
        questions=[
            Question(id=s.id, image=s.image, prompt=answer_prompt(task, s.question), max_new_tokens=max_new_tokens)
            for s in comparison.samples
        ],
        images=comparison.images,
        order=order,
        max_pixels=recipe.images.max_pixels,
        named_by_hash=folder is None,
    )
    if folder is None:  # each bundle has a copy of the images
        for old in sorted(bundles.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-KEPT_BUNDLES]:
            paths.remove(old, quietly=True)
    return comparison, order, bundle


def host_answers(bench: Bench, comparison: Comparison) -> Answers:
    """Answers of base and aligned in full precision, on this machine."""
    merged = bench.run / FOLDERS["merge"]
    base, aligned = (answers_of_run(comparison, bench.run, merged, name) for name in ("base", "aligned"))
    return base, aligned


def readings_of(job: Path) -> tuple[Reading, list[Reading]]:
    """The device before the job whose files are in a folder, and since then. MpaError where nothing was read."""
    if not (job / PROBE).is_file():
        raise MpaError(f"the job left no {PROBE}: rerun with --fresh, or by hand bench.sh and not run.py alone")
    before, *after = [
        read_probe((job / name).open("rb").read(PROBE_BYTES).decode(errors="replace"))
        for name in (PROBE, PROBE_AFTER)
        if (job / name).is_file()
    ]
    return before, [*read_watch(whole_lines(job / WATCH, WATCH_BYTES)), *after]


def write_results(
    bench: Bench,
    comparison: Comparison,
    order: JobOrder,
    bundle: Bundle,
    host: Answers,
    job: Path,
    transport: str,
    not_timed: tuple[str, ...] = (),
) -> Path:
    """Write all documents from the files of a job, once all of them are read; returns the folder of the results.

    MpaError where answers are missing, or where the job ran another bundle: earlier documents stay as they are.
    """
    before, during = readings_of(job)
    found = checked_lines(job / OUT, order)
    ours = content_id({name: file.sha256 for name, file in bundle.manifest.files.items()})
    if any(line.values.get("content", ours) != ours for line in found.lines):
        raise MpaError(
            f"the answers in {job} are of other models or questions than those of the run now: "
            "make the bundle again with mpa-edge bundle, and run that one"
        )
    evidence = Evidence(
        order,
        found.lines,
        before,
        during,
        transport,
        bundle.artifact_bytes,
        not_timed,
        found.cautions,
        {sample.id: sample.image for sample in comparison.samples},
    )
    timed = {step.id for step in order.steps if step.repetition}
    names = {sample.image for sample in comparison.samples if sample.id in timed}
    opened = [open_image(comparison.images / name, bench.recipe.images.max_pixels) for name in sorted(names)]
    limits = limits_of(bench, [image.size for image in opened if not isinstance(image, Drop)])
    made = report_of(bench, bundle.sha256, *host, evidence, limits, comparison.spec.questions.truth)
    logger.info("bench: %s on %s is %s", bench.scheme, bench.target.name, made[0].verdict)
    local = make_folder(bench.results / DEVICE)
    for name in (OUT, PROBE, PROBE_AFTER, WATCH):
        if (job / name).is_file() and job.resolve() != local.resolve():
            paths.copy(job / name, local / name)
    write_documents(*made, images=comparison.images, folder=bench.results)
    write_json(bench.results / JOB, {"inputs": bench.inputs(bundle.sha256), "done": True})
    return bench.results
