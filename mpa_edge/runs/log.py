"""The log of a run: `run.log` in its folder, with times, versions, decisions and full tracebacks, but no secrets.

Everything that is printed as a message is in it too, so that a run that was killed, or that ran on another machine, can
still say what happened. `-v` shows the log on stderr.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from mpa_edge import __version__
from mpa_edge.errors import MpaError
from mpa_edge.runs.paths import move, open_in_place

LOG_FILE = "run.log"
MAX_BYTES = 2_000_000
KEPT_FILES = 3
RUN_FILE = "run.json"
SENSITIVE = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET_CHARS = 8
"""Shorter values would black out ordinary words."""
CREDENTIALS = re.compile(
    r"(?<=://)[^/\s]+(?=@)|(?<=Bearer )\S+|(?<=Basic )[\w+/=]{8,}|\b(?:sk|hf|ghp|github_pat)[-_]\w[-\w]{15,}"
)
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "onnxruntime", "llama-cpp-python", "ray", "openai")
FORMAT = "%(asctime)s %(levelname)s %(process)d %(module)s: %(message)s"
# what moves the cursor, sets colors or turns lines around on a terminal, and what no encoding has
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""A text for a terminal: names of devices and models come from other people, and may hold control characters.

    >>> print(escaped("caf\u00e9 \x1b[2J \u202e"))
    café \u001b[2J \u202e
    """
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Log(logging.Logger):
    """A logger that `logging.disable` does not silence: that call is for the libraries."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """Whether a record of this level is written."""
        return level >= self.level


logger = Log("mpa_edge", logging.DEBUG)
logger.addHandler(logging.NullHandler())


class RedactingFormatter(logging.Formatter):
    """UTC times; the values of secrets in messages and tracebacks are replaced."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The record as it is written."""
        return escaped(redacted(super().format(record)))


class RunLogHandler(WatchedFileHandler):
    """Appends to run.log, which is renamed to run.log.1 (2, 3) when it is full; reopens it if another process did."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. A full disk costs log lines, never the run; so does a link in the log's place."""
        with suppress(OSError, MpaError):
            path = Path(self.baseFilename)
            if path.is_file() and path.stat().st_size > MAX_BYTES:
                for n in range(KEPT_FILES - 1, 0, -1):
                    with suppress(FileNotFoundError):
                        move(path.with_name(f"{LOG_FILE}.{n}"), path.with_name(f"{LOG_FILE}.{n + 1}"))
                move(path, path.with_name(f"{LOG_FILE}.1"))
            super().emit(record)

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=open_in_place)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing on stderr: the run goes on without its log."""


def redactor(names: Sequence[str], environ: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces the values of secrets by their names.

    Secrets are the variables in `names`, every variable of `environ` whose name sounds like one, credentials in URLs,
    bearer tokens, and what looks like a well-known kind of key. They are found as Python and URLs write them, too.

    >>> redactor(["MINE"], {"MINE": "abcdefgh", "HOME": "/home/me"})("token abcdefgh of /home/me")
    'token (MINE) of /home/me'
    >>> redactor([], {})("GET https://me:pw@host/v1, Authorization: Bearer abc")
    'GET https://***@host/v1, Authorization: Bearer ***'
    """
    chosen = [name for name in environ if name in names or SENSITIVE.search(name)]
    # line by line, as programs print them: a private key has many
    lines = {line.strip(): name for name in chosen for line in environ[name].splitlines()}
    values = {form: name for line, name in lines.items() if len(line) >= SHORTEST_SECRET_CHARS for form in _forms(line)}
    longest_first = sorted(values, key=len, reverse=True)

    def redact(text: str) -> str:
        for value in longest_first:
            text = text.replace(value, f"({values[value]})")
        return CREDENTIALS.sub("***", text)

    return redact


def _forms(value: str) -> set[str]:
    """A text as it stands in messages: itself, in a repr of text or bytes, in a URL."""
    raw = value.encode("utf-8", "surrogateescape")
    return {value, repr(value)[1:-1], ascii(value)[1:-1], repr(raw)[2:-1], quote_from_bytes(raw, safe="")}


def redacted(text: str) -> str:
    """A text without the secrets of this process's environment."""
    return redactor((), os.environ)(text)


def log_path() -> Path | None:
    """The file that this process logs to; None before a run folder was opened."""
    paths = (Path(handler.baseFilename) for handler in logger.handlers if isinstance(handler, RunLogHandler))
    return next(paths, None)


def open_log(folder: Path) -> None:
    """Log to run.log of the run that `folder` is, or lies in (an export, a benchmark), from now on.

    Each process begins with its command and the versions of what it uses.
    """
    runs = (above for above in (folder, *folder.absolute().parents[:4]) if (above / RUN_FILE).is_file())
    path = next(runs, folder).absolute() / LOG_FILE
    if log_path() == path:
        return
    close_log()
    append_to(path)
    logger.info("command: %s", shlex.join(["mpa-edge", *sys.argv[1:]]))
    logger.info("versions: %s", ", ".join(f"{name} {version}" for name, version in versions(*LIBRARIES).items()))
    logger.debug("machine: %s, %s, %d cores, in %s", platform.node(), platform.platform(), os.cpu_count(), os.getcwd())


def versions(*packages: str) -> dict[str, str]:
    """Python, mpa-edge and the named distributions that are installed."""
    found = {"mpa-edge": __version__, "python": platform.python_version()}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def append_to(path: Path) -> None:
    """Log to this file: what a process does that works for another one, which has opened the log."""
    handler = RunLogHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(RedactingFormatter(FORMAT))
    logger.addHandler(handler)


def close_log() -> None:
    """Stop logging to a file."""
    for handler in [handler for handler in logger.handlers if isinstance(handler, RunLogHandler)]:
        logger.removeHandler(handler)
        with suppress(OSError):  # lines that a full disk did not take
            handler.close()


def show_log(shown: bool) -> None:
    """Show the log on stderr, or stop showing it (`-v`). Messages that are printed anyway are not shown twice."""
    for handler in [handler for handler in logger.handlers if handler.name == "stderr"]:
        logger.removeHandler(handler)
    if shown:
        handler = logging.StreamHandler()
        handler.name = "stderr"
        handler.setFormatter(RedactingFormatter("%(asctime)s %(module)s: %(message)s"))
        handler.addFilter(lambda record: not getattr(record, "printed", False))
        logger.addHandler(handler)
