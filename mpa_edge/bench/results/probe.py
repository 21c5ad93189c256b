"""The output of export/runners/probe.sh, as records.

Tolerant: a device may know less than the probe asks, or report it oddly. A value of another type than expected, or none
at all, is an Unreadable; a missing list is empty. The records name what decides something; everything else is kept as
the device sent it, for bench.json.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from mpa_edge.bench.results.records import Unreadable
from mpa_edge.errors import MpaError

SILENT = Unreadable(reason="the probe does not say")
Text = str | Unreadable
Number = Annotated[float, Field(allow_inf_nan=False)] | Unreadable
Known = TypeVar("Known")


class Loose(BaseModel):
    """A record that keeps what is valid and makes an Unreadable of the rest."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @field_validator("*", mode="wrap")
    @classmethod
    def _or_unreadable(cls, value: object, check: ValidatorFunctionWrapHandler) -> object:
        reason = value.get("reason") if isinstance(value, dict) else None
        odd = Unreadable(reason=str(reason or f"the probe says {str(value)[:60]!r}"))
        for each in (value, odd, ()):
            try:
                return check(each)
            except ValidationError:
                continue
        return check({})


class Zone(Loose):
    """A temperature sensor."""

    type: Text = SILENT
    """Its name."""
    temp_c: Number = SILENT
    """Degrees."""


class Policy(Loose):
    """Cores that share a frequency."""

    name: Text = SILENT
    """policy0 and so on."""
    governor: Text = SILENT
    """performance, schedutil, powersave and so on."""
    allowed_khz: Number = SILENT
    """What the system allows at this moment; a thermal cap lowers it."""


class Cooling(Loose):
    """What the kernel can do against heat."""

    type: Text = SILENT
    """A fan, or something that slows the processor."""
    now: Number = SILENT
    """Its step; 0 is at rest."""


class Throttling(Loose):
    """Signs that the device slows itself down."""

    pi: Text = SILENT
    """Bits of a Raspberry Pi: vcgencmd get_throttled."""
    counters: Number = SILENT
    """x86: how often cores and packages were slowed down since boot."""
    cooling: tuple[Cooling, ...] = ()
    """Of /sys/class/thermal."""


class Battery(Loose):
    """The first battery."""

    status: Text = SILENT
    """Charging, Discharging, Not charging, Full."""
    current_ua: Number = SILENT
    """Microamperes; the sign depends on the vendor."""
    voltage_uv: Number = SILENT
    """Microvolts."""
    plugged: Text = SILENT
    """AC, USB, Wireless; Android only."""


class ThermalService(Loose):
    """Android: dumpsys thermalservice."""

    status: Number = SILENT
    """0 none, 1 light, 2 moderate, 3 severe, 4 critical and so on."""
    temperatures: tuple[Zone, ...] = ()
    """From the hardware layer, not from the cache, which lags."""


class WatchLine(Loose):
    """One line of `probe.sh watch`."""

    uptime_s: Number = SILENT
    """Clock of the device, since boot."""
    thermal_zones: tuple[Zone, ...] = ()
    """Sensors."""
    frequencies: tuple[Policy, ...] = ()
    """Processor."""
    throttling: Throttling = Throttling()
    """Signs of slowing down."""
    battery: Battery | Unreadable = SILENT
    """Where there is one."""
    thermal_service: ThermalService | Unreadable = SILENT
    """Android."""
    tegrastats: Text = SILENT
    """A line of it, on a Jetson."""


class Probe(WatchLine):
    """The whole document: all of a line, and what does not change."""

    machine: Text = SILENT
    """uname -m."""
    os: Text = SILENT
    """Name and version."""
    board: Text = SILENT
    """Device tree's or DMI's name."""
    cpu: Text = SILENT
    """Name; Arm kernels have none."""
    cpu_parts: Text = SILENT
    """Arm: IMPLEMENTER/PART, one a kind of core."""
    cpu_features: Text = SILENT
    """Instruction sets, between blanks."""
    affinity: Text = SILENT
    """Cores that a program may use, as 0-3,6."""
    cores: Number = SILENT
    """nproc."""
    power_mode: Text = SILENT
    """Its name."""
    load_average: tuple[float, float, float] | Unreadable = SILENT
    """Of 1, 5, 15 minutes."""
    emulated: bool | Unreadable = SILENT
    """An emulator of another processor runs this system's programs."""
    emulated_why: Text = SILENT
    """How the probe knows."""
    virtual: Text = SILENT
    """Kind of virtual machine."""


def known(value: Known | Unreadable) -> Known | None:
    """The value, None where it is Unreadable.

    >>> known(3.0), known(Unreadable(reason="denied"))
    (3.0, None)
    """
    return None if isinstance(value, Unreadable) else value


def read_probe(text: str) -> Probe:
    """The document; what a login prints before it is skipped. MpaError where there is none.

    >>> probe = read_probe('Welcome!\\n{"cores": "four", "cpu": {"value": null, "reason": "denied"}}')
    >>> probe.cpu.reason, probe.cores.reason, probe.machine.reason
    ('denied', "the probe says 'four'", 'the probe does not say')
    """
    made = _documents(text)
    if not made:
        start = " ".join(text.split())[:80] or "nothing"
        raise MpaError(f"the device's probe printed no JSON ({start}): run sh probe.sh there to see why")
    return Probe.model_validate(made[-1])


def read_watch(text: str) -> list[WatchLine]:
    """Whole lines; a torn one is left out.

    >>> [line.uptime_s for line in read_watch('{"uptime_s": 5.25}\\n{"uptime_s": 6')]
    [5.25]
    """
    return [WatchLine.model_validate(made) for made in _documents(text)]


def _documents(text: str) -> list[dict[str, Any]]:
    """JSON objects, one a line; other lines are left out."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            if isinstance(made := json.loads(line), dict):
                found.append(made)
    return found
