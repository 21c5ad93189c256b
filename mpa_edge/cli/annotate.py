"""Let the large VLM write questions and answers about the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mpa_edge.cli._stage import engine_options, run_named_stages, stage_arguments

if TYPE_CHECKING:
    from mpa_edge.stages.run import Run


@click.command("annotate")
@click.option("--sheet", is_flag=True, help="Write RUN/sheet.html: images, questions, answers and what was dropped.")
@stage_arguments
@engine_options
def command(sheet: bool, **arguments: Any) -> None:
    """Pseudo Annotator: the teacher writes questions with answers about each image, then answers them again.

    \b
    Examples:
      $ mpa-edge annotate runs/mine
      $ mpa-edge annotate minicharts --limit 8 --sheet
      $ mpa-edge annotate minicharts --dry-run
      $ mpa-edge annotate minicharts --engine ray --set engine.actors=2 --dry-run
    """

    def show_sheet(run: Run) -> None:
        from mpa_edge.stages.annotate.sheet import write_sheet

        if written := write_sheet(run):
            click.echo(str(written), err=arguments["as_json"])

    run_named_stages(("annotate",), **arguments, after=show_sheet if sheet else None)
