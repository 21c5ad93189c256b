"""The output of export/runners/probe.sh: JSON objects, whose keys are described there.

Tolerant: a device may know less than the probe asks, or report it oddly. Only the keys of `Document` are kept, and what
has not the type of its key is unknown. `text`, `number` and `items` give a value only where it has the expected type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator

from mpa_edge.bench.results.lines import Words
from mpa_edge.errors import MpaError

Reading = Mapping[str, Any]
"""The whole document, or one line of `probe.sh watch`, which has fewer keys."""
LARGEST = 1e18
PROBE_BYTES, WATCH_BYTES = 1 << 20, 64 << 20
"""Most that is read of probe.json and of watch.jsonl, which grows by about 2 kB a second."""


class Part(BaseModel):
    """Base of everything that the probe prints. Keys that it does not know are left out."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Unknown(Part):
    """What a device does not say."""

    value: None = None
    reason: Words


def _or_unknown(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        return Unknown(value=None, reason="not what the probe prints")


T = TypeVar("T")
Known = Annotated[T | Unknown, WrapValidator(_or_unknown)]
Listed = Known[Annotated[list[Known[T]], Field(max_length=1024)]]
Number = Annotated[int | float, Field(ge=-LARGEST, le=LARGEST)]
Features = Annotated[str, AfterValidator(lambda text: " ".join(text.split())[:10_000])]


class Zone(Part):
    """A thermal zone, or one of its trip points."""

    type: Known[Words] = ""
    temp_c: Known[Number] = 0
    trips: Listed[Zone] = []


class Frequency(Part):
    """A group of cores with one frequency."""

    name: Known[Words] = ""
    now_khz: Known[Number] = 0
    allowed_khz: Known[Number] = 0
    governor: Known[Words] = ""
    cpus: Known[Words] = ""
    lowest_khz: Known[Number] = 0
    highest_khz: Known[Number] = 0


class Cooling(Part):
    """A fan, or a brake of the processor."""

    type: Known[Words] = ""
    now: Known[Number] = 0
    most: Known[Number] = 0


class Throttling(Part):
    """Signs that the device slows itself down."""

    pi: Known[Words] = ""
    counters: Known[Number] = 0
    cooling: Listed[Cooling] = []


class Battery(Part):
    """Of a phone or laptop."""

    capacity: Known[Number] = 0
    status: Known[Words] = ""
    current_ua: Known[Number] = 0
    voltage_uv: Known[Number] = 0
    plugged: Known[Words] = ""


class ThermalService(Part):
    """Android's."""

    status: Known[Number] = 0
    temperatures: Listed[Zone] = []


class Swap(Part):
    """A swap partition, file, or zram."""

    name: Known[Words] = ""
    kind: Known[Words] = ""
    kib: Known[Number] = 0


class Document(Part):
    """The whole document, or a line of `probe.sh watch`. Defaults are never shown: keys that are absent stay absent."""

    uptime_s: Known[Number] = 0
    machine: Known[Words] = ""
    kernel: Known[Words] = ""
    os: Known[Words] = ""
    board: Known[Words] = ""
    cpu: Known[Words] = ""
    cpu_parts: Known[Words] = ""
    cpu_features: Known[Features] = ""
    affinity: Known[Words] = ""
    cores: Known[Annotated[int, Field(ge=1, le=65_536)]] = 1
    frequencies: Listed[Frequency] = []
    thermal_zones: Listed[Zone] = []
    power_mode: Known[Words] = ""
    memory_kib: Known[Annotated[dict[Words, Known[Number]], Field(max_length=16)]] = {}
    swaps: Listed[Swap] = []
    load_average: Known[Annotated[list[Known[Number]], Field(max_length=3)]] = []
    battery: Known[Battery] = Battery()
    throttling: Known[Throttling] = Throttling()
    android: Known[Annotated[dict[Words, Known[Words]], Field(max_length=64)]] = {}
    thermal_service: Known[ThermalService] = ThermalService()
    l4t: Known[Words] = ""
    nvidia: Known[Words] = ""
    vulkan: Listed[Words] = []
    python3: Known[Words] = ""
    emulated: Known[bool] = False
    emulated_why: Known[Words] = ""
    virtual: Known[Words] = ""
    available_kib: Known[Number] = 0
    tegrastats: Known[Annotated[str, Field(max_length=10_000)]] = ""


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
    found = read_watch(text.splitlines())
    if not found:
        start = " ".join(text.split())[:80] or "nothing"
        raise MpaError(f"the device's probe printed no JSON ({start}): run sh probe.sh there to see why")
    return found[-1]


def read_watch(texts: Iterable[str | bytes]) -> list[Reading]:
    """The JSON objects, one a line; a torn line is left out, NaN is null, and what has another type is unknown.

    >>> read_watch(['{"cores": "four", "colour": "red"}'])
    [{'cores': {'value': None, 'reason': 'not what the probe prints'}}]
    """
    found: list[Reading] = []
    for line in texts:
        with suppress(ValueError, RecursionError):
            made = json.loads(line, parse_constant=lambda _: None)
            if isinstance(made, dict):
                found.append(Document.model_validate(made).model_dump(exclude_unset=True))
    return found
