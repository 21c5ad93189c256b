"""The names of accelerators, as targets, options and constructors write them. It runs on the device, too."""

from __future__ import annotations

from typing import Literal, get_args

Accelerator = Literal["cuda", "tensorrt", "openvino", "qnn", "webgpu", "coreml", "xnnpack", "vulkan", "cpu"]
"""What computes. ONNX Runtime has all but vulkan, llama.cpp has cuda, vulkan and cpu."""
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)
"""All of them; where nothing else says it, the first one that a device has is the best."""
AUTO = "auto"
CPU_ONLY: tuple[Accelerator, ...] = ("cpu",)
