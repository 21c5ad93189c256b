"""What the stages that ask the teacher share where it is a server: what it cost, when to stop, what to ask again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.manifest import INPUTS
from mpa_edge.runs.parquet import count_reasons
from mpa_edge.stages.run import Run
from mpa_edge.types import VLM, Dropped, TeacherUsage
from mpa_edge.vlm.openai.cost import add
from mpa_edge.vlm.openai.reference import is_server, parse
from mpa_edge.vlm.openai.reply import TOO_DEAR, is_failure

LEDGER = "teacher-usage.json"
CARD = "server.json"


def teacher_options(run: Run, patient: bool = True) -> dict[str, Any]:
    """Further arguments of `load` for the teacher: none for a checkpoint. Not patient: nobody waits for a server."""
    if not is_server(run.recipe.teacher):
        return {}
    used, server = total_usage(run), run.recipe.teacher_server
    server = server if patient else server.model_copy(update={"wait_s": 0.0})
    return {"server": server, "spent_before": (used.cost if used else None) or 0.0}


def if_there(loader: Callable[[], VLM], needed: bool) -> VLM | None:
    """The teacher; None where it is away and only a few rows would be asked once more: they stay dropped.

    A stage that is done must not need its server again.
    """
    try:
        return loader()
    except MpaError as error:
        if needed:
            raise
        say(f"rows that the teacher's server left out stay out: {error}")
        return None


def usage_of(run: Run, stage: str) -> TeacherUsage | None:
    """What a stage's teacher has used so far, in all attempts; None where it was no server."""
    try:
        return TeacherUsage.model_validate((read_json(run.folder / LEDGER) or {}).get(stage))
    except (ValidationError, AttributeError):
        return None


def total_usage(run: Run) -> TeacherUsage | None:
    """What all stages have used; None where the teacher is no server."""
    found = [used for stage in ("annotate", "identify", "evaluate") if (used := usage_of(run, stage))]
    total = found[0] if found else None
    for used in found[1:]:
        total = add(total, used) if total else used
    return total


def usage_counts(run: Run, stage: str) -> dict[str, int]:
    """The same as counts of a manifest; the cost in millionths, because counts are whole numbers."""
    used = usage_of(run, stage)
    if used is None:
        return {}
    counts = {f"teacher_{name}": value for name, value in used.model_dump(exclude={"cost"}).items()}
    return counts | ({} if used.cost is None else {"teacher_cost_millionths": round(used.cost * 1e6)})


@contextmanager
def account(run: Run, stage: str, teacher: VLM) -> Iterator[Callable[[], None]]:
    """Write down what a teacher uses while a stage works, also where it ends in an error.

    The value is a function to call after each shard: a kill forgets no more than one. A checkpoint costs nothing.
    """
    before = usage_of(run, stage)

    def save() -> None:
        used: TeacherUsage | None = getattr(teacher, "usage", None)
        if used is not None:
            known = read_json(run.folder / LEDGER)
            sum_ = add(before, used) if before else used
            write_json(run.folder / LEDGER, (known if isinstance(known, dict) else {}) | {stage: sum_.model_dump()})

    try:
        yield save
    finally:
        save()


def picture_settings(run: Run) -> dict[str, Any]:
    """What a server is shown of a picture, as far as the recipe says it: part of what annotations depend on."""
    config = run.recipe.teacher_server
    pictures = {"image_format": config.image_format, "max_image_bytes": config.max_image_bytes}
    return pictures if is_server(run.recipe.teacher) else {}


def failures(dropped: Collection[Dropped]) -> list[Dropped]:
    """The rows that are missing because the server failed: worth asking again."""
    return [row for row in dropped if is_failure(row.reason)]


def is_spoilt(run: Run, dropped: Collection[Dropped], asked: int) -> bool:
    """Whether a shard lost more of its rows to the server than may be left out."""
    return len(failures(dropped)) > run.recipe.teacher_server.max_failed * asked


def require_answers(run: Run, dropped: Collection[Dropped], asked: int, again: bool = False) -> None:
    """Raise MpaError where a shard lost too many of its rows to the server, or the money has run out.

    `again`: its missing rows were asked once more; a few that are too dear now may stay out.
    """
    lost, spoilt = failures(dropped), is_spoilt(run, dropped, asked)
    if any(row.reason == TOO_DEAR for row in lost) and (spoilt or not again):
        raise too_dear(run)
    if spoilt:
        why = ", ".join(f"{reason}: {n}" for reason, n in count_reasons(lost).items())
        detail = next((f" ({row.detail})" for row in lost if row.detail), "")
        raise MpaError(
            f"the teacher's server left {len(lost)} of {asked} rows of a shard without an answer, above "
            f"teacher_server.max_failed; {why}{detail}: mend the server and run the same command again"
        )


def too_dear(run: Run) -> MpaError:
    """The error of a run that would cost more than it may."""
    used = total_usage(run) or TeacherUsage()
    return MpaError(
        f"--max-cost {run.recipe.teacher_server.max_cost:g} is reached ({used.cost or 0:.4f} spent on {used.requests} "
        f"requests): raise it and run the same command again, what came is kept"
    )


def check_card(run: Run, teacher: VLM, write: bool) -> None:
    """Rows of two models must not mix: the server says that its model is still the one of the first row.

    Raises MpaError where it is another one. A server that says nothing about its models is believed.
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
            f"{now.get(differs)}): start it with the first one, or begin again with --fresh"
        )
    if write and not then:
        server = parse(run.recipe.teacher)
        write_json(path, {"base_url": server.base_url, "model": server.model, "card": now})


def nothing_built_on(run: Run, stage: str) -> bool:
    """Whether rows that are missing may still come: the next stage has not begun."""
    return not (run.stage_folder(stage) / INPUTS).is_file()


def usage_line(used: TeacherUsage) -> str:
    """For the screen.

    >>> usage_line(TeacherUsage(requests=12, tokens_in=3400, tokens_out=56, failures=1, cost=0.0123))
    'teacher: 12 requests, 3,400 tokens in, 56 out, 1 failed attempts, cost 0.0123'
    """
    parts = [f"{used.requests:,} requests", f"{used.tokens_in:,} tokens in", f"{used.tokens_out:,} out"]
    parts += [f"{used.failures:,} failed attempts"] if used.failures else []
    parts += [f"{used.uncounted:,} replies without a token count"] if used.uncounted else []
    parts += [] if used.cost is None else [f"cost {used.cost:.4f}"]
    return "teacher: " + ", ".join(parts)


def joined(kept: Sequence[Any], more: Sequence[Any], order: dict[str, int]) -> list[Any]:
    """Rows of two attempts in the order in which one would have made them."""
    return sorted([*kept, *more], key=lambda row: order.get(row.id, len(order)))
