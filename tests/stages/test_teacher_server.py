"""A run whose teacher is a server: what it cannot answer is missing with a reason and asked again, never made up."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.cli import main as cli
from mpa_edge.config.recipe import Recipe
from mpa_edge.config.validation import mistakes
from mpa_edge.errors import MpaError
from mpa_edge.questions.own import read_questions
from mpa_edge.runs.manifest import read_manifest
from mpa_edge.runs.parquet import read_dropped, read_parts
from mpa_edge.stages import identify
from mpa_edge.stages.annotate.stage import run_annotate
from mpa_edge.stages.identify import run_identify
from mpa_edge.stages.pipeline import check_earlier, report
from mpa_edge.stages.preflight import preflight, summary
from mpa_edge.stages.run import Run
from mpa_edge.stages.silver import run_silver
from mpa_edge.stages.teacher import total_usage
from mpa_edge.tasks import get_task
from mpa_edge.types import Dropped, ParityRecord, PseudoAnnotation
from mpa_edge.vlm import load
from mpa_edge.vlm.openai import circuit_breaker
from tests.stages.conftest import FakeVLM, recipe_with
from tests.vlm import fault_server as faults
from tests.vlm.fault_server import FaultServer, says, serving, status

PROMPTS = get_task("minicharts").annotation_prompts
KEY = "sk-very-secret-0123456789"
SERVER = {"timeout_s": 2.0, "wait_s": 0.3, "probe_s": 0.05, "retries": 0, "concurrency": 4}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(circuit_breaker, "LOOK_EVERY_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(script=good) as made:
        yield made


def prompt_of(asked: dict[str, Any]) -> str:
    return asked["messages"][0]["content"][1]["text"]


def good(_number: int, asked: dict[str, Any]) -> faults.Behaviour:
    """A teacher that asks another question in each of its samples, and answers 3."""
    prompt = prompt_of(asked)
    return says(
        f"Question: How many {PROMPTS.index(prompt)}?\nAnswer: 3" if prompt in PROMPTS else "3", tokens=(100, 5)
    )


def failing(which: Callable[[int], bool], behaviour: faults.Behaviour = status(500)) -> Any:  # noqa: B008
    return lambda number, asked: behaviour if which(number) else good(number, asked)


@pytest.fixture
def run_of(make_run: Callable[..., Run]) -> Callable[..., Run]:
    def make(server: FaultServer, **changed: Any) -> Run:
        own = {f"teacher_server__{key}": changed.pop(key, value) for key, value in SERVER.items()}
        defaults = {"teacher": server.reference, "annotate__samples_per_image": 2, "annotate__votes": 1}
        return make_run(**defaults | own | changed)

    return make


def with_student(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A student that always says the same; the teacher is the server."""

    def load_either(reference: str, *, name: str, **given: Any) -> Any:
        return load(reference, name=name, **given) if name == "teacher" else FakeVLM("student", lambda request: answer)

    monkeypatch.setattr(identify, "load", load_either)


def annotated(run: Run) -> list[str]:
    return [row.id for row in read_parts(run.stage_folder("annotate"), PseudoAnnotation)]


def lost(run: Run, stage: str = "annotate") -> list[Dropped]:
    return [row for row in read_dropped(run.stage_folder(stage)) if row.reason.startswith("server: ")]


def test_a_good_server_is_as_good_as_a_model_and_is_counted(run_of, server, capsys) -> None:
    run = run_of(server, teacher_server__price_in=1.0, teacher_server__price_out=10.0)
    run_annotate(run)
    assert (len(annotated(run)), lost(run)) == (12, [])
    assert {row.votes for row in read_parts(run.stage_folder("annotate"), PseudoAnnotation)} == {("3",)}
    manifest = read_manifest(run.stage_folder("annotate"))
    assert manifest is not None
    counted = {key: value for key, value in manifest.counts.items() if key.startswith("teacher_")}
    assert counted == {
        "teacher_requests": 24,
        "teacher_failures": 0,
        "teacher_tokens_in": 2400,
        "teacher_tokens_out": 120,
        "teacher_uncounted": 0,
        "teacher_cost_millionths": 3600,
    }
    assert "openai" in manifest.versions
    used = total_usage(run)
    assert used is not None
    assert (used.requests, used.cost) == (24, pytest.approx(0.0036))
    assert json.loads((run.stage_folder("annotate") / "server.json").read_text()) == {
        "base_url": server.url,
        "model": "m",
        "card": {"id": "m", "root": "/m"},
    }
    asked = len(server.bodies)
    run_annotate(run)
    assert len(server.bodies) == asked
    assert "annotate: already done" in capsys.readouterr().err


