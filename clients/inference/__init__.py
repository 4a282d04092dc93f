"""Personal inference that stops at the first confident exit, on PyTorch and on ONNX Runtime (Sec. 3.2)."""
