"""A browser for all tests of a process, and made-up benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpa_edge.bench.report.read import BenchData, find_benches, read_bench
from tests.bench import made_up
from tests.bench.report.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """holds, lost, inconclusive, an emulated one, a sweep. Read only."""
    return made_up.write_run(tmp_path_factory.mktemp("runs") / "minicharts")


@pytest.fixture(scope="session")
def benches(run: Path) -> list[BenchData]:
    return [read_bench(folder) for folder in find_benches(run)]


@pytest.fixture(scope="session")
def holds(benches: list[BenchData]) -> BenchData:
    return next(data for data in benches if data.report.verdict == "holds")