def test_failed_rows_are_dropped_with_a_reason_counted_and_asked_once_more(run_of, server, capsys) -> None:
    server.script = failing(lambda number: number == 3)
    run = run_of(server, annotate__shard_size=6)
    run_annotate(run)
    assert (len(annotated(run)), lost(run)) == (12, [])
    order = [f"{entry.id}-{n:02d}" for entry in run.entries for n in range(2)]
    assert annotated(run) == order

    server.bodies.clear()
    server.script = failing(lambda number: "How many 0" in prompt_of(server.bodies[number]) and number % 6 == 0)
    other = run_of(server, folder="other", annotate__shard_size=6, annotate__votes=1, concurrency=1)
    server.script = failing(lambda number: number in (3, 24, 25))
    run_annotate(other)
    assert [(row.reason, row.detail) for row in lost(other)] == [("server: HTTP 500", "no")]
    assert len(annotated(other)) == 11
    assert "1 dropped (server: HTTP 500: 1)" in capsys.readouterr().err
    assert report(other).dropped == {"server: HTTP 500": 1}


def test_what_is_missing_is_asked_again_at_the_next_start_until_something_is_built_on_it(run_of, server, shelf) -> None:
    server.script = failing(lambda number: number in (0, 24, 25), status(500))
    run = run_of(server, annotate__shard_size=6, concurrency=1)
    run_annotate(run)
    assert len(lost(run)) == 1
    missing = lost(run)[0].id
    asked = len(server.bodies)
    server.script = good
    run_annotate(run)
    # only the vote is missing: the annotation is kept
    assert (lost(run), len(annotated(run)), len(server.bodies) - asked) == ([], 12, 1)
    assert missing in annotated(run)

    server.bodies.clear()
    server.script = failing(lambda number: number in (0, 24, 25), status(500))
    run = run_of(server, folder="other", annotate__shard_size=6, concurrency=1)
    run_annotate(run)
    assert len(lost(run)) == 1
    shelf(student=lambda request: "4")
    run_identify(run)
    server.bodies.clear()
    run_annotate(run)
    assert server.bodies == []


def test_too_many_failures_stop_the_run_and_keep_what_came(run_of, server) -> None:
    server.script = failing(lambda number: number % 3 == 2)
    run = run_of(server, concurrency=1)
    with pytest.raises(MpaError, match=r"did not answer \d of 4 rows of a shard.*HTTP 500: \d.*fix the server"):
        run_annotate(run)
    kept = annotated(run)
    assert 0 < len(kept) < 4
    assert not run.finished("annotate")
    before = server.prompts()
    server.script = good
    server.bodies.clear()
    run_annotate(run)
    assert (len(annotated(run)), lost(run)) == (12, [])
    assert set(kept) <= set(annotated(run))
    # what came is not paid for again, also where it was an annotation whose vote was lost
    answered = len([n for n in range(len(before)) if n % 3 != 2])
    assert len(server.prompts()) == 24 - answered
    assert len(before) <= 8
    used = total_usage(run)
    assert used is not None
    assert used.requests + used.failures == len(before) + len(server.prompts())


def test_a_failed_vote_drops_the_row(run_of, server) -> None:
    server.script = lambda number, asked: (
        status(500) if prompt_of(asked).startswith("How many 1?") else good(number, asked)
    )
    run = run_of(server, teacher_server__max_failed=0.9)
    run_annotate(run)
    assert [row.question for row in read_parts(run.stage_folder("annotate"), PseudoAnnotation)] == ["How many 0?"] * 6
    assert len(lost(run)) == 6


