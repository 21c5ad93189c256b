"""Judge the teacher's answers in a browser: agreement becomes accuracy."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from mpa_edge.cli._options import dry_run_option, echo, verbose_option


@click.command("review")
@click.argument("run", metavar="RUN")
@click.option("--n", type=click.IntRange(min=1), metavar="N", help="Questions to review.  [default: 100, or all]")
@click.option(
    "--export", "export", metavar="FILE.csv", help="Write what was reviewed as labelled questions, and open no page."
)
@dry_run_option
@verbose_option
def command(run: str, n: int | None, export: str | None, dry_run: bool) -> None:
    """Judge a random sample of the teacher's answers in your browser: right, wrong, or cannot be answered.

    The page is for this machine only: its address, which is printed, has a random token. Each decision is saved at
    once, and a later review resumes. End it with Ctrl-C. From then on evaluate, export, bench and report give true
    accuracies with their intervals; no model is asked again.

    \b
    Examples:
      $ mpa-edge review runs/own
      $ mpa-edge review runs/own --n 50
      $ mpa-edge review runs/own --export held-out.csv
    """
    from mpa_edge.evaluation.review import read_decisions
    from mpa_edge.stages.review.server import serve
    from mpa_edge.stages.review.session import choose, export_reviewed, open_session, run_to_review, summary

    opened = run_to_review(run)
    if export is not None:
        return echo(f"{export}: {export_reviewed(opened, Path(export))} questions")
    if dry_run:
        asked, chosen = choose(opened, n)
        decided = read_decisions(opened.folder, asked.samples)
        return echo(f"review {len(chosen)} of {len(asked.samples)} questions; so far {summary(decided)}")
    ended = threading.Event()
    with open_session(opened, n) as session:
        # also where a shell started this in the background, and so had Ctrl-C ignored
        before = {sign: signal.signal(sign, lambda *_: ended.set()) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            with serve(session, opened.recipe.images.max_pixels) as url:
                echo(url)
                echo("open this address; end with Ctrl-C", err=True)
                ended.wait()
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)
        echo(summary(session.log.decisions))
    return None
