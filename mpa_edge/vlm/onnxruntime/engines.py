"""Engines that an accelerator builds from a graph: kept on the device, so that each is built once.

TensorRT takes minutes for it, OpenVINO seconds. The folder of an export's engines is named after everything that they
depend on; its `built.json` is written when all of them are complete, and says how long it took.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import make_folder, read_json, write_json
from mpa_edge.runs.paths import remove

BUILT = "built.json"
KEPT = 8
# the version of an NVIDIA driver, on a PC and on Jetson Linux
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))
OPENVINO = "OpenVINOExecutionProvider"
TENSORRT, TENSORRT_RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
BUILDERS = (TENSORRT, TENSORRT_RTX, OPENVINO)
"""Execution providers that build engines."""
# axis of an exported graph -> (least, most), None: the longest prompt with its answer
RANGES: dict[str, tuple[int, int | None]] = {
    "batch_size": (1, 1),
    "num_images": (1, 1),
    "sequence_length": (1, None),
    "past_sequence_length": (0, None),
    "total_sequence_length": (1, None),
}


def engine_folder(depends_on: Iterable[str]) -> Path:
    """Folder for the engines of one export, one provider, and one driver; the oldest beyond KEPT are removed.

    `depends_on`: what identifies them: hash of the export, provider, versions, options. MpaError where it cannot be
    made.
    """
    drivers = []
    for path in DRIVERS:
        with suppress(OSError):
            drivers.append(path.read_text(encoding="utf-8", errors="replace"))
    key = hashlib.sha256(json.dumps([*depends_on, *drivers]).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpa-edge" / "engines"
    folder = make_folder(home / key)
    os.utime(folder)
    others = sorted((path for path in home.iterdir() if path != folder), key=lambda path: path.stat().st_mtime)
    for old in others[: 1 - KEPT]:
        remove(old, quietly=True)
    return folder


def build_seconds(folder: Path, seconds: float) -> float:
    """How long building took: `seconds`, or what it took when the engines of this folder were built."""
    known = read_json(folder / BUILT)
    if isinstance(known, dict) and isinstance(known.get("build_s"), float):
        return float(known["build_s"])
    write_json(folder / BUILT, {"build_s": seconds})
    return seconds


def session_options(
    provider: str, folder: Path | None, device: Mapping[str, str], threads: int, own: Mapping[str, str]
) -> dict[str, str]:
    """Options of a provider: where it keeps its engines, and OpenVINO's threads; the target's (`own`) count more.

    `folder`: None where it keeps none. `device`: metadata of the plugin's device. `threads`: 0 for as many as there are
    cores; OpenVINO has threads of its own and does not read ONNX Runtime's number. Sources:
    tensorrt_provider_options.h of ONNX Runtime, tensorrt_rtx_provider_options.h of onnxruntime-ep-nv-tensorrt-rtx, the
    properties of OpenVINO's plugins (https://docs.openvino.ai, "Query Device Properties"). MpaError where OpenVINO's
    own option is no JSON.

    >>> session_options("OpenVINOExecutionProvider", Path("/e"), {"ov_device": "CPU"}, 2, {})
    {'load_config': '{"CPU": {"CACHE_DIR": "/e", "INFERENCE_NUM_THREADS": "2"}}'}
    """
    if folder and provider == TENSORRT:
        caches = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
        return caches | {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)} | dict(own)
    if folder and provider == TENSORRT_RTX:
        return {"nv_runtime_cache_path": str(folder)} | dict(own)
    if provider != OPENVINO:
        return dict(own)
    name = device.get("ov_device", "CPU").partition(".")[0]
    ours = {"CACHE_DIR": str(folder)} if folder else {}
    if name == "CPU" and threads:
        ours["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        config: dict[str, dict[str, Any]] = json.loads(own.get("load_config", "{}"))
        ours |= config.get(name, {})
    except (ValueError, TypeError, AttributeError) as error:
        raise MpaError(f"load_config of {OPENVINO} is no JSON of devices and properties: fix the target") from error
    return dict(own) | {"load_config": json.dumps(config | {name: ours})}


def profile_shapes(inputs: Sequence[tuple[str, Sequence[int | str]]], context_tokens: int) -> dict[str, str]:
    """TensorRT's ranges of all input shapes of a graph; empty where the range of an axis is not known.

    Without them TensorRT builds a new engine whenever a shape is out of the range that it has seen: with a cache that
    grows, at each token. `inputs`: (name, shape), as the exported graph names its axes. Source: ONNX Runtime
    documentation, TensorRT provider, "Explicit shape range for dynamic shape input".

    >>> profile_shapes([("x", ["batch_size", "sequence_length", 4])], 8)["trt_profile_max_shapes"]
    'x:1x8x4'
    >>> profile_shapes([("x", ["num_patches", 4])], 8)
    {}
    """
    dynamic = [(name, shape) for name, shape in inputs if any(isinstance(size, str) for size in shape)]
    if not dynamic or any(isinstance(size, str) and size not in RANGES for _, shape in dynamic for size in shape):
        return {}

    def text(at: int) -> str:
        parts = []
        for name, shape in dynamic:
            sizes = []
            for size in shape:
                least, most = RANGES[size] if isinstance(size, str) else (size, size)
                ends = least, context_tokens if most is None else most
                sizes.append(str((ends[0], sum(ends) // 2, ends[1])[at]))
            parts.append(f"{name}:{'x'.join(sizes)}")
        return ",".join(parts)

    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    return {name: text(at) for at, name in enumerate(names)}
