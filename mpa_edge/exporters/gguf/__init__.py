"""GGUF: llama.cpp's own converter, taken from the commit of the pinned runtime, and its quantizer."""
