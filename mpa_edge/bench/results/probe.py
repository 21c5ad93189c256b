"""The output of export/runners/probe.sh: JSON objects, whose keys are described there.

Tolerant: a device may know less than the probe asks, or report it oddly. `text`, `number` and `items` give a value only
where it has the expected type, so that everything else counts as unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mpa_edge.errors import MpaError

Reading = Mapping[str, Any]
"""The whole document, or one line of `probe.sh watch`, which has fewer keys."""
LARGEST = 1e18


def text(reading: Reading, *keys: str) -> str | None:
    """The text below a path of keys.

    >>> text({"cpu": "N100", "board": {"value": None, "reason": "denied"}}, "cpu")
    'N100'
    """
    value = _at(reading, keys)
    return value if isinstance(value, str) else None


def number(reading: Reading, *keys: str | int) -> float | None:
    """The number below a path of keys or positions, unless it is not finite.

    >>> number({"battery": {"current_ua": -5}}, "battery", "current_ua"), number({"cores": "four"}, "cores")
    (-5, None)
    """
    value = _at(reading, keys)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    return value if is_number else None


def items(reading: Reading, *keys: str) -> list[Reading]:
    """The objects of the list below a path of keys; empty where there is none."""
    value = _at(reading, keys)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _at(value: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def read_probe(text: str) -> Reading:
    """The document; what a login prints before it is skipped. MpaError where there is none.

    >>> read_probe('Welcome!\\n{"cores": 4}')
    {'cores': 4}
    """
    found = read_watch(text)
    if not found:
        start = " ".join(text.split())[:80] or "nothing"
        raise MpaError(f"the device's probe printed no JSON ({start}): run sh probe.sh there to see why")
    return found[-1]


def read_watch(text: str) -> list[Reading]:
    """The JSON objects, one a line; a torn line is left out, and NaN is null."""
    found: list[Reading] = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            made = json.loads(line, parse_constant=lambda _: None)
            if isinstance(made, dict):
                found.append(made)
    return found
