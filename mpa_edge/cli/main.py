"""The `mpa-edge` program: finds the commands, shows the help screen, turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mpa_edge import __version__
from mpa_edge.errors import MpaError
from mpa_edge.runs.log import close_log, log_path, logger, show_log

FOLDER = Path(__file__).parent
VERBOSE_KEY = "mpa_edge.verbose"
START_HERE = (
    ("demo", "mpa-edge demo", "everything below, on the built-in models, on this CPU"),
    ("align", "mpa-edge align minicharts --out runs/minicharts", "the built-in models, on this CPU"),
    ("align", "mpa-edge align my-recipe.yaml --images photos/", "your recipe, your images"),
    ("export", "mpa-edge export runs/minicharts --target cpu", "what runs on the device"),
    ("bench", "mpa-edge bench runs/minicharts --target cpu", "is the gain still there?"),
)
SECTIONS = {
    "Align": ("align", "annotate", "identify", "level", "merge", "evaluate", "score"),
    "Ship": ("export", "bundle", "bench", "report"),
    "Elsewhere": ("cloud",),
    "Look": ("list", "show", "copy", "check", "plan", "doctor", "nursery"),
}
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def command_names() -> list[str]:
    """Every module of this folder that is a command. The folder is the registry."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem.replace("_", "-") for stem in stems if not stem.startswith("_") and stem != "main")


def summary(name: str) -> str:
    """First docstring line of a command's module, read as text: importing it could cost seconds."""
    with open(FOLDER / f"{name.replace('-', '_')}.py", encoding="utf-8") as file:
        return file.readline().strip().strip('"').strip()


def sections(names: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, [(command, summary)]) in the order of the help screen; unknown commands come last."""
    known = {name for group in SECTIONS.values() for name in group}
    groups = {**SECTIONS, "More": tuple(name for name in names if name not in known)}
    for title, group in groups.items():
        rows = [(name, summary(name)) for name in group if name in names]
        if rows:
            yield title, rows


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the command files."""
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module and take its `command`."""
        if cmd_name not in command_names():
            return None
        module = importlib.import_module(f"mpa_edge.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest command named when there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in command_names():
            near = difflib.get_close_matches(args[0], command_names(), 1)
            hint = f"did you mean '{near[0]}'?" if near else "see mpa-edge --help"
            raise click.UsageError(f"no such command '{args[0]}' ({hint})", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands first: they are what a newcomer looks for."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The Start-here block, then the commands by what they are for."""
        names = self.list_commands(ctx)
        start = [(line, why) for name, line, why in START_HERE if name in names]
        if start:
            with formatter.section("Start here"):
                formatter.write_dl(start, col_max=60)
        for title, rows in sections(names):
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="mpa-edge")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Align a small VLM with a large one, then ship it to a small device."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def say(message: str) -> None:
    """One line on stderr."""
    click.echo(f"error: {' '.join(message.split())}", err=True)


def one_line(error: BaseException) -> str:
    """What a user reads when something went wrong that nobody expected."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full at {error.filename or os.getcwd()}: free some space, then rerun"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or lower batch_size with --set, then rerun"
    name = type(error).__name__
    where = f"the traceback is in {shown_path(path)}" if (path := log_path()) else "rerun with -v for the traceback"
    return f"unexpected {name}: {error} ({where}; please report it)"


def shown_path(path: Path) -> str:
    """A path as a user would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def exit_code(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0 done, 1 user error, 2 usage, 3 verification failed."""
    meta: dict[str, object] = {}
    try:
        with main.make_context("mpa-edge", list(sys.argv[1:] if argv is None else argv)) as ctx:
            meta = ctx.meta
            main.invoke(ctx)
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        logger.info("interrupted")
        click.echo("interrupted: rerun to resume", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader has gone; python would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if meta.get(VERBOSE_KEY):
            traceback.print_exc()
        # with -v the traceback is on the screen already
        logger.error("%s", error, exc_info=True, extra={"printed": True})
        say(str(error) if isinstance(error, MpaError) else one_line(error))
        return error.exit_code if isinstance(error, MpaError) else 1
    finally:
        close_log()
        show_log(False)


def run() -> None:
    """Entry point of `mpa-edge`."""
    sys.exit(exit_code())
