"""Three models on the same questions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation import answer_log, predict
from mpa_edge.evaluation.score import accuracy_by_kind
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import read_rows
from mpa_edge.stages import evaluate
from mpa_edge.stages.evaluate import run_evaluate, summarise
from mpa_edge.stages.preflight import preflight
from mpa_edge.types import Prediction
from tests.questions import official


def prediction(number: int, score: float, kind: str | None = "word", image: str | None = None) -> Prediction:
    return Prediction(
        sample_id=str(number),
        image_id=image or str(number),
        kind=kind,
        question="?",
        answers=("a",),
        model="m",
        text="a",
        score=score,
    )


def made(base: list[float], aligned: list[float]) -> dict[str, list[Prediction]]:
    kinds = ["word" if i % 2 else "number" for i in range(len(base))]
    return {
        name: [prediction(i, score, kinds[i]) for i, score in enumerate(scores)]
        for name, scores in (("teacher", [1.0] * len(base)), ("base", base), ("aligned", aligned))
    }


def test_summary() -> None:
    found = summarise(made([1, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1, 1, 0]), 500, 0)
    assert found["n"] == 8
    assert found["accuracy"] == {"teacher": 1.0, "base": 0.25, "aligned": 0.75}
    assert found["gain"] == 0.5
    assert found["flips"] == {"gained": 5, "lost": 1}
    assert found["p_mcnemar"] == pytest.approx(2 * (1 + 6) / 2**6)
    low, high = found["gain_ci95"]
    assert -0.25 <= low < 0.5 < high <= 1
    assert found["ci95"]["teacher"] == pytest.approx((0.025 ** (1 / 8), 1.0))  # Clopper and Pearson's
    assert found == summarise(made([1, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1, 1, 0]), 500, 0)


def test_kinds() -> None:
    found = accuracy_by_kind(made([1, 0, 0, 0], [1, 1, 0, 1]))
    assert found == {
        "number": {"n": 2.0, "teacher": 1.0, "base": 0.5, "aligned": 0.5},
        "word": {"n": 2.0, "teacher": 1.0, "base": 0.0, "aligned": 1.0},
    }
    assert accuracy_by_kind({"base": [prediction(0, 1, None)], "aligned": [], "teacher": []}) == {}


def line(**changed) -> str:
    return json.dumps({"id": "1", "image": "0.png", "question": "What?", "answers": ["7"]} | changed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no question"),
        ("\n\n", "holds no question"),
        (line() + "\n{oops", ":2: not JSON"),
        (line(answers=[]), "holds no question, empty answer in 1 rows"),
        (line(answers="7"), ":1: answers is text: write a list of texts"),
        (line(id=True), ":1: id is a boolean"),
        ("[1]", ":1: the line is a list"),
        (line() + "\n" + line(), ":2: id '1' is also that of line 1"),
    ],
)
def test_a_questions_file_is_refused_with_its_line(tmp_path, text, said) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(MpaError) as caught:
        read_questions(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(make_run, images_folder, monkeypatch):
    """A run with ten questions of its own about five images, merged before."""
    questions = images_folder / "questions.jsonl"
    rows = [line(id=str(i), image=f"{i % 5}.png", kind="odd" if i % 2 else "even") for i in range(10)]
    questions.write_text("\n".join(rows) + "\n")
    made = make_run(evaluate__questions=str(questions), evaluate__seed=99)
    for name in ("merge",):
        made.stage_folder(name).mkdir(parents=True)
        write_json(
            made.stage_folder(name) / "manifest.json",
            {
                "stage": name,
                "inputs": {},
                "outputs": {"x": "y"},
                "config_sha256": "",
                "versions": {},
                "seed": 0,
                "seconds": 0.0,
                "counts": {},
            },
        )
    return made


MODELS = {
    "teacher": lambda request: "7",
    "base": lambda request: "7" if request.image.getpixel((0, 0))[0] == 0 else "8",
    "aligned": lambda request: "7" if request.image.getpixel((0, 0))[0] < 3 else "8",
}


def test_every_model_answers_the_same_questions(shelf, run) -> None:
    models = shelf(**MODELS)
    run_evaluate(run)
    folder = run.stage_folder("evaluate")
    result = read_json(folder / "evaluate.json")
    assert result["accuracy"] == {"teacher": 1.0, "base": 0.2, "aligned": 0.6}
    assert result["metric"] == "exact-match"
    assert models.most_open == 1
    ids = {
        name: [row.sample_id for row in read_rows(folder / f"predictions-{name}.parquet", Prediction)]
        for name in MODELS
    }
    assert ids["teacher"] == ids["base"] == ids["aligned"] == [str(i) for i in range(10)]
    assert {(request.prompt, request.temperature, request.max_new_tokens) for request in models.asked("base")} == {
        ("What?", 0.0, run.recipe.identify.max_new_tokens)
    }
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.counts["questions"] == 10
    assert sorted(manifest.outputs) == ["evaluate.json", *(f"predictions-{name}.parquet" for name in sorted(MODELS))]


def test_a_kill_costs_one_chunk(shelf, run, monkeypatch) -> None:
    monkeypatch.setattr(answer_log, "CHUNK", 4)
    asked = []

    def dies(request):
        asked.append(request)
        if len(asked) > 8:
            raise KeyboardInterrupt
        return MODELS["base"](request)

    shelf(**MODELS | {"base": dies})
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(run)
    models = shelf(**MODELS)
    run_evaluate(run)
    assert len(models.asked("teacher")) == 0
    assert len(models.asked("base")) == 2
    assert len(models.asked("aligned")) == 10
    assert read_json(run.stage_folder("evaluate") / "evaluate.json")["accuracy"]["base"] == 0.2


def test_line_separators_inside_a_question_do_not_end_the_line(tmp_path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(json.loads(line(question="a\u2028b\x85c")), ensure_ascii=False) + "\r\n", "utf-8")
    assert [sample.question for sample in read_questions(path).samples] == ["a\u2028b\x85c"]


def test_an_unreadable_image_is_an_error(shelf, run, images_folder) -> None:
    shelf(**MODELS)
    (images_folder / "3.png").write_bytes(b"")
    with pytest.raises(MpaError, match=r"3\.png: empty file; fix the image or remove its questions"):
        run_evaluate(run)


def test_a_changed_questions_file_is_noticed(shelf, run, images_folder) -> None:
    models = shelf(**MODELS)
    run_evaluate(run)
    run_evaluate(run)
    assert len(models.loaded) == 3
    path = images_folder / "questions.jsonl"
    path.write_text(path.read_text().replace('["7"]', '["8"]'))
    run_evaluate(run)
    assert read_json(run.stage_folder("evaluate") / "evaluate.json")["accuracy"]["teacher"] == 0.0


@pytest.fixture
def benchmark_run(make_run, run, tmp_path):
    """A run that is evaluated on a small ChartQA."""
    predict._benchmark_questions.cache_clear()
    data = official.chartqa(tmp_path / "chartqa")
    made = make_run(task="chartqa", evaluate__benchmark="chartqa", evaluate__data=str(data), evaluate__n=4)
    yield made
    predict._benchmark_questions.cache_clear()


def test_a_recipe_may_name_a_benchmark(shelf, benchmark_run, capsys) -> None:
    (benchmark_run.folder.parent / "chartqa" / "test" / "png" / "166.png").unlink()
    shelf(teacher=lambda r: "14", base=lambda r: "x", aligned=lambda r: "2008")
    run_evaluate(benchmark_run)
    result = read_json(benchmark_run.stage_folder("evaluate") / "evaluate.json")
    assert (result["n"], result["metric"]) == (4, "relaxed-accuracy")
    assert result["kinds"]["human"]["teacher"] == 0.5
    assert result["kinds"]["augmented"]["n"] == 2.0
    said = capsys.readouterr().err
    assert said.count("chartqa test: left out: missing image (1)") == 1
    again = shelf(**MODELS)
    run_evaluate(benchmark_run)
    assert again.loaded == []


def test_a_benchmark_that_moved_is_the_same_one(benchmark_run, tmp_path) -> None:
    before = evaluate.evaluate_inputs(benchmark_run)
    (tmp_path / "chartqa").rename(tmp_path / "elsewhere")
    config = benchmark_run.recipe.evaluate.model_copy(update={"data": str(tmp_path / "elsewhere")})
    moved = replace(benchmark_run, recipe=benchmark_run.recipe.model_copy(update={"evaluate": config}))
    assert evaluate.evaluate_inputs(moved) == before
    (tmp_path / "elsewhere" / "test" / "png" / "166.png").unlink()
    predict._benchmark_questions.cache_clear()
    assert evaluate.evaluate_inputs(moved)["questions"] != "" != before["questions"]


def test_a_benchmark_is_scored_by_its_own_metric(make_run, tmp_path) -> None:
    data = str(official.chartqa(tmp_path / "chartqa"))
    other = make_run(task="okvqa", evaluate__benchmark="chartqa", evaluate__data=data)
    with pytest.raises(MpaError, match=r"task okvqa is scored by vqa-accuracy, chartqa is not: use task: chartqa$"):
        preflight(other, ("annotate",))
    wrong = make_run(task="chartqa", evaluate__benchmark="chartqa", evaluate__data=str(tmp_path))
    predict._benchmark_questions.cache_clear()
    preflight(wrong, ("annotate", "evaluate"))  # a folder deeper is found, too
    nothing = make_run(task="chartqa", evaluate__benchmark="chartqa", evaluate__data=str(tmp_path / "images"))
    with pytest.raises(MpaError, match="holds no chartqa test split"):
        preflight(nothing, ("annotate", "evaluate"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["evaluate.benchmark=chartqa"], "evaluate.benchmark, data and split belong together"),
        (["evaluate.data=x"], "evaluate.benchmark, data and split belong together"),
        (["evaluate.split=x"], "evaluate.benchmark, data and split belong together"),
        (
            ["evaluate.benchmark=chartqa", "evaluate.data=x", "evaluate.questions=y"],
            "evaluate has both questions and benchmark: keep one",
        ),
    ],
)
def test_sources_that_do_not_go_together(keys, said) -> None:
    with pytest.raises(MpaError, match=said):
        load_recipe("minicharts", keys)


def test_a_table_of_questions(make_run, images_folder) -> None:
    (images_folder / "q.csv").write_text("image,question,answers\n0.png,What?,7|8\n")
    made = make_run(evaluate__questions=str(images_folder / "q.csv"))
    questions = evaluate.questions(made)
    assert (questions.folder, questions.samples[0].answers, questions.samples[0].id) == (images_folder, ("7", "8"), "2")
