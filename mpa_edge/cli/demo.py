"""The whole way on the built-in models: align, export, bench, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from mpa_edge.cli._options import dry_run_option
from mpa_edge.cli.main import exit_code

RECIPE, TARGET = "minicharts", "cpu"
SCHEMES = ("onnx-int8", "gguf-q8_0")
BUDGET_S = {
    "annotate": 60,
    "identify": 60,
    "level": 180,
    "merge": 20,
    "evaluate": 60,
    "export": 150,
    "bench": 120,
    "report": 10,
}
"""Seconds that each step may take on two quiet CPU cores."""


@click.command("demo")
@click.option(
    "--out", type=click.Path(), default=f"runs/{RECIPE}", show_default=True, metavar="RUN", help="Run folder."
)
@dry_run_option
def command(out: str, dry_run: bool) -> None:
    """Do everything once, on the built-in models and this CPU: about ten minutes on two cores.

    Each step is a command that you can run yourself. Finished steps are skipped when you rerun.

    \b
    Examples:
      $ mpa-edge demo --dry-run
      $ mpa-edge demo --out runs/demo
    """
    began, took_s = time.time(), {}
    for argv in steps(out):
        click.echo(f"$ mpa-edge {shlex.join(argv)}")
        sys.stdout.flush()
        started = time.monotonic()
        code = 0 if dry_run else exit_code(argv)
        if code:
            raise click.exceptions.Exit(code)
        took_s[argv[0]] = time.monotonic() - started
    if not dry_run:
        for line in time_table(took_s, Path(out), began):
            click.echo(line)


def steps(run: str) -> tuple[tuple[str, ...], ...]:
    """The commands, in order.

    >>> [argv[0] for argv in steps("runs/x")]
    ['align', 'export', 'bench', 'report']
    """
    schemes = tuple(word for scheme in SCHEMES for word in ("--as", scheme))
    return (
        ("align", RECIPE, "--out", run),
        ("export", run, "--target", TARGET, *schemes),
        ("bench", run, "--target", TARGET, *schemes),
        ("report", run),
    )


def time_table(took_s: dict[str, float], run: Path, began: float) -> Iterator[str]:
    """A line for each step with its seconds and its budget; align is shown as its stages.

    Args:
        took_s: command -> wall seconds.
        run: the run folder, whose manifests say how long the stages took.
        began: when the demo was started, seconds since the epoch; stages that were finished before are marked.
    """
    from mpa_edge.runs.manifest import FOLDERS, MANIFEST, read_manifest

    yield f"{'step':10} {'seconds':>8} {'budget':>8}"
    for name, budget_s in BUDGET_S.items():
        if name in took_s:
            yield f"{name:10} {took_s[name]:8.0f} {budget_s:8}"
        elif name in FOLDERS and (manifest := read_manifest(run / FOLDERS[name])):
            before = (run / FOLDERS[name] / MANIFEST).stat().st_mtime < began
            yield f"{name:10} {manifest.seconds:8.0f} {budget_s:8}{'  (finished before)' if before else ''}"
    yield f"{'total':10} {sum(took_s.values()):8.0f} {sum(BUDGET_S.values()):8}"
