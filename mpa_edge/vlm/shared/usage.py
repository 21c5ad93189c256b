"""What really computed an answer, as the runtime itself reports it. It runs on the device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# renderers that draw on the processor: Mesa, SwiftShader, Windows
SOFTWARE = re.compile(r"llvmpipe|lavapipe|softpipe|swiftshader|basic render", re.IGNORECASE)


@dataclass(frozen=True)
class Usage:
    """Which accelerator computed how much of one answer."""

    accelerator: str
    """The chosen one (config.accelerator)."""
    device: str = ""
    """Its name, as the runtime reports it; empty where it does not."""
    missing: tuple[str, ...] = ()
    """Preferred ones that are not here, each with what to do about it."""
    nodes: Mapping[str, int] | None = None
    """Accelerator -> nodes of the graphs, or layers of the model; None where the runtime does not say."""
    seconds: Mapping[str, float] | None = None
    """Accelerator -> time of the answer; None where the runtime does not say."""
    elsewhere: tuple[tuple[str, float], ...] = ()
    """(operator, seconds) of what ran on another one than the chosen, the longest first."""
    gpu_bytes: int | None = None
    """Memory of the device that the runtime says it took; None where it does not say."""
    there: tuple[str, ...] = ()
    """Accelerators that this runtime could be asked for here; empty where it does not say."""

    @property
    def is_software(self) -> bool:
        """Whether the device is a program that only pretends to be a GPU.

        >>> Usage("vulkan", "llvmpipe (LLVM 15.0.6, 256 bits)").is_software, Usage("vulkan", "Orin").is_software
        (True, False)
        """
        return bool(SOFTWARE.search(self.device))
