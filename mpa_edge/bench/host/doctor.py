"""What a device has, what it lacks for a benchmark, and the command that gives it: nothing is copied or installed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from mpa_edge.bench.device.runner import PACKAGES
from mpa_edge.bench.host.device_run import OLDEST
from mpa_edge.bench.host.llama_server_process import listed_devices
from mpa_edge.bench.results.lines import Words
from mpa_edge.bench.results.probe import Reading, items, number, read_probe, text
from mpa_edge.bench.results.sensors import FEATURES, count_cores, cpu_name
from mpa_edge.bench.results.validity import POWER_SAVERS, SLOW_GOVERNORS
from mpa_edge.bench.transports.transport import Transport, last_line, printable, quoted_path
from mpa_edge.config.library import root
from mpa_edge.vlm.llama_cpp.offload import Offload

SHORT_S, LOOK_S = 30.0, 180.0
PHONE_SERVER = "/data/local/tmp/mpa-edge/llama-server"
# any Python since 2.7 runs this; importing a runtime may print, so the answer has a mark
LOOK = f"""
import json, sys
found = {{"python": sys.version_info[:3]}}
if sys.version_info >= {OLDEST}:
    from importlib.metadata import PackageNotFoundError, version
    found.update(packages={{}}, broken={{}})
    for name in sys.argv[1:]:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            pass
    try:
        import onnxruntime
        found["packages"]["onnxruntime"] = onnxruntime.__version__
        found["providers"] = onnxruntime.get_available_providers()
    except ModuleNotFoundError:
        pass
    except Exception as error:
        found["broken"]["onnxruntime"] = str(error)
    try:
        import llama_cpp
        found["offload"] = bool(llama_cpp.llama_supports_gpu_offload())
    except ModuleNotFoundError:
        pass
    except Exception as error:
        found["broken"]["llama-cpp-python"] = str(error)
