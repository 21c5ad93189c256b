"""Shard after shard, in this process."""

from __future__ import annotations

from mpa_edge.engines import Job, Outcome, Worker
from mpa_edge.engines.retries import Budget, attempt, forgive, tries_line
from mpa_edge.progress import progress


def run_local(job: Job, lent: Worker | None = None) -> Outcome:
    """All shards of a job with one worker; one that is lent stays open. Raises what the user has to mend."""
    budget, failed = Budget(job), [0]
    if not job.todo:
        return Outcome()
    worker = lent or job.make()
    units = job.total if job.units is None else job.units
    with progress(job.title, units, job.units_done, lambda: tries_line(failed[0]) if failed[0] else "") as advance:
        for shard in job.todo:
            forgive(job.folder, shard)
            reason = _try(job, worker, shard, failed)
            if reason is None:
                job.written(shard)
            else:
                budget.set_aside(shard, job.config.shard_tries, reason)
            advance(job.weigh(shard))
    facts = worker.facts()
    if not lent:
        worker.close()
    return Outcome(tuple(budget.aside), facts)


def _try(job: Job, worker: Worker, shard: int, failed: list[int]) -> str | None:
    """None once it is done, else the reason of the last try."""
    reason, entries = None, job.entries(shard)
    for _ in range(job.config.shard_tries):
        reason = attempt(lambda: worker.do(shard, entries, None))
        if reason is None:
            break
        failed[0] += 1
    return reason
