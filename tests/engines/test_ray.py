"""The Ray engine on real clusters of several nodes on this box: whatever dies, each row is there once, as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.engines import ray_cluster, ray_engine
from mpa_edge.engines.job import Engine
from mpa_edge.engines.retries import poisoned
from mpa_edge.errors import MpaError
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import part_path, read_dropped, read_parts
from mpa_edge.stages.annotate import stage as annotate
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.types import PseudoAnnotation
from tests.engines.conftest import asked, files_of
from tests.engines.fakes import Forgetful, no_model

pytestmark = [pytest.mark.slow, pytest.mark.peer]


def reference(lab, **changed):
    """What one process makes of it."""
    run = lab.run("reference", **changed)
    lab.obey("reference-diary")
    run_annotate(run)
    run_identify(run)
    lab.obey()
    return run


def ids(run) -> list[str]:
    rows = read_parts(run.stage_folder("annotate"), PseudoAnnotation)
    return [row.id for row in rows] + [row.id for row in read_dropped(run.stage_folder("annotate"))]


def test_both_stages_leave_the_same_bytes_and_manifests(lab, cluster, capsys) -> None:
    at_home = reference(lab, annotate__votes=0)  # the teacher answers in identify, too
    run = lab.run("ray", Engine("ray", cluster.address), annotate__votes=0)
    run_annotate(run)
    run_identify(run)
    assert files_of(run) == files_of(at_home)
    for stage in ("annotate", "identify"):
        one, other = (read_manifest(r.stage_folder(stage)) for r in (run, at_home))
        assert (one.inputs, one.outputs, one.config_sha256) == (other.inputs, other.outputs, other.config_sha256)
        assert one.counts | {"peak_rss_bytes": 0} == other.counts | {"peak_rss_bytes": 0}
    screen = capsys.readouterr().err
    assert "annotate 32/32" in screen
    assert "8 of 8 shards, 2 actors" in screen


def test_what_fails_is_set_aside_and_the_rest_is_done(lab, cluster, capsys) -> None:
    """Images 5 and 21 once, 9 and 17 always: by a kill of the actor, and by an error."""
    at_home = reference(lab)
    run = lab.run("ray", Engine("ray", cluster.address), engine__actors=2)
    lab.obey(kills_once=(5,), kills=(9,), fails=(17,), fails_once=(21,))
    run_annotate(run)
    aside = poisoned(run.stage_folder("annotate"))
    assert [(one.shard, one.tries, one.reason) for one in aside] == [
        (2, 3, "its worker died (killed, crashed, or out of memory)"),
        (4, 3, "ValueError: image 17 is too much"),
    ]
    assert read_manifest(run.stage_folder("annotate")).counts["poisoned_shards"] == 2
    assert (
        "annotate: shard 4 set aside after 3 failed tries (ValueError: image 17 is too much)" in capsys.readouterr().err
    )
    lab.obey("mended")
    run_annotate(lab.run("ray"))
    assert sorted(asked(lab.folder / "mended")) == [8, 9, 10, 11, 16, 17, 18, 19]
    assert poisoned(run.stage_folder("annotate")) == []
    run_identify(lab.run("ray"))
    assert files_of(run) == files_of(at_home)


def test_a_machine_dies_and_nobody_takes_its_place(lab, breakable, monkeypatch) -> None:
    at_home, machines = reference(lab), breakable
    monkeypatch.setattr(ray_engine, "STALL_S", 10.0)
    run = lab.run("ray", Engine("ray", machines.address))
    diary = lab.obey(pause_s=0.3)

    def kill() -> None:
        while len(asked(diary)) < 8:
            time.sleep(0.05)
        machines.remove_node(machines.machines[1], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run_annotate(run)
    killer.join()
    run_identify(lab.run("ray"))
    assert files_of(run) == files_of(at_home)
    assert len(ids(run)) == len(set(ids(run))) == 64


DRIVER = """
import sys
from pathlib import Path
import pytest
from mpa_edge.engines.job import Engine
from mpa_edge.stages import annotate
from mpa_edge.stages.annotate.stage import run_annotate
from tests.engines.conftest import Lab
lab = Lab(Path(sys.argv[1]), pytest.MonkeyPatch())
lab.obey(pause_s=0.2)
run_annotate(lab.run("ray", Engine("ray"), engine__actors=2))
"""


def test_the_driver_is_killed_and_either_engine_goes_on(lab, root_importable) -> None:
    at_home = reference(lab)
    with (lab.folder / "said").open("w") as said:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(lab.folder)], stderr=said)
    run, diary = lab.run("ray"), lab.folder / "diary"
    parts = run.stage_folder("annotate")
    while len(list(parts.glob("part-*.parquet"))) < 3:
        time.sleep(0.05)
        assert driver.poll() is None
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _all_gone(diary)
    assert (lab.folder / "said").read_text().endswith(f"error: {ray_cluster.GONE}\n")
    done = {int(path.stem.partition("-")[2]) for path in parts.glob("part-*.parquet")}
    assert 3 <= len(done) < 8
    left = 8 - len(done)
    run_annotate(lab.run("ray", engine__shard_tries=1))  # one process
    again = {n // 4 for n, times in asked(diary).items() if times > 2}
    assert len(again) <= 2, "more than one shard of each actor was done twice"
    assert len(asked(diary)) == 32
    assert left
    part_path(parts, 5).unlink()
    run_annotate(lab.run("ray", Engine("ray")))
    run_identify(lab.run("ray"))
    assert files_of(run) == files_of(at_home)


def _all_gone(diary: Path) -> None:
    """Nothing of a dead driver's own cluster stays behind."""
    pids = {int(path.stem.rpartition("-")[2]) for path in diary.glob("*.loaded")}
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "actors outlive their driver"
        time.sleep(0.1)


