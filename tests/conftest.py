"""What all tests share: quiet threads, tiers in order, nothing skipped in CI, small images."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray reads this once in a process, and every cluster that it meets must ask for the same token
if "RAY_AUTH_MODE" not in os.environ:
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
# whoever is started in the background by a shell ignores Ctrl-C, and so would the programs that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from PIL import Image

from tests.forks import Forks

TIERS = ("slow", "peer")
LONG = (
    "engines/test_ray.py",
    "bench/host/test_pipeline.py",
    "docs/test_your_own_images.py",
    "robustness/test_export.py",
    "cli/test_export.py",
    "exporters/test_matrix.py",
    "benchmarks/test_real_weights.py",
    "exporters/gguf/test_convert.py",
    "bench/test_arm64.py",
    "level/test_ddp.py",
    "nursery/test_weights.py",
    "exporters/test_layouts.py",
)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that no worker waits for one at the end; then quick tests before slow ones."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        tier = max((1 + TIERS.index(tier) for tier in TIERS if item.get_closest_marker(tier)), default=0)
        return not item.nodeid.partition("::")[0].endswith(LONG), tier

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    return fail_where_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    return fail_where_skipped(report)


def fail_where_skipped(report):
    """In CI a skipped test is a failed one: a test that does not run proves nothing."""
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = f"skipped in CI, where nothing may be: {report.longrepr}"
        report.outcome = "failed"
    return report


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """picture("a.png", size=(8, 8), color="red", mode="RGB") -> path below tmp_path/images."""

    def make(
        name: str, size: tuple[int, int] = (8, 8), color: object = "red", mode: str = "RGB", **save: object
    ) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color).save(path, **save)
        return path

    return make


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """forks("align", "--out", out) -> how the command ended."""
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()
