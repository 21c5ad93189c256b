"""A benchmark's questions from its official files, or from parquet files as hubs have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.questions import MISSING, QuestionSet, count, share
from mpa_edge.questions.benchmark import Benchmark, Split
from mpa_edge.questions.find import Shelf, find_all, parquet_of, read_document
from mpa_edge.questions.hub import local_data
from mpa_edge.questions.parquet import first_of_each, read_rows
from mpa_edge.questions.row import Row, answers_of, text_of, unique
from mpa_edge.types import Drop, Sample

Numbered = tuple[int, Sample]


def read_benchmark(benchmark: Benchmark, data: str, split: str | None = None, limit: int | None = None) -> QuestionSet:
    """The questions of a split, at most `limit`; of several kinds each gets its part.

    `data` is a folder, a parquet file, or the id of a data set on a hub. Raises MpaError where the files of the split
    are not there or are not what they must be, and where no picture is there.
    """
    chosen = [_split(benchmark, split)] if split else list(benchmark.splits[: benchmark.defaults])
    place = local_data(data, [name for one in chosen for name in one.parquet])
    for one in chosen:
        official = find_all(place, one.files) if place.is_dir() else None
        if official:
            return _from_official(benchmark, one, place, official, limit)
        packed = parquet_of(place, one.parquet)
        if packed:
            return _from_parquet(benchmark, one, place if place.is_dir() else place.parent, packed, limit)
    raise _nothing_there(benchmark, chosen, place)


def _split(benchmark: Benchmark, name: str) -> Split:
    for split in benchmark.splits:
        if split.name == name:
            return split
    known = ", ".join(split.name for split in benchmark.splits)
    raise MpaError(f"{benchmark.name} has no split '{name}': use --split {known.replace(', ', ' or ')}")


def _nothing_there(benchmark: Benchmark, wanted: Sequence[Split], data: Path) -> MpaError:
    """What was looked for and where, and which other splits are there."""
    others = [one.name for one in benchmark.splits if one not in wanted and data.is_dir() and _is_there(one, data)]
    if others:
        return MpaError(
            f"{data} holds no {benchmark.name} {wanted[0].name} split: use --split {' or '.join(others)}, which it has"
        )
    files = [" and ".join(one.files) for one in wanted if one.files]
    names = [f"{one.parquet[0]}-*.parquet" for one in wanted if one.parquet]
    return MpaError(
        f"{data} holds no {benchmark.name} {wanted[0].name} split: looked there and two levels below for "
        f"{' or '.join(files + names)}; name the folder that has them with --data ({benchmark.source})"
    )


def _is_there(split: Split, data: Path) -> bool:
    return find_all(data, split.files) is not None or bool(parquet_of(data, split.parquet))


def _from_official(
    benchmark: Benchmark, split: Split, data: Path, files: Mapping[str, Path], limit: int | None
) -> QuestionSet:
    """Every picture is looked for, so that a missing one is counted whatever the limit."""
    documents = {name: read_document(path) for name, path in files.items()}
    try:
        rows = list(benchmark.rows(split, documents))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = " and ".join(map(str, files.values()))
        raise MpaError(
            f"{where}: not as {benchmark.name} publishes it ({type(error).__name__}: {error}); download it again"
        ) from error
    shelf = Shelf(data, [path.parent for path in files.values()], benchmark.image_folders)
    sound, drops = _sound(rows)
    placed, missing = _placed(sound, shelf.place)
    kept = [placed[i] for i in share([sample.kind for _, sample in placed], limit)]
    return _set(benchmark, split, data, kept, [*drops, *missing])


def _from_parquet(
    benchmark: Benchmark, split: Split, folder: Path, files: Sequence[Path], limit: int | None
) -> QuestionSet:
    """Texts first, which are small; then the pictures of the chosen rows: are they there, and which are the same?"""
    sound, drops = _sound(read_rows(benchmark, folder, files))
    chosen = [sound[i] for i in share([sample.kind for _, sample in sound], limit)]
    same = first_of_each(folder, [sample.image for _, sample in chosen])
    placed, missing = _placed(chosen, same.get)
    return _set(benchmark, split, folder, placed, [*drops, *missing])


def _sound(rows: Sequence[Row]) -> tuple[list[Numbered], list[Drop]]:
    """Rows that have a question and answers, with their numbers, and why the others are left out."""
    names = unique([text_of(row.id) or f"{row.kind or 'row'}-{i}" for i, row in enumerate(rows)])
    made = [(i, _sample(name, row)) for i, (name, row) in enumerate(zip(names, rows, strict=True))]
    drops = [one for _, one in made if isinstance(one, Drop)]
    return [(i, one) for i, one in made if not isinstance(one, Drop)], drops


def _sample(name: str, row: Row) -> Sample | Drop:
    question, answers = text_of(row.question), answers_of(row.answers)
    if not question:
        return Drop("no question")
    if isinstance(answers, Drop):
        return answers
    return Sample(id=name, image=row.image, question=question, answers=answers, kind=text_of(row.kind) or None)


def _placed(samples: Sequence[Numbered], place: Callable[[str], str | None]) -> tuple[list[Numbered], list[Drop]]:
    """Samples whose picture is there, under the name that `place` gives it."""
    places = [place(sample.image) for _, sample in samples]
    pairs = list(zip(samples, places, strict=True))
    missing = [Drop(MISSING, sample.image) for (_, sample), found in pairs if found is None]
    return [(i, sample.model_copy(update={"image": found})) for (i, sample), found in pairs if found], missing


def _set(
    benchmark: Benchmark, split: Split, folder: Path, samples: Sequence[Numbered], drops: Sequence[Drop]
) -> QuestionSet:
    name = f"{benchmark.name} {split.name}"
    if not samples:
        raise _nothing_left(name, benchmark, folder, drops)
    return QuestionSet(
        name=name,
        folder=folder,
        samples=tuple(sample for _, sample in samples),
        numbers=tuple(i for i, _ in samples),
        dropped=count(drops),
        note=split.note,
        mean_of_kinds=benchmark.mean_of_kinds,
    )


def _nothing_left(name: str, benchmark: Benchmark, data: Path, drops: Sequence[Drop]) -> MpaError:
    """Why not one row can be asked."""
    missing = next((drop.detail for drop in drops if drop.reason == MISSING), None)
    if missing is not None:
        places = ", ".join(folder or "the folder itself" for folder in benchmark.image_folders)
        return MpaError(
            f"{name}: no picture is in {data} (first: '{missing}'; looked there and beside the questions, "
            f"in {places}): name the folder that has them with --data"
        )
    if drops:
        return MpaError(f"{name} comes with {drops[0].reason}: choose another --split, or hand your answers in there")
    return MpaError(f"{name} in {data} holds no question: download it again")
