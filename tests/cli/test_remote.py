"""Commands that are given the URL of a run folder, on a store in memory; S3: tests/runs/remote/test_mirror_s3.py."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mpa_edge.cli.main import main
from mpa_edge.runs.files import write_json
from mpa_edge.runs.remote.lease import LOCK_NAME
from mpa_edge.stages import pipeline
from mpa_edge.stages.run import Run
from tests.bench import made_up
from tests.runs.remote.objects import listing, upload

COUNT = itertools.count()
KNOWN = {"run.json", "recipe.yaml", "run.log"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mpa_edge.runs.remote.lease.SETTLE_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def url() -> str:
    return f"memory://cli/{next(COUNT)}"


@pytest.fixture
def images(picture) -> str:
    return str(picture("a.png", color="red").parent)


@pytest.fixture
def annotated(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that annotate was asked for; it writes one file."""

    def annotate(run: Run, fresh: bool) -> None:
        (run.stage_folder("annotate")).mkdir(exist_ok=True)
        (run.stage_folder("annotate") / "part-00000.parquet").write_bytes(b"rows")
        seen.append(run)

    seen: list[Run] = []
    monkeypatch.setitem(pipeline.STAGES, "annotate", annotate)
    return seen


def asked(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_a_stage_writes_behind_the_url_and_another_machine_goes_on(
    url: str, images: str, annotated: list[Run], cache: Path, tmp_path: Path
) -> None:
    done = asked("annotate", "minicharts", "--images", images, "--set", "images.render=null", "--out", url)
    assert done.exit_code == 0, done.output
    assert set(listing(url)) == KNOWN | {"run.log", "1-annotate/part-00000.parquet"}
    assert annotated[0].folder.is_relative_to(cache)
    done = asked("annotate", url, "--work", str(tmp_path / "elsewhere"), "--json")
    assert done.exit_code == 0, done.output
    assert annotated[1].folder == tmp_path / "elsewhere"
    assert annotated[1].recipe == annotated[0].recipe
    assert json.loads(done.stdout)["run"] == str(tmp_path / "elsewhere")
    assert LOCK_NAME not in listing(url)


def test_a_dry_run_writes_nothing_there(url: str, images: str, cache: Path) -> None:
    done = asked("align", "minicharts", "--images", images, "--set", "images.render=null", "--out", url, "--dry-run")
    assert done.exit_code == 0, done.output
    assert listing(url) == {}
    assert not cache.exists()


@pytest.mark.parametrize("command", ["report", "export", "level", "evaluate", "bundle", "bench"])
def test_a_url_without_a_run_is_one_line(url: str, command: str) -> None:
    done = asked(command, url)
    assert done.exit_code == 1
    assert f"{url} contains no run: mpa-edge align RECIPE --out {url} creates one" in str(done.exception or done.output)
    assert listing(url) == {}


def test_two_urls_are_one_line(url: str) -> None:
    done = asked("identify", url, "--out", f"{url}-other")
    assert done.exit_code == 1
    assert "are two runs behind URLs" in str(done.exception or done.output)


def test_the_same_url_twice_is_one(url: str, images: str, annotated: list[Run]) -> None:
    words = ("--images", images, "--set", "images.render=null")
    assert asked("annotate", "minicharts", *words, "--out", url).exit_code == 0
    done = asked("annotate", url, "--out", f"{url}/")
    assert done.exit_code == 0, done.output


def test_what_report_writes_arrives(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    made_up.write(run / "bench" / "cpu" / "gguf-q8_0", run="mine", target="cpu", n=80, slower=1.0)
    write_json(run / "run.json", {"images": None, "limit": None})
    upload(url, run, [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()])
    done = asked("report", url)
    assert done.exit_code == 0, done.output
    assert "report.html" in listing(url)
