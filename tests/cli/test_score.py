"""`mpa-edge score`: one document, one line for each mistake."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
ROW = b'{"answers": ["5"], "prediction": "5"}\n'


def score(*argv: str) -> int:
    return exit_code(["score", *argv])


@pytest.mark.parametrize("metric", ["vqa-accuracy", "anls", "relaxed-accuracy"])
def test_json_is_one_document_with_the_reference_scores(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / f"{metric}.jsonl"
    expected = [json.loads(line)["score"] for line in path.read_bytes().splitlines()]
    assert score("--metric", metric, str(path), "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    cautions = {
        "vqa-accuracy": "1500 questions have fewer than three answers",
        "anls": "1500 questions accept an empty",
    }
    assert cautions.get(metric, "") in captured.err
    assert list(report) == ["metric", "n", "value", "scores"]
    assert (report["metric"], report["n"], report["scores"]) == (metric, len(expected), expected)
    assert report["value"] == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_lenient_is_named_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"answers": ["50%"], "prediction": "$50."}\n{"answer": "no", "prediction": "not"}\n')
    assert score("--metric", "relaxed-accuracy", str(path), "--lenient", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"metric": "relaxed-accuracy-lenient", "n": 2, "value": 0.5, "scores": [1.0, 0.0]}
    assert score("--metric", "relaxed-accuracy", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"] == [0.0, 0.0]


def test_without_json_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(ROW + b'{"answers": ["5"], "prediction": "6"}\n' * 2)
    assert score("--metric", "exact-match", str(path)) == 0
    out = capsys.readouterr().out
    assert "Exact match" in out
    assert "33.33 %" in out


@pytest.mark.parametrize(
    "text",
    [
        b'{"prediction": "5", "answer": "5"}',
        b"\xef\xbb\xbf" + ROW,
        b"\n\n  \n" + ROW + b"\n",
        ROW.replace(b"\n", b"\r\n"),
        b'{"id": 3, "question": "q", "answers": ["5"], "prediction": "5", "kind": null}',
        '{"answers": ["5"], "prediction": "5", "note": "a\u2028b\u0085c"}'.encode(),
        b'{"answers": ["\\ud800"], "prediction": "\\ud800"}',
    ],
)
def test_rows_that_are_fine(text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(text)
    for metric in ("exact-match", "anls"):
        assert score("--metric", metric, str(path), "--json") == 0
        assert json.loads(capsys.readouterr().out)["scores"] == [1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "p.jsonl: no rows: write one a line"),
        (b"\n \n", "p.jsonl: no rows: write one a line"),
        (ROW + b"{oops", "p.jsonl:2: not JSON"),
        (ROW + b"\n" + b'{"answers": ["5"]', "p.jsonl:3: not JSON"),
        (b"[" * 100_000, "p.jsonl:1: not JSON"),
        (b'{"prediction": ' + b"9" * 5000 + b"}", "p.jsonl:1: not JSON"),
        (
            ROW + b'{"answers": ["\xff"], "prediction": "5"}',
            "p.jsonl:2: not UTF-8 (byte 53 of the file is 0xff): save the file as UTF-8",
        ),
        (b'[{"answers": ["5"], "prediction": "5"}]', "p.jsonl:1: the line is a list"),
        (b"null", "p.jsonl:1: the line is null"),
        (b'"x"', "p.jsonl:1: the line is text"),
        (b'{"answers": ["5"]}', "p.jsonl:1: no prediction"),
        (ROW + b'{"answers": ["5"], "prediction": null}', "p.jsonl:2: prediction is null"),
        (b'{"answers": ["5"], "prediction": 5}', "p.jsonl:1: prediction is a number"),
        (b'{"answers": ["5"], "prediction": true}', "p.jsonl:1: prediction is a boolean"),
        (b'{"answers": ["5"], "prediction": ["5"]}', "p.jsonl:1: prediction is a list"),
        (b'{"prediction": "5"}', "p.jsonl:1: answers is null"),
        (b'{"answers": null, "prediction": "5"}', "p.jsonl:1: answers is null"),
        (b'{"answers": "5", "prediction": "5"}', "p.jsonl:1: answers is text"),
        (b'{"answers": [], "prediction": "5"}', "p.jsonl:1: answers is empty"),
        (b'{"answers": ["5", null], "prediction": "5"}', "p.jsonl:1: one of the answers is null"),
        (b'{"answers": [5], "prediction": "5"}', "p.jsonl:1: one of the answers is a number"),
        (b'{"answers": [{"answer": "5"}], "prediction": "5"}', "p.jsonl:1: one of the answers is an object"),
        (b'{"answer": 5, "prediction": "5"}', "p.jsonl:1: answers is a number"),
    ],
    ids=range(23),
)
def test_a_mistake_is_one_line_with_its_place(
    text: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(text)
    assert score("--metric", "vqa-accuracy", str(path), "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.err.startswith(f"error: {path}")


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        assert score("--metric", "anls", str(path), "--json") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.endswith("give a JSON lines file, or - for stdin\n")


def test_an_unknown_metric_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert score("--metric", "bleu", "x.jsonl") == 2
    assert "no metric 'bleu': use vqa-accuracy, anls, relaxed-accuracy, exact-match, number" in capsys.readouterr().err
    assert score("--metric", "choice:red", "x.jsonl") == 2
    assert "two choices or more are needed: write choice:red|green" in capsys.readouterr().err


def test_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ROW + b"oops")))
    assert score("--metric", "anls", "-", "--json") == 1
    assert capsys.readouterr().err.startswith("error: <stdin>:2: not JSON")


def test_as_a_program_it_is_light(tmp_path: Path) -> None:
    """A pipe in, one document out, and no torch on the way."""
    code = (
        "import sys; from mpa_edge.cli.main import exit_code; "
        "code = exit_code(['score', '--metric', 'anls', '-', '--json']); "
        "sys.exit(code or 9 * bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], input=ROW, capture_output=True, env=env, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"metric": "anls", "n": 1, "value": 1.0, "scores": [1.0]}


def test_what_few_or_empty_answers_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(ROW * 2 + b'{"answers": ["5", "5", "5", ""], "prediction": "5"}\n')
    assert score("--metric", "vqa-accuracy", str(path), "--json") == 0
    few, empty = capsys.readouterr().err.splitlines()
    assert few.startswith(f"{path}: 2 of 3 questions have fewer than three answers, for which vqa-accuracy gives")
    assert empty == f"{path}: 1 of 3 questions accept an empty answer, which makes silence right: leave them out"
    assert score("--metric", "exact-match", str(path), "--json") == 0
    assert "fewer" not in capsys.readouterr().err


def test_answers_in_another_form_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    answer = '{"serial": "A1", "bar": 3.5}'
    said = (answer, "A1, 3.5 bar", '{"serial": "A1", "bar": "3,5"}', '{"bar": 3.5}')
    path.write_text("".join(json.dumps({"answer": answer, "prediction": one}) + "\n" for one in said))
    assert score("--metric", "json:serial=text,bar=number", str(path), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"] == [1.0, 0.0, 1.0, 0.5]
    assert (report["metric"], report["value"], report["unparsable"]) == ("json:serial=text,bar=number", 0.625, 1)
    assert score("--metric", "json:serial=text,bar=number", str(path)) == 0
    assert capsys.readouterr().out.endswith("in another form, which scores 0: 1\n")
