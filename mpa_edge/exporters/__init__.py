"""From a checkpoint to files that a device runs: ONNX and GGUF, quantized, and compared with where they came from."""
