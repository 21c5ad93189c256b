"""Whole plans: what must grow with what, what is halved, what is refused, and that nothing heavy is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.cli.main import exit_code
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError
from mpa_edge.planning.counts import batches, count
from mpa_edge.planning.estimate import Plan, as_document, find_images, machines, make_plan, this_machine
from mpa_edge.planning.records import assumptions, device_file, find_device
from mpa_edge.vlm import WEIGHTS

ON = {name: machines([name]) for name in device_file().devices}


def plan(
    recipe: str, images: str | None = None, device: str = "cpu", *values: str, assume: tuple[str, ...] = ()
) -> Plan:
    return make_plan(load_recipe(recipe, values), images, lambda: ON[device], assume)


def seconds(made: Plan) -> dict[str, float]:
    return {name: stage.seconds for name, stage in made.machines[0].stages.items()}


def test_rows_by_hand() -> None:
    made = count(load_recipe("minicharts"), 1000, assumptions("minicharts"))
    assert (made.asked, made.annotated, made.questions) == (5000, 3600, 1000)
    assert made.verified == 3600 * 0.96
    assert made.gap == pytest.approx(3456 * 0.47)
    assert made.train == pytest.approx(1624.32 * 0.9 * 1.5)
    assert made.steps_at_most == 4 * 69
    assert made.steps == pytest.approx(276 * 0.64)


@pytest.mark.parametrize(("at_most", "patience", "steps"), [(60, 3, 60), (100, 3, 80), (1000, 3, 500), (1000, 0, 1000)])
def test_early_stopping_needs_time(at_most: int, patience: int, steps: int) -> None:
    level = (f"level.max_steps={at_most}", f"level.patience={patience}", "level.eval_steps=20")
    assumed = assumptions("minicharts", ["stopped_at=0.5"])
    assert count(load_recipe("minicharts", level), 1000, assumed).steps == steps


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 500), st.integers(1, 512))
def test_batches_hold_all_rows(n: int, groups: int, size: int) -> None:
    made = batches(n, groups, size)
    assert made * size >= n
    assert made >= groups


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20_000), st.sampled_from(sorted(ON)))
def test_more_images_never_cost_less(n: int, device: str) -> None:
    few, more = (plan("charts-served", str(images), device) for images in (n, n + 500))
    assert more.disk_bytes > few.disk_bytes
    for stage, least in seconds(few).items():
        # the last, smaller batches of a few shards can cost a little more than the full ones of many
        assert seconds(more)[stage] >= least * 0.99


@pytest.mark.parametrize(
    "value",
    [
        "annotate.samples_per_image=8",
        "annotate.votes=3",
        "level.rank=64",
        "level.epochs=8",
        "evaluate.n=3000",
        "level.method=full",
    ],
)
def test_more_work_takes_longer(value: str) -> None:
    assert sum(seconds(plan("minicharts", None, "cpu", value)).values()) > sum(seconds(plan("minicharts")).values())


def test_a_batch_is_halved_until_it_fits() -> None:
    large, small = (
        plan("charts-served", "1000", device, "level.batch_size=64").machines[0] for device in ("h200", "a10")
    )
    sizes = {name: stage.at_once for name, stage in small.stages.items()}
    assert sizes["level"] < 64
    assert {64 % size for size in sizes.values()} == {0}
    assert small.fits
    assert small.memory_bytes <= 0.92 * 24e9 < large.memory_bytes


def test_what_is_too_large_costs_nothing() -> None:
    made = plan(
        "charts-served",
        "100",
        "a10",
        "teacher=OpenGVLab/InternVL2-8B",
        "student=Qwen/Qwen2-VL-7B-Instruct",
        "level.method=full",
    ).machines[0]
    assert not made.fits
    assert made.usd is None


def test_a_price_of_yours() -> None:
    mine = machines(["h100"], usd_per_hour=2.0)
    made = make_plan(load_recipe("charts-served"), "1000", lambda: mine).machines[0]
    assert made.usd == pytest.approx(made.seconds / 3600 * 2.0)


def test_a_hosted_teacher_is_paid_by_the_token() -> None:
    own = plan("charts-served", "1000")
    prices = ("teacher_server.price_in=0.2", "teacher_server.price_out=0.6")
    hosted = plan("charts-served", "1000", "cpu", *prices)
    counts, tokens = own.counts, own.teacher_image.tokens
    requests = counts.asked + counts.annotated
    # evaluation has the teacher write questions about a tenth of the images, and answer each five times
    assert (counts.images, counts.silver_images, counts.silver_asked) == (900, 100, 400)
    asked, answered = counts.asked + counts.silver_asked, counts.annotated + 5 * counts.silver_annotated
    read = asked * (tokens + 130) + answered * (tokens + 37)
    written = asked * 30 + answered * 4
    assert hosted.machines[0].usd == pytest.approx((read * 0.2 + written * 0.6) / 1e6)
    assert seconds(hosted)["annotate"] == pytest.approx(requests * 3 / 32)
    assert own.machines[0].usd is None


def test_a_server_of_your_own_needs_no_weights_here() -> None:
    teacher = "teacher=Qwen/Qwen2-VL-7B-Instruct"
    served, local = plan("charts-served", "1000", "h100"), plan("charts-served", "1000", "h100", teacher)
    assert local.disk_bytes - served.disk_bytes == pytest.approx(2 * 8_291_375_616, rel=0.001)
    assert seconds(served)["annotate"] < seconds(local)["annotate"]


def test_no_questions_no_evaluation() -> None:
    assert "evaluate" not in seconds(plan("charts-served", "10", "cpu", "evaluate.holdout=0.0"))
    assert "evaluate" in seconds(plan("minicharts"))


def test_the_sizes_of_the_images_of_a_folder(picture: Any, tmp_path: Path) -> None:
    for n in range(3):
        picture(f"{n}.png", size=(100 + n, 50), color=(n, n, n))
    found = find_images(load_recipe("charts-served"), str(tmp_path / "images"), assumptions("chartqa"))
    assert found.n == 3
    assert set(found.sizes) == {(100, 50), (101, 50), (102, 50)}


def test_a_folder_with_two_files_is_a_model(tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json"):
        shutil.copy(WEIGHTS / "student" / name, tmp_path)
    own, built_in = plan("minicharts", None, "cpu", f"student={tmp_path}"), plan("minicharts")
    assert seconds(own) == seconds(built_in)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(MpaError, match=r"has no preprocessor_config.json: copy it from the checkpoint"):
        plan("minicharts", None, "cpu", f"student={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MpaError, match=r"config.json' is no JSON .*: copy it from the checkpoint again"):
        plan("minicharts", None, "cpu", f"student={tmp_path}")


@pytest.mark.parametrize(
    ("values", "images", "assume", "words"),
    [
        (("student=Owner/Unknown",), "10", (), "'Owner/Unknown' are not known here: put its config.json"),
        (("student=HuggingFaceTB/SmolVLM-256M-Instruc",), "10", (), "did you mean HuggingFaceTB/SmolVLM-256M"),
        (("teacher=openai:http://h/v1#some-model",), "10", (), "the sizes of 'some-model' are not known here"),
        ((), None, (), "names no images: add --images DIR, or a number, --images 1000"),
        ((), "nowhere", (), "no folder 'nowhere'"),
        ((), "0", (), "no folder '0'"),
        ((), "10", ("gab=0.5",), "no assumption 'gab': did you mean 'gap'?"),
        ((), "10", ("gap=half",), "--assume gap=half: give a number that is not negative"),
        ((), "10", ("gap=-1",), "--assume gap=-1: give a number"),
        ((), "10", ("gap=nan",), "--assume gap=nan: give a number"),
    ],
)
def test_a_mistake_is_one_line(
    values: tuple[str, ...], images: str | None, assume: tuple[str, ...], words: str
) -> None:
    with pytest.raises(MpaError) as error:
        plan("charts-served", images, "cpu", *values, assume=assume)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_device() -> None:
    with pytest.raises(MpaError, match="no device 'h10' to plan for: did you mean 'h100'"):
        find_device("h10")
    with pytest.raises(MpaError, match="no device 'abacus' to plan for: use here, cpu, a10"):
        find_device("abacus")


def test_every_gpu_has_a_dated_price_and_a_source() -> None:
    for device in device_file().devices.values():
        assert device.source
        assert (device.price is None) == (device.kind == "cpu")
        if device.price:
            assert device.price.source.startswith("https://")
            assert device.price.date.year >= 2026


def test_the_document_has_every_assumption_and_source() -> None:
    document = as_document(plan("minicharts"))
    [machine] = document["machines"]
    assert all(factor["where"] for factor in document["assumptions"].values())
    assert document["student"]["sizes_from"].endswith("config.json")
    assert sum(document["disk"].values()) == pytest.approx(document["disk_bytes"], abs=1)
    total = document["assumptions"]["start_s"]["value"] + sum(s["seconds"] for s in machine["stages"].values())
    assert machine["hours"] == pytest.approx(total / 3600)
    json.dumps(document)


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["plan", "minicharts", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["machines"][0]["stages"]["annotate"]["seconds"] > 0


def test_the_command_shows_sizes_and_the_sources_of_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["plan", "charts-served", "--images", "100", "--device", "h100"]) == 0
    said = capsys.readouterr().out
    for words in ("8.29 G parameters", "up to a factor of two", "https://www.runpod.io/pricing, 2026-11-09"):
        assert words in said


def test_this_machine_is_measured() -> None:
    device = this_machine(3, watch_s=0.05)
    assert device.kind == "cpu"
    assert 1e9 < device.flops < 1e13
    assert 1e9 < device.memory_bandwidth < 1e12
    assert device.memory_bytes > 1e8
    assert "3 CPU threads" in device.title


def test_a_wrong_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["plan", "charts-served", "--images", "100", "--device", "h1000"]) == 1
    assert capsys.readouterr().err == "error: no device 'h1000' to plan for: did you mean 'h100'?\n"


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from mpa_edge.cli.main import exit_code; "
        "assert exit_code(['plan', 'minicharts', '--device', 'cpu']) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
