"""Render a job's file and command, write them, and launch it with the provider's own program."""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpa_edge import __version__
from mpa_edge.cloud import hfjobs, skypilot
from mpa_edge.cloud.job import Job, write_kit
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, write_bytes, write_json
from mpa_edge.runs.log import redactor
from mpa_edge.runs.paths import remove

PROVIDERS = {"sky": skypilot, "hf": hfjobs}
BESIDE = Path(sys.executable).parent


@dataclass(frozen=True)
class Rendered:
    """A job with its file and its command."""

    job: Job
    file: Path
    """Where the task (or script) is written."""
    text: str
    command: tuple[str, ...]

    @property
    def command_line(self) -> str:
        """The command, quoted for a shell."""
        return shlex.join(self.command)


def render(job: Job, estimate: Sequence[str]) -> Rendered:
    """The file and the command of a job; nothing is written. `estimate`: lines for its header."""
    provider = PROVIDERS[job.provider]
    words = tuple(provider.launch_words(job))
    header = [f"{job.name}: mpa-edge {__version__} aligns {job.recipe.name} on a rented machine", *estimate]
    text = provider.render(job, [*header, "start it:", f"  {shlex.join(words)}"])
    return Rendered(job, provider.task_file(job), text, words)


def write(rendered: Rendered) -> None:
    """The kit and the file, in the job's local folder."""
    write_kit(rendered.job)
    make_folder(rendered.file.parent)
    write_bytes(rendered.file, rendered.text.encode())


def find_program(name: str) -> str | None:
    """The program's file: on PATH, else beside this Python (`hf` is installed with mpa-edge). None: not found."""
    return shutil.which(name) or shutil.which(name, path=str(BESIDE))


def launch(rendered: Rendered, program: str, show: Callable[[str], None]) -> None:
    """Launch a written job; `show` gets what `program` prints, without secrets: its id is there.

    A record is written before the provider knows the job, so that it is never lost. MpaError if the program fails.
    """
    job, redact = rendered.job, redactor(rendered.job.secrets, os.environ)
    record = {
        "name": job.name,
        "provider": job.provider,
        "url": job.url,
        "command": rendered.command_line,
        "launched_at": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "mpa_edge": __version__,
    }
    write_json(job.record, record)
    try:
        with subprocess.Popen(
            (program, *rendered.command[1:]),
            stdin=subprocess.DEVNULL,  # a question that nobody sees would wait forever
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            for line in child.stdout or ():
                show(redact(line.rstrip("\n")))
    except OSError as error:
        remove(job.record)
        raise MpaError(f"cannot start {program} ({error.strerror}): install it again") from error
    if child.returncode != 0:
        remove(job.record)
        raise MpaError(f"{rendered.command[0]} ended with exit code {child.returncode}: fix what it reports, and rerun")