@pytest.mark.parametrize("votes", [0, 1, 3])
@pytest.mark.parametrize(
    "second",
    ["**3**", "<think>2?</think>3", "2?\n</think>\n3", "The answer is 3.", "\\boxed{3}", '"3."', "I see 3.\nAnswer: 3"],
)
def test_an_answer_in_another_form_is_the_same_answer(run_of, server, monkeypatch, second: str, votes: int) -> None:
    with_student(monkeypatch, second.replace("3", "4"))
    server.script = lambda number, asked: good(number, asked) if prompt_of(asked) in PROMPTS else says(second)
    run = run_of(server, annotate__votes=votes)
    run_annotate(run)
    run_identify(run)
    assert (report(run).verified, report(run).gap) == (12, 12)
    with_student(monkeypatch, second)
    run_identify(run, fresh=True)
    assert (report(run).verified, report(run).gap) == (12, 0)


def test_nothing_confirmed_ends_with_examples(run_of, server, shelf, capsys) -> None:
    server.script = lambda number, asked: good(number, asked) if prompt_of(asked) in PROMPTS else says("4")
    run = run_of(server)
    run_annotate(run)
    shelf(student=lambda request: "3")
    for _ in range(2):  # also when it is done
        capsys.readouterr()
        with pytest.raises(MpaError, match="confirmed none of its own answers, .* then rerun annotate with --fresh"):
            run_identify(run)
        assert capsys.readouterr().err.count("'How many ") == 3
    assert run.finished("identify")


def test_nothing_annotated_ends_with_examples(run_of, server, capsys) -> None:
    server.script = lambda number, asked: says(None, finish="length", reasoning_content="hm")
    run = run_of(server)
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(MpaError, match=r"not one question with an answer \(cut at max_new_tokens\): .* --fresh"):
            run_annotate(run)
        assert capsys.readouterr().err.count(".png: cut at max_new_tokens, ''") == 3


@pytest.mark.parametrize("behaviour", [faults.html, faults.truncated, says(None), says("")])
def test_no_answer_is_ever_made_of_what_is_none(run_of, server, behaviour) -> None:
    server.script = lambda number, asked: behaviour
    run = run_of(server)
    with pytest.raises(MpaError, match="did not answer 4 of 4 rows of a shard"):
        run_annotate(run)
    assert annotated(run) == []


def test_the_cost_limit_stops_between_requests_and_a_higher_one_goes_on(run_of, server) -> None:
    prices = {"teacher_server__price_in": 1.0, "teacher_server__price_out": 10.0}
    run = run_of(server, teacher_server__max_cost=0.002, **prices)
    with pytest.raises(MpaError, match=r"--max-cost 0.002 is reached \(0.00\d+ spent on \d+ requests\): raise it"):
        run_annotate(run)
    used = total_usage(run)
    assert used is not None
    assert used.cost is not None
    assert 0.0002 < used.cost <= 0.002
    kept = annotated(run)
    again = run_of(server, teacher_server__max_cost=0.002, **prices)
    with pytest.raises(MpaError, match="--max-cost"):
        run_annotate(again)
    assert set(kept) <= set(annotated(again))
    assert len(annotated(again)) < 8
    run_annotate(run_of(server, teacher_server__max_cost=1.0, **prices))
    assert len(annotated(run)) == 12
    assert set(kept) <= set(annotated(run))
    total = total_usage(run)
    assert total is not None
    assert total.requests == len(server.bodies)
    assert total.cost == pytest.approx(150e-6 * total.requests)


def test_rows_of_two_models_do_not_mix(run_of, server) -> None:
    server.script = failing(lambda number: number >= 8)
    run = run_of(server, concurrency=1)
    with pytest.raises(MpaError, match="fix the server"):
        run_annotate(run)
    server.script = good
    server.models = faults.body(b'{"data": [{"id": "m", "root": "/another"}]}')
    with pytest.raises(MpaError, match=r"another model than before \(root: /m, now /another\): .*or rerun with --fr"):
        run_annotate(run)
    run_annotate(run, fresh=True)
    assert len(annotated(run)) == 12


def test_a_finished_run_needs_its_server_no_more(run_of, shelf) -> None:
    with serving(script=good) as server:
        run = run_of(server)
        run_annotate(run)
    again = run_of(server)
    check_earlier(again, "identify")
    run_annotate(again)
    shelf(student=lambda request: "4")
    run_identify(again)
    assert report(again).gap == 12


