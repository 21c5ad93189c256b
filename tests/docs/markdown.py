"""What the tests of the documents share: their fenced blocks, their commands, their links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")])
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHELL = ("sh", "bash", "console", "shell")
PROGRAM = "mpa-edge"


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[Block]:
    """Fenced blocks in order; of the named languages only, where some are named."""
    found = [Block(*match.groups()) for match in FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def prose(text: str) -> str:
    """The document without its fenced blocks."""
    return FENCE.sub("", text)


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*$", "", line).strip()


def without_settings(line: str) -> str:
    """`OMP_NUM_THREADS=1 python x.py` -> `python x.py`."""
    return re.sub(r"^(?:[A-Z_]+=\S+\s+)+", "", line)


def shell_lines(text: str) -> list[str]:
    """Every command of the shell blocks, comments and prompts taken off, continued lines joined."""
    code = "\n".join(block.text for block in blocks(text, *SHELL)).replace("\\\n", " ")
    lines = (without_settings(without_comment(line.strip().removeprefix("$ "))) for line in code.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def mentioned(text: str) -> list[list[str]]:
    """Words of every command that a sentence quotes in backticks, the program's name left out."""
    quoted = (match[1].strip() for match in INLINE.finditer(prose(text)))
    return [shlex.split(line)[1:] for line in quoted if line.startswith(f"{PROGRAM} ")]


def links(text: str) -> list[str]:
    """Targets of links and images, those of the web left out."""
    targets = (match[1] for match in LINK.finditer(prose(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
