"""Which machines a recipe fits on, dearest last, and how much memory and disk it needs there: all from the plan."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpa_edge.config.library import load_yaml
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.planning.estimate import HOUR_S, MachinePlan, Plan, machines, make_plan
from mpa_edge.planning.memory import FLOAT_BYTES, LIBRARIES_BYTES
from mpa_edge.planning.model_specs import BYTES_ON_DISK, UnknownModelError
from mpa_edge.planning.records import Device, Price, Record, device_file
from mpa_edge.planning.roofline import Machine

GB = 1e9
SYSTEM_BYTES = 40e9
"""Operating system, CUDA build of torch and its libraries, and the cache of the mounted bucket (10 GB)."""
LEAST_MEMORY_GB, LEAST_DISK_GB = 16, 48
SPARE = 1.25
MOST_HOURS_FACTOR = 3
"""A job is stopped at so many times its planned hours: what hangs must not cost for ever."""
GPU = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9-]{0,39})(:(?P<count>[1-9][0-9]?))?")
SKY_NAMES = {"a10": "A10", "rtx-4090": "RTX4090", "a100": "A100-80GB", "h100": "H100", "h200": "H200"}
"""Names of `planning/devices.yaml` as `sky show-gpus` has them."""


class Flavor(Record):
    """One machine of Hugging Face Jobs."""

    ram_bytes: int
    """Of the host."""
    disk_bytes: int
    """That goes when the job ends."""
    device: Device
    """What computes."""


class FlavorFile(Record):
    """flavors.yaml."""

    schema_version: Literal[1]
    """Of the file."""
    flavors: dict[str, Flavor]
    """By name."""


@dataclass(frozen=True)
class Needs:
    """What to ask a cloud for."""

    gpus: tuple[str, ...]
    """NAME or NAME:COUNT in the cloud's words, the cheapest run first; empty: a CPU is enough."""
    memory_gb: int
    """Of the host."""
    disk_gb: int
    """Of the host."""
    hours: float | None
    """Of the slowest of them; None: nobody knows."""
    plan: Plan | None
    """Behind these figures; None: the models' sizes are not known here."""
    chosen: tuple[MachinePlan, ...]
    """The plan on each of them."""

    @property
    def most_hours(self) -> int | None:
        """When to stop a job that hangs."""
        return None if self.hours is None else max(1, math.ceil(MOST_HOURS_FACTOR * self.hours))


@functools.cache
def flavors() -> dict[str, Flavor]:
    """Machines of Hugging Face Jobs by name."""
    return FlavorFile.model_validate(load_yaml(Path(__file__).parent / "flavors.yaml", "flavors")).flavors


def needs(recipe: Recipe, images: str | None, provider: str, gpus: str | None, copied_bytes: int) -> Needs:
    """What a recipe needs; `copied_bytes` of pictures and models lie on the machine's own disk.

    MpaError where no machine is large enough, or nobody knows the models and no `gpus` are named.
    """
    _check(gpus, provider)
    try:
        plan = make_plan(recipe, images, lambda: _machines(recipe, provider, gpus))
    except UnknownModelError as error:
        if gpus is None:
            raise MpaError(f"{error}; or choose a machine yourself, --gpus H100:1, without an estimate") from error
        return Needs((gpus,), 64, max(256, _disk_gb(0, copied_bytes)), None, None, ())
    memory_gb, disk_gb = _memory_gb(plan), _disk_gb(plan.disk_bytes, copied_bytes)
    fitting = [one for one in plan.machines if one.fits and _host_fits(one, provider, memory_gb, disk_gb)]
    if plan.machines and not fitting and gpus is None:
        raise MpaError(_too_small(plan, provider))
    chosen = tuple(sorted(fitting, key=lambda one: (one.usd is None, one.usd or 0.0)))
    if provider == "hf":
        chosen = chosen[:1]
    names = (gpus,) if gpus is not None else tuple(_cloud_name(one, provider) for one in chosen)
    hours = max((one.seconds / HOUR_S for one in chosen), default=None)
    on_cpu = recipe.device == "cpu" and gpus is None and provider == "sky"
    return Needs(() if on_cpu else names, memory_gb, disk_gb, hours, plan, chosen)


def _check(gpus: str | None, provider: str) -> None:
    if gpus is None:
        return
    if provider == "hf" and gpus not in flavors():
        raise MpaError(f"--gpus '{gpus}': Hugging Face Jobs have flavors, use {', '.join(flavors())}")
    if not GPU.fullmatch(gpus):
        raise MpaError(f"--gpus '{gpus}': write NAME or NAME:COUNT, for example --gpus A100-80GB:1")


def _machines(recipe: Recipe, provider: str, gpus: str | None) -> Sequence[tuple[Machine, Price | None]]:
    """Machines to plan for: the named one if it is known, else all of the recipe's kind."""
    if provider == "hf":
        kind = "cpu" if recipe.device == "cpu" else "gpu"
        names = [gpus] if gpus else [name for name, flavor in flavors().items() if flavor.device.kind == kind]
        return [_flavor(name) for name in names]
    if recipe.device == "cpu" and gpus is None:
        return machines(["cpu"])
    known = {sky: name for name, sky in SKY_NAMES.items()}
    if gpus is None:
        return machines(list(known.values()))
    name, _, count = gpus.partition(":")
    found = machines([known[name]]) if name in known else []
    return [(machine, price and _times(price, int(count or 1))) for machine, price in found]


def _times(price: Price, count: int) -> Price:
    """The price of several GPUs: all are paid for, however many work."""
    return price.model_copy(update={"usd_per_hour": count * price.usd_per_hour})


def _flavor(name: str) -> tuple[Machine, Price | None]:
    device = flavors()[name].device
    return Machine(name, device, device_file().efficiency[device.kind]), device.price


def _host_fits(one: MachinePlan, provider: str, memory_gb: int, disk_gb: int) -> bool:
    """Whether the host of a flavor is large enough; `sky` looks for one that is."""
    if provider != "hf":
        return True
    flavor = flavors()[one.machine.name]
    return flavor.ram_bytes >= memory_gb * GB and flavor.disk_bytes >= disk_gb * GB


def _cloud_name(one: MachinePlan, provider: str) -> str:
    return one.machine.name if provider == "hf" else f"{SKY_NAMES.get(one.machine.name, one.machine.name)}:1"


def _memory_gb(plan: Plan) -> int:
    """Of the host, in steps of 8: a model on its way to the GPU, or merging, which holds fp32 weights twice."""
    read = [plan.student.shapes.parameters, 0 if plan.teacher.is_server else plan.teacher.shapes.parameters]
    merging = 2 * FLOAT_BYTES * plan.student.shapes.parameters
    bytes_needed = SPARE * (LIBRARIES_BYTES["cpu"] + max(BYTES_ON_DISK * max(read), merging))
    return max(LEAST_MEMORY_GB, 8 * math.ceil(bytes_needed / GB / 8))


def _disk_gb(run_bytes: float, copied_bytes: int) -> int:
    """In steps of 16."""
    return max(LEAST_DISK_GB, 16 * math.ceil((SYSTEM_BYTES + SPARE * (run_bytes + copied_bytes)) / GB / 16))


def _too_small(plan: Plan, provider: str) -> str:
    needed = min(one.memory_bytes for one in plan.machines) / GB
    where = "GPU on the list" if provider == "sky" else "flavor"
    return (
        f"recipe '{plan.recipe.name}' needs {needed:.0f} GB on a GPU, more than any {where} has (or its host lacks "
        "memory or disk): choose a smaller teacher, or lower batch_size with --set"
    )
