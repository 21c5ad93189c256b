"""What annotate and identify share where an engine runs their shards: a run that can travel, pictures read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpa_edge.engines import Facts, Job, Outcome
from mpa_edge.engines.local import run_local
from mpa_edge.engines.retries import poisoned
from mpa_edge.images.parquet import is_packed
from mpa_edge.progress import say
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.parquet import dropped_path, part_path
from mpa_edge.stages.run import Run, device_used, with_absolute_paths
from mpa_edge.types import VLM, Drop

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")
Do = Callable[[Job], Outcome]


@contextmanager
def engine_of(run: Run) -> Iterator[Do]:
    """What runs the shards of a job where the user wants it; a cluster of our own lives as long as the block."""
    if run.engine.name == "local":
        yield run_local
        return
    from mpa_edge.engines.ray_engine import ray_jobs

    with ray_jobs(run.engine, run.recipe.device) as do:
        yield do


def stays_here(run: Run, stage: str, asks_server: bool) -> bool:
    """Whether this process does the work itself; a server is asked from one place, which counts what it costs."""
    if run.engine.name == "ray" and asks_server:
        say(f"{stage}: the teacher is a server, so this process asks it; --engine ray is for models that actors load")
    return run.engine.name == "local" or asks_server


def portable(run: Run) -> Run:
    """The same run for another process, perhaps with another working folder: whole paths, nothing remembered."""
    return Run(
        run.folder.absolute(),
        with_absolute_paths(run.recipe),
        images=str(run.images_folder.absolute()),
        limit=run.limit,
    )


def facts(run: Run) -> Facts:
    """What this process used for its models."""
    return Facts(device_used(run.recipe.device), peak_rss_bytes())


def read_ahead(items: Sequence[Item], opener: Callable[[Item], Image | Drop], budget_bytes: int) -> list[Any]:
    """Opened pictures of the first items, None for those that do not fit: three bytes a pixel."""
    opened: list[Any] = [None] * len(items)
    held = 0
    for i, item in enumerate(items):
        image = opener(item)
        if isinstance(image, Drop):
            continue  # who reads ahead may be on a machine that does not see it: the worker looks for itself
        held += 3 * image.width * image.height
        if held > budget_bytes:
            break
        opened[i] = image
    return opened


def poisoned_counts(folder: Path) -> dict[str, int]:
    """Shards that are set aside, as a count of the manifest; none where there are none."""
    n = len(poisoned(folder))
    return {"poisoned_shards": n} if n else {}


def witness(run: Run) -> tuple[Path, ...]:
    """What a machine must see that opens the pictures: a missing folder would look like many broken pictures."""
    found = (entry.path.absolute() for entry in run.entries if entry.drop is None)
    return tuple(islice((path for path in found if not is_packed(path)), 1))


def names_of(run: Run, folder: Path, shard: int) -> list[str]:
    """Both files of a shard as paths in the run folder, as `write_part` writes them."""
    return [path(folder, shard).relative_to(run.folder).as_posix() for path in (dropped_path, part_path)]


class ModelWorker:
    """A worker that holds one VLM."""

    def __init__(self, run: Run, vlm: VLM) -> None:
        self.run, self.vlm = run, vlm

    def facts(self) -> Facts:
        """What it used so far."""
        return facts(self.run)

    def close(self) -> None:
        """Free the model."""
        self.vlm.close()


def anywhere(entries: Sequence[Any]) -> list[Any]:
    """Entries of images with whole paths, for another process."""
    return [replace(entry, root=entry.root.absolute()) for entry in entries]
