"""What doctor says of a device: through real links, and what it advises for boards that are not here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpa_edge.bench.host.doctor import MODES, device_report, missing
from mpa_edge.bench.transports.connect import connect
from mpa_edge.cli.main import exit_code
from tests.bench.llama_server import program
from tests.bench.peers import adbd, sshd
from tests.bench.trees import NVPMODEL_CONF

PEER = (pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(120))


def says(found: dict[str, Any], folder: Path) -> None:
    """The facts of this machine, as any link to it must tell them."""
    assert (found["cores"], found["memory_bytes"]) == (len(os.sched_getaffinity(0)), psutil.virtual_memory().total)
    assert 0 < found["memory_available_bytes"] < found["memory_bytes"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    installed = {row["package"]: row["installed"] for row in found["packages"]}
    assert all(installed.values()), installed
    assert "CPUExecutionProvider" in found["providers"]
    assert found["llama_cpp_offload"] is False
    assert found["llama_server"]["path"] == str(folder / "llama-server")
    assert found["llama_server"]["devices"] == "llama.cpp CPU"
    assert not {"python", "onnx", "gguf"} & set(found["missing"])


@pytest.mark.parametrize("link", [pytest.param("ssh", marks=PEER), pytest.param("adb", marks=PEER)])
def test_a_device_says_what_it_has(
    link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "with space").mkdir()
    server = program(tmp_path / "with space")
    with (sshd if link == "ssh" else adbd)(tmp_path / "peer") as peer:
        env = {"MPA_EDGE_SSH_CONFIG": peer.config_file} if link == "ssh" else peer.env
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        words = ["doctor", "--via", peer.via, "--python", sys.executable, "--server", str(server)]
        assert exit_code([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert exit_code(["doctor", "--via", peer.via, "--python", "no-such-python"]) == 0
        shown = capsys.readouterr().out
    says(found, server.parent)
    assert found["device"].startswith(link)
    assert "no Python (there is no no-such-python)" in shown
    assert "to get python: sudo apt-get install -y python3 python3-pip" in shown
    assert f"cores {found['cores']}, memory " in shown


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["doctor", "--via", "usb://x"]) == 1
    assert capsys.readouterr().err.startswith("error: --via usb://x is unknown: write local, ssh://")
    assert exit_code(["doctor", "--python", "python3"]) == 2


BARE = {
    "python": "3.10.12",
    "l4t": None,
    "power_mode": None,
    "governor": "ondemand",
    "gpu": {"name": None, "kind": None, "reason": "none"},
    "providers": ["CPUExecutionProvider"],
    "llama_cpp_offload": False,
    "llama_server": {"path": None, "version": None, "devices": None},
    "packages": [
        {"package": name, "installed": "1.0", "tested": None}
        for name in ("numpy", "pillow", "pydantic", "onnxruntime", "tokenizers", "llama-cpp-python", "gguf")
    ],
}
JETSON = BARE | {"l4t": "R36.4.7", "power_mode": "15W", "gpu": {"name": "Orin", "kind": "nvidia", "reason": None}}


def test_what_a_board_lacks() -> None:
    assert missing(BARE, "python3", None, is_android=False) == {}
    jetson = missing(JETSON, "venv dir/python", "2", is_android=False)
    assert list(jetson) == ["onnx on the GPU", "gguf on the GPU", "full speed"]
    assert jetson["onnx on the GPU"].startswith("'venv dir/python' -m pip uninstall -y onnxruntime && ")
    assert "/jp6/" in jetson["onnx on the GPU"]
    assert jetson["gguf on the GPU"].startswith("CMAKE_ARGS=-DGGML_CUDA=ON 'venv dir/python' -m pip install ")
    assert jetson["full speed"] == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    newer = missing(JETSON | {"l4t": "R38.2.0"}, "python3", "0", is_android=False)
    assert newer["onnx on the GPU"].endswith("docs/jetson.md")
    ready = JETSON | {"providers": ["CUDAExecutionProvider"], "llama_cpp_offload": True, "power_mode": "MAXN_SUPER"}
    assert missing(ready, "python3", "2", is_android=False) == {}
    slow = missing(BARE | {"governor": "ondemand, powersave"}, "python3", None, is_android=False)
    assert slow == {
        "full speed": "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    }
    old = missing(BARE | {"python": "3.8.10"}, "python3", None, is_android=False)
    assert list(old) == ["python"]
    phone = missing(BARE | {"python": None, "power_mode": "battery saver"}, "python3", None, is_android=True)
    assert list(phone) == ["gguf", "full speed"]
    with_server = BARE | {"python": None, "llama_server": {"path": "/x", "version": None, "devices": None}}
    assert missing(with_server, "python3", None, is_android=True) == {}


def test_the_command_for_packages_is_the_runners() -> None:
    without = [row | {"installed": None if row["package"] == "gguf" else "1"} for row in BARE["packages"]]  # type: ignore[union-attr]
    found = missing(BARE | {"packages": without}, "python3", None, is_android=False)
    assert found == {"gguf": "python3 -m pip install gguf"}
    fastest = MODES.search(NVPMODEL_CONF)
    assert fastest
    assert f"ID={fastest[1]} NAME=MAXN" in NVPMODEL_CONF


@pytest.mark.slow
def test_nothing_is_left_on_the_device(tmp_path: Path) -> None:
    found = device_report(connect("local", root=str(tmp_path / "root")))
    assert not (tmp_path / "root").exists()
    assert found["disk_free_bytes"] > 0
