"""Which device llama.cpp computes on, what is placed there, and what its log says about that. It runs on the device."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpa_edge.config.llama_cpp import LlamaCpp
from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from mpa_edge.vlm.shared.usage import Usage

if TYPE_CHECKING:
    from mpa_edge.types import Timing

BUILD = {"cuda": "GGML_CUDA", "vulkan": "GGML_VULKAN"}
"""Accelerator of llama.cpp -> cmake's option for its backend (docs/build.md of llama.cpp)."""
CPU_TYPE = 0  # ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_CPU
MIB = 1 << 20
# llama.h, llama_flash_attn_type; ggml.h, ggml_type
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
KV_CACHE = {"f16": 1, "q4_0": 2, "q8_0": 8}
# lines of llama.cpp's log about where things are (commit 0c1e57098: src/llama-model.cpp, src/llama-context.cpp,
# src/llama-kv-cache.cpp, tools/mtmd/clip.cpp)
PLACED = re.compile(
    "offloaded [0-9]+/[0-9]+ layers|buffer size = |Flash Attention (en|dis)abled|CLIP using [^ ]+ backend"
)
LAYERS = re.compile(r"offloaded (\d+)/(\d+) layers")
BUFFER = re.compile(r"(?:^|\s)((?:\w+: +)?(\w+) +(?:\w+ )?buffer size) = +([\d.]+) MiB", re.MULTILINE)
PROJECTOR = re.compile(r"CLIP using (\S+) backend")


@dataclass(frozen=True)
class Device:
    """A device of llama.cpp besides the CPU."""

    name: str
    """As llama.cpp names it: CUDA0, Vulkan1."""
    description: str
    """Name of the hardware."""
    handle: int | None = None
    """Its `ggml_backend_dev_t` in this process; None: in a server."""

    @property
    def accelerator(self) -> str:
        """Its name in targets and options.

        >>> Device("CUDA0", "Orin").accelerator, Device("Vulkan1", "Mali-G715").accelerator
        ('cuda', 'vulkan')
        """
        return self.name.rstrip("0123456789").lower()


@dataclass(frozen=True)
class Offload:
    """Where a model is to compute."""

    accelerator: str = "cpu"
    """The chosen one."""
    device: Device | None = None
    """None: the CPU."""
    missing: tuple[str, ...] = ()
    """Preferred ones that are not here, each with what to do about it."""
    options: LlamaCpp = field(default_factory=LlamaCpp)
    """Of the target."""

    @property
    def backend(self) -> str:
        """What computes, in words: `llama.cpp CUDA0 (Orin)`, `llama.cpp CPU`."""
        return f"llama.cpp {self.device.name} ({self.device.description})" if self.device else "llama.cpp CPU"

    @property
    def flash_attention(self) -> Literal["auto", "on", "off"]:
        """Of the language model: auto is off on the CPU. The vision encoder takes the option as it is.

        On the CPU it makes an encoder 1.5 times as fast (SmolVLM's, 1,024 patches), and decoding slower: SmolLM2-135M
        in f16 on one AVX-512 thread reads a prompt at 1.17x and decodes at 0.78x behind 350 tokens, at 0.58x behind
        1,500. A quantized cache cannot do without.
        """
        asked = self.options.flash_attention
        return "off" if asked == "auto" and self.device is None and self.options.kv_cache == "f16" else asked

    @property
    def projector(self) -> Device | None:
        """Where the vision encoder is to compute; None: on the CPU."""
        return self.device if self.options.mmproj_on_gpu else None


def choose(
    accelerators: Sequence[str], devices: Sequence[Device], options: LlamaCpp | None = None, program: str = ""
) -> Offload:
    """The first of `accelerators` that llama.cpp has. MpaError with what to build where it has none.

    `devices`: those that it found; `program`: what is to be built, llama-server or the Python package.

    >>> choose(["cuda", "cpu"], [], program="llama-server").missing
    ('cuda (llama.cpp finds no such device: build llama-server with -DGGML_CUDA=ON)',)
    >>> choose(["vulkan"], [Device("Vulkan0", "Mali")]).backend
    'llama.cpp Vulkan0 (Mali)'
    """
    missing: list[str] = []
    for name in accelerators:
        found = next((device for device in devices if device.accelerator == name), None)
        if found or name == "cpu":
            return Offload(name, found, tuple(missing), options or LlamaCpp())
        why = f"llama.cpp finds no such device: build {program} with -D{BUILD[name]}=ON" if name in BUILD else ""
        missing.append(f"{name} ({why or 'llama.cpp has none: use an onnx export'})")
    raise MpaError(f"not on this device: {', '.join(missing)}; or choose --accelerator cpu")


def devices_here() -> list[Device]:
    """The devices that the llama.cpp of this process found, without the CPU."""
    from llama_cpp._ggml import libggml

    for name, result in (("get", ctypes.c_void_p), ("name", ctypes.c_char_p), ("description", ctypes.c_char_p)):
        function = getattr(libggml, f"ggml_backend_dev_{name}")
        function.restype, function.argtypes = result, [ctypes.c_size_t if name == "get" else ctypes.c_void_p]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    handles = [libggml.ggml_backend_dev_get(i) for i in range(libggml.ggml_backend_dev_count())]
    return [
        Device(
            libggml.ggml_backend_dev_name(handle).decode("utf-8", "replace"),
            libggml.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
            handle,
        )
        for handle in handles
        if libggml.ggml_backend_dev_type(handle) != CPU_TYPE
    ]


