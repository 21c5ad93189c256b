"""A soak: the timed questions in a row on the device, for as long as was asked; soak.json is written last."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mpa_edge.bench.device.protocol import OUT
from mpa_edge.bench.host.pipeline import JOB, local_folder, on_device, prepare, read_job, readings_of
from mpa_edge.bench.measurement import SOAK_FOLDER, Bench, Effort
from mpa_edge.bench.results.lines import checked_lines
from mpa_edge.bench.results.sensors import environment
from mpa_edge.bench.results.soak import SOAK, Soak, figures_of
from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, sha256_json, write_json
from mpa_edge.runs.lock import run_lock


def run_soak(bench: Bench, soak_s: float, concurrency: int, fresh: bool = False) -> Path:
    """Soak the artifact of a benchmark, and return the folder of soak.json, below that of bench.json.

    After a kill at any moment, a rerun resumes: the job on the device goes on. Ctrl-C ends it with what was measured.
    MpaError where nothing was.
    """
    timed, reach = bench.effort.timed, bench.reach
    if concurrency > 1:
        reach = replace(reach, server=reach.server or bench.target.server)
        if reach.server is None:
            raise MpaError("--concurrency asks a llama-server: name it with --server PATH")
    label = f"{bench.label or bench.scheme}/{SOAK_FOLDER}"
    bench = replace(bench, base=None, reach=reach, effort=Effort(timed, timed, bench.effort.repetitions), label=label)
    with run_lock(make_folder(bench.results)):
        _, order, bundle = prepare(bench)
        steps = tuple(step for step in order.steps if not step.repetition)
        order = replace(order, steps=steps, soak_s=soak_s, concurrency=concurrency)
        asked = {"bench": bench.inputs(bundle.sha256), "soak_s": soak_s, "concurrency": concurrency}
        inputs, job = sha256_json(asked), read_job(bench.results)
        if not fresh and job.done and job.inputs == inputs and (bench.results / SOAK).is_file():
            say(f"{bench.scheme}: soaked before, nothing changed (--fresh measures again)")
            return bench.results
        name, _ = on_device(bench, order, bundle, inputs, fresh)
        before, watch = readings_of(local_folder(bench))
        found = checked_lines(local_folder(bench) / OUT, order)
        failed = [str(line.values["reason"]) for line in found.lines if line.kind == "failed"]
        figures = figures_of(found.lines, before, watch, bench.target.thermal)
        if figures is None:
            raise MpaError(
                f"the soak on {name} has no answer ({failed[-1] if failed else 'it ended at once'}): rerun it"
            )
        loaded = next((line.values for line in found.lines if line.kind == "loaded"), {})
        made = Soak(
            run=bench.run.resolve().name,
            scheme=bench.scheme,
            target=bench.target.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(before, loaded, name),
            asked_s=soak_s,
            concurrency=concurrency,
            cautions=(*(f"it ended: {reason}" for reason in failed), *found.cautions),
            **figures,
        )
        write_json(bench.results / SOAK, made)
        write_json(bench.results / JOB, {"inputs": inputs, "done": True})
    return bench.results
