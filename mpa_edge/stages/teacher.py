"""A teacher behind a server: what it cost, when to stop, and whether it is still the same model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.manifest import INPUTS
from mpa_edge.runs.parquet import count_reasons
from mpa_edge.stages.run import Run
from mpa_edge.types import VLM, Dropped, TeacherUsage
from mpa_edge.vlm.openai.cost import add
from mpa_edge.vlm.openai.reference import is_server, parse
from mpa_edge.vlm.openai.reply import OVER_BUDGET, is_failure

LEDGER = "teacher-usage.json"
CARD = "server.json"
REPLIES = ".replies.jsonl"


def teacher_options(run: Run, wait: bool = True) -> dict[str, Any]:
    """Further arguments of `load` for the teacher; none for a checkpoint. Without `wait`, a server must be up."""
    if not is_server(run.recipe.teacher):
        return {}
    used, server = total_usage(run), run.recipe.teacher_server
    server = server if wait else server.model_copy(update={"wait_s": 0.0})
    return {"server": server, "spent_before": (used.cost if used else None) or 0.0}


def usage_of(run: Run, stage: str) -> TeacherUsage | None:
    """What the teacher of a stage used in all attempts; None where it was no server."""
    try:
        return TeacherUsage.model_validate((read_json(run.folder / LEDGER) or {}).get(stage))
    except (ValidationError, AttributeError):
        return None


def total_usage(run: Run) -> TeacherUsage | None:
    """What the teacher used in all stages; None where it is no server."""
    total = None
    for stage in ("annotate", "silver", "identify", "evaluate"):
        if used := usage_of(run, stage):
            total = add(total, used) if total else used
    return total


def usage_counts(run: Run, stage: str) -> dict[str, int]:
    """Usage of a stage as counts of its manifest. Counts are whole numbers, so the cost is in millionths."""
    used = usage_of(run, stage)
    if used is None:
        return {}
    counts = {f"teacher_{name}": value for name, value in used.model_dump(exclude={"cost"}).items()}
    return counts | ({} if used.cost is None else {"teacher_cost_millionths": round(used.cost * 1e6)})


@contextmanager
def account(run: Run, stage: str, teacher: VLM) -> Iterator[Callable[..., None]]:
    """Keep the books of a teacher while a stage works: the cost before each request, the replies as they come.

    The value is a function to call after each shard that is written, with `whole=False` where rows of it, or of one
    before, are still missing: their other replies are kept. A checkpoint costs nothing.
    """
    before = usage_of(run, stage)
    keep_books: Callable[[Callable[[], None], Path], None] | None = getattr(teacher, "keep_books", None)

    def save(*, sync: bool) -> None:
        used: TeacherUsage | None = getattr(teacher, "usage", None)
        if used is not None:
            known = read_json(run.folder / LEDGER)
            sums = (known if isinstance(known, dict) else {}) | {
                stage: (add(before, used) if before else used).model_dump()
            }
            write_json(run.folder / LEDGER, sums, sync=sync)

    def written(*, whole: bool = True) -> None:
        save(sync=True)
        if keep_books is not None:
            teacher.forget_replies(only_many=not whole)  # type: ignore[attr-defined]

    if keep_books is not None:
        keep_books(partial(save, sync=False), run.stage_folder(stage) / REPLIES)
    try:
        yield written
    finally:
        save(sync=True)


def image_settings(run: Run) -> dict[str, Any]:
    """How images are sent to a server: annotations depend on it."""
    config = run.recipe.teacher_server
    settings = {"image_format": config.image_format, "max_image_bytes": config.max_image_bytes}
    return settings if is_server(run.recipe.teacher) else {}


def failures(dropped: Collection[Dropped]) -> list[Dropped]:
    """The rows that are missing because the server failed: worth asking again."""
    return [row for row in dropped if is_failure(row.reason)]


def is_spoilt(run: Run, dropped: Collection[Dropped], asked: int) -> bool:
    """Whether the server failed for a larger share of the `asked` rows of a shard than the recipe allows."""
    return len(failures(dropped)) > run.recipe.teacher_server.max_failed * asked


def require_answers(run: Run, dropped: Collection[Dropped], asked: int, again: bool = False) -> None:
    """Raise MpaError where the server failed for too many rows of a shard, or the cost limit is reached.

    `again`: the missing rows were asked for once more; a few of them may stay out because of the cost.
    """
    lost, spoilt = failures(dropped), is_spoilt(run, dropped, asked)
    if any(row.reason == OVER_BUDGET for row in lost) and (spoilt or not again):
        used = total_usage(run) or TeacherUsage()
        raise MpaError(
            f"--max-cost {run.recipe.teacher_server.max_cost:g} is reached ({used.cost or 0:.4f} spent on "
            f"{used.requests} requests): raise it and rerun; what was answered is kept"
        )
    if spoilt:
        why = ", ".join(f"{reason}: {n}" for reason, n in count_reasons(lost).items())
        detail = next((f" ({row.detail})" for row in lost if row.detail), "")
        raise MpaError(
            f"the teacher's server did not answer {len(lost)} of {asked} rows of a shard, more than "
            f"teacher_server.max_failed; {why}{detail}: fix the server and rerun"
        )


def check_card(run: Run, teacher: VLM, write: bool) -> None:
    """Raise MpaError where the server's model is not the one of the first row: rows of two models must not mix.

    A server that says nothing about its models is trusted. With `write`, the card of the first row is kept.
    """
    now: dict[str, Any] | None = getattr(teacher, "card", None)
    if now is None:
        return
    path = run.stage_folder("annotate") / CARD
    before = read_json(path)
    then = before.get("card") if isinstance(before, dict) else None
    if isinstance(then, dict) and then and now and then != now:
        differs = next(key for key in sorted({*then, *now}) if then.get(key) != now.get(key))
        raise MpaError(
            f"the teacher's server has another model than before ({differs}: {then.get(differs)}, now "
            f"{now.get(differs)}): start it with the first one, or rerun with --fresh"
        )
    if write and not then:
        server = parse(run.recipe.teacher)
        write_json(path, {"base_url": server.base_url, "model": server.model, "card": now})


def nothing_built_on(run: Run, stage: str) -> bool:
    """Whether missing rows may still be added: `stage`, which reads them, has not begun."""
    return not (run.stage_folder(stage) / INPUTS).is_file()


def usage_line(used: TeacherUsage) -> str:
    """One line for the screen.

    >>> usage_line(TeacherUsage(requests=12, tokens_in=3400, tokens_out=56, failures=1, cost=0.0123))
    'teacher: 12 requests, 3,400 tokens in, 56 out, 1 failed attempts, cost 0.0123'
    """
    parts = [f"{used.requests:,} requests", f"{used.tokens_in:,} tokens in", f"{used.tokens_out:,} out"]
    parts += [f"{used.failures:,} failed attempts"] if used.failures else []
    parts += [f"{used.uncounted:,} replies without a token count"] if used.uncounted else []
    parts += [] if used.cost is None else [f"cost {used.cost:.4f}"]
    return "teacher: " + ", ".join(parts)
