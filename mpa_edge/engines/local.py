"""The local engine: one shard after the other in this process."""

from __future__ import annotations

from collections.abc import Callable

from mpa_edge.engines.job import Facts, Job
from mpa_edge.engines.retries import AT_ONCE, Budget, failed_tries, poisoned_path, reason_of
from mpa_edge.progress import progress
from mpa_edge.runs.log import logger
from mpa_edge.runs.paths import remove


def run_local(job: Job, written: Callable[[int], object]) -> Facts:
    """Do all shards of a job with one model. `written` is called with the number of each shard that is done.

    Raises MpaError for what the user has to fix, and when too many shards failed.
    """
    if job.todo:
        job.worker.load()
        do_shards(job, written)
        job.worker.close()
    return job.worker.facts()


def do_shards(job: Job, written: Callable[[int], object]) -> None:
    """Like `run_local`, for a worker whose model is loaded already; it stays loaded."""
    budget, n_failed, tries = Budget(job), 0, job.config.shard_tries
    with progress(job.title, job.units, job.units_done, lambda: failed_tries(n_failed)) as advance:
        for shard in job.todo:
            remove(poisoned_path(job.folder, shard))
            item, reason = job.worker.item(shard), ""
            for n in range(1, tries + 1):
                try:
                    job.worker.do(shard, item)
                except AT_ONCE:
                    raise
                except Exception as error:  # a shard may fail in any way; it must not take the others with it
                    logger.warning("%s: shard %d failed, try %d of %d", job.title, shard, n, tries, exc_info=True)
                    reason, n_failed = reason_of(error), n_failed + 1
                else:
                    written(shard)
                    break
            else:
                budget.set_aside(shard, tries, reason)
            advance(job.sizes[shard])