def model_params(lib: Any, offload: Offload) -> Any:
    """llama.cpp's parameters of a model; they hold the list of devices that they point to."""
    params = lib.llama_model_default_params()
    device = offload.device
    # a list that ends at once leaves everything on the CPU, whatever else the build found
    listed = (ctypes.c_void_p * 2)(device.handle if device else None, None)
    params.devices, params.kept = ctypes.cast(listed, ctypes.c_void_p), listed
    params.n_gpu_layers = offload.options.gpu_layers if device else 0
    return params


def server_options(offload: Offload) -> list[str]:
    """The same for llama-server. Its log says where things are only from verbosity 4 on.

    One option is for vision encoder and language model there; before the first token the encoder matters most.
    """
    options, device = offload.options, offload.device
    words = ["--device", device.name if device else "none", "-ngl", "0", "-fa", options.flash_attention, "-lv", "4"]
    if device:  # older versions have no word for all
        words[3] = str(options.gpu_layers if options.gpu_layers >= 0 else 999)
    if offload.projector is None:
        words.append("--no-mmproj-offload")
    if options.kv_cache != "f16":
        words += ["-ctk", options.kv_cache, "-ctv", options.kv_cache]
    return words


@dataclass(frozen=True)
class Placement:
    """Where llama.cpp says that it has put a model."""

    layers: tuple[int, int] | None
    """(on the accelerator, all) of the language model; None where the log does not say."""
    projector: str | None
    """Name of the device that encodes images; None where the log does not say."""
    buffers: dict[str, int]
    """Device, or kind of memory of the CPU -> bytes."""
    flash_attention: bool | None
    """Whether it is used; None where the log does not say."""


def placement(log: Iterable[str]) -> Placement:
    """What llama.cpp logged while it loaded a model.

    >>> placement(["offloaded 3/4 layers to GPU", "load_tensors: CUDA0 model buffer size = 2.00 MiB"]).buffers
    {'CUDA0': 2097152}
    """
    text = "\n".join(log)
    layers, projector = LAYERS.findall(text), PROJECTOR.findall(text)
    # what is placed anew is logged anew: the last line counts
    sizes = {what: (name, int(float(size) * MIB)) for what, name, size in BUFFER.findall(text)}
    buffers: dict[str, int] = {}
    for name, n_bytes in sizes.values():
        buffers[name] = buffers.get(name, 0) + n_bytes
    words = re.findall(r"Flash Attention (enabled|disabled)", text)
    return Placement(
        layers=(int(layers[-1][0]), int(layers[-1][1])) if layers else None,
        projector=projector[-1] if projector else None,
        buffers=buffers,
        flash_attention=words[-1] == "enabled" if words else None,
    )


def usage(offload: Offload, placed: Placement, mmproj: Path, timing: Timing | None) -> Usage:
    """What computed an answer: layers of language model and vision encoder by device, and the time of each.

    mmproj: file of the vision encoder. timing: of the answer; None where the runtime does not time its parts.
    What the target itself leaves on the CPU is not counted, and named beside the device.
    """
    device, options, name = offload.device, offload.options, offload.accelerator
    if device is None:
        return Usage(name, missing=offload.missing)
    said, nodes, seconds, elsewhere = "", dict[str, int](), dict[str, float](), list[tuple[str, float]]()
    on, n_layers = placed.layers or (0, 0)
    asked = n_layers if options.gpu_layers < 0 else min(options.gpu_layers, n_layers)
    language_s = (timing.prefill_s or 0.0) + (timing.decode_s or 0.0) if timing else 0.0
    vision_s = (timing.vision_s or 0.0) if timing else 0.0
    if asked:
        nodes, seconds = {name: on, "cpu": asked - on}, {name: language_s * on / asked}
        elsewhere = [(f"{asked - on} layers on cpu", language_s - seconds[name])] if on < asked else []
    if asked < n_layers:
        said = f" ({asked} of {n_layers} layers, as the target asks)"
    if offload.projector is None:
        said += " (vision encoder on the CPU, as the target asks)"
    elif placed.projector is not None:
        where = name if placed.projector == device.name else "cpu"
        nodes[where] = nodes.get(where, 0) + int(read_header(mmproj).metadata.get("clip.vision.block_count", 0))
        seconds[where] = seconds.get(where, 0.0) + vision_s
        elsewhere += [("vision encoder on cpu", vision_s)] if where == "cpu" else []
    took = placed.buffers.get(device.name, 0)
    if placed.projector == device.name:  # its weights are in no line of the log
        took += mmproj.stat().st_size
    seconds["cpu"] = sum(taken_s for _, taken_s in elsewhere)
    return Usage(
        name,
        device.description + (said if placed.layers else " (its log does not say what it took)"),
        offload.missing,
        nodes or None,
        seconds if timing else None,
        tuple(sorted(elsewhere, key=lambda one: -one[1])) if timing else (),
        took or None,
    )
