"""An exported ONNX folder as a VLM."""
