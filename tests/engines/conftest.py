"""What the tests of the engines share: runs over numbered images, what they leave behind, clusters."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.engines.job import LOCAL, Engine
from mpa_edge.stages import identify
from mpa_edge.stages.annotate import stage as annotate
from mpa_edge.stages.run import Run
from tests.engines.fakes import Orders, draw, loader
from tests.stages.conftest import recipe_with

SETTINGS = {"annotate__shard_size": 4, "annotate__samples_per_image": 2, "engine__error_budget": 0.3}


class Lab:
    """Runs over the same images, each in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def run(self, name: str, engine: Engine = LOCAL, n: int = 32, **changed: Any) -> Run:
        images = self.folder / "images"
        if not images.is_dir():
            draw(images, n)
        return Run(self.folder / name, recipe_with(**(SETTINGS | changed)), images=str(images), engine=engine)

    def obey(self, name: str = "diary", **orders: Any) -> Path:
        """What the models do from now on, in every process; the folder of their diaries."""
        diary = self.folder / name
        diary.mkdir(exist_ok=True)
        for module in (annotate, identify):
            self._monkeypatch.setattr(module, "load", loader(Orders(diary, **orders)))
        return diary


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path, monkeypatch)
    made.obey()
    return made


def files_of(run: Run) -> dict[str, bytes]:
    """Every part and its dropped rows."""
    return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in run.folder.rglob("*.parquet")}


def asked(diary: Path, model: str = "teacher") -> Counter[int]:
    """How often a model was asked about each image, all processes together; twice an image is as it should be."""
    lines = [line for path in diary.glob(f"{model}-*.asked") for line in path.read_text().splitlines()]
    return Counter(map(int, lines))


@pytest.fixture(scope="session")
def root_importable() -> None:
    """Processes of a cluster import the models of these tests."""
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def build(*cpus: int, **head: Any) -> Any:
    """build(1, 1): a head without CPUs and two machines with one each, all of them real Ray nodes on this box."""
    from mpa_edge.engines.ray_cluster import SETTINGS as QUIET

    os.environ.update(QUIET)
    # a loaded machine needs longer than Ray's 30 s to start the process that serves a client
    os.environ.setdefault("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "180")
    from ray.cluster_utils import Cluster

    room = {"object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **room, **head})
    made.machines = [made.add_node(num_cpus=n, **room) for n in cpus]
    made.wait_for_nodes()
    return made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(root_importable: None) -> Iterator[Any]:
    """Two machines that stay; `outside` is how a client that is no part of the cluster calls them."""
    port = free_port()
    made = build(1, 1, ray_client_server_port=port)
    made.outside = f"ray://127.0.0.1:{port}"
    yield made
    made.shutdown()


@pytest.fixture
def breakable(root_importable: None) -> Iterator[Any]:
    """Two machines of a test's own."""
    made = build(1, 1)
    yield made
    made.shutdown()
