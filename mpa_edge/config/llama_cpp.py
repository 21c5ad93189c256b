"""How llama.cpp uses an accelerator, as a target says it. It runs on the device, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from mpa_edge.config.section import Section

if TYPE_CHECKING:
    from typing import Self  # novm


class LlamaCpp(Section):
    """What llama.cpp places on the accelerator, and how it computes attention."""

    gpu_layers: int = Field(-1, ge=-1, le=1000)
    """Layers on the accelerator, the output layer counts as one; -1: all."""
    mmproj_on_gpu: bool = True
    """Whether the vision encoder is there, too; false where it does not fit beside the language model."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """auto: as llama.cpp does by itself; a language model on the CPU goes without, except in llama-server."""
    kv_cache: Literal["f16", "q8_0", "q4_0"] = "f16"
    """Precision of the key-value cache; below f16 it needs flash attention."""

    @model_validator(mode="after")
    def _small_cache_needs_flash_attention(self) -> Self:
        if self.kv_cache != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_cache {self.kv_cache} needs flash attention: leave flash_attention out, or take f16")
        return self
