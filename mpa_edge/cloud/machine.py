"""Machines on which a recipe fits, cheapest run first, with the memory and disk that it needs there."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.config.library import load_yaml
from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.planning.estimate import HOUR_S, MachinePlan, Plan, as_machine, machines, make_plan
from mpa_edge.planning.memory import FLOAT_BYTES, LIBRARIES_BYTES
from mpa_edge.planning.model_specs import BYTES_ON_DISK, UnknownModelError
from mpa_edge.planning.records import Device, Record, find_device
from mpa_edge.planning.roofline import Machine

GB = 1e9
SYSTEM_BYTES = 40e9
"""Operating system, CUDA build of torch and its libraries, and the cache of the mounted bucket (10 GB)."""
LEAST_MEMORY_GB, LEAST_DISK_GB = 16, 48
SPARE = 1.25
TIMEOUT_FACTOR = 3
"""A job is stopped after this many times its planned hours."""
GPU = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}(:[1-9][0-9]?)?")
SKY_NAMES = {"a10": "A10", "rtx-4090": "RTX4090", "a100": "A100-80GB", "h100": "H100", "h200": "H200"}
"""Names in `planning/devices.yaml` -> names in `sky show-gpus`."""


class Flavor(Record):
    """One machine of Hugging Face Jobs."""

    ram_bytes: int
    """Of the host."""
    disk_bytes: int
    """Deleted when the job ends."""
    device: Device


@dataclass(frozen=True)
class Needs:
    """What to ask a cloud for."""

    gpus: tuple[str, ...]
    """NAME or NAME:COUNT as the cloud calls them, cheapest run first; empty: a CPU is enough."""
    memory_gb: int
    """Of the host."""
    disk_gb: int
    plan: Plan | None
    """None: the sizes of the models are not known."""
    chosen: tuple[MachinePlan, ...] = ()
    """The plan on each of them."""

    @property
    def timeout_hours(self) -> int | None:
        """When to stop a job that hangs; None: unknown."""
        hours = [one.seconds / HOUR_S for one in self.chosen]
        return max(1, math.ceil(TIMEOUT_FACTOR * max(hours))) if hours else None


@functools.cache
def flavors() -> dict[str, Flavor]:
    """Machines of Hugging Face Jobs by name."""
    entries = load_yaml(Path(__file__).parent / "flavors.yaml", "flavors")["flavors"]
    return {name: Flavor.model_validate(entry) for name, entry in entries.items()}


def needs(recipe: Recipe, images: str | None, provider: str, gpus: str | None, copied_bytes: int) -> Needs:
    """What a recipe needs. `gpus`: the user's choice; `copied_bytes`: images and models on the machine's own disk.

    MpaError if no machine is large enough, or if the models are not known and no `gpus` are named.
    """
    if gpus is not None and provider == "hf" and gpus not in flavors():
        raise MpaError(f"--gpus '{gpus}' is not a flavor of Hugging Face Jobs: use one of {', '.join(flavors())}")
    if gpus is not None and not GPU.fullmatch(gpus):
        raise MpaError(f"--gpus '{gpus}': write NAME or NAME:COUNT, for example --gpus A100-80GB:1")
    try:
        plan = make_plan(recipe, images, lambda: _candidates(recipe, provider, gpus))
    except UnknownModelError as error:
        if gpus is None:
            raise MpaError(f"{error}; or choose a machine, --gpus H100:1, without an estimate") from error
        return Needs((gpus,), 64, max(256, _disk_gb(0, copied_bytes)), None)
    memory_gb, disk_gb = _memory_gb(plan), _disk_gb(plan.disk_bytes, copied_bytes)

    def fits(one: MachinePlan) -> bool:
        if provider == "sky":
            return one.fits  # sky looks for a host that is large enough
        flavor = flavors()[one.machine.name]
        return one.fits and flavor.ram_bytes >= memory_gb * GB and flavor.disk_bytes >= disk_gb * GB

    fitting = [one for one in plan.machines if fits(one)]
    if plan.machines and not fitting and gpus is None:
        smallest_gb = min(one.memory_bytes for one in plan.machines) / GB
        raise MpaError(
            f"recipe '{recipe.name}' needs {smallest_gb:.0f} GB on a GPU, more than any "
            f"{'GPU on the list' if provider == 'sky' else 'flavor'} has (or its host lacks memory or disk): "
            "choose a smaller teacher, or lower batch_size with --set"
        )
    chosen = tuple(sorted(fitting, key=lambda one: (one.usd is None, one.usd or 0.0)))
    if provider == "hf":
        chosen = chosen[:1]
        names = tuple(one.machine.name for one in chosen)
    else:
        names = tuple(f"{SKY_NAMES[one.machine.name]}:1" for one in chosen if one.machine.name in SKY_NAMES)
    return Needs((gpus,) if gpus else names, memory_gb, disk_gb, plan, chosen)


def _candidates(recipe: Recipe, provider: str, gpus: str | None) -> list[Machine]:
    """The chosen machine if its speed is known, else all of the recipe's kind."""
    kind = "cpu" if recipe.device == "cpu" else "gpu"
    if provider == "hf":
        devices = {name: flavor.device for name, flavor in flavors().items()}
        return [
            as_machine(name, one) for name, one in devices.items() if name == gpus or (not gpus and one.kind == kind)
        ]
    if gpus is None:
        return machines(["cpu"] if kind == "cpu" else list(SKY_NAMES))
    name, _, count = gpus.partition(":")
    known = [ours for ours, sky in SKY_NAMES.items() if sky == name]
    if not known:
        return []
    device = find_device(known[0])
    if device.price:
        # all GPUs are paid for, however many work
        each = device.price.usd_per_hour
        paid = device.price.model_copy(update={"usd_per_hour": int(count or 1) * each})
        device = device.model_copy(update={"price": paid})
    return [as_machine(known[0], device)]


def _memory_gb(plan: Plan) -> int:
    """Of the host, in steps of 8: a model on its way to the GPU, or merging, which holds fp32 weights twice."""
    read = [plan.student.shapes.parameters, 0 if plan.teacher.is_server else plan.teacher.shapes.parameters]
    merging = 2 * FLOAT_BYTES * plan.student.shapes.parameters
    bytes_needed = SPARE * (LIBRARIES_BYTES["cpu"] + max(BYTES_ON_DISK * max(read), merging))
    return max(LEAST_MEMORY_GB, 8 * math.ceil(bytes_needed / GB / 8))


def _disk_gb(run_bytes: float, copied_bytes: int) -> int:
    """In steps of 16."""
    return max(LEAST_DISK_GB, 16 * math.ceil((SYSTEM_BYTES + SPARE * (run_bytes + copied_bytes)) / GB / 16))