print("mpa-edge doctor " + json.dumps(found))
"""
ANSWER = re.compile(rb"^mpa-edge doctor (\{.*\})\r?$", re.MULTILINE)
MODES = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=(MAXN\w*)", re.MULTILINE)
JETSON_WHEELS = {"R36": "https://pypi.jetson-ai-lab.io/jp6/cu126"}
"""Major release of Jetson Linux -> the index that its onnxruntime-gpu comes from. Source: docs/jetson.md."""


class Inside(BaseModel):
    """What LOOK prints."""

    python: tuple[int, int, int] | None = None
    packages: dict[str, Words] = {}
    providers: list[Words] = []
    offload: bool | None = None
    broken: dict[str, Words] = {}
    """Package that is installed and cannot be imported -> why."""
    reason: str | None = None
    """Why nothing of this is known."""


def device_report(transport: Transport, python: str | None = None, server: str | None = None) -> dict[str, Any]:
    """Everything that a device says about itself, and under `missing` the command for whatever it lacks.

    python: its Python, None: python3, or this interpreter where the device is this machine.
    server: path of its llama-server, None: where the targets for Android have it, or the one on PATH.
    MpaError where it cannot be reached, or does not run the probe.
    """
    probe = read_probe(_probe(transport))
    program = python or (sys.executable if transport.name == "local" else "python3")
    inside, packages = _look(transport, program), _names()
    found = {
        "device": transport.name,
        "python": ".".join(map(str, inside.python)) if inside.python else None,
        "python_reason": inside.reason,
        "platform": ", ".join(filter(None, (text(probe, key) for key in ("board", "os", "kernel", "machine")))),
        "cpu": cpu_name(probe),
        "cpu_features": sorted(set((text(probe, "cpu_features") or "").split()) & FEATURES),
        "cores": count_cores(probe),
        "memory_bytes": _kib(probe, "MemTotal"),
        "memory_available_bytes": _kib(probe, "MemAvailable"),
        "swap_bytes": _kib(probe, "SwapTotal"),
        "disk_free_bytes": _disk_free(transport),
        "gpu": gpu(probe),
        "l4t": text(probe, "l4t"),
        "vulkan": _words(probe.get("vulkan")),
        "power_mode": text(probe, "power_mode"),
        "governor": ", ".join(sorted({text(each, "governor") or "?" for each in items(probe, "frequencies")})) or None,
        "packages": [{"package": name, "installed": inside.packages.get(name), "tested": None} for name in packages],
        "providers": inside.providers,
        "llama_cpp_offload": inside.offload,
        "broken": inside.broken,
        "llama_server": _server(transport, server),
    }
    return found | {"missing": missing(found, program, _fastest_mode(transport), is_android=bool(_android(probe)))}


def missing(found: Mapping[str, Any], python: str, fastest: str | None, *, is_android: bool) -> dict[str, str]:
    """What is lacked -> the command that gives it. `found` as in `device_report`; `fastest`: ID of the mode MAXN."""
    server, version = found["llama_server"]["path"], found["python"]
    lacks = {}
    if is_android and server is None:
        lacks["gguf"] = f"adb push llama-server {PHONE_SERVER}  # how to build it: docs/android.md"
    if version is None or tuple(map(int, version.split(".")[:2])) < OLDEST:
        if not is_android:
            oldest = ".".join(map(str, OLDEST))
            lacks["python"] = f"sudo apt-get install -y python3 python3-pip  # {oldest} or newer; name it with --python"
    else:
        lacks |= _missing_in_python(found, shlex.quote(python))
    if found["l4t"] and not str(found["power_mode"]).startswith("MAXN") and fastest:
        lacks["full speed"] = f"sudo nvpmodel -m {fastest} && sudo jetson_clocks"
    elif is_android and found["power_mode"] in POWER_SAVERS:
        lacks["full speed"] = "adb shell settings put global low_power 0"
    elif not is_android and any(name in str(found["governor"]).split(", ") for name in SLOW_GOVERNORS):
        lacks["full speed"] = "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    return lacks


def _missing_in_python(found: Mapping[str, Any], python: str) -> dict[str, str]:
    installed = {row["package"] for row in found["packages"] if row["installed"]}
    has_nvidia, lacks = found["l4t"] is not None or found["gpu"]["kind"] == "nvidia", {}
    for format_ in ("onnx", "gguf"):
        wanted = [name for name in PACKAGES[format_].values() if name.partition("=")[0] not in installed]
        if wanted and not (format_ == "gguf" and found["llama_server"]["path"]):
            cuda = "CMAKE_ARGS=-DGGML_CUDA=ON " if has_nvidia and format_ == "gguf" else ""
            lacks[format_] = f"{cuda}{python} -m pip install {' '.join(wanted)}"
    if has_nvidia and "onnxruntime" in installed and "CUDAExecutionProvider" not in found["providers"]:
        major = str(found["l4t"]).partition(".")[0]
        index = f" --index-url {JETSON_WHEELS[major]}" if major in JETSON_WHEELS else ""
        lacks["onnx on the GPU"] = (
            f"{python} -m pip uninstall -y onnxruntime && {python} -m pip install onnxruntime-gpu{index}"
            if index or not found["l4t"]
            else "an onnxruntime built for this JetPack: docs/jetson.md"
        )
    if has_nvidia and found["llama_cpp_offload"] is False:
        package = PACKAGES["gguf"]["llama_cpp"]
        install = f"{python} -m pip install --force-reinstall --no-cache-dir --no-deps {package}"
        lacks["gguf on the GPU"] = f"CMAKE_ARGS=-DGGML_CUDA=ON {install}"
    return lacks


def gpu(probe: Reading) -> dict[str, Any]:
    """The accelerator that the system shows; `name` is null with a `reason` where there is none.

    >>> gpu({"nvidia": "Orin (nvgpu), 540.4.0, [N/A]"})["name"], gpu({"vulkan": ["lvp_icd.x86_64"]})["name"]
    ('Orin (nvgpu), 540.4.0, [N/A]', None)
    """
    if name := text(probe, "nvidia"):
        return {"name": name, "kind": "nvidia", "reason": None}
    if (release := text(probe, "l4t")) and (board := text(probe, "board")):
        return {"name": f"of {board} (Jetson Linux {release})", "kind": "nvidia", "reason": None}
    if _android(probe) and (drivers := _words(probe.get("vulkan"))):
        return {"name": f"Vulkan driver {', '.join(drivers)}", "kind": "vulkan", "reason": None}
    # Mesa installs the drivers of all GPUs, so that a driver on a PC says nothing
    return {"name": None, "kind": None, "reason": "no nvidia-smi and no Jetson; see what llama-server names"}


def _probe(transport: Transport) -> str:
    """The output of probe.sh, which the device's sh gets as an argument: nothing is written there."""
    script = (root() / "export" / "runners" / "probe.sh").read_bytes()
    return transport.checked("run probe.sh", 's=$(cat); exec sh -c "$s" </dev/null', timeout_s=LOOK_S, stdin=script)


