"""One process: failing shards are tried again and set aside, and the rest is done."""

from __future__ import annotations

import pytest

from mpa_edge.config.recipe import EngineConfig
from mpa_edge.engines.job import Facts, Job
from mpa_edge.engines.local import run_local
from mpa_edge.engines.retries import poisoned, poisoned_path
from mpa_edge.errors import MpaError
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from tests.engines.conftest import asked, files_of


class Worker:
    """Fails at the shards it is told, as often as it is told."""

    def __init__(self, fails: dict[int, list[BaseException]]) -> None:
        self.fails, self.tried, self.closed = fails, [], False

    def load(self) -> None:
        assert not self.closed

    def item(self, shard) -> str:
        return f"images of {shard}"

    def do(self, shard, item) -> None:
        self.tried.append(shard)
        assert item == f"images of {shard}"
        if self.fails.get(shard):
            raise self.fails[shard].pop()

    def facts(self) -> Facts:
        return Facts({"device": "cpu"}, 1)

    def close(self) -> None:
        self.closed = True


def job(folder, worker, n=100, **config) -> tuple[Job, list[int]]:
    written: list[int] = []
    made = Job(
        title="annotate",
        worker=worker,
        folder=folder,
        sizes=dict.fromkeys(range(n), 1),
        todo=range(n),
        config=EngineConfig(**config),
    )
    return made, written


def test_a_shard_is_tried_again(tmp_path, capsys) -> None:
    worker = Worker({3: [ValueError("twice"), ValueError("once")]})
    made, written = job(tmp_path, worker, 5)
    facts = run_local(made, written.append)
    assert worker.tried == [0, 1, 2, 3, 3, 3, 4]
    assert written == [0, 1, 2, 3, 4]
    assert poisoned(tmp_path) == []
    assert facts == Facts({"device": "cpu"}, 1)
    assert worker.closed
    assert "annotate 5/5" in capsys.readouterr().err


def test_one_is_set_aside_and_the_rest_is_done(tmp_path, capsys) -> None:
    worker = Worker({3: [ValueError("no\n such token")] * 3})
    made, written = job(tmp_path, worker)
    run_local(made, written.append)
    assert len(written) == 99
    assert [one.model_dump() for one in poisoned(tmp_path)] == [
        {"shard": 3, "tries": 3, "reason": "ValueError: no such token"}
    ]
    assert "annotate: shard 3 set aside after 3 failed tries (ValueError: no such token)" in capsys.readouterr().err


def test_too_many_end_the_run_with_one_line(tmp_path) -> None:
    worker = Worker({i: [ValueError(f"shard {i}")] * 3 for i in (3, 5, 8)})
    made, written = job(tmp_path, worker, error_budget=0.02)
    with pytest.raises(MpaError) as caught:
        run_local(made, written.append)
    assert str(caught.value) == (
        "annotate: 3 of 100 shards failed, more than engine.error_budget allows, the last with ValueError: shard 8: "
        "fix the cause and rerun; what is done is kept"
    )
    assert written == [0, 1, 2, 4, 6, 7]
    assert [one.shard for one in poisoned(tmp_path)] == [3, 5, 8]


@pytest.mark.parametrize("error", [MpaError("the disk is full: free some"), MemoryError(), KeyboardInterrupt()])
def test_some_errors_are_not_the_shards(tmp_path, error) -> None:
    worker = Worker({1: [error]})
    made, written = job(tmp_path, worker)
    with pytest.raises(type(error)):
        run_local(made, written.append)
    assert (worker.tried, written, poisoned(tmp_path)) == ([0, 1], [0], [])


def test_a_shard_that_was_set_aside_is_tried_again(tmp_path) -> None:
    poisoned_path(tmp_path, 2).write_text("{")
    assert poisoned(tmp_path)[0].reason == "the file with the reason is damaged"
    made, written = job(tmp_path, Worker({}), 3)
    run_local(made, written.append)
    assert written == [0, 1, 2]
    assert poisoned(tmp_path) == []


def test_the_stages_go_on_without_a_shard_and_take_it_up_again(lab) -> None:
    lab.obey(fails=(9,))
    run = lab.run("run")
    run_annotate(run)
    assert read_manifest(run.stage_folder("annotate")).counts["poisoned_shards"] == 1
    lab.obey("mended")
    run_annotate(lab.run("run"))
    assert sorted(asked(lab.folder / "mended")) == [8, 9, 10, 11]
    assert "poisoned_shards" not in read_manifest(run.stage_folder("annotate")).counts
    lab.obey("again")
    run_annotate(lab.run("run"))
    assert not asked(lab.folder / "again")


def test_what_is_set_aside_stays_out_where_later_stages_have_begun(lab) -> None:
    lab.obey(fails=(9,))
    run = lab.run("run")
    run_annotate(run)
    run_identify(run)
    assert not (run.stage_folder("identify") / "part-00002.parquet").exists()
    lab.obey("mended")
    run_annotate(lab.run("run"))
    assert not asked(lab.folder / "mended")


def test_the_teacher_pass_and_the_student_pass_set_aside_apart(lab) -> None:
    run, whole = lab.run("run", annotate__votes=0), lab.run("whole", annotate__votes=0)
    run_annotate(run)
    run_annotate(whole)
    run_identify(whole)
    lab.obey("failing", fails=(9,))
    run_identify(lab.run("run", annotate__votes=0))
    assert [one.shard for one in poisoned(run.stage_folder("identify"))] == [2]
    assert "2-identify/part-00002.parquet" not in files_of(run)
    lab.obey("mended")
    run_identify(lab.run("run", annotate__votes=0))
    assert files_of(run) == files_of(whole)
