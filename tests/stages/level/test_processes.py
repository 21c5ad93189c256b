"""What is asked of several processes, and what cannot be, said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpa_edge.cli.main import exit_code
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import write_json
from mpa_edge.stages.level import launch, processes
from mpa_edge.stages.level.launch import CONFIG, Failure, _reason, arguments, plain_config
from mpa_edge.stages.level.processes import Processes, require_possible
from mpa_edge.stages.plan import memory_bytes, plan, preflight
from tests.stages.conftest import recipe_with

TWO_MACHINES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 2
num_processes: 8
machine_rank: 1
main_process_ip: gpu0
main_process_port: 29500
mixed_precision: no
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "accelerate.yaml"
    path.write_text(text)
    return str(path)


def test_without_flags_training_stays_in_this_process() -> None:
    assert processes.processes(None, None) is None
    assert processes.processes(1, None) is None
    assert processes.processes(2, None) == Processes(2)


def test_a_configuration_says_how_many_and_where(tmp_path) -> None:
    path = written(tmp_path, TWO_MACHINES)
    found = processes.processes(None, path)
    assert found == Processes(8, path, machines=2, machine=1)
    assert found.here == 4
    assert processes.processes(4, path).count == 4
    as_json = tmp_path / "accelerate.json"
    as_json.write_text(json.dumps({"num_processes": 3, "mixed_precision": "BF16", "use_cpu": True}))
    assert processes.processes(None, str(as_json)) == Processes(3, str(as_json), mixed_precision="bf16", use_cpu=True)


def test_what_accelerate_writes_itself_is_read(tmp_path) -> None:
    from accelerate.utils import write_basic_config

    path = tmp_path / "default.yaml"
    write_basic_config(save_location=str(path))
    assert processes.processes(2, str(path)).count == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "is no configuration of accelerate: let accelerate config write one"),
        ("a: [", r"cannot read '.*' \(no YAML document\): let accelerate config write one"),
        ("distributed_type: FSDP", "asks for FSDP, and level trains one whole student on each GPU: use"),
        ("compute_environment: AMAZON_SAGEMAKER", "asks for AMAZON_SAGEMAKER"),
        ("distributed_type: MULTI_CPU\nmpirun_config: {mpirun_hostfile: hosts}", "without mpirun"),
        ("num_processes: -1", r"num_processes is -1: write a number of 1 or more \(machine_rank begins with 0\)"),
        ("num_processes: two", "num_processes is two: write a number"),
        ("machine_rank: 1", "machine_rank is 1 of 1 machines: the first one is 0"),
        ("num_machines: 2\nnum_processes: 5", "5 processes cannot be shared evenly by 2 machines: use .* 4"),
        ("num_machines: 2\nnum_processes: 4", "write main_process_ip and main_process_port of machine 0"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line(tmp_path, text: str, says: str) -> None:
    with pytest.raises(MpaError, match=says):
        processes.processes(None, written(tmp_path, text))
    with pytest.raises(MpaError, match="No such file"):
        processes.processes(None, str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("asked", "changed", "says"),
    [
        (Processes(3), {}, "is 32, which 3 processes .* evenly: use --num-processes 2, or --set level.batch_size=33"),
        (Processes(40), {}, "use --num-processes 32, or --set level.batch_size=40"),
        (Processes(2), {"level__quantize": "nf4"}, "leave --num-processes out, or --set level.quantize=null"),
        (Processes(2, "f", mixed_precision="fp16"), {}, "'f' computes in fp16, the recipe in fp32: write"),
    ],
)
def test_a_recipe_that_cannot_be_shared_is_one_line(asked: Processes, changed: dict, says: str) -> None:
    with pytest.raises(MpaError, match=says):
        require_possible(asked, recipe_with(device="cpu", **changed))


def test_each_process_needs_a_gpu(monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    recipe = recipe_with()
    require_possible(Processes(2), recipe)
    require_possible(Processes(4, "f", machines=2), recipe)
    require_possible(Processes(2, "f", mixed_precision="bf16"), recipe)
    with pytest.raises(MpaError, match="4 processes need a GPU each, and this machine has 2: use --num-processes 2"):
        require_possible(Processes(4), recipe)
    with pytest.raises(MpaError, match="says use_cpu, and this machine has a GPU: add --set device=cpu"):
        require_possible(Processes(2, "f", use_cpu=True), recipe)
    require_possible(Processes(4), recipe_with(device="cpu"))


def test_the_plan_knows(make_run) -> None:
    from dataclasses import replace

    run = make_run(device="cpu")
    spread = replace(run, processes=Processes(2))
    assert plan(spread)["stages"]["level"].endswith("epochs of the gap in 2 processes")
    assert memory_bytes(spread) > 1.9 * memory_bytes(run)
    with pytest.raises(MpaError, match="3 processes cannot share evenly"):
        preflight(replace(run, processes=Processes(3)), ("level",))


def test_the_words_for_accelerate_are_words_it_knows(tmp_path) -> None:
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    alone = parser.parse_args(arguments(Processes(2), "order.json"))
    assert (alone.num_processes, alone.multi_gpu, alone.main_process_port) == (2, True, 0)
    assert (alone.module, alone.training_script, alone.training_script_args) == (
        True,
        "mpa_edge.stages.level.ddp_worker",
        ["order.json"],
    )
    path = written(tmp_path, TWO_MACHINES)
    of_two = parser.parse_args(arguments(processes.processes(None, path), "order.json"))
    assert (of_two.config_file, of_two.main_process_port) == (path, None)


@pytest.mark.parametrize("count", [1, 2])
def test_accelerate_reads_our_configuration_and_not_the_users(tmp_path, count) -> None:
    """What `accelerate config` left in the user's cache was made for other work."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    write_json(tmp_path / CONFIG, plain_config(count))
    asked = launch_command_parser().parse_args(arguments(Processes(count), str(tmp_path / "order.json")))
    assert asked.config_file == str(tmp_path / CONFIG)
    read = load_config_from_file(asked.config_file)
    assert (read.num_processes, read.mixed_precision, read.use_cpu) == (count, "no", False)


