"""A LoRA adapter as llama.cpp's adapter file, for a base model that is on the device already.

llama.cpp's own converter does it. It drops what is not in the language model without a word, and knows one alpha for
all matrices: the former is refused here, the latter is made up for in the matrices.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf.convert import stage
from mpa_edge.exporters.gguf.driver import run_converter
from mpa_edge.exporters.gguf.fetch import converter_folder
from mpa_edge.exporters.sizes import AUDIO, VISION
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, fsync_folder, make_folder, write_bytes, write_json
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.paths import STAGED_SUFFIX, move, remove
from mpa_edge.vlm.llama_cpp.gguf_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

    from mpa_edge.exporters.source import Source
    from mpa_edge.vlm.transformers.adapter import Adapter

SCRIPT = "convert_lora_to_gguf.py"


def adapter_problem(adapter: Adapter) -> str | None:
    """Why llama.cpp cannot apply an adapter while it runs; None where it can."""
    modules = {name.partition(".lora_")[0] for name in adapter.lora}
    if seeing := sorted(name for name in modules if VISION.search(f"{name}.") or AUDIO.search(f"{name}.")):
        return f"{seeing[0]} was tuned, and llama.cpp applies an adapter to the language model only"
    if adapter.whole:
        return f"{min(adapter.whole)} was tuned as a whole, and an adapter of llama.cpp holds products of LoRA only"
    if adapter.config.get("use_dora"):
        return "it is a DoRA adapter, and llama.cpp applies plain LoRA only"
    if adapter.untie or any(not name.endswith((".lora_A.weight", ".lora_B.weight")) for name in adapter.lora):
        return "embeddings or biases were tuned, and llama.cpp applies an adapter to matrices of layers only"
    return None


def convert_adapter(base: Source, adapter: Adapter, out: Path) -> int:
    """Write an adapter as GGUF in 16 bits; returns the peak resident bytes of the process that did it.

    Args:
        base: The model that it was made for.
        adapter: In the names of the base; one without an `adapter_problem`.
        out: The file, which gets its name when it is complete.

    MpaError where the converter fails or leaves a matrix out.
    """
    make_folder(out.parent)
    temp = out.with_name(f".{out.name}.{os.getpid()}{TEMP_SUFFIX}")
    folder = out.with_name(f".{out.name}{STAGED_SUFFIX}")
    remove(folder)
    try:
        with disk_errors(out.parent, sum(tensor.nbytes for tensor in adapter.lora.values())):
            arguments = [str(_staged(base, adapter, folder / "adapter")), "--base", str(stage(base, folder / "base"))]
            arguments += ["--outfile", str(temp), "--outtype", "f16"]
            _, peak_bytes = run_isolated(run_converter, converter_folder(), "", {}, arguments, SCRIPT)
            n, n_tensors = len(adapter.lora), len(read_header(temp).tensors)
            if n_tensors != n:
                raise MpaError(
                    f"llama.cpp's converter wrote {n_tensors} of {n} matrices: use --as gguf-f16, or report it"
                )
            move(temp, out)
            fsync_folder(out.parent)
    finally:
        remove(folder, quietly=True)
        remove(temp, quietly=True)
    return peak_bytes


def _staged(base: Source, adapter: Adapter, folder: Path) -> Path:
    """Fill `folder` with an adapter in the names that transformers gives saved tensors, and one alpha for all."""
    from safetensors.torch import save

    from mpa_edge.vlm.transformers.checkpoint import inner_names, outline

    inner = inner_names(outline(base.checkpoint), base.names)
    saved = {inner[key]: name for key, name in base.names.items()}
    alpha = adapter.config.get("lora_alpha") or 1  # llama.cpp takes 0 for no scale
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.lora.items():
        module, _, part = name.partition(".lora_")
        scale = _alpha(adapter, module) / alpha
        if adapter.config.get("use_rslora"):
            scale *= adapter.lora[f"{module}.lora_A.weight"].shape[0] ** 0.5
        stored = saved[f"{module}.weight"].removesuffix(".weight")
        tensors[f"base_model.model.{stored}.lora_{part}"] = tensor * scale if part.startswith("B") else tensor
    make_folder(folder)
    write_json(folder / "adapter_config.json", {"lora_alpha": alpha})
    write_bytes(folder / "adapter_model.safetensors", save(tensors))
    return folder


def _alpha(adapter: Adapter, module: str) -> float:
    """Of one module: its patterns are exact names here."""
    alpha: float = adapter.config["alpha_pattern"].get(re.escape(module), adapter.config.get("lora_alpha", 8))
    return alpha
