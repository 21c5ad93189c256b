"""How a job is laid over a cluster, and what is checked before one is joined; no cluster here."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mpa_edge.cli.main import main
from mpa_edge.config.recipe import EngineConfig
from mpa_edge.engines import ray_cluster
from mpa_edge.engines.job import Engine
from mpa_edge.engines.ray_cluster import ahead_bytes, block_size, connected, fit_actors, require_ray, store_bytes
from mpa_edge.engines.ray_engine import cause_of
from mpa_edge.errors import MpaError
from tests.engines.conftest import free_port

CPUS = {"CPU": 8.0, "memory": 1.0}
GPUS = {"CPU": 32.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "config", "device", "found"),
    [
        ([CPUS], {}, "auto", (1, 0.0, 8.0)),
        ([CPUS, CPUS], {}, "cpu", (2, 0.0, 8.0)),
        ([CPUS], {"actors": 3}, "cpu", (3, 0.0, 1.0)),
        ([CPUS], {"actors": 30}, "cpu", (8, 0.0, 1.0)),
        ([CPUS], {"cpus_per_actor": 2.0}, "cpu", (4, 0.0, 2.0)),
        ([GPUS, CPUS], {}, "auto", (8, 1.0, 1.0)),
        ([GPUS], {}, "cpu", (1, 0.0, 32.0)),
        ([GPUS], {"gpus_per_actor": 2.0}, "cuda", (4, 2.0, 1.0)),
        ([GPUS], {"gpus_per_actor": 0.5}, "cuda", (16, 0.5, 1.0)),
        ([GPUS], {"gpus_per_actor": 1.0, "cpus_per_actor": 16.0}, "cuda", (2, 1.0, 16.0)),
        ([{"memory": 1.0}, CPUS], {}, "auto", (1, 0.0, 8.0)),
    ],
)
def test_actors_that_fit(nodes, config, device, found) -> None:
    assert fit_actors(nodes, EngineConfig(**config), device) == found


@pytest.mark.parametrize("config", [{"gpus_per_actor": 1.0}, {"cpus_per_actor": 9.0}])
def test_nothing_fits(config) -> None:
    with pytest.raises(MpaError, match="for an actor: use other engine.gpus_per_actor and engine.cpus_per_actor"):
        fit_actors([CPUS], EngineConfig(**config), "auto")


def test_what_is_read_ahead_leaves_room() -> None:
    assert ahead_bytes(80e6, 4, 4) == 1_250_000
    assert ahead_bytes(1e15, 1, 1) == 384_000_000
    assert ahead_bytes(0, 1, 1) == 1_000_000
    assert 100_000_000 <= store_bytes() <= 2_000_000_000


def test_blocks_leave_work_for_all() -> None:
    for todo, actors in ((1, 1), (10, 4), (10_000, 2), (100_000, 512)):
        assert todo / block_size(todo, actors) >= min(todo, 64 * actors)
    assert block_size(1_000_000, 2) == 16


@pytest.mark.parametrize(("lacks", "address"), [("ray", None), ("grpc", "ray://host:10001")])
def test_ray_is_missing(monkeypatch, lacks, address) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None if name == lacks else object())
    with pytest.raises(MpaError, match=rf"^{lacks} is missing: pip install 'mpa-edge\[ray\]'$"):
        require_ray(address)


@pytest.mark.parametrize("command", ["align", "annotate", "identify"])
def test_an_address_needs_the_engine(command) -> None:
    result = CliRunner().invoke(main, [command, "minicharts", "--ray-address", "auto"])
    assert result.exit_code == 2
    assert "--ray-address is for --engine ray: give both" in result.output


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "auto", "127.0.0.1:99999"])
def test_nobody_listens_there(monkeypatch, address) -> None:
    address = address.format(free_port())
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    says = r"no Ray cluster at .* \(.+\): check it with ray status; set RAY_AUTH_MODE=token"
    with pytest.raises(MpaError, match=says), connected(Engine("ray", address)):
        pass


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "http://head/", "local"])
def test_no_address(address) -> None:
    says = f"'{address}' is not an address of a Ray cluster: use auto, HOST:PORT or ray://"
    with pytest.raises(MpaError, match=says), connected(Engine("ray", address)):
        pass


def test_a_package_that_a_machine_lacks() -> None:
    said = RuntimeError("The actor died.\nTraceback:\nModuleNotFoundError: No module named 'peft'\nmore words")
    with pytest.raises(MpaError, match=r"lacks a package \(ModuleNotFoundError: No module named 'peft'\): install"):
        cause_of(said)
