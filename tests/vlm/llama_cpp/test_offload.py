"""Where llama.cpp computes: what is chosen, what it is told, and what is made of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_edge.bench.device.protocol import JobOrder, Line
from mpa_edge.bench.results.accelerators import accelerator_of, not_the_accelerator
from mpa_edge.config.llama_cpp import LlamaCpp
from mpa_edge.errors import MpaError
from mpa_edge.types import Timing
from mpa_edge.vlm.llama_cpp.language import load_llama_cpp
from mpa_edge.vlm.llama_cpp.offload import (
    Device,
    Offload,
    choose,
    devices_here,
    placement,
    server_options,
    usage,
)
from tests.vlm.llama_exported import gguf_folder

ORIN = Device("CUDA0", "Orin")
# llama-server b10434 with Vulkan and `-lv 4`, built-in student; the memory of the host's side is no device's
LOG = """\
0.00.153.452 I load_tensors: offloading output layer to GPU
0.00.153.462 I load_tensors: offloaded 4/4 layers to GPU
0.00.153.487 I load_tensors:   CPU_Mapped model buffer size =     0.13 MiB
0.00.153.488 I load_tensors:      Vulkan0 model buffer size =     2.13 MiB
0.00.155.209 I llama_context: Vulkan_Host  output buffer size =     0.00 MiB
0.00.155.300 I llama_kv_cache:    Vulkan0 KV buffer size =     3.00 MiB
0.00.170.105 I resolve_fused_ops: Flash Attention enabled
0.00.171.156 I sched_reserve:    Vulkan0 compute buffer size =     9.00 MiB
0.00.171.157 I sched_reserve:    Vulkan0 compute buffer size =     2.50 MiB
0.00.171.157 I sched_reserve: Vulkan_Host compute buffer size =     1.01 MiB
0.00.171.509 I clip_ctx: CLIP using Vulkan0 backend
""".splitlines()
VULKAN = Device("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)")


@pytest.fixture(scope="module")
def mmproj() -> Path:
    return next(gguf_folder("student").glob("mmproj*.gguf"))


def test_the_first_that_is_here() -> None:
    found = choose(["tensorrt", "vulkan", "cuda", "cpu"], [ORIN], program="llama-server")
    assert (found.accelerator, found.device, found.backend) == ("cuda", ORIN, "llama.cpp CUDA0 (Orin)")
    assert found.missing == (
        "tensorrt (llama.cpp has none: use an onnx export)",
        "vulkan (llama.cpp finds no such device: build llama-server with -DGGML_VULKAN=ON)",
    )
    assert choose(["cuda", "cpu"], []).backend == "llama.cpp CPU"
    with pytest.raises(MpaError, match="not on this device: cuda .*; or choose --accelerator cpu$"):
        choose(["cuda"], [VULKAN])


def test_what_the_server_is_told() -> None:
    assert server_options(Offload()) == [
        *("--device", "none", "-ngl", "0", "-fa", "auto", "-lv", "4", "--no-mmproj-offload"),
    ]
    assert server_options(Offload("cuda", ORIN)) == ["--device", "CUDA0", "-ngl", "999", "-fa", "auto", "-lv", "4"]
    less = LlamaCpp(gpu_layers=7, mmproj_on_gpu=False, flash_attention="on", kv_cache="q8_0")
    assert server_options(Offload("cuda", ORIN, options=less))[2:] == [
        *("-ngl", "7", "-fa", "on", "-lv", "4", "--no-mmproj-offload", "-ctk", "q8_0", "-ctv", "q8_0"),
    ]


def test_a_small_cache_needs_flash_attention() -> None:
    with pytest.raises(ValueError, match="kv_cache q8_0 needs flash attention"):
        LlamaCpp(kv_cache="q8_0", flash_attention="off")
    assert Offload(options=LlamaCpp(kv_cache="q8_0")).flash_attention == "auto"


def test_a_log_is_read() -> None:
    found = placement(LOG)
    assert (found.layers, found.projector, found.flash_attention) == ((4, 4), "Vulkan0", True)
    assert found.buffers["Vulkan0"] == int((2.13 + 3.0 + 2.5) * (1 << 20))
    assert "CPU_Mapped" in found.buffers
    assert placement([]) == placement(["nothing"])


def verdict(log: list[str], mmproj: Path, device: Device = VULKAN, options: LlamaCpp | None = None) -> list[str]:
    """Why timings of a job do not count, by the log of its server."""
    offload = Offload(device.accelerator, device, options=options or LlamaCpp())
    used = usage(offload, placement(log), mmproj, None)
    line = Line("used", "artifact", 0, {**vars(used), "software": used.is_software})
    order = JobOrder({"artifact": "x"}, (), accelerators=(device.accelerator,))
    return not_the_accelerator(accelerator_of(order, [line]))


def test_the_verdict(mmproj: Path) -> None:
    hard = [line.replace("Vulkan", "CUDA") for line in LOG]
    assert verdict(LOG, mmproj) == ["software renderer: llvmpipe (LLVM 15.0.6, 256 bits) computes on the processor"]
    assert verdict(hard, mmproj, ORIN) == []
    fewer = [line.replace("4/4", "2/4") for line in hard]
    assert verdict(fewer, mmproj, ORIN) == ["fell back to cpu: 75% of the layers on cuda"]
    no_projector = [line.replace("CLIP using CUDA0", "CLIP using CPU") for line in hard]
    assert verdict(no_projector, mmproj, ORIN) == ["fell back to cpu: 50% of the layers on cuda"]
    assert verdict(fewer, mmproj, ORIN, LlamaCpp(gpu_layers=2)) == []
    assert verdict(no_projector, mmproj, ORIN, LlamaCpp(mmproj_on_gpu=False)) == []


def test_time_is_shared_by_layers(mmproj: Path) -> None:
    log = [line.replace("4/4", "3/4").replace("CLIP using Vulkan0", "CLIP using CPU") for line in LOG]
    timing = Timing(total_s=6.0, ttft_s=5.0, preprocess_s=0.0, vision_s=2.0, prefill_s=3.0, decode_s=1.0)
    found = usage(Offload("vulkan", VULKAN), placement(log), mmproj, timing)
    assert found.nodes == {"vulkan": 3, "cpu": 5}
    assert found.seconds == {"vulkan": 3.0, "cpu": 3.0}
    assert found.elsewhere == (("vision encoder on cpu", 2.0), ("1 layers on cpu", 1.0))
    less = usage(
        Offload("vulkan", VULKAN, options=LlamaCpp(gpu_layers=3, mmproj_on_gpu=False)), placement(log), mmproj, timing
    )
    assert less.device.endswith("(3 of 4 layers, as the target asks) (vision encoder on the CPU, as the target asks)")
    assert less.seconds == {"vulkan": 4.0, "cpu": 0}
    assert usage(Offload(), placement([]), mmproj, timing).nodes is None


def test_this_build_has_only_the_cpu() -> None:
    load_llama_cpp()
    assert devices_here() == []
