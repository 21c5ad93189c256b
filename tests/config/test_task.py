"""A task is a document: its prompts, its mistakes, and a recipe that names it by path or holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.cli.main import exit_code
from mpa_edge.config import library
from mpa_edge.config.task import AnswerConfig, TaskConfig
from mpa_edge.metrics import get_metric
from mpa_edge.planning.records import assumptions
from mpa_edge.tasks import get_task

RECIPE = "schema_version: 1\nname: mine\ntask: {}\nteacher: nursery:teacher\nstudent: nursery:student\n"
GAUGES = """\
schema_version: 1
name: gauges
objective: You are shown a pressure gauge. Ask one question about its reading, and answer it.
kinds:
  - {name: reading, guideline: what the needle points to}
  - {name: limit, guideline: where the red range begins}
answer: {type: number, relative: 0.05, unit: bar}
language: German
examples:
  - {question: "Was zeigt das Manometer an?", answer: "3,5 bar"}
"""
NUMBER = "type: number, relative: 0.05, unit: bar"
KINDS = GAUGES[GAUGES.index("kinds") : GAUGES.index("answer:")]
ONE_PROMPT = """\
You are shown a pressure gauge. Ask one question about its reading, and answer it.

Write exactly two lines and nothing else:
Question: <one question, ending with a question mark>
Answer: <a number in digits, in bar, and nothing else>

Write the question and the answer in German; the words Question and Answer stay in English.

Examples of the form, about other images:

Question: Was zeigt das Manometer an?
Answer: 3,5 bar

The question is of this kind:
- limit: where the red range begins"""


@pytest.fixture
def gauges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task in the working folder, and a recipe that names it by path."""
    monkeypatch.chdir(tmp_path)
    Path("gauges.yaml").write_text(GAUGES)
    Path("mine.yaml").write_text(RECIPE.format("gauges.yaml"))
    return tmp_path


def test_a_task_by_path_is_the_same_as_the_section(gauges: Path) -> None:
    by_path = library.load_recipe("mine.yaml")
    section = library.load_yaml(Path("gauges.yaml"), "x")
    assert by_path.task == TaskConfig.model_validate(section)
    Path("inline.yaml").write_text(RECIPE.format(library.json.dumps(section)))
    assert library.load_recipe("inline.yaml") == by_path
    task = get_task(by_path.task)
    assert (task.name, task.metric) == ("gauges", "number:relative=0.05,unit=bar")
    assert task.annotation_prompts[2] == ONE_PROMPT
    assert task.prompt_kinds == (None, "reading", "limit")
    assert task.short_answer_suffix == "\nAnswer the question with a number in digits, in bar."
    changed = library.load_recipe("mine.yaml", ["task.answer.relative=0.1"])
    assert get_task(changed.task).metric == "number:relative=0.1,unit=bar"


def test_a_built_in_task_that_is_copied_says_the_same(tmp_path: Path) -> None:
    for name in library.names("tasks"):
        assert exit_code(["copy", f"{library.TASKS / name}.yaml", str(tmp_path / f"{name}.yaml")]) == 0
        document = library.load("tasks", str(tmp_path / f"{name}.yaml"))
        assert get_task(document) == get_task(name)


