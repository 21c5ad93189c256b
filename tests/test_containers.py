"""The container recipe and the Kubernetes job: linted by those who know the formats, and true to each other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from mpa_edge.cli.main import exit_code

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "Containerfile"
JOB = ROOT / "docs" / "kubernetes" / "align-job.yaml"
YAML_RULES = "{extends: default, rules: {line-length: {max: 120}, braces: {max-spaces-inside: 0}}}"
# secrets by name, and nothing that looks like one
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9]{8,}|AKIA[A-Z0-9]{8,}|(?i:password|token)\s*[:=]\s*['\"]?\w{8,}")


def lint(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name(program)
    return subprocess.run([path, *words], capture_output=True, text=True, timeout=120)


def instructions(name: str) -> list[str]:
    text = re.sub(r"\\\n", " ", RECIPE.read_text(encoding="utf-8"))
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def documents() -> list[dict[str, Any]]:
    return list(YAML(typ="safe", pure=True).load_all(JOB.read_text(encoding="utf-8")))


def job() -> dict[str, Any]:
    return documents()[1]


def container() -> dict[str, Any]:
    (only,) = job()["spec"]["template"]["spec"]["containers"]
    return only


def test_hadolint_finds_nothing_in_the_recipe(tmp_path: Path) -> None:
    found = lint("hadolint", str(RECIPE))
    assert found.returncode == 0, found.stdout
    spoilt = tmp_path / "Containerfile"
    spoilt.write_text(RECIPE.read_text() + "USER root\nRUN cd /tmp && sudo ls\n")
    assert {"DL3002", "DL3004"} <= set(re.findall(r"DL\d{4}", lint("hadolint", str(spoilt)).stdout))
    assert "hadolint ignore" not in RECIPE.read_text()


def test_the_schema_of_kubernetes_takes_the_job() -> None:
    for version in ("1.31", kubernetes_validate.latest_version()):
        for document in documents():
            kubernetes_validate.validate(document, version, strict=True)
    spoilt = job()
    spoilt["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, "1.31", strict=True)


def test_yamllint_finds_nothing_in_the_job() -> None:
    found = lint("yamllint", "-s", "-d", YAML_RULES, str(JOB))
    assert found.returncode == 0, found.stdout


def test_what_is_copied_is_there_and_let_through() -> None:
    through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in instructions("COPY") if "--from" not in line for name in shlex.split(line)[:-1]}
    assert copied == through
    assert all((ROOT / name).exists() for name in copied)
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


def test_the_extras_are_those_of_the_package() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = (line.partition("=")[2] for line in instructions("ARG") if line.startswith("EXTRAS="))
    assert set(asked.split(",")) <= extras.keys()


def test_the_recipe_runs_as_nobody_and_stops_as_ctrl_c_does() -> None:
    assert instructions("USER") == ["${UID}:${UID}"]
    assert instructions("STOPSIGNAL") == ["SIGINT"]
    assert instructions("ENTRYPOINT") == ['["mpa-edge"]']
    assert not SECRET.search(RECIPE.read_text() + JOB.read_text())
    assert SECRET.search("token: abcdefgh1")


def test_the_job_fits_the_recipe() -> None:
    pod, (uid,) = job()["spec"]["template"]["spec"], (line[4:] for line in instructions("ARG") if "UID=" in line)
    assert str(pod["securityContext"]["runAsUser"]) == uid
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = YAML(typ="safe").load(instructions("VOLUME")[0])
    mounted = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert set(volumes) <= mounted
    assert {mount["name"] for mount in container()["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_job_that_cannot_be_mended_ends_and_others_go_on() -> None:
    spec = job()["spec"]
    assert spec["backoffLimit"] >= 3
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [2, 3])
    assert fail["onExitCodes"]["containerName"] == container()["name"]
    assert ignore["action"] == "Ignore"


def test_secrets_come_by_reference_only() -> None:
    for variable in container()["env"]:
        assert "value" not in variable
        assert variable["valueFrom"].keys() == {"secretKeyRef"}


def test_the_job_has_gpus_and_as_many_threads_as_processors() -> None:
    limits = container()["resources"]["limits"]
    assert {"cpu", "memory", "nvidia.com/gpu"} <= limits.keys()
    assert f"threads: {limits['cpu']} " in documents()[0]["data"]["recipe.yaml"]


def test_the_command_of_the_job_is_one_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "recipe.yaml").write_text(documents()[0]["data"]["recipe.yaml"])
    words = [re.sub("(^|=)/", rf"\1{tmp_path}/", word) for word in container()["args"]]
    assert exit_code([*words, "--dry-run"]) == 0, capsys.readouterr().err
    assert os.fspath(tmp_path / "runs" / "mine") in capsys.readouterr().out
