"""A benchmark's questions from its official files, or from parquet files as hubs publish them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.metrics.reading import no_character
from mpa_edge.questions import MISSING, QuestionSet, share
from mpa_edge.questions.benchmark import Benchmark, Row, Split, answers_of, text_of, unique
from mpa_edge.questions.find import ImageFinder, find_files, find_parquet, local_data, read_document
from mpa_edge.questions.parquet import first_of_each, read_rows
from mpa_edge.types import Drop, Sample

Numbered = tuple[int, Sample]
"""Position among all rows of the split, and the sample."""


def read_benchmark(benchmark: Benchmark, data: str, split: str | None = None, limit: int | None = None) -> QuestionSet:
    """The questions of a split, at most `limit`, as evenly many of each kind as possible.

    `data` is a folder, a parquet file, or the id of a data set on a hub. Raises MpaError where the files of the split
    do not exist or are not as published, and where no image exists.
    """
    chosen = [one for one in benchmark.splits if one.name == split] if split else benchmark.splits[: benchmark.defaults]
    if not chosen:
        known = " or ".join(one.name for one in benchmark.splits)
        raise MpaError(f"{benchmark.name} has no split '{split}': use --split {known}")
    place = local_data(data, [name for one in chosen for name in one.parquet])
    folder = place if place.is_dir() else place.parent
    for one in chosen:
        files = find_files(place, one.files) if place.is_dir() else None
        packed = [] if files else find_parquet(place, one.parquet)
        if files:
            return _from_official(benchmark, one, folder, files, limit)
        if packed:
            return _from_parquet(benchmark, one, folder, packed, limit)
    missing = f"{place} holds no {benchmark.name} {chosen[0].name} split"
    others = [
        one.name
        for one in benchmark.splits
        if one not in chosen and place.is_dir() and (find_files(place, one.files) or find_parquet(place, one.parquet))
    ]
    if others:
        raise MpaError(f"{missing}: use --split {' or '.join(others)}, which it has")
    wanted = [" and ".join(one.files) for one in chosen if one.files]
    wanted += [f"{one.parquet[0]}-*.parquet" for one in chosen if one.parquet]
    raise MpaError(
        f"{missing}: looked there and two levels below for {' or '.join(wanted)}; name the folder that has them with "
        f"--data ({benchmark.source})"
    )


def _from_official(
    benchmark: Benchmark, split: Split, folder: Path, files: dict[str, Path], limit: int | None
) -> QuestionSet:
    """Every image is looked for, so that a missing one is counted whatever the limit."""
    documents = {name: read_document(path) for name, path in files.items()}
    try:
        rows = list(benchmark.rows(split, documents))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = " and ".join(map(str, files.values()))
        raise MpaError(
            f"{where}: not as {benchmark.name} publishes it ({type(error).__name__}: {error}); download it again"
        ) from error
    finder = ImageFinder(folder, [path.parent for path in files.values()], benchmark.image_folders)
    samples, drops = _samples(rows)
    placed, missing = _with_images(samples, finder)
    kept = [placed[i] for i in share([sample.kind for _, sample in placed], limit)]
    return _question_set(benchmark, split, folder, kept, [*drops, *missing])


def _from_parquet(
    benchmark: Benchmark, split: Split, folder: Path, files: Sequence[Path], limit: int | None
) -> QuestionSet:
    """Texts first, which are small; then only the images of the chosen rows are read."""
    samples, drops = _samples([row for path in files for row in read_rows(benchmark, folder, path)])
    chosen = [samples[i] for i in share([sample.kind for _, sample in samples], limit)]
    same = first_of_each(folder, [sample.image for _, sample in chosen])
    placed, missing = _with_images(chosen, same.get)
    return _question_set(benchmark, split, folder, placed, [*drops, *missing])


def _samples(rows: Sequence[Row]) -> tuple[list[Numbered], list[Drop]]:
    """Rows that have a question and answers, with their numbers, and why the others are left out."""
    ids = unique([text_of(row.id) or f"{row.kind or 'row'}-{i}" for i, row in enumerate(rows)])
    samples, drops = list[Numbered](), []
    for i, (sample_id, row) in enumerate(zip(ids, rows, strict=True)):
        question, answers, kind = text_of(row.question), answers_of(row.answers), text_of(row.kind) or None
        if not question:
            drops.append(Drop("no question"))
        elif isinstance(answers, Drop):
            drops.append(answers)
        elif no_character(sample_id, row.image, question, kind or "", *answers):
            drops.append(Drop("damaged text"))
        else:
            samples.append((i, Sample(id=sample_id, image=row.image, question=question, answers=answers, kind=kind)))
    return samples, drops


def _with_images(samples: Sequence[Numbered], place: Callable[[str], str | None]) -> tuple[list[Numbered], list[Drop]]:
    """Samples whose image exists, under the name that `place` gives it, and a drop for each of the others."""
    placed, missing = list[Numbered](), []
    for i, sample in samples:
        image = place(sample.image)
        if image is None:
            missing.append(Drop(MISSING, sample.image))
        else:
            placed.append((i, sample.model_copy(update={"image": image})))
    return placed, missing


def _question_set(
    benchmark: Benchmark, split: Split, folder: Path, samples: Sequence[Numbered], drops: Sequence[Drop]
) -> QuestionSet:
    name = f"{benchmark.name} {split.name}"
    if not samples:
        missing = next((drop.detail for drop in drops if drop.reason == MISSING), None)
        if missing is not None:
            places = ", ".join(inside or "the folder itself" for inside in benchmark.image_folders)
            raise MpaError(
                f"{name}: no image is in {folder} (first: '{missing}'; looked there and beside the questions, "
                f"in {places}): name the folder that has them with --data"
            )
        if drops:
            raise MpaError(f"{name} comes with {drops[0].reason}: choose another --split, or use its own test server")
        raise MpaError(f"{name} in {folder} holds no question: download it again")
    return QuestionSet(
        name=name,
        folder=folder,
        samples=tuple(sample for _, sample in samples),
        numbers=tuple(i for i, _ in samples),
        dropped=dict(Counter(drop.reason for drop in drops).most_common()),
        note=split.note,
        mean_of_kinds=benchmark.mean_of_kinds,
    )