def test_room_for_the_answers_of_a_form(gauges: Path) -> None:
    fields = "{" + ", ".join(f"field_{i}: number" for i in range(8)) + "}"
    form = ["task.language=null", "task.examples=[]", f"task.answer={{type: json, fields: {fields}}}"]
    recipe = library.load_recipe("mine.yaml", form)
    assert recipe.identify.max_new_tokens == 16 + 8 * 24
    assert recipe.annotate.max_new_tokens == 128 + 8 * 24
    asked = assumptions(recipe.task)
    assert asked["answer_tokens"] == (16 + 8 * 24) / 2 < asked["annotation_tokens"]
    chosen = library.load_recipe("mine.yaml", [*form, "identify.max_new_tokens=99"])
    assert chosen.identify.max_new_tokens == 99
    assert library.load_recipe("mine.yaml").identify.max_new_tokens == 16


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("kinds:\n", "kind:\n", "is missing: add 'kinds: ...', a list of sections with keys name, guideline"),
        (KINDS, "kinds: []\n", "kinds is []: must be a list of sections"),
        ("name: limit", "name: Reading", "kinds has 'reading' twice: remove or rename one"),
        ("objective: Y", "title: Y", "the task has no objective: add 'objective: ...'"),
        (NUMBER, "type: choice, choices: [red]", "answer has one choice: list two or more in answer.choices"),
        (NUMBER, "type: choice", "answer has no choices: list two or more"),
        (NUMBER, "type: choice, choices: [Red, red]", "answer.choices has 'red' twice"),
        (NUMBER, "type: choice, choices: [red, red]", "answer.choices has 'red' twice"),
        (NUMBER, "type: choice, choices: [red, '?']", "answer.choices has '?': write words without | and without"),
        (NUMBER, "type: choice, choices: [red, a|b]", "answer.choices has 'a|b': write words without | and without"),
        (
            NUMBER,
            "type: json, fields: {'a,b': text}",
            "a,b is 'a,b': task.answer.fields must be names (a string",
        ),
        ("reading, g", "reading, G", "unknown key 'Guideline' in task.kinds.0 (did you mean 'guideline'?)"),
        (
            NUMBER,
            "type: json, fields: {a: date}",
            "a is 'date': task.answer.fields must be names (a string",
        ),
        (NUMBER, "type: json, fields: {a: text, A: text}", "answer.fields has 'A' twice"),
        (NUMBER, "type: json, fields: {a: text, a: text}", 'found duplicate key "a"'),
        (NUMBER, "type: json", "answer has no fields: add answer.fields"),
        ("unit: bar", "max_words: 3", "answer.max_words is for type text, and answer.type is number: remove one"),
        ("language", "metric: anls\nlanguage", "metric 'anls' does not fit answer.type number: name relaxed"),
        ("3,5 bar", "three", "the example answer 'three' is no number: correct it"),
        ("unit: bar", "unti: bar", "unknown key 'unti' in task.answer (did you mean 'unit'?)"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix(gauges: Path, capsys, old: str, new: str, line: str) -> None:
    assert old in GAUGES
    Path("gauges.yaml").write_text(GAUGES.replace(old, new, 1))
    assert exit_code(["check", "mine.yaml"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert any(line in one for one in shown), shown
    assert len(shown) == (2 if new == "kind:\n" else 1)
    assert exit_code(["check", "gauges.yaml"]) == 1
    alone = capsys.readouterr().err
    assert line.replace("task.", "") in alone
    assert alone.startswith("task 'gauges': ")


def test_a_task_that_is_neither_a_name_nor_a_section(gauges: Path, capsys) -> None:
    for value, line in (
        ("3", "task is 3: must be a string that is not empty or a section with keys"),
        ("nowhere.yaml", "no file 'nowhere.yaml': give a path that exists, or a name (chartqa, minicharts,"),
        ("chart-qa", "no task 'chart-qa': did you mean 'chartqa'?"),
    ):
        Path("mine.yaml").write_text(RECIPE.format(value))
        assert exit_code(["check", "mine.yaml"]) == 1
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        AnswerConfig(type="number", relative=0.05, absolute=1.0, unit="°C"),
        AnswerConfig(type="choice", choices=("no entry", "stop, or yield", "40 km/h")),
        AnswerConfig(type="json", fields={"größe": "number", "a.b": "text", "relative": "boolean"}, relative=0.5),
    ],
)
def test_the_metric_of_an_answer_is_one_string_that_get_metric_reads(answer: AnswerConfig) -> None:
    assert answer.form is not None
    metric = get_metric(answer.form)
    assert metric.form is not None
    assert metric.name == metric.form.name == answer.form


def test_a_task_in_the_place_of_a_recipe(gauges: Path, capsys) -> None:
    assert exit_code(["annotate", "gauges.yaml", "--images", "."]) == 1
    said = capsys.readouterr().err
    assert said == "error: 'gauges.yaml' is a task and no recipe: name it in one, task: gauges.yaml\n"


def test_prompts_are_shown_word_for_word(gauges: Path, capsys) -> None:
    asked = get_task(library.load_recipe("mine.yaml").task)
    for name in ("gauges.yaml", "mine.yaml"):
        assert exit_code(["show", name, "--prompts"]) == 0
        shown = capsys.readouterr().out
        assert all(prompt in shown for prompt in asked.annotation_prompts)
        assert shown.endswith("\nWas zeigt das Manometer an?\nAnswer the question with a number in digits, in bar.\n")
    assert exit_code(["show", "gauges.yaml", "--prompts", "--json"]) == 0
    found = library.json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in found["annotation"]] == [None, "reading", "limit"]
    assert exit_code(["show", "cpu", "--prompts"]) == 1
    assert "--prompts is for tasks and recipes, and 'cpu' is in targets" in capsys.readouterr().err


def test_the_images_of_a_split_need_a_task_by_name(gauges: Path, capsys) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    words = ["align", "mine.yaml", "--images", "photos", "--set", "images.split=train", "--dry-run"]
    assert exit_code([*words, "--set", "evaluate.holdout=0"]) == 1
    assert "images.split is for the benchmark of a task by name, and gauges is your own" in capsys.readouterr().err
