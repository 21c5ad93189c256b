"""One model on a set of questions: the lines, the score, resuming after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.evaluation import answer_log, score
from mpa_edge.evaluation.predict import EvalSpec
from mpa_edge.evaluation.score import results_path
from mpa_edge.metrics import get_metric
from mpa_edge.questions.published import read_benchmark
from mpa_edge.runs.files import read_json
from mpa_edge.tasks import get_benchmark, get_task
from mpa_edge.types import Drop, Reply, Request
from tests.questions import official


class Model:
    """Answers from a function of the prompt; stops the program after `patience` batches."""

    name = "model"

    def __init__(self, says: Any = lambda prompt: "14", patience: int = 99) -> None:
        self.says, self.patience, self.prompts = says, patience, []

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.prompts += [request.prompt for request in requests]
        return [Reply(self.says(request.prompt), "stop", 2) for request in requests]

    def close(self) -> None:
        """Nothing to free."""


def run_eval(model: Model, spec: EvalSpec, out: Path | None, sha256: str, fresh: bool = False) -> dict[str, Any]:
    return score.run_eval(spec, model.name, lambda: model, out, sha256, fresh)


def spec_of(name: str, data: Path, limit: int | None = None) -> EvalSpec:
    return EvalSpec(
        read_benchmark(get_benchmark(name), str(data), None, limit), get_task(name), 16, 10**7, bootstrap=200
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def long_textvqa(root: Path, n: int = 130) -> Path:
    rows = [official.textvqa_row(i, f"p{i // 2:03d}", f"what is at {i}?") for i in range(n)]
    return official.textvqa(root, rows, images=n)


def test_a_line_has_the_keys_of_lmms_eval(tmp_path: Path) -> None:
    out = tmp_path / "answers" / "c.jsonl"
    run_eval(Model(), spec_of("chartqa", official.chartqa(tmp_path)), out, "m")
    first, *rest = lines(out)
    assert len(rest) == 5
    assert first["doc_id"] == 0
    assert first["doc"]["answers"] == ["14"]
    assert first["target"] == "14"
    assert first["input"].endswith("\nAnswer the question using a single word or phrase.")
    assert first["resps"] == [["14"]]
    assert first["filtered_resps"] == ["14"]
    assert len(first["doc_hash"]) == 64
    assert first["relaxed-accuracy"] == first["relaxed-accuracy-lenient"] == 1.0
    assert [row["doc_id"] for row in rest] == [1, 2, 3, 4, 5]


def test_the_target_of_several_answers_is_their_list(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    run_eval(Model(), spec_of("textvqa", official.textvqa(tmp_path)), out, "m")
    assert lines(out)[0]["target"] == str(official.TEN)


def test_chartqa_is_the_mean_of_its_two_kinds(tmp_path: Path) -> None:
    official.chartqa(tmp_path)
    (tmp_path / "test" / "png" / "166.png").unlink()
    answers = {"How many food": "14.", "What is the d": "0.58", "Which year wa": "2009"}
    model = Model(lambda prompt: answers.get(prompt[:13], "x"))
    result = run_eval(model, spec_of("chartqa", tmp_path), None, "m")
    assert result["dropped"] == {"missing image": 1}
    assert (result["kinds"]["human"]["n"], result["kinds"]["augmented"]["n"]) == (2, 3)
    # strict: Python reads "14." as a number, 0.58 is within 5 % of 0.57, 2009 of 2008; lenient: a year must be equal
    assert result["kinds"]["human"]["accuracy"] == 1.0
    assert result["kinds"]["augmented"]["accuracy"] == pytest.approx(1 / 3)
    assert result["accuracy"] == pytest.approx((1 + 1 / 3) / 2)
    assert result["mean_of_kinds"]
    assert result["kinds"]["augmented"]["lenient"] == {"metric": "relaxed-accuracy-lenient", "accuracy": 0.0}
    assert result["lenient"]["accuracy"] == pytest.approx(0.5)
    low, high = result["ci95"]
    assert low <= result["accuracy"] <= high
    assert list(result["kinds"]) == ["human", "augmented"]


def test_the_score_is_the_metric_of_each_line(tmp_path: Path) -> None:
    data = official.okvqa(tmp_path)
    result = run_eval(
        Model(lambda prompt: "racing" if "sport" in prompt else "race"), spec_of("okvqa", data), None, "m"
    )
    assert result["metric"] == "vqa-accuracy"
    assert result["accuracy"] == 0.5
    assert not result["mean_of_kinds"]
    assert get_metric("vqa-accuracy").score("race", ["race"] * 10) == 1.0


def test_the_interval_resamples_images(tmp_path: Path) -> None:
    """Two questions an image, always right or wrong together: as wide as with half as many questions."""
    data = long_textvqa(tmp_path, 100)
    asked = spec_of("textvqa", data)
    right = {f"what is at {i}?" for i in range(100) if (i // 2) % 2}
    result = run_eval(Model(lambda p: "stop" if p.partition("\n")[0] in right else "x"), asked, None, "m")
    low, high = result["ci95"]
    assert result["images"] == 50
    assert result["accuracy"] == 0.5
    assert 0.2 < high - low < 0.35


def test_a_kill_costs_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_log, "CHUNK", 50)
    asked, out = spec_of("textvqa", long_textvqa(tmp_path)), tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_eval(Model(patience=2), asked, out, "m")
    assert len(lines(out)) == 2 * 50
    assert read_json(results_path(out))["finished"] is False
    with out.open("ab") as file:
        file.write(b'{"doc_id": 100, "doc": {"ques')  # what a power cut leaves
    model = Model()
    result = run_eval(model, asked, out, "m")
    assert len(model.prompts) == 130 - 2 * 50
    assert [line["doc_id"] for line in lines(out)] == list(range(130))
    assert result["n"] == 130
    assert read_json(results_path(out))["finished"] is True
    again = Model(patience=0)
    same = run_eval(again, asked, out, "m")
    assert again.prompts == []
    assert (same["accuracy"], same["ci95"]) == (result["accuracy"], result["ci95"])


def test_more_questions_resume_after_fewer(tmp_path: Path) -> None:
    data, out = official.chartqa(tmp_path), tmp_path / "c.jsonl"
    few = run_eval(Model(), spec_of("chartqa", data, 2), out, "m")
    model = Model()
    all_of_them = run_eval(model, spec_of("chartqa", data), out, "m")
    assert (few["n"], all_of_them["n"], len(model.prompts)) == (2, 6, 4)
    assert run_eval(Model(patience=0), spec_of("chartqa", data, 2), out, "m")["n"] == 2


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    data, out = official.chartqa(tmp_path), tmp_path / "c.jsonl"
    asked = spec_of("chartqa", data)
    run_eval(Model(), asked, out, "m")
    with pytest.raises(
        MpaError, match=r"holds the answers of another run \(other model\): choose another --out, or --fresh$"
    ):
        run_eval(Model(), asked, out, "another model")
    with pytest.raises(MpaError, match=r"\(other questions, metric\)"):
        run_eval(Model(), spec_of("textvqa", official.textvqa(tmp_path)), out, "m")
    assert run_eval(Model(), asked, out, "another model", fresh=True)["n"] == 6
    assert len(lines(out)) == 6
    results_path(out).unlink()
    with pytest.raises(MpaError, match=r"has no c_results\.json beside it"):
        run_eval(Model(), asked, out, "m")


def test_other_questions_under_the_same_numbers(tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    run_eval(Model(), spec_of("chartqa", official.chartqa(tmp_path / "a")), out, "m")
    with pytest.raises(MpaError, match="holds the answers to other questions"):
        run_eval(Model(), spec_of("chartqa", official.chartqa_hub(tmp_path / "b")), out, "m")


def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    data, out = official.chartqa(tmp_path), tmp_path / "mine.jsonl"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(MpaError, match=r"mine\.jsonl:1: no line of an answer log"):
        run_eval(Model(), spec_of("chartqa", data), out, "m")
    assert out.read_text() == '{"mine": 1}\n'
    with pytest.raises(MpaError, match=r" is a folder: name a file"):
        run_eval(Model(), spec_of("chartqa", data), tmp_path, "m")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    data, out = official.chartqa(tmp_path), tmp_path / "c.jsonl"
    asked = spec_of("chartqa", data)

    def meanwhile(prompt: str) -> str:
        with pytest.raises(MpaError, match="is being written by another process"):
            run_eval(Model(), asked, out, "m")
        return "14"

    assert run_eval(Model(meanwhile), asked, out, "m")["n"] == 6


def test_a_damaged_image_is_counted_and_asked_again_when_it_is_fixed(tmp_path: Path) -> None:
    data, out = official.chartqa(tmp_path), tmp_path / "c.jsonl"
    broken = data / "test" / "png" / "166.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    result = run_eval(Model(), spec_of("chartqa", data), out, "m")
    assert (result["n"], result["dropped"]) == (5, {"not an image": 1})
    broken.write_bytes(whole)
    fixed = run_eval(Model(), spec_of("chartqa", data), out, "m")
    assert (fixed["n"], fixed["dropped"]) == (6, {})
    assert sorted(line["doc_id"] for line in lines(out)) == list(range(6))


def test_no_image_that_can_be_opened(tmp_path: Path) -> None:
    data = official.chartqa(tmp_path)
    for path in (data / "test" / "png").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(MpaError, match=r"no question was answered \(not an image\)"):
        run_eval(Model(), spec_of("chartqa", data), None, "m")


def test_images_are_decoded_once_and_not_kept(tmp_path: Path) -> None:
    """Questions about one image share it; what was decoded for a chunk is freed after it."""
    held: list[int] = []

    class Watching(Model):
        def answer(self, requests: Sequence[Request]) -> list[Reply]:
            held.append(len({id(request.image) for request in requests}))
            return super().answer(requests)

    run_eval(Watching(), spec_of("textvqa", long_textvqa(tmp_path)), None, "m")
    assert held == [50, 15]


class FailingServer(Model):
    """Fails on one question."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        failed = Reply("", "failed", 0, drop=Drop("server: timed out", "120 s"))
        replies = super().answer(requests)
        return [failed if "sport" in r.prompt else reply for r, reply in zip(requests, replies, strict=True)]


