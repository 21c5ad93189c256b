"""A 16-bit GGUF language model in fewer bits, by llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, fsync_folder, make_folder
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.runs.paths import move, remove
from mpa_edge.vlm.llama_cpp.gguf_header import Header, read_header

# precision of a scheme -> the type that most tensors get
DEFAULT_TYPES = {name: name.removesuffix("_m") for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q2_k")}
SUPER_BLOCK = 256
WEIGHTED = ("q5_k_m", "q4_k_m", "q4_0", "q2_k")
"""Precisions that are rounded by importance: with 6 bits and more it makes no difference."""
# layer of a transformers language model -> tensor of a block
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LOG_LINES = 20


def quantize_gguf(
    source: Path, out: Path, precision: str, threads: int | None = None, importance: Path | None = None
) -> list[str]:
    """Write `source` (f16) in fewer bits; returns what the user should know about the result, one line each.

    `importance` is a file of `measure_importance`: weights with large inputs are rounded more carefully. Runs in a
    process of its own. The file gets its name when it is complete. MpaError where the precision is unknown, the source
    is not a GGUF file, or llama.cpp fails.
    """
    if precision not in DEFAULT_TYPES:
        raise MpaError(f"no GGUF precision '{precision}': choose {', '.join(DEFAULT_TYPES)}")
    need_bytes = read_header(source).file_bytes
    make_folder(out.parent)
    temp = out.with_name(f".{out.name}.{os.getpid()}{TEMP_SUFFIX}")
    try:
        with disk_errors(out.parent, need_bytes):
            run_isolated(_quantize, source, temp, precision, threads or os.cpu_count() or 1, importance)
            header = read_header(temp)
            move(temp, out)
            fsync_folder(out.parent)
    finally:
        remove(temp, quietly=True)
    return notes(header, precision)


def _quantize(source: Path, out: Path, precision: str, threads: int, importance: Path | None) -> None:
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise missing_package("llama-cpp-python", "gguf") from error

    log: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: Any) -> None:
        log.append(text.decode(errors="replace").strip())
        del log[:-LOG_LINES]

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
    parameters.nthread = threads
    weighted = importance_of(importance) if importance else {}
    # the array ends with an entry without a name; `weighted` keeps the numbers alive
    entries = (llama_cpp.llama_model_imatrix_data * (len(weighted) + 1))()
    for entry, (name, values) in zip(entries, weighted.items(), strict=False):
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.name, entry.data, entry.size = name.encode(), data, values.size
    if weighted:
        parameters.imatrix = entries
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters))
    if failed or not out.is_file():
        reason = next((line for line in reversed(log) if line), f"code {failed}")
        raise MpaError(f"llama.cpp did not quantize to {precision} ({reason}): use gguf-f16, or report it")


def importance_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name of a GGUF tensor -> mean square of each of its inputs."""
    found = {}
    with np.load(path) as stored:
        for name in stored.files:
            place, _, layer = name.removeprefix("layers.").partition(".")
            if layer in TENSORS:
                found[f"blk.{place}.{TENSORS[layer]}.weight"] = np.ascontiguousarray(stored[name], np.float32)
    return found


def notes(header: Header, precision: str) -> list[str]:
    """Where a quantized file's types are not what its precision says; empty where they are.

    Super-blocks of 256 weights do not fit rows of another length: llama.cpp falls back to wider types for them.
    """
    own = DEFAULT_TYPES[precision]
    wider = Counter(
        tensor.type
        for tensor in header.tensors
        if len(tensor.shape) > 1 and tensor.shape[-1] % SUPER_BLOCK and tensor.type != own
    )
    if not wider:
        return []
    types = ", ".join(f"{n} to {name}" for name, n in sorted(wider.items()))
    total, n_tensors = sum(wider.values()), len(header.tensors)
    lines = [f"{precision}: rows of {total} of {n_tensors} tensors do not fit its blocks, they fell back ({types})"]
    if precision == "q4_k_m" and "q5_0" in wider:
        lines.append(f"{precision}: q5_0 takes more bytes than q4_0 would: prefer gguf-q4_0")
    return lines
