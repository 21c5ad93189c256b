"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpa_edge.runs.log import escaped, logger, redacted

PLAIN_EVERY_S = 10.0
Advance = Callable[[int], None]
Note = Callable[[], str]


def say(line: str) -> None:
    """One line on stderr, and in the log of the run."""
    logger.info(line, extra={"printed": True}, stacklevel=2)
    sys.stderr.write(f"{escaped(redacted(line))}\n")
    sys.stderr.flush()


@contextmanager
def progress(title: str, total: int, done: int = 0, note: Note = str) -> Iterator[Advance]:
    """Show how far a stage is; the value is a function that takes the number of further items done.

    `note` says what else there is to see at the moment; without items, the function only shows that.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(title, total, done, note) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, done: int, note: Note) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Left
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    title_, note_ = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (title_, BarColumn(), MofNCompleteColumn(), Rate(), Left(), note_)
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda n: bar.update(task, advance=n, note=note())


@contextmanager
def _lines(title: str, total: int, done: int, note: Note) -> Iterator[Advance]:
    started = last = time.monotonic()
    first = now_done = done

    def advance(n: int) -> None:
        nonlocal last, now_done
        now_done += n
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S or (n and now_done >= total):
            last = now
            rate = (now_done - first) / max(now - started, 1e-9)
            left = f"{(total - now_done) / rate:.0f} s left" if now_done < total and rate > 0 else ""
            say(", ".join(filter(None, (f"{title} {now_done}/{total}", f"{rate:.1f}/s", left, note()))))

    yield advance