def test_a_servers_failure_is_no_answer_and_is_asked_again(tmp_path: Path) -> None:
    spec, out = spec_of("okvqa", official.okvqa(tmp_path)), tmp_path / "o.jsonl"
    result = run_eval(FailingServer(), spec, out, "m")
    assert (result["n"], result["dropped"]) == (1, {**spec.questions.dropped, "server: timed out": 1})
    assert len(lines(out)) == 1
    model = Model()
    assert run_eval(model, spec, out, "m")["n"] == 2
    assert len(model.prompts) == 1


def test_where_every_answer_is_needed_a_failure_ends_the_run_and_the_others_are_kept(tmp_path: Path) -> None:
    spec = spec_of("okvqa", official.okvqa(tmp_path))
    said = r"model left a question unanswered, server: timed out \(120 s\): fix the server and rerun$"
    with answer_log.open_log(tmp_path / "o.jsonl", spec) as log, pytest.raises(MpaError, match=said):
        answer_log.answer_all(FailingServer(), log)
    with answer_log.open_log(tmp_path / "o.jsonl", spec) as log:
        assert [sample.question for _, sample in log.missing] == ["What sport can you use this for?"]


def test_no_model_is_loaded_where_nothing_is_left_to_ask(tmp_path: Path) -> None:
    spec, out = spec_of("chartqa", official.chartqa(tmp_path)), tmp_path / "c.jsonl"
    first = run_eval(Model(), spec, out, "m")
    again = score.run_eval(spec, "model", lambda: pytest.fail("loaded"), out, "m")
    assert again["accuracy"] == first["accuracy"]