def test_images_larger_than_the_object_store(lab, cluster) -> None:
    folder = lab.folder / "images"
    folder.mkdir()
    for i in range(16):
        Image.new("RGB", (2000, 1500), (i, 0, 7)).save(folder / f"{i:05d}.png", compress_level=1)
    at_home = reference(lab)
    run = lab.run("ray", Engine("ray", cluster.address))
    run_annotate(run)
    run_identify(lab.run("ray"))
    assert files_of(run) == files_of(at_home)


def test_machines_that_do_not_see_the_run_folder(lab, cluster, monkeypatch) -> None:
    """Neither they nor the client are one place: what is needed travels with the shard, and so does what is made."""
    at_home = reference(lab)
    run = lab.run("ray", Engine("ray", cluster.outside))
    as_it_is = ray_engine.Rounds._spec

    def out_of_sight(rounds):
        spec = as_it_is(rounds)
        assert not spec.remote_files
        return replace(spec, mark=(Path("/nowhere") / spec.mark[0].name, spec.mark[1]), remote_files=True)

    monkeypatch.setattr(ray_engine.Rounds, "_spec", out_of_sight)
    run_annotate(run)
    run_identify(lab.run("ray", Engine("ray", cluster.address)))
    assert files_of(run) == files_of(at_home)


@pytest.mark.parametrize("far", [False, True])
def test_a_shard_that_two_write_at_once_is_there_once(lab, cluster, monkeypatch, far) -> None:
    """As when a machine that was thought lost still writes: each shard goes to both actors at the same time."""
    at_home = reference(lab)
    run = lab.run("ray", Engine("ray", cluster.address), engine__shard_tries=5)
    groups, as_it_is = ray_engine.Rounds._groups, ray_engine.Rounds._spec
    hidden = (Path("/nowhere") / "inputs.json", b"")

    def doubled(rounds, *args):
        return ([block for block in group for _ in range(2)] for group in groups(rounds, *args))

    def forgetful(rounds):
        spec = as_it_is(rounds)
        return replace(spec, worker=Forgetful(spec.worker), **({"mark": hidden, "remote_files": True} if far else {}))

    monkeypatch.setattr(ray_engine.Rounds, "_groups", doubled)
    monkeypatch.setattr(ray_engine.Rounds, "_spec", forgetful)
    diary = lab.obey("twice", pause_s=0.5)
    run_annotate(run)
    assert min(asked(diary).values()) > 2, "a shard was done once only"
    run_identify(lab.run("ray"))
    assert files_of(run) == files_of(at_home)
    assert len(ids(run)) == len(set(ids(run))) == 64


def test_a_machine_without_the_images_is_not_asked_about_them(lab, cluster, monkeypatch) -> None:
    monkeypatch.setattr(annotate.Annotator, "must_see", lambda worker: (Path("/nowhere/0.png"),))
    with pytest.raises(MpaError, match="does not see /nowhere/0.png: put it where all machines"):
        run_annotate(lab.run("ray", Engine("ray", cluster.address)))


def test_a_user_error_in_an_actor_is_one_line_here(lab, cluster, monkeypatch) -> None:
    monkeypatch.setattr(annotate, "load", no_model)
    with pytest.raises(MpaError, match="^no such model: name another one$"):
        run_annotate(lab.run("ray", Engine("ray", cluster.address)))


def test_a_strangers_cluster_is_left_alone(lab, cluster, monkeypatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    joined = []
    monkeypatch.setattr(ray, "init", lambda *args, init=ray.init, **more: joined.append(init(*args, **more)))
    run_annotate(lab.run("ray", Engine("ray"), engine__actors=1))
    assert [context.address_info["gcs_address"] == cluster.address for context in joined] == [False]
    assert not ray.is_initialized()
