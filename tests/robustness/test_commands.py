"""The commands of the stages at the command line: what is redone, what is refused, what is printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpa_edge.config.library import root
from mpa_edge.nursery.render import render
from mpa_edge.runs.files import read_json
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.stages.pipeline import STAGES
from mpa_edge.types import AlignReport

pytestmark = pytest.mark.slow


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished small run that a test may change."""
    shutil.copytree(undisturbed, tmp_path / "run")
    return tmp_path / "run"


def one_line(ended) -> str:
    """The only line on stderr of a command that failed."""
    assert ended.rc != 0
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0].removeprefix("error: ")


def test_the_report_is_one_document_with_the_promised_keys(forks, run, set_arguments) -> None:
    ended = forks("align", str(run), "--json")
    assert ended.rc == 0
    report = AlignReport.model_validate_json(ended.stdout)
    assert report.images == 24
    assert report.annotated == report.verified + report.dropped["not confirmed by the teacher"]
    assert set(report.seconds) == {"annotate", "identify", "level", "merge", "evaluate"}
    assert report.accuracy is not None
    assert report.gain == pytest.approx(report.accuracy.aligned - report.accuracy.base)
    keys = "run images annotated dropped verified gap truth n_reviewed teacher_accuracy teacher_ci95 method accuracy "
    keys += "gain gain_ci95 p_mcnemar seconds peak_rss_bytes"
    assert list(json.loads(ended.stdout)) == keys.split()


def test_a_finished_run_is_skipped_at_once(forks, run) -> None:
    started = time.monotonic()
    ended = forks("align", str(run))
    assert time.monotonic() - started < 3
    assert ended.stderr.splitlines() == [f"{stage}: already done, nothing changed" for stage in STAGES]
    assert "40 held-out questions, exact-match" in ended.stdout


def test_a_changed_level_redoes_level_and_what_follows(forks, run) -> None:
    ended = forks("align", str(run), "--set", "level.rank=8")
    assert ended.rc == 0, ended.stderr
    for stage in ("annotate", "identify"):
        assert f"{stage}: already done, nothing changed" in ended.stderr
    assert "level: starting over because of changes in config" in ended.stderr
    assert "merge: starting over because of changes in level" in ended.stderr
    assert "evaluate: starting over because of changes in merge" in ended.stderr
    assert read_json(run / "3-level" / "adapter" / "adapter_config.json")["r"] == 8
    # the folder remembers: the next call needs no --set
    assert forks("align", str(run)).stderr.count("already done") == 5


def test_fresh_does_a_stage_again(forks, run) -> None:
    before = read_manifest(run / "2-identify")
    ended = forks("identify", str(run), "--fresh", "--json")
    assert ended.rc == 0
    assert "already done" not in ended.stderr
    after = read_manifest(run / "2-identify")
    assert before is not None
    assert after is not None
    assert after.outputs == before.outputs
    assert json.loads(ended.stdout)["gap"] == before.counts["gap"]


def test_limit_and_a_relative_images_folder(forks, tmp_path, set_arguments) -> None:
    render(tmp_path / "images", 8, 7, "target")
    relative = os.path.relpath(tmp_path / "images", forks.cwd)
    ended = forks("annotate", "--images", relative, "--out", str(tmp_path / "run"), "--limit", "5", *set_arguments())
    assert ended.rc == 0, ended.stderr
    assert "on 5 images" in ended.stderr
    assert read_json(tmp_path / "run" / "run.json") == {"images": str((tmp_path / "images").resolve()), "limit": 5}
    assert forks("annotate", str(tmp_path / "run")).stderr == "annotate: already done, nothing changed\n"
    assert "annotate sets --limit" in one_line(forks("identify", str(tmp_path / "run"), "--limit", "3"))