def test_identify_without_votes_asks_the_server_and_drops_what_it_does_not_answer(run_of, server, monkeypatch) -> None:
    with_student(monkeypatch, "4")
    run = run_of(server, annotate__votes=0, annotate__shard_size=6, concurrency=1)
    run_annotate(run)
    server.bodies.clear()
    server.script = failing(lambda number: number in (0, 1, 2, 3))
    with pytest.raises(MpaError, match="did not answer 4 of 12 rows"):
        run_identify(run)
    server.bodies.clear()
    server.script = failing(lambda number: number in (0, 4))
    run_identify(run)
    assert len(server.bodies) == 5
    rows = read_parts(run.stage_folder("identify"), ParityRecord)
    assert ([row.verdict for row in rows], [row.reason for row in lost(run, "identify")]) == (
        ["gap"] * 11,
        ["server: HTTP 500"],
    )
    used = read_manifest(run.stage_folder("identify"))
    assert used is not None
    assert (used.counts["teacher_requests"], used.counts["teacher_failures"]) == (11, 6)


def test_the_key_is_in_no_file_of_the_run(run_of, server, monkeypatch, capfd) -> None:
    monkeypatch.setenv("SERVER_API_KEY", KEY)
    server.script = failing(lambda number: number == 0, faults.echo_key(400))
    run = run_of(server, teacher_server__api_key_env="SERVER_API_KEY", teacher_server__max_failed=0.9, concurrency=1)
    run_annotate(run)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in "".join(capfd.readouterr())


def test_the_plan_of_a_server_asks_nobody_and_says_what_is_missing(run_of, monkeypatch) -> None:
    with serving() as server:
        pass
    run = run_of(server)
    planned = summary(run)
    assert planned["teacher"] == server.reference
    assert planned["memory_bytes"] > 1_000_000_000
    preflight(run, ("annotate",))
    keyed = run_of(server, teacher_server__api_key_env="SERVER_API_KEY")
    with pytest.raises(MpaError, match="the environment has no SERVER_API_KEY"):
        preflight(keyed, ("annotate",))
    with pytest.raises(MpaError, match="may hold no user, password or query"):
        preflight(run_of(server, teacher="openai:http://u:p@h/v1#m"), ("annotate",))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"price_in": 1.0}, "teacher_server has one of price_in and price_out: give both, or none"),
        ({"max_cost": 1.0}, "teacher_server.max_cost needs prices: add teacher_server.price_in and price_out"),
        ({"api_key_env": "HOME"}, "teacher_server.api_key_env is 'HOME': must be a string that matches"),
        ({"retry": 1}, "unknown key 'retry' in teacher_server (did you mean 'retries'?)"),
        ({"concurrency": 0}, "teacher_server.concurrency is 0: must be a whole number from 1 to 1024"),
    ],
)
def test_mistakes_in_the_section_are_named(section: dict[str, Any], said: str) -> None:
    (line,) = mistakes(recipe_with().model_dump(mode="json") | {"teacher_server": section}, Recipe)
    assert line.startswith(said)


def test_a_student_is_no_server() -> None:
    raw = recipe_with().model_dump(mode="json") | {"student": "openai:http://h/v1#m"}
    assert mistakes(raw, Recipe) == ["student is a server, and its weights must be trained: name a folder or a hub id"]


