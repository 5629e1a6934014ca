"""The sentence encoder: its ONNX graph written from weights, quantized, described and run."""
