"""Programs on PATH that write down how they were called: argv, environment, stdin."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = """#!{python}
import json, os, sys
call = {{"argv": sys.argv[1:], "env": dict(os.environ), "stdin": sys.stdin.read()}}
with open({log!r}, "a", encoding="utf-8") as file:
    file.write(json.dumps(call) + "\\n")
answer = json.load(open({answers!r}, encoding="utf-8"))
text = next((answer[key] for key in answer if key in " ".join(sys.argv[1:])), {{}})
sys.stdout.write(text.get("out", ""))
sys.stderr.write(text.get("err", "").replace("ALL_SECRETS", " ".join(os.environ.values())))
sys.exit(text.get("code", 0))
"""


@dataclass(frozen=True)
class Fake:
    """One such program; `answers` maps words of its command line to {out, err, code}."""

    log: Path
    answers: Path

    def calls(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def answer(self, **answers: dict[str, Any]) -> None:
        self.answers.write_text(json.dumps(answers), encoding="utf-8")


def install(name: str, folder: Path, records: Path) -> Fake:
    """Put a fake of that name into a folder; its records lie elsewhere, so that a search for secrets is honest."""
    folder.mkdir(parents=True, exist_ok=True)
    records.mkdir(parents=True, exist_ok=True)
    fake = Fake(records / f"{name}.jsonl", records / f"{name}.json")
    fake.answer()
    program = folder / name
    program.write_text(SCRIPT.format(python=sys.executable, log=str(fake.log), answers=str(fake.answers)))
    program.chmod(0o755)
    return fake


def path_without(*names: str) -> str:
    """PATH without the folders that hold one of these programs."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not any(Path(folder, name).exists() for name in names))