def test_align_takes_the_limit_and_shows_what_was_used(
    server: FaultServer, images_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "served.yaml"
    recipe.write_text(
        "schema_version: 1\nname: served\ntask: minicharts\n"
        f"teacher: {server.reference}\nstudent: nursery:student\n"
        "annotate: {samples_per_image: 2}\nteacher_server: {price_in: 1.0, price_out: 10.0, wait_s: 1.0}\n"
    )
    words = [str(recipe), "--images", str(images_folder), "--out", str(tmp_path / "run")]
    assert cli.exit_code(["align", *words, "--max-cost", "0.0005"]) == 1
    assert "error: --max-cost 0.0005 is reached" in capsys.readouterr().err
    assert cli.exit_code(["annotate", *words]) == 0
    assert "teacher: 24 requests, 2,400 tokens in, 120 out, cost 0.0036" in capsys.readouterr().out
    assert cli.exit_code(["check", str(recipe), "--set", "teacher=openai:http://u:p@h/v1#m"]) == 1
    assert "may hold no user" in capsys.readouterr().err


def test_evaluate_asks_one_model_behind_a_server(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.exit_code(["evaluate", server.reference, "--limit", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 6
    server.script = failing(lambda number: True, status(400, "too dark"))
    assert cli.exit_code(["evaluate", server.reference, "--limit", "6"]) == 1
    assert "no question was answered (server: HTTP 400): fix the images or the server" in capsys.readouterr().err


def test_a_questions_sheet_leaves_out_what_a_server_failed_at_and_counts_silence_as_wrong(
    server: FaultServer, images_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = images_folder / "own.csv"
    table.write_text("image,question,answers\n" + "".join(f"{n}.png,How many {n}?,3\n" for n in range(6)))
    server.script = faults.in_turn([status(400), says(""), says("3")])
    words = ["evaluate", server.reference, "--data", str(table), "--metric", "exact-match", "--json"]
    concurrency = ["--set", "teacher_server.concurrency=1"]
    assert cli.exit_code([*words, *concurrency]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["dropped"], found["accuracy"]) == (5, {"server: HTTP 400": 1}, pytest.approx(0.8))


def test_a_finished_stage_with_missing_rows_does_not_wait_for_a_server_that_is_gone(run_of, capsys) -> None:
    with serving(script=failing(lambda number: number in (0, 24, 25))) as server:
        run = run_of(server, annotate__shard_size=6, concurrency=1, teacher_server__wait_s=30.0)
        run_annotate(run)
        assert len(lost(run)) == 1
    before = annotated(run)
    run_annotate(run)
    assert (annotated(run), len(lost(run)), run.finished("annotate")) == (before, 1, True)
    assert "rows that the teacher's server did not answer stay out: no teacher's server at" in capsys.readouterr().err


def test_held_out_questions_that_a_server_did_not_answer_are_asked_again(run_of, capsys) -> None:
    prompts = get_task("okvqa").annotation_prompts

    def writes(_number: int, asked: dict[str, Any]) -> faults.Behaviour:
        prompt = prompt_of(asked)
        written = f"Question: What is {prompts.index(prompt)}?\nAnswer: red" if prompt in prompts else "red"
        return says(written, tokens=(100, 5))

    own = {"task": "okvqa", "images__group": "none", "evaluate__votes": 3}
    with serving(script=lambda number, asked: status(500) if number in (1, 9, 10) else writes(number, asked)) as server:
        run = run_of(server, concurrency=1, teacher_server__max_failed=0.9, **own)
        run_silver(run)
    assert (len(read_questions(run.folder / "silver" / "questions.jsonl").samples), lost(run, "silver")) == (6, [])
    used = total_usage(run)
    assert used is not None
    assert (used.failures, used.requests) == (3, len(server.bodies) - 3)
    run_silver(run)  # the server is gone
    assert "silver: already done, nothing changed" in capsys.readouterr().err


def test_a_cost_limit_needs_a_server_that_counts(run_of, server) -> None:
    server.script = lambda number, asked: says("3", tokens=None)
    run = run_of(server, teacher_server__price_in=1.0, teacher_server__price_out=1.0, teacher_server__max_cost=1.0)
    with pytest.raises(MpaError, match="counts no tokens, so no cost limit can be kept: leave it out"):
        run_annotate(run)
    assert len(server.bodies) == 1


WORDS = {
    "annotate.samples_per_image": 2,
    "annotate.shard_size": 6,
    "images.render": "null",
    "teacher_server.price_in": 1.0,
    "teacher_server.price_out": 10.0,
}


def words_for(server: FaultServer, images_folder: Path, out: Path, concurrency: int, **changed: Any) -> list[str]:
    own = {"teacher": f"'{server.reference}'", "teacher_server.concurrency": concurrency}
    settings = WORDS | own | {key.replace("__", "."): value for key, value in changed.items()}
    words = ["annotate", "minicharts", "--images", str(images_folder), "--out", str(out)]
    return words + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def slowly(number: int, asked: dict[str, Any]) -> faults.Behaviour:
    time.sleep(0.05)
    return good(number, asked)


def keys(server: FaultServer) -> list[str]:
    return [json.dumps(asked, sort_keys=True) for asked in server.bodies]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_asks_for_nothing_again_that_was_answered(
    server: FaultServer, images_folder: Path, tmp_path: Path, run_of: Callable[..., Run], stop: int, concurrency: int
) -> None:
    server.script = slowly
    words = words_for(server, images_folder, tmp_path / "run", concurrency)
    for n in (7, 17):  # among the annotations, and among the votes
        stopped = subprocess.Popen([sys.executable, "-m", "mpa_edge", *words], stderr=subprocess.DEVNULL)
        while len(server.bodies) < n and stopped.poll() is None:
            time.sleep(0.01)
        stopped.send_signal(stop)
        assert stopped.wait() != 0
        run = run_of(server, folder="run")
        used = total_usage(run)
        assert used is not None
        # each request counts before it is sent
        assert len(server.bodies) <= used.requests + used.failures <= len(server.bodies) + 2 * concurrency
    assert not list(run.folder.rglob("part-*"))
    assert cli.exit_code(words) == 0
    assert (len(annotated(run)), len({*annotated(run)}), lost(run)) == (12, 12, [])
    assert len({*keys(server)}) == 24
    assert len(server.bodies) <= 24 + 2 * concurrency
    used = total_usage(run)
    assert used is not None
    assert used.cost is not None
    assert len(server.bodies) <= used.requests + used.failures <= len(server.bodies) + 2 * concurrency
    # the first request of each start went out before anybody knew the size of a prompt
    assert used.cost >= 150e-6 * len(server.bodies) - 3 * concurrency * 100e-6
    assert not [*run.folder.rglob("*.tmp"), *run.folder.rglob(".replies*")]


@pytest.mark.parametrize("max_bytes", [2_000, 2_500, 3_000])
def test_a_full_disk_costs_no_answer_twice(
    server: FaultServer, images_folder: Path, tmp_path: Path, run_of: Callable[..., Run], max_bytes: int
) -> None:
    """A limit on the size of files: the kept replies, or the part with the rows, do not fit."""
    words = words_for(server, images_folder, tmp_path / "run", 2)
    (tmp_path / "run").mkdir()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "mpa_edge", *words],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: disk full at "), done.stderr
    assert len(server.bodies) > 8
    assert cli.exit_code(words) == 0
    run = run_of(server, folder="run")
    assert len(annotated(run)) == 12
    assert len({*keys(server)}) == 24
    # at most what was on its way at either stop
    assert len(server.bodies) <= 24 + 2 * 2
    used = total_usage(run)
    assert used is not None
    assert used.requests + used.failures >= len(server.bodies)


def test_replies_are_kept_only_until_they_are_in_a_part(run_of, server) -> None:
    run = run_of(server, annotate__shard_size=2)
    seen: list[int] = []
    replies = run.stage_folder("annotate") / ".replies.jsonl"

    def script(number: int, asked: dict[str, Any]) -> faults.Behaviour:
        seen.append(replies.read_bytes().count(b"\n"))
        return good(number, asked)

    server.script = script
    run_annotate(run)
    assert max(seen) <= 8
    assert seen[8] <= 4
    assert not replies.exists()
    run_annotate(run, fresh=True)
    assert len(server.bodies) == 2 * 24


@pytest.mark.parametrize("damage", [b'{"key": "half', b"\xff\xfe\n", b'{"key": 1}\n[]\n', b"\0" * 500])
def test_damaged_kept_replies_are_asked_for_again(run_of, server, damage: bytes) -> None:
    server.script = failing(lambda number: number >= 6)
    run = run_of(server, concurrency=1)
    with pytest.raises(MpaError, match="did not answer"):
        run_annotate(run)
    replies = run.stage_folder("annotate") / ".replies.jsonl"
    whole = replies.read_bytes()
    assert whole.count(b"\n") == 6
    replies.write_bytes(whole + damage)
    server.bodies.clear()
    server.script = good
    run_annotate(run)
    assert (len(annotated(run)), len(server.bodies)) == (12, 18)


def test_an_evaluation_that_is_stopped_keeps_its_answers(server: FaultServer, tmp_path: Path) -> None:
    server.script = slowly
    words = ["evaluate", server.reference, "--limit", "20", "--out", str(tmp_path / "a.jsonl")]
    words += ["--set", "teacher_server.concurrency=1"]
    stopped = subprocess.Popen([sys.executable, "-m", "mpa_edge", *words], stderr=subprocess.DEVNULL)
    while len(server.bodies) < 12 and stopped.poll() is None:
        time.sleep(0.01)
    stopped.kill()
    stopped.wait()
    assert cli.exit_code(words) == 0
    assert len(server.bodies) <= 21
    assert sorted(path.name for path in tmp_path.glob("*a*")) == ["a.jsonl", "a_results.json"]