def _names() -> list[str]:
    return list(dict.fromkeys(name.partition("=")[0] for f in ("onnx", "gguf") for name in PACKAGES[f].values()))


def _look(transport: Transport, program: str) -> Inside:
    """What the device's Python says; `reason` where there is none."""
    done = transport.run(shlex.join([program, "-c", LOOK, *_names()]), timeout_s=LOOK_S)
    with suppress(ValidationError):
        if match := ANSWER.search(done.stdout):
            return Inside.model_validate_json(match[1])
    why = f"there is no {program}" if done.rc == 127 else last_line(done.stderr + b"\n" + done.stdout)
    return Inside(reason=why)


def _server(transport: Transport, path: str | None) -> dict[str, Any]:
    """Path, version and devices of the llama-server there; the path is null where there is none."""
    usual = (PHONE_SERVER, '"$HOME/.local/bin/llama-server"', '"$(command -v llama-server)"')
    places = shlex.quote(path) if path else " ".join(usual)
    script = f'for p in {places}; do if [ -f "$p" ] && [ -x "$p" ]; then printf %s "$p"; exit; fi; done; exit 1'
    done = transport.run(script, timeout_s=SHORT_S)
    if done.rc:
        return {"path": None, "version": None, "devices": None}
    chosen = done.stdout.decode(errors="replace")
    program = shlex.quote(chosen)
    script = f"{program} --version 2>&1; echo; {program} --list-devices 2>/dev/null"
    says = transport.run(script, timeout_s=LOOK_S).stdout.decode(errors="replace")
    version = re.search(r"^version: (.+)$", says, re.MULTILINE)
    return {
        "path": printable(chosen),
        "version": printable(version[1]) if version else None,
        "devices": ", ".join(Offload(device=each).backend for each in listed_devices(says)) or Offload().backend,
    }


def _disk_free(transport: Transport) -> int | None:
    """Bytes free where the bundles go."""
    script = f'd={quoted_path(transport.root)}; while [ ! -d "$d" ]; do d=${{d%/*}}; d=${{d:-/}}; done; df -Pk "$d"'
    rows = transport.run(script, timeout_s=SHORT_S).stdout.decode(errors="replace").splitlines()
    with suppress(IndexError, ValueError):
        return int(rows[-1].split()[3]) * 1024
    return None


def _fastest_mode(transport: Transport) -> str | None:
    """ID of a Jetson's mode without a power limit."""
    text_ = transport.run("cat /etc/nvpmodel.conf 2>/dev/null", timeout_s=SHORT_S).stdout.decode(errors="replace")
    found = MODES.search(text_)
    return found[1] if found else None


def _kib(probe: Reading, name: str) -> int | None:
    kib = number(probe, "memory_kib", name)
    return None if kib is None else int(kib) * 1024


def _android(probe: Reading) -> str | None:
    return text(probe, "android", "ro.build.version.sdk")


def _words(value: Any) -> list[str]:
    return [printable(each) for each in value if isinstance(each, str)] if isinstance(value, list) else []
