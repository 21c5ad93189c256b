"""The `mpa-edge` program: finds commands, prints the help, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from mpa_edge import __version__
from mpa_edge.errors import MpaError, VerificationError, did_you_mean
from mpa_edge.runs.log import close_log, escaped, log_path, logger, redacted, show_log

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
    "Align": ("align", "annotate", "identify", "level", "merge", "evaluate", "review", "score"),
    "Ship": ("export", "bundle", "bench", "report"),
    "Look": ("list", "show", "copy", "check", "plan", "doctor", "nursery"),
}
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def command_names() -> list[str]:
    """Name of every command: each public module of this folder is one."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem.replace("_", "-") for stem in stems if not stem.startswith("_") and stem != "main")


def summary(name: str) -> str:
    """First docstring line of a command's module, read as text because importing it can take seconds."""
    with open(FOLDER / f"{name.replace('-', '_')}.py", encoding="utf-8") as file:
        return file.readline().strip().strip('"').strip()


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
        """As in click, but an unknown command's error names the nearest one."""
        if args and not args[0].startswith("-") and args[0] not in command_names():
            hint = did_you_mean(args[0], command_names(), "see mpa-edge --help")
            raise click.UsageError(f"no such command '{args[0]}' ({hint})", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first, then options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The Start-here block, then the commands by section; a command of no section comes last."""
        names = self.list_commands(ctx)
        start = [(line, why) for name, line, why in START_HERE if name in names]
        if start:
            with formatter.section("Start here"):
                formatter.write_dl(start, col_max=60)
        known = {name for group in SECTIONS.values() for name in group}
        for title, group in {**SECTIONS, "More": [name for name in names if name not in known]}.items():
            rows = [(name, summary(name)) for name in group if name in names]
            if rows:
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


def error_line(error: BaseException) -> str:
    """The line that a user reads about an error; several where something was made and is wrong in several ways."""
    if isinstance(error, VerificationError):
        return "\n".join(line.rstrip() for line in str(error).splitlines())
    if isinstance(error, MpaError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full at {error.filename or os.getcwd()}: free some space, then rerun"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or lower batch_size with --set, then rerun"
    name = type(error).__name__
    where = "rerun with -v for the traceback"
    if path := log_path():
        where = f"the traceback is in {os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path}"
    return " ".join(f"unexpected {name}: {error} ({where}; please report it)".split())


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
        # the reader of stdout is gone; Python would print another error when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if meta.get(VERBOSE_KEY):
            click.echo(escaped(redacted(traceback.format_exc())), err=True, nl=False)
        # with -v the traceback has been printed already
        logger.error("%s", error, exc_info=True, extra={"printed": True})
        click.echo(f"error: {escaped(redacted(error_line(error)))}", err=True)
        return error.exit_code if isinstance(error, MpaError) else 1
    finally:
        close_log()
        show_log(False)


def run() -> None:
    """Entry point of `mpa-edge`."""
    code = exit_code()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # PyTorch's threads for several processes may still ask for the interpreter, and abort a process that is ending
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
