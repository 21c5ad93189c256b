"""GGUF: llama.cpp's files, made by its own converter from the commit of the pinned runtime."""

from mpa_edge.exporters.gguf.check import check_gguf_possible
from mpa_edge.exporters.gguf.convert import convert
from mpa_edge.exporters.gguf.plan import plan, planned_bytes, predicted_bytes
from mpa_edge.exporters.gguf.quantize import quantize_gguf
from mpa_edge.vlm.llama_cpp.gguf_header import Header, TensorInfo, read_header

__all__ = [
    "Header",
    "TensorInfo",
    "check_gguf_possible",
    "convert",
    "plan",
    "planned_bytes",
    "predicted_bytes",
    "quantize_gguf",
    "read_header",
]
