"""Devices, efficiencies, model sizes and assumptions: the YAML files of this folder, validated."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpa_edge.config.library import load_yaml
from mpa_edge.config.task import TaskConfig
from mpa_edge.errors import MpaError, did_you_mean

FOLDER = Path(__file__).parent


class Record(BaseModel):
    """Immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Factor(Record):
    """A number and its source."""

    value: float
    where: str
    """How it was measured, or why it is only a planning value."""


class Price(Record):
    """A public list price for one GPU."""

    usd_per_hour: float = Field(gt=0)
    offer: str
    """Seller and product."""
    source: str
    """URL of the price list."""
    date: datetime.date
    """When it was read."""


class Efficiency(Record):
    """What this program reaches on one kind of device."""

    prefill: Factor
    """Share of the peak FLOP/s when many tokens are processed at once."""
    training: Factor
    """The same, for forward and backward passes."""
    memory: Factor
    """Share of the peak bandwidth when weights and cache are read for one token."""
    layer_s: Factor
    """Least time of one layer call, seconds."""


class Device(Record):
    """One processor."""

    title: str
    kind: Literal["cpu", "gpu"]
    """Selects the efficiency and the size of a weight."""
    memory_bytes: int = Field(gt=0)
    flops: float = Field(gt=0)
    """Peak FLOP/s in the precision used."""
    memory_bandwidth: float = Field(gt=0)
    """Peak bytes/s."""
    source: str
    """Data sheet or measurement."""
    price: Price | None = None
    """None: not sold by the hour."""

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight when a model answers: fp32 on a CPU, bf16 on a GPU."""
        return 4 if self.kind == "cpu" else 2


class DeviceFile(Record):
    """devices.yaml: devices by name, efficiency by kind of device."""

    devices: dict[str, Device]
    efficiency: dict[Literal["cpu", "gpu"], Efficiency]


class ModelEntry(Record):
    """One model of models.yaml."""

    source: str
    """URL of its config.json."""
    parameters: int | None = None
    """As the hub counts them."""
    config: dict[str, Any]
    """The sizes in its config.json."""
    image: dict[str, Any]
    """The image budget in its preprocessor_config.json."""


class Assumptions:
    """Named numbers: `assumptions["kept"]`."""

    def __init__(self, factors: dict[str, Factor]) -> None:
        self.factors = factors

    def __getitem__(self, name: str) -> float:
        return self.factors[name].value


@functools.cache
def device_file() -> DeviceFile:
    """Devices and efficiencies."""
    return DeviceFile.model_validate(load_yaml(FOLDER / "devices.yaml", "devices"))


@functools.cache
def known_models() -> dict[str, ModelEntry]:
    """Hub models whose sizes are known without a download, by id."""
    entries = load_yaml(FOLDER / "models.yaml", "models")["models"]
    return {name: ModelEntry.model_validate(entry) for name, entry in entries.items()}


def find_device(name: str) -> Device:
    """The device of that name. MpaError with the nearest name if there is none."""
    devices = device_file().devices
    if name not in devices:
        known = ["here", *devices]
        raise MpaError(f"no device '{name}' to plan for: " + did_you_mean(name, known, f"use {', '.join(known)}"))
    return devices[name]


def assumptions(task: str | TaskConfig, overrides: Sequence[str] = ()) -> Assumptions:
    """The assumptions for a task, with `NAME=VALUE` overrides applied. MpaError for an unknown name or a bad value."""
    file = load_yaml(FOLDER / "assumptions.yaml", "assumptions")
    factors = {name: Factor.model_validate(entry) for name, entry in file["assumptions"].items()}
    if isinstance(task, str):
        for name, value in file["tasks"].get(task, {}).items():
            factors[name] = Factor(value=value, where=f"measured in the built-in run of task {task}")
    elif task.answer.type == "json":
        longest = task.answer.max_new_tokens
        for kind, more in (("answer", 0), ("annotation", factors["annotation_tokens"].value)):
            for name, value in (("tokens", longest / 2), ("longest", longest)):
                factors[f"{kind}_{name}"] = Factor(value=value + more, where="the fields of the task's answers")
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in factors:
            raise MpaError(f"no assumption '{name}': " + did_you_mean(name, factors, f"use {', '.join(factors)}"))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise MpaError(f"--assume {override}: give a number that is not negative, for example {name}=0.5")
        factors[name] = Factor(value=value, where="--assume")
    return Assumptions(factors)
