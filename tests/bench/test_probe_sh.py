"""probe.sh under the shells that devices have, on this machine and on trees that look like boards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.bench.results.probe import read_probe, read_watch
from tests.bench import trees

pytestmark = pytest.mark.slow  # processes that are waited for, stopped and killed

PROBE = Path(__file__).parents[2] / "export" / "runners" / "probe.sh"
SHELLS = [["dash"], ["busybox", "sh"]]
Command = list[str]


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> Command:
    return list(request.param)


def environment(prefix: Path | None = None, first: Path | None = None) -> dict[str, str]:
    path = os.environ["PATH"]
    return {"PREFIX": str(prefix) if prefix else "", "PATH": f"{first}:{path}" if first else path}


def said(shell: Command, prefix: Path | None = None, first: Path | None = None) -> dict[str, Any]:
    done = subprocess.run([*shell, str(PROBE)], env=environment(prefix, first), capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1
    return json.loads(done.stdout)


def hidden(value: object) -> str:
    """Reason of a value that could not be read."""
    assert isinstance(value, dict)
    assert set(value) == {"value", "reason"}
    assert value["value"] is None
    return value["reason"]


def test_this_machine(shell: Command) -> None:
    found = said(shell)
    assert found["machine"] == os.uname().machine
    assert found["kernel"] == os.uname().release
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["uptime_s"] == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=30)
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert found["memory_kib"]["MemTotal"] == int(meminfo["MemTotal"].split()[0])
    assert found["python3"].startswith("3.")
    assert found["sha256"] == "sha256sum"
    assert found["emulated"] is False
    assert read_probe(json.dumps(found))["uptime_s"] == found["uptime_s"]


def test_raspberry_pi(shell: Command, tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "pi", trees.PI)
    found = said(shell, root, trees.programs(tmp_path / "bin", uname=UNAME_ARM, vcgencmd=trees.VCGENCMD))
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["cpu_parts"] == "0x41/0xd0b"
    assert "asimddp" in found["cpu_features"].split()
    assert hidden(found["cpu"]) == "no model name in /proc/cpuinfo"
    assert found["thermal_zones"] == [
        {"type": "cpu-thermal", "temp_c": 48.35, "trips": [{"type": "critical", "temp_c": 110.0}]}
    ]
    assert found["frequencies"][0] == {
        "name": "policy0",
        "now_khz": 1500000,
        "allowed_khz": 2400000,
        "governor": "ondemand",
        "cpus": "0 1 2 3",
        "lowest_khz": 300000,
        "highest_khz": 2400000,
    }
    assert found["throttling"]["pi"] == "0x50005"
    assert found["throttling"]["cooling"] == [{"type": "pwm-fan", "now": 2, "most": 4}]
    assert found["swaps"] == [{"name": "/dev/zram0", "kind": "partition", "kib": 204784}]
    assert found["load_average"] == [0.15, 0.2, 0.3]
    assert found["affinity"] == "0-3"
    assert found["emulated"] is False


UNAME_ARM = "case $1 in -m) echo aarch64 ;; -s) echo Linux ;; *) echo 6.6.0-pi ;; esac"


def test_a_kernel_of_another_family_is_an_emulators(shell: Command, tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "x", {"proc/sys/kernel/arch": "x86_64"})
    found = said(shell, root, trees.programs(tmp_path / "bin", uname=UNAME_ARM))
    assert found["emulated"] is True
    assert found["emulated_why"] == "the kernel is x86_64, programs see aarch64"
    mate = said(shell, root, trees.programs(tmp_path / "mate", uname="echo i686"))
    assert mate["emulated"] is False


def test_a_shell_that_an_emulator_runs_is_found_by_the_emulators_name(tmp_path: Path) -> None:
    fake = shutil.copy(str(shutil.which("dash")), tmp_path / "qemu-aarch64-static")
    found = said([str(fake)])
    assert found["emulated"] is True
    assert found["emulated_why"] == "qemu-aarch64-static runs this shell"


def test_orin_nano(shell: Command, tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "orin", trees.ORIN)
    smi = "[ $# = 2 ] && echo 'Orin (nvgpu), 540.4.0, [N/A]'"
    found = said(shell, root, trees.programs(tmp_path / "bin", **{"nvpmodel": trees.NVPMODEL, "nvidia-smi": smi}))
    assert found["power_mode"] == "25W"
    assert (found["l4t"], found["nvidia"]) == ("R36.4.7", "Orin (nvgpu), 540.4.0, [N/A]")
    assert found["vulkan"] == ["nvidia_icd"]
    assert found["board"].startswith("NVIDIA Jetson Orin Nano")
    temperatures = {zone["type"]: zone["temp_c"] for zone in found["thermal_zones"]}
    assert temperatures["cpu-thermal"] == 48.562
    assert temperatures["tj-thermal"] == -0.005
    assert hidden(temperatures["gpu-thermal"]) == "no value in /sys/class/thermal/thermal_zone1/temp"


def test_power_mode_without_root_is_read_from_files(shell: Command, tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "orin", trees.ORIN)
    assert said(shell, root, trees.programs(tmp_path / "bin", nvpmodel="exit 1"))["power_mode"] == "MAXN_SUPER"
    (root / "var/lib/nvpmodel/status").unlink()
    assert "without root" in hidden(said(shell, root)["power_mode"])


def test_phone(shell: Command, tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "pixel", trees.PIXEL)
    first = trees.programs(tmp_path / "bin", getprop=trees.GETPROP, dumpsys=trees.DUMPSYS, settings="echo 1")
    found = said(shell, root, first)
    assert found["android"]["ro.product.model"] == "Pixel 8"
    assert hidden(found["android"]["ro.hardware"]) == "getprop says nothing"
    assert found["os"] == "Android 15"
    assert found["power_mode"] == "battery saver"
    assert found["cpu_parts"] == "0x41/0xd46 0x41/0xd4d 0x41/0xd4e"
    assert found["thermal_service"] == {
        "status": 1,
        "temperatures": [{"type": "BIG", "temp_c": 58.1}, {"type": "battery", "temp_c": 31.5}],
    }
    assert (found["battery"]["capacity"], found["battery"]["voltage_uv"]) == (81, 4312000)
    assert (found["battery"]["status"], found["battery"]["plugged"]) == ("Charging", "USB")
    assert hidden(found["battery"]["current_ua"]) == "not allowed to read /sys/class/power_supply"
    assert found["thermal_zones"] == found["frequencies"] == []


def test_android_emulator_is_virtual(shell: Command, tmp_path: Path) -> None:
    first = trees.programs(tmp_path / "bin", getprop="case $1 in ro.hardware) echo ranchu ;; esac")
    assert said(shell, trees.plant(tmp_path / "a", trees.PIXEL), first)["virtual"] == "Android emulator"


def test_pc(shell: Command, tmp_path: Path) -> None:
    found = said(shell, trees.plant(tmp_path / "pc", trees.PC))
    assert found["cpu"] == "Intel(R) N100"
    assert found["os"] == 'Arch "rolling" \\o/'
    assert found["board"] == "Beelink EQ12"
    assert found["throttling"]["counters"] == 7
    assert found["power_mode"] == "balanced"
    assert found["battery"]["current_ua"] == -1500000
    assert "no vcgencmd" in hidden(found["throttling"]["pi"])
    assert "no sign" in hidden(found["virtual"])
    found = said(shell, trees.plant(tmp_path / "pc", {"sys/class/dmi/id/sys_vendor": "QEMU"}))
    assert found["virtual"] == "QEMU"


def test_an_empty_machine_says_nulls_with_reasons_and_no_zero(shell: Command, tmp_path: Path) -> None:
    found = said(shell, tmp_path)
    for name in (
        "uptime_s",
        "board",
        "cpu",
        "cpu_parts",
        "cpu_features",
        "affinity",
        "power_mode",
        "battery",
        "load_average",
    ):
        assert hidden(found[name])
    assert {hidden(value) for value in found["memory_kib"].values()} == {
        f"no {name} in /proc/meminfo" for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    }
    assert hidden(found["throttling"]["counters"]) == "no thermal_throttle counters"
    assert (hidden(found["l4t"]), found["vulkan"]) == ("no /etc/nv_tegra_release", [])


def test_strange_texts_stay_json(shell: Command, tmp_path: Path) -> None:
    odd = 'a"b\\c\td\x01 $(echo no) `echo no` %s'
    tree = trees.zone(0, odd, "12x34") | trees.zone(1, "é", "99999999999") | trees.policy(0, odd, "1e3", "07", "-1.5")
    found = said(shell, trees.plant(tmp_path, tree | {"etc/os-release": f"PRETTY_NAME={odd}"}))
    clean = 'a"b\\c d  $(echo no) `echo no` %s'
    assert [zone["type"] for zone in found["thermal_zones"]] == [clean, "é"]
    assert [hidden(zone["temp_c"]) for zone in found["thermal_zones"]] == [
        f"not a number: {v}" for v in ("12x34", "9" * 11)
    ]
    assert found["frequencies"][0]["governor"] == found["os"] == clean
    assert hidden(found["frequencies"][0]["now_khz"]) == "not a number: 1e3"
    assert hidden(found["frequencies"][0]["allowed_khz"]) == "not a number: 07"
    assert found["frequencies"][0]["highest_khz"] == -1.5


THOUSANDTHS = {
    "0": 0.0,
    "5": 0.005,
    "-5": -0.005,
    "45": 0.045,
    "500": 0.5,
    "46125": 46.125,
    "-256000": -256.0,
    "100000": 100.0,
    "10050": 10.05,
}


def test_thousandths(shell: Command, tmp_path: Path) -> None:
    for i, milli in enumerate(THOUSANDTHS):
        trees.plant(tmp_path, trees.zone(i, milli, milli))
    found = said(shell, tmp_path)["thermal_zones"]
    assert {zone["type"]: zone["temp_c"] for zone in found} == THOUSANDTHS


def test_denied_files_are_said_to_be_denied(shell: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = trees.plant(tmp_path_factory.mktemp("denied"), trees.PC)
    (root / "sys/class/thermal/thermal_zone0/temp").chmod(0)
    (root / "sys/class/power_supply/BAT0/current_now").chmod(0)
    found = json.loads(as_nobody([*shell, str(PROBE)], root))
    assert hidden(found["thermal_zones"][0]["temp_c"]) == "not allowed to read /sys/class/thermal/thermal_zone0/temp"
    assert hidden(found["battery"]["current_ua"]) == "not allowed to read /sys/class/power_supply/BAT0/current_now"


def as_nobody(command: Command, root: Path) -> bytes:
    """Root reads everything: step down. What is not below the tree comes on stdin."""
    for folder in (root, *root.parents[:3]):
        if folder.owner() == Path.home().owner() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    if os.getuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command[:-1], "-s"]
    else:
        command = [*command[:-1], "-s"]
    script = PROBE.read_bytes()
    return subprocess.run(
        command, env=environment(root), input=script, capture_output=True, timeout=30, check=True
    ).stdout


def watched(shell: Command, seconds: float, root: Path | None = None, first: Path | None = None) -> str:
    """What `watch 1` says until it is killed."""
    command = [*shell, str(PROBE), "watch", "1"]
    process = subprocess.Popen(command, env=environment(root, first), stdout=subprocess.PIPE, start_new_session=True)
    try:
        time.sleep(seconds)
        process.kill()
        return process.communicate(timeout=120)[0].decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_watch_says_a_line_a_second(shell: Command, tmp_path: Path) -> None:
    lines = read_watch(watched(shell, 1.6, trees.plant(tmp_path, trees.PI)).splitlines())
    assert len(lines) == 2
    assert lines[0]["uptime_s"] == 1234.56
    assert lines[0]["thermal_zones"][0]["temp_c"] == 48.35
    assert lines[0]["frequencies"][0]["now_khz"] == 1500000


TEGRASTATS = """
[ "$1 $2" = "--interval 1000" ] || exit 9
echo $$ >"$0.pid"
while :; do echo "RAM 1343/7620MB (lfb 1x4MB) CPU [0%@729,off] VDD_IN 5251mW/8535mW"; sleep 0.3; done
"""


def test_watch_reads_tegrastats_and_leaves_none_behind(shell: Command, tmp_path: Path) -> None:
    first = trees.programs(tmp_path / "bin", tegrastats=TEGRASTATS)
    lines = read_watch(watched(shell, 1.0, trees.plant(tmp_path / "orin", trees.ORIN), first).splitlines())
    assert len(lines) >= 2
    assert str(lines[0]["tegrastats"]).endswith("VDD_IN 5251mW/8535mW")
    pid = int((first / "tegrastats.pid").read_text())
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_watch_goes_on_without_a_tegrastats_that_fails(shell: Command, tmp_path: Path) -> None:
    first = trees.programs(tmp_path / "bin", tegrastats="exit 1")
    assert len(read_watch(watched(shell, 0.6, trees.plant(tmp_path / "orin", trees.ORIN), first).splitlines())) == 1


@pytest.mark.parametrize("words", [["watch"], ["watch", "0"], ["watch", "0.5"], ["watch", "5; id"], ["look"]])
def test_wrong_usage(shell: Command, words: list[str]) -> None:
    done = subprocess.run([*shell, str(PROBE), *words], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"probe.sh" in done.stderr


@pytest.fixture(scope="module")
def applets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("busybox")
    subprocess.run(["busybox", "--install", "-s", str(folder)], check=True, timeout=120)
    return folder


def test_busybox_alone_is_enough(applets: Path) -> None:
    command = [str(applets / "sh"), str(PROBE)]
    done = subprocess.run(command, env={"PATH": str(applets)}, capture_output=True, timeout=120)
    found = json.loads(done.stdout)
    assert (found["machine"], found["emulated"], found["sha256"]) == (os.uname().machine, False, "sha256sum")
    assert hidden(found["python3"]) == "no python3 on PATH"
