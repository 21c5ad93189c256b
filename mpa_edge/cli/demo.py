"""The whole way on the built-in models: align, export, bench, report."""

from __future__ import annotations

import shlex
import sys

import click

from mpa_edge.cli._options import dry_run_option
from mpa_edge.cli.main import exit_code

RECIPE, TARGET = "minicharts", "cpu"
SCHEMES = ("onnx-int8", "gguf-q8_0")


@click.command("demo")
@click.option(
    "--out", type=click.Path(), default=f"runs/{RECIPE}", show_default=True, metavar="RUN", help="Run folder."
)
@dry_run_option
def command(out: str, dry_run: bool) -> None:
    """Do everything once, on the built-in models and this CPU: about ten minutes.

    Each step is a command that you can give yourself. What was done before is not done again.

    \b
    Examples:
      $ mpa-edge demo --dry-run
      $ mpa-edge demo --out runs/demo
    """
    for argv in steps(out):
        click.echo(f"$ mpa-edge {shlex.join(argv)}")
        sys.stdout.flush()
        code = 0 if dry_run else exit_code(argv)
        if code:
            raise click.exceptions.Exit(code)


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
