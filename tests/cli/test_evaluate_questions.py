"""`mpa-edge evaluate MODEL` on a benchmark and on own questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.nursery.render import ANSWERS, render
from tests.questions import official


def run(*words: object) -> int:
    return exit_code(["evaluate", *map(str, words)])


def test_a_dry_run_counts_and_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.okvqa(tmp_path)
    assert run("no/such-model", "--benchmark", "okvqa", "--data", tmp_path, "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out == "ask no/such-model 2 questions of okvqa val, vqa-accuracy\n"
    assert said.err == "okvqa val: left out: no answers (1), missing image (1)\n"


def test_the_split_that_was_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.stvqa(tmp_path)
    assert run("nursery:student", "--benchmark", "stvqa", "--data", tmp_path, "--dry-run") == 0
    assert "not the paper's split" in capsys.readouterr().err


M = "nursery:student"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((M, "--benchmark", "chartqa"), "--benchmark chartqa needs its files: add --data"),
        ((M, "--benchmark", "chart", "--data", "."), "no benchmark 'chart': did you mean 'chartqa'?"),
        (("--benchmark", "chartqa", "--data", "."), "no model to ask: name a MODEL, "),
        ((M, "--benchmark", "chartqa", "--data", ".", "--metric", "anls"), "chartqa has its own metric"),
        ((M, "--benchmark", "chartqa", "--data", ".", "--images", "."), "--images belongs to a run"),
        ((M, "--benchmark", "chartqa", "--data", ".", "--out", "answers.json"), "let its name end in .jsonl"),
        ((M, "--benchmark", "chartqa", "--data", "."), "holds no chartqa test split"),
        ((M, "--benchmark", "chartqa", "--data", "./none/"), "no folder or file './none/'"),
        ((M, "--data", "."), "is no .csv or .jsonl file"),
        ((M, "--data", "q.csv"), "is no .csv or .jsonl file"),
        ((M, "--data", "q.csv", "--split", "test"), "--split belongs to a benchmark"),
        ((M, "--metric", "anls"), "--split and --metric need questions"),
        (("minicharts", "--accelerator", "cuda"), "--accelerator is for an export: name its folder as MODEL"),
        ((M, "--accelerator", "auto"), "an accelerator is for an export, and 'nursery:student' is none"),
    ],
)
def test_what_does_not_belong_together(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_own_questions_need_a_metric_where_no_run_says_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = official.own_csv(tmp_path / "q.csv")
    assert run("some/model", "--data", path) == 1
    assert "own questions need a metric: add --metric" in capsys.readouterr().err
    assert run("some/model", "--data", path, "--metric", "anls", "--dry-run") == 0
    assert run("some/model", "--data", path, "--set", "task=okvqa", "--dry-run") == 0
    assert "vqa-accuracy" in capsys.readouterr().out
    assert run("some/model", "--data", path, "--metric", "number:unit=bar", "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out.endswith(", number:unit=bar\n")
    assert "accept an answer that is no number" in said.err
    assert run("some/model", "--data", path, "--metric", "nunber", "--dry-run") == 2
    assert "did you mean 'number'?" in capsys.readouterr().err


def test_few_answers_and_rows_without_one_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.write_image(tmp_path / "a.png")
    path = tmp_path / "q.jsonl"
    row = {"image": "a.png", "question": "What?"}
    path.write_text("\n".join(json.dumps(row | {"answers": answers}) for answers in (["x"], [""], ["x"] * 10)))
    assert run(M, "--data", path, "--metric", "vqa-accuracy", "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out == f"ask {M} 2 questions of q.jsonl, vqa-accuracy\n"
    dropped, few = said.err.splitlines()
    assert dropped == "q.jsonl: left out: empty answer (1)"
    assert few.startswith("q.jsonl: 1 of 2 questions have fewer than three answers")
    recipe = tmp_path / "r.yaml"
    names = "schema_version: 1\nname: r\ntask: okvqa\nteacher: nursery:teacher\nstudent: nursery:student\n"
    recipe.write_text(f"{names}evaluate: {{questions: {path}}}\n")
    assert exit_code(["check", str(recipe)]) == 0
    assert "1 of 2 questions have fewer than three answers" in capsys.readouterr().err
    path.write_text(path.read_text() + "\n{oops")
    assert exit_code(["check", str(recipe)]) == 1
    assert f"recipe 'r': {path}:4: not JSON" in capsys.readouterr().err


def test_a_hub_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(M, "--benchmark", "chartqa", "--data", "some-owner/some-set", "--dry-run") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no folder 'some-owner/some-set' here, and no hub that has a data set of that name")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_real_model_on_every_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folder, parquet and own questions; own ones score as they do as a recipe's questions."""

    def result(*words: object) -> dict[str, object]:
        assert run(M, *words, "--set", "threads=1", "--json") == 0
        return json.loads(capsys.readouterr().out)

    out = tmp_path / "c.jsonl"
    charts = ("--benchmark", "chartqa", "--data", official.chartqa(tmp_path / "chartqa"), "--out", out)
    whole = result(*charts)
    assert whole["n"] == 6
    assert len(out.read_text().splitlines()) == 6
    assert json.loads((tmp_path / "c_results.json").read_text())["accuracy"] == whole["accuracy"]
    packed = result("--benchmark", "textvqa", "--data", official.textvqa_hub(tmp_path / "hub"), "--limit", 3)
    assert (packed["n"], packed["images"], packed["metric"]) == (3, 3, "vqa-accuracy")
    questions = render(tmp_path / "drawn", 12, 99, "target", answers_per_image=1) / ANSWERS
    own = result("--data", questions)
    as_recipe = result("--set", f"evaluate.questions={questions}", "--set", "images.render=null")
    assert own["accuracy"] == as_recipe["accuracy"] > 0
    assert own["kinds"].keys() == as_recipe["kinds"].keys()
