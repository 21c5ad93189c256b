"""Machines, memory and disk as the plan has them."""

from __future__ import annotations

import math

import pytest

from mpa_edge.cloud.machine import SKY_NAMES, flavors, needs
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.planning.estimate import machines, make_plan
from mpa_edge.planning.records import device_file

SMALL = load_recipe("minicharts")
LARGE = load_recipe("qwen2-vl-2b-chartqa")
N = "1000"


def test_only_machines_on_which_the_recipe_fits_the_cheapest_run_first() -> None:
    found = needs(LARGE, N, "sky", None, 0)
    planned = make_plan(LARGE, N, lambda: machines([*SKY_NAMES])).machines
    cost = {f"{SKY_NAMES[one.machine.name]}:1": one.usd or 0 for one in planned if one.fits}
    assert list(found.gpus) == sorted(cost, key=cost.__getitem__)
    slowest = max(one.seconds for one in planned if one.fits)
    assert found.timeout_hours == max(1, math.ceil(3 * slowest / 3600))
    tight = load_recipe("qwen2-vl-2b-chartqa", ["level.method=full"])
    assert set(needs(tight, N, "sky", None, 0).gpus) < set(found.gpus)


def test_a_recipe_for_the_cpu_asks_for_no_gpu() -> None:
    on_cpu = load_recipe("minicharts", ["device=cpu"])
    assert needs(on_cpu, None, "sky", None, 0).gpus == ()
    assert needs(on_cpu, None, "hf", None, 0).gpus == ("cpu-upgrade",)


def test_one_flavor_is_chosen_the_cheapest_run() -> None:
    found = needs(LARGE, N, "hf", None, 0)
    others = [name for name, flavor in flavors().items() if flavor.device.kind == "gpu" and name not in found.gpus]
    assert len(found.gpus) == 1
    costs = {one.machine.name: one.usd for name in others for one in needs(LARGE, N, "hf", name, 0).chosen}
    assert all((found.chosen[0].usd or 0) <= (cost or 0) for cost in costs.values())


def test_memory_and_disk_hold_the_models_and_the_pictures() -> None:
    found = needs(LARGE, N, "sky", None, 0)
    assert found.plan is not None
    assert found.memory_gb * 1e9 > 2 * found.plan.teacher.shapes.parameters
    assert found.memory_gb * 1e9 > 8 * found.plan.student.shapes.parameters
    assert found.disk_gb * 1e9 > found.plan.disk_bytes
    assert needs(LARGE, N, "sky", None, 100_000_000_000).disk_gb >= found.disk_gb + 100


def test_a_machine_of_ones_own_choice() -> None:
    assert needs(SMALL, None, "sky", "A100-80GB:2", 0).gpus == ("A100-80GB:2",)
    one, two = (needs(SMALL, None, "sky", f"H100:{n}", 0).chosen[0].usd or 0 for n in (1, 2))
    assert two == pytest.approx(2 * one)
    assert needs(SMALL, None, "sky", "B300:1", 0).chosen == ()
    with pytest.raises(MpaError, match=r"NAME:COUNT"):
        needs(SMALL, None, "sky", "A100; rm -rf /", 0)
    with pytest.raises(MpaError, match="use one of cpu-upgrade"):
        needs(SMALL, None, "hf", "a100", 0)


def test_models_that_nobody_knows_need_a_machine_that_somebody_chose() -> None:
    unknown = load_recipe("minicharts", ["teacher=some/unknown-vlm"])
    with pytest.raises(MpaError, match="are not known here.*--gpus H100:1"):
        needs(unknown, None, "sky", None, 0)
    found = needs(unknown, None, "sky", "H100:1", 0)
    assert (found.gpus, found.plan, found.timeout_hours) == (("H100:1",), None, None)


def test_a_recipe_that_fits_nowhere_is_said() -> None:
    huge = load_recipe("qwen2-vl-2b-chartqa", ["student=Qwen/Qwen2-VL-7B-Instruct", "level.method=full"])
    with pytest.raises(MpaError, match="more than any GPU on the list"):
        needs(huge, N, "sky", None, 0)
    with pytest.raises(MpaError, match="more than any flavor"):
        needs(huge, N, "hf", None, 0)


def test_names_and_flavors_are_of_known_devices() -> None:
    assert {name for name, device in device_file().devices.items() if device.kind == "gpu"} == set(SKY_NAMES)
    assert all(flavor.device.price for flavor in flavors().values())


def test_flavors_are_those_of_the_hub() -> None:
    from huggingface_hub import JobHardware

    assert set(flavors()) <= {flavor.value for flavor in JobHardware}
