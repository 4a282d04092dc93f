"""The frozen part of a multi-exit network as ONNX graphs: written with PyTorch, checked and run without it."""
