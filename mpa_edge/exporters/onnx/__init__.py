"""ONNX graphs: traced from a checkpoint, calibrated, quantized."""
