"""`mpa-edge cloud status|logs|fetch|down` of a job that was launched."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.cloud import program
from mpa_edge.cloud.state import Launched, read_state, write_state
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.manifest import finish
from tests.cloud.fakes import Fake, install, path_without

CANARY = "hf_canary_0001"


def launched(folder: Path, **changes: object) -> Launched:
    plain = {
        "name": "charts",
        "provider": "sky",
        "url": f"file://{folder.parent}/bucket",
        "command": ("sky",),
        "version": "0",
        "launched_at": datetime.datetime(2026, 11, 1, 12, 0, tzinfo=datetime.UTC),
        "state": "launched",
        "secrets": ("HF_TOKEN",),
    }
    made = Launched.model_validate(plain | changes)
    make_folder(folder / "cloud")
    write_state(folder, made)
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr(program, "BESIDE", tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{path_without('sky', 'hf', 'aws')}")
    launched(tmp_path / "work" / "runs" / "charts")
    return tmp_path / "work"


@pytest.fixture
def sky(place: Path) -> Fake:
    return install("sky", place.parent / "bin", place.parent / "records")


@pytest.fixture
def hf(place: Path) -> Fake:
    launched(place / "runs" / "hub", name="hub", provider="hf", job_id="6870aa")
    return install("hf", place.parent / "bin", place.parent / "records")


def test_status_of_sky(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"job_id": 3, "job_name": "charts", "status": "RECOVERING", "recovery_count": 2}, {"job_name": "other"}]
    sky.answer(queue={"out": json.dumps(rows), "err": "notice\n"})
    assert exit_code(["cloud", "status", "charts"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "charts: RECOVERING, recovered 2 times"
    assert "2026-11-01 12:00 UTC" in said.out
    assert exit_code(["cloud", "status", "runs/charts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "RECOVERING, recovered 2 times"
    assert sky.calls()[0]["argv"] == ["jobs", "queue", "--all", "--output", "json"]


def test_status_of_hf(place: Path, hf: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    hf.answer(inspect={"out": json.dumps([{"id": "6870aa", "status": {"stage": "RUNNING", "message": None}}])})
    assert exit_code(["cloud", "status", "hub"]) == 0
    assert capsys.readouterr().out.startswith("hub: RUNNING\n")
    assert hf.calls()[0]["argv"] == ["jobs", "inspect", "6870aa", "--json"]


def test_logs_are_passed_on_without_secrets(
    place: Path, sky: Fake, hf: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.answer(logs={"out": f"annotate 1/9 {CANARY}\n", "err": f"warning {CANARY}\n"})
    assert exit_code(["cloud", "logs", "charts"]) == 0
    said = capsys.readouterr()
    assert said.out == "annotate 1/9 (HF_TOKEN)\n"
    assert said.err == "warning (HF_TOKEN)\n"
    assert exit_code(["cloud", "logs", "hub", "--follow"]) == 0
    assert sky.calls()[0]["argv"] == ["jobs", "logs", "--name", "charts", "--no-follow"]
    assert hf.calls()[0]["argv"] == ["jobs", "logs", "--follow", "6870aa"]


def test_down_ends_it_and_remembers(place: Path, sky: Fake, hf: Fake) -> None:
    assert exit_code(["cloud", "down", "charts"]) == exit_code(["cloud", "down", "hub"]) == 0
    assert sky.calls()[0]["argv"] == ["jobs", "cancel", "--name", "charts", "--yes", "--graceful"]
    assert hf.calls()[0]["argv"] == ["jobs", "cancel", "6870aa"]
    assert {(read_state(place / "runs" / name) or launched(place)).state for name in ("charts", "hub")} == {"down"}


@pytest.mark.parametrize("queue", ['[{"job_name": "charts", "status": "SUCCEEDED"}]', "[]"])
def test_down_of_what_has_ended_is_no_failure(queue: str, place: Path, sky: Fake) -> None:
    sky.answer(cancel={"err": "no such job\n", "code": 1}, queue={"out": queue})
    assert exit_code(["cloud", "down", "charts"]) == 0
    assert (read_state(place / "runs" / "charts") or launched(place)).state == "down"


def test_down_that_did_not_work_is_one(place: Path, sky: Fake) -> None:
    sky.answer(cancel={"code": 1}, queue={"out": '[{"job_name": "charts", "status": "RUNNING"}]'})
    assert exit_code(["cloud", "down", "charts"]) == 1
    assert (read_state(place / "runs" / "charts") or launched(place)).state == "launched"


@pytest.mark.parametrize("verb", ["status", "logs", "down"])
def test_a_failure_is_passed_on(verb: str, place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sky.answer(jobs={"err": f"cannot reach the cloud with {CANARY}\n", "code": 7})
    assert exit_code(["cloud", verb, "charts"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "cannot reach the cloud with (HF_TOKEN)"
    assert said[-1].startswith("error: sky ended with exit code 7")
    assert (read_state(place / "runs" / "charts") or launched(place)).state == "launched"


def test_a_missing_program_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["cloud", "status", "charts"]) == 1
    assert "sky is not on PATH" in capsys.readouterr().err


def test_an_unknown_job_names_the_known_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["cloud", "status", "chart"]) == 1
    assert "use one of charts" in capsys.readouterr().err


def test_a_damaged_record_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "charts" / "cloud" / "job.json").write_text('{"name": 3}')
    assert exit_code(["cloud", "status", "charts"]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_a_job_without_an_id_is_said(place: Path, hf: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    launched(place / "runs" / "lost", name="lost", provider="hf", url="hf://buckets/me/kept/lost")
    assert exit_code(["cloud", "down", "lost"]) == 1
    assert "hf jobs list --name lost" in capsys.readouterr().err


def kept_run(bucket: Path) -> Path:
    """A run folder as a job leaves it, with what must stay there."""
    stage = make_folder(bucket / "1-annotate")
    (stage / "part-0.parquet").write_bytes(b"a" * 2_000_000)
    (stage / ".inputs.json").write_text("{}")
    (stage / ".part-1.parquet.7.tmp").write_text("half")
    finish(stage, "annotate", inputs={}, config="", seed=0, counts={})
    (bucket / ".lock").write_text("7\n")
    (bucket / "run.json").write_text('{"images": null, "limit": null}')
    return stage


def test_fetch_brings_what_is_new(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage, folder = kept_run(place.parent / "bucket" / "charts"), place / "runs" / "charts"
    launched(folder, url=f"file://{place.parent}/bucket/charts")
    assert exit_code(["cloud", "fetch", "charts"]) == 0
    here = folder / "1-annotate"
    kept = ("part-0.parquet", ".inputs.json", "manifest.json")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"cloud/job.json", "run.json", *(f"1-annotate/{name}" for name in kept)}
    (stage / "part-0.parquet").write_bytes(b"b" * 2_000_000)  # made again, with the very size
    finish(stage, "annotate", inputs={}, config="", seed=0, counts={})
    assert exit_code(["cloud", "fetch", "charts"]) == 0
    assert (here / "part-0.parquet").read_bytes()[:1] == b"b"
    assert "is here" in capsys.readouterr().out


def test_status_looks_into_the_bucket(place: Path, sky: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sky.answer(queue={"out": "[]"})
    bucket = place.parent / "bucket" / "charts"
    launched(place / "runs" / "charts", url=f"file://{bucket}")
    assert exit_code(["cloud", "status", "charts"]) == 0
    assert "run: nothing yet" in capsys.readouterr().out
    kept_run(bucket)
    for name in ("2-identify/part-00000.parquet", "3-level/adapter/x"):
        (bucket / name).parent.mkdir(parents=True)
        (bucket / name).write_text("x")
    assert exit_code(["cloud", "status", "charts"]) == 0
    assert "run: annotate done, identify 1 parts, level begun" in capsys.readouterr().out
    launched(place / "runs" / "charts", url="nobody://kept")
    assert exit_code(["cloud", "status", "charts"]) == 0
    assert "run: not seen from here: nobody://" in capsys.readouterr().out


def test_nothing_to_fetch_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched(place / "runs" / "charts", url=f"file://{place.parent}/nowhere")
    assert exit_code(["cloud", "fetch", "charts"]) == 1
    assert "nothing is at" in capsys.readouterr().err


def test_where_the_package_is_missing_the_providers_program_copies(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "s3fs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    launched(place / "runs" / "charts", url="s3://kept/charts")
    assert exit_code(["cloud", "fetch", "charts"]) == 1
    assert "aws is not on PATH" in capsys.readouterr().err
    aws = install("aws", place.parent / "bin", place.parent / "records")
    assert exit_code(["cloud", "fetch", "charts"]) == 0
    assert aws.calls()[0]["argv"] == ["s3", "sync", "s3://kept/charts", "runs/charts"]
    aws.answer(s3={"code": 4})
    assert exit_code(["cloud", "fetch", "charts"]) == 1
    assert "aws ended with exit code 4" in capsys.readouterr().err
