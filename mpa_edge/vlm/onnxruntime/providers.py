"""The execution providers of ONNX Runtime: which of them are on this device, and sessions that use one.

A provider is part of the installed onnxruntime (`get_available_providers`), or a plugin library in a package of its own
(https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries). Being installed is not enough: the CUDA provider
of a machine without a driver is installed, and its session silently runs on the CPU. So a provider counts as there when
it has a device, or when it keeps a session of one node.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime

from mpa_edge.config.accelerator import CPU_ONLY
from mpa_edge.errors import MpaError
from mpa_edge.vlm import fingerprint
from mpa_edge.vlm.onnxruntime.engines import (
    BUILDERS,
    OPENVINO,
    TENSORRT,
    engine_folder,
    profile_shapes,
    session_options,
)

CPU = "CPUExecutionProvider"
Options = Mapping[str, Mapping[str, str]]
"""Provider -> its options, as in a target file."""


@dataclass(frozen=True)
class Known:
    """One execution provider that stands behind the name of an accelerator."""

    provider: str
    """ONNX Runtime's name of it."""
    install: str
    """What to do where it is missing."""
    plugin: str | None = None
    """Module that contains its plugin library."""


KNOWN: dict[str, tuple[Known, ...]] = {
    "cuda": (Known("CUDAExecutionProvider", "install onnxruntime-gpu instead of onnxruntime"),),
    "tensorrt": (
        Known("TensorrtExecutionProvider", "install onnxruntime-gpu instead of onnxruntime, and TensorRT"),
        Known(
            "NvTensorRTRTXExecutionProvider",
            "install onnxruntime-ep-nv-tensorrt-rtx",
            "onnxruntime_ep_nv_tensorrt_rtx",
        ),
    ),
    "openvino": (Known(OPENVINO, "install onnxruntime-ep-openvino", "onnxruntime_ep_openvino"),),
    "qnn": (Known("QNNExecutionProvider", "install onnxruntime-qnn", "onnxruntime_qnn"),),
    "webgpu": (Known("WebGpuExecutionProvider", "install onnxruntime-ep-webgpu", "onnxruntime_ep_webgpu"),),
    "coreml": (Known("CoreMLExecutionProvider", "use macOS, whose onnxruntime has it"),),
    "xnnpack": (Known("XnnpackExecutionProvider", "use an onnxruntime that was built with it"),),
    "cpu": (Known(CPU, ""),),
}
# TensorRT leaves operators out; the same GPU takes them through CUDA
PARTNERS = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
# y = Relu(x) for one number: onnx.helper.make_model, opset 13
ONE_NODE = (
    b'\x08\x08\x12\x00:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
ERRORS_ONLY, NOTHING = 3, 4
# plugin libraries of this process: each may be registered once
_registered: set[str] = set()
SOURCE = re.compile(r"/\S+\.(cc|cpp|h):\d+ ")
PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def one_line(error: BaseException) -> str:
    """The message of a library's error, without line breaks and onnxruntime's prefix.

    >>> one_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : Load model failed:\\n  no such node"))
    'Load model failed: no such node'
    """
    text = PREFIX.sub("", " ".join(str(error).split()))
    if SOURCE.match(text):  # a place in its source and a signature: what happened stands at the end
        return f"... {text[-200:]}"
    return text[:300] or type(error).__name__


@dataclass(frozen=True)
class Execution:
    """What the graphs of an export run on."""

    accelerator: str = "cpu"
    """The chosen one."""
    providers: tuple[str, ...] = (CPU,)
    """Asked in this order; the last is the CPU, which takes what the others leave."""
    options: Options = field(default_factory=dict)
    """Of the target."""
    devices: tuple[Any, ...] = ()
    """Those of a plugin library; empty for a provider that is part of onnxruntime."""
    missing: tuple[str, ...] = ()
    """Preferred ones that are not here, each with what to do about it."""
    profile: Path | None = None
    """Folder for onnxruntime's profiles of the sessions; None: there are none."""
    engines: Path | None = None
    """Folder of the engines that the provider builds; None: it builds none."""
    context_tokens: int = 0
    """Longest prompt with its answer, for the engines."""

    def session(self, model: str | bytes, options: Any) -> Any:
        """An InferenceSession with its SessionOptions. Raises whatever onnxruntime raises.

        onnxruntime's own way, to warn and to compute on the CPU instead, is switched off.
        """
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(self.profile / "profile")
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        own = {name: dict(self.options.get(name, {})) for name in self.providers}
        first = self.providers[0]
        device = self.devices[0].ep_metadata if self.devices else {}
        own[first] = session_options(first, self.engines, device, options.intra_op_num_threads, own[first])
        if first == TENSORRT:
            own[first] = profile_shapes(_inputs(model), self.context_tokens) | own[first]
        if self.devices:
            options.add_provider_for_devices(list(self.devices), own[first])
            made = onnxruntime.InferenceSession(model, options, enable_fallback=0)
        else:
            made = onnxruntime.InferenceSession(model, options, providers=list(own.items()), enable_fallback=0)
        if first not in made.get_providers():
            raise MpaError(f"{first} is installed and does not start: check its driver and libraries")
        return made


def choose(accelerators: Sequence[str] = CPU_ONLY, options: Options | None = None) -> Execution:
    """The first of `accelerators` that is here. MpaError with what to install where none is.

    `options`: see `Options`; those of other providers are left out.
    """
    missing: list[str] = []
    for name in accelerators:
        for known in KNOWN.get(name, ()):
            providers = (known.provider, *PARTNERS.get(known.provider, ()), CPU)
            try:
                found = Execution(name, tuple(dict.fromkeys(providers)), options or {}, devices_of(known))
                loaded = known.provider in _registered
                if known.provider == CPU or found.devices or (not loaded and _starts(known.provider)):
                    return Execution(name, found.providers, found.options, found.devices, tuple(missing))
                missing.append(f"{name} ({known.plugin} finds no device)" if loaded else f"{name} ({known.install})")
            except Exception as error:  # a plugin library may raise anything
                missing.append(f"{name} ({one_line(error)})")
        if name not in KNOWN:
            missing.append(f"{name} (ONNX Runtime has none: use a gguf export)")
    raise MpaError(f"not on this device: {', '.join(missing)}; or choose --accelerator cpu")


def with_engines(execution: Execution, folder: Path, context_tokens: int) -> Execution:
    """With a place for the engines of the export in `folder`, where its provider builds any."""
    first = execution.providers[0]
    if first not in BUILDERS:
        return execution
    of_device = [f"{key}={value}" for one in execution.devices for key, value in sorted(one.ep_metadata.items())]
    options = sorted(execution.options.get(first, {}).items())
    key = [fingerprint(str(folder)), first, onnxruntime.__version__, *of_device, str(options), str(context_tokens)]
    return replace(execution, engines=engine_folder(key), context_tokens=context_tokens)


def _inputs(model: str | bytes) -> list[tuple[str, list[int | str]]]:
    """(name, shape) of a graph's inputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    plain = onnxruntime.InferenceSession(model, options, providers=[CPU])
    return [(one.name, one.shape) for one in plain.get_inputs()]


def devices_of(known: Known) -> tuple[Any, ...]:
    """The device of a plugin that computes: its GPU, else its CPU, else its NPU; empty where there is none.

    Of Qualcomm the NPU, else the GPU: on the processor its provider only emulates them.
    """
    if known.plugin and known.provider not in _registered and importlib.util.find_spec(known.plugin):
        library = importlib.import_module(known.plugin).get_library_path()
        onnxruntime.register_execution_provider_library(known.provider, library)
        _registered.add(known.provider)
    if not hasattr(onnxruntime, "get_ep_devices"):  # before 1.23 there are no plugin libraries
        return ()
    found = [one for one in onnxruntime.get_ep_devices() if one.ep_name == known.provider != CPU]
    kinds = onnxruntime.OrtHardwareDeviceType
    # an NPU takes no graph with dynamic shapes, which a decoder has
    order = [kinds.GPU, kinds.CPU, kinds.NPU]
    if known.provider == "QNNExecutionProvider":
        order = [kinds.NPU, kinds.GPU]
    found = [one for one in found if one.device.type in order]
    return tuple(sorted(found, key=lambda one: order.index(one.device.type))[:1])


def _starts(provider: str) -> bool:
    """Whether a provider is part of this onnxruntime. Raises whatever keeps it from a session of one node."""
    if provider not in onnxruntime.get_available_providers():
        return False
    options = onnxruntime.SessionOptions()
    options.log_severity_level = NOTHING
    Execution(providers=(provider, CPU)).session(ONE_NODE, options)
    return True


def installed() -> tuple[str, ...]:
    """Accelerators whose provider is installed, whether or not it has a device."""
    parts = set(onnxruntime.get_available_providers())
    return tuple(
        name
        for name, those in KNOWN.items()
        if any(one.provider in parts or (one.plugin and importlib.util.find_spec(one.plugin)) for one in those)
    )


def about(execution: Execution) -> str:
    """The device behind an execution, as its provider names it; empty where it does not."""
    for device in execution.devices:
        names = {**device.device.metadata, **device.ep_metadata}
        return str(names.get("FULL_DEVICE_NAME") or names.get("Description") or device.device.vendor)
    return ""


def refusal(path: Path, execution: Execution, error: BaseException) -> MpaError:
    """A graph that an accelerator does not take, in one line."""
    return MpaError(
        f"{execution.accelerator} refuses {path.name} ({one_line(error)}): choose another scheme, or --accelerator cpu"
    )
