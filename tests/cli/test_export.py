"""The export command as a user meets it: on the built-in student, end to end, with wrong input too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.config.library import load_recipe
from mpa_edge.runs.files import read_json, sha256_file
from mpa_edge.runs.manifest import finish
from mpa_edge.stages.run import Run, remember
from mpa_edge.vlm import WEIGHTS
from tests.forks import Forks

EXPORT_KEYS = ["scheme", "path", "files", "parity", "accuracy", "retained_gain", "refused", "seconds", "peak_rss_bytes"]
PARITY_KEYS = [
    "tokens_equal",
    "image_tokens_equal",
    "vision_cosine_min",
    "kl",
    "max_abs_logit_diff",
    "greedy_prefix",
    "blank_image_changes",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student was not changed by the alignment."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    remember(Run(folder, load_recipe("minicharts", ["evaluate.n=12", "threads=1"])))
    merged = Path(shutil.copytree(WEIGHTS / "student", folder / "merged"))
    finish(merged, "merge", inputs={"level": "", "student": "", "config": ""}, config="", seed=0, counts={})
    return folder


@pytest.mark.slow
def test_one_document_on_stdout_and_every_file_as_it_says(forks: Forks, run: Path) -> None:
    done = forks("export", str(run), "--as", "onnx-int8", "--accuracy", "12", "--threads", "1", "--json")
    assert done.rc == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["run", "exports"]
    (export,) = document["exports"]
    assert list(export) == EXPORT_KEYS
    assert list(export["parity"]) == PARITY_KEYS
    assert sorted(export["files"]) == ["decoder", "embed", "vision"]
    for file in export["files"].values():
        path = Path(export["path"]) / file["path"]
        assert (path.stat().st_size, sha256_file(path)) == (file["bytes"], file["sha256"])
    assert list(export["accuracy"]) == ["base", "aligned", "artifact", "n", "truth"]
    assert export["accuracy"]["n"] == 12
    assert export["accuracy"]["base"] == export["accuracy"]["aligned"]
    assert export["retained_gain"] is None
    assert export["seconds"] > 0
    assert export["peak_rss_bytes"] > 50e6
    card = (Path(export["path"]) / "README.md").read_text()
    assert "12" in card
    assert str(run.parent) not in card
    assert str(run.parent) not in (Path(export["path"]) / "manifest.json").read_text()
    again = forks("export", str(run), "--as", "onnx-int8", "--accuracy", "12", "--threads", "1", "--json")
    assert json.loads(again.stdout) == document
    assert "done before, nothing changed" in again.stderr


@pytest.mark.slow
@pytest.mark.peer
def test_a_target_without_scheme_and_evaluate_on_what_it_made(forks: Forks, tmp_path: Path) -> None:
    done = forks("export", "nursery:student", "--target", "phone", "--out", str(tmp_path), "--threads", "1")
    assert done.rc == 0, done.stderr
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert f"verified, in {folder}" in done.stdout
    assert "MB" in done.stdout
    asked = forks("evaluate", str(folder), "--limit", "6", "--set", "threads=1", "--json")
    assert asked.rc == 0, asked.stderr
    result = json.loads(asked.stdout)
    assert (result["model"], result["n"], result["metric"]) == (folder.name, 6, "exact-match")


@pytest.mark.slow
@pytest.mark.peer
def test_the_smallest_scheme_within_the_margin_is_chosen(forks: Forks, run: Path, tmp_path: Path) -> None:
    choose = ["export", str(run), "--target", "phone", "--choose", "--accuracy", "12", "--threads", "1"]
    done = forks(*choose, "--margin", "90", "--out", str(tmp_path / "loose"), "--json")
    assert done.rc == 0, done.stderr
    (chosen,) = json.loads(done.stdout)["exports"]
    assert (chosen["scheme"], chosen["refused"], chosen["accuracy"]["n"]) == ("gguf-q4_k_m", [], 12)


def test_the_plan_says_sizes_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert exit_code(["export", str(run), "--as", "onnx-int8", "--as", "gguf-q8_0", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(plan["predicted_bytes"]) == ["gguf-q8_0", "onnx-int8"]
    assert all(size > 0 for sizes in plan["predicted_bytes"].values() for size in sizes.values())
    assert sorted(run.rglob("*")) == before


def test_a_client_leaves_the_schemes_that_it_can_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for client, kept in (("llama-server", "gguf"), ("transformers.js", "onnx")):
        assert exit_code(["export", str(run), "--target", "cpu", "--client", client, "--dry-run", "--json"]) == 0
        sizes = json.loads(capsys.readouterr().out)["predicted_bytes"]
        assert sizes
        assert all(name.startswith(kept) for name in sizes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--as", "onnx-int9"], "no scheme 'onnx-int9' (did you mean 'onnx-int8'?)"),
        (["--target", "jetsn"], "no target 'jetsn' (did you mean 'jetson'?)"),
        (["--threads", "0"], "0 is not in the range"),
        (["--accuracy", "-1"], "-1 is not in the range"),
        (["--as", "gguf-q8_0", "--client", "transformers.js"], "does not read gguf-q8_0: name another scheme"),
        (
            ["--as", "onnx-int8", "--client", "python", "--client", "llama-server"],
            "llama-server does not read onnx-int8",
        ),
        (["--choose", "--as", "onnx-int8"], "--choose takes the schemes of a target: leave out --as"),
        (["--choose", "--margin", "0"], "0.0 is not in the range"),
    ],
)
def test_wrong_words_are_one_line(run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["export", str(run), *words]) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_accuracy_of_a_plain_checkpoint_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "nursery:student", "--as", "onnx-int8", "--accuracy", "5", "--out", str(tmp_path / "x")]
    assert exit_code(words) == 1
    assert "is no run, so there is no base to compare with: name the run folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["export", str(tmp_path)]) == 1
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_one_model_prints_how_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["evaluate", "nursery:student", "--limit", "8", "--set", "threads=1"]) == 0
    out = capsys.readouterr().out
    assert "nursery:student on generated questions" in out
    assert "exact-match-lenient, not the reference" in out
    assert exit_code(["evaluate", "nursery:student", "--limit", "8", "--dry-run"]) == 0
    assert "ask nursery:student 8 questions of task minicharts" in capsys.readouterr().out


def test_a_run_is_not_taken_for_a_model(run: Path) -> None:
    from mpa_edge.cli.evaluate import is_model

    assert not is_model(str(run))
    assert is_model(str(run / "merged"))
    assert read_json(run / "run.json") is not None
