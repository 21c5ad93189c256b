"""From a checkpoint to files that a device runs: ONNX and GGUF, quantized, and verified against the checkpoint."""