def test_the_reason_is_the_one_that_explains_the_others(tmp_path) -> None:
    died = MpaError("training process 0 ended")
    assert _reason(tmp_path, died, Processes(2)) is died
    for rank, failure in enumerate(
        (
            Failure(kind="other", message="KeyError: 'x'", trace="Traceback"),
            Failure(kind="user", message="disk full"),
            Failure(kind="memory", message="out"),
        )
    ):
        (tmp_path / launch.FAILED.format(rank)).write_text(failure.model_dump_json())
    assert isinstance(_reason(tmp_path, died, Processes(2)), MemoryError)
    assert "more processes" in str(_reason(tmp_path, died, Processes(4, "f", machines=2)))
    (tmp_path / launch.FAILED.format(2)).unlink()
    assert str(_reason(tmp_path, died, Processes(2))) == "disk full"
    (tmp_path / launch.FAILED.format(1)).unlink()
    assert str(_reason(tmp_path, died, Processes(2))) == "KeyError: 'x'"
    lost = Failure(kind="peer", message="RuntimeError: Connection reset by peer")
    (tmp_path / launch.FAILED.format(0)).write_text(lost.model_dump_json())
    assert _reason(tmp_path, died, Processes(2)) is died


def test_other_machines_help_in_level_only(tmp_path, make_run, capsys) -> None:
    path = written(tmp_path, TWO_MACHINES)
    with pytest.raises(
        MpaError, match="machine 1, which helps in level only: run mpa-edge level .* align on machine 0"
    ):
        from dataclasses import replace

        launch.join(replace(make_run(), processes=processes.processes(None, path)), ("annotate", "level"))
    assert exit_code(["level", "s3://bucket/run", "--accelerate-config", path]) == 1
    assert "use a folder that all of them mount, not a URL" in capsys.readouterr().err
