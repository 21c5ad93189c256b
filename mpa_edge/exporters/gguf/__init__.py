"""GGUF: llama.cpp's files, made by its own converter from the commit of the pinned runtime."""

from mpa_edge.exporters.gguf.convert import convert

__all__ = ["convert"]
