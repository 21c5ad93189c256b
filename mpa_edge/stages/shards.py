"""What annotate and identify share when they run over shards: the choice of the engine, and a worker with one model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from pydantic import BaseModel

from mpa_edge.engines.job import Facts, Job, Worker
from mpa_edge.engines.local import do_shards, run_local
from mpa_edge.engines.retries import poisoned
from mpa_edge.errors import MpaError
from mpa_edge.images.parquet import is_parquet_row
from mpa_edge.progress import say
from mpa_edge.runs.memory import peak_rss_bytes
from mpa_edge.runs.parquet import dropped_path, is_whole, part_path, read_rows
from mpa_edge.stages.run import Run, device_used, with_absolute_paths
from mpa_edge.stages.teacher import account, check_card, failures, is_spoilt, require_answers, teacher_options
from mpa_edge.types import VLM, Drop, Dropped
from mpa_edge.vlm.openai.reference import is_server

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")
RunJob = Callable[[Job, Callable[[int], object]], Facts]
"""(job, what to call with the number of each shard that is done) -> what the workers used."""


@contextmanager
def engine_of(run: Run) -> Iterator[RunJob]:
    """The engine that the user chose. A Ray cluster that is started for it ends with the block."""
    if run.engine.name == "local":
        yield run_local
        return
    from mpa_edge.engines.ray_engine import ray_engine

    with ray_engine(run.engine, run.recipe.device) as run_job:
        yield run_job


class ShardWorker(Worker):
    """Asks the teacher or the student about shards of a run, and writes a part of `record` rows for each."""

    model: ClassVar[str] = "teacher"
    record: ClassVar[type[BaseModel]]

    def __init__(self, run: Run, loader: Callable[..., VLM]) -> None:
        """`loader` is `vlm.load`, or what stands in for it in a test."""
        self.run, self.loader = run, loader
        self.vlm: Any = None
        """The model, once it is loaded."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the parts are."""

    @property
    def batch_size(self) -> int:
        """Largest batch of the model."""
        return self.run.recipe.identify.batch_size

    def load(self, wait: bool = True) -> None:
        """Load the model; without `wait`, a teacher behind a server must be up."""
        recipe = self.run.recipe
        self.vlm = self.loader(
            recipe.teacher if self.model == "teacher" else recipe.student,
            name=self.model,
            device=recipe.device,
            threads=recipe.threads,
            batch_size=self.batch_size,
            **(teacher_options(self.run, wait) if self.model == "teacher" else {}),
        )

    def facts(self) -> Facts:
        """What this process used for its models so far."""
        return Facts(device_used(self.run.recipe.device), peak_rss_bytes())

    def close(self) -> None:
        """Free the model."""
        self.vlm.close()

    def must_see(self) -> Sequence[Path]:
        """The first image that is a file: without the images folder, all images would look broken."""
        paths = (entry.path.absolute() for entry in self.run.entries if entry.drop is None)
        return tuple(islice((path for path in paths if not is_parquet_row(path)), 1))

    def portable(self) -> Self:
        """The same worker with whole paths and nothing cached, for another process."""
        run = self.run
        images = str(run.images_folder.absolute())
        moved = Run(run.folder.absolute(), with_absolute_paths(run.recipe), images=images, limit=run.limit)
        return type(self)(moved, self.loader)

    def moved(self, folder: Path) -> Self:
        """The same worker in another run folder."""
        return type(self)(replace(self.run, folder=folder), self.loader)

    def is_done(self, shard: int) -> bool:
        """Whether the part is there and whole."""
        return is_whole(self.folder, shard, self.record)

    def files(self, shard: int) -> list[str]:
        """Both files of a part, as paths in the run folder."""
        return files_of(self.run, self.folder, shard)

    def rows(self, shard: int) -> list[Any]:
        """The rows of a part; none where it is not written yet."""
        return read_rows(part_path(self.folder, shard), self.record) if self.is_done(shard) else []

    def dropped(self, shard: int) -> list[Dropped]:
        """The dropped rows of a part; none where it is not written yet."""
        return read_rows(dropped_path(self.folder, shard), Dropped) if self.is_done(shard) else []

    def lost(self, shard: int) -> tuple[list[Dropped], int]:
        """(dropped rows, rows that were asked for) of a part; a broken image was not asked about."""
        dropped = [row for row in self.dropped(shard) if row.id != row.image]
        return dropped, len(dropped) + len(self.rows(shard))

    def incomplete(self, shards: Iterable[int]) -> list[int]:
        """Those of the shards with rows that the teacher's server left without an answer."""
        return [i for i in shards if failures(self.dropped(i))] if is_server(self.run.recipe.teacher) else []


def ask_teacher(
    run: Run, stage: str, job: Job, run_job: RunJob, written: Callable[[int], object], incomplete: Sequence[int] = ()
) -> Facts:
    """Do a job whose worker asks the teacher.

    A teacher behind a server is asked by this process, whatever the engine: one place counts what it costs. What it
    leaves without an answer is asked once more at the end, also in shards that are `incomplete` from an earlier run.
    """
    if not is_server(run.recipe.teacher):
        return run_job(job, written)
    if run.engine.name == "ray":
        say(f"{stage}: the teacher is a server, so this process asks it; --engine ray is for models that actors load")
    worker, todo = cast("ShardWorker", job.worker), sorted({*job.todo, *incomplete})
    needed = bool(job.todo) or any(is_spoilt(run, *worker.lost(i)) for i in incomplete)
    if not todo:
        return worker.facts()
    try:
        worker.load(wait=needed)
    except MpaError as error:
        if needed:
            raise
        # a stage that was finished must not need its server again
        say(f"rows that the teacher's server did not answer stay out: {error}")
        return worker.facts()
    check_card(run, worker.vlm, write=stage == "annotate")
    asked_before, lossy = set(incomplete), set(incomplete)
    with account(run, stage, worker.vlm) as booked:

        def checked(shard: int) -> None:
            written(shard)
            (lossy.add if failures(worker.dropped(shard)) else lossy.discard)(shard)
            booked(whole=not lossy)
            require_answers(run, *worker.lost(shard), again=shard in asked_before)

        do_shards(replace(job, todo=todo), checked)
        for shard in todo:
            if failures(worker.dropped(shard)):
                asked_before.add(shard)
                worker.do(shard, worker.item(shard))
                checked(shard)
    worker.close()
    return worker.facts()


def files_of(run: Run, folder: Path, shard: int) -> list[str]:
    """The two files of a part in the order in which `write_part` writes them, as paths in the run folder."""
    return [path(folder, shard).relative_to(run.folder).as_posix() for path in (dropped_path, part_path)]


def open_ahead(items: Iterable[Item], opener: Callable[[Item], Image | Drop], budget_bytes: int) -> dict[Item, Image]:
    """Decoded images of the first items, as many as fit (three bytes a pixel).

    What cannot be read here is left out: this may be a machine without the images folder, so the worker tries again.
    """
    opened: dict[Item, Image] = {}
    held = 0
    for item in items:
        image = opener(item)
        if isinstance(image, Drop):
            continue
        held += 3 * image.width * image.height
        if held > budget_bytes:
            break
        opened[item] = image
    return opened


def poisoned_counts(folder: Path) -> dict[str, int]:
    """The number of shards that were set aside as a count of the manifest; nothing where there are none."""
    n = len(poisoned(folder))
    return {"poisoned_shards": n} if n else {}
