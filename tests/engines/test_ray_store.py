"""The Ray engine with its run folder in a bucket: killed there, finished on another machine, partly by one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mpa_edge.engines.job import Engine
from mpa_edge.runs.remote.mirror import working_copy
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from tests.engines.conftest import asked, files_of
from tests.runs.remote.objects import listing
from tests.store_server import BUCKET, StoreServer, running

pytestmark = [pytest.mark.slow, pytest.mark.peer]
URL = f"s3://{BUCKET}/ray"
PATIENCE_S = 60.0
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
import pytest
from mpa_edge.engines.job import Engine
from mpa_edge.runs.remote.mirror import working_copy
from mpa_edge.stages.annotate.stage import run_annotate
from tests.engines.conftest import Lab
lab = Lab(Path(sys.argv[1]), pytest.MonkeyPatch())
lab.obey(pause_s=0.5)
with working_copy(sys.argv[2], lab.folder / "one") as folder:
    run_annotate(replace(lab.run("one", Engine("ray"), engine__actors=2), folder=folder))
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    with running(tmp_path_factory.mktemp("store")) as one:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in one.env.items():
            monkeypatch.setenv(name, value)
        yield one


def parts() -> list[str]:
    return [name for name in listing(URL) if name.startswith("1-annotate/part-")]


@pytest.mark.usefixtures("server", "root_importable")
def test_killed_on_one_machine_and_finished_on_another(lab) -> None:
    at_home = lab.run("reference")
    lab.obey("reference-diary")
    run_annotate(at_home)
    run_identify(at_home)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(lab.folder), URL], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while len(parts()) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    arrived = len(parts())
    assert arrived < 8
    diary = lab.obey("other")
    with working_copy(URL, lab.folder / "two") as folder:
        run = replace(lab.run("two"), folder=folder)
        run_annotate(run)
        assert len(asked(diary)) == 4 * (8 - arrived), "what is in the bucket was asked again"
        run_identify(replace(run, engine=Engine("ray")))
        assert files_of(run) == files_of(at_home)
    there = {name for name in listing(URL) if name.endswith(".parquet")}
    assert there == files_of(at_home).keys()