def test_two_processes_in_one_run_folder(forks, tmp_path, set_arguments) -> None:
    out = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(root())}
    code = (
        "import time; from pathlib import Path; from mpa_edge.runs.lock import run_lock\n"
        f"with run_lock(Path({str(out)!r})):\n print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        line = one_line(forks("align", "--out", str(out), *set_arguments()))
        other.send_signal(signal.SIGKILL)
    assert line == f"{out} is in use by process {other.pid}: wait for it, stop it, or choose another --out"


def test_a_stage_before_its_time(forks, tmp_path, run, set_arguments) -> None:
    line = one_line(forks("identify", "--out", str(tmp_path / "new"), *set_arguments()))
    assert "has no finished annotate: run mpa-edge" in line
    assert not (tmp_path / "new").exists()
    shutil.rmtree(run / "2-identify")
    assert one_line(forks("level", str(run))) == (f"{run} has no finished identify: run mpa-edge identify {run} first")


def test_settings_of_an_earlier_stage_cannot_be_changed_behind_its_back(forks, run) -> None:
    line = one_line(forks("level", str(run), "--set", "annotate.samples_per_image=2"))
    assert line.startswith(f"annotate in {run} was made with other settings or models: run mpa-edge annotate {run}")


def test_a_changed_adapter_is_noticed(forks, run) -> None:
    path = run / "3-level" / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    assert one_line(forks("merge", str(run))).endswith(f"is missing or was changed: rerun mpa-edge level {run}")


def test_damaged_run_files(forks, run) -> None:
    (run / "run.json").write_text("{")
    assert "is damaged" in one_line(forks("align", str(run)))
    (run / "run.json").write_text('{"images": null, "limit": null}')
    (run / "recipe.yaml").write_text("name: [")
    assert "line 1" in one_line(forks("align", str(run)))
    (run / "recipe.yaml").unlink()
    assert "no file" in one_line(forks("align", str(run)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"teacher": "nursery:nobody"}, "no built-in model 'nursery:nobody'"),
        ({"teacher": "/no/such/model"}, "no model '/no/such/model'"),
        ({"student": "."}, "has no config.json"),
        ({"task": "chart-qa"}, "did you mean 'chartqa'?"),
        ({"images__render__n": 0}, "images.render.n"),
        ({"level__rnk": 8}, "did you mean 'rank'?"),
        ({"evaluate__questions": "nowhere.jsonl"}, "no file 'nowhere.jsonl'"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_wrong_with_a_recipe_is_said_before_anything_is_written(forks, tmp_path, set_arguments, wrong, said):
    for more in ((), ("--dry-run",)):
        line = one_line(forks("align", "--out", str(tmp_path / "run"), *set_arguments(**wrong), *more))
        assert said in line
        assert not (tmp_path / "run").exists()


def test_a_model_without_family_or_weights(forks, tmp_path, set_arguments) -> None:
    student = root() / "mpa_edge" / "nursery" / "weights" / "student"
    other = tmp_path / "other"
    shutil.copytree(student, other)
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    call = ("align", "--out", str(tmp_path / "run"))
    assert "no family for model type 'blip'" in one_line(forks(*call, *set_arguments(student=str(other))))
    (other / "model.safetensors").unlink()
    assert "no model.safetensors: convert the checkpoint" in one_line(forks(*call, *set_arguments(student=str(other))))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_left_alone(forks, tmp_path, set_arguments) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    assert "is not a run folder but holds files" in one_line(forks("align", "--out", str(tmp_path), *set_arguments()))
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert "is not a run folder" in one_line(forks("align", str(tmp_path)))


def test_images_folders_that_are_none(forks, tmp_path, set_arguments) -> None:
    out = ("--out", str(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, said in (("missing", "no folder"), ("empty", "no images in"), ("file", "is not a folder")):
        assert said in one_line(forks("align", "--images", str(tmp_path / name), *out, *set_arguments()))
    assert not (tmp_path / "run").exists()


def test_own_questions(forks, run) -> None:
    folder = render(run.parent / "exam", 5, 99, "target", answers_per_image=1)
    questions = folder / "answers.jsonl"
    ended = forks("align", str(run), "--set", f"evaluate.questions={questions}", "--json")
    assert ended.rc == 0, ended.stderr
    assert json.loads(ended.stdout)["accuracy"]["n"] == len(questions.read_text().splitlines())
    questions.write_text(questions.read_text() + "{broken\n")
    line = one_line(forks("evaluate", str(run)))
    assert f"{questions}:6: not JSON" in line


def test_another_task_without_questions(forks, tmp_path, set_arguments) -> None:
    images = str(render(tmp_path / "images", 6, 7, "target"))
    task = set_arguments(task="chartqa", annotate__max_new_tokens=8, level__min_gap=1)
    ended = forks("align", "--images", images, "--out", str(tmp_path / "run"), *task, "--dry-run")
    assert "questions that the teacher writes about 3 of 3 held-out images" in ended.stdout
    ended = forks(
        "align", "--images", images, "--out", str(tmp_path / "run"), *task, "--dry-run", "--set", "evaluate.holdout=0.0"
    )
    assert "skipped: no held-out questions" in ended.stdout
    line = one_line(forks("evaluate", "--out", str(tmp_path / "run"), *task))
    assert "has no finished annotate" in line


def test_nothing_is_written_and_no_torch_imported_by_a_dry_run(tmp_path, set_arguments) -> None:
    code = (
        "import sys; from mpa_edge.cli.main import exit_code; rc = exit_code(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(rc)"
    )
    images = tmp_path / "images"
    render(images, 3, 7, "target")
    before = sorted(tmp_path.rglob("*"))
    for more in ([], ["--images", str(images)]):
        done = subprocess.run(
            [sys.executable, "-c", code, "align", "--dry-run", "--json", "--out", "run", *more, *set_arguments()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root())},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == (3 if more else 24)
        assert done.stderr == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_the_plan_is_near_the_truth(forks, undisturbed, set_arguments, tmp_path) -> None:
    planned = json.loads(forks("align", "--out", str(tmp_path / "x"), "--dry-run", "--json", *set_arguments()).stdout)
    used = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())
    assert used <= planned["disk_bytes"] <= 4 * used
    peak = json.loads(forks("align", str(undisturbed), "--json").stdout)["peak_rss_bytes"]
    assert peak / 2 <= planned["memory_bytes"] <= 2 * peak


def test_only_our_words_reach_the_screen(undisturbed, set_arguments, tmp_path) -> None:
    """A process of its own, with everything imported in it: libraries warn on import, too."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for stage in ("3-level", "merged", "evaluate"):
        shutil.rmtree(run / stage)
    done = subprocess.run(
        [sys.executable, "-m", "mpa_edge", "align", str(run), "--json", "--set", "level.max_steps=2"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root())},
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    ours = ("annotate", "identify", "level", "merge", "evaluate")
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
