"""The budgets of one benchmark: what its target can do for its model, asked about its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.host.bundle import weight_files
from mpa_edge.bench.measurement import Bench
from mpa_edge.config.target import BudgetName
from mpa_edge.planning.budgets import Limit, limits, work_of
from mpa_edge.planning.model_specs import Size, UnknownModelError, model_spec
from mpa_edge.progress import say
from mpa_edge.runs.manifest import FOLDERS


def limits_of(bench: Bench, sizes: Sequence[Size]) -> dict[BudgetName, Limit]:
    """Limit of each budget; `sizes`: of the images of the timed questions, width and height in pixels.

    Where the sizes of the model are not known, only the limits that the target itself names.
    """
    artifact = read_artifact(bench.artifact)
    files = {
        part: sum((bench.artifact / file).stat().st_size for file in weight_files(bench.artifact, [name]))
        for part, name in artifact.files.items()
    }
    try:
        spec = replace(model_spec(str(bench.run / FOLDERS["merge"])), image=artifact.image)
        work = work_of(spec, sizes, bench.target, files, artifact.context_tokens)
    except UnknownModelError as error:
        say(f"{bench.scheme}: no budgets are derived ({error})")
        return limits(bench.target, None)
    return limits(bench.target, work)
