"""Devices, efficiencies and assumptions: the data files of this folder, validated. Each value says where it is from."""

from __future__ import annotations

import datetime
import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpa_edge.config.library import load_yaml
from mpa_edge.errors import MpaError

FOLDER = Path(__file__).parent


class Record(BaseModel):
    """Nothing unknown, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Factor(Record):
    """A number and where it is from."""

    value: float
    """In the unit of its name."""
    where: str
    """Measured on what, or why it is only a planning value."""


class Price(Record):
    """A public list price."""

    usd_per_hour: float = Field(gt=0)
    """For one GPU."""
    offer: str
    """Who sells what."""
    source: str
    """The page."""
    date: datetime.date
    """When it was read."""


class Efficiency(Record):
    """What a kind of device reaches in this program."""

    prefill: Factor
    """Share of the peak operations where many tokens are computed at once."""
    training: Factor
    """The same, forwards and backwards."""
    memory: Factor
    """Share of the peak bandwidth where weights and caches are read for one token."""
    layer_s: Factor
    """Seconds that one layer takes at least, each time it is called."""


class Device(Record):
    """One processor."""

    title: str
    """For people."""
    kind: Literal["cpu", "gpu"]
    """Which efficiency holds, and whether weights have four bytes or two."""
    memory_bytes: int = Field(gt=0)
    """All of it."""
    flops: float = Field(gt=0)
    """Peak operations a second in the precision that is used."""
    memory_bandwidth: float = Field(gt=0)
    """Peak bytes a second."""
    source: str
    """Data sheet or measurement."""
    price: Price | None = None
    """What an hour costs; None: nobody sells it by the hour."""

    @property
    def number_bytes(self) -> int:
        """fp32 on a CPU, bf16 on a GPU: as `vlm.checkpoint.load_model` has it."""
        return 4 if self.kind == "cpu" else 2


class DeviceFile(Record):
    """devices.yaml."""

    schema_version: Literal[1]
    """Of the file."""
    devices: dict[str, Device]
    """By name."""
    efficiency: dict[Literal["cpu", "gpu"], Efficiency]
    """By kind."""


class ModelEntry(Record):
    """One model of models.yaml."""

    source: str
    """Page of its config.json."""
    parameters: int | None = None
    """What the hub counts."""
    config: dict[str, Any]
    """The sizes of its config.json."""
    image: dict[str, Any]
    """The image budget of its preprocessor_config.json."""


class ModelFile(Record):
    """models.yaml."""

    schema_version: Literal[1]
    """Of the file."""
    models: dict[str, ModelEntry]
    """By hub id."""


class AssumptionFile(Record):
    """assumptions.yaml."""

    schema_version: Literal[1]
    """Of the file."""
    assumptions: dict[str, Factor]
    """By name."""
    tasks: dict[str, dict[str, float]]
    """What is known of a task."""


class Assumptions:
    """Named numbers: `assumptions["kept"]`."""

    def __init__(self, factors: Mapping[str, Factor]) -> None:
        self.factors = dict(factors)

    def __getitem__(self, name: str) -> float:
        return self.factors[name].value


@functools.cache
def device_file() -> DeviceFile:
    """Devices and efficiencies."""
    return DeviceFile.model_validate(load_yaml(FOLDER / "devices.yaml", "devices"))


@functools.cache
def model_file() -> ModelFile:
    """Models of the hub whose sizes are known here."""
    return ModelFile.model_validate(load_yaml(FOLDER / "models.yaml", "models"))


@functools.cache
def assumption_file() -> AssumptionFile:
    """What cannot be known before."""
    return AssumptionFile.model_validate(load_yaml(FOLDER / "assumptions.yaml", "assumptions"))


def find_device(name: str) -> Device:
    """The device of a name; MpaError naming the nearest one where there is none."""
    devices = device_file().devices
    if name in devices:
        return devices[name]
    near = difflib.get_close_matches(name, devices, 1)
    raise MpaError(f"no device '{name}' to plan for: " + _hint(near, ("here", *devices)))


def assumptions(task: str, given: Sequence[str] = ()) -> Assumptions:
    """The assumptions for a task with `NAME=VALUE` applied. MpaError for a name or a value that is none."""
    file = assumption_file()
    factors = dict(file.assumptions)
    for name, value in file.tasks.get(task, {}).items():
        factors[name] = Factor(value=value, where=f"measured in the built-in run of task {task}")
    for text in given:
        name, value = _assumed(text, tuple(factors))
        factors[name] = Factor(value=value, where="--assume")
    return Assumptions(factors)


def _assumed(text: str, known: Sequence[str]) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in known:
        raise MpaError(f"no assumption '{name}': " + _hint(difflib.get_close_matches(name, known, 1), known))
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise MpaError(f"--assume {text}: give a number that is not negative, for example {name}=0.5")
    return name, number


def _hint(near: Sequence[str], known: Sequence[str]) -> str:
    return f"did you mean '{near[0]}'?" if near else f"use {', '.join(known)}"
