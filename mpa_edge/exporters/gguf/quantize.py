"""A 16-bit GGUF language model into fewer bits, by llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.exporters.gguf.plan import DEFAULT_TYPES, gqa_of, plan, predicted_bytes, shapes_of
from mpa_edge.runs.files import MB, TEMP_SUFFIX, disk_errors, fsync_folder, make_folder, require_free
from mpa_edge.runs.isolation import run_isolated
from mpa_edge.vlm.llama_cpp.gguf_header import Header, read_header

LOG_LINES = 20


def quantize_gguf(source: Path, out: Path, precision: str, threads: int | None = None) -> list[str]:
    """Write `source` (f16) in fewer bits; returns what the user should know about the result, one line each.

    Runs in a process of its own. The file gets its name when it is complete. MpaError where the precision is unknown,
    the source is no GGUF file, or llama.cpp refuses.
    """
    if precision not in DEFAULT_TYPES:
        raise MpaError(f"no GGUF precision '{precision}': choose {', '.join(DEFAULT_TYPES)}")
    header = read_header(source)
    need_bytes = predicted_bytes(header, precision)
    make_folder(out.parent)
    require_free(out.parent, need_bytes)
    temp = out.with_name(f".{out.name}.{os.getpid()}{TEMP_SUFFIX}")
    try:
        with disk_errors(out.parent, need_bytes):
            run_isolated(_quantize, source, temp, precision, threads or os.cpu_count() or 1)
            read_header(temp)
            os.replace(temp, out)
            fsync_folder(out.parent)
    finally:
        temp.unlink(missing_ok=True)
    return notes(header, precision)


def _quantize(source: Path, out: Path, precision: str, threads: int) -> None:
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        raise missing_package("llama-cpp-python", "gguf") from error

    said: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: Any) -> None:
        said.append(text.decode(errors="replace").strip())
        del said[:-LOG_LINES]

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
    parameters.nthread = threads
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters))
    if failed or not out.is_file():
        reason = next((line for line in reversed(said) if line), f"code {failed}")
        raise MpaError(f"llama.cpp did not quantize to {precision} ({reason}): use gguf-f16, or report it")


def notes(header: Header, precision: str) -> list[str]:
    """What a precision turns into on these shapes, where that is not what its name says.

    Super-blocks of 256 weights do not fit rows of another length: llama.cpp takes wider types for them.
    """
    planned = plan(shapes_of(header), precision, gqa_of(header))
    fell = Counter(one.type for one in planned.values() if one.type != one.wanted)
    if not fell:
        return []
    kinds = ", ".join(f"{n} to {name}" for name, n in sorted(fell.items()))
    total = sum(fell.values())
    lines = [f"{precision}: rows of {total} of {len(planned)} tensors do not fit its blocks, they fell back ({kinds})"]
    mine, plain = predicted_bytes(header, precision), predicted_bytes(header, "q4_0")
    if precision == "q4_k_m" and mine > plain:
        lines.append(
            f"{precision}: {mine / MB:.1f} MB is larger than q4_0 would be ({plain / MB:.1f} MB): prefer gguf-q4_0"
        )
    return lines
