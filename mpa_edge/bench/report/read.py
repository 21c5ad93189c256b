"""Benchmark folders on the disk: found, read, and checked. Nothing in them is trusted."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mpa_edge.bench.measurement import SOAK_FOLDER
from mpa_edge.bench.results.records import ANSWERS, BENCH, SWEEP, TIMINGS, AnswerRow, BenchReport, Sweep, Timed
from mpa_edge.bench.results.reviewed import with_review
from mpa_edge.bench.results.soak import SOAK, Soak
from mpa_edge.errors import MpaError, OutsideError
from mpa_edge.runs.log import LOG_FILE, RUN_FILE
from mpa_edge.runs.paths import inside, require_plain

FOLDER = "bench"
MAX_THUMBNAIL_BYTES = 300_000
MAX_ROWS_BYTES = 500_000_000
MAGIC = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
Row = TypeVar("Row", bound=BaseModel)


@dataclass(frozen=True)
class BenchData:
    """One benchmark with the files beside it."""

    folder: Path
    """Where bench.json is."""
    report: BenchReport
    """Of bench.json."""
    answers: tuple[AnswerRow, ...] = ()
    """Of answers.jsonl; empty where it is missing."""
    timings: tuple[Timed, ...] = ()
    """Of timings.jsonl; empty where it is missing."""
    thumbnails: dict[str, str] = field(default_factory=dict)
    """`thumbnail` of a row -> data URI, for the ones that are there."""
    sweep: Sweep | None = None
    """Sweep of the target, if there is one."""
    soak: Soak | None = None
    """Of the same scheme, if there is one."""
    notes: tuple[str, ...] = ()
    """What could not be read, in words."""
    has_log: bool = False
    """Whether its run has a log."""

    @property
    def title(self) -> str:
        """Run, scheme and target, and the accelerator where it is not the CPU."""
        by = "" if self.accelerator == "cpu" else f" ({self.accelerator})"
        return f"{self.report.run}: {self.report.scheme} on {self.report.target}{by}"

    @property
    def accelerator(self) -> str:
        """The one that was used."""
        return self.report.accelerator.used if self.report.accelerator else "cpu"


def find_benches(run: Path) -> list[Path]:
    """Folders with a bench.json: RUN/bench/TARGET/SCHEME, or the folder itself. MpaError where there is none."""
    if not run.is_dir():
        raise MpaError(f"no folder {run}: give a run that was benchmarked, or make one with mpa-edge align")
    if (run / RUN_FILE).is_file():
        require_plain(run)
    places = [run / BENCH, *sorted((run / FOLDER).glob(f"*/*/{BENCH}")), *sorted(run.glob(f"*/{BENCH}"))]
    found = [inside(run, path.relative_to(run).as_posix()).parent for path in places if path.is_file()]
    if not found:
        raise MpaError(f"{run} has no benchmark yet: mpa-edge bench {run}")
    return list(dict.fromkeys(found))


def read_bench(folder: Path) -> BenchData:
    """A benchmark folder. Missing or torn side files are noted; MpaError where bench.json itself cannot be used.

    Where its questions were reviewed since, the report says what is true.
    """
    require_plain(folder)
    report = _document(folder / BENCH, BenchReport)
    answers, answer_notes = _rows(folder / ANSWERS, AnswerRow)
    timings, timing_notes = _rows(folder / TIMINGS, Timed)
    names = sorted({row.thumbnail for row in answers if row.thumbnail})
    thumbnails = {name: uri for name in names if (uri := data_uri(folder, name))}
    notes = [*answer_notes, *timing_notes]
    if missing := len(names) - len(thumbnails):
        notes.append(f"{missing} of {len(names)} thumbnails are missing or cannot be shown")
    path = inside(folder.parent, SWEEP)
    sweep = _document(path, Sweep) if path.is_file() else None
    path = inside(folder, f"{SOAK_FOLDER}/{SOAK}")
    soak = _document(path, Soak) if path.is_file() else None
    above = folder.absolute().parents
    if run := next((parent for parent in above[:4] if (parent / RUN_FILE).is_file()), None):
        report = with_review(report, answers, run)
    has_log = len(above) > 2 and above[1].name == FOLDER and (above[2] / LOG_FILE).is_file()
    return BenchData(folder, report, tuple(answers), tuple(timings), thumbnails, sweep, soak, tuple(notes), has_log)


def log_line(benches: Sequence[BenchData]) -> str:
    """Where the log of each run is, relative to the run; empty where no run has one."""
    runs = list(dict.fromkeys(data.report.run for data in benches))
    logged = list(dict.fromkeys(data.report.run for data in benches if data.has_log))
    if not logged:
        return ""
    return f"Log: {LOG_FILE}" + (f" (of {', '.join(logged)})" if len(runs) > 1 else "")


def _document(path: Path, kind: type[Row]) -> Row:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MpaError(f"cannot read {path} ({error.strerror}): run mpa-edge bench again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise MpaError(f"{path} is damaged ({where}: {first['msg']}): run mpa-edge bench again") from error


def _rows(path: Path, kind: type[Row]) -> tuple[list[Row], list[str]]:
    """(rows, notes about what could not be read)."""
    try:
        if path.stat().st_size > MAX_ROWS_BYTES:
            return [], [f"{path.name} is too large to read"]
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except OSError:
        return [], [f"{path.name} is missing"]
    rows, damaged = [], 0
    for line in lines:
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return rows, [f"{path.name}: {damaged} of {len(lines)} lines are damaged and left out"] if damaged else []


def data_uri(folder: Path, name: str) -> str | None:
    """A small JPEG or PNG below the folder as a data URI; None for anything else."""
    try:
        path = inside(folder, name)
        if path.stat().st_size > MAX_THUMBNAIL_BYTES:
            return None
        data = path.read_bytes()
    except (OSError, OutsideError):
        return None
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind else None
