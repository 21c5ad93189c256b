"""The Ollama peer, as far as it is not a download: its grammar, and its template language in a real Go."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.exporters.javascript import CACHE

SOURCE = Path(__file__).parent / "go" / "render.go"
COMMANDS = ("from", "license", "template", "system", "adapter", "parameter", "message")
QUOTE = '"""'


@functools.cache
def renderer() -> Path:
    """The program, compiled once into the user's cache. RuntimeError where there is no Go."""
    if shutil.which("go") is None:
        raise RuntimeError("the Ollama peer needs go: install Go 1.18 or later")
    program = CACHE / f"ollama-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        temp = program.with_name(f".{program.name}-{os.getpid()}")
        environment = {**os.environ, "GO111MODULE": "off"}
        subprocess.run(["go", "build", "-o", str(temp), str(SOURCE)], check=True, env=environment, timeout=240)
        os.replace(temp, program)
    return program


def filled(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """What Ollama makes of each job's `Template` and `Messages`."""
    done = subprocess.run([renderer()], input=json.dumps(jobs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def commands(text: str) -> list[tuple[str, str]]:
    """(command or parameter, value) of a Modelfile, by the rules of parser/parser.go of Ollama (commit fb3076099).

    A value ends at a blank or a line's end where its quotes are closed: then the rest must be a command again. What
    is not printable is lost, outside of quotes.
    """
    found, rest = [], text
    while rest := rest.lstrip(" \t\r\n"):
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, space, rest = _word(rest)
        assert space, f"no value for {name}"
        assert name.lower() in COMMANDS, f"no command {name}"
        if name.lower() in ("parameter", "message"):
            name, space, rest = _word(rest)
            assert space, f"no value for {name}"
        value, rest = _value(rest)
        found.append((name.lower(), value))
    assert "from" in dict(found)
    return found


def _word(text: str) -> tuple[str, str, str]:
    """A word of letters, digits and underscores, the blank behind it, and the rest."""
    name = re.match(r"[A-Za-z0-9_]*", text)[0]
    space = text[len(name) : len(name) + 1]
    return name, space if space in (" ", "\t") else "", text[len(name) + 1 :]


def _value(text: str) -> tuple[str, str]:
    """The value, and what follows it."""
    kept = ""
    for place, char in enumerate(text):
        closed = _unquoted(kept.strip())
        if char in "\r\n" and closed is not None:
            return closed, text[place:]
        kept += char if char.isprintable() or char in "\r\n\t" else ""
    closed = _unquoted(kept.strip())
    assert closed is not None, f"quotes of {kept[:40]!r} are not closed"
    return closed, ""


def _unquoted(text: str) -> str | None:
    for quote in (QUOTE, '"'):
        if text.startswith(quote):
            whole = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if whole else None
    return text
