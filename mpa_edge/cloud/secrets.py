"""Secrets travel by name: files and command lines hold names, and what a program prints is searched for values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.vlm.openai.reference import DEFAULT_KEY, is_private_way, is_server, parse

HUB_TOKEN = "HF_TOKEN"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SENSITIVE = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
SHORTEST_CHARS = 8  # shorter values would black out ordinary words


def secret_names(recipe: Recipe, asked: Sequence[str], set_here: Mapping[str, str], hub: bool) -> tuple[str, ...]:
    """Names of what the job needs: the hub's token where there is one (or `hub`), the teacher's key, and `--secret`.

    MpaError for a name that is none, or that is not set here.
    """
    for name in asked:
        if not VARIABLE.fullmatch(name):
            # never quoted: somebody may have written the value
            raise MpaError("--secret takes the name of an environment variable, not a value: export it, give its name")
    wanted = [*asked, *_teacher_key(recipe, set_here)]
    for name in wanted:
        if not set_here.get(name):
            raise MpaError(f"the environment has no {name}, which the job needs: export {name} first")
    return tuple(dict.fromkeys([*([HUB_TOKEN] if hub or set_here.get(HUB_TOKEN) else []), *wanted]))


def _teacher_key(recipe: Recipe, set_here: Mapping[str, str]) -> list[str]:
    """The key of a teacher behind a server: what the recipe names, else the usual one where it would be sent."""
    if not is_server(recipe.teacher):
        return []
    if recipe.teacher_server.api_key_env:
        return [recipe.teacher_server.api_key_env]
    sent = set_here.get(DEFAULT_KEY) and is_private_way(parse(recipe.teacher).base_url)
    return [DEFAULT_KEY] if sent else []


def redactor(names: Sequence[str], set_here: Mapping[str, str]) -> Callable[[str], str]:
    """A function that puts names in place of values: those of `names`, and of every variable that sounds like a secret.

    >>> redactor(["MINE"], {"MINE": "hf_abcdefgh", "HOME": "/home/me"})("token hf_abcdefgh of /home/me")
    'token (MINE) of /home/me'
    """
    chosen = [name for name, value in set_here.items() if name in names or SENSITIVE.search(name)]
    # line by line, as programs print them: a private key has many
    lines = ((line.strip(), name) for name in chosen for line in set_here[name].splitlines())
    values = {line: name for line, name in lines if len(line) >= SHORTEST_CHARS}
    longest_first = sorted(values, key=len, reverse=True)

    def redact(text: str) -> str:
        for value in longest_first:
            text = text.replace(value, f"({values[value]})")
        return text

    return redact
